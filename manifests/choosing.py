"""Manifests from manifests: split, filtered and merged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .clip import Clip, ManifestError
from .datasets.base import draw
from .videos import video_id

# What extras say of splits, which is no longer so once there are others.
OF_SPLITS = ("carved", "protocol")


def split_clips(clips: Sequence[Clip], *, val: float, test: float, seed: int = 0, again: bool = False) -> list[Clip]:
    """The clips in splits ``train``, ``val`` and ``test``; all clips of a video are in one.

    The draw of a video is a hash of ``seed`` and its id: clips that are added later change no other clip's split, and
    another share for val changes no clip of test. A split that would be empty has the video that is drawn next.

    Args:
        val, test: shares of the videos, in [0, 1].
        again: whether clips may have splits already.

    Raises:
        ManifestError: if clips have splits, or there are too few videos for so many splits.
    """
    existing = sorted({clip.split for clip in clips if clip.split})
    if existing and not again:
        raise ManifestError(f"the clips are in splits already ({', '.join(existing)}); --again draws others")
    drawn = sorted((draw(video, seed), video) for video in {video_id(clip.video) for clip in clips})
    shares = {split: share for split, share in (("test", test), ("val", val)) if share > 0}
    if len(drawn) <= len(shares):
        raise ManifestError(f"{len(shares) + 1} splits need as many videos; there are {len(drawn)}")
    chosen: dict[str, str] = {}
    below, lacking = 0.0, len(shares)
    for split, share in shares.items():
        below += share
        rest = drawn[len(chosen) :]
        count = max(1, sum(number < below for number, _ in rest))
        chosen |= dict.fromkeys([video for _, video in rest[: min(count, len(rest) - lacking)]], split)
        lacking -= 1
    return [
        replace(
            clip,
            split=chosen.get(video_id(clip.video), "train"),
            extras={name: value for name, value in clip.extras.items() if name not in OF_SPLITS},
        )
        for clip in clips
    ]


def merge_clips(manifests: Iterable[tuple[str, Iterable[Clip]]]) -> tuple[list[Clip], int]:
    """The clips of several manifests, by the manifests' names, in their order; and how many were there before.

    Raises:
        ManifestError: naming the clips that differ between two of them.
    """
    merged: dict[str, tuple[str, Clip]] = {}
    conflicts: list[str] = []
    repeated = 0
    for name, clips in manifests:
        for clip in clips:
            if clip.clip_id not in merged:
                merged[clip.clip_id] = name, clip
                continue
            before, known = merged[clip.clip_id]
            repeated += 1
            if known != clip:
                conflicts.append(f"{clip.clip_id!r} ({_difference(known, clip)} differs in {before} and {name})")
    if conflicts:
        more = f" and {len(conflicts) - 5:,} more" if len(conflicts) > 5 else ""
        raise ManifestError(f"clips with one id are not the same: {', '.join(conflicts[:5])}{more}")
    return [clip for _, clip in merged.values()], repeated


def _difference(first: Clip, second: Clip) -> str:
    """The name of the first field in which two clips differ."""
    return next(name for name in Clip.__slots__ if getattr(first, name) != getattr(second, name))
