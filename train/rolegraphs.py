"""Role graphs of captions, and their tensors for HGR's text encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..language import GraphError, graphs_path, read_graphs, role_parser
from .options import ModelOptions

# In the order of HGR's role embedding.
ROLES = (
    *("V", "ARG1", "ARG0", "ARG2", "ARG3", "ARG4", "ARGM-LOC", "ARGM-MNR", "ARGM-TMP", "ARGM-DIR", "ARGM-ADV"),
    *("ARGM-PRP", "ARGM-PRD", "ARGM-COM", "ARGM-MOD", "NOUN"),
)


class Graphs(Mapping[str, Any]):
    """Role graphs by caption. Graphs that the file beside the manifest lacks are parsed on demand.

    Attributes:
        parser: name of the parser.
        sizes: size limits of the tensors; see ``graph_tensors``.
    """

    def __init__(self, parser: str, graphs: Mapping[str, Any], sizes: dict[str, Any]) -> None:
        self.parser, self.graphs, self.sizes = parser, graphs, sizes
        self._parse: Callable[[str], Any] | None = None

    @classmethod
    def beside(cls, manifest: Path, options: ModelOptions, parser: str = "") -> Graphs:
        """Read the graphs of a manifest.

        Args:
            parser: the required parser; empty: any.

        Raises:
            GraphError: if the file is missing or another parser made it.
        """
        path = graphs_path(manifest)
        if not path.is_file():
            raise GraphError(f"{manifest} has no role graphs: make them with amex manifest parse {manifest}")
        file = read_graphs(path)
        if parser and file.parser != parser:
            how = "--official FILE" if parser == "official" else f"--parser {parser.split()[0].rstrip(',')}"
            raise GraphError(
                f"{path} is of {file.parser!r}, but the model was trained with graphs of {parser!r}: make them with "
                f"amex manifest parse {manifest} {how}"
            )
        return cls(file.parser, file.graphs, options.graph_sizes)

    def __getitem__(self, caption: str) -> Any:
        if caption not in self.graphs:
            if self.parser == "official":
                raise GraphError(f"the caption {caption!r} has no role graph")
            if self._parse is None:
                parser, self._parse = role_parser(self.parser.split()[0].rstrip(","))
                if parser != self.parser:
                    raise GraphError(f"this installation parses with {parser!r}, but the graphs need {self.parser!r}")
            return self._parse(caption)
        return self.graphs[caption]

    def __iter__(self) -> Any:
        return iter(self.graphs)

    def __len__(self) -> int:
        return len(self.graphs)


def role_number(role: str) -> int:
    """Return the index of a role in ``ROLES``. ``C-x`` and ``R-x`` count as ``x``, unknown roles as ``NOUN``."""
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
    """Build the input of ``HGR.encode_texts``. Captions are cut at ``words`` words; excess verbs and nouns are dropped.

    Args:
        number: returns the number of a word.
        relations: maximum number of relationships: further nodes, each connected to a verb and its argument.
        triples: make relationships of a verb, its ARG0 and its ARG1 instead.

    Returns:
        ``ids`` and ``mask`` (B, L); ``nodes`` (B, 1 + verbs + nouns, L) bool, the words of each node, the caption's
        first; ``roles`` (B, verbs + nouns); ``edges`` (B, P, P) bool, from the column to the row; P includes
        relationships. With relationships, ``relations`` (B, relations, 3): the nodes of verb and argument and the
        number of the role, for a triple the nodes of verb, ARG0 and ARG1; -1 for none.

    Raises:
        GraphError: for a caption without a usable graph.
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
            raise GraphError(f"the caption {caption!r} has no role graph") from None
        split = caption.split()[:words]
        ids[index, : len(split)] = torch.tensor([number(word) for word in split], dtype=torch.long)
        nodes[index, 0, : len(split)] = True
        try:
            place = _fill(graph, nodes[index], roles[index], edges[index], verbs)
            _relate(graph, place, related[index], edges[index], size, triples)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise GraphError(f"the role graph of {caption!r} cannot be used: {type(error).__name__} {error}") from error
    longest = max(1, int(nodes[:, 0].sum(1).max())) if count else 1
    optional = {"relations": related} if relations else {}
    return optional | {
        "ids": ids[:, :longest],
        "mask": nodes[:, 0, :longest],
        "nodes": nodes[:, :, :longest],
        "roles": roles,
        "edges": edges,
    }


def _fill(graph: Any, nodes: Tensor, roles: Tensor, edges: Tensor, verbs: int) -> dict[str, int]:
    """Write one caption's graph into its rows of the tensors; return the node number of each name that has one."""
    graph_nodes, links = graph
    size, words = nodes.shape
    free = {True: iter(range(1, 1 + verbs)), False: iter(range(1 + verbs, size))}
    place: dict[str, int] = {}
    for name, node in graph_nodes.items():
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
    """Write a caption's relationships into its rows of the tensors; their nodes begin at ``first``."""
    relationships: list[tuple[tuple[int, int], tuple[int, int, int]]] = []
    links = [(verb, argument, role) for verb, argument, role in graph[1] if verb in place and argument in place]
    if triples:
        by_verb: dict[str, dict[str, int]] = {}
        for verb, argument, role in links:
            by_verb.setdefault(verb, {}).setdefault(role, place[argument])
        for verb, roles in by_verb.items():
            if "ARG0" in roles and "ARG1" in roles:
                agent, patient = roles["ARG0"], roles["ARG1"]
                relationships.append(((agent, patient), (place[verb], agent, patient)))
    else:
        relationships = [((place[a], place[a]), (place[v], place[a], role_number(role))) for v, a, role in links]
    for number, (arguments, parts) in enumerate(relationships[: len(related)]):
        related[number] = torch.tensor(parts)
        for other in (parts[0], *arguments):
            edges[first + number, other] = edges[other, first + number] = True
