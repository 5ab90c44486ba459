"""Models of timm that look at single frames, fed as timm's own evaluation does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ...errors import AmexError, first_line
from ..video import Transform
from .settings import known, sampling_and_more
from .weights import WeightsError, calibrate, check_weights, digest, draw, noise, weights_file
from .windows import FRAME_SAMPLING, WindowPlan, output_of, vectors

# Of a vector from what a model makes of a frame. ``pooler`` is the model's own way.
POOLINGS = ("pooler", "cls", "mean")


@dataclass(frozen=True, kw_only=True)
class TimmModel:
    """A model of timm, and what of it makes a vector. See ``windows.Model``.

    Attributes:
        name: as timm knows it.
        weights: a file, or ``random:SEED``.
        pooling: one of POOLINGS.
        layer: which of the levels that the model can return, counted from 0; None for its features.
        size: height and width of a frame.
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
    """A model of timm that returns one vector a frame."""

    def __init__(self, model: nn.Module, pooling: str, layer: int | None) -> None:
        super().__init__()
        self.model, self.pooling, self.layer = model, pooling, layer

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 1, height, width) normalised to (batch, dim)."""
        images = pixels[:, :, 0]
        if self.pooling == "pooler":
            return self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        special = getattr(self.model, "num_prefix_tokens", 0)
        if self.layer is None:
            output = self.model.forward_features(images)
            if output.ndim == 4:  # of convolutions, or of windows of patches
                axes = (1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else (2, 3)
                return output.mean(axes)
            return output[:, 0] if self.pooling == "cls" else output[:, special:].mean(1)
        more = {"return_prefix_tokens": True} if self.pooling == "cls" else {}
        (output,) = self.model.forward_intermediates(
            images, indices=[self.layer], intermediates_only=True, output_fmt="NCHW", **more
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
    """A stream of a model of timm from what the command line says of it.

    Args:
        model: as timm knows it, such as ``resnet50.a1_in1k``.
        weights: ``default`` (what timm publishes under the name, by its hub), a file or ``random:SEED``.
        options: as text: those of sampling, pooling, layer.

    Raises:
        AmexError: naming the stream and what is unknown, out of range or not to be had.
    """
    sampling, more = sampling_and_more(name, FRAME_SAMPLING, options, {"pooling": str, "layer": int})
    try:
        if sampling.frames != 1:
            raise AmexError(f"models of timm look at single frames: --set {name}.frames=1")
        config = data_config(model)
        chosen = choose(model, config["input_size"], more.get("pooling"), more.get("layer"))
        transform = transform_of(config, model)
        located = published_file(model) if weights == "default" else weights_file(weights, None)
    except AmexError as error:
        raise type(error)(f"stream {name}: {error}") from error
    timm_model = TimmModel(
        name=model, weights=located, weights_sha256=digest(located), size=config["input_size"][1:], **chosen
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
    """timm; AmexError where it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise AmexError(f"models of timm need timm ({error}): pip install 'amex[timm]'") from error
    return timm


def create(model: str) -> nn.Module:
    """A model without its classifier, its weights as they are drawn; AmexError if there is none."""
    try:
        return library().create_model(model, num_classes=0)
    except AmexError:
        raise
    except Exception as error:  # of many kinds
        raise AmexError(f"timm cannot make {model}: {first_line(error)}") from error


def load(model: str, path: str) -> nn.Module:
    """A model with the weights of a file; WeightsError if they are another model's.

    timm only compares what it loads with what the model needs if the classifiers are of one length: that of the
    published weights is tried, then that of the file.
    """
    timm = library()
    errors = []
    for classes in (lambda: None, lambda: classes_of(model, path)):
        try:
            count = classes()
            overlay = {"file": path} if count is None else {"file": path, "num_classes": count}
            return timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=count)
        except Exception as error:  # of many kinds, for files of many kinds
            errors.append(error)
    raise WeightsError(f"{path} is not a checkpoint of timm's {model}: {first_line(errors[0])}") from errors[0]


def classes_of(model: str, path: str) -> int:
    """The length of the classifier in a checkpoint; 0 where there is none."""
    timm = library()
    bias = f"{timm.get_pretrained_cfg(model).classifier}.bias"
    state = timm.models.load_state_dict(path)
    return len(state[bias]) if bias in state else 0


def data_config(model: str) -> dict[str, Any]:
    """How timm feeds a model; AmexError if it does not know it."""
    timm = library()
    architecture = model.partition(".")[0]
    known(architecture, timm.list_models(), "model of timm:", list_all=False)
    tags = timm.list_pretrained(f"{architecture}.*") if "." in model else [model]
    known(model, tags, f"weights of timm's {architecture}:")
    published = timm.get_pretrained_cfg(model)
    return timm.data.resolve_data_config(pretrained_cfg=published.to_dict() if published else {})


def transform_of(config: dict[str, Any], model: str) -> Transform:
    """timm's transform for evaluation; AmexError for one that pads."""
    channels, height, width = config["input_size"]
    if config["crop_mode"] not in ("center", "squash") or channels != 3:
        raise AmexError(f"timm feeds {model} {channels} channels and crops by {config['crop_mode']}; amex does not")
    scaled = tuple(math.floor(side / config["crop_pct"]) for side in (height, width))
    if config["crop_mode"] == "center" and height != width:
        raise AmexError(f"timm feeds {model} images of {width}x{height} cut from the middle; amex cuts squares")
    return Transform(
        resize=scaled[0] if config["crop_mode"] == "center" else scaled,
        interpolation=config["interpolation"],
        antialias=True,
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def choose(model: str, size: tuple[int, int, int], pooling: str | None, layer: int | None) -> dict[str, Any]:
    """Pooling, layer and length of a feature, by trials of the model without weights."""
    with torch.device("meta"):
        made = create(model).eval()
    possible = POOLINGS if getattr(made, "num_prefix_tokens", 0) else ("pooler", "mean")
    if layer is not None:
        possible = possible[1:]
        what = f"timm's {model}"
        if not hasattr(made, "forward_intermediates"):
            raise AmexError(f"{what} returns no layers but its last")
        levels = len(made.forward_intermediates(torch.zeros(1, *size, device="meta"), intermediates_only=True))
        if not -levels <= layer < levels:
            raise AmexError(f"layer must be 0 to {levels - 1} (or -1 to {-levels} from the end), got {layer}")
        layer %= levels
    pooling = known(pooling or possible[0], possible, f"pooling of timm's {model}:")
    shape = (1, 3, 1, *size[1:])
    values = output_of(Features(made, pooling, layer), shape, what=f"timm's {model}", device="meta")
    return {"pooling": pooling, "layer": layer, "dim": values.shape[1]}


def published_file(model: str) -> str:
    """The file of the weights that timm publishes, downloaded if it is not there; WeightsError if it cannot be had."""
    from huggingface_hub import hf_hub_download

    config = library().get_pretrained_cfg(model)
    if not (config and config.hf_hub_id):
        raise WeightsError(f"timm publishes no weights of {model} by its hub: give --weights STREAM=FILE")
    name = config.hf_hub_filename or "model.safetensors"
    try:
        return str(Path(hf_hub_download(config.hf_hub_id, name)).absolute())
    except Exception as error:  # of many kinds: no network, no such model, offline mode
        raise WeightsError(
            f"cannot fetch {name} of {config.hf_hub_id} from its hub ({first_line(error)}). Without a network: give "
            "--weights STREAM=FILE, or try the pipeline with --weights STREAM=random:0"
        ) from error
