"""Score windows of videos with queries: find moments in whole videos with a model that was trained on clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import plural
from ..features import Batch
from ..manifests import Clip
from ..manifests.moments import MomentQuery, queries_of
from .data import Split, read_in_order
from .evaluate import TEXTS, VIDEOS, encode_all, evaluating, score_embeddings
from .metrics import MetricsError
from .models import Embeddings, RetrievalModel
from .moments import GRID, MAP_WINDOWS, highlight_figures, iou, moment_figures
from .selection import DataError

MOST_WINDOWS = 100_000  # limit for one video
SEED = 0  # for the random order


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The candidate windows of a video, and which scored windows are returned.

    Attributes:
        lengths: lengths in seconds; all lengths from the video's own on give one window, the whole video.
        step: distance between starts, as a share of the length.
        overlap: drop a window if its IoU with a higher-scored one exceeds this.
    """

    lengths: Sequence[float] = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
    step: float = 0.25
    overlap: float = 0.5

    def of(self, begin: float, end: float) -> np.ndarray:
        """Return (W, 2) seconds, ordered by length. The last window of a length ends with the video.

        Raises:
            ValueError: if there are more than MOST_WINDOWS.
        """
        duration = end - begin
        lengths = sorted({min(length, duration) for length in self.lengths})
        count = sum((duration - length) / (self.step * length) + 2 for length in lengths)
        if count > MOST_WINDOWS:
            raise ValueError(
                f"{duration:,.0f} s would have {plural(round(count), 'window')} of {lengths[0]:g} s and more, above "
                f"the limit of {MOST_WINDOWS:,}: choose longer ones, or a larger step"
            )
        windows = []
        for length in lengths:
            last = end - length
            starts = np.append(np.arange(begin, last, self.step * length), last)
            windows.append(np.stack([starts, starts + length], axis=1))
        return np.concatenate(windows)

    def keep(self, windows: np.ndarray, scores: np.ndarray, most: int) -> list[np.ndarray]:
        """Return the windows (K, 2) of ``best`` for each query."""
        return [windows[chosen] for chosen in self.best(windows, scores, most)]

    def best(self, windows: np.ndarray, scores: np.ndarray, most: int) -> list[list[int]]:
        """Return, for each query, the indices of at most ``most`` best windows after non-maximum suppression.

        Args:
            windows: (W, 2).
            scores: (queries, W), finite.
        """
        left = scores.astype(np.float64)
        queries = np.arange(len(scores))
        selected: list[list[int]] = [[] for _ in queries]
        for _ in range(most):
            best = left.argmax(axis=1)
            for query in np.flatnonzero(np.isfinite(left[queries, best])):
                selected[query].append(int(best[query]))
            left[iou(windows[best], windows) > self.overlap] = -np.inf
            left[queries, best] = -np.inf
        return selected


def evaluate_moments(
    model: RetrievalModel,
    split: Split,
    clips: Sequence[Clip],
    windows: Windows,
    progress: Callable[[int, int], None] = lambda done, total: None,
    scored: Callable[[Scored], None] = lambda scored: None,
) -> dict[str, Any]:
    """Evaluate a model on queries with moments, each searched in its own video.

    A window is encoded as a clip: of every stream, the rows whose centres lie in it, or the nearest row if there is
    none. A video ends at the manifest's ``duration``, or else at its last row.

    Args:
        split: the videos.
        clips: the same videos with all their captions, as in the manifest.
        progress: receives the number of encoded captions and windows, and the total.
        scored: receives each video after its windows are scored.

    Returns:
        ``figures`` of ``moment_figures``; ``highlights`` of ``highlight_figures`` if queries have saliency. Each has
        entries for the ``model``, for a ``random order`` of the same windows, and, for moments, for the ``whole video``
        as the only window.

    Raises:
        DataError: if no query has a moment, or a stream has no times.
        ManifestError: if the moments of the manifest do not match its captions.
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
        texts = encode_all(model.encode_texts, split.caption_batches(TEXTS), model, advance)
        for number, stored in _one_by_one(split):
            if number not in videos:
                continue
            video = videos[number]
            batches = _window_batches(
                split, stored, [rows[number] for rows in times], np.concatenate([video.windows, video.grid])
            )
            embeddings = encode_all(model.encode_videos, batches, model, advance)
            scores = _scores(model, embeddings, {name: x[video.captions] for name, x in texts.items()}, video.clip)
            scored(Scored(place=number, video=video, embeddings=embeddings, scores=scores))
            has_saliency = [query.saliency is not None for query in video.queries]
            for name, values in (("model", scores), ("random order", rng.random(scores.shape))):
                window_scores, grid_scores = np.split(values, [len(video.windows)], axis=1)
                ranked[name] += windows.keep(video.windows, window_scores, MAP_WINDOWS)
                salient[name] += list(grid_scores[has_saliency])
            ranked["whole video"] += [np.array([video.span])] * len(video.queries)
            truths += [np.array(query.windows, float) for query in video.queries]
            saliency += [_on_grid(query, len(video.grid)) for query in video.queries if query.saliency is not None]
            late += sum(min(start for start, _ in query.windows) >= video.span[1] for query in video.queries)
    result: dict[str, Any] = {
        "queries": len(truths),
        "videos": len(videos),
        "windows": dataclasses.asdict(windows) | {"scored": sum(len(video.windows) for video in videos.values())},
        "figures": {name: moment_figures(windows_by_query, truths) for name, windows_by_query in ranked.items()},
        "coverage": dataclasses.asdict(split.coverage),
        "warnings": [],
    }
    if saliency:
        highlights = {name: highlight_figures(scores_by_query, saliency) for name, scores_by_query in salient.items()}
        result["highlights"] = {"queries": len(saliency)} | highlights
    if late:
        result["warnings"].append(
            f"the moments of {plural(late, 'query')} begin after the last row of their video: is it a different cut?"
        )
    return result


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video to search.

    Attributes:
        clip: the video as a clip.
        queries: its queries that have moments and features.
        captions: index of each query's caption in the split.
        span: begin and end of the video in seconds.
        windows: (W, 2) candidates.
        grid: (G, 2) segments with saliency; empty if no query has saliency.
    """

    clip: Clip
    queries: list[MomentQuery]
    captions: list[int]
    span: tuple[float, float]
    windows: np.ndarray
    grid: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A video with its embeddings and scores.

    Attributes:
        place: index of the video in the split.
        video: the video.
        embeddings: embeddings of its windows, then of its grid.
        scores: (queries, windows + grid), finite.
    """

    place: int
    video: Video
    embeddings: Embeddings
    scores: np.ndarray


def with_moments(clips: Sequence[Clip], split: str) -> list[Clip]:
    """Return the clips that have queries with moments; raise a DataError if there are none."""
    chosen = [clip for clip in clips if any(query.windows for query in queries_of(clip))]
    if not chosen:
        raise DataError(
            f"no clip of split {split!r} has moments in its extras. Data sets with moments are charades_sta, tvr, "
            "qvhighlights and tacos; see amex manifest build"
        )
    return chosen


def _videos(
    split: Split, clips: Sequence[Clip], times: Sequence[Sequence[np.ndarray]], windows: Windows
) -> dict[int, Video]:
    """Return the videos that have a query with moments and features, by their index in the split."""
    number = {caption: index for index, caption in enumerate(split.captions)}
    # The clips of a split lack captions without features, but their extras still describe them.
    complete = {clip.clip_id: clip for clip in clips}
    videos = {}
    for place, clip in enumerate(split.clips):
        queries = [query for query in queries_of(complete[clip.clip_id]) if query.windows and query.caption in number]
        if not queries:
            continue
        span = _span(clip, [rows[place] for rows in times])
        try:
            candidates = windows.of(*span)
        except ValueError as error:
            raise DataError(f"clip {clip.clip_id!r}: {error}") from error
        starts = np.arange(_cells(clip) if any(query.saliency is not None for query in queries) else 0) * GRID
        videos[place] = Video(
            clip=clip,
            queries=queries,
            captions=[number[query.caption] for query in queries],
            span=span,
            windows=candidates,
            grid=np.stack([starts, starts + GRID], axis=1),
        )
    if not videos:
        raise DataError("no query with moments has features")
    return videos


def _cells(clip: Clip) -> int:
    """Return the number of 2 s segments of a video; as in QVHighlights' program, a shorter rest is dropped."""
    duration = clip.extras.get("duration")
    if not isinstance(duration, int | float) or not 0 < duration <= MOST_WINDOWS * GRID:
        raise DataError(f"clip {clip.clip_id!r} has saliency, but its duration {duration!r} is no number of seconds")
    return int(duration / GRID)


def _on_grid(query: MomentQuery, cells: int) -> np.ndarray:
    """Return (cells, annotators) saliency, 0 outside of moments."""
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
    """Return the begin of a video, and its end: the annotated duration, or else the end of its last row."""
    duration = clip.extras.get("duration")
    is_known = isinstance(duration, int | float) and 0 < duration < np.inf
    begin, end = clip.start or 0.0, float(duration if is_known else max(rows.max() for rows in times))
    if not begin < end:
        raise DataError(f"clip {clip.clip_id!r} begins at {begin:g} s, but its rows end at {end:g} s")
    return begin, end


def _times(split: Split) -> list[list[np.ndarray]]:
    """Return the times (rows, 2) by stream and clip; raise a DataError if a stream has none."""
    times = []
    for name, table in split.tables.items():
        if not table.stream.spec["output"].get("times", True):
            raise DataError(
                f"stream {name!r} was imported without times, so its rows cannot be assigned to windows: import it "
                "again with times, or extract it"
            )
        batch = table.stream.read(table.keys.tolist(), ("times",))
        times.append(np.split(batch.times, batch.offsets[1:-1]))
    return times


def _one_by_one(split: Split) -> Iterator[tuple[int, list[tuple[Batch, int]]]]:
    """Yield every clip in stored order: its index in the split, and for each stream a batch that contains it."""
    for indices, rows_by_table in read_in_order(list(split.tables.values()), 1):
        yield int(indices[0]), [(batch, places[0]) for batch, places in rows_by_table]


def _window_batches(
    split: Split, stored: Sequence[tuple[Batch, int]], times: Sequence[np.ndarray], windows: np.ndarray
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yield the windows of one clip as batches of videos, with their indices."""
    for begin in range(0, len(windows), VIDEOS):
        block = windows[begin : begin + VIDEOS]
        parts = [cut(batch, place, rows, block) for (batch, place), rows in zip(stored, times, strict=True)]
        numbers = np.arange(len(block))
        padded = {name: split.padded(part, numbers) for name, part in zip(split.tables, parts, strict=True)}
        yield begin + numbers, padded


def cut(batch: Batch, place: int, times: np.ndarray, windows: np.ndarray) -> Batch:
    """Turn windows of one clip into a batch in which each window is a clip.

    Args:
        place: position of the clip in ``batch``.
        times: (rows, 2) of the clip's rows.
        windows: (W, 2). A window without a row centre gets the row whose centre is nearest to its own.
    """
    centres = times.mean(axis=1)
    order = np.argsort(centres, kind="stable")
    first, last = np.searchsorted(centres[order], windows)[:, 0], np.searchsorted(centres[order], windows)[:, 1]
    for number in np.flatnonzero(first == last):
        first[number] = np.abs(centres[order] - windows[number].mean()).argmin()
        last[number] = first[number] + 1
    rows = batch.offsets[place] + order[np.concatenate([np.arange(*ends) for ends in zip(first, last, strict=True)])]
    arrays = {
        name: np.repeat(array[[place]], len(windows), axis=0) if name in batch.clip_arrays else array[rows]
        for name, array in batch.arrays.items()
    }
    offsets = np.append(0, np.cumsum(last - first))
    return Batch(arrays, offsets, tuple(map(str, range(len(windows)))), batch.clip_arrays)


def _scores(model: RetrievalModel, windows: Embeddings, texts: Embeddings, clip: Clip) -> np.ndarray:
    """Return (queries, windows) scores of one video."""
    scores = score_embeddings(model, windows, texts).block(slice(None), slice(None)).numpy()
    if not np.isfinite(scores).all():
        raise MetricsError(f"scores of clip {clip.clip_id!r} hold NaN or infinity: such a model cannot be ranked")
    return scores
