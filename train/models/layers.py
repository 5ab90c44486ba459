"""Building blocks of the models: masked pooling, sequence encoders, scaling. Padding never changes a result."""

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
SequenceKind = Literal["none", "gru", "transformer"]
Scaling = Literal["auto", "none", "layernorm", "standard", "logit"]


def in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method compute in float32, even under autocast; its arguments are embeddings.

    Neighbouring scores of a ranking differ by less than the two or three digits of bfloat16.
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
    """Normalise vectors along the last axis to length 1, in float32."""
    return normalize(x.float(), dim=-1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average ``x`` (B, L, D) over axis 1 where ``mask`` (B, L) is True; zeros if it never is."""
    weight = mask.unsqueeze(-1).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def attention_heads(dim: int) -> int:
    """Return the number of attention heads: eight, or fewer so that it divides ``dim``."""
    return math.gcd(dim, 8)


def sequence_gru(gru: nn.GRU, x: Tensor, mask: Tensor) -> Tensor:
    """Run a GRU over sequences (B, L, D) with padding at the end (mask (B, L)); results are zero in padding."""
    if torch.onnx.is_in_onnx_export():
        return _onnx_gru(gru, x, mask)
    lengths = mask.sum(1).clamp(min=1).cpu()
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, _ = pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=x.shape[1])
    return out


def _onnx_gru(gru: nn.GRU, x: Tensor, mask: Tensor) -> Tensor:
    """Express a one-layer bidirectional ``sequence_gru`` as ONNX's operator, which supports sequence lengths.

    torch itself would export a graph for a single length. The returned values are placeholders of the graph.
    """
    size = gru.hidden_size
    directions = ("", "_reverse")

    def weights(name: str) -> Tensor:
        # torch orders the reset gate before the update gate, ONNX the reverse.
        parts = [getattr(gru, f"{name}_l0{direction}").unflatten(0, (3, size)) for direction in directions]
        return torch.stack([part[[1, 0, 2]].flatten(0, 1) for part in parts])

    biases = torch.cat([weights("bias_ih"), weights("bias_hh")], dim=1)
    out = torch.onnx.ops.symbolic(
        "GRU",
        (x.transpose(0, 1), weights("weight_ih"), weights("weight_hh"), biases, mask.sum(1).to(torch.int32)),
        {"direction": "bidirectional", "hidden_size": size, "linear_before_reset": 1},
        dtype=x.dtype,
        shape=(x.shape[1], len(directions), x.shape[0], size),
    )
    return out.permute(2, 0, 1, 3).flatten(2)


class Present:
    """The present positions of a padded grid. Layers run only over these, as rows of one matrix.

    Args:
        mask: (B, P) bool.
    """

    def __init__(self, mask: Tensor) -> None:
        self.batch, self.places = mask.shape
        self.rows = mask.flatten().nonzero().squeeze(1)

    def pick(self, grid: Tensor) -> Tensor:
        """Select the present positions: (B, P, ...) to (N, ...)."""
        return grid.flatten(0, 1).index_select(0, self.rows)

    def spread(self, rows: Tensor) -> Tensor:
        """Put rows back at their positions: (N, ...) to (B, P, ...), zeros elsewhere."""
        grid = rows.new_zeros(self.batch * self.places, *rows.shape[1:])
        return grid.index_copy(0, self.rows, rows).unflatten(0, (self.batch, self.places))


class Dropout(nn.Dropout):
    """Dropout with 16 random bits a value on a CPU; torch draws 32 bits a value, sequentially."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = bits[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * keep.to(x.dtype).mul_(1 / (1 - self.p))


class AttentionPool(nn.Module):
    """Pooling with a softmax over the sequence for every channel, computed from the elements by a small network.

    The attention-aware pooling of COOT (Ging et al., NeurIPS 2020), also used by BiC-Net. ``pooling="mean"`` has no
    parameters.
    """

    def __init__(self, dim: int, pooling: Pooling = "attention", dropout: float = 0.0) -> None:
        super().__init__()
        self.scores = None
        if pooling == "attention":
            self.scores = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pool (B, L, D) with mask (B, L) to (B, D)."""
        if self.scores is None:
            return masked_mean(x, mask)
        # A finite bound instead of -inf: an empty sequence then gets weights, not NaN, which multiply zeros.
        scores = self.scores(x).masked_fill(~mask.unsqueeze(-1), -1e4)
        return (scores.softmax(dim=1) * x * mask.unsqueeze(-1)).sum(1)


class SequenceEncoder(nn.Module):
    """Exchange information between the elements of a sequence: none, a bidirectional GRU, or a transformer layer."""

    def __init__(self, dim: int, kind: SequenceKind, dropout: float, longest: int = 512) -> None:
        super().__init__()
        self.kind = kind
        if kind == "gru":
            self.net: nn.Module = nn.GRU(dim, (dim + 1) // 2, batch_first=True, bidirectional=True)
            self.out = nn.Linear(2 * ((dim + 1) // 2), dim)
        elif kind == "transformer":
            self.net = nn.TransformerEncoderLayer(dim, attention_heads(dim), 2 * dim, dropout, "gelu", batch_first=True)
            self.places = nn.Embedding(longest, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode (B, L, D), with padding at the end (mask (B, L)), to (B, L, D)."""
        if self.kind == "gru":
            return x + self.out(sequence_gru(self.net, x, mask))
        if self.kind == "transformer":
            places = torch.arange(x.shape[1], device=x.device).clamp(max=self.places.num_embeddings - 1)
            # Attention over nothing is NaN: empty sequences are unmasked here, and the pooling masks them again.
            hidden = ~mask & mask.any(1, keepdim=True)
            return self.net(x + self.places(places), src_key_padding_mask=hidden)
        return x


class Standardize(nn.Module):
    """Standardize each component of a stream's features to mean 0 and deviation 1 over the training clips.

    Args:
        logit: take the log-odds first, so that differences between small probabilities count as much as those between
            large ones. None: decide by whether the training features are probabilities, most of them near zero.
    """

    def __init__(self, stream: str, width: int, *, logit: bool | None = False) -> None:
        super().__init__()
        self.stream, self.logit = stream, logit
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        if logit is None:
            self.register_buffer("probable", torch.tensor(0.0))  # not a bool, because processes average buffers

    @property
    def opens(self) -> bool:
        """Whether log-odds are taken."""
        return bool(self.probable) if self.logit is None else self.logit

    def set(self, rows: Tensor) -> None:
        """Fit the scale to training features (rows, width)."""
        if self.logit is None:
            # Normalised features behind a ReLU are also between 0 and 1, but none is close to 1.
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
    """Return the scaling of a stream's features before projection."""
    if scaling == "none":
        return nn.Identity()
    if scaling == "layernorm":
        return nn.LayerNorm(width)
    return Standardize(stream, width, logit=None if scaling == "auto" else scaling == "logit")


def projection(width: int, dim: int, hidden: int, dropout: float) -> nn.Module:
    """Return a linear map, or a network with one hidden layer if ``hidden`` is not 0."""
    if not hidden:
        return nn.Sequential(nn.Linear(width, dim), nn.Dropout(dropout))
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))


class GlobalBranch(nn.Module):
    """Encode clip and frame features to one vector: the sum of all streams, each projected and pooled.

    With ``pooling="mean"`` and no sequence encoder, rows are averaged before the projection, which is cheaper by the
    number of rows.
    """

    def __init__(
        self,
        widths: dict[str, int],
        dim: int,
        *,
        scaling: Scaling,
        hidden: int,
        sequence: SequenceKind,
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
        """Encode each stream's ``values`` (B, R, D) and ``mask`` (B, R) to a unit vector (B, dim)."""
        vectors = []
        for name, project in self.project.items():
            mask, x = video[name]["mask"], self.scale[name](video[name]["values"])
            if name in self.sequence:
                vectors.append(self.pool[name](self.sequence[name](project(x), mask), mask))
            else:
                vectors.append(project(masked_mean(x, mask)))
        return unit(torch.stack(vectors).sum(0))
