"""Image models of timm, with the preprocessing of timm's own evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ...errors import AmexError, first_line, needs
from ..video import Transform
from .settings import check_name, parse_sampling
from .weights import WeightsError, calibrate, check_weights, digest, draw, noise, weights_file
from .windows import FRAME_SAMPLING, WindowPlan, output_of, vectors

# Ways to reduce the output of a model to one vector. ``pooler`` is the model's own pooling.
POOLINGS = ("pooler", "cls", "mean")


@dataclass(frozen=True, kw_only=True)
class TimmModel:
    """A model of timm, with the layer and pooling that make its feature. See ``windows.Model``.

    Attributes:
        name: timm's name.
        weights: a file, or ``random:SEED``.
        pooling: one of POOLINGS.
        layer: index of the model's intermediate outputs; None for its final features.
        size: (height, width) of a frame.
        dim: length of a feature.
    """

    name: str
    weights: str
    weights_sha256: str
    pooling: str
    layer: int | None
    size: tuple[int, int]
    dim: int

    @property
    def network(self) -> str:
        return f"timm:{self.name}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "layer": self.layer}

    @property
    def output(self) -> dict[str, Any]:
        return vectors(self.dim)

    def load(self) -> nn.Module:
        check_weights(self.weights, self.weights_sha256, self.network)
        if self.weights.startswith("random:"):
            model = draw(lambda: create(self.name), self.weights)
            calibrate(model, lambda: model.forward_features(noise(3, *self.size)))
        else:
            model = load(self.name, self.weights)
        return Features(model.eval(), self.pooling, self.layer)


class Features(nn.Module):
    """A model of timm that returns one vector per frame."""

    def __init__(self, model: nn.Module, pooling: str, layer: int | None) -> None:
        super().__init__()
        self.model, self.pooling, self.layer = model, pooling, layer

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map normalised pixels (batch, 3, 1, height, width) to (batch, dim)."""
        images = pixels[:, :, 0]
        if self.pooling == "pooler":
            return self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        special = getattr(self.model, "num_prefix_tokens", 0)
        if self.layer is None:
            output = self.model.forward_features(images)
            if output.ndim == 4:  # convolutional maps, or windows of patches
                axes = (1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else (2, 3)
                return output.mean(axes)
            return output[:, 0] if self.pooling == "cls" else output[:, special:].mean(1)
        options = {"return_prefix_tokens": True} if self.pooling == "cls" else {}
        (output,) = self.model.forward_intermediates(
            images, indices=[self.layer], intermediates_only=True, output_fmt="NCHW", **options
        )
        return output[1][:, 0] if self.pooling == "cls" else output.mean((2, 3))


def plan_timm(
    name: str,
    *,
    model: str,
    weights: str,
    precision: str,
    options: Mapping[str, str] = MappingProxyType({}),
    compiled: bool = False,
    batch_size: int = 1,
) -> WindowPlan:
    """Plan a stream of a model of timm.

    Args:
        name: of the stream.
        model: timm's name, for example ``resnet50.a1_in1k``.
        weights: ``default`` (timm's published weights, from the model hub), a file or ``random:SEED``.
        options: values as text: options of sampling, ``pooling``, ``layer``.

    Raises:
        AmexError: if the model cannot be loaded, or an option is unknown or out of range.
    """
    sampling, other = parse_sampling(name, FRAME_SAMPLING, options, {"pooling": str, "layer": int})
    try:
        if sampling.frames != 1:
            raise AmexError(f"models of timm take single frames: --set {name}.frames=1")
        config = data_config(model)
        output = choose_output(model, config["input_size"], other.get("pooling"), other.get("layer"))
        transform = transform_of(config, model)
        location = published_file(model) if weights == "default" else weights_file(weights, None)
    except AmexError as error:
        raise type(error)(f"stream {name}: {error}") from error
    timm_model = TimmModel(
        name=model, weights=location, weights_sha256=digest(location), size=config["input_size"][1:], **output
    )
    return WindowPlan(
        name=name,
        model=timm_model,
        sampling=sampling,
        transform=transform,
        precision=precision,
        compiled=compiled,
        batch_size=batch_size,
    )


def library() -> Any:
    """Import timm; raise MissingExtra if it is not installed."""
    with needs("timm", "a network timm:MODEL"):
        import timm
    return timm


def create(model: str) -> nn.Module:
    """Build a model without its classifier, with random weights. Raise AmexError if timm cannot build it."""
    try:
        return library().create_model(model, num_classes=0)
    except AmexError:
        raise
    except Exception as error:  # timm raises many types
        raise AmexError(f"timm cannot build {model}: {first_line(error)}") from error


def load(model: str, path: str) -> nn.Module:
    """Load a model with the weights of a file. Raise WeightsError if they belong to another model.

    timm only checks the parameters if the number of classes matches. Therefore the number of the published weights is
    tried first, then the number in the file.
    """
    timm = library()
    errors = []
    for classes in (lambda: None, lambda: classes_of(model, path)):
        try:
            count = classes()
            overlay = {"file": path} if count is None else {"file": path, "num_classes": count}
            return timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=count)
        except Exception as error:  # timm raises many types; the first error is reported if both tries fail
            errors.append(error)
    raise WeightsError(f"{path} is not a checkpoint of timm's {model}: {first_line(errors[0])}") from errors[0]


def classes_of(model: str, path: str) -> int:
    """Return the number of classes in a checkpoint; 0 if it has no classifier."""
    timm = library()
    bias = f"{timm.get_pretrained_cfg(model).classifier}.bias"
    state = timm.models.load_state_dict(path)
    return len(state[bias]) if bias in state else 0


def data_config(model: str) -> dict[str, Any]:
    """Return timm's preprocessing of a model. Raise AmexError if timm does not have the model."""
    timm = library()
    architecture = model.partition(".")[0]
    check_name(architecture, timm.list_models(), "model of timm:", list_all=False)
    tags = timm.list_pretrained(f"{architecture}.*") if "." in model else [model]
    check_name(model, tags, f"weights of timm's {architecture}:")
    published = timm.get_pretrained_cfg(model)
    return timm.data.resolve_data_config(pretrained_cfg=published.to_dict() if published else {})


def transform_of(config: dict[str, Any], model: str) -> Transform:
    """Return the Transform of timm's evaluation. Raise AmexError if amex does not support it, for example padding."""
    channels, height, width = config["input_size"]
    if config["crop_mode"] not in ("center", "squash") or channels != 3:
        raise AmexError(
            f"{model} needs {channels} channels and the crop mode {config['crop_mode']}; amex supports 3 channels and "
            "the modes center and squash"
        )
    scaled = tuple(math.floor(side / config["crop_pct"]) for side in (height, width))
    if config["crop_mode"] == "center" and height != width:
        raise AmexError(f"{model} needs a centre crop of {width}x{height}; amex only supports square crops here")
    return Transform(
        resize=scaled[0] if config["crop_mode"] == "center" else scaled,
        interpolation=config["interpolation"],
        antialias=True,
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def choose_output(model: str, size: tuple[int, int, int], pooling: str | None, layer: int | None) -> dict[str, Any]:
    """Choose pooling and layer by a trial run of the model without weights; return these fields of TimmModel."""
    with torch.device("meta"):
        network = create(model).eval()
    possible = POOLINGS if getattr(network, "num_prefix_tokens", 0) else ("pooler", "mean")
    if layer is not None:
        possible = possible[1:]
        what = f"timm's {model}"
        if not hasattr(network, "forward_intermediates"):
            raise AmexError(f"{what} only returns its last layer: remove the option layer")
        levels = len(network.forward_intermediates(torch.zeros(1, *size, device="meta"), intermediates_only=True))
        if not -levels <= layer < levels:
            raise AmexError(f"layer must be 0 to {levels - 1} (or -1 to {-levels} from the end), got {layer}")
        layer %= levels
    pooling = check_name(pooling or possible[0], possible, f"pooling of timm's {model}:")
    shape = (1, 3, 1, *size[1:])
    values = output_of(Features(network, pooling, layer), shape, what=f"timm's {model}", device="meta")
    return {"pooling": pooling, "layer": layer, "dim": values.shape[1]}


def published_file(model: str) -> str:
    """Return the file of timm's published weights; download it if necessary. Raise WeightsError if that fails."""
    from huggingface_hub import hf_hub_download

    config = library().get_pretrained_cfg(model)
    if not (config and config.hf_hub_id):
        raise WeightsError(f"timm publishes no weights of {model} on the hub: give --weights STREAM=FILE")
    name = config.hf_hub_filename or "model.safetensors"
    try:
        return str(Path(hf_hub_download(config.hf_hub_id, name)).absolute())
    except Exception as error:  # many types: no network, no such model, offline mode
        raise WeightsError(
            f"cannot download {name} of {config.hf_hub_id} from the hub ({first_line(error)}). Without a network: give "
            "--weights STREAM=FILE, or test the pipeline with --weights STREAM=random:0"
        ) from error
