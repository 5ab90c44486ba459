"""How far apart videos and texts lie in the space where they are compared: what an adversary is to close."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from .data import Split
from .models import Embeddings, RetrievalModel

FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far apart the clips of a split and their first captions lie.

    Attributes:
        distance: see ``centroid_distance``.
        clips: (N,) the clips that have captions.
        told: (2, N) bool, see ``probe``.
        mixed: (N,) positions, see ``mixed_positions``.
    """

    distance: float
    clips: np.ndarray
    told: np.ndarray
    mixed: np.ndarray


def measure(
    model: RetrievalModel, split: Split, videos: Embeddings, texts: Embeddings, groups: np.ndarray
) -> Gap | None:
    """The gap between what ``encode`` made of a split; None where fewer than two clips have captions.

    Args:
        groups: (clips,) labels; clips of a group are in one fold.
    """
    clips = np.array(split.with_captions)
    if len(clips) < 2:
        return None
    captions = np.array([split.own[clip][0] for clip in clips])
    seen = side_by_side(model.pooled(videos), model.level_weights)[clips]
    said = side_by_side(model.pooled(texts), model.level_weights)[captions]
    return Gap(
        distance=centroid_distance(seen, said),
        clips=clips,
        told=probe(seen, said, groups[clips]),
        mixed=mixed_positions(seen, said, captions),
    )


def side_by_side(levels: dict[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """One vector an item from one a level, such that dot products are the mean of the levels' cosines.

    Args:
        weights: of the mean; a level without one has 1.
    """
    given = {level: weights.get(level, 1.0) for level in levels}
    total = sum(given.values())
    parts = [(weight / total) ** 0.5 * normalize(levels[level].float(), dim=-1) for level, weight in given.items()]
    return torch.cat(parts, dim=-1)


def centroid_distance(videos: Tensor, texts: Tensor) -> float:
    """Between the mean of the videos and the mean of the texts, (N, D) and (C, D) of length 1: at most 2.

    The modality gap of Liang et al. (NeurIPS 2022).
    """
    return float((videos.mean(0) - texts.mean(0)).norm())


def probe(videos: Tensor, texts: Tensor, groups: np.ndarray, penalty: float = 1e-3) -> np.ndarray:
    """(2, N) bool: of which pairs a new logistic regression tells that the video is one, and that the text is none.

    Five-fold cross-validation: the regression is fitted anew on the other folds, until it converges, so that it does
    not depend on any classifier of the training. At 50 percent the modalities cannot be told apart by a plane.

    Args:
        videos, texts: (N, D), of pairs.
        groups: (N,) labels; what belongs together is in one fold.
        penalty: on the squared norm of the weights, which are those of standardised features.
    """
    number = np.unique(groups, return_inverse=True)[1]
    fold = torch.from_numpy(np.random.default_rng(0).permutation(number.max() + 1)[number] % FOLDS).repeat(2)
    x = torch.cat([videos, texts]).float()
    truth = torch.cat([torch.ones(len(videos)), torch.zeros(len(texts))])
    right = torch.zeros(len(x), dtype=torch.bool)
    for held in range(FOLDS):
        chosen = fold != held
        if chosen.all() or not chosen.any():
            continue
        mean, std = x[chosen].mean(0), x[chosen].std(0) + 1e-6
        standard = (x - mean) / std
        plane = nn.Linear(x.shape[1], 1)
        nn.init.zeros_(plane.weight)
        nn.init.zeros_(plane.bias)
        optimizer = torch.optim.LBFGS(plane.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure(
            seen: Tensor = standard[chosen],
            wanted: Tensor = truth[chosen],
            plane: nn.Linear = plane,
            optimizer: torch.optim.LBFGS = optimizer,
        ) -> Tensor:
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(plane(seen)[:, 0], wanted) + penalty * plane.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            right[~chosen] = (plane(standard[~chosen])[:, 0] > 0) == truth[~chosen].bool()
    return right.view(2, -1).numpy()


def mixed_positions(videos: Tensor, texts: Tensor, caption: np.ndarray) -> np.ndarray:
    """(N,) where each text finds its video, from 1, among all videos and all other texts.

    Where texts lie closer to texts than to videos, texts come first. Ties count at their mean.

    Args:
        videos, texts: (N, D) of length 1, of pairs.
        caption: (N,) numbers of the captions; other pairs with the query's own are left out of its gallery.
    """
    equal = torch.from_numpy(caption[:, None] == caption[None, :])
    to_videos, to_texts = texts @ videos.T, texts @ texts.T
    wanted = to_videos.diagonal().unsqueeze(1).clone()
    to_videos = to_videos.masked_fill(equal, -torch.inf)
    gallery = torch.cat([to_videos, to_texts.masked_fill(equal, -torch.inf)], dim=1)
    return (1 + (gallery > wanted).sum(1) + 0.5 * (gallery == wanted).sum(1)).numpy()
