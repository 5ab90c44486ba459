"""Semantic role graphs of captions, in HGR's JSON, and the tensors that HGR's text encoder takes.

A graph is ``[nodes, edges]``: nodes by name, each with ``words``, ``spans`` (the places of its words in the caption)
and ``role``; edges ``[verb node, argument node, role]``. The node ``ROOT`` is the whole caption.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import AmexError

# In the order of HGR's embedding of roles.
ROLES = (
    *("V", "ARG1", "ARG0", "ARG2", "ARG3", "ARG4", "ARGM-LOC", "ARGM-MNR", "ARGM-TMP", "ARGM-DIR", "ARGM-ADV"),
    *("ARGM-PRP", "ARGM-PRD", "ARGM-COM", "ARGM-MOD", "NOUN"),
)
END, UNKNOWN = 1, 2  # numbers in HGR's word2int.json


class GraphError(AmexError):
    """A role graph is missing, or is none."""


def read_graphs(path: Path) -> dict[str, Any]:
    """Caption -> graph, as ``sent2rolegraph.augment.json`` has them. Raises GraphError if the file has not."""
    try:
        graphs = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise GraphError(f"{path} cannot be read as role graphs: {error}") from error
    if not isinstance(graphs, dict):
        raise GraphError(f"{path} is no table of captions and their role graphs")
    return graphs


def role_number(role: str) -> int:
    """A role's place in ``ROLES``: ``C-x`` and ``R-x`` count as ``x``, roles it does not have as ``NOUN``."""
    role = role[2:] if role[:2] in ("C-", "R-") else role
    return ROLES.index(role if role in ROLES else "NOUN")


def graph_tensors(
    captions: Sequence[str],
    graphs: Mapping[str, Any],
    word_numbers: Mapping[str, int],
    *,
    words: int = 30,
    verbs: int = 4,
    nouns: int = 6,
) -> dict[str, Tensor]:
    """What ``HGR.encode_texts`` takes, of captions cut at ``words`` words; further verbs and nouns are left out.

    Returns:
        ``ids`` and ``mask`` (B, L); ``nodes`` (B, 1 + verbs + nouns, L) bool, the words of each node, the caption's
        first; ``roles`` (B, verbs + nouns); ``edges`` (B, P, P) bool, from the column to the row.

    Raises:
        GraphError: for a caption without a graph, or with one that cannot be used.
    """
    size = 1 + verbs + nouns
    count = len(captions)
    ids = torch.full((count, words), END)
    nodes = torch.zeros(count, size, words, dtype=torch.bool)
    roles = torch.zeros(count, size - 1, dtype=torch.long)
    edges = torch.zeros(count, size, size, dtype=torch.bool)
    for index, caption in enumerate(captions):
        if caption not in graphs:
            raise GraphError(f"there is no role graph for the caption {caption!r}")
        split = caption.split()[:words]
        ids[index, : len(split)] = torch.tensor([word_numbers.get(word, UNKNOWN) for word in split])
        nodes[index, 0, : len(split)] = True
        try:
            _fill(graphs[caption], nodes[index], roles[index], edges[index], verbs)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise GraphError(f"the role graph of {caption!r} cannot be used: {type(error).__name__} {error}") from error
    longest = max(1, int(nodes[:, 0].sum(1).max())) if count else 1
    return {
        "ids": ids[:, :longest],
        "mask": nodes[:, 0, :longest],
        "nodes": nodes[:, :, :longest],
        "roles": roles,
        "edges": edges,
    }


def _fill(graph: Any, nodes: Tensor, roles: Tensor, edges: Tensor, verbs: int) -> None:
    """One caption's graph into its rows of the tensors."""
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
