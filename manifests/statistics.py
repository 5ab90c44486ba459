"""Statistics of a manifest, including leaks: videos and captions that are in several splits."""

from __future__ import annotations

import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .clip import Clip
from .videos import video_id

NO_SPLIT = "no split"


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Videos or captions that are in the same two or more splits.

    Attributes:
        splits: names of the splits, sorted.
        names: the videos, or the captions as spelled in their first clip.
    """

    splits: tuple[str, ...]
    names: list[str]


@dataclass(kw_only=True)
class Statistics:
    """Statistics of a manifest.

    Attributes:
        clips, videos, captions: their numbers.
        splits: number of clips by split.
        hours: total duration of the clips with an end.
        open_ended: number of clips that end with their video; a manifest does not have their duration.
        durations: seconds of each clip with an end.
        captions_a_clip: number of captions of each clip.
        words: number of words of each caption.
        caption_leaks, video_leaks: captions and videos that are in several splits. Captions are compared without case
            and whitespace.
        carved: split -> description of how its clips were taken from train.
    """

    clips: int = 0
    videos: int = 0
    captions: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    hours: float = 0.0
    open_ended: int = 0
    durations: Sequence[float] = field(default_factory=lambda: array.array("d"))
    captions_a_clip: Sequence[int] = field(default_factory=lambda: array.array("l"))
    words: Sequence[int] = field(default_factory=lambda: array.array("l"))
    caption_leaks: list[Leak] = field(default_factory=list)
    video_leaks: list[Leak] = field(default_factory=list)
    carved: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the statistics for JSON, with quantiles instead of one value per clip."""
        record = {name: getattr(self, name) for name in ("clips", "videos", "captions", "hours", "open_ended")}
        record["splits"] = dict(self.splits)
        record |= self.quantiles()
        for name in ("caption_leaks", "video_leaks"):
            record[name] = [vars(leak) | {"count": len(leak.names)} for leak in getattr(self, name)]
        return record

    def quantiles(self) -> dict[str, dict[str, float] | None]:
        """Return the quantiles of durations, captions per clip and words per caption; None if there are no values."""
        values = {
            "seconds_a_clip": self.durations,
            "captions_a_clip": self.captions_a_clip,
            "words_a_caption": self.words,
        }
        return {name: _quantiles(numbers) for name, numbers in values.items()}


def statistics(clips: Iterable[Clip]) -> Statistics:
    """Return the statistics of clips, in one pass."""
    result = Statistics()
    video_splits: dict[str, set[str]] = {}
    caption_splits: dict[str, tuple[str, set[str]]] = {}
    names: set[str] = set()
    for clip in clips:
        split = clip.split or NO_SPLIT
        result.clips += 1
        result.captions += len(clip.captions)
        result.splits[split] += 1
        names.add(clip.video)
        video_splits.setdefault(video_id(clip.video), set()).add(split)
        if clip.end is None:
            result.open_ended += 1
        else:
            result.durations.append(clip.end - (clip.start or 0.0))
        result.captions_a_clip.append(len(clip.captions))
        for caption in clip.captions:
            words = caption.split()
            result.words.append(len(words))
            caption_splits.setdefault(" ".join(words).casefold(), (caption, set()))[1].add(split)
        if "carved" in clip.extras:
            result.carved[clip.split] = str(clip.extras["carved"])
    result.videos = len(names)
    result.hours = sum(result.durations) / 3600
    result.video_leaks = _leaks(video_splits.items())
    result.caption_leaks = _leaks(caption_splits.values())
    return result


def _leaks(splits_of: Iterable[tuple[str, set[str]]]) -> list[Leak]:
    leaks: dict[tuple[str, ...], list[str]] = {}
    for name, splits in splits_of:
        if len(splits) > 1:
            leaks.setdefault(tuple(sorted(splits)), []).append(name)
    return [Leak(splits=splits, names=names) for splits, names in leaks.items()]


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return mean, minimum, 5 %, median, 95 % and maximum of numbers; None if there are none."""
    import numpy as np

    if not len(values):
        return None
    minimum, low, median, high, maximum = np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).tolist()
    return {"mean": float(np.mean(values)), "min": minimum, "p5": low, "median": median, "p95": high, "max": maximum}
