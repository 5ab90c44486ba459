"""Concepts of captions: nouns, verbs and verb-noun pairs that a model learns to predict from videos and texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..language.parsing import analyse, lemma, word_set

# Frequent verbs and nouns that do not describe a video.
COMMON = word_set("be have do get someone something it they he she them him we you i who each other one")


def nouns_and_verbs(caption: str) -> tuple[set[str], set[str]]:
    """Return the base forms of phrase heads and of verbs, without those in ``COMMON``."""
    parsed = analyse(caption)
    nouns = {parsed.lemmas[end - 1] for _, end in parsed.phrases if end - 1 in parsed.lemmas}
    return nouns - COMMON, {parsed.lemmas[verb] for verb in parsed.verbs} - COMMON


def concepts_of(caption: str, graph: Any) -> dict[str, set[str]]:
    """Return base forms by kind: ``entity`` nouns, ``action`` verbs, ``relation`` pairs of verb and argument noun."""
    entity, action = nouns_and_verbs(caption)
    nodes, edges = graph
    relation = set()
    for verb, argument, _ in edges:
        pair = lemma(_clean(nodes[verb]["words"][0]), "VERB"), lemma(_clean(nodes[argument]["words"][-1]), "NOUN")
        if not COMMON & set(pair):
            relation.add(" ".join(pair))
    return {"entity": entity, "action": action, "relation": relation}


def _clean(word: str) -> str:
    return word.lower().strip(".,;:!?\"()[]'")


class Concepts:
    """The concepts to teach, by kind and decreasing frequency, and the labels of captions."""

    def __init__(self, names: Mapping[str, Sequence[str]], graphs: Mapping[str, Any]) -> None:
        self.names, self.graphs = names, graphs
        self.number = {kind: {name: n for n, name in enumerate(known)} for kind, known in names.items()}
        self._known: dict[str, dict[str, set[int]]] = {}

    @classmethod
    def of(cls, captions: Iterable[str], graphs: Mapping[str, Any], most: Mapping[str, int]) -> Concepts:
        """Select the most frequent concepts of each kind; a concept must occur in two captions or more."""
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in most}
        for caption in captions:
            for kind, names in concepts_of(caption, graphs[caption]).items():
                counts[kind].update(sorted(names))
        names = {
            kind: [name for name, count in counts[kind].most_common(limit) if count > 1] for kind, limit in most.items()
        }
        return cls(names, graphs)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of concepts of each kind."""
        return {kind: len(names) for kind, names in self.names.items()}

    def to_json(self) -> str:
        """Return the names by kind."""
        return json.dumps(self.names)

    def labels(self, pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, dict[str, Tensor]]:
        """Label captions, each given with all captions of its clip.

        Returns:
            By kind ``truth`` and ``mask``, (pairs, concepts). The mask is 0 for a concept that only another caption of
            the clip mentions: it is neither present nor absent.
        """
        labels = {}
        for kind, names in self.names.items():
            truth = torch.zeros(len(pairs), len(names))
            mask = torch.ones(len(pairs), len(names))
            for row, (caption, others) in enumerate(pairs):
                own = self._of(caption)[kind]
                elsewhere = set().union(*(self._of(other)[kind] for other in others)) - own
                truth[row, list(own)] = 1
                mask[row, list(elsewhere)] = 0
            labels[kind] = {"truth": truth, "mask": mask}
        return labels

    def _of(self, caption: str) -> dict[str, set[int]]:
        if caption not in self._known:
            names = concepts_of(caption, self.graphs[caption])
            self._known[caption] = {
                kind: {number[name] for name in names[kind] if name in number} for kind, number in self.number.items()
            }
        return self._known[caption]
