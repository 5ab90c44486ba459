"""Recalls by verb, noun, caption length and level of the model; and how evenly clips are retrieved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..concepts import nouns_and_verbs
from .queries import DEPTH, Ranking, recalls

# Words with fewer queries are omitted: each of nine queries changes a recall by 11 points.
FEW_QUERIES = 10
LONGEST_TABLE = 15
LENGTHS = ((1, 4), (5, 8), (9, 12), (13, 16), (17, 24), (25, None))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Queries with a common property: their number and their recalls."""

    name: str
    queries: int
    figures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Words:
    """Groups of queries by word, most frequent first, and the number of omitted words (rare, or beyond the table)."""

    groups: list[Group]
    left_out: int


@dataclass(frozen=True, kw_only=True)
class Hubness:
    """How evenly clips are retrieved: how often each is among the first ``DEPTH`` hits of other clips' queries.

    Attributes:
        skewness: third standardised moment of these counts (Radovanovic et al., JMLR 2010); 0 if all are equal.
        antihubs: number of clips that are never retrieved.
        hubs: the clips that are retrieved most often, with their counts.
        mean: mean of the counts.
    """

    skewness: float
    antihubs: int
    hubs: list[tuple[int, int]]
    mean: float


def by_word(
    captions: Sequence[str], ranking: Ranking, progress: Callable[[int], None] = lambda done: None
) -> dict[str, Words]:
    """Compute recalls by verb and by noun, in their base forms.

    Args:
        captions: captions of the split, as ``ranking.captions`` numbers them.
        progress: receives the number of newly analysed captions.
    """
    members: dict[str, dict[str, list[int]]] = {"noun": {}, "verb": {}}
    queries_of: dict[int, list[int]] = {}
    for query, caption in enumerate(ranking.captions.tolist()):
        queries_of.setdefault(caption, []).append(query)
    for number, queries in queries_of.items():
        for kind, words in zip(members, nouns_and_verbs(captions[number]), strict=True):
            for word in words:
                members[kind].setdefault(word, []).extend(queries)
        progress(1)
    return {kind: _most_frequent(members[kind], ranking.positions) for kind in ("verb", "noun")}


def by_length(captions: Sequence[str], ranking: Ranking) -> list[Group]:
    """Compute recalls by the number of words of a caption."""
    words = np.array([len(captions[number].split()) for number in ranking.captions])
    groups = []
    for least, most in LENGTHS:
        chosen = (words >= least) & (words <= (most or np.inf))
        name = f"{least} to {most} words" if most else f"{least} words and more"
        groups += _groups([(name, ranking.positions[chosen])])
    return groups


def by_level(ranking: Ranking) -> list[Group]:
    """Compute recalls by the score of each level alone."""
    return _groups(ranking.levels.items())


def hubness(ranking: Ranking, clips: int) -> Hubness | None:
    """Measure how evenly clips are retrieved; None if ``DEPTH`` hits are more than half of the gallery."""
    if clips < 2 * DEPTH:
        return None
    others = ranking.best != ranking.own[:, None]
    counts = np.bincount(ranking.best[others], minlength=clips)
    deviation = counts.std()
    skewness = float(((counts - counts.mean()) ** 3).mean() / deviation**3) if deviation else 0.0
    most_retrieved = np.argsort(-counts, kind="stable")[:10]
    hubs = [(int(clip), int(counts[clip])) for clip in most_retrieved]
    return Hubness(skewness=skewness, antihubs=int((counts == 0).sum()), hubs=hubs, mean=float(counts.mean()))


def _most_frequent(members: dict[str, list[int]], positions: np.ndarray) -> Words:
    enough = [(word, queries) for word, queries in members.items() if len(queries) >= FEW_QUERIES]
    enough.sort(key=lambda item: (-len(item[1]), item[0]))
    frequent = enough[:LONGEST_TABLE]
    groups = _groups((word, positions[queries]) for word, queries in frequent)
    return Words(groups=groups, left_out=len(members) - len(frequent))


def _groups(named: Iterable[tuple[str, np.ndarray]]) -> list[Group]:
    return [Group(name=name, queries=len(x), figures=recalls(x)) for name, x in named if len(x)]
