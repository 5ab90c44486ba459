"""Vision and video models of transformers, with the preprocessing of their own processors.

``frames:MODEL`` takes single frames, ``video:MODEL`` windows. The model's directory tells the sizes, resampling and
statistics, and the numbers of frames and layers. A trial run of the model without weights, on the device ``meta``,
tells the possible poolings and the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import AmexError, first_line, needs
from ..video import Sampling, Transform
from .settings import check_name, parse_sampling
from .weights import check_weights, digest, draw, load_model, model_directory, quiet_transformers
from .windows import FRAME_SAMPLING, WindowPlan, output_of, vectors

# Ways to reduce tokens or maps to one vector.
POOLINGS = ("projection", "pooler", "cls", "mean")
# Families whose authors compare images by the pooler's output instead of the class token. CLIP's pooler normalises the
# class token, BEiT's the mean of the patches.
POOLER_FAMILIES = {"clip_vision_model", "metaclip_2_vision_model", "beit"}
# Families that mask random patches of their input.
MASKED_FAMILIES = {"vit_mae"}
# Default sampling of families of video models, by frames per window: as in their training.
SAMPLINGS: dict[str, dict[int, Sampling]] = {
    "videomae": {16: Sampling(frames=16, step=4, stride=64)},  # Tong et al. 2022, Kinetics-400: 16x4
    "vivit": {32: Sampling(frames=32, step=2, stride=64)},  # Arnab et al. 2021: 32x2
    # Bertasius et al. 2021: 8x32; HR: 16x16; L: 96x4
    "timesformer": {
        8: Sampling(frames=8, step=32, stride=256),
        16: Sampling(frames=16, step=16, stride=256),
        96: Sampling(frames=96, step=4, stride=384),
    },
}
# Default frame rate of other families. V-JEPA 2 (Assran et al. 2025) was trained at 4 frames per second.
VIDEO_FPS = 4.0
# Pillow's numbers of its filters.
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
# Sizes (height, width) of frames on which a Transform is compared with a processor: odd and larger than most inputs.
PROBES = ((353, 501), (501, 353))
# Maximum and mean difference of the two, in grey levels of 255. They round differently; some processors do not round.
MAX_LEVELS, MEAN_LEVELS = 2.5, 0.5
# No model has more class and register tokens.
MAX_SPECIAL_TOKENS = 16
# Unused parts of models, whose parameters may be missing.
UNUSED = ("predictor",)


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model of transformers, with the layer and pooling that make its feature. See ``windows.Model``.

    Attributes:
        kind: ``frames`` or ``video``.
        family: transformers' name of the model type.
        weights: directory of the model; ``random:SEED`` for a placeholder of the usual size.
        pooling: one of POOLINGS.
        layer: index of the hidden state; 0 is the input of the first layer.
        layers: number of layers. The last hidden state is taken after the final normalisation.
        special_tokens: number of class and register tokens before the patch tokens.
        dim: length of a feature.
    """

    kind: str
    family: str
    weights: str
    weights_sha256: str
    pooling: str
    layer: int
    layers: int
    special_tokens: int
    dim: int

    @property
    def network(self) -> str:
        return f"{self.kind}:{self.family}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "layer": self.layer}

    @property
    def output(self) -> dict[str, Any]:
        return vectors(self.dim)

    def load(self) -> nn.Module:
        check_weights(self.weights, self.weights_sha256, self.network)
        if self.weights.startswith("random:"):
            config = placeholder_config(self.kind)
            model = draw(lambda: model_class(config, "")._from_config(config), self.weights)
        else:
            config = read_config(self.weights)
            unused = UNUSED if self.pooling == "pooler" else (*UNUSED, "pooler")
            model = load_model(model_class(config, self.weights), self.weights, torch.float32, unused)
        return Features(model.eval(), self)


class Features(nn.Module):
    """A model of transformers that returns one vector per window.

    Args:
        plan: layer and pooling; None returns the model's output with all hidden states.
        video: whether the model takes windows, if ``plan`` is None.
    """

    def __init__(self, model: nn.Module, plan: HubModel | None = None, *, video: bool = False) -> None:
        super().__init__()
        if is_pair(model.config):
            model.text_model = None
        self.model, self.plan = model, plan
        self.video = plan.kind == "video" if plan else video

    def forward(self, pixels: torch.Tensor) -> Any:
        """Map normalised pixels (batch, 3, frames, height, width) to (batch, dim)."""
        hidden = self.plan is None or self.plan.layer != self.plan.layers
        options: dict[str, Any] = {"output_hidden_states": hidden}
        if is_pair(self.model.config):
            output = self.model.get_image_features(pixel_values=pixels[:, :, 0], **options)
        else:
            if self.model.config.model_type == "vjepa2":
                options["skip_predictor"] = True
            inputs = pixels.transpose(1, 2) if self.video else pixels[:, :, 0]
            output = self.model(**{self.model.main_input_name: inputs}, **options)
        return pooled(output, self.plan) if self.plan else output


def pooled(output: Any, plan: HubModel) -> torch.Tensor:
    """Pool the output of a model to (batch, dim)."""
    match plan.pooling:
        case "projection":
            return output.image_embeds if "image_embeds" in output else output.pooler_output
        case "pooler":
            return output.pooler_output.flatten(1)
    tokens = output.hidden_states[plan.layer] if plan.layer != plan.layers else output.last_hidden_state
    if tokens.ndim == 4:  # (batch, channels, height, width), of convolutions
        return tokens.mean((2, 3))
    return tokens[:, 0] if plan.pooling == "cls" else tokens[:, plan.special_tokens :].mean(1)


def plan_hub(
    name: str,
    *,
    kind: str,
    model: str,
    precision: str,
    options: Mapping[str, str] = MappingProxyType({}),
    compiled: bool = False,
    batch_size: int = 1,
    random_weights: bool = False,
) -> WindowPlan:
    """Plan a stream of a model of transformers.

    Args:
        name: of the stream.
        kind: ``frames`` or ``video``.
        model: directory, or name on the model hub.
        options: values as text: options of sampling, ``pooling``, ``layer``.
        random_weights: use a placeholder of the usual size instead of the model, for estimates.

    Raises:
        AmexError: if the model cannot be loaded, or an option is unknown or out of range.
    """
    quiet_transformers()
    try:
        if random_weights:
            folder, config, processor = "random:0", placeholder_config(kind), placeholder_processor(kind)
        else:
            folder = model_directory(model)
            config = read_config(folder)
            check_kind(config, kind, folder)
            processor = read_processor(folder, kind)
        transform = transform_of(processor, kind, folder)
        frames = frames_of(config)
        default = sampling_of(config.model_type, frames) if kind == "video" else FRAME_SAMPLING
        sampling, other = parse_sampling(name, default, options, {"pooling": str, "layer": int})
        if kind == "frames" and sampling.frames != 1:
            raise AmexError(f"{config.model_type} takes single frames: --set {name}.frames=1")
        output = choose_output(config, folder, kind, transform, sampling, other.get("pooling"), other.get("layer"))
    except AmexError as error:
        raise type(error)(f"stream {name}: {error}") from error
    hub_model = HubModel(kind=kind, family=config.model_type, weights=folder, weights_sha256=digest(folder), **output)
    return WindowPlan(
        name=name,
        model=hub_model,
        sampling=sampling,
        transform=transform,
        precision=precision,
        compiled=compiled,
        batch_size=batch_size,
    )


def choose_output(
    config: Any,
    folder: str,
    kind: str,
    transform: Transform,
    sampling: Sampling,
    pooling: str | None,
    layer: int | None,
) -> dict[str, Any]:
    """Choose pooling and layer by a trial run of the model without weights; return these fields of HubModel."""
    kind_of_model = model_class(config, folder)
    try:
        with torch.device("meta"):
            model = kind_of_model._from_config(config).eval()
    except Exception as error:  # transformers raises many types
        raise AmexError(
            f"transformers cannot build the {config.model_type} of {folder}: {first_line(error)}"
        ) from error
    height, width, _ = transform(np.zeros((240, 320, 3), np.uint8)).shape
    shape = (1, 3, sampling.frames, height, width)
    output = output_of(Features(model, video=kind == "video"), shape, what=config.model_type, device="meta")
    layers = len(output.hidden_states) - 1
    layer = layers if layer is None else layer + layers + 1 if layer < 0 else layer
    if not 0 <= layer <= layers:
        raise AmexError(f"layer must be 0 to {layers} (or -1 to {-layers - 1} from the end), got {layer}")
    special = special_tokens(output.last_hidden_state, config, shape)
    possible = {
        "projection": layer == layers and (is_pair(config) or "image_embeds" in output),
        "pooler": layer == layers and not is_pair(config) and output.get("pooler_output") is not None,
        "cls": special > 0,
        "mean": True,
    }
    available = [name for name in POOLINGS if possible[name]]
    if pooling is None:
        preferred = ("pooler",) if config.model_type in POOLER_FAMILIES else ()
        pooling = next(name for name in ("projection", *preferred, "cls", "pooler", "mean") if name in available)
    check_name(pooling, available, f"pooling of layer {layer} of {config.model_type}:")
    chosen = {"pooling": pooling, "layer": layer, "layers": layers, "special_tokens": special}
    plan = HubModel(kind=kind, family=config.model_type, weights="", weights_sha256="", dim=0, **chosen)
    values = pooled(output, plan)
    if values.ndim != 2:
        raise AmexError(f"{config.model_type} returns shape {tuple(values.shape[1:])} per frame instead of a vector")
    return {**chosen, "dim": values.shape[1]}


def special_tokens(tokens: torch.Tensor, config: Any, shape: tuple[int, ...]) -> int:
    """Return the number of tokens before the patch tokens; 0 if unknown, for example for convolutional maps."""
    _, _, frames, height, width = shape
    patch, tubelet = getattr(config, "patch_size", None), getattr(config, "tubelet_size", 1)
    vision = getattr(config, "vision_config", None)
    patch = getattr(vision, "patch_size", None) if vision else patch
    if isinstance(tubelet, list | tuple):
        tubelet, *patch = tubelet
    if tokens.ndim != 3 or patch is None:
        return 0
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    special = tokens.shape[1] - (frames // tubelet) * (height // rows) * (width // columns)
    return special if 0 <= special <= MAX_SPECIAL_TOKENS else 0


def sampling_of(family: str, frames: int) -> Sampling:
    """Return the default sampling of a family of video models."""
    return SAMPLINGS.get(family, {}).get(frames) or Sampling(fps=VIDEO_FPS, frames=frames, stride=frames, at="shown")


def read_config(folder: str) -> Any:
    """Read the configuration of a model; raise AmexError if that fails."""
    with needs("text", f"{folder}, a network of transformers,"):
        from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many types
        raise AmexError(f"{folder} is not a model of transformers: {first_line(error)}") from error


def frames_of(config: Any) -> int | None:
    """Return the frames per window of a video model; None for other models."""
    return getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)


def is_pair(config: Any) -> bool:
    """Return whether a model has an image tower and a text tower, like CLIP and SigLIP."""
    return hasattr(config, "vision_config") and hasattr(config, "text_config")


def model_class(config: Any, folder: str) -> Any:
    """Return the class of transformers with which to load a model."""
    import transformers

    (architecture,) = (getattr(config, "architectures", None) or [""])[:1]
    if architecture.endswith("VisionModelWithProjection") and hasattr(transformers, architecture):
        return getattr(transformers, architecture)
    try:
        kind = transformers.MODEL_MAPPING[type(config)]
    except KeyError as error:
        raise AmexError(f"{folder} is a {config.model_type}; transformers has no base model for it") from error
    return kind[0] if isinstance(kind, list | tuple) else kind


def check_kind(config: Any, kind: str, folder: str) -> None:
    """Raise AmexError if a model does not take the input of this kind."""
    family = config.model_type
    if is_pair(config):
        takes_images = hasattr(model_class(config, folder), "get_image_features")
    else:
        takes_images = model_class(config, folder).main_input_name.startswith("pixel_values")
    if not takes_images:
        raise AmexError(f"{folder} is a {family}, which does not take images; for captions, use text:{folder}")
    if family in MASKED_FAMILIES:
        raise AmexError(f"{folder} is a {family}, which masks random patches, so that every run differs; use another")
    if kind == "frames" and frames_of(config):
        raise AmexError(f"{folder} is a {family}, which takes windows of frames; use video:{folder}")
    if kind == "video" and not frames_of(config):
        raise AmexError(f"{folder} is a {family}, which takes single frames; use frames:{folder}")


def read_processor(folder: str, kind: str) -> Any:
    """Load the processor of a model's frames; raise AmexError if its directory has none."""
    from transformers import AutoImageProcessor, AutoVideoProcessor

    auto = AutoVideoProcessor if kind == "video" else AutoImageProcessor
    try:
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many types
        file = "video_preprocessor_config.json or preprocessor_config.json"
        file = file if kind == "video" else "preprocessor_config.json"
        raise AmexError(
            f"{folder} has no {file}, which describes how to prepare frames: {first_line(error)}"
        ) from error


def placeholder_config(kind: str) -> Any:
    """Return the configuration of a model of the usual size."""
    with needs("text", "a network of transformers"):
        from transformers import VideoMAEConfig, ViTConfig

    return VideoMAEConfig() if kind == "video" else ViTConfig()


def placeholder_processor(kind: str) -> Any:
    """Return the processor for ``placeholder_config``."""
    from transformers import VideoMAEVideoProcessor, ViTImageProcessor

    return VideoMAEVideoProcessor() if kind == "video" else ViTImageProcessor()


def transform_of(processor: Any, kind: str, folder: str) -> Transform:
    """Return the Transform that does the same as a processor.

    The Transform is built from the processor's attributes. It is then compared with the processor on two frames,
    because many processors have additional rules.

    Raises:
        AmexError: if no Transform does the same.
    """
    what = f"the {type(processor).__name__} of {folder}"
    resize, crop = sizes(processor, what)
    try:
        interpolation = INTERPOLATIONS[int(getattr(processor, "resample", 2))]
    except (KeyError, TypeError, ValueError) as error:
        raise AmexError(f"{what} resamples with {processor.resample}, which amex does not support") from error
    fields = {"resize": resize, "interpolation": interpolation, "antialias": True, "crop": crop, "corner": "down"}
    # Some families subtract 1 after the rescale. They have no common attribute that tells it.
    candidates = [Transform(**fields, **statistics(processor, offset)) for offset in (0, 1)]
    for candidate in candidates:
        if all(is_equivalent(candidate, processor, kind, size, what) for size in PROBES):
            return candidate
    raise AmexError(
        f"{what} does more than resize, centre crop and normalise: wrap the model in a function of your own and use "
        "python:MODULE:FACTORY"
    )


def sizes(processor: Any, what: str) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """Return ``resize`` and ``crop`` of the Transform for a processor."""
    size, crop_size = getattr(processor, "size", None), getattr(processor, "crop_size", None)
    crop = (crop_size["height"], crop_size["width"]) if getattr(processor, "do_center_crop", None) else None
    if not getattr(processor, "do_resize", None) or not size:
        return None, crop
    entries = {key: value for key, value in dict(size).items() if value is not None}
    if crop_pct := getattr(processor, "crop_pct", None):  # ConvNeXt crops below 384 and squeezes from 384 on
        side = entries.get("shortest_edge", 0)
        return (math.floor(side / crop_pct), (side, side)) if side < 384 else ((side, side), crop)
    match entries:
        case {"height": height, "width": width}:
            return (height, width), crop
        case {"shortest_edge": side, **others} if not others:
            return side, crop
    raise AmexError(f"{what} resizes to {entries}; amex only supports a height and width, or a shorter side")


def statistics(processor: Any, offset: int) -> dict[str, tuple[float, float, float]]:
    """Return ``mean`` and ``std`` of the Transform for a processor that also subtracts ``offset``."""
    factor = processor.rescale_factor * 255 if getattr(processor, "do_rescale", None) else 255.0
    factor = 1.0 if math.isclose(factor, 1.0) else factor
    normalises = getattr(processor, "do_normalize", None)
    mean = processor.image_mean if normalises else [0.0] * 3
    std = processor.image_std if normalises else [1.0] * 3
    return {
        "mean": tuple((value + offset) / factor for value in mean),
        "std": tuple(value / factor for value in std),
    }


def is_equivalent(transform: Transform, processor: Any, kind: str, size: tuple[int, int], what: str) -> bool:
    """Return whether a Transform and a processor give equal pixels of a test frame, except for rounding."""
    # Medium grey levels: bicubic resampling may leave [0, 255], and only some processors clip the result.
    frame = np.random.default_rng(0).integers(64, 192, (*size, 3), dtype=np.uint8)
    inputs = {"videos": [[frame] * 2], "do_sample_frames": False} if kind == "video" else {"images": [frame]}
    try:
        output = processor(**inputs, return_tensors="pt")
        actual = transform(frame)
    except Exception as error:  # processors raise many types
        raise AmexError(f"{what} cannot be used: {type(error).__name__}: {first_line(error)}") from error
    expected = next(iter(output.values()))
    expected = (expected[0, 0] if kind == "video" else expected[0]).numpy()
    if expected.shape != (3, *actual.shape[:2]):
        return False
    levels = (expected.transpose(1, 2, 0) * np.array(transform.std) + np.array(transform.mean)) * 255
    difference = np.abs(levels - actual)
    return difference.max() <= MAX_LEVELS and difference.mean() <= MEAN_LEVELS
