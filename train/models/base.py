"""What every model offers: encode videos, encode texts, and scores of both by level. A model knows no loss.

Models are torch modules that know neither stores nor manifests: batches come from ``amex.train.data``.
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
    """A model of text-video retrieval.

    Attributes:
        known_levels: the names of all levels that models of this class may have.
        level_weights: by level its weight in the fused score.
        dims: by level the length of what ``pooled`` gives.
        whole: the level of videos and captions as wholes.
        concept_levels: by level the kind of concepts that the model tells; embeddings of both sides then hold
            ``LEVEL concepts``, how likely each is, (B, concepts).
    """

    known_levels: ClassVar[tuple[str, ...]]
    level_weights: dict[str, float]
    dims: dict[str, int]
    whole: str

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

    @property
    def probabilities(self) -> list[str]:
        """The streams that were found to hold probabilities, of those whose scale is learned without being told."""
        scales = [module for module in self.modules() if isinstance(module, Standardize)]
        return [scale.stream for scale in scales if scale.logit is None and scale.opens]

    @property
    def _readers(self) -> list[CaptionReader]:
        return [module for module in self.modules() if isinstance(module, CaptionReader)]

    def start(self, words: Sequence[str]) -> None:
        """Takes over the weights that the options name, before a run begins; ``words`` are the vocabulary, in order."""
        for reader in self._readers:
            reader.start(words)

    def slow_parameters(self) -> tuple[list[nn.Parameter], float]:
        """Parameters that learn at a share of the learning rate, and that share: those of a text tower."""
        for reader in self._readers:
            if reader.tower is not None:
                return list(reader.tower.parameters()), reader.options.tower_lr
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

    def edge_weights(self, video: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """By stream of objects that a graph joins, what its edges weigh: as of ``ObjectGraph.edge_weights``."""
        return {}

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
    """A model whose levels are joint spaces: a level's score is a cosine. Embeddings are of length 1 in every space.

    With ``hubs`` a score counts by how much it is above the mean of two: of its caption with the nearest training
    clips, and of its clip with the nearest training captions. That is CSLS (Conneau et al., ICLR 2018), on what was
    learned from. What is near to everything, a hub, then comes first nowhere. A score is a dot product still:
    embeddings hold two numbers more, under ``hub``.

    Attributes:
        hubs: how many nearest ones count; 0: scores are as they are.
    """

    MOST_REMEMBERED = 2048
    hubs = 0

    def __init__(self) -> None:
        super().__init__()
        for side in SIDES:
            self.register_buffer(f"known_{side}", torch.empty(0, 0))

    def make_room(self, videos: int, texts: int) -> None:
        """For so many training clips and captions, before a run begins."""
        width = sum(self.dims.values())
        for side, count in zip(SIDES, (videos, texts), strict=True):
            room = min(count, self.MOST_REMEMBERED) if self.hubs else 0
            setattr(self, f"known_{side}", torch.zeros(room, width, device=self.device))

    def remember(self, videos: Embeddings, texts: Embeddings) -> None:
        """Keeps training clips and captions as they are encoded now, as many as there is room for."""
        self.known_videos.copy_(self._spaces(videos))
        self.known_texts.copy_(self._spaces(texts))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for side in SIDES:  # made for as many as were remembered
            if (kept := state_dict.get(f"{prefix}known_{side}")) is not None:
                setattr(self, f"known_{side}", torch.empty_like(kept, device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def with_hub(self, embeddings: Embeddings, side: str) -> Embeddings:
        """Embeddings of ``videos`` or of ``texts`` with their ``hub``, where the model is not in training.

        Its product with another side's is minus half the mean of either's nearest scores.
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
        """One vector an item, such that a score is a dot product: what a nearest-neighbour index wants."""
        spaces = self._spaces(embeddings)
        return torch.cat([spaces, embeddings["hub"]], dim=-1) if "hub" in embeddings else spaces

    def _spaces(self, embeddings: Embeddings) -> Tensor:
        return torch.cat(
            [math.sqrt(weight) * embeddings[space] for space, weight in self.level_weights.items()], dim=-1
        )


SIDES = ("videos", "texts")
