"""Draw the edge weights of an object graph: boxes on three rows of a clip, with arrows along the heaviest edges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...features import Rows
from ..data import Split, spread_rows
from ..models import Embeddings, RetrievalModel
from .queries import Ranking

# Rows of a clip to draw, and arrows of each kind in a row.
FRAMES, ARROWS = 3, 5


@dataclass(frozen=True, kw_only=True)
class Box:
    """An object in pixels of its frame, with the detector's class name."""

    x: float
    y: float
    width: float
    height: float
    name: str

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True, kw_only=True)
class Arrow:
    """An edge from a sender (at its position in its own row) to a receiver, in pixels.

    Attributes:
        kind: ``spatial`` within a row, ``temporal`` from the previous or next row.
        weight: 0 to 1; the weights of a receiver's edges of one kind sum to 1.
        says: description of the edge.
    """

    kind: str
    x1: float
    y1: float
    x2: float
    y2: float
    weight: float
    says: str


@dataclass(kw_only=True)
class Frame:
    """One row with its objects and heaviest edges.

    Attributes:
        seconds: time on the video's clock; None if unknown.
        picture: address relative to the page; empty if there is none.
    """

    seconds: float | None
    width: float
    height: float
    boxes: list[Box]
    arrows: list[Arrow]
    picture: str = ""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Rows of a clip in an object stream, for one query.

    Attributes:
        scores: scores of the query with the clip by level; ``all`` is the fused score.
    """

    clip: int
    stream: str
    scores: dict[str, float]
    frames: list[Frame]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A query with its own clip and a rival clip.

    Attributes:
        swapped: whether the rival is the relation-swapped twin; else it is the best wrong clip.
    """

    query: int
    swapped: bool
    own: Drawing
    wrong: Drawing

    @property
    def right(self) -> bool:
        return self.own.scores["all"] > self.wrong.scores["all"]


def relation_pairs(
    model: RetrievalModel, split: Split, videos: Embeddings, texts: Embeddings, ranking: Ranking, shown: int
) -> list[Pair]:
    """Select queries with their clip and a rival: half with the worst margins, half with the best; no pair twice.

    Return an empty list if the model has no object graph.
    """
    streams = list(model.edge_weights(model.to_device(split.videos([0]))))
    if not streams:
        return []
    rival, rival_scores = _rivals(split, ranking)
    queries = np.flatnonzero(rival >= 0)
    margins = (ranking.own_scores - rival_scores)[queries]
    best_first = queries[np.argsort(-margins, kind="stable")].tolist()
    chosen: dict[frozenset[int], int] = {}
    for order, most in ((best_first[::-1], shown - shown // 2), (best_first, shown)):
        for query in order:
            if len(chosen) == most:
                break
            chosen.setdefault(frozenset((int(ranking.own[query]), int(rival[query]))), query)
    pairs = []
    for query in chosen.values():
        own, wrong = int(ranking.own[query]), int(rival[query])
        clips = {clip: _scores(model, videos, texts, int(ranking.captions[query]), clip) for clip in (own, wrong)}
        drawings = [_draw(model, split, streams[0], clip, scores) for clip, scores in clips.items()]
        pairs.append(Pair(query=query, swapped=bool(ranking.twins[query] >= 0), own=drawings[0], wrong=drawings[1]))
    return pairs


def _draw(model: RetrievalModel, split: Split, stream: str, clip: int, scores: dict[str, float]) -> Drawing:
    return Drawing(clip=clip, stream=stream, scores=scores, frames=list(_frames(model, split, stream, clip)))


def _rivals(split: Split, ranking: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """Return each query's rival clip, -1 for none, and the rival's score.

    If the manifest has relation-swapped twins, only queries of clips with a twin have a rival.
    """
    if (ranking.twins >= 0).any():
        return ranking.twins, ranking.twin_scores
    rival, scores = np.full(len(ranking), -1), np.zeros(len(ranking), np.float32)
    for query, best in enumerate(ranking.best):
        caption = split.captions[ranking.captions[query]]
        for clip, score in zip(best, ranking.scores[query], strict=True):
            # A clip with the same caption is not wrong.
            if clip != ranking.own[query] and caption not in split.clips[clip].captions:
                rival[query], scores[query] = clip, score
                break
    return rival, scores


@torch.inference_mode()
def _scores(model: RetrievalModel, videos: Embeddings, texts: Embeddings, caption: int, clip: int) -> dict[str, float]:
    gallery = model.to_device({name: x[[clip]] for name, x in videos.items()})
    query = model.to_device({name: x[[caption]] for name, x in texts.items()})
    levels = {level: float(x) for level, x in model.level_scores(gallery, query).items()}
    return {**levels, "all": float(model.score(gallery, query))}


@torch.inference_mode()
def _frames(model: RetrievalModel, split: Split, stream: str, clip: int) -> Iterator[Frame]:
    """Yield three evenly spaced rows of a clip, among those that the model reads."""
    video = model.to_device(split.videos([clip]))
    weights = {kind: x[0].float().cpu() for kind, x in model.edge_weights(video)[stream].items()}
    table = split.tables[stream]
    rows = table.stream[split.clips[clip].clip_id]
    read_rows = spread_rows(np.array([len(rows)]), split.data.max_rows, None)[0][0]
    names = table.stream.labels
    boxes = [list(_boxes(rows, int(row), split.data.max_objects, names)) for row in read_rows]
    spatial, temporal = _by_kind(weights, len(read_rows))
    for place in np.unique(((np.arange(FRAMES) + 0.5) * len(read_rows) / FRAMES).astype(int)).tolist():
        receivers = boxes[place]
        arrows = _heaviest("spatial", spatial[place], receivers, {0: receivers}) if spatial is not None else []
        if temporal is not None:
            senders = {step: boxes[place + step] for step in (-1, 1) if 0 <= place + step < len(read_rows)}
            arrows += _heaviest("temporal", temporal[place], receivers, senders)
        width, height = (float(x) for x in rows["frame_size"][read_rows[place]])
        yield Frame(
            seconds=float(rows.times[read_rows[place], 0]) if "times" in rows.arrays else None,
            width=width,
            height=height,
            boxes=receivers,
            arrows=arrows,
        )


def _boxes(rows: Rows, row: int, most: int, names: Sequence[str]) -> Iterator[Box]:
    for index in range(min(most, int(rows["counts"][row]))):
        x0, y0, x1, y1 = (float(x) for x in rows["boxes"][row, index])
        label = int(rows["labels"][row, index]) if "labels" in rows.arrays else -1
        name = names[label] if 0 <= label < len(names) else f"object {index + 1}"
        yield Box(x=x0, y=y0, width=x1 - x0, height=y1 - y0, name=name)


def _by_kind(weights: dict[str, Tensor], frames: int) -> tuple[Tensor | None, Tensor | None]:
    """Return edges within each row (T, N, 1, N), and from the previous and next rows (T, N, 2, N)."""
    if "joint" in weights:
        joint = weights["joint"][:frames, :, :frames]
        places = torch.arange(frames)
        padded = torch.nn.functional.pad(joint, (0, 0, 1, 1))
        neighbours = torch.stack([padded[places, :, places], padded[places, :, places + 2]], dim=2)
        return joint[places, :, places].unsqueeze(2), neighbours
    spatial, temporal = weights.get("spatial"), weights.get("temporal")
    return (
        spatial.unsqueeze(2) if spatial is not None else None,
        temporal.unflatten(2, (2, -1)) if temporal is not None else None,
    )


def _heaviest(kind: str, weights: Tensor, receivers: list[Box], senders_by_step: dict[int, list[Box]]) -> list[Arrow]:
    """Return the heaviest edges to the objects of a row.

    Args:
        weights: (N, rows, N).
        senders_by_step: the objects of the senders' rows, by row offset. Within a row, edges from an object to itself
            are omitted.
    """
    steps = {-1: 0, 0: 0, 1: 1}
    arrows = []
    for step, senders in senders_by_step.items():
        for i, receiver in enumerate(receivers):
            for j, sender in enumerate(senders):
                if step == 0 and i == j:
                    continue
                weight = float(weights[i, steps[step], j])
                when = {-1: " before", 0: "", 1: " after"}[step]
                says = f"{sender.name}{when} to {receiver.name}: {weight:.2f}"
                (x1, y1), (x2, y2) = sender.centre, receiver.centre
                arrows.append(Arrow(kind=kind, x1=x1, y1=y1, x2=x2, y2=y2, weight=weight, says=says))
    return sorted(arrows, key=lambda arrow: -arrow.weight)[:ARROWS]
