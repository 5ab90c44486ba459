"""Rows of embeddings from all processes, with gradients that flow back to each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def several() -> bool:
    """Whether this is one of several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; ``x`` where there is one.

    Every process must hold equally many rows. Where their second axes differ, zeros fill the shorter.
    """
    if not several():
        return x
    if x.ndim > 1:
        longest = torch.tensor(x.shape[1], device=x.device)
        torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
        x = pad(x, [0, 0] * (x.ndim - 2) + [0, int(longest) - x.shape[1]])
    return _Gather.apply(x) if x.dtype != torch.bool else _Gather.apply(x.to(torch.uint8)).bool()


class _Gather(torch.autograd.Function):
    """Backwards, a row's gradient is the sum of those it has in the losses of all processes."""

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
