"""Concepts of captions: the nouns, verbs and pairs of both that a model is taught to tell from either side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..language.parsing import analyse, lemma, word_set

# Verbs and nouns that every caption may have and that say nothing of a video.
COMMON = word_set("be have do get someone something it they he she them him we you i who each other one")


def nouns_and_verbs(caption: str) -> tuple[set[str], set[str]]:
    """Base forms of the nouns that phrases end in, and of the verbs; without those of ``COMMON``."""
    found = analyse(caption)
    nouns = {found.lemmas[end - 1] for _, end in found.phrases if end - 1 in found.lemmas}
    return nouns - COMMON, {found.lemmas[verb] for verb in found.verbs} - COMMON


def concepts_of(caption: str, graph: Any) -> dict[str, set[str]]:
    """Base forms: ``entity`` nouns, ``action`` verbs, ``relation`` pairs of a verb and an argument's noun."""
    entity, action = nouns_and_verbs(caption)
    nodes, edges = graph
    relation = set()
    for verb, argument, _ in edges:
        said = lemma(_clean(nodes[verb]["words"][0]), "VERB"), lemma(_clean(nodes[argument]["words"][-1]), "NOUN")
        if not COMMON & set(said):
            relation.add(" ".join(said))
    return {"entity": entity, "action": action, "relation": relation}


def _clean(word: str) -> str:
    return word.lower().strip(".,;:!?\"()[]'")


class Concepts:
    """The concepts that are taught, by kind, most frequent first, and which of them captions have."""

    def __init__(self, names: Mapping[str, Sequence[str]], graphs: Mapping[str, Any]) -> None:
        self.names, self.graphs = names, graphs
        self.number = {kind: {name: n for n, name in enumerate(known)} for kind, known in names.items()}
        self._known: dict[str, dict[str, set[int]]] = {}

    @classmethod
    def of(cls, captions: Iterable[str], graphs: Mapping[str, Any], most: Mapping[str, int]) -> Concepts:
        """The most frequent of each kind in the captions; those in one caption alone are left out."""
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in most}
        for caption in captions:
            for kind, found in concepts_of(caption, graphs[caption]).items():
                counts[kind].update(sorted(found))
        names = {
            kind: [name for name, count in counts[kind].most_common(limit) if count > 1] for kind, limit in most.items()
        }
        return cls(names, graphs)

    @property
    def sizes(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {kind: len(names) for kind, names in self.names.items()}

    def to_json(self) -> str:
        """Their names by kind."""
        return json.dumps(self.names)

    def labels(self, pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, dict[str, Tensor]]:
        """By kind ``truth`` and ``mask``, (pairs, concepts), of captions with all captions of their clip.

        The mask is 0 for what another caption of the clip has and this one has not: neither there nor absent.
        """
        made = {}
        for kind, names in self.names.items():
            truth = torch.zeros(len(pairs), len(names))
            mask = torch.ones(len(pairs), len(names))
            for row, (caption, others) in enumerate(pairs):
                own = self._of(caption)[kind]
                elsewhere = set().union(*(self._of(other)[kind] for other in others)) - own
                truth[row, list(own)] = 1
                mask[row, list(elsewhere)] = 0
            made[kind] = {"truth": truth, "mask": mask}
        return made

    def _of(self, caption: str) -> dict[str, set[int]]:
        if caption not in self._known:
            found = concepts_of(caption, self.graphs[caption])
            self._known[caption] = {
                kind: {known[name] for name in found[kind] if name in known} for kind, known in self.number.items()
            }
        return self._known[caption]
