"""What the models are made of: masked pooling, sequence and text encoders. Padding never changes what comes out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Pooling = Literal["mean", "attention"]
Sequence = Literal["none", "gru", "transformer"]
Scaling = Literal["auto", "none", "layernorm", "standard", "logit"]


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


def attention_heads(dim: int) -> int:
    """How many heads an attention over vectors of this length has: eight, or as many as divide it."""
    return math.gcd(dim, 8)


def sequence_gru(gru: nn.GRU, x: Tensor, mask: Tensor) -> Tensor:
    """What a GRU makes of sequences (B, L, D) whose elements, (B, L), come first; zeros behind them."""
    if torch.onnx.is_in_onnx_export():
        return _onnx_gru(gru, x, mask)
    lengths = mask.sum(1).clamp(min=1).cpu()
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, _ = pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=x.shape[1])
    return out


def _onnx_gru(gru: nn.GRU, x: Tensor, mask: Tensor) -> Tensor:
    """``sequence_gru`` of one layer in both directions as the operator of ONNX, which knows the lengths of sequences.

    torch would write a graph for sequences of one length. What is returned counts in a graph alone.
    """
    size = gru.hidden_size
    ways = ("", "_reverse")

    def weights(name: str) -> Tensor:
        # torch has the reset gate before the update gate, ONNX after it.
        parts = [getattr(gru, f"{name}_l0{way}").unflatten(0, (3, size)) for way in ways]
        return torch.stack([part[[1, 0, 2]].flatten(0, 1) for part in parts])

    biases = torch.cat([weights("bias_ih"), weights("bias_hh")], dim=1)
    out = torch.onnx.ops.symbolic(
        "GRU",
        (x.transpose(0, 1), weights("weight_ih"), weights("weight_hh"), biases, mask.sum(1).to(torch.int32)),
        {"direction": "bidirectional", "hidden_size": size, "linear_before_reset": 1},
        dtype=x.dtype,
        shape=(x.shape[1], len(ways), x.shape[0], size),
    )
    return out.permute(2, 0, 1, 3).flatten(2)


class Present:
    """The places of a padded grid that hold something: layers run over these alone, as rows of one matrix.

    Args:
        mask: (B, P) bool.
    """

    def __init__(self, mask: Tensor) -> None:
        self.batch, self.places = mask.shape
        self.rows = mask.flatten().nonzero().squeeze(1)

    def pick(self, grid: Tensor) -> Tensor:
        """(B, P, ...) to (N, ...)."""
        return grid.flatten(0, 1).index_select(0, self.rows)

    def spread(self, rows: Tensor) -> Tensor:
        """(N, ...) to (B, P, ...), zeros elsewhere."""
        grid = rows.new_zeros(self.batch * self.places, *rows.shape[1:])
        return grid.index_copy(0, self.rows, rows).unflatten(0, (self.batch, self.places))


class Dropout(nn.Dropout):
    """torch's, with chance of 16 bits a number on a CPU: torch draws 32 bits for each, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = bits[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))


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
            self.net = nn.TransformerEncoderLayer(dim, attention_heads(dim), 2 * dim, dropout, "gelu", batch_first=True)
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
        logit: takes the log-odds first. Of probabilities, those near zero then say as much as those near one. None:
            where the training features are probabilities, most of them near zero.
    """

    def __init__(self, stream: str, width: int, *, logit: bool | None = False) -> None:
        super().__init__()
        self.stream, self.logit = stream, logit
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        if logit is None:
            self.register_buffer("probable", torch.tensor(0.0))  # a number, since processes exchange their mean

    @property
    def opens(self) -> bool:
        """Whether log-odds are taken."""
        return bool(self.probable) if self.logit is None else self.logit

    def set(self, rows: Tensor) -> None:
        """Learns the scale from (rows, width) of training features."""
        if self.logit is None:
            # Features of length 1 are between 0 and 1 too where a network ends in a ReLU, but none is near 1.
            inside = rows.min() >= 0 and 0.9 < rows.max() <= 1
            self.probable.fill_(float(inside and (rows < 0.1).float().mean() > 0.5))
        std, mean = torch.std_mean(self._opened(rows), dim=0)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return ((self._opened(x) - self.mean) / self.std).clamp(-10, 10)

    def _opened(self, x: Tensor) -> Tensor:
        return torch.logit(x.float(), eps=1e-6) if self.opens else x


def scaler(stream: str, width: int, scaling: Scaling) -> nn.Module:
    """What a stream's features go through before they are projected."""
    if scaling == "none":
        return nn.Identity()
    if scaling == "layernorm":
        return nn.LayerNorm(width)
    return Standardize(stream, width, logit=None if scaling == "auto" else scaling == "logit")


def projection(width: int, dim: int, hidden: int, dropout: float) -> nn.Module:
    """A linear map, or with ``hidden`` numbers between two of them a network."""
    if not hidden:
        return nn.Sequential(nn.Linear(width, dim), nn.Dropout(dropout))
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))


class WordBag(nn.Module):
    """The sum of a caption's word vectors, learned here, over the root of the number of words. Whole words drop out."""

    def __init__(self, words: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.vectors = nn.Embedding(words, dim, padding_idx=0)
        # Words begin as a correction to what the sentence says; number 1, the unknown word, says nothing.
        nn.init.normal_(self.vectors.weight, std=0.3 / math.sqrt(dim))
        with torch.no_grad():
            self.vectors.weight[:2] = 0
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, W), 0 where there is no word, to (B, dim)."""
        there = (ids != 0).unsqueeze(-1)
        words = self.vectors(ids) * self.dropout(there.float())
        # Times the root of their length, as a transformer's (Vaswani et al., NeurIPS 2017): a word is in few captions
        # and has to learn from few steps.
        return words.sum(1) * (words.shape[-1] / there.sum(1).clamp(min=1)).sqrt()


class SentenceHead(nn.Module):
    """A caption as a whole: its own vector where the stream of text has one, else the mean of its tokens."""

    def __init__(self, width: int, dim: int, *, own: bool, hidden: int, dropout: float) -> None:
        super().__init__()
        self.own = own
        self.project = nn.Sequential(nn.LayerNorm(width), projection(width, dim, hidden, dropout))

    def forward(self, x: Tensor, text: dict[str, Tensor]) -> Tensor:
        return self.project(text["sentence"] if self.own else masked_mean(x, text["mask"]))


class TokenHead(nn.Module):
    """A caption by its tokens in their order: each projected, a sequence encoder, pooling, a linear map."""

    def __init__(self, width: int, dim: int, *, sequence: Sequence, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim), nn.Dropout(dropout))
        self.sequence = SequenceEncoder(dim, sequence, dropout)
        self.pool = AttentionPool(dim, pooling, dropout)
        self.leave = nn.Linear(dim, dim)

    def forward(self, x: Tensor, text: dict[str, Tensor]) -> Tensor:
        mask = text["mask"]
        return self.leave(self.pool(self.sequence(self.project(x), mask), mask))


class TextEncoder(nn.Module):
    """Captions to a vector of length 1 a head, from token features or vectors of words.

    Args:
        dim: of the vectors.
        words: size of the vocabulary of a bag of words that each head adds; 0: none.
        heads: by the name of each vector what makes it of the features and the caption.
        dropout: of whole words of the bag.
    """

    def __init__(self, dim: int, *, words: int, heads: dict[str, nn.Module], dropout: float) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.bags = nn.ModuleDict({head: WordBag(words, dim, dropout) for head in heads if words})

    def forward(self, text: dict[str, Tensor]) -> dict[str, Tensor]:
        """``values`` (B, L, width) and ``mask`` (B, L) to one (B, dim) of length 1 a head.

        ``sentence`` (B, width) is there where a head asks for it; with a bag of words ``ids`` (B, W), 0 for padding.
        """
        vectors = {}
        for name, head in self.heads.items():
            vector = head(text["values"], text)
            if name in self.bags:
                vector = vector + self.bags[name](text["ids"])
            vectors[name] = unit(vector)
        return vectors


class GlobalBranch(nn.Module):
    """Clip and frame features of any set of streams to one vector: the sum of the streams', each projected and pooled.

    Without a sequence encoder and with ``pooling="mean"`` rows are averaged before they are projected, which costs
    as many times less as there are rows.
    """

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
        self.scale = nn.ModuleDict({name: scaler(name, width, scaling) for name, width in widths.items()})
        self.project = nn.ModuleDict({name: projection(width, dim, hidden, dropout) for name, width in widths.items()})
        self.sequence = nn.ModuleDict()
        if sequence != "none" or pooling != "mean":
            self.sequence.update({name: SequenceEncoder(dim, sequence, dropout) for name in widths})
        self.pool = nn.ModuleDict({name: AttentionPool(dim, pooling, dropout) for name in self.sequence})

    def forward(self, video: dict[str, dict[str, Tensor]]) -> Tensor:
        """Of each stream ``values`` (B, R, D) and ``mask`` (B, R); returns (B, dim), of length 1."""
        vectors = []
        for name, project in self.project.items():
            mask, x = video[name]["mask"], self.scale[name](video[name]["values"])
            if name in self.sequence:
                vectors.append(self.pool[name](self.sequence[name](project(x), mask), mask))
            else:
                vectors.append(project(masked_mean(x, mask)))
        return unit(torch.stack(vectors).sum(0))
