"""Networks of one's own: ``python:MODULE:FACTORY`` calls a function of any Python module that returns the network.

The network is a ``torch.nn.Module`` that says itself how it is fed, by these attributes:

    sampling: Sampling - which frames make a window.
    transform: Transform | None - what happens to each frame; None gives frames of their own size, in [0, 1].
    dim: int - the length of a feature.

It is called with a float tensor (batch, 3, frames, height, width), normalised by ``transform``, and returns
(batch, dim).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import AmexError, first_line
from ..video import Sampling, Transform
from .settings import sampling_and_more
from .weights import changed_weights, state_sha256
from .windows import WindowPlan, output_of, vectors

BLANK = np.zeros((240, 320, 3), np.uint8)


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A network that a function returns. See ``windows.Model``.

    Attributes:
        weights: the function, as MODULE:FACTORY. Part of the spec, with the digest of the network's parameters and
            buffers: to change the code so that it computes something else, give the function another name.
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
            raise changed_weights(self.weights, self.network)
        return Checked(module, self.network)


class Checked(nn.Module):
    """A network of which it is checked what it returns."""

    def __init__(self, module: nn.Module, what: str) -> None:
        super().__init__()
        self.module, self.what = module, what

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """(batch, 3, frames, height, width) to (batch, dim); AmexError if the network returns anything else."""
        values, shape = self.module(windows), (len(windows), self.module.dim)
        if not isinstance(values, torch.Tensor):
            raise AmexError(f"{self.what} returned a {type(values).__name__}, not a tensor {shape}")
        if values.shape != shape:
            raise AmexError(f"{self.what} returned a tensor {tuple(values.shape)}, not {shape}")
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
    """A stream of a network of one's own from what the command line says of it.

    Args:
        factory: MODULE:FACTORY.
        options: as text: those of sampling.

    Raises:
        AmexError: naming the stream and what is missing or out of range.
    """
    what = f"python:{factory}"
    try:
        module = call(factory)
        default = attribute(module, what, "sampling", Sampling)
        transform = attribute(module, what, "transform", Transform | None)
        dim = attribute(module, what, "dim", int)
        sampling, _ = sampling_and_more(name, default, options)
        height, width, _ = (transform(BLANK) if transform else BLANK).shape
        output_of(Checked(module, what), (1, 3, sampling.frames, height, width), what=what, device="cpu")
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
    """What the function MODULE:FACTORY returns, in evaluation mode.

    Raises:
        AmexError: if there is no such function, it fails, or returns no network.
    """
    name, _, function = factory.partition(":")
    if not name or not function:
        raise AmexError(f"python:{factory} is not python:MODULE:FACTORY")
    try:
        module = importlib.import_module(name)
        made = functools.reduce(getattr, function.split("."), module)()
    except AmexError:
        raise
    except ModuleNotFoundError as error:
        raise AmexError(f"cannot import {name} ({error}): put the folder that it is in on PYTHONPATH") from error
    except (Exception, SystemExit) as error:  # of any kind: it is the user's code
        raise AmexError(f"python:{factory} failed: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise AmexError(f"python:{factory} returned a {type(made).__name__}, not a torch.nn.Module")
    return made.eval()


def attribute(module: nn.Module, what: str, name: str, kind: Any) -> Any:
    """An attribute that a network must have; AmexError where it has none, or another."""
    missing = object()
    value = getattr(module, name, missing)
    if value is missing or not isinstance(value, kind) or isinstance(value, bool):
        wanted = str(getattr(kind, "__name__", kind))
        actual = "nothing" if value is missing else type(value).__name__
        raise AmexError(f"{what}: the network's attribute {name} must be {wanted}, found {actual}")
    return value
