"""Recalls by verb, noun, length of captions and level of the model; and how evenly clips are found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..concepts import nouns_and_verbs
from .queries import DEPTH, Ranking, recalls

# Words of fewer queries are left out: a recall of nine queries moves by 11 points with each of them.
FEW_QUERIES = 10
LONGEST_TABLE = 15
LENGTHS = ((1, 4), (5, 8), (9, 12), (13, 16), (17, 24), (25, None))


@dataclass(frozen=True, kw_only=True)
class Group:
    """The queries that have something in common: how many they are, and their recalls."""

    name: str
    queries: int
    figures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Words:
    """Groups of a kind of words, the most frequent first, and how many words were left out for being rare or many."""

    groups: list[Group]
    left_out: int


@dataclass(frozen=True, kw_only=True)
class Hubness:
    """How evenly clips are found: how often each is among the first ``DEPTH`` of queries for other clips.

    Attributes:
        skewness: the third standardised moment of these counts (Radovanovic et al., JMLR 2010); 0 if all are alike.
        antihubs: how many clips are never there.
        hubs: the clips that are there most often, with their counts.
        mean: of the counts.
    """

    skewness: float
    antihubs: int
    hubs: list[tuple[int, int]]
    mean: float


def by_word(
    captions: Sequence[str], ranking: Ranking, progress: Callable[[int], None] = lambda done: None
) -> dict[str, Words]:
    """Recalls by verb and by noun, base forms.

    Args:
        captions: of the split, as ``ranking.captions`` numbers them.
        progress: called with how many more captions are analysed.
    """
    members: dict[str, dict[str, list[int]]] = {"noun": {}, "verb": {}}
    asked: dict[int, list[int]] = {}
    for query, caption in enumerate(ranking.captions.tolist()):
        asked.setdefault(caption, []).append(query)
    for number, queries in asked.items():
        for kind, words in zip(members, nouns_and_verbs(captions[number]), strict=True):
            for word in words:
                members[kind].setdefault(word, []).extend(queries)
        progress(1)
    return {kind: _most_frequent(members[kind], ranking.positions) for kind in ("verb", "noun")}


def by_length(captions: Sequence[str], ranking: Ranking) -> list[Group]:
    """Recalls by how many words captions have."""
    words = np.array([len(captions[number].split()) for number in ranking.captions])
    found = []
    for least, most in LENGTHS:
        chosen = (words >= least) & (words <= (most or np.inf))
        name = f"{least} to {most} words" if most else f"{least} words and more"
        found += _groups([(name, ranking.positions[chosen])])
    return found


def by_level(ranking: Ranking) -> list[Group]:
    """Recalls by the score of each level alone."""
    return _groups(ranking.levels.items())


def hubness(ranking: Ranking, clips: int) -> Hubness | None:
    """How evenly clips are found; None in a gallery of which a query's first ``DEPTH`` are more than half."""
    if clips < 2 * DEPTH:
        return None
    others = ranking.best != ranking.own[:, None]
    counts = np.bincount(ranking.best[others], minlength=clips)
    spread = counts.std()
    skewness = float(((counts - counts.mean()) ** 3).mean() / spread**3) if spread else 0.0
    worst = np.argsort(-counts, kind="stable")[:10]
    hubs = [(int(clip), int(counts[clip])) for clip in worst]
    return Hubness(skewness=skewness, antihubs=int((counts == 0).sum()), hubs=hubs, mean=float(counts.mean()))


def _most_frequent(members: dict[str, list[int]], positions: np.ndarray) -> Words:
    enough = [(word, queries) for word, queries in members.items() if len(queries) >= FEW_QUERIES]
    enough.sort(key=lambda item: (-len(item[1]), item[0]))
    shown = enough[:LONGEST_TABLE]
    groups = _groups((word, positions[queries]) for word, queries in shown)
    return Words(groups=groups, left_out=len(members) - len(shown))


def _groups(named: Iterable[tuple[str, np.ndarray]]) -> list[Group]:
    return [Group(name=name, queries=len(x), figures=recalls(x)) for name, x in named if len(x)]
