"""HGR, Hierarchical Graph Reasoning (Chen, Zhao, Jin, Wu; CVPR 2020): captions and videos meet on three levels.

A caption is its whole, its verbs and its arguments, joined in a graph by their semantic roles; a video is its whole and
its frames, seen once for verbs and once for nouns. Numbers agree with the official program's; tests/test_hgr.py holds
it to that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..options import HGR as Options
from ..options import Inputs
from .base import Embeddings, RetrievalModel
from .layers import in_float32, masked_mean, unit
from .parts import phrase_scores
from .phrases import RoleGraphEncoder, masked_softmax
from .rows import Rows

LEVELS = ("sent", "verb", "noun")


class HGR(RetrievalModel):
    """See the module."""

    known_levels = LEVELS

    def __init__(self, options: Options, inputs: Inputs) -> None:
        super().__init__()
        self.options = options
        self.rows = Rows(options, inputs, LEVELS)
        self.frame_attention = nn.Linear(options.dim, 1)
        self.text = RoleGraphEncoder(options, inputs)
        self.level_weights = dict.fromkeys(options.levels, 1 / len(options.levels))
        self.dims = dict.fromkeys(options.levels, options.dim)
        self.whole = options.levels[0]

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """``sent`` (B, dim), ``verb`` and ``noun`` (B, T, dim), and the ``mask`` (B, T) of their rows."""
        seen, mask = self.rows(video)
        weights = masked_softmax(self.frame_attention(seen["sent"]).squeeze(-1), mask)
        return seen | {"sent": torch.einsum("bt,btd->bd", weights, seen["sent"]), "mask": mask}

    def edge_weights(self, video: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        return self.rows.edge_weights(video)

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """``sent`` (B, dim), ``verb`` and ``noun`` (B, phrases, dim) and their masks, of role graphs' tensors."""
        nodes = self.text(text)
        there = text["nodes"].any(-1)
        verbs = 1 + self.options.verbs
        return {
            "sent": nodes[:, 0],
            "verb": nodes[:, 1:verbs],
            "noun": nodes[:, verbs:],
            "verb mask": there[:, 1:verbs],
            "noun mask": there[:, verbs:],
        }

    @in_float32
    def level_scores(self, videos: Embeddings, texts: Embeddings) -> dict[str, Tensor]:
        """(texts, videos) of each level. A caption without a verb has 0 for every video on that level."""
        found = {"sent": unit(texts["sent"]) @ unit(videos["sent"]).T}
        for level in ("verb", "noun"):
            said = texts[level], texts[f"{level} mask"]
            found[level] = phrase_scores(videos[level], videos["mask"], *said, self.options)
        return {level: found[level] for level in self.options.levels}

    def pooled(self, embeddings: Embeddings) -> dict[str, Tensor]:
        mask = embeddings.get("mask")
        return {
            level: embeddings[level]
            if level == "sent"
            else masked_mean(embeddings[level], embeddings[f"{level} mask"] if mask is None else mask)
            for level in self.level_weights
        }
