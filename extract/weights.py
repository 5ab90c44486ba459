"""Where a network's weights come from: published ones, downloaded once and checked; a local file; or a seed."""

from __future__ import annotations

import hashlib
import os
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import AmexError


class WeightsError(AmexError):
    """Weights cannot be had, or are not those of this network."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Weights that others published.

    Attributes:
        url: where they are.
        sha256: the digest of the file, or its first digits as the publisher gives them.
        licence: of the weights, as far as the publisher states one.
        source: what they were trained on and by whom.
    """

    url: str
    sha256: str
    licence: str
    source: str

    @property
    def path(self) -> Path:
        """Where the file is kept: torch's own cache, so that other programs share it (TORCH_HOME moves it)."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rsplit("/", 1)[-1]

    def fetch(self) -> Path:
        """The file, downloaded if it is not there yet. Raises WeightsError where it cannot be had."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(self.url, str(self.path), hash_prefix=self.sha256)
            except (urllib.error.URLError, OSError) as error:
                raise WeightsError(
                    f"cannot download {self.url} ({getattr(error, 'reason', error)}). Without a network: put the file "
                    f"at {self.path}, or name a local one with --weights STREAM=FILE, or try the pipeline with "
                    "--weights STREAM=random:0"
                ) from error
            except RuntimeError as error:  # torch raises this for a wrong digest, and removes the file
                raise WeightsError(f"{self.url}: {error}") from error
        if not file_sha256(self.path).startswith(self.sha256):
            raise WeightsError(f"{self.path} is not the published file (its sha256 differs): delete it and try again")
        return self.path


def file_sha256(path: Path) -> str:
    """sha256 of a file; raises WeightsError if it cannot be read."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from error


def state_sha256(module: nn.Module) -> str:
    """sha256 of a network's parameters and buffers by name: the digest of weights that are in no file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def locate(choice: str, published: Published | None) -> str:
    """A choice that any worker understands: ``random:SEED``, or the absolute path of a file that is there.

    Args:
        choice: ``default``, ``random:SEED`` or a path.

    Raises:
        WeightsError: if there is no such file, or no default.
    """
    if choice.startswith("random:"):
        if not choice.removeprefix("random:").isdecimal():
            raise WeightsError(f"weights {choice!r}: the seed must be a whole number, as in random:0")
        return choice
    if choice == "default":
        if published is None:
            raise WeightsError("this network has no published default: give --weights STREAM=FILE")
        return str(published.fetch().absolute())
    if not os.path.isfile(choice):
        raise WeightsError(
            f"no weights file {choice}; --weights takes STREAM=FILE, STREAM=default or STREAM=random:SEED"
        )
    return os.path.abspath(choice)


@torch.no_grad()
def calibrate(module: nn.Module, batch: torch.Tensor) -> None:
    """Sets all batch-norm statistics to those of ``batch``.

    Freshly drawn deep networks otherwise shrink or blow up what passes through them by many orders of magnitude, to
    features that are zero or infinite in half precision.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 1.0
    module.train()(batch)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    module.eval()


def digest(build: Callable[[], nn.Module], located: str) -> str:
    """sha256 of weights: of the file, or of the drawn parameters where there is no file."""
    if located.startswith("random:"):
        return state_sha256(_draw(build, located))
    return file_sha256(Path(located))


def load(build: Callable[[], nn.Module], located: str, example: tuple[int, ...]) -> nn.Module:
    """A network with its weights.

    Args:
        build: makes the network with freshly drawn weights.
        located: from ``locate``.
        example: shape of an input: (channels, [frames,] height, width).

    Raises:
        WeightsError: naming the first parameters that do not fit.
    """
    if located.startswith("random:"):
        module = _draw(build, located)
        # Blurred noise: closer to an image, most of whose contrast is coarse, than white noise is.
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(2, *example[:-2], *(-(-size // 16) for size in example[-2:]), generator=generator)
        mode = "trilinear" if len(example) == 4 else "bilinear"
        blurred = nn.functional.interpolate(coarse, example[1:], mode=mode)
        calibrate(module, blurred + 0.1 * torch.randn(2, *example, generator=generator))
        return module
    path = Path(located)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
        raise WeightsError(
            f"{path} is not a checkpoint that can be loaded safely: {str(error).splitlines()[0]}"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    module = build()
    wanted = module.state_dict()
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict")
    # Checkpoints older than PyTorch 0.4.1 (rgb_imagenet.pt is one) lack these counters; inference reads none of them.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in wanted]
    shapes = [name for name in wanted if name in state and wanted[name].shape != state[name].shape]
    for what, names in (("lacks", missing), ("has the unknown", unknown), ("has another shape for", shapes)):
        if names:
            raise WeightsError(
                f"{path} is not a checkpoint of this network: it {what} {names[0]} ({len(names)} in all)"
            )
    module.load_state_dict(state, strict=False)
    return module


def _draw(build: Callable[[], nn.Module], located: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(located.removeprefix("random:")))
        return build()
