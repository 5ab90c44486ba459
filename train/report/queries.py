"""The ranking of a split's clips for every caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data import Split
from ..evaluate import BLOCK, truth_of, twins_of
from ..metrics import Scores, positions, summary
from ..models import Embeddings, RetrievalModel
from ..search import weak_below

# How many clips of each query to store, and how many captions to use to tell whether one of them is weak.
DEPTH = 10
ORDINARY_TEXTS = 1000


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The gallery in the order of every query. A caption is one query for each clip, and for each repetition in a clip.

    Attributes:
        captions: (queries,) index of the caption in the split.
        own: (queries,) the clip that the caption belongs to.
        positions: (queries,) position of that clip from 1; the mean of tied positions.
        own_scores: (queries,) score of that clip, float32.
        best: (queries, k) the first clips, ``k`` at most ``DEPTH``.
        scores: (queries, k) their scores.
        weak: (queries, k) whether more than a tenth of the split's captions fit the clip better than the query does.
        twins: (queries,) the relation-swapped twin of the query's clip; -1 for none.
        twin_scores: (queries,) the scores of the twins.
        levels: positions by the score of each level alone; empty if the model has one level.
    """

    captions: np.ndarray
    own: np.ndarray
    positions: np.ndarray
    own_scores: np.ndarray
    best: np.ndarray
    scores: np.ndarray
    weak: np.ndarray
    twins: np.ndarray
    twin_scores: np.ndarray
    levels: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.own)


def rank(
    model: RetrievalModel,
    split: Split,
    videos: Embeddings,
    texts: Embeddings,
    scores: Scores,
    progress: Callable[[int], None] = lambda done: None,
) -> Ranking:
    """Rank the clips of a split for all its captions.

    Args:
        scores: the model's scores of the split's different captions and its clips.
        progress: receives the number of newly ranked queries.
    """
    truth, query_captions = truth_of(split)
    own = np.array([clips[0] for clips in truth.videos])
    twins = twins_of(split.clips)[own]
    limits = _limits(scores)
    parts: dict[str, list[np.ndarray]] = {}
    for begin, block in scores.of_captions(query_captions).rows():
        rows, part = torch.arange(len(block)), slice(begin, begin + len(block))
        top = block.topk(min(DEPTH, len(split.clips)))
        best = top.indices.numpy()
        for name, x in {
            "positions": _positions(block, own[part]),
            "own_scores": block[rows, torch.from_numpy(own[part])].numpy(),
            "best": best,
            "scores": top.values.numpy(),
            "weak": top.values.numpy() < limits[best],
            "twin_scores": block[rows, torch.from_numpy(twins[part])].numpy(),
        }.items():
            parts.setdefault(name, []).append(x)
        progress(len(block))
    levels = _levels(model, videos, texts, np.array(query_captions), own) if len(model.levels) > 1 else {}
    columns = {name: np.concatenate(x) for name, x in parts.items()}
    return Ranking(captions=np.array(query_captions), own=own, twins=twins, levels=levels, **columns)


def positions_among(ranking: Ranking, scores: Scores, queries: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Return the positions of some queries' clips in a gallery of some clips, both given by number."""
    if len(clips) == scores.shape[1]:
        return ranking.positions[queries]
    gallery = torch.from_numpy(clips)
    subset = Scores(
        block=lambda captions, videos: scores.block(captions, slice(None))[:, gallery[videos]],
        shape=(scores.shape[0], len(clips)),
    )
    place = {int(clip): number for number, clip in enumerate(clips)}
    truth = [[place[int(clip)]] for clip in ranking.own[queries]]
    query_scores = subset.of_captions(ranking.captions[queries].tolist())
    return np.concatenate(positions(query_scores, truth, "mean", text_to_video=True))


def recalls(places: np.ndarray) -> dict[str, float]:
    """Compute R@K in percent, MedR and MeanR from positions."""
    return summary(list(places[:, None]))


def _levels(
    model: RetrievalModel, videos: Embeddings, texts: Embeddings, captions: np.ndarray, own: np.ndarray
) -> dict[str, np.ndarray]:
    """Return positions by the score of each level alone; each block computes all levels at once."""
    levels: dict[str, list[np.ndarray]] = {}
    clips = len(next(iter(videos.values())))
    for begin in range(0, len(captions), BLOCK):
        part = slice(begin, begin + BLOCK)
        queries = model.to_device({name: x[captions[part]] for name, x in texts.items()})
        parts: dict[str, list[Tensor]] = {}
        for first in range(0, clips, BLOCK):
            gallery = model.to_device({name: x[first : first + BLOCK] for name, x in videos.items()})
            with torch.inference_mode():
                for level, x in model.level_scores(gallery, queries).items():
                    parts.setdefault(level, []).append(x.cpu())
        for level, x in parts.items():
            levels.setdefault(level, []).append(_positions(torch.cat(x, dim=1), own[part]))
    return {level: np.concatenate(x) for level, x in levels.items()}


def _positions(scores: Tensor, own: np.ndarray) -> np.ndarray:
    return np.concatenate(positions(Scores.of(scores), [[int(clip)] for clip in own], "mean", text_to_video=True))


def _limits(scores: Scores) -> np.ndarray:
    """Return for each clip the score below which a hit is weak; evenly drawn captions are the ordinary texts."""
    count = scores.shape[0]
    sample = np.linspace(0, count - 1, min(count, ORDINARY_TEXTS)).astype(int)
    return weak_below(scores.of_captions(sample.tolist()).block(slice(None), slice(None)).numpy())
