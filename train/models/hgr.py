"""HGR, Hierarchical Graph Reasoning (Chen, Zhao, Jin, Wu; CVPR 2020): matching on three levels.

A caption consists of the sentence, its verbs and their arguments, in a graph of semantic roles. A video consists of its
mean and its frames, projected once for verbs and once for nouns. Results equal those of the official program
(tests/test_hgr.py).
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
    """The HGR model; see the module."""

    known_levels = LEVELS

    def __init__(self, options: Options, inputs: Inputs) -> None:
        super().__init__()
        self.options = options
        self.rows = Rows(options, inputs, LEVELS)
        self.frame_attention = nn.Linear(options.dim, 1)
        self.text = RoleGraphEncoder(options, inputs)
        self.level_weights = dict.fromkeys(options.levels, 1 / len(options.levels))
        self.dims = dict.fromkeys(options.levels, options.dim)
        self.main_level = options.levels[0]

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """Return ``sent`` (B, dim), ``verb`` and ``noun`` (B, T, dim), and the ``mask`` (B, T) of their rows."""
        rows, mask = self.rows(video)
        weights = masked_softmax(self.frame_attention(rows["sent"]).squeeze(-1), mask)
        return rows | {"sent": torch.einsum("bt,btd->bd", weights, rows["sent"]), "mask": mask}

    def edge_weights(self, video: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        return self.rows.edge_weights(video)

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """Return ``sent`` (B, dim), ``verb`` and ``noun`` (B, phrases, dim), and their masks, from role graphs."""
        nodes = self.text(text)
        present = text["nodes"].any(-1)
        verbs = 1 + self.options.verbs
        return {
            "sent": nodes[:, 0],
            "verb": nodes[:, 1:verbs],
            "noun": nodes[:, verbs:],
            "verb mask": present[:, 1:verbs],
            "noun mask": present[:, verbs:],
        }

    @in_float32
    def level_scores(self, videos: Embeddings, texts: Embeddings) -> dict[str, Tensor]:
        """Return (texts, videos) scores by level. A caption without verbs scores 0 on that level for every video."""
        scores = {"sent": unit(texts["sent"]) @ unit(videos["sent"]).T}
        for level in ("verb", "noun"):
            phrases, mask = texts[level], texts[f"{level} mask"]
            scores[level] = phrase_scores(videos[level], videos["mask"], phrases, mask, self.options)
        return {level: scores[level] for level in self.options.levels}

    def pooled(self, embeddings: Embeddings) -> dict[str, Tensor]:
        mask = embeddings.get("mask")
        return {
            level: embeddings[level]
            if level == "sent"
            else masked_mean(embeddings[level], embeddings[f"{level} mask"] if mask is None else mask)
            for level in self.level_weights
        }
