"""What a model finds for every caption of a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data import Split
from ..evaluate import SIDE, truth_of, twins_of
from ..metrics import Scores, positions, summary
from ..models import Embeddings, RetrievalModel
from ..search import weak_below

# How many clips of each query are kept, and how many captions tell whether one of them is weak.
DEPTH = 10
ORDINARY_TEXTS = 1000


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The gallery in the order of every query. A caption is a query once for each clip, and each time a clip has it.

    Attributes:
        captions: (queries,) which of the split's captions each is.
        own: (queries,) the clip that it belongs to.
        positions: (queries,) where that clip is, from 1; among equal scores the mean.
        own_scores: (queries,) float32.
        best: (queries, k) the first clips, ``k`` at most ``DEPTH``; ``scores`` and ``weak`` are of these.
        weak: whether more than a tenth of the split's captions fit that clip better than the query does.
        twins: (queries,) the clip of the split with the roles of the query's own clip exchanged; -1 for none.
        twin_scores: (queries,) of these.
        levels: by level the positions by its score alone; empty where the model has one level.
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
    """Ranks the clips of a split for all of its captions.

    Args:
        scores: of the split's different captions and its clips, as the model makes them of the embeddings.
        progress: called with how many more queries are ranked.
    """
    truth, asked = truth_of(split)
    own = np.array([clips[0] for clips in truth.videos])
    twins = twins_of(split.clips)[own]
    limits = _limits(scores)
    parts: dict[str, list[np.ndarray]] = {}
    for begin, block in scores.of_captions(asked).rows():
        rows, some = torch.arange(len(block)), slice(begin, begin + len(block))
        top = block.topk(min(DEPTH, len(split.clips)))
        best = top.indices.numpy()
        for name, x in {
            "positions": _positions(block, own[some]),
            "own_scores": block[rows, torch.from_numpy(own[some])].numpy(),
            "best": best,
            "scores": top.values.numpy(),
            "weak": top.values.numpy() < limits[best],
            "twin_scores": block[rows, torch.from_numpy(twins[some])].numpy(),
        }.items():
            parts.setdefault(name, []).append(x)
        progress(len(block))
    levels = _levels(model, videos, texts, np.array(asked), own) if len(model.levels) > 1 else {}
    joined = {name: np.concatenate(x) for name, x in parts.items()}
    return Ranking(captions=np.array(asked), own=own, twins=twins, levels=levels, **joined)


def positions_among(ranking: Ranking, scores: Scores, queries: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Where the clips of some queries are in a gallery of some clips, both by number."""
    if len(clips) == scores.shape[1]:
        return ranking.positions[queries]
    gallery = torch.from_numpy(clips)
    fewer = Scores(
        block=lambda captions, videos: scores.block(captions, slice(None))[:, gallery[videos]],
        shape=(scores.shape[0], len(clips)),
    )
    place = {int(clip): number for number, clip in enumerate(clips)}
    truth = [[place[int(clip)]] for clip in ranking.own[queries]]
    asked = fewer.of_captions(ranking.captions[queries].tolist())
    return np.concatenate(positions(asked, truth, "mean", text_to_video=True))


def recalls(places: np.ndarray) -> dict[str, float]:
    """R@K in percent, MedR and MeanR of positions."""
    return summary(list(places[:, None]))


def _levels(
    model: RetrievalModel, videos: Embeddings, texts: Embeddings, captions: np.ndarray, own: np.ndarray
) -> dict[str, np.ndarray]:
    """By level the positions by its score alone, all levels of a block at once."""
    found: dict[str, list[np.ndarray]] = {}
    clips = len(next(iter(videos.values())))
    for begin in range(0, len(captions), SIDE):
        some = slice(begin, begin + SIDE)
        asked = model.to_device({name: x[captions[some]] for name, x in texts.items()})
        parts: dict[str, list[Tensor]] = {}
        for first in range(0, clips, SIDE):
            gallery = model.to_device({name: x[first : first + SIDE] for name, x in videos.items()})
            with torch.inference_mode():
                for level, x in model.level_scores(gallery, asked).items():
                    parts.setdefault(level, []).append(x.cpu())
        for level, x in parts.items():
            found.setdefault(level, []).append(_positions(torch.cat(x, dim=1), own[some]))
    return {level: np.concatenate(x) for level, x in found.items()}


def _positions(scores: Tensor, own: np.ndarray) -> np.ndarray:
    return np.concatenate(positions(Scores.of(scores), [[int(clip)] for clip in own], "mean", text_to_video=True))


def _limits(scores: Scores) -> np.ndarray:
    """By clip the score below which a hit is weak: captions of the split, evenly drawn, are the ordinary texts."""
    count = scores.shape[0]
    drawn = np.linspace(0, count - 1, min(count, ORDINARY_TEXTS)).astype(int)
    return weak_below(scores.of_captions(drawn.tolist()).block(slice(None), slice(None)).numpy())
