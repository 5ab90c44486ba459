"""Windows of videos scored with queries: how well a model that was trained on clips finds moments in whole videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import plural
from ..features import Batch
from ..manifests import Clip
from ..manifests.moments import Asked, queries_of
from .data import Split, read_in_order
from .evaluate import TEXTS, VIDEOS, evaluating, in_order, scores_of
from .metrics import MetricsError
from .models import Embeddings, RetrievalModel
from .moments import GRID, MAP_WINDOWS, highlight_figures, iou, moment_figures
from .selection import DataError

MOST_WINDOWS = 100_000  # of a video
SEED = 0  # of the random order


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Which windows of a video are candidates, and which of those that are scored are kept.

    Attributes:
        lengths: seconds. Of those that a video is not longer than, one window is the whole video.
        step: from one start to the next, as a share of the length.
        overlap: a window is dropped if its IoU with one of a higher score is more.
    """

    lengths: Sequence[float] = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
    step: float = 0.25
    overlap: float = 0.5

    def of(self, begin: float, end: float) -> np.ndarray:
        """(W, 2) seconds, those of one length after those of another; the last of a length ends with the video.

        Raises:
            ValueError: if there are more than MOST_WINDOWS.
        """
        duration = end - begin
        lengths = sorted({min(length, duration) for length in self.lengths})
        count = sum((duration - length) / (self.step * length) + 2 for length in lengths)
        if count > MOST_WINDOWS:
            raise ValueError(
                f"{duration:,.0f} s would have {count:,.0f} windows of {lengths[0]:g} s and more, and {MOST_WINDOWS:,} "
                "are the limit: choose longer ones, or a larger step"
            )
        windows = []
        for length in lengths:
            last = end - length
            starts = np.append(np.arange(begin, last, self.step * length), last)
            windows.append(np.stack([starts, starts + length], axis=1))
        return np.concatenate(windows)

    def keep(self, windows: np.ndarray, scores: np.ndarray, most: int) -> list[np.ndarray]:
        """By query the windows (K, 2) of ``best``."""
        return [windows[chosen] for chosen in self.best(windows, scores, most)]

    def best(self, windows: np.ndarray, scores: np.ndarray, most: int) -> list[list[int]]:
        """By query the numbers of its best windows in their order, ``most`` at most, after non-maximum suppression.

        Args:
            windows: (W, 2).
            scores: (queries, W), finite.
        """
        left = scores.astype(np.float64)
        queries = np.arange(len(scores))
        kept: list[list[int]] = [[] for _ in queries]
        for _ in range(most):
            best = left.argmax(axis=1)
            for query in np.flatnonzero(np.isfinite(left[queries, best])):
                kept[query].append(int(best[query]))
            left[iou(windows[best], windows) > self.overlap] = -np.inf
            left[queries, best] = -np.inf
        return kept


def evaluate_moments(
    model: RetrievalModel,
    split: Split,
    clips: Sequence[Clip],
    windows: Windows,
    progress: Callable[[int, int], None] = lambda done, total: None,
    scored: Callable[[Scored], None] = lambda scored: None,
) -> dict[str, Any]:
    """Figures of a model on queries with moments, each searched in its own video.

    A window is encoded as a clip of its own: of every stream the rows whose middles lie in it, or the row next to it
    where there is none. A video ends with its last row, or where the manifest's ``duration`` says. ``figures`` are of
    ``moment_figures``, ``highlights`` of ``highlight_figures`` where queries have saliency. Beside those of the
    ``model`` stand those of a ``random order`` of the same windows and of the ``whole video`` as the only window.

    Args:
        split: the videos.
        clips: the same with all of their captions, as the manifest has them.
        progress: called with how many captions and windows are encoded, and of how many.
        scored: called with each video once its windows are scored.

    Raises:
        DataError: if no query has a moment, or a stream has no times.
        ManifestError: if what the manifest says of moments does not fit its captions.
    """
    times = _times(split)
    videos = _videos(split, clips, times, windows)
    total, done = len(split.captions) + sum(len(video.windows) + len(video.grid) for video in videos.values()), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    rng = np.random.default_rng(SEED)
    ranked: dict[str, list[np.ndarray]] = {"model": [], "random order": [], "whole video": []}
    salient: dict[str, list[np.ndarray]] = {"model": [], "random order": []}
    truths, saliency, late = [], [], 0
    with evaluating(model):
        texts = in_order(model.encode_texts, split.caption_batches(TEXTS), model, advance)
        for number, held in _one_by_one(split):
            if number not in videos:
                continue
            video = videos[number]
            batches = _encoded(split, held, [of[number] for of in times], np.concatenate([video.windows, video.grid]))
            made = in_order(model.encode_videos, batches, model, advance)
            scores = _scores(model, made, {name: x[video.captions] for name, x in texts.items()}, video.clip)
            scored(Scored(place=number, video=video, embeddings=made, scores=scores))
            has_saliency = [query.saliency is not None for query in video.asked]
            for name, values in (("model", scores), ("random order", rng.random(scores.shape))):
                of_windows, of_grid = np.split(values, [len(video.windows)], axis=1)
                ranked[name] += windows.keep(video.windows, of_windows, MAP_WINDOWS)
                salient[name] += list(of_grid[has_saliency])
            ranked["whole video"] += [np.array([video.span])] * len(video.asked)
            truths += [np.array(query.windows, float) for query in video.asked]
            saliency += [_on_grid(query, len(video.grid)) for query in video.asked if query.saliency is not None]
            late += sum(min(start for start, _ in query.windows) >= video.span[1] for query in video.asked)
    result: dict[str, Any] = {
        "queries": len(truths),
        "videos": len(videos),
        "windows": dataclasses.asdict(windows) | {"scored": sum(len(video.windows) for video in videos.values())},
        "figures": {name: moment_figures(found, truths) for name, found in ranked.items()},
        "coverage": dataclasses.asdict(split.coverage),
        "warnings": [],
    }
    if saliency:
        of_each = {name: highlight_figures(found, saliency) for name, found in salient.items()}
        result["highlights"] = {"queries": len(saliency)} | of_each
    if late:
        result["warnings"].append(
            f"the moments of {plural(late, 'query')} begin after the last row of their video: is it another cut?"
        )
    return result


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video that is searched.

    Attributes:
        asked: its queries that have moments and features.
        captions: which of the split's captions each is.
        span: where it begins and ends, in seconds.
        windows: (W, 2), the candidates.
        grid: (G, 2), the stretches that have saliency; none where no query has.
    """

    clip: Clip
    asked: list[Asked]
    captions: list[int]
    span: tuple[float, float]
    windows: np.ndarray
    grid: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A video with what a model makes of it.

    Attributes:
        place: of the video in the split.
        embeddings: of its windows, and of its grid after them.
        scores: (asked, windows + grid), finite.
    """

    place: int
    video: Video
    embeddings: Embeddings
    scores: np.ndarray


def with_moments(clips: Sequence[Clip], split: str) -> list[Clip]:
    """The clips that have queries with moments; raises DataError if there are none."""
    chosen = [clip for clip in clips if any(query.windows for query in queries_of(clip))]
    if not chosen:
        raise DataError(
            f"no clip of split {split!r} has moments: extras of the manifest have none. Data sets with moments are "
            "charades_sta, tvr, qvhighlights and tacos; see amex manifest build"
        )
    return chosen


def _videos(
    split: Split, clips: Sequence[Clip], times: Sequence[Sequence[np.ndarray]], windows: Windows
) -> dict[int, Video]:
    """By its place in the split each video that has a query with moments and features."""
    number = {caption: index for index, caption in enumerate(split.captions)}
    # The clips of the split lack captions that have no features, which their extras know nothing of.
    complete = {clip.clip_id: clip for clip in clips}
    videos = {}
    for place, clip in enumerate(split.clips):
        asked = [query for query in queries_of(complete[clip.clip_id]) if query.windows and query.caption in number]
        if not asked:
            continue
        span = _span(clip, [of[place] for of in times])
        try:
            candidates = windows.of(*span)
        except ValueError as error:
            raise DataError(f"clip {clip.clip_id!r}: {error}") from error
        starts = np.arange(_cells(clip) if any(query.saliency is not None for query in asked) else 0) * GRID
        videos[place] = Video(
            clip=clip,
            asked=asked,
            captions=[number[query.caption] for query in asked],
            span=span,
            windows=candidates,
            grid=np.stack([starts, starts + GRID], axis=1),
        )
    if not videos:
        raise DataError("no query with moments has features")
    return videos


def _cells(clip: Clip) -> int:
    """How many stretches of 2 s a video has; QVHighlights' program leaves out what is shorter at its end."""
    duration = clip.extras.get("duration")
    if not isinstance(duration, int | float) or not 0 < duration <= MOST_WINDOWS * GRID:
        raise DataError(f"clip {clip.clip_id!r} has saliency, and its duration is {duration!r}, no number of seconds")
    return int(duration / GRID)


def _on_grid(query: Asked, cells: int) -> np.ndarray:
    """(cells, annotators) saliency, 0 for what lies in no moment."""
    assert query.saliency is not None
    try:
        scores = np.array(query.saliency["scores"], float)
        truth = np.zeros((cells, scores.shape[1]))
        places = np.array(query.saliency["clips"])
        if (places < 0).any():
            raise IndexError(f"index {places.min()} is before its beginning")
        truth[places] = scores
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"the saliency of query {query.caption!r} does not fit its video: {error}") from error
    return truth


def _span(clip: Clip, times: Sequence[np.ndarray]) -> tuple[float, float]:
    """Where a video begins, and where it ends: as its annotations say, or else with its last row."""
    duration = clip.extras.get("duration")
    known = isinstance(duration, int | float) and 0 < duration < np.inf
    begin, end = clip.start or 0.0, float(duration if known else max(of.max() for of in times))
    if not begin < end:
        raise DataError(f"clip {clip.clip_id!r} begins at {begin:g} s, and its rows end at {end:g} s")
    return begin, end


def _times(split: Split) -> list[list[np.ndarray]]:
    """By stream and clip the times (rows, 2) of its rows; raises DataError if a stream has none."""
    times = []
    for name, table in split.tables.items():
        if not table.stream.spec["output"].get("times", True):
            raise DataError(
                f"stream {name!r} was imported without times, so that nobody knows which rows lie in a window: import "
                "it again with them, or extract it"
            )
        batch = table.stream.read(table.keys.tolist(), ("times",))
        times.append(np.split(batch.times, batch.offsets[1:-1]))
    return times


def _one_by_one(split: Split) -> Iterator[tuple[int, list[tuple[Batch, int]]]]:
    """Every clip in the order in which it is stored: its place in the split, and by stream a batch that has it."""
    for indices, held in read_in_order(list(split.tables.values()), 1):
        yield int(indices[0]), [(batch, places[0]) for batch, places in held]


def _encoded(
    split: Split, held: Sequence[tuple[Batch, int]], times: Sequence[np.ndarray], windows: np.ndarray
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """The windows of one clip as batches of videos, with their numbers."""
    for begin in range(0, len(windows), VIDEOS):
        some = windows[begin : begin + VIDEOS]
        parts = [cut(batch, place, of, some) for (batch, place), of in zip(held, times, strict=True)]
        numbers = np.arange(len(some))
        padded = {name: split.padded(part, numbers) for name, part in zip(split.tables, parts, strict=True)}
        yield begin + numbers, padded


def cut(batch: Batch, place: int, times: np.ndarray, windows: np.ndarray) -> Batch:
    """Windows of one clip of a batch as a batch in which each is a clip.

    Args:
        place: the clip's.
        times: (rows, 2) of the clip's rows.
        windows: (W, 2). One in which no row has its middle gets the row whose middle is next to its own.
    """
    middles = times.mean(axis=1)
    order = np.argsort(middles, kind="stable")
    first, last = np.searchsorted(middles[order], windows)[:, 0], np.searchsorted(middles[order], windows)[:, 1]
    for number in np.flatnonzero(first == last):
        first[number] = np.abs(middles[order] - windows[number].mean()).argmin()
        last[number] = first[number] + 1
    rows = batch.offsets[place] + order[np.concatenate([np.arange(*ends) for ends in zip(first, last, strict=True)])]
    arrays = {
        name: np.repeat(array[[place]], len(windows), axis=0) if name in batch.clip_arrays else array[rows]
        for name, array in batch.arrays.items()
    }
    offsets = np.append(0, np.cumsum(last - first))
    return Batch(arrays, offsets, tuple(map(str, range(len(windows)))), batch.clip_arrays)


def _scores(model: RetrievalModel, windows: Embeddings, texts: Embeddings, clip: Clip) -> np.ndarray:
    """(queries, windows) of one video."""
    scores = scores_of(model, windows, texts).block(slice(None), slice(None)).numpy()
    if not np.isfinite(scores).all():
        raise MetricsError(f"scores of clip {clip.clip_id!r} hold NaN or infinity: such a model cannot be ranked")
    return scores
