"""Measure the modality gap: the distance between videos and texts in the space where they are compared."""

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
    """The modality gap between the clips of a split and their first captions.

    Attributes:
        distance: see ``centroid_distance``.
        clips: (N,) indices of the clips with captions.
        probe_right: (2, N) bool, see ``probe``.
        mixed: (N,) positions, see ``mixed_positions``.
    """

    distance: float
    clips: np.ndarray
    probe_right: np.ndarray
    mixed: np.ndarray


def measure(
    model: RetrievalModel, split: Split, videos: Embeddings, texts: Embeddings, groups: np.ndarray
) -> Gap | None:
    """Measure the gap between the embeddings of a split; return None if fewer than two clips have captions.

    Args:
        groups: (clips,) labels; all clips of a group are in one fold.
    """
    clips = np.array(split.with_captions)
    if len(clips) < 2:
        return None
    captions = np.array([split.own[clip][0] for clip in clips])
    video_vectors = concatenate_levels(model.pooled(videos), model.level_weights)[clips]
    text_vectors = concatenate_levels(model.pooled(texts), model.level_weights)[captions]
    return Gap(
        distance=centroid_distance(video_vectors, text_vectors),
        clips=clips,
        probe_right=probe(video_vectors, text_vectors, groups[clips]),
        mixed=mixed_positions(video_vectors, text_vectors, captions),
    )


def concatenate_levels(levels: dict[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Concatenate the levels of each item, so that a dot product is the weighted mean of the levels' cosines.

    Args:
        weights: weights of the mean; 1 for a level that has none.
    """
    weights = {level: weights.get(level, 1.0) for level in levels}
    total = sum(weights.values())
    parts = [(weight / total) ** 0.5 * normalize(levels[level].float(), dim=-1) for level, weight in weights.items()]
    return torch.cat(parts, dim=-1)


def centroid_distance(videos: Tensor, texts: Tensor) -> float:
    """Return the distance between the mean of the videos and the mean of the texts, at most 2.

    This is the modality gap of Liang et al. (NeurIPS 2022).

    Args:
        videos, texts: unit vectors, (N, D) and (C, D).
    """
    return float((videos.mean(0) - texts.mean(0)).norm())


def probe(videos: Tensor, texts: Tensor, groups: np.ndarray, penalty: float = 1e-3) -> np.ndarray:
    """Return (2, N) bool: whether a logistic regression classifies the video, and the text, of each pair correctly.

    The regression is fitted to convergence on the other folds (five-fold cross-validation), so it does not depend on
    the adversary of the training. At 50 percent, no plane separates the modalities.

    Args:
        videos, texts: (N, D), in pairs.
        groups: (N,) labels; all pairs of a group are in one fold.
        penalty: weight of the squared norm of the weights, for standardised features.
    """
    number = np.unique(groups, return_inverse=True)[1]
    fold = torch.from_numpy(np.random.default_rng(0).permutation(number.max() + 1)[number] % FOLDS).repeat(2)
    x = torch.cat([videos, texts]).float()
    truth = torch.cat([torch.ones(len(videos)), torch.zeros(len(texts))])
    right = torch.zeros(len(x), dtype=torch.bool)
    for test_fold in range(FOLDS):
        train = fold != test_fold
        if train.all() or not train.any():
            continue
        mean, std = x[train].mean(0), x[train].std(0) + 1e-6
        standard = (x - mean) / std
        plane = nn.Linear(x.shape[1], 1)
        nn.init.zeros_(plane.weight)
        nn.init.zeros_(plane.bias)
        optimizer = torch.optim.LBFGS(plane.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure(
            features: Tensor = standard[train],
            labels: Tensor = truth[train],
            plane: nn.Linear = plane,
            optimizer: torch.optim.LBFGS = optimizer,
        ) -> Tensor:
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(plane(features)[:, 0], labels)
            loss = loss + penalty * plane.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            right[~train] = (plane(standard[~train])[:, 0] > 0) == truth[~train].bool()
    return right.view(2, -1).numpy()


def mixed_positions(videos: Tensor, texts: Tensor, caption: np.ndarray) -> np.ndarray:
    """Return (N,) the position, from 1, of each text's video among all videos and all other texts.

    If texts are closer to texts than to videos, texts come first. Ties count with their mean position.

    Args:
        videos, texts: unit vectors (N, D), in pairs.
        caption: (N,) caption numbers. Other pairs with the same caption are excluded from the gallery of a query.
    """
    equal = torch.from_numpy(caption[:, None] == caption[None, :])
    to_videos, to_texts = texts @ videos.T, texts @ texts.T
    positive = to_videos.diagonal().unsqueeze(1).clone()
    to_videos = to_videos.masked_fill(equal, -torch.inf)
    gallery = torch.cat([to_videos, to_texts.masked_fill(equal, -torch.inf)], dim=1)
    return (1 + (gallery > positive).sum(1) + 0.5 * (gallery == positive).sum(1)).numpy()
