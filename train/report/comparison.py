"""Compare two runs on the same queries and clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...errors import AmexError
from ..bootstrap import Interval, paired_bootstrap
from ..data import Split
from ..metrics import Scores
from ..ranks import clip_groups
from .queries import Ranking, positions_among

RECALLS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class RankedRun:
    """A run with its split, the scores of the split's different captions and clips, and the ranking."""

    name: str
    split: Split
    scores: Scores
    ranking: Ranking


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure of both runs (recalls in percent), and the difference, this run minus the other."""

    name: str
    run: float
    other: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class HitCounts:
    """Number of queries whose clip is among the first ``k`` in both runs, one of them, or neither."""

    k: int
    both: int
    gained: int
    lost: int
    neither: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs on their common queries and clips.

    Attributes:
        name: name of the other run.
        clips: number of common clips.
        of_clips, of_queries: number of clips and queries of this run.
        chosen: (queries,) indices of the common queries in this run.
        run, other: (queries,) positions in each run.
        rows: figures of both runs.
        paired: hit counts of both runs.
    """

    name: str
    clips: int
    of_clips: int
    of_queries: int
    chosen: np.ndarray
    run: np.ndarray
    other: np.ndarray
    rows: list[Row]
    paired: list[HitCounts]

    @property
    def queries(self) -> int:
        return len(self.chosen)


def compare_runs(run: RankedRun, other: RankedRun) -> Comparison:
    """Compare two runs; raise an AmexError if they have no query in common, or all queries are in one group."""
    index_in_other = {clip.clip_id: number for number, clip in enumerate(other.split.clips)}
    common = [number for number, clip in enumerate(run.split.clips) if clip.clip_id in index_in_other]
    other_queries = _queries_by_key(other)
    # A caption that a clip has twice is two queries, in both runs.
    pairs = [(number, other_queries[key]) for key, number in _queries_by_key(run).items() if key in other_queries]
    if not pairs:
        raise AmexError(f"{run.name} and {other.name} have no caption of a clip in common, so they cannot be compared")
    chosen, others = (np.array(column) for column in zip(*pairs, strict=True))
    clips = np.array([index_in_other[run.split.clips[number].clip_id] for number in common])
    positions = (
        positions_among(run.ranking, run.scores, chosen, np.array(common)),
        positions_among(other.ranking, other.scores, others, clips),
    )
    return Comparison(
        name=other.name,
        clips=len(common),
        of_clips=len(run.split.clips),
        of_queries=len(run.ranking),
        chosen=chosen,
        run=positions[0],
        other=positions[1],
        rows=list(_rows(*positions, clip_groups(run.split.clips)[run.ranking.own[chosen]])),
        paired=[_hit_counts(*positions, k) for k in (1, 10)],
    )


def _queries_by_key(ranked: RankedRun) -> dict[tuple[str, str, int], int]:
    """Return the number of each query by clip, caption, and how many equal captions of the clip precede it."""
    times: Counter[tuple[str, str]] = Counter()
    numbers = {}
    for number, (clip, caption) in enumerate(zip(ranked.ranking.own, ranked.ranking.captions, strict=True)):
        key = ranked.split.clips[clip].clip_id, ranked.split.captions[caption]
        numbers[*key, times[key]] = number
        times[key] += 1
    return numbers


def _rows(run: np.ndarray, other: np.ndarray, groups: np.ndarray) -> Iterator[Row]:
    def row(name: str, a: np.ndarray, b: np.ndarray) -> Row:
        # Captions of one clip, or of clips that share a caption or are twins, depend on each other: draw them together.
        interval = paired_bootstrap(a, b, groups)
        return Row(name=name, run=float(a.mean()), other=float(b.mean()), interval=interval)

    for k in RECALLS:
        yield row(f"R@{k}", 100.0 * (run <= k), 100.0 * (other <= k))
    yield row("MeanR, lower is better", run, other)


def _hit_counts(run: np.ndarray, other: np.ndarray, k: int) -> HitCounts:
    now, before = run <= k, other <= k
    return HitCounts(
        k=k,
        both=int((now & before).sum()),
        gained=int((now & ~before).sum()),
        lost=int((~now & before).sum()),
        neither=int((~now & ~before).sum()),
    )
