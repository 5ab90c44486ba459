"""Gather embeddings from all processes, with gradients that flow back to each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def is_distributed() -> bool:
    """Whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather(x: Tensor) -> Tensor:
    """Concatenate the rows of all processes in the order of ranks; return ``x`` if there is one process.

    Every process must hold the same number of rows. A shorter second axis is padded with zeros.
    """
    if not is_distributed():
        return x
    if x.ndim > 1:
        longest = torch.tensor(x.shape[1], device=x.device)
        torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
        x = pad(x, [0, 0] * (x.ndim - 2) + [0, int(longest) - x.shape[1]])
    return _Gather.apply(x) if x.dtype != torch.bool else _Gather.apply(x.to(torch.uint8)).bool()


class _Gather(torch.autograd.Function):
    """All-gather. Backward, the gradient of a row is the sum over the losses of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        torch.distributed.all_reduce(grad)
        return grad.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]
