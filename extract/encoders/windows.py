"""Streams of windows of frames: one plan and one encoder, whichever library the network is from.

What differs between libraries is a ``Model``: where its weights are, and how it is loaded.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ...errors import AmexError, first_line
from ..video import Sampling, Transform
from .numerics import DTYPES, use_float32
from .settings import compute_rules, decoder_rules
from .weights import shared

# How models of single frames are fed unless told otherwise: the frame on screen, once a second.
FRAME_SAMPLING = Sampling(fps=1, frames=1, stride=1, at="shown")


class Model(Protocol):
    """What a WindowPlan needs to know of a network. Small and hashable: it is sent to workers, and is a cache's key.

    Attributes:
        weights: where they are.
        weights_sha256: their digest.
        network: what a spec calls the network.
        settings: what else decides its numbers, such as pooling and layer; part of the spec.
        output: what a row is, as a spec says it.
    """

    @property
    def weights(self) -> str: ...

    @property
    def weights_sha256(self) -> str: ...

    @property
    def network(self) -> str: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def output(self) -> dict[str, Any]: ...

    def load(self) -> nn.Module:
        """The network, from normalised (batch, 3, frames, height, width) to (batch, dim); or to a dictionary of arrays.

        Raises:
            WeightsError: if the weights here are not those the run began with.
        """


def vectors(dim: int) -> dict[str, Any]:
    """The ``output`` of a Model that makes one vector of a window."""
    return {"shape": [dim], "dtype": "float16"}


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """One stream of windows of frames of a run: all that a worker needs to compute it. Small, and sent with every part.

    Attributes:
        name: in the store.
        transform: None where the network takes frames at their own size, in [0, 1].
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: windows a batch; no part of the spec.
        deterministic: whether GPUs choose kernels by their repeatability, not by speed.
        decoder: as ``--decoder`` takes it.
    """

    name: str
    model: Model
    sampling: Sampling
    transform: Transform | None
    precision: str
    compiled: bool
    batch_size: int
    deterministic: bool = False
    decoder: str = "auto"

    @property
    def weights(self) -> str:
        """Where the weights are."""
        return self.model.weights

    @property
    def spec(self) -> dict[str, Any]:
        """All that decides the stream's numbers, for the store to fingerprint."""
        spec = {
            "network": self.model.network,
            "weights_sha256": self.model.weights_sha256,
            **self.model.settings,
            "sampling": self.sampling.spec,
            "transform": self.transform.spec if self.transform else None,
            "output": self.model.output,
            "compute": compute_rules(self.deterministic, precision=self.precision, compiled=self.compiled),
            "decoder": decoder_rules(self.decoder),
        }
        return json.loads(json.dumps(spec))  # as it reads back: lists, not tuples

    def encoder(self, device: str) -> WindowEncoder:
        """The stream's network on a device, loaded once a process."""
        key = (self.model, device, self.precision, self.compiled)
        given = {"device": device, "precision": self.precision, "compiled": self.compiled}
        return WindowEncoder(shared(key, lambda: LoadedNetwork(self.model.load(), **given)), self.transform)


class LoadedNetwork:
    """A network on a device, in the precision asked for.

    Args:
        module: from normalised (batch, 3, frames, height, width) to (batch, dim), or to arrays by name, ``values``
            among them.
        device: ``cpu`` or ``cuda:INDEX``.
        precision: a key of DTYPES.
        compiled: also run the network through ``torch.compile`` (needs a C++ compiler, and half a minute at the start).
    """

    def __init__(self, module: nn.Module, *, device: str, precision: str, compiled: bool = False) -> None:
        use_float32()
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        self.module = module.eval().to(self.device, self.dtype)
        if compiled:
            from torch._inductor import config

            config.freezing = True
            self.module = torch.compile(self.module)

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """``values`` (batch, dim) float32, on the device, of (batch, 3, frames, height, width) normalised float32."""
        made = self.module(pixels.to(self.dtype))
        arrays = made if isinstance(made, dict) else {"values": made}
        return {name: array.float() for name, array in arrays.items()}


@dataclass(frozen=True)
class WindowEncoder:
    """The ``batches.Encoder`` of one stream of windows: a network, and the statistics that its windows get."""

    network: LoadedNetwork
    transform: Transform | None

    @property
    def device(self) -> torch.device:
        """Where it wants its windows."""
        return self.network.device

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """``values`` (windows, dim) float32, and whatever else the network makes.

        Args:
            windows: (windows, frames, height, width, 3) on the device, uint8 or float32 in [0, 255].
        """
        return self.network(normalise(windows, self.transform))


def normalise(windows: torch.Tensor, transform: Transform | None) -> torch.Tensor:
    """(windows, frames, height, width, 3) in [0, 255] to (windows, 3, frames, height, width), in float32.

    Args:
        transform: whose statistics they get; None leaves them in [0, 1].
    """
    pixels = windows.float() / 255
    if transform is not None:
        mean, std = statistics(transform, windows.device)
        pixels.sub_(mean).div_(std)
    return pixels.permute(0, 4, 1, 2, 3)


@functools.lru_cache(maxsize=64)
def statistics(transform: Transform, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation on a device: a copy to a GPU waits for all that it was given to do before."""
    return torch.tensor(transform.mean, device=device), torch.tensor(transform.std, device=device)


def output_of(module: nn.Module, shape: tuple[int, ...], *, what: str, device: str) -> Any:
    """What a network makes of one window of zeros, (1, 3, frames, height, width).

    Args:
        device: ``meta`` computes shapes alone, for networks that were built there.

    Raises:
        AmexError: if it cannot take such a window.
    """
    _, _, frames, height, width = shape
    try:
        with torch.inference_mode():
            return module(torch.zeros(shape, device=device))
    except AmexError:
        raise
    except Exception as error:  # of many kinds: networks differ in how they refuse
        windows = f"windows of {frames} frame{'s' * (frames > 1)} of {width}x{height}"
        raise AmexError(f"{what} cannot take {windows}: {type(error).__name__}: {first_line(error)}") from error
