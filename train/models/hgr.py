"""HGR, Hierarchical Graph Reasoning (Chen, Zhao, Jin, Wu; CVPR 2020): captions and videos meet on three levels.

A caption is its whole, its verbs and its arguments, joined in a graph by their semantic roles; a video is its whole and
its frames, seen once for verbs and once for nouns. Numbers agree with the official program's; tests/test_hgr.py holds
it to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..losses import Ranking, gather_all
from ..options import HCMI, Inputs, RoleGraphs
from ..options import HGR as Options
from ..rolegraphs import ROLES
from .base import Embeddings, RetrievalModel
from .layers import scaler, sequence_gru
from .relation import ObjectGraph

LEVELS = ("sent", "verb", "noun")


class HGR(RetrievalModel):
    """See the module."""

    pairs_at_once = 1 << 14

    def __init__(self, options: Options, inputs: Inputs) -> None:
        super().__init__()
        self.options = options
        self.rows = Rows(options, inputs, LEVELS)
        self.frame_attention = nn.Linear(options.dim, 1)
        self.text = RoleGraphEncoder(options, inputs.words)
        self.rank = Ranking(options)

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """``sent`` (B, dim), ``verb`` and ``noun`` (B, T, dim), and the ``mask`` (B, T) of their rows."""
        seen, mask = self.rows(video)
        weights = masked_softmax(self.frame_attention(seen["sent"]).squeeze(-1), mask)
        return seen | {"sent": torch.einsum("bt,btd->bd", weights, seen["sent"]), "mask": mask}

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

    def level_scores(self, videos: Embeddings, texts: Embeddings) -> dict[str, Tensor]:
        """(texts, videos) of each level. A caption without a verb has 0 for every video on that level."""
        found = {"sent": normalize(texts["sent"], dim=-1) @ normalize(videos["sent"], dim=-1).T}
        for level in ("verb", "noun"):
            said = texts[level], texts[f"{level} mask"]
            found[level] = phrase_scores(videos[level], videos["mask"], *said, self.options)
        return {level: found[level] for level in self.options.levels}

    def score(self, videos: Embeddings, texts: Embeddings) -> Tensor:
        """The mean of the levels."""
        return torch.stack(list(self.level_scores(videos, texts).values())).mean(0)

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The ranking loss of the fused score."""
        videos = gather_all(self.encode_videos(batch["video"]))
        return {"loss_ranking": self.rank(self.score(videos, gather_all(self.encode_texts(batch["text"]))), batch)}


class Rows(nn.Module):
    """The rows of all streams one after the other, projected once a level.

    Args:
        levels: their names.
        project: whether they are; else features must have ``options.dim`` numbers.
    """

    def __init__(
        self, options: RoleGraphs | HCMI, inputs: Inputs, levels: Sequence[str], *, project: bool = True
    ) -> None:
        super().__init__()
        widths = {name: inputs.widths[name] for name in options.streams}
        self.scale = nn.ModuleDict()
        for name, width in widths.items():
            if name in inputs.objects:
                self.scale[name] = ObjectGraph(width, options, options.dropout)
                widths[name] = options.graph_dim
            else:
                self.scale[name] = scaler(name, width, options.scaling)
        self.levels = nn.ModuleDict(
            {
                level: nn.ModuleDict(
                    {
                        name: nn.Linear(width, options.dim) if project else nn.Identity()
                        for name, width in widths.items()
                    }
                )
                for level in levels
            }
        )
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, video: dict[str, dict[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """By level (B, T, dim), and the mask (B, T); an object in a frame is a row."""
        seen, masks = self.streams(video)
        joined = {level: torch.cat(list(x.values()), dim=1) for level, x in seen.items()}
        return joined, torch.cat(list(masks.values()), dim=1)

    def streams(self, video: dict[str, dict[str, Tensor]]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """What ``forward`` joins: by level and stream, and the masks by stream."""
        values, masks = {}, {}
        for name, scale in self.scale.items():
            stream = video[name]
            objects = stream["mask"].ndim == 3
            values[name] = scale(stream).flatten(1, 2) if objects else scale(stream["values"])
            masks[name] = stream["mask"].flatten(1)
        seen = {
            level: {name: self.dropout(project[name](x)) for name, x in values.items()}
            for level, project in self.levels.items()
        }
        return seen, masks


def phrase_scores(frames: Tensor, shown: Tensor, phrases: Tensor, said: Tensor, options: RoleGraphs) -> Tensor:
    """The mean over a caption's phrases of how well each fits the rows of a video that it attends to.

    Args:
        frames, shown: (V, T, dim) and (V, T).
        phrases, said: (C, P, dim) and (C, P).

    Returns:
        (C, V).
    """
    cosines = torch.einsum("cpd,vtd->cvpt", normalize(phrases, dim=-1), normalize(frames, dim=-1))
    shown = shown[None, :, None]
    attention = normalize(cosines.clamp(min=0).masked_fill(~shown, 0.0), dim=-1, eps=1e-10)
    weights = masked_softmax(options.sharpness * attention, shown)
    if options.fusion == "sim":
        fits = (weights * cosines).sum(-1)
    else:
        # The cosine of a phrase with the weighted mean of frames, without making that mean for every phrase and video:
        # its product with the phrase is the mean of products, its length comes from those between frames.
        lengths = frames.norm(dim=-1)
        products = (weights * cosines * lengths[None, :, None]).sum(-1)
        between = frames @ frames.transpose(1, 2)
        squared = torch.einsum("cvpt,vts,cvps->cvp", weights, between, weights)
        fits = products / squared.clamp(min=1e-18).sqrt()
    there = said[:, None].to(fits.dtype)
    return (fits * there).sum(-1) / there.sum(-1).clamp(min=1)


class RoleGraphEncoder(nn.Module):
    """Words by a bidirectional GRU, nodes pooled from their words and scaled by their roles, then the graph."""

    def __init__(self, options: RoleGraphs, words: int) -> None:
        super().__init__()
        dim = options.dim
        self.embedding = nn.Embedding(words, options.word_dim)
        nn.init.uniform_(self.embedding.weight, -1 / math.sqrt(options.word_dim), 1 / math.sqrt(options.word_dim))
        self.dropout = nn.Dropout(options.text_dropout)
        self.rnn = nn.GRU(options.word_dim, dim, options.text_layers, batch_first=True, bidirectional=True)
        for name, parameter in self.rnn.named_parameters():
            nn.init.orthogonal_(parameter) if "weight" in name else nn.init.zeros_(parameter)
        self.attention = nn.Linear(dim, 1)
        self.roles = nn.Embedding(len(ROLES), dim)
        self.layers = nn.ModuleList(RoleGraphLayer(dim, options.role_dropout) for _ in range(options.role_layers))

    def forward(self, text: dict[str, Tensor], related: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(B, P, dim): the caption, its verbs, its nouns.

        Args:
            related: makes further nodes of these, which ``edges`` knows too.
        """
        mask = text["mask"]
        out = sequence_gru(self.rnn, self.dropout(self.embedding(text["ids"])), mask)
        words = out.unflatten(-1, (2, -1)).mean(-2)  # of both directions
        whole = torch.einsum("bl,bld->bd", masked_softmax(self.attention(words).squeeze(-1), mask), words)
        phrases = text["nodes"][:, 1:]
        # Places without a phrase are zeros; no edge leads to them or from them.
        largest = words[:, None].masked_fill(~phrases[..., None], -math.inf).amax(2)
        largest = largest.masked_fill(~phrases.any(-1, keepdim=True), 0.0)
        nodes = torch.cat([whole[:, None], largest * self.roles(text["roles"])], dim=1)
        if related is not None:
            nodes = torch.cat([nodes, related(nodes)], dim=1)
        for layer in self.layers:
            nodes = layer(nodes, text["edges"])
        return nodes


class RoleGraphLayer(nn.Module):
    """Attention along the edges, added to the nodes."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(dim, dim // 2), nn.Linear(dim, dim // 2)
        self.context = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """(B, P, dim) nodes and (B, P, P) edges, from the column to the row, to (B, P, dim)."""
        fits = self.query(nodes) @ self.key(nodes).transpose(1, 2) / math.sqrt(nodes.shape[-1] // 2)
        return self.norm(nodes + self.dropout(self.context(masked_softmax(fits, edges) @ nodes)))


def masked_softmax(x: Tensor, mask: Tensor) -> Tensor:
    """Over the last axis where ``mask`` holds; zeros elsewhere, and where it holds nowhere."""
    return x.masked_fill(~mask, -1e4).softmax(-1) * mask
