"""Select the clips and captions of a split that have features, and record why others are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import AmexError, did_you_mean, plural
from ..features import Store, Stream, is_caption_stream, row_arrays
from ..manifests import Clip
from ..manifests.videos import video_id
from .config import DataOptions
from .coverage import MAKE_SPLITS, Coverage, published_gallery


class DataError(AmexError):
    """The store or the manifest lacks something that a model needs."""


# States of a clip or caption without rows in a stream, and their names in counts.
LACKING = {"absent": "not extracted in", "failed": "failed in", "empty": "empty in"}
NEVER_EXTRACTED = ("absent",)


def refused_states(strict: bool) -> Collection[str]:
    """Return the states that are an error. With --strict, every clip and caption needs rows."""
    return LACKING if strict else NEVER_EXTRACTED


def kind(stream: Stream) -> str:
    """Return what the rows of a stream describe: ``text``, ``objects`` or ``clips``."""
    if is_caption_stream(stream.spec):
        return "text"
    return "objects" if "boxes" in row_arrays(stream.spec) else "clips"


def of_split(clips: Sequence[Clip], split: str, source: str) -> list[Clip]:
    """Return the clips of a split (``all``: every clip).

    Raises:
        DataError: if there are none.
    """
    chosen = [clip for clip in clips if split in ("all", clip.split)]
    if not chosen:
        splits = sorted({clip.split for clip in clips})
        existing = ", ".join(name or "clips of no split" for name in splits) or "no clip at all"
        remedy = did_you_mean(split, splits) or f": draw splits with {MAKE_SPLITS}"
        raise DataError(f"{source} has no clip of split {split!r}; it has {existing}{remedy}")
    return chosen


def choose_clips(clips: Sequence[Clip], data: DataOptions, source: str) -> tuple[list[Clip], list[Clip]]:
    """Return the training clips and the validation clips.

    Raises:
        DataError: if a split is missing; or if two of training, validation and test splits share clips or videos and
            the options do not allow it. Clips are compared, not the names of splits.
    """
    train, val = of_split(clips, data.train, source), of_split(clips, data.val, source)
    test = [clip for clip in clips if clip.split == "test"]
    problems = []
    if overlap := _overlap(val, test):
        shared = f"data.val={data.val} and the test split share {overlap}"
        if overlap.what == "clip" and not data.select_on_test:
            problems.append(
                f"{shared}, so test clips would select the checkpoint; to allow it: --set data.select_on_test=true"
            )
        if overlap.what == "video" and not data.allow_overlap:
            problems.append(f"{shared}: clips of one video are in both; to allow it: --set data.allow_overlap=true")
    evaluated = [] if data.allow_overlap else [(f"data.val={data.val}", val), ("the test split", test)]
    overlaps = [f"{name} shares {overlap}" for name, others in evaluated if (overlap := _overlap(train, others))]
    if overlaps:
        problems.append(
            f"data.train={data.train} would be evaluated on its own training data: {', '.join(overlaps)}; to allow "
            "it: --set data.allow_overlap=true"
        )
    if problems:
        raise DataError(f"{source}: {'; '.join(problems)}")
    return train, val


@dataclass(frozen=True)
class Overlap:
    """The clips or videos that two lists of clips share.

    Attributes:
        what: ``clip``, or ``video`` if the lists share no clip but clips of the same videos.
        names: their ids, at least one.
    """

    what: str
    names: frozenset[str]

    def __str__(self) -> str:
        plural, more = ("s", ", ...") if len(self.names) > 1 else ("", "")
        return f"{len(self.names):,} {self.what}{plural} ({min(self.names)!r}{more})"


def _overlap(clips: Sequence[Clip], others: Sequence[Clip]) -> Overlap | None:
    for what, key in (("clip", lambda clip: clip.clip_id), ("video", lambda clip: video_id(clip.video))):
        if names := {key(clip) for clip in clips} & {key(clip) for clip in others}:
            return Overlap(what, frozenset(names))
    return None


def with_features(
    store: Store,
    clips: Sequence[Clip],
    streams: Sequence[Stream],
    text: Stream | None,
    *,
    refuse: Collection[str] = NEVER_EXTRACTED,
) -> tuple[list[Clip], Coverage]:
    """Return the clips that have rows in all streams, with their captions that have rows in the text stream.

    Args:
        text: the text stream; None if captions need no features.
        refuse: states of ``LACKING`` that are an error; clips and captions in other states are left out and counted.

    Raises:
        DataError: if a refused state occurs, if clips were extracted at other times than those of the manifest, or if
            no clip is left. It names clips and captions, and what to do.
    """
    lost_clips = _lacking([clip.clip_id for clip in clips], streams)
    usable = [clip for clip in clips if clip.clip_id not in lost_clips]
    queries = [caption for clip in usable for caption in clip.captions]
    for stream in streams:
        _check_times(store, stream, clips)
    _check_states(store, [(stream, [clip.clip_id for clip in clips]) for stream in streams], refuse)
    lost_captions: dict[str, str] = {}
    if text is not None:
        _check_states(store, [(text, queries)], refuse)
        lost_captions = _lacking(queries, [text])
    captions_left_out = Counter(lost_captions[caption] for caption in queries if caption in lost_captions)
    all_captions = sum(len(clip.captions) for clip in clips)
    if all_captions > len(queries):
        captions_left_out["of clips left out"] = all_captions - len(queries)
    if lost_captions:
        usable = [
            replace(clip, captions=[caption for caption in clip.captions if caption not in lost_captions])
            for clip in usable
        ]
    coverage = Coverage(
        clips=len(usable),
        of_clips=len(clips),
        captions=sum(len(clip.captions) for clip in usable),
        of_captions=all_captions,
        clips_left_out=dict(Counter(lost_clips.values())),
        captions_left_out=dict(captions_left_out),
        **published_gallery(clips),
    )
    if not usable:
        raise DataError(f"{store.path} has features of {coverage.clip_line}; the first is {clips[0].clip_id!r}")
    return usable, coverage


def _lacking(keys: Sequence[str], streams: Sequence[Stream]) -> dict[str, str]:
    """Return the reason, as counts name it, for each clip or caption that some stream lacks."""
    states = np.array([stream.states(keys) for stream in streams], "U6").reshape(len(streams), len(keys))
    lacking = {}
    for number in np.flatnonzero((states != "done").any(axis=0)).tolist():
        for state, words in LACKING.items():
            if names := [stream.name for stream, own in zip(streams, states[:, number], strict=True) if own == state]:
                lacking[keys[number]] = f"{words} {' and '.join(names)}"
                break
    return lacking


def _check_states(store: Store, required: Sequence[tuple[Stream, Sequence[str]]], refuse: Collection[str]) -> None:
    """Raise a DataError that names the clips or captions in refused states, and what to do about each state."""
    problems: list[str] = []
    lacking: dict[str, list[str]] = {state: [] for state in LACKING}  # names of streams by state
    for stream, keys in required:
        states = {key: state for key, state in zip(keys, stream.states(keys).tolist(), strict=True) if state in refuse}
        if not states:
            continue
        first = next(iter(states))
        what = "caption" if kind(stream) == "text" else "clip"
        what = f"1 {what} has" if len(states) == 1 else f"{len(states):,} {what}s have"
        failure = stream.failures.get(first)
        why = f" ({failure.stage}: {failure.reason})" if failure else " (empty)" if states[first] == "empty" else ""
        problems.append(f"{what} no rows in stream {stream.name!r}, the first {first!r}{why}")
        for state in set(states.values()):
            lacking[state].append(stream.name)
    if not problems:
        return

    def extract(state: str) -> str:
        options = " ".join(f"--stream {name}" for name in lacking[state])
        return f"amex extract --manifest M --videos V --store {store.path} {options}"

    remedies = {
        "absent": f"wait for a running extraction, or extract with {extract('absent')}",
        "failed": f"retry failed clips with {extract('failed')} --retry-failed",
        "empty": "remove empty clips from the manifest",
    }
    needed = [remedy for state, remedy in remedies.items() if lacking[state]]
    if lacking["failed"] or lacking["empty"]:
        needed.append("without --strict, failed and empty clips are left out")
    raise DataError(f"{store.path}: {'; '.join(problems)}: {'; '.join(needed)}")


def _check_times(store: Store, stream: Stream, clips: Sequence[Clip]) -> None:
    """Raise a DataError if clips were extracted at other times than those of the manifest, as far as recorded.

    Failed clips count too: their new times were never tried.
    """
    ids = [clip.clip_id for clip in clips]
    same = stream.are_of(ids, [clip.start for clip in clips], [clip.end for clip in clips])
    moved = [ids[number] for number in np.flatnonzero(~same)]
    if moved:
        count = plural(len(moved), "clip")
        raise DataError(
            f"{store.path}: {count} of stream {stream.name!r} had other times in the manifest when extracted, the "
            f"first {moved[0]!r}: run amex extract again with this manifest"
        )
