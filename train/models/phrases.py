"""Phrases of captions, as HGR makes them and compares them to rows: what HGR and MCSAN share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..options import RoleGraphs
from ..rolegraphs import ROLES
from .layers import sequence_gru


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
