"""Binary selection as in HGR's paper: of two captions that differ in one part, which one fits the clip?"""

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

BATCH = 256
COLUMNS = ("clip_id", "caption", "foil")


class Question(NamedTuple):
    """A clip, its caption, a foil that does not fit, and the kind of their difference."""

    clip_id: str
    caption: str
    foil: str
    kind: str = "all"


def read_questions(path: Path) -> list[Question]:
    """Read a CSV with columns clip_id, caption, foil and optionally kind; raise an AmexError that names the line."""
    if not path.is_file():
        raise AmexError(f"the file of captions and foils {path} does not exist")
    with reading(path, AmexError, "holds no captions and foils"), path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise AmexError(f"{path} has no column {missing[0]}; it needs {', '.join(COLUMNS)}, and optionally kind")
        questions = []
        for row in rows:
            values = [(row[name] or "").strip() for name in COLUMNS]
            if not all(values):
                raise AmexError(f"{path}: line {rows.line_num} lacks {COLUMNS[values.index('')]}")
            questions.append(Question(*values, (row.get("kind") or "").strip() or "all"))
    if not questions:
        raise AmexError(f"{path} holds no captions and foils: it is empty")
    return questions


def draw_questions(clips: Sequence[Clip], graphs: Mapping[str, Any], seed: int = 0) -> list[Question]:
    """Make foils of the clips' captions from their role graphs, at most one of each kind per caption.

    ``roles``: agent and patient are exchanged. ``verb``, ``agent``, ``object``: the words of the first verb, ARG0 or
    ARG1 are replaced by those of another caption. A text that is a caption of the same clip is never a foil.
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
            roles = spans[caption]
            foils = {}
            if "ARG0" in roles and "ARG1" in roles and not set(roles["ARG0"]) & set(roles["ARG1"]):
                other = {"ARG0": _text(caption, roles["ARG1"]), "ARG1": _text(caption, roles["ARG0"])}
                foils["roles"] = _replace(caption, {role: (roles[role], text) for role, text in other.items()})
            for kind, role in parts.items():
                if role in roles:
                    text = phrases[kind][rng.integers(len(phrases[kind]))]
                    foils[kind] = _replace(caption, {role: (roles[role], text)})
            questions += [
                Question(clip.clip_id, caption, foil, kind) for kind, foil in foils.items() if foil.lower() not in own
            ]
    if not questions:
        raise AmexError("no caption has a role graph with a verb or its arguments, so no foil can be made")
    return questions


def ask(
    model: TrainedModel,
    store: Store,
    questions: Sequence[Question],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, float]]:
    """Return ``accuracy`` and ``queries`` by kind; the kind ``all`` counts every question.

    The accuracy is the percentage of questions whose caption scores above the foil; a tie counts half.

    Raises:
        AmexError: if a clip has no features, or texts cannot be encoded.
    """
    won: defaultdict[str, list[float]] = defaultdict(list)
    for begin in range(0, len(questions), BATCH):
        batch = questions[begin : begin + BATCH]
        ids = list(dict.fromkeys(question.clip_id for question in batch))
        texts = list(dict.fromkeys(text for question in batch for text in (question.caption, question.foil)))
        scores = model.score(texts, model.embed_video(store, ids))
        for question in batch:
            clip = ids.index(question.clip_id)
            true, false = (scores[texts.index(text), clip] for text in (question.caption, question.foil))
            right = float(true > false) + 0.5 * float(true == false)
            for kind in {question.kind, "all"}:
                won[kind].append(right)
        progress(len(batch))
    return {kind: {"accuracy": 100 * float(np.mean(right)), "queries": len(right)} for kind, right in won.items()}


def _first_of_each_role(graph: Any) -> dict[str, list[int]]:
    roles: dict[str, list[int]] = {}
    for node in graph[0].values():
        if node["role"] != "ROOT" and node["spans"]:
            roles.setdefault(node["role"], sorted(node["spans"]))
    return roles


def _text(caption: str, places: Sequence[int]) -> str:
    words = caption.split()
    return " ".join(words[place] for place in places if place < len(words))


def _replace(caption: str, parts: Mapping[str, tuple[Sequence[int], str]]) -> str:
    """Remove words of a caption, and insert a text at the position of the first of them."""
    words: list[str] = caption.split()
    for places, text in parts.values():
        for place in places:
            words[place] = ""
        words[places[0]] = text
    return " ".join(word for word in words if word)
