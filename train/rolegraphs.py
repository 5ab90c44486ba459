"""Role graphs of captions, and the tensors that HGR's text encoder takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..language import GraphError, graphs_path, read_graphs, role_parser
from .options import ModelOptions

# In the order of HGR's embedding of roles.
ROLES = (
    *("V", "ARG1", "ARG0", "ARG2", "ARG3", "ARG4", "ARGM-LOC", "ARGM-MNR", "ARGM-TMP", "ARGM-DIR", "ARGM-ADV"),
    *("ARGM-PRP", "ARGM-PRD", "ARGM-COM", "ARGM-MOD", "NOUN"),
)


class Graphs(Mapping[str, Any]):
    """Caption -> graph: those beside a manifest, others as they are asked for.

    Attributes:
        parser: by whom they were made.
        sizes: how much of a graph becomes tensors, as of ``graph_tensors``.
    """

    def __init__(self, parser: str, graphs: Mapping[str, Any], sizes: dict[str, Any]) -> None:
        self.parser, self.graphs, self.sizes = parser, graphs, sizes
        self._parse: Callable[[str], Any] | None = None

    @classmethod
    def beside(cls, manifest: Path, options: ModelOptions, made_by: str = "") -> Graphs:
        """Those of a manifest.

        Args:
            made_by: the parser that they must be of.

        Raises:
            GraphError: if there are none, or another parser's.
        """
        path = graphs_path(manifest)
        if not path.is_file():
            raise GraphError(f"{manifest} has no role graphs: make them with amex manifest parse {manifest}")
        found = read_graphs(path)
        if made_by and found.parser != made_by:
            how = "--official FILE" if made_by == "official" else f"--parser {made_by.split()[0].rstrip(',')}"
            raise GraphError(
                f"{path} is of {found.parser!r}, but the model was trained with graphs of {made_by!r}: make them with "
                f"amex manifest parse {manifest} {how}"
            )
        return cls(found.parser, found.graphs, options.graph_sizes)

    def __getitem__(self, caption: str) -> Any:
        if caption not in self.graphs:
            if self.parser == "official":
                raise GraphError(f"there is no role graph for the caption {caption!r}")
            if self._parse is None:
                made_by, self._parse = role_parser(self.parser.split()[0].rstrip(","))
                if made_by != self.parser:
                    raise GraphError(f"graphs of {self.parser!r} cannot be made here, only of {made_by!r}")
            return self._parse(caption)
        return self.graphs[caption]

    def __iter__(self) -> Any:
        return iter(self.graphs)

    def __len__(self) -> int:
        return len(self.graphs)


def role_number(role: str) -> int:
    """A role's place in ``ROLES``: ``C-x`` and ``R-x`` count as ``x``, roles it does not have as ``NOUN``."""
    role = role[2:] if role[:2] in ("C-", "R-") else role
    return ROLES.index(role if role in ROLES else "NOUN")


def graph_tensors(
    captions: Sequence[str],
    graphs: Mapping[str, Any],
    number: Callable[[str], int],
    *,
    words: int = 30,
    verbs: int = 4,
    nouns: int = 6,
    relations: int = 0,
    triples: bool = False,
) -> dict[str, Tensor]:
    """What ``HGR.encode_texts`` takes, of captions cut at ``words`` words; further verbs and nouns are left out.

    Args:
        number: of a word.
        relations: how many relationships, of a verb and an argument, are further nodes, joined to both.
        triples: relationships are of a verb, its ARG0 and its ARG1.

    Returns:
        ``ids`` and ``mask`` (B, L); ``nodes`` (B, 1 + verbs + nouns, L) bool, the words of each node, the caption's
        first; ``roles`` (B, verbs + nouns); ``edges`` (B, P, P) bool, from the column to the row. With relationships
        ``relations`` (B, relations, 3): places of verb, argument and the number of its role, of a triple the places of
        verb, ARG0 and ARG1; -1 where there is none. P counts them too.

    Raises:
        GraphError: for a caption without a graph, or with one that cannot be used.
    """
    size = 1 + verbs + nouns
    count = len(captions)
    ids = torch.zeros(count, words, dtype=torch.long)
    nodes = torch.zeros(count, size, words, dtype=torch.bool)
    roles = torch.zeros(count, size - 1, dtype=torch.long)
    edges = torch.zeros(count, size + relations, size + relations, dtype=torch.bool)
    related = torch.full((count, relations, 3), -1)
    for index, caption in enumerate(captions):
        try:
            graph = graphs[caption]
        except KeyError:
            raise GraphError(f"there is no role graph for the caption {caption!r}") from None
        split = caption.split()[:words]
        ids[index, : len(split)] = torch.tensor([number(word) for word in split], dtype=torch.long)
        nodes[index, 0, : len(split)] = True
        try:
            place = _fill(graph, nodes[index], roles[index], edges[index], verbs)
            _relate(graph, place, related[index], edges[index], size, triples)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise GraphError(f"the role graph of {caption!r} cannot be used: {type(error).__name__} {error}") from error
    longest = max(1, int(nodes[:, 0].sum(1).max())) if count else 1
    made = {"relations": related} if relations else {}
    return made | {
        "ids": ids[:, :longest],
        "mask": nodes[:, 0, :longest],
        "nodes": nodes[:, :, :longest],
        "roles": roles,
        "edges": edges,
    }


def _fill(graph: Any, nodes: Tensor, roles: Tensor, edges: Tensor, verbs: int) -> dict[str, int]:
    """One caption's graph into its rows of the tensors; returns the place of each node that has one."""
    found, links = graph
    size, words = nodes.shape
    free = {True: iter(range(1, 1 + verbs)), False: iter(range(1 + verbs, size))}
    place: dict[str, int] = {}
    for name, node in found.items():
        role, spans = node["role"], node["spans"]
        if role == "ROOT" or spans[0] >= words or (slot := next(free[role == "V"], None)) is None:
            continue
        place[name] = slot
        nodes[slot, [word for word in spans if word < words]] = True
        roles[slot - 1] = role_number(role)
        if role == "V":
            edges[slot, 0] = True
    for verb, argument, _ in links:
        if verb in place and argument in place:
            edges[place[verb], place[argument]] = edges[place[argument], place[verb]] = True
    return place


def _relate(graph: Any, place: Mapping[str, int], related: Tensor, edges: Tensor, first: int, triples: bool) -> None:
    """A caption's relationships into its rows of the tensors; their nodes begin at ``first``."""
    found: list[tuple[tuple[int, int], tuple[int, int, int]]] = []
    links = [(verb, argument, role) for verb, argument, role in graph[1] if verb in place and argument in place]
    if triples:
        by_verb: dict[str, dict[str, int]] = {}
        for verb, argument, role in links:
            by_verb.setdefault(verb, {}).setdefault(role, place[argument])
        for verb, roles in by_verb.items():
            if "ARG0" in roles and "ARG1" in roles:
                who, whom = roles["ARG0"], roles["ARG1"]
                found.append(((who, whom), (place[verb], who, whom)))
    else:
        found = [((place[a], place[a]), (place[v], place[a], role_number(role))) for v, a, role in links]
    for number, (joined, parts) in enumerate(found[: len(related)]):
        related[number] = torch.tensor(parts)
        for other in (parts[0], *joined):
            edges[first + number, other] = edges[other, first + number] = True
