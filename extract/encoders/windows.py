"""Streams of windows of frames: one plan and one encoder for the networks of all libraries.

A ``Model`` describes the differences between libraries: where the weights are, and how the network is loaded.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ...errors import AmexError, first_line, plural
from ..video import Sampling, Transform
from .numerics import DTYPES, use_float32
from .settings import compute_rules, decoder_rules
from .weights import cached

# Default sampling of image models: the frame on screen, once per second.
FRAME_SAMPLING = Sampling(fps=1, frames=1, stride=1, at="shown")


class Model(Protocol):
    """A network of a WindowPlan. It is small and hashable, because it is sent to workers and is the key of a cache.

    Attributes:
        weights: file, directory, ``random:SEED`` or function of the weights.
        weights_sha256: digest of the weights.
        network: name of the network in the spec.
        settings: other entries of the spec that decide the numbers, such as pooling and layer.
        output: the spec's description of a row.
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
        """Load the network. It maps normalised (batch, 3, frames, height, width) to (batch, dim) or to arrays by name.

        Raises:
            WeightsError: if the weights differ from those at the start of the run.
        """


def vectors(dim: int) -> dict[str, Any]:
    """Return the ``output`` of a Model that returns one vector per window."""
    return {"shape": [dim], "dtype": "float16"}


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """A stream of windows of frames: everything that a worker needs to extract it. It is sent with every part.

    Attributes:
        name: of the stream in the store.
        transform: None if the network takes frames at their own size, in [0, 1].
        precision: ``fp32``, ``bf16`` or ``fp16``.
        compiled: whether to use ``torch.compile``.
        batch_size: windows per batch; not part of the spec.
        deterministic: whether to use deterministic kernels on a GPU instead of the fastest.
        decoder: a value of ``--decoder``.
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
        """File, directory, ``random:SEED`` or function of the weights."""
        return self.model.weights

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that decides the stream's numbers; the store fingerprints it."""
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
        return json.loads(json.dumps(spec))  # equal to the spec read from disk: lists instead of tuples

    def encoder(self, device: str) -> WindowEncoder:
        """Return the stream's encoder on a device. Its network is loaded once per process."""
        key = (self.model, device, self.precision, self.compiled)
        options = {"device": device, "precision": self.precision, "compiled": self.compiled}
        return WindowEncoder(cached(key, lambda: LoadedNetwork(self.model.load(), **options)), self.transform)


class LoadedNetwork:
    """A network on a device in a given precision.

    Args:
        module: maps normalised (batch, 3, frames, height, width) to (batch, dim), or to arrays by name, at least
            ``values``.
        device: ``cpu`` or ``cuda:INDEX``.
        precision: a key of DTYPES.
        compiled: use ``torch.compile``, which needs a C++ compiler, and half a minute at the start.
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
        """Map normalised float32 (batch, 3, frames, height, width) to float32 arrays; ``values`` is (batch, dim)."""
        output = self.module(pixels.to(self.dtype))
        arrays = output if isinstance(output, dict) else {"values": output}
        return {name: array.float() for name, array in arrays.items()}


@dataclass(frozen=True)
class WindowEncoder:
    """The ``batches.Encoder`` of a stream of windows: a network, and the transform that normalises its pixels."""

    network: LoadedNetwork
    transform: Transform | None

    @property
    def device(self) -> torch.device:
        """The device that the windows must be on."""
        return self.network.device

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode windows.

        Args:
            windows: (windows, frames, height, width, 3) on the device, uint8 or float32 in [0, 255].

        Returns:
            ``values`` (windows, dim) float32, and the other arrays of the network.
        """
        return self.network(normalise(windows, self.transform))


def normalise(windows: torch.Tensor, transform: Transform | None) -> torch.Tensor:
    """Normalise pixels: (windows, frames, height, width, 3) in [0, 255] to (windows, 3, frames, height, width) float32.

    Args:
        transform: its mean and std are applied; None leaves pixels in [0, 1].
    """
    pixels = windows.float() / 255
    if transform is not None:
        mean, std = statistics(transform, windows.device)
        pixels.sub_(mean).div_(std)
    return pixels.permute(0, 4, 1, 2, 3)


@functools.lru_cache(maxsize=64)
def statistics(transform: Transform, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and std on a device. They are cached, because a copy to a GPU waits for all its earlier work."""
    return torch.tensor(transform.mean, device=device), torch.tensor(transform.std, device=device)


def output_of(module: nn.Module, shape: tuple[int, ...], *, what: str, device: str) -> Any:
    """Return the output of a network for one window of zeros.

    Args:
        shape: (1, 3, frames, height, width).
        what: name of the network for errors.
        device: of the network; ``meta`` only computes shapes.

    Raises:
        AmexError: if the network cannot process the window.
    """
    _, _, frames, height, width = shape
    try:
        with torch.inference_mode():
            return module(torch.zeros(shape, device=device))
    except AmexError:
        raise
    except Exception as error:  # networks raise many types
        windows = f"windows of {plural(frames, 'frame')} of {width}x{height}"
        raise AmexError(f"{what} cannot take {windows}: {type(error).__name__}: {first_line(error)}") from error
