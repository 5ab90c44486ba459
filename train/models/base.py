"""What every model offers: encode videos, encode texts, score; and the loss of a batch.

Models are torch modules that know neither stores nor manifests: batches come from ``amex.train.data``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn
from torch.optim import Optimizer

from .layers import Standardize, in_float32

Embeddings = dict[str, Tensor]


class ToDevice(BaseDataPreprocessor):
    """Takes a batch to the model's device, and floating-point numbers to float32 there.

    They travel as they are stored, mostly in half as many bytes. From pinned memory a copy to a GPU waits for nothing.
    """

    def __init__(self) -> None:
        super().__init__(non_blocking=True)

    def cast_data(self, data: Any) -> Any:
        data = super().cast_data(data)
        return data.float() if isinstance(data, Tensor) and data.is_floating_point() else data


class RetrievalModel(BaseModel):
    """A model of text-video retrieval, trained by mmengine's Runner.

    Attributes:
        progress: the share of the run that is over, set before every step.
        pairs_at_once: of how many captions and videos a score may be asked for in one call; it bounds the memory.
    """

    pairs_at_once = 1 << 22

    def __init__(self) -> None:
        super().__init__(data_preprocessor=ToDevice())
        self.progress = 0.0

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

    @property
    def own_optimizer(self) -> Optimizer | None:
        """An optimizer that the model steps by itself; a run that is to be resumed exactly keeps its state."""
        return None

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """A batch of videos, stream by stream, to tensors whose first axis is the video."""
        raise NotImplementedError

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """A batch of captions to tensors whose first axis is the caption."""
        raise NotImplementedError

    def encode_pairs(self, batch: dict[str, Any]) -> tuple[Embeddings, Embeddings]:
        """The videos and the captions of a training batch."""
        return self.encode_videos(batch["video"]), self.encode_texts(batch["text"])

    def score(self, videos: Embeddings, texts: Embeddings) -> Tensor:
        """(texts, videos) float32, also inside of autocast: how well each caption fits each video."""
        raise NotImplementedError

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Of a batch of pairs: what to minimise under names that begin with ``loss``, and other figures to log."""
        raise NotImplementedError

    def forward(self, mode: str = "loss", **batch: Any) -> dict[str, Tensor]:
        """mmengine's entry, in training alone: ``mode`` is always ``loss``."""
        return self.loss(batch)


class SpacesModel(RetrievalModel):
    """A model whose score is a weighted sum of cosines, one a joint space.

    Attributes:
        weights: by space, summing to 1. Embeddings are of length 1 in every space.
    """

    weights: dict[str, float]

    @in_float32
    def space_scores(self, videos: Embeddings, texts: Embeddings) -> dict[str, Tensor]:
        """(texts, videos) of each space."""
        return {space: texts[space] @ videos[space].T for space in self.weights}

    @in_float32
    def score(self, videos: Embeddings, texts: Embeddings) -> Tensor:
        return self.flatten(texts) @ self.flatten(videos).T

    def flatten(self, embeddings: Embeddings) -> Tensor:
        """One vector an item, such that a score is a dot product: what a nearest-neighbour index wants."""
        return torch.cat([math.sqrt(weight) * embeddings[space] for space, weight in self.weights.items()], dim=-1)
