"""Encode the phrases of captions from words and role graphs, as HGR does; shared by HGR and MCSAN."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..options import Inputs, RoleGraphs
from ..rolegraphs import ROLES
from .layers import Dropout, Present, sequence_gru
from .text import CaptionReader


class RoleGraphEncoder(nn.Module):
    """A bidirectional GRU over words; nodes pooled from their words and scaled by their roles; graph layers."""

    def __init__(self, options: RoleGraphs, inputs: Inputs) -> None:
        super().__init__()
        dim = options.dim
        self.reader = CaptionReader(options, inputs)
        self.dropout = Dropout(options.text_dropout)
        self.rnn = nn.GRU(self.reader.width, dim, options.text_layers, batch_first=True, bidirectional=True)
        for name, parameter in self.rnn.named_parameters():
            nn.init.orthogonal_(parameter) if "weight" in name else nn.init.zeros_(parameter)
        self.attention = nn.Linear(dim, 1)
        self.roles = nn.Embedding(len(ROLES), dim)
        self.layers = nn.ModuleList(RoleGraphLayer(dim, options.role_dropout) for _ in range(options.role_layers))

    def forward(self, text: dict[str, Tensor], related: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return nodes (B, P, dim): the caption, its verbs, its nouns.

        Args:
            related: computes further nodes from these; ``edges`` includes them.
        """
        mask = text["mask"]
        out = sequence_gru(self.rnn, self.dropout(self.reader(text)["values"]), mask)
        words = out.unflatten(-1, (2, -1)).mean(-2)  # mean of both directions
        sentence = torch.einsum("bl,bld->bd", masked_softmax(self.attention(words).squeeze(-1), mask), words)
        phrases = text["nodes"][:, 1:]
        places = Present(phrases.any(-1))
        parts = max_over_words(words, phrases, places) * self.roles(places.pick(text["roles"]))
        nodes = torch.cat([sentence[:, None], places.spread(parts)], dim=1)
        if related is not None:
            nodes = torch.cat([nodes, related(nodes)], dim=1)
        if self.layers:
            # Positions without a phrase remain zero, since no edge connects them. Further nodes have edges.
            present = text["edges"].any(-1)
            present[:, : phrases.shape[1] + 1] |= text["nodes"].any(-1)
            present[:, 0] = True
            places = Present(present)
            for layer in self.layers:
                nodes = layer(nodes, text["edges"], places)
        return nodes


def max_over_words(words: Tensor, phrases: Tensor, places: Present) -> Tensor:
    """Return (N, D) the maximum over the words of each present phrase, channel by channel.

    Args:
        words: (B, L, D).
        phrases: (B, P, L) bool, the words of each phrase.
        places: the N phrases that have words.
    """
    has, order = places.pick(phrases).sort(dim=1, descending=True, stable=True)
    most = max(1, int(has.sum(1).amax())) if len(has) else 1
    # Shorter phrases repeat their first word; no maximum changes.
    order = torch.where(has, order, order[:, :1])[:, :most]
    caption = places.rows // phrases.shape[1]
    picked = words.flatten(0, 1).index_select(0, (caption[:, None] * words.shape[1] + order).flatten())
    return picked.unflatten(0, order.shape).amax(1)


class RoleGraphLayer(nn.Module):
    """Attention along the edges, with a residual connection."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(dim, dim // 2), nn.Linear(dim, dim // 2)
        self.context = nn.Linear(dim, dim, bias=False)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, nodes: Tensor, edges: Tensor, places: Present) -> Tensor:
        """Update nodes (B, P, dim) along edges (B, P, P), which lead from the column to the row.

        Returns:
            (B, P, dim), zeros except at ``places``.
        """
        own = places.pick(nodes)
        query, key = places.spread(self.query(own)), places.spread(self.key(own))
        fits = query @ key.transpose(1, 2) / math.sqrt(nodes.shape[-1] // 2)
        messages = places.pick(masked_softmax(fits, edges) @ nodes)
        return places.spread(self.norm(own + self.dropout(self.context(messages))))


def masked_softmax(x: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis where ``mask`` is True; zeros elsewhere."""
    return x.masked_fill(~mask, -1e4).softmax(-1) * mask
