"""Role graphs of captions, kept beside their manifest: who makes them, and the file that keeps them.

A graph is ``[nodes, edges]`` as in HGR's JSON: nodes by name, each with ``words``, ``spans`` (places of its words in
``caption.split()``) and ``role``; edges ``[verb node, argument node, role]``. The node ``ROOT`` is the whole caption.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import AmexError, first_line
from ..foreign import read_json, reading
from ..storage import write_whole
from .roles import graph_of, role_graph, role_of

Parse = Callable[[str], list[Any]]


class GraphError(AmexError):
    """Role graphs are missing, or cannot be made or used."""


@dataclass(frozen=True)
class RoleGraphs:
    """Caption -> graph, and by whom: ``rules ...``, ``spacy:...`` or ``official``."""

    parser: str
    graphs: Mapping[str, list[Any]]


def graphs_path(manifest: Path) -> Path:
    """Where the role graphs of a manifest's captions are kept."""
    return manifest.with_suffix(".rolegraphs.json")


def read_graphs(path: Path) -> RoleGraphs:
    """What ``write_graphs`` wrote, or the official program's ``sent2rolegraph.augment.json``. Raises GraphError."""
    record = read_json(path, GraphError)
    parser, graphs = "official", record
    if isinstance(record, dict) and set(record) == {"parser", "graphs"} and isinstance(record["parser"], str):
        parser, graphs = record["parser"], record["graphs"]
    if not isinstance(graphs, dict):
        raise GraphError(f"{path} is no table of captions and their role graphs")
    for caption, graph in graphs.items():
        with reading(path, GraphError, f"has no role graph for {caption!r} that can be used"):
            nodes, edges = graph
            for node in nodes.values():
                _check_node(node)
            for verb, argument, _ in edges:
                if not nodes[verb]["words"] or not nodes[argument]["words"]:
                    raise ValueError("an edge joins a node without words")
    return RoleGraphs(parser, graphs)


def _check_node(node: Any) -> None:
    """Raises ValueError unless a node has what every user of the graphs takes from it."""
    usable = (
        isinstance(node, dict)
        and isinstance(node.get("role"), str)
        and isinstance(node.get("words"), list)
        and isinstance(node.get("spans"), list)
        and all(isinstance(word, str) for word in node["words"])
        and all(type(place) is int for place in node["spans"])
    )
    if not usable:
        raise ValueError("a node needs words, their places (spans) and its role")


def write_graphs(graphs: RoleGraphs, path: Path) -> None:
    """There whole, or not at all."""
    with write_whole(path, GraphError) as handle:
        json.dump({"parser": graphs.parser, "graphs": dict(graphs.graphs)}, handle, ensure_ascii=False)


def role_parser(name: str = "rules") -> tuple[str, Parse]:
    """A parser by name, with the versions that decide what it gives.

    Args:
        name: ``rules``: those of ``roles``. ``spacy:MODEL``: the dependencies of an installed spaCy model.

    Raises:
        GraphError: for an unknown name, or a model that is not installed or has no parser.
    """
    kind, _, model = name.partition(":")
    if name == "rules":
        return f"rules 1, textblob {version('textblob')}, lemminflect {version('lemminflect')}", role_graph
    if kind != "spacy" or not model:
        raise GraphError(f"unknown parser {name!r}: there is rules, and spacy:MODEL")
    try:
        import spacy

        loaded = spacy.load(model)
    except ImportError as error:
        raise GraphError(f"{name} needs spaCy: pip install spacy ({first_line(error)})") from error
    except OSError as error:
        raise GraphError(
            f"{name}: this model is not installed ({first_line(error)}); python -m spacy download {model}, or "
            "--parser rules, which needs none"
        ) from error
    if "parser" not in loaded.pipe_names:
        raise GraphError(f"{name} has no dependency parser; it has {', '.join(loaded.pipe_names) or 'no components'}")
    made_by = f"spacy:{loaded.meta['lang']}_{loaded.meta['name']} {loaded.meta['version']}, spacy {spacy.__version__}"

    def parse(caption: str) -> list[Any]:
        words = caption.split()
        if not words:
            return role_graph(caption)
        return graph_of_dependencies(loaded(spacy.tokens.Doc(loaded.vocab, words=words)))

    return made_by, parse


def complete_graphs(
    captions: Iterable[str], known: RoleGraphs | None, made_by: str, parse: Parse, progress: Callable[[int], None]
) -> RoleGraphs:
    """Graphs for all captions: those already known by the same parser, and new ones."""
    kept = known.graphs if known is not None and known.parser == made_by else {}
    graphs = {}
    for caption in dict.fromkeys(captions):
        graphs[caption] = kept[caption] if caption in kept else parse(caption)
        progress(1)
    return RoleGraphs(made_by, graphs)


# Dependencies of spaCy's English models -> roles.
SUBJECTS, PASSIVE_SUBJECTS = {"nsubj", "csubj"}, {"nsubjpass", "csubjpass", "nsubj:pass"}
OBJECTS, RECEIVERS = {"dobj", "obj", "attr", "oprd"}, {"dative", "iobj"}
APART = {"relcl", "acl", "advcl", "conj", "cc", "punct", "ccomp", "parataxis"}


def graph_of_dependencies(doc: Any) -> list[Any]:
    """The graph of a caption from spaCy's dependencies, one token a word."""
    verbs = [
        token for token in doc if token.pos_ == "VERB" or (token.pos_ == "AUX" and token.dep_ not in ("aux", "auxpass"))
    ]
    claims: dict[int, list[tuple[int, int, str]]] = {}
    for verb in verbs:
        found = []
        subjects = [child for child in verb.children if child.dep_ in SUBJECTS | PASSIVE_SUBJECTS]
        head = verb
        while not subjects and head.dep_ in ("conj", "xcomp") and head.head is not head:
            head = head.head  # "picks up": whoever bends over
            subjects = [child for child in head.children if child.dep_ in SUBJECTS]
        if not subjects and verb.dep_ in ("acl", "relcl") and verb.tag_ != "VBN":
            subjects = [verb.head]
        for subject in subjects:
            found += [(*_span(part), "ARG1" if subject.dep_ in PASSIVE_SUBJECTS else "ARG0") for part in _all(subject)]
        for child in verb.children:
            if child.dep_ in OBJECTS | RECEIVERS:
                role = "ARG2" if child.dep_ in RECEIVERS else "ARG1"
                found += [(*_span(part), role) for part in _all(child)]
            elif child.dep_ in ("prep", "agent") and any(True for _ in child.children):
                passive = child.dep_ == "agent"
                begin, end = _span(child)
                found.append((begin, end, "ARG0" if passive else role_of(child.lower_, doc[end - 1].lower_)))
        claims[verb.i] = found
    chunks = [_span(token) for token in doc if token.pos_ in ("NOUN", "PROPN") and token.dep_ != "compound"]
    return graph_of([token.text for token in doc], claims, chunks)


def _all(token: Any) -> list[Any]:
    """A token and what is joined to it by ``and``."""
    return [token, *(other for other in token.conjuncts if other.i > token.i)]


def _span(token: Any) -> tuple[int, int]:
    """The words that belong to a token, without clauses and what is joined to it: [begin, end)."""
    places = [token.i]
    waiting = [child for child in token.children if child.dep_ not in APART]
    while waiting:
        child = waiting.pop()
        places.append(child.i)
        waiting += [other for other in child.children if other.dep_ not in APART]
    return min(places), max(places) + 1
