"""``amex manifest split``, ``filter`` and ``merge``: manifests from manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ...errors import AmexError, plural, printable
from ..parameters import FILE, FOLDER, MANIFEST, POSITIVE, STORE
from .summary import manifest_argument, out_option, summarise

SHARE = click.FloatRange(0, 1, max_open=True)


@click.command("split")
@manifest_argument
@click.option("--val", default=0.1, show_default=True, type=SHARE, help="Share of videos for validation.")
@click.option("--test", default=0.1, show_default=True, type=SHARE, help="Share of videos for testing.")
@click.option("--seed", default=0, show_default=True, help="Another seed draws other splits.")
@click.option("--again", is_flag=True, help="Replace existing splits.")
@click.option("--out", type=FILE, help="The manifest to write.  [default: the same file]")
def manifest_split(path: Path, val: float, test: float, seed: int, again: bool, out: Path | None) -> None:
    """Draw train, val and test; a video is in one split.

    The split of a video depends only on the seed and the id of the video: the same id is in the same split everywhere,
    and new clips do not change the splits of others.

    \b
    amex manifest split my.jsonl --val 0.1 --test 0.2
    """
    from ...manifests import read_manifest, write_manifest
    from ...manifests.choosing import split_clips

    if not val + test < 1:  # nor is NaN
        raise click.UsageError(f"--val {val} and --test {test} leave nothing for train: they are shares of 1")
    clips, out = split_clips(read_manifest(path), val=val, test=test, seed=seed, again=again), out or path
    write_manifest(clips, out)
    click.echo(f"{out}: {summarise(clips)}")


@click.command("filter")
@manifest_argument
@click.option("--store", type=STORE, help="Keep clips that have features in it.")
@click.option(
    "--stream", "streams", multiple=True, help="A stream that must have them.  [default: all streams of clips]"
)
@click.option("--split", "splits", multiple=True, help="Keep clips of this split; repeat for more.")
@click.option("--min-seconds", type=POSITIVE, help="Keep clips of at least this length. Clips without an end are kept.")
@click.option("--videos", type=FOLDER, help="Keep clips whose video is in this folder.")
@out_option
def manifest_filter(
    path: Path,
    store: Path | None,
    streams: tuple[str, ...],
    splits: tuple[str, ...],
    min_seconds: float | None,
    videos: Path | None,
    out: Path,
) -> None:
    """Keep the clips that have features, a video or a split.

    Prints how many clips are left out, by the first condition that they fail.

    \b
    amex manifest filter my.jsonl --store my.zarr --out with_features.jsonl
    amex manifest filter my.jsonl --split train --min-seconds 2 --out train.jsonl
    """
    from ...manifests import read_manifest, write_manifest

    if streams and store is None:
        raise click.UsageError("--stream is a stream of --store: give both")
    if not (store or splits or min_seconds or videos):
        raise click.UsageError("nothing to filter by: give --store, --split, --min-seconds or --videos")
    clips = read_manifest(path)
    reasons: dict[str, str] = {}
    for reasons_of in (
        of_split(clips, splits),
        too_short(clips, min_seconds),
        without_video(clips, videos),
        without_features(clips, store, streams),
    ):
        for clip_id, reason in reasons_of:
            reasons.setdefault(clip_id, reason)
    matches = [clip for clip in clips if clip.clip_id not in reasons]
    for reason, count in Counter(reasons.values()).items():
        click.echo(printable(f"left out: {plural(count, 'clip')} {reason}"))
    if min_seconds and (open_ended := sum(clip.end is None for clip in matches)):
        click.echo(f"kept: {plural(open_ended, 'clip')} to the end of the video, of unknown length")
    if not matches:
        raise AmexError(f"no clip of {path} is left; {out} is not written")
    write_manifest(matches, out)
    click.echo(f"{out}: {summarise(matches)}")


Reasons = Iterator[tuple[str, str]]


def of_split(clips: Sequence[Any], splits: tuple[str, ...]) -> Reasons:
    """Yield the clips of other splits, with the reason."""
    existing = {clip.split for clip in clips}
    for split in splits:
        if split not in existing:
            listed = ", ".join(sorted(filter(None, existing))) or "none"
            raise click.UsageError(f"no clip is in split {split!r}; there is {listed}")
    for clip in clips:
        if splits and clip.split not in splits:
            yield clip.clip_id, f"in split {clip.split!r}" if clip.split else "in no split"


def too_short(clips: Sequence[Any], min_seconds: float | None) -> Reasons:
    """Yield the clips that are known to be shorter, with the reason."""
    for clip in clips:
        if min_seconds and clip.end is not None and clip.end - (clip.start or 0.0) < min_seconds:
            yield clip.clip_id, f"shorter than {min_seconds:g} s"


def without_video(clips: Sequence[Any], videos: Path | None) -> Reasons:
    """Yield the clips whose video is missing or ambiguous in the folder, with the reason."""
    from ...manifests import VideoError, VideoFinder

    if videos is None:
        return
    finder = VideoFinder(videos)
    absent: dict[str, bool] = {}
    for clip in clips:
        if clip.video not in absent:
            try:
                finder.find(clip.video)
                absent[clip.video] = False
            except VideoError:
                absent[clip.video] = True
        if absent[clip.video]:
            yield clip.clip_id, f"whose video is not in {videos}, or is there twice"


def without_features(clips: Sequence[Any], store: Path | None, streams: tuple[str, ...]) -> Reasons:
    """Yield the clips without rows in one of the streams, with the reason."""
    from ...features import is_caption_stream, open_store

    if store is None:
        return
    opened = open_store(store)
    names = streams or [name for name, stream in opened.items() if not is_caption_stream(stream.spec)]
    if not names:
        raise click.UsageError(f"{store} has no stream of clips: name one with --stream")
    for name in names:
        stream = opened[name]
        if is_caption_stream(stream.spec):
            raise click.UsageError(f"stream {name!r} has features of captions, not of clips")
        for clip, state in zip(clips, stream.states([clip.clip_id for clip in clips]), strict=True):
            if state != "done":
                yield clip.clip_id, f"{state} in {name}"


@click.command("merge")
@click.argument("paths", metavar="MANIFEST...", nargs=-1, required=True, type=MANIFEST)
@out_option
def manifest_merge(paths: tuple[Path, ...], out: Path) -> None:
    """Join manifests; equal clips count once.

    Different clips with the same id are an error, which names them.

    \b
    amex manifest merge a.jsonl b.jsonl --out both.jsonl
    """
    from ...manifests import read_manifest, write_manifest
    from ...manifests.choosing import merge_clips

    clips, repeated = merge_clips((str(path), read_manifest(path)) for path in paths)
    write_manifest(clips, out)
    if repeated:
        click.echo(f"{plural(repeated, 'clip')} in more than one of them, the same in all")
    click.echo(f"{out}: {summarise(clips)}")
