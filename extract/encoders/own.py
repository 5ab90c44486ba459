"""The user's own networks: ``python:MODULE:FACTORY`` calls a function of a Python module that returns the network.

The network is a ``torch.nn.Module`` with these attributes:

    sampling: Sampling - how frames are grouped into windows.
    transform: Transform | None - how each frame is prepared; None gives frames at their own size, in [0, 1].
    dim: int - length of a feature.

It is called with a float tensor (batch, 3, frames, height, width), normalised by ``transform``, and returns
(batch, dim).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import AmexError, first_line
from ...foreign import import_name
from ..video import Sampling, Transform
from .settings import parse_sampling
from .weights import state_sha256, weights_changed_error
from .windows import WindowPlan, output_of, vectors

BLANK = np.zeros((240, 320, 3), np.uint8)


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A network that the user's function returns. See ``windows.Model``.

    Attributes:
        weights: the function, MODULE:FACTORY. The spec records it with the digest of the network's parameters and
            buffers, but not the code. If a change of the code changes the features, rename the function.
    """

    weights: str
    weights_sha256: str
    dim: int

    @property
    def network(self) -> str:
        return f"python:{self.weights}"

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def output(self) -> dict[str, Any]:
        return vectors(self.dim)

    def load(self) -> nn.Module:
        module = call(self.weights)
        if state_sha256(module) != self.weights_sha256:
            raise weights_changed_error(self.weights, self.network)
        return CheckedNetwork(module, self.network)


class CheckedNetwork(nn.Module):
    """A network whose output is checked."""

    def __init__(self, module: nn.Module, what: str) -> None:
        super().__init__()
        self.module, self.what = module, what

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Map (batch, 3, frames, height, width) to (batch, dim). Raise AmexError if the output is anything else."""
        values, shape = self.module(windows), (len(windows), self.module.dim)
        if not isinstance(values, torch.Tensor):
            raise AmexError(f"{self.what} returned a {type(values).__name__} instead of a tensor {shape}")
        if values.shape != shape:
            raise AmexError(f"{self.what} returned a tensor {tuple(values.shape)} instead of {shape}")
        return values


def plan_own(
    name: str,
    *,
    factory: str,
    precision: str,
    options: Mapping[str, str] = MappingProxyType({}),
    compiled: bool = False,
    batch_size: int = 1,
) -> WindowPlan:
    """Plan a stream of the user's own network.

    Args:
        name: of the stream.
        factory: MODULE:FACTORY.
        options: values as text: options of sampling.

    Raises:
        AmexError: if the network cannot be built or lacks an attribute, or an option is unknown or out of range.
    """
    what = f"python:{factory}"
    try:
        module = call(factory)
        default = attribute(module, what, "sampling", Sampling)
        transform = attribute(module, what, "transform", Transform | None)
        dim = attribute(module, what, "dim", int)
        sampling, _ = parse_sampling(name, default, options)
        height, width, _ = (transform(BLANK) if transform else BLANK).shape
        output_of(CheckedNetwork(module, what), (1, 3, sampling.frames, height, width), what=what, device="cpu")
        sha256 = state_sha256(module)
    except AmexError as error:
        raise AmexError(f"stream {name}: {error}") from error
    return WindowPlan(
        name=name,
        model=OwnModel(weights=factory, weights_sha256=sha256, dim=dim),
        sampling=sampling,
        transform=transform,
        precision=precision,
        compiled=compiled,
        batch_size=batch_size,
    )


def call(factory: str) -> nn.Module:
    """Call the function MODULE:FACTORY; return its network in evaluation mode.

    Raises:
        AmexError: if the function is missing, fails, or does not return a network.
    """
    function = import_name(f"python:{factory}")
    try:
        network = function()
    except AmexError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise AmexError(f"python:{factory} failed: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise AmexError(f"python:{factory} returned a {type(network).__name__} instead of a torch.nn.Module")
    return network.eval()


def attribute(module: nn.Module, what: str, name: str, kind: Any) -> Any:
    """Return a required attribute of a network. Raise AmexError if it is missing or has another type."""
    missing = object()
    value = getattr(module, name, missing)
    if value is missing or not isinstance(value, kind) or isinstance(value, bool):
        expected = str(getattr(kind, "__name__", kind))
        actual = "nothing" if value is missing else type(value).__name__
        raise AmexError(f"{what}: the network's attribute {name} must be {expected}, found {actual}")
    return value
