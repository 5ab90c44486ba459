"""Binary selection, as HGR's paper asks it: of two captions that differ in one part, which one fits the clip?"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import AmexError
from ..features import Store
from ..foreign import reading
from ..manifests import Clip
from .api import TrainedModel

AT_ONCE = 256
COLUMNS = ("clip_id", "caption", "foil")


class Question(NamedTuple):
    """A clip, its caption, another that does not fit, and in what that one differs."""

    clip_id: str
    caption: str
    foil: str
    kind: str = "all"


def read_questions(path: Path) -> list[Question]:
    """Those of a CSV with the columns clip_id, caption, foil, and perhaps kind. Raises AmexError naming the line."""
    if not path.is_file():
        raise AmexError(f"there is no file {path} of captions and foils")
    with reading(path, AmexError, "holds no captions and foils"), path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise AmexError(f"{path} has no column {missing[0]}; it needs {', '.join(COLUMNS)}, and may have kind")
        found = []
        for row in rows:
            values = [(row[name] or "").strip() for name in COLUMNS]
            if not all(values):
                raise AmexError(f"{path}: line {rows.line_num} lacks {COLUMNS[values.index('')]}")
            found.append(Question(*values, (row.get("kind") or "").strip() or "all"))
    if not found:
        raise AmexError(f"{path} holds no captions and foils: it is empty")
    return found


def write_questions(path: Path, questions: Sequence[Question]) -> None:
    """As ``read_questions`` reads them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(Question._fields)
        rows.writerows(questions)


def draw_questions(clips: Sequence[Clip], graphs: Mapping[str, Any], seed: int = 0) -> list[Question]:
    """Foils of the clips' captions by their role graphs, at most one of each kind a caption.

    ``roles``: who does it and to whom are exchanged. ``verb``, ``agent``, ``object``: the words of the first verb, ARG0
    or ARG1 are those of another caption. What another caption of the same clip says is no foil.
    """
    rng = np.random.default_rng(seed)
    parts = {"verb": "V", "agent": "ARG0", "object": "ARG1"}
    spans = {caption: _first_of_each_role(graphs[caption]) for clip in clips for caption in clip.captions}
    phrases = {
        kind: sorted({_text(caption, own[role]) for caption, own in spans.items() if role in own})
        for kind, role in parts.items()
    }
    questions = []
    for clip in clips:
        own = {caption.lower() for caption in clip.captions}
        for caption in dict.fromkeys(clip.captions):
            found = spans[caption]
            foils = {}
            if "ARG0" in found and "ARG1" in found and not set(found["ARG0"]) & set(found["ARG1"]):
                other = {"ARG0": _text(caption, found["ARG1"]), "ARG1": _text(caption, found["ARG0"])}
                foils["roles"] = _replaced(caption, {role: (found[role], text) for role, text in other.items()})
            for kind, role in parts.items():
                if role in found:
                    text = phrases[kind][rng.integers(len(phrases[kind]))]
                    foils[kind] = _replaced(caption, {role: (found[role], text)})
            questions += [
                Question(clip.clip_id, caption, foil, kind) for kind, foil in foils.items() if foil.lower() not in own
            ]
    if not questions:
        raise AmexError("no caption has a role graph with a verb or its arguments: there is nothing to exchange")
    return questions


def ask(
    model: TrainedModel,
    store: Store,
    questions: Sequence[Question],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, float]]:
    """By kind ``accuracy``, how often the caption fits better than the foil in percent, half of a tie; ``queries``.

    ``all`` counts the questions of every kind.

    Raises:
        AmexError: if a clip has no features, or texts cannot be encoded.
    """
    won: defaultdict[str, list[float]] = defaultdict(list)
    for begin in range(0, len(questions), AT_ONCE):
        some = questions[begin : begin + AT_ONCE]
        ids = list(dict.fromkeys(question.clip_id for question in some))
        texts = list(dict.fromkeys(text for question in some for text in (question.caption, question.foil)))
        scores = model.score(texts, model.embed_video(store, ids))
        for question in some:
            clip = ids.index(question.clip_id)
            true, false = (scores[texts.index(text), clip] for text in (question.caption, question.foil))
            right = float(true > false) + 0.5 * float(true == false)
            for kind in {question.kind, "all"}:
                won[kind].append(right)
        progress(len(some))
    return {kind: {"accuracy": 100 * float(np.mean(right)), "queries": len(right)} for kind, right in won.items()}


def _first_of_each_role(graph: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for node in graph[0].values():
        if node["role"] != "ROOT" and node["spans"]:
            found.setdefault(node["role"], sorted(node["spans"]))
    return found


def _text(caption: str, places: Sequence[int]) -> str:
    words = caption.split()
    return " ".join(words[place] for place in places if place < len(words))


def _replaced(caption: str, parts: Mapping[str, tuple[Sequence[int], str]]) -> str:
    """A caption with some words left out, and others where the first of them was."""
    words: list[str] = caption.split()
    for places, text in parts.values():
        for place in places:
            words[place] = ""
        words[places[0]] = text
    return " ".join(word for word in words if word)
