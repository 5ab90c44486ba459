"""What the models are made of: masked pooling, sequence and text encoders. Padding never changes what comes out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Pooling = Literal["mean", "attention"]
Sequence = Literal["none", "gru", "transformer"]
Scaling = Literal["none", "layernorm", "standard", "logit"]


def in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that takes embeddings and computes in float32, also inside of autocast.

    Scores of neighbours in a ranking differ by less than the two or three digits that bfloat16 has.
    """

    @functools.wraps(method)
    def computed(self: Any, videos: dict[str, Tensor], *others: Any) -> Any:
        device = next(iter(videos.values())).device.type
        with torch.autocast(device, enabled=False):
            return method(self, _float32(videos), *(_float32(other) for other in others))

    return computed


def _float32(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _float32(x) for name, x in value.items()}
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def unit(x: Tensor) -> Tensor:
    """Vectors along the last axis, made to have length 1, in float32."""
    return normalize(x.float(), dim=-1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over axis 1 of ``x`` (B, L, D) where ``mask`` (B, L) holds; zeros where it holds nowhere."""
    weight = mask.unsqueeze(-1).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def sequence_gru(gru: nn.GRU, x: Tensor, mask: Tensor) -> Tensor:
    """What a GRU makes of sequences (B, L, D) whose elements, (B, L), come first; zeros behind them."""
    lengths = mask.sum(1).clamp(min=1).cpu()
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, _ = pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=x.shape[1])
    return out


class AttentionPool(nn.Module):
    """A softmax over the sequence for every channel, from a small network that sees the elements.

    The attention-aware pooling of COOT (Ging et al., NeurIPS 2020), which BiC-Net took over. With ``pooling="mean"``
    there is nothing to learn.
    """

    def __init__(self, dim: int, pooling: Pooling = "attention", dropout: float = 0.0) -> None:
        super().__init__()
        self.scores = None
        if pooling == "attention":
            self.scores = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) and (B, L) to (B, D)."""
        if self.scores is None:
            return masked_mean(x, mask)
        # A finite bound instead of -inf: a sequence without elements then has weights, not NaN, and they meet zeros.
        scores = self.scores(x).masked_fill(~mask.unsqueeze(-1), -1e4)
        return (scores.softmax(dim=1) * x * mask.unsqueeze(-1)).sum(1)


class SequenceEncoder(nn.Module):
    """Lets the elements of a sequence see each other: not at all, by a bidirectional GRU, or by a transformer layer."""

    def __init__(self, dim: int, kind: Sequence, dropout: float, longest: int = 512) -> None:
        super().__init__()
        self.kind = kind
        if kind == "gru":
            self.net: nn.Module = nn.GRU(dim, (dim + 1) // 2, batch_first=True, bidirectional=True)
            self.out = nn.Linear(2 * ((dim + 1) // 2), dim)
        elif kind == "transformer":
            heads = max(h for h in (1, 2, 4, 8) if dim % h == 0)
            self.net = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout, "gelu", batch_first=True)
            self.places = nn.Embedding(longest, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) and (B, L), whose elements come first, to (B, L, D)."""
        if self.kind == "gru":
            return x + self.out(sequence_gru(self.net, x, mask))
        if self.kind == "transformer":
            places = torch.arange(x.shape[1], device=x.device).clamp(max=self.places.num_embeddings - 1)
            # Attention over nothing is NaN: where no element is, all are let through and masked again by the pooling.
            hidden = ~mask & mask.any(1, keepdim=True)
            return self.net(x + self.places(places), src_key_padding_mask=hidden)
        return x


class Standardize(nn.Module):
    """Every number of a stream's features to mean 0 and deviation 1 over the training clips.

    Args:
        logit: takes the log-odds first. Of probabilities, those near zero then say as much as those near one.
    """

    def __init__(self, stream: str, width: int, *, logit: bool = False) -> None:
        super().__init__()
        self.stream, self.logit = stream, logit
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def set(self, rows: Tensor) -> None:
        """Learns the scale from (rows, width) of training features."""
        std, mean = torch.std_mean(self._opened(rows), dim=0)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return ((self._opened(x) - self.mean) / self.std).clamp(-10, 10)

    def _opened(self, x: Tensor) -> Tensor:
        return torch.logit(x.float(), eps=1e-6) if self.logit else x


def scaler(stream: str, width: int, scaling: Scaling) -> nn.Module:
    """What a stream's features go through before they are projected."""
    if scaling == "none":
        return nn.Identity()
    return nn.LayerNorm(width) if scaling == "layernorm" else Standardize(stream, width, logit=scaling == "logit")


class TextEncoder(nn.Module):
    """Captions to vectors: token features of a BERT, or words of a vocabulary, a sequence encoder, pooling, heads.

    Args:
        width: of the token features; with ``words`` of the word vectors.
        words: size of the vocabulary, or 0 where there is none.
        bag: beside token features the sum of word vectors, over the root of their number, is added to every head,
            before it is normalised. In training whole words drop out.
        heads: names of the vectors to make, each by a sequence encoder, pooling and projection of its own. One name: a
            vector that all spaces share.
    """

    def __init__(
        self,
        width: int,
        dim: int,
        *,
        words: int,
        bag: bool,
        sequence: Sequence,
        pooling: Pooling,
        heads: list[str],
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0) if words and not bag else None
        self.bags = nn.ModuleDict({head: nn.Embedding(words, dim, padding_idx=0) for head in heads if bag})
        for embedding in self.bags.values():  # words begin as a correction to what the tokens say
            nn.init.zeros_(embedding.weight)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim), nn.Dropout(dropout))
        self.sequences = nn.ModuleDict({head: SequenceEncoder(dim, sequence, dropout) for head in heads})
        self.pools = nn.ModuleDict({head: AttentionPool(dim, pooling, dropout) for head in heads})
        self.heads = nn.ModuleDict({head: nn.Linear(dim, dim) for head in heads})

    def forward(self, text: dict[str, Tensor]) -> dict[str, Tensor]:
        """``values`` (B, L, width) or ``ids`` (B, L), and ``mask`` (B, L), to one (B, dim) of length 1 a head.

        With a bag of words ``ids`` (B, W) are there beside ``values``; 0 is padding.
        """
        mask = text["mask"]
        x = text["values"] if self.embedding is None else self.embedding(text["ids"])
        x = self.project(x)
        found = {}
        for head, sequence in self.sequences.items():
            vector = self.heads[head](self.pools[head](sequence(x, mask), mask))
            if head in self.bags:
                there = (text["ids"] != 0).unsqueeze(-1).to(vector.dtype)
                words = self.bags[head](text["ids"]) * self.dropout(there)
                # Times the root of their length, as a transformer's (Vaswani et al., NeurIPS 2017): a word is in few
                # captions and has to learn from few steps.
                vector = vector + words.sum(1) * (words.shape[-1] / there.sum(1).clamp(min=1)).sqrt()
            found[head] = unit(vector)
        return found


class GlobalBranch(nn.Module):
    """Clip and frame features of any set of streams to one vector: each stream projected and pooled, then fused."""

    def __init__(
        self,
        widths: dict[str, int],
        dim: int,
        *,
        scaling: Scaling,
        hidden: int,
        sequence: Sequence,
        pooling: Pooling,
        dropout: float,
    ) -> None:
        super().__init__()
        self.project = nn.ModuleDict()
        for name, width in widths.items():
            layers: list[nn.Module] = [nn.Linear(width, dim), nn.Dropout(dropout)]
            if hidden:
                layers = [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim)]
            self.project[name] = nn.Sequential(scaler(name, width, scaling), *layers)
        self.sequence = nn.ModuleDict({name: SequenceEncoder(dim, sequence, dropout) for name in widths})
        self.pool = nn.ModuleDict({name: AttentionPool(dim, pooling, dropout) for name in widths})
        self.fuse = nn.Linear(dim * len(widths), dim)

    def forward(self, video: dict[str, dict[str, Tensor]]) -> Tensor:
        """Of each stream ``values`` (B, R, D) and ``mask`` (B, R); returns (B, dim), of length 1."""
        pooled = []
        for name, project in self.project.items():
            mask = video[name]["mask"]
            pooled.append(self.pool[name](self.sequence[name](project(video[name]["values"]), mask), mask))
        return unit(self.fuse(torch.cat(pooled, dim=-1)))
