"""What every model offers: encode videos, encode texts, and scores of both by level. A model knows no loss.

Models are torch modules that know neither stores nor manifests: batches come from ``amex.train.data``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .layers import Standardize, in_float32

Embeddings = dict[str, Tensor]


class RetrievalModel(nn.Module):
    """A model of text-video retrieval.

    Attributes:
        known_levels: the names of all levels that models of this class may have.
        level_weights: by level its weight in the fused score.
        dims: by level the length of what ``pooled`` gives.
        whole: the level of videos and captions as wholes.
        concept_levels: by level the kind of concepts that the model tells; embeddings of both sides then hold
            ``LEVEL concepts``, how likely each is, (B, concepts).
        pairs_at_once: of how many captions and videos a score may be asked for in one call; it bounds the memory.
    """

    known_levels: ClassVar[tuple[str, ...]]
    level_weights: dict[str, float]
    dims: dict[str, int]
    whole: str
    pairs_at_once = 1 << 22

    def __init__(self) -> None:
        super().__init__()
        self.concept_levels: dict[str, str] = {}
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is, also one that has nothing to learn."""
        return self._place.device

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that ``level_scores`` gives, as the model is configured."""
        return tuple(self.level_weights)

    def to_device(self, batch: Any) -> Any:
        """A batch on the model's device, its floating-point numbers as float32.

        They travel as they are stored, mostly in half as many bytes. From pinned memory a copy to a GPU waits for
        nothing.
        """
        if isinstance(batch, Mapping):
            return {name: self.to_device(value) for name, value in batch.items()}
        moved = batch.to(self.device, non_blocking=True)
        return moved.float() if moved.is_floating_point() else moved

    def standardize(self, rows: Callable[[str], Tensor]) -> None:
        """Learns the scale of features where the model has one; ``rows`` gives training features of a stream."""
        for module in self.modules():
            if isinstance(module, Standardize):
                module.set(rows(module.stream))

    def start_from(self, options: Any) -> None:
        """Takes over the weights that the options name, before a run begins."""

    def slow_parameters(self) -> tuple[list[nn.Parameter], float]:
        """Parameters that learn at a share of the learning rate, and that share."""
        return [], 1.0

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """A batch of videos, stream by stream, to tensors whose first axis is the video."""
        raise NotImplementedError

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """A batch of captions to tensors whose first axis is the caption."""
        raise NotImplementedError

    def encode_pairs(self, batch: dict[str, Any]) -> tuple[Embeddings, Embeddings]:
        """The videos and the captions of a training batch."""
        return self.encode_videos(batch["video"]), self.encode_texts(batch["text"])

    def pooled(self, embeddings: Embeddings) -> dict[str, Tensor]:
        """(B, D) by level, of videos or of captions: each level in one vector; zeros where it holds nothing."""
        raise NotImplementedError

    def level_scores(self, videos: Embeddings, texts: Embeddings) -> dict[str, Tensor]:
        """(texts, videos) float32 of each level, also inside of autocast: how well each caption fits each video."""
        raise NotImplementedError

    def fuse(self, scores: Mapping[str, Tensor]) -> Tensor:
        """The fused score: the weighted sum of those of the levels."""
        return torch.stack([weight * scores[level] for level, weight in self.level_weights.items()]).sum(0)

    def score(self, videos: Embeddings, texts: Embeddings) -> Tensor:
        """(texts, videos) float32, fused."""
        return self.fuse(self.level_scores(videos, texts))


class SpacesModel(RetrievalModel):
    """A model whose levels are joint spaces: a level's score is a cosine. Embeddings are of length 1 in every space."""

    def pooled(self, embeddings: Embeddings) -> dict[str, Tensor]:
        return {space: embeddings[space] for space in self.level_weights}

    @in_float32
    def level_scores(self, videos: Embeddings, texts: Embeddings) -> dict[str, Tensor]:
        return {space: texts[space] @ videos[space].T for space in self.level_weights}

    @in_float32
    def score(self, videos: Embeddings, texts: Embeddings) -> Tensor:
        return self.flatten(texts) @ self.flatten(videos).T

    def flatten(self, embeddings: Embeddings) -> Tensor:
        """One vector an item, such that a score is a dot product: what a nearest-neighbour index wants."""
        return torch.cat(
            [math.sqrt(weight) * embeddings[space] for space, weight in self.level_weights.items()], dim=-1
        )
