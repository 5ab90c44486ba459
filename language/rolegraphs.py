"""Make the role graphs of captions, and store them in a file beside the manifest.

A graph is ``[nodes, edges]`` as in HGR's JSON: nodes by name, each with ``words``, ``spans`` (positions of its words in
``caption.split()``) and ``role``; edges ``[verb node, argument node, role]``. The node ``ROOT`` is the full caption.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import AmexError, first_line, needs
from ..foreign import read_json, reading
from ..storage import write_atomic
from .roles import graph_of, role_graph, role_of

Parse = Callable[[str], list[Any]]


class GraphError(AmexError):
    """Role graphs are missing, or cannot be made or used."""


@dataclass(frozen=True)
class RoleGraphs:
    """Role graphs of captions.

    Attributes:
        parser: what made them: ``rules ...``, ``spacy:...`` or ``official``.
        graphs: caption -> graph.
    """

    parser: str
    graphs: Mapping[str, list[Any]]


def graphs_path(manifest: Path) -> Path:
    """Return the path of the role graphs of a manifest."""
    return manifest.with_suffix(".rolegraphs.json")


def read_graphs(path: Path) -> RoleGraphs:
    """Read a file of ``write_graphs``, or ``sent2rolegraph.augment.json`` of HGR's program. Raises GraphError."""
    record = read_json(path, GraphError)
    parser, graphs = "official", record
    if isinstance(record, dict) and set(record) == {"parser", "graphs"} and isinstance(record["parser"], str):
        parser, graphs = record["parser"], record["graphs"]
    if not isinstance(graphs, dict):
        raise GraphError(f"{path} is not an object of role graphs by caption")
    for caption, graph in graphs.items():
        with reading(path, GraphError, f"has an invalid role graph for {caption!r}"):
            nodes, edges = graph
            for node in nodes.values():
                _check_node(node)
            for verb, argument, _ in edges:
                if not nodes[verb]["words"] or not nodes[argument]["words"]:
                    raise ValueError("an edge joins a node without words")
    return RoleGraphs(parser, graphs)


def _check_node(node: Any) -> None:
    """Raise ValueError unless a node has words, spans and role of the right types."""
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
    """Write role graphs to a file, atomically."""
    with write_atomic(path, GraphError) as handle:
        json.dump({"parser": graphs.parser, "graphs": dict(graphs.graphs)}, handle, ensure_ascii=False)


def role_parser(name: str = "rules") -> tuple[str, Parse]:
    """Return a description of a parser with all versions that influence its results, and the parser.

    Args:
        name: ``rules`` for the rules of ``roles``; ``spacy:MODEL`` for an installed spaCy model.

    Raises:
        GraphError: if the name is unknown, or the model is not installed or has no parser.
    """
    kind, _, model = name.partition(":")
    if name == "rules":
        with needs("text", "the parser of captions"):
            return f"rules 1, textblob {version('textblob')}, lemminflect {version('lemminflect')}", role_graph
    if kind != "spacy" or not model:
        raise GraphError(f"unknown parser {name!r}; use rules or spacy:MODEL")
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
    captions: Iterable[str], existing: RoleGraphs | None, made_by: str, parse: Parse, progress: Callable[[int], None]
) -> RoleGraphs:
    """Return the graphs of all captions. Reuse existing graphs of the same parser.

    Args:
        made_by, parse: see ``role_parser``.
        progress: called with 1 after each caption.
    """
    reusable = existing.graphs if existing is not None and existing.parser == made_by else {}
    graphs = {}
    for caption in dict.fromkeys(captions):
        graphs[caption] = reusable[caption] if caption in reusable else parse(caption)
        progress(1)
    return RoleGraphs(made_by, graphs)


# Dependencies of spaCy's English models -> roles.
SUBJECTS, PASSIVE_SUBJECTS = {"nsubj", "csubj"}, {"nsubjpass", "csubjpass", "nsubj:pass"}
OBJECTS, RECEIVERS = {"dobj", "obj", "attr", "oprd"}, {"dative", "iobj"}
APART = {"relcl", "acl", "advcl", "conj", "cc", "punct", "ccomp", "parataxis"}


def graph_of_dependencies(doc: Any) -> list[Any]:
    """Return the graph of a caption from spaCy's dependencies. Each token must be one word."""
    verbs = [
        token for token in doc if token.pos_ == "VERB" or (token.pos_ == "AUX" and token.dep_ not in ("aux", "auxpass"))
    ]
    claims: dict[int, list[tuple[int, int, str]]] = {}
    for verb in verbs:
        arguments = []
        subjects = [child for child in verb.children if child.dep_ in SUBJECTS | PASSIVE_SUBJECTS]
        head = verb
        while not subjects and head.dep_ in ("conj", "xcomp") and head.head is not head:
            head = head.head  # "bends over and picks up": the subject of the first verb
            subjects = [child for child in head.children if child.dep_ in SUBJECTS]
        if not subjects and verb.dep_ in ("acl", "relcl") and verb.tag_ != "VBN":
            subjects = [verb.head]
        for subject in subjects:
            role = "ARG1" if subject.dep_ in PASSIVE_SUBJECTS else "ARG0"
            arguments += [(*_span(part), role) for part in _with_conjuncts(subject)]
        for child in verb.children:
            if child.dep_ in OBJECTS | RECEIVERS:
                role = "ARG2" if child.dep_ in RECEIVERS else "ARG1"
                arguments += [(*_span(part), role) for part in _with_conjuncts(child)]
            elif child.dep_ in ("prep", "agent") and any(True for _ in child.children):
                passive = child.dep_ == "agent"
                begin, end = _span(child)
                arguments.append((begin, end, "ARG0" if passive else role_of(child.lower_, doc[end - 1].lower_)))
        claims[verb.i] = arguments
    chunks = [_span(token) for token in doc if token.pos_ in ("NOUN", "PROPN") and token.dep_ != "compound"]
    return graph_of([token.text for token in doc], claims, chunks)


def _with_conjuncts(token: Any) -> list[Any]:
    """Return a token and the tokens that are joined to it by ``and``."""
    return [token, *(other for other in token.conjuncts if other.i > token.i)]


def _span(token: Any) -> tuple[int, int]:
    """Return the span of a token's phrase, without clauses and conjuncts: [begin, end)."""
    positions = [token.i]
    pending = [child for child in token.children if child.dep_ not in APART]
    while pending:
        child = pending.pop()
        positions.append(child.i)
        pending += [other for other in child.children if other.dep_ not in APART]
    return min(positions), max(positions) + 1
