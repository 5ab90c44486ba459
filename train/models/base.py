"""The interface of all models: encode videos, encode texts, and score them by level. Models contain no losses.

Models are torch modules that know neither stores nor manifests: ``amex.train.data`` makes their batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .layers import Standardize, in_float32
from .text import CaptionReader

Embeddings = dict[str, Tensor]


class RetrievalModel(nn.Module):
    """A text-video retrieval model.

    Attributes:
        known_levels: all levels that models of this class may have.
        level_weights: weight of each level in the fused score.
        dims: dimension of the vectors of ``pooled``, by level.
        main_level: the level that represents complete videos and captions.
        concept_levels: kind of concepts that the model predicts, by level. The embeddings of videos and texts then
            hold ``LEVEL concepts``, (B, concepts) probabilities.
    """

    known_levels: ClassVar[tuple[str, ...]]
    level_weights: dict[str, float]
    dims: dict[str, int]
    main_level: str

    def __init__(self) -> None:
        super().__init__()
        self.concept_levels: dict[str, str] = {}
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the model, even if it has no parameters."""
        return self._place.device

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels of ``level_scores`` in this configuration."""
        return tuple(self.level_weights)

    def to_device(self, batch: Any) -> Any:
        """Move a batch to the model's device and convert floating-point values to float32.

        The conversion happens on the device, since stored types are mostly half as large. Copies from pinned memory to
        a GPU are asynchronous.
        """
        if isinstance(batch, Mapping):
            return {name: self.to_device(value) for name, value in batch.items()}
        moved = batch.to(self.device, non_blocking=True)
        return moved.float() if moved.is_floating_point() else moved

    def standardize(self, rows: Callable[[str], Tensor]) -> None:
        """Fit the feature scaling, if the model has any; ``rows`` returns training features of a stream."""
        for module in self.modules():
            if isinstance(module, Standardize):
                module.set(rows(module.stream))

    @property
    def probabilities(self) -> list[str]:
        """Streams whose scaling was automatically found to be that of probabilities."""
        scales = [module for module in self.modules() if isinstance(module, Standardize)]
        return [scale.stream for scale in scales if scale.logit is None and scale.opens]

    @property
    def _readers(self) -> list[CaptionReader]:
        return [module for module in self.modules() if isinstance(module, CaptionReader)]

    def start(self, words: Sequence[str]) -> None:
        """Load the initial weights that the options name; ``words`` is the vocabulary in order."""
        for reader in self._readers:
            reader.start(words)

    def slow_parameters(self) -> tuple[list[nn.Parameter], float]:
        """Return the parameters of a text tower, and their learning rate relative to the others."""
        for reader in self._readers:
            if reader.tower is not None:
                return list(reader.tower.parameters()), reader.options.tower_lr
        return [], 1.0

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """Encode a batch of videos, given by stream; the first axis of each result is the video."""
        raise NotImplementedError

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """Encode a batch of captions; the first axis of each result is the caption."""
        raise NotImplementedError

    def encode_pairs(self, batch: dict[str, Any]) -> tuple[Embeddings, Embeddings]:
        """Encode the videos and the captions of a training batch."""
        return self.encode_videos(batch["video"]), self.encode_texts(batch["text"])

    def edge_weights(self, video: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Return the edge weights of the graph of each object stream; see ``ObjectGraph.edge_weights``."""
        return {}

    def pooled(self, embeddings: Embeddings) -> dict[str, Tensor]:
        """Return one vector (B, D) per level, of videos or captions; zeros where a level is empty."""
        raise NotImplementedError

    def level_scores(self, videos: Embeddings, texts: Embeddings) -> dict[str, Tensor]:
        """Score all captions against all videos: (texts, videos) float32 by level, even under autocast."""
        raise NotImplementedError

    def fuse(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return the fused score: the weighted sum of the levels."""
        return torch.stack([weight * scores[level] for level, weight in self.level_weights.items()]).sum(0)

    def score(self, videos: Embeddings, texts: Embeddings) -> Tensor:
        """Return the fused scores, (texts, videos) float32."""
        return self.fuse(self.level_scores(videos, texts))


class SpacesModel(RetrievalModel):
    """A model whose levels are joint spaces: the score of a level is a cosine, embeddings are unit vectors.

    With ``hubs``, two means are subtracted from a score: the mean similarity of its caption to the nearest training
    clips, and of its clip to the nearest training captions. This is CSLS (Conneau et al., ICLR 2018) on the training
    data. It prevents hubs, which are close to everything, from ranking first everywhere. The score remains a dot
    product: embeddings hold two more components, ``hub``.

    Attributes:
        hubs: number of nearest neighbours; 0: no correction.
    """

    MAX_NEIGHBOURS = 2048
    hubs = 0

    def __init__(self) -> None:
        super().__init__()
        for side in SIDES:
            self.register_buffer(f"known_{side}", torch.empty(0, 0))

    def allocate_neighbours(self, videos: int, texts: int) -> None:
        """Allocate buffers for the embeddings of training clips and captions, before a run begins."""
        width = sum(self.dims.values())
        for side, count in zip(SIDES, (videos, texts), strict=True):
            size = min(count, self.MAX_NEIGHBOURS) if self.hubs else 0
            setattr(self, f"known_{side}", torch.zeros(size, width, device=self.device))

    def store_neighbours(self, videos: Embeddings, texts: Embeddings) -> None:
        """Store the current embeddings of training clips and captions."""
        self.known_videos.copy_(self._spaces(videos))
        self.known_texts.copy_(self._spaces(texts))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for side in SIDES:  # allocate as many as the checkpoint holds
            if (stored := state_dict.get(f"{prefix}known_{side}")) is not None:
                setattr(self, f"known_{side}", torch.empty_like(stored, device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def with_hub(self, embeddings: Embeddings, side: str) -> Embeddings:
        """Add ``hub`` to embeddings of ``videos`` or ``texts``, except in training.

        The product of the ``hub`` of a text and a video is minus half the sum of their means of nearest scores.
        """
        others = self.known_texts if side == "videos" else self.known_videos
        if self.training or not self.hubs or not len(others):
            return embeddings
        with torch.autocast(others.device.type, enabled=False):
            scores = self._spaces({name: x.float() for name, x in embeddings.items()}) @ others.T
            near = -scores.topk(min(self.hubs, len(others)), dim=1).values.mean(1) / 2
        ones = torch.ones_like(near)
        return embeddings | {"hub": torch.stack([near, ones] if side == "videos" else [ones, near], dim=1)}

    def pooled(self, embeddings: Embeddings) -> dict[str, Tensor]:
        return {space: embeddings[space] for space in self.level_weights}

    @in_float32
    def level_scores(self, videos: Embeddings, texts: Embeddings) -> dict[str, Tensor]:
        return {space: texts[space] @ videos[space].T for space in self.level_weights}

    @in_float32
    def score(self, videos: Embeddings, texts: Embeddings) -> Tensor:
        return self.flatten(texts) @ self.flatten(videos).T

    def flatten(self, embeddings: Embeddings) -> Tensor:
        """Concatenate all spaces into one vector per item, so that a score is a dot product, for an index."""
        spaces = self._spaces(embeddings)
        return torch.cat([spaces, embeddings["hub"]], dim=-1) if "hub" in embeddings else spaces

    def _spaces(self, embeddings: Embeddings) -> Tensor:
        return torch.cat(
            [math.sqrt(weight) * embeddings[space] for space, weight in self.level_weights.items()], dim=-1
        )


SIDES = ("videos", "texts")
