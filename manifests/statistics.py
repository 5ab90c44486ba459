"""What a manifest holds, in numbers, and what it has in two splits that should be in one."""

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
    """Something that is in two splits or more.

    Attributes:
        splits: their names, in alphabetical order.
        names: the videos, or the captions as their first clip has them.
    """

    splits: tuple[str, ...]
    names: list[str]


@dataclass(kw_only=True)
class Statistics:
    """Numbers of a manifest.

    Attributes:
        splits: clips by split.
        hours: of the clips whose end is known.
        open_ended: clips that go on to the end of their video, which a manifest does not know.
        durations: seconds of each clip whose end is known.
        captions_a_clip: number of captions of each clip.
        words: number of words of each caption.
        caption_leaks, video_leaks: captions and videos by the splits that they are in, where these are several. A
            caption counts as another one's equal whatever their case and their blanks.
        carved: split -> how its clips were taken from train.
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
        """With quantiles in place of what has a value a clip."""
        record = {name: getattr(self, name) for name in ("clips", "videos", "captions", "hours", "open_ended")}
        record["splits"] = dict(self.splits)
        record |= self.quantiles()
        for name in ("caption_leaks", "video_leaks"):
            record[name] = [vars(leak) | {"count": len(leak.names)} for leak in getattr(self, name)]
        return record

    def quantiles(self) -> dict[str, dict[str, float] | None]:
        """Of what has a value a clip or a caption; None where there are none."""
        values = {
            "seconds_a_clip": self.durations,
            "captions_a_clip": self.captions_a_clip,
            "words_a_caption": self.words,
        }
        return {name: _quantiles(of) for name, of in values.items()}


def statistics(clips: Iterable[Clip]) -> Statistics:
    """Counts clips in one pass."""
    result = Statistics()
    of_video: dict[str, set[str]] = {}
    of_caption: dict[str, tuple[str, set[str]]] = {}
    names: set[str] = set()
    for clip in clips:
        split = clip.split or NO_SPLIT
        result.clips += 1
        result.captions += len(clip.captions)
        result.splits[split] += 1
        names.add(clip.video)
        of_video.setdefault(video_id(clip.video), set()).add(split)
        if clip.end is None:
            result.open_ended += 1
        else:
            result.durations.append(clip.end - (clip.start or 0.0))
        result.captions_a_clip.append(len(clip.captions))
        for caption in clip.captions:
            words = caption.split()
            result.words.append(len(words))
            of_caption.setdefault(" ".join(words).casefold(), (caption, set()))[1].add(split)
        if "carved" in clip.extras:
            result.carved[clip.split] = str(clip.extras["carved"])
    result.videos = len(names)
    result.hours = sum(result.durations) / 3600
    result.video_leaks = _leaks(of_video.items())
    result.caption_leaks = _leaks(of_caption.values())
    return result


def _leaks(splits_of: Iterable[tuple[str, set[str]]]) -> list[Leak]:
    leaks: dict[tuple[str, ...], list[str]] = {}
    for name, splits in splits_of:
        if len(splits) > 1:
            leaks.setdefault(tuple(sorted(splits)), []).append(name)
    return [Leak(splits=splits, names=names) for splits, names in leaks.items()]


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, least, 5 %, median, 95 % and most of some numbers; None if there are none."""
    import numpy as np

    if not len(values):
        return None
    least, low, median, high, most = np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).tolist()
    return {"mean": float(np.mean(values)), "min": least, "p5": low, "median": median, "p95": high, "max": most}
