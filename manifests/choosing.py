"""Split and merge manifests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .clip import Clip, ManifestError
from .datasets.base import draw
from .videos import video_id

# Extras that describe the splits; they are removed when new splits are drawn.
OF_SPLITS = ("carved", "protocol")


def split_clips(clips: Sequence[Clip], *, val: float, test: float, seed: int = 0, again: bool = False) -> list[Clip]:
    """Return the clips with the splits ``train``, ``val`` and ``test``. All clips of a video get the same split.

    The split of a video depends on a hash of ``seed`` and its id. So clips that are added later do not change the split
    of other clips, and a different share for val does not change test. A split is never empty: it gets the next video.

    Args:
        val, test: shares of the videos, in [0, 1].
        again: allow clips that already have splits, and replace them.

    Raises:
        ManifestError: if clips have splits already, or there are fewer videos than splits.
    """
    existing = sorted({clip.split for clip in clips if clip.split})
    if existing and not again:
        raise ManifestError(f"the clips already have splits ({', '.join(existing)}); --again replaces them")
    drawn = sorted((draw(video, seed), video) for video in {video_id(clip.video) for clip in clips})
    shares = {split: share for split, share in (("test", test), ("val", val)) if share > 0}
    if len(drawn) <= len(shares):
        raise ManifestError(f"{len(shares) + 1} splits need as many videos; there are {len(drawn)}")
    chosen: dict[str, str] = {}
    threshold, splits_left = 0.0, len(shares)
    for split, share in shares.items():
        threshold += share
        rest = drawn[len(chosen) :]
        count = max(1, sum(number < threshold for number, _ in rest))
        chosen |= dict.fromkeys([video for _, video in rest[: min(count, len(rest) - splits_left)]], split)
        splits_left -= 1
    return [
        replace(
            clip,
            split=chosen.get(video_id(clip.video), "train"),
            extras={name: value for name, value in clip.extras.items() if name not in OF_SPLITS},
        )
        for clip in clips
    ]


def merge_clips(manifests: Iterable[tuple[str, Iterable[Clip]]]) -> tuple[list[Clip], int]:
    """Merge several manifests. Return the clips in order, and the number of repeated clips.

    Args:
        manifests: name and clips of each manifest.

    Raises:
        ManifestError: naming the clips that differ between two manifests.
    """
    merged: dict[str, tuple[str, Clip]] = {}
    conflicts: list[str] = []
    repeated = 0
    for name, clips in manifests:
        for clip in clips:
            if clip.clip_id not in merged:
                merged[clip.clip_id] = name, clip
                continue
            first_name, first_clip = merged[clip.clip_id]
            repeated += 1
            if first_clip != clip:
                conflicts.append(
                    f"{clip.clip_id!r} ({_difference(first_clip, clip)} differs in {first_name} and {name})"
                )
    if conflicts:
        more = f" and {len(conflicts) - 5:,} more" if len(conflicts) > 5 else ""
        raise ManifestError(f"different clips have the same id: {', '.join(conflicts[:5])}{more}")
    return [clip for _, clip in merged.values()], repeated


def _difference(first: Clip, second: Clip) -> str:
    """Return the name of the first field in which two clips differ."""
    return next(name for name in Clip.__slots__ if getattr(first, name) != getattr(second, name))
