"""Models of transformers that look at frames or windows of frames, fed as their own processors say.

``frames:MODEL`` takes single frames, ``video:MODEL`` windows. Which sizes, resampling and statistics they are fed, how
many frames, how many layers and which ways of pooling there are is read from the model's directory; a trial run of the
model without weights (on the device ``meta``) tells the rest.
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

from ...errors import AmexError, first_line
from ..video import Sampling, Transform
from .settings import known, sampling_and_more
from .weights import check_weights, digest, draw, load_model, model_directory, quiet_transformers
from .windows import FRAME_SAMPLING, WindowPlan, output_of, vectors

# Of a vector from tokens or maps.
POOLINGS = ("projection", "pooler", "cls", "mean")
# Families whose pooler, not the class token of the last layer, is what their authors compare images by: CLIP's
# normalises the class token, BEiT's the mean of the patches.
POOLER_FAMILIES = {"clip_vision_model", "metaclip_2_vision_model", "beit"}
# Families that hide some patches, drawn at random, from the model.
MASKED_FAMILIES = {"vit_mae"}
# How windows are cut for families of video models unless told otherwise: as in what they were trained on.
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
# V-JEPA 2 (Assran et al. 2025) was trained at 4 frames a second; others are most often shown as many.
VIDEO_FPS = 4.0
# Pillow's numbers.
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
# Frames on which a Transform is compared with a processor, height and width: larger than most networks' input, odd.
PROBES = ((353, 501), (501, 353))
# Grey levels, of 255, by which the two may differ: they round differently, and some processors do not round at all.
MOST_LEVELS, MEAN_LEVELS = 2.5, 0.5
# More class and register tokens than any model has.
MOST_SPECIAL_TOKENS = 16
# Parameters that may be missing because these parts are not used.
UNUSED = ("predictor",)


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model of transformers, and what of it makes a vector. See ``windows.Model``.

    Attributes:
        kind: ``frames`` or ``video``.
        family: the model's type, as transformers calls it.
        weights: its directory; ``random:SEED`` where a model of the usual size stands in.
        pooling: one of POOLINGS.
        layer: which hidden state: 0 is what enters the first layer.
        layers: how many there are; the last one's hidden state is taken after the final normalisation.
        special_tokens: class and register tokens before those of the patches.
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
            config = stand_in(self.kind)
            model = draw(lambda: model_class(config, "")._from_config(config), self.weights)
        else:
            config = read_config(self.weights)
            unused = UNUSED if self.pooling == "pooler" else (*UNUSED, "pooler")
            model = load_model(model_class(config, self.weights), self.weights, torch.float32, unused)
        return Features(model.eval(), self)


class Features(nn.Module):
    """A model of transformers that returns one vector a window.

    Args:
        plan: None to return what the model returns, with all hidden states.
    """

    def __init__(self, model: nn.Module, plan: HubModel | None = None, *, video: bool = False) -> None:
        super().__init__()
        if is_pair(model.config):
            model.text_model = None
        self.model, self.plan = model, plan
        self.video = plan.kind == "video" if plan else video

    def forward(self, pixels: torch.Tensor) -> Any:
        """(batch, 3, frames, height, width) normalised to (batch, dim)."""
        hidden = self.plan is None or self.plan.layer != self.plan.layers
        given: dict[str, Any] = {"output_hidden_states": hidden}
        if is_pair(self.model.config):
            output = self.model.get_image_features(pixel_values=pixels[:, :, 0], **given)
        else:
            if self.model.config.model_type == "vjepa2":
                given["skip_predictor"] = True
            output = self.model(
                **{self.model.main_input_name: pixels.transpose(1, 2) if self.video else pixels[:, :, 0]}, **given
            )
        return pooled(output, self.plan) if self.plan else output


def pooled(output: Any, plan: HubModel) -> torch.Tensor:
    """(batch, dim) of what a model returned."""
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
    """A stream of a model of transformers from what the command line says of it.

    Args:
        kind: ``frames`` or ``video``.
        model: its directory, or its name on the hub.
        options: as text: those of sampling, pooling, layer.
        random_weights: for estimates: not the model, which may not be there, but one of the usual size.

    Raises:
        AmexError: naming the stream and what is unknown, out of range or not to be had.
    """
    quiet_transformers()
    try:
        if random_weights:
            folder, config, processor = "random:0", stand_in(kind), default_processor(kind)
        else:
            folder = model_directory(model)
            config = read_config(folder)
            check_kind(config, kind, folder)
            processor = read_processor(folder, kind)
        transform = transform_of(processor, kind, folder)
        frames = frames_of(config)
        default = sampling_of(config.model_type, frames) if kind == "video" else FRAME_SAMPLING
        sampling, more = sampling_and_more(name, default, options, {"pooling": str, "layer": int})
        if kind == "frames" and sampling.frames != 1:
            raise AmexError(f"{config.model_type} looks at single frames: --set {name}.frames=1")
        chosen = choose(config, folder, kind, transform, sampling, more.get("pooling"), more.get("layer"))
    except AmexError as error:
        raise type(error)(f"stream {name}: {error}") from error
    hub_model = HubModel(kind=kind, family=config.model_type, weights=folder, weights_sha256=digest(folder), **chosen)
    return WindowPlan(
        name=name,
        model=hub_model,
        sampling=sampling,
        transform=transform,
        precision=precision,
        compiled=compiled,
        batch_size=batch_size,
    )


def choose(
    config: Any,
    folder: str,
    kind: str,
    transform: Transform,
    sampling: Sampling,
    pooling: str | None,
    layer: int | None,
) -> dict[str, Any]:
    """Pooling, layer and what follows from them, as of HubModel, by a trial of the model without weights."""
    kind_of_model = model_class(config, folder)
    try:
        with torch.device("meta"):
            model = kind_of_model._from_config(config).eval()
    except Exception as error:  # of many kinds, for configurations of many kinds
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
        first = ("pooler",) if config.model_type in POOLER_FAMILIES else ()
        pooling = next(name for name in ("projection", *first, "cls", "pooler", "mean") if name in available)
    known(pooling, available, f"pooling of layer {layer} of {config.model_type}:")
    chosen = {"pooling": pooling, "layer": layer, "layers": layers, "special_tokens": special}
    plan = HubModel(kind=kind, family=config.model_type, weights="", weights_sha256="", dim=0, **chosen)
    values = pooled(output, plan)
    if values.ndim != 2:
        raise AmexError(f"{config.model_type} makes {tuple(values.shape[1:])} of a frame, not a vector")
    return {**chosen, "dim": values.shape[1]}


def special_tokens(tokens: torch.Tensor, config: Any, shape: tuple[int, ...]) -> int:
    """How many tokens stand before those of the patches; 0 where there is no telling, as for maps of convolutions."""
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
    return special if 0 <= special <= MOST_SPECIAL_TOKENS else 0


def sampling_of(family: str, frames: int) -> Sampling:
    """How windows for a family of video models are cut unless told otherwise."""
    return SAMPLINGS.get(family, {}).get(frames) or Sampling(fps=VIDEO_FPS, frames=frames, stride=frames, at="shown")


def read_config(folder: str) -> Any:
    """A model's configuration; AmexError if it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds, for files of many kinds
        raise AmexError(f"{folder} is no model of transformers: {first_line(error)}") from error


def frames_of(config: Any) -> int | None:
    """Frames a window of a video model; None of others."""
    return getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)


def is_pair(config: Any) -> bool:
    """Whether a model has a tower for text beside the one for images, as CLIP and SigLIP do."""
    return hasattr(config, "vision_config") and hasattr(config, "text_config")


def model_class(config: Any, folder: str) -> Any:
    """The class of transformers that a model is loaded as."""
    import transformers

    (architecture,) = (getattr(config, "architectures", None) or [""])[:1]
    if architecture.endswith("VisionModelWithProjection") and hasattr(transformers, architecture):
        return getattr(transformers, architecture)
    try:
        kind = transformers.MODEL_MAPPING[type(config)]
    except KeyError as error:
        raise AmexError(f"{folder} is a {config.model_type}, which transformers has no plain model of") from error
    return kind[0] if isinstance(kind, list | tuple) else kind


def check_kind(config: Any, kind: str, folder: str) -> None:
    """AmexError if a model does not look at what the kind gives it."""
    family = config.model_type
    if is_pair(config):
        sees = hasattr(model_class(config, folder), "get_image_features")
    else:
        sees = model_class(config, folder).main_input_name.startswith("pixel_values")
    if not sees:
        raise AmexError(f"{folder} is a {family}, which does not look at images; for captions: text:{folder}")
    if family in MASKED_FAMILIES:
        raise AmexError(f"{folder} is a {family}, which hides patches at random: no two runs agree")
    if kind == "frames" and frames_of(config):
        raise AmexError(f"{folder} is a {family}, which looks at windows of frames: video:{folder}")
    if kind == "video" and not frames_of(config):
        raise AmexError(f"{folder} is a {family}, which looks at single frames: frames:{folder}")


def read_processor(folder: str, kind: str) -> Any:
    """What prepares frames for a model; AmexError where its directory does not say."""
    from transformers import AutoImageProcessor, AutoVideoProcessor

    auto = AutoVideoProcessor if kind == "video" else AutoImageProcessor
    try:
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds, for files of many kinds
        file = "video_preprocessor_config.json or preprocessor_config.json"
        file = file if kind == "video" else "preprocessor_config.json"
        raise AmexError(
            f"{folder} does not say how frames are prepared, which {file} does: {first_line(error)}"
        ) from error


def stand_in(kind: str) -> Any:
    """The configuration of a model of the usual size."""
    from transformers import VideoMAEConfig, ViTConfig

    return VideoMAEConfig() if kind == "video" else ViTConfig()


def default_processor(kind: str) -> Any:
    """What prepares frames for ``stand_in``."""
    from transformers import VideoMAEVideoProcessor, ViTImageProcessor

    return VideoMAEVideoProcessor() if kind == "video" else ViTImageProcessor()


def transform_of(processor: Any, kind: str, folder: str) -> Transform:
    """The Transform that does what a processor does.

    What is read from the processor's attributes is compared with what it does to two frames, since many processors have
    rules of their own.

    Raises:
        AmexError: if there is none.
    """
    what = f"the {type(processor).__name__} of {folder}"
    resize, crop = sizes(processor, what)
    try:
        interpolation = INTERPOLATIONS[int(getattr(processor, "resample", 2))]
    except (KeyError, TypeError, ValueError) as error:
        raise AmexError(f"{what} resamples with {processor.resample}, which amex does not") from error
    given = {"resize": resize, "interpolation": interpolation, "antialias": True, "crop": crop, "corner": "down"}
    # Some families subtract 1 after the rescale, without an attribute that all of them have.
    candidates = [Transform(**given, **statistics(processor, offset)) for offset in (0, 1)]
    for candidate in candidates:
        if all(does(candidate, processor, kind, size, what) for size in PROBES):
            return candidate
    raise AmexError(
        f"{what} does more than resize, crop in the middle and normalise: give the frames to a model of "
        "your own, as python:MODULE:FACTORY"
    )


def sizes(processor: Any, what: str) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """``resize`` and ``crop`` of the Transform."""
    size, crop_size = getattr(processor, "size", None), getattr(processor, "crop_size", None)
    crop = (crop_size["height"], crop_size["width"]) if getattr(processor, "do_center_crop", None) else None
    if not getattr(processor, "do_resize", None) or not size:
        return None, crop
    entries = {key: value for key, value in dict(size).items() if value is not None}
    if crop_pct := getattr(processor, "crop_pct", None):  # ConvNeXt: below 384 a crop, else frames are squeezed
        side = entries.get("shortest_edge", 0)
        return (math.floor(side / crop_pct), (side, side)) if side < 384 else ((side, side), crop)
    match entries:
        case {"height": height, "width": width}:
            return (height, width), crop
        case {"shortest_edge": side, **others} if not others:
            return side, crop
    raise AmexError(f"{what} resizes to {entries}; amex resizes to a height and width, or to a shorter side")


def statistics(processor: Any, offset: int) -> dict[str, tuple[float, float, float]]:
    """``mean`` and ``std`` of the Transform, on pixels in [0, 1], for a processor that subtracts ``offset``."""
    factor = processor.rescale_factor * 255 if getattr(processor, "do_rescale", None) else 255.0
    factor = 1.0 if math.isclose(factor, 1.0) else factor
    normalises = getattr(processor, "do_normalize", None)
    mean = processor.image_mean if normalises else [0.0] * 3
    std = processor.image_std if normalises else [1.0] * 3
    return {
        "mean": tuple((value + offset) / factor for value in mean),
        "std": tuple(value / factor for value in std),
    }


def does(transform: Transform, processor: Any, kind: str, size: tuple[int, int], what: str) -> bool:
    """Whether a Transform and a processor make the same of a frame, but for rounding."""
    # Neither black nor white: bicubic resampling leaves their range, and only some processors bring it back.
    frame = np.random.default_rng(0).integers(64, 192, (*size, 3), dtype=np.uint8)
    given = {"videos": [[frame] * 2], "do_sample_frames": False} if kind == "video" else {"images": [frame]}
    try:
        output = processor(**given, return_tensors="pt")
        ours = transform(frame)
    except Exception as error:  # of many kinds
        raise AmexError(f"{what} cannot be used: {type(error).__name__}: {first_line(error)}") from error
    theirs = next(iter(output.values()))
    theirs = (theirs[0, 0] if kind == "video" else theirs[0]).numpy()
    if theirs.shape != (3, *ours.shape[:2]):
        return False
    levels = (theirs.transpose(1, 2, 0) * np.array(transform.std) + np.array(transform.mean)) * 255
    difference = np.abs(levels - ours)
    return difference.max() <= MOST_LEVELS and difference.mean() <= MEAN_LEVELS
