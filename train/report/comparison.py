"""Two runs on the same queries and clips: what one gains and loses against the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...errors import AmexError
from ..bootstrap import Interval, paired_bootstrap
from ..data import Split
from ..metrics import Scores
from ..ranks import groups_of
from .queries import Ranking, positions_among

RECALLS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A run's split, with the scores of its different captions and its clips, and what they rank."""

    name: str
    split: Split
    scores: Scores
    ranking: Ranking


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure of both runs, recalls in percent, and how far the run is above the other."""

    name: str
    run: float
    other: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How many queries both runs, one of them or neither has among the first ``k``."""

    k: int
    both: int
    gained: int
    lost: int
    neither: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs on the queries and the clips that both have.

    Attributes:
        name: of the other run.
        queries, clips: how many they have in common; ``of_queries``, ``of_clips``: how many the run has.
        chosen: (queries,) which of the run's queries these are.
        run, other: (queries,) the positions by each.
    """

    name: str
    clips: int
    of_clips: int
    of_queries: int
    chosen: np.ndarray
    run: np.ndarray
    other: np.ndarray
    rows: list[Row]
    paired: list[Paired]

    @property
    def queries(self) -> int:
        return len(self.chosen)


def compare(run: Ranked, other: Ranked) -> Comparison:
    """Compares two runs. Raises AmexError if they have no query in common, or all are of one group."""
    there = {clip.clip_id: number for number, clip in enumerate(other.split.clips)}
    common = [number for number, clip in enumerate(run.split.clips) if clip.clip_id in there]
    places = _places(other)
    # A caption that a clip has twice is two queries, in either run.
    pairs = [(number, places[key]) for key, number in _places(run).items() if key in places]
    if not pairs:
        raise AmexError(f"{run.name} and {other.name} have no caption of one clip in common: nothing compares")
    chosen, others = (np.array(column) for column in zip(*pairs, strict=True))
    clips = np.array([there[run.split.clips[number].clip_id] for number in common])
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
        rows=list(_rows(*positions, groups_of(run.split.clips)[run.ranking.own[chosen]])),
        paired=[_paired(*positions, k) for k in (1, 10)],
    )


def _places(ranked: Ranked) -> dict[tuple[str, str, int], int]:
    """The number of each query, by clip, caption, and the how manieth it is of those that are equal."""
    times: Counter[tuple[str, str]] = Counter()
    places = {}
    for number, (clip, caption) in enumerate(zip(ranked.ranking.own, ranked.ranking.captions, strict=True)):
        key = ranked.split.clips[clip].clip_id, ranked.split.captions[caption]
        places[*key, times[key]] = number
        times[key] += 1
    return places


def _rows(run: np.ndarray, other: np.ndarray, groups: np.ndarray) -> Iterator[Row]:
    def row(name: str, a: np.ndarray, b: np.ndarray) -> Row:
        # Captions of a clip, and of clips that share one or are twins, are drawn together: they are answered alike.
        interval = paired_bootstrap(a, b, groups)
        return Row(name=name, run=float(a.mean()), other=float(b.mean()), interval=interval)

    for k in RECALLS:
        yield row(f"R@{k}", 100.0 * (run <= k), 100.0 * (other <= k))
    yield row("MeanR, lower is better", run, other)


def _paired(run: np.ndarray, other: np.ndarray, k: int) -> Paired:
    now, before = run <= k, other <= k
    return Paired(
        k=k,
        both=int((now & before).sum()),
        gained=int((now & ~before).sum()),
        lost=int((~now & before).sum()),
        neither=int((~now & ~before).sum()),
    )
