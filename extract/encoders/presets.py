"""The streams amex can make: which network, fed how. Names for the conventions that published features follow.

Every number here changes features. None may change under its name: a new convention gets a new name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...errors import AmexError
from ..video import Sampling, Transform
from .efficientnet import VARIANTS
from .networks import NETWORKS, NetworkModel, find_network
from .settings import known, sampling_and_more
from .weights import FromHub, WeightsError, digest, model_directory, weights_file
from .windows import WindowPlan


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A way of feeding frames to a network. ``source`` says whose it is."""

    sampling: Sampling
    transform: Transform
    source: str


KINETICS = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIGNED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # to [-1, 1]
TINY = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # to [0, 1]
HOWTO100M = {"mean": (110.6 / 255, 103.2 / 255, 96.3 / 255), "std": (1 / 255, 1 / 255, 1 / 255)}
SLOWFAST = {"mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225)}
# What the batch-norms of the checkpoints saw: of the two conventions in use with them, this one has their statistics.
TENSORFLOW = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}

_R2PLUS1D = Transform(resize=(128, 171), crop=(112, 112), **KINETICS)
_MMACTION = Transform(resize=256, crop=(224, 224), **IMAGENET)
_I3D = Transform(resize=256, antialias=True, crop=(224, 224), **SIGNED)
_MIL_NCE = Transform(resize=224, antialias=True, crop=(224, 224), **UNIT)

PRESETS: dict[str, Preset] = {
    "r2plus1d_18": Preset(
        sampling=Sampling(frames=16, stride=16),
        transform=_R2PLUS1D,
        source="video_features r21d: native rate, 16 every 16, 128x171/112; the tail padded, not dropped",
    ),
    "r2plus1d_tiny": Preset(
        sampling=Sampling(fps=8, frames=12, stride=4),
        transform=Transform(resize=(96, 96), antialias=True, crop=None, **TINY),
        source="amex's own network for Shapes: 8 fps, 12 frames every 4, 96x96",
    ),
    "s3d": Preset(
        sampling=Sampling(frames=64, stride=64),
        transform=Transform(resize=(256, 256), crop=(224, 224), **KINETICS),
        source="torchvision S3D, windows as video_features i3d",
    ),
    "i3d": Preset(
        sampling=Sampling(frames=64, stride=64),
        transform=_I3D,
        source="video_features i3d rgb: native rate, 64 every 64, short side 256, crop 224, [-1, 1]",
    ),
    "i3d_25fps": Preset(
        sampling=Sampling(fps=25, frames=64, stride=64),
        transform=_I3D,
        source="video_features i3d rgb with extraction_fps=25",
    ),
    "mmaction2_32x2": Preset(
        sampling=Sampling(frames=32, step=2, stride=64),
        transform=_MMACTION,
        source="mmaction2 i3d-r50 and r2plus1d-34: 32 frames, every second one; 256/224",
    ),
    "mmaction2_8x8": Preset(
        sampling=Sampling(frames=8, step=8, stride=64),
        transform=_MMACTION,
        source="mmaction2 r2plus1d-34: 8 frames, every eighth one; 256/224",
    ),
    "ig65m_8": Preset(
        sampling=Sampling(frames=8, stride=8),
        transform=_R2PLUS1D,
        source="r2plus1d-34 ig65m, 8 frames",
    ),
    "ig65m_32": Preset(
        sampling=Sampling(frames=32, stride=32),
        transform=_R2PLUS1D,
        source="r2plus1d-34 ig65m, 32 frames",
    ),
    "mil_nce_16fps": Preset(
        sampling=Sampling(fps=16, frames=32, stride=16),
        transform=_MIL_NCE,
        source="coot-videotext's MIL-NCE S3D: 16 fps, 32 frames every 16, [0, 1]",
    ),
    "mil_nce_30fps": Preset(
        sampling=Sampling(fps=30, frames=30, stride=30),
        transform=_MIL_NCE,
        source="MMPT's MIL-NCE S3D: 30 fps, 30 frames every 30, [0, 1]",
    ),
    "mil_nce_16fps_256": Preset(
        sampling=Sampling(fps=16, frames=32, stride=16),
        transform=dataclasses.replace(_MIL_NCE, resize=256, crop=(256, 256)),
        source="coot-videotext's scripts: 16 fps, 32 frames every 16, 256x256, [0, 1]; the tail padded, not shifted",
    ),
    "slowfast_2s": Preset(
        sampling=Sampling(fps=30, frames=32, step=2, stride=60),
        transform=Transform(resize=224, interpolation="bicubic", antialias=True, crop=(224, 224), **SLOWFAST),
        source="HERO_Video_Feature_Extractor slowfast: 30 fps, 32 frames, every second one, every 2 s; 224",
    ),
    "howto100m_3d": Preset(
        sampling=Sampling(fps=24, frames=16, stride=16),
        transform=Transform(resize=112, antialias=True, crop=(112, 112), **HOWTO100M),
        source="video_feature_extractor 3d: 24 fps, 16 every 16, mean 110.6 std 1; not L2-normed, no black frames",
    ),
    "howto100m_2d": Preset(
        sampling=Sampling(fps=1, frames=1, stride=1),
        transform=Transform(resize=224, interpolation="bicubic", antialias=True, crop=None, **IMAGENET),
        source="video_feature_extractor 2d as its program does it: short side 224, the whole frame; not L2-normed",
    ),
    "frames_1fps": Preset(
        sampling=Sampling(fps=1, frames=1, stride=1),
        transform=Transform(resize=256, antialias=True, crop=(224, 224), **IMAGENET),
        source="video_feature_extractor 2d: one frame a second, ImageNet 256/224",
    ),
    "clip4clip": Preset(
        sampling=Sampling(fps=1, frames=1, stride=1),
        transform=Transform(resize=224, interpolation="bicubic", antialias=True, crop=(224, 224), **CLIP),
        source="CLIP4Clip: one frame a second, 224 bicubic, CLIP's mean and std",
    ),
}
# The conventions above resample as ffmpeg's fps filter does, to the nearest frame. These two take the frame on screen.
for _name in ("frames_1fps", "clip4clip"):
    _preset = PRESETS[_name]
    PRESETS[f"{_name}_shown"] = dataclasses.replace(
        _preset,
        sampling=dataclasses.replace(_preset.sampling, at="shown"),
        source=f"as {_name}, but each second the frame that is on screen then",
    )

# The centre that remains of the image when 32 pixels are cut off at the network's own size, as in its evaluation.
for _variant, (*_, _side) in VARIANTS.items():
    PRESETS[f"efficientnet_lite{_variant}"] = Preset(
        sampling=Sampling(fps=1, frames=1, stride=1, at="shown"),
        transform=Transform(
            resize=_side + 32, interpolation="bicubic", antialias=True, crop=(_side, _side), **TENSORFLOW
        ),
        source=f"EfficientNet-Lite's evaluation: {_side + 32}/{_side} bicubic, mean 127, std 128; one frame a second",
    )

# What each network is fed unless another preset is asked for.
DEFAULT_PRESET = {
    "r2plus1d_18": "r2plus1d_18",
    "s3d": "s3d",
    "i3d_rgb": "i3d",
    "resnet152": "frames_1fps_shown",
    **{f"efficientnet_lite{variant}": f"efficientnet_lite{variant}" for variant in VARIANTS},
    "s3d_milnce": "mil_nce_16fps",
    "s3d_milnce_joint": "mil_nce_16fps",
    "slowfast_r50": "slowfast_2s",
    "resnext101_3d": "howto100m_3d",
    "clip_vit_b32": "clip4clip_shown",
    "clip": "clip4clip_shown",
    "r2plus1d_tiny": "r2plus1d_tiny",
}


def plan_windows(
    name: str,
    *,
    network: str,
    weights: str,
    precision: str,
    preset: str | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
    compiled: bool = False,
    batch_size: int = 1,
) -> WindowPlan:
    """A stream of windows from what the command line says of it.

    Args:
        network: a key of NETWORKS, or ``clip``.
        weights: ``default``, a path or ``random:SEED``; a CLIP's directory or name on a hub.
        preset: a key of PRESETS, None for the network's own.
        options: sampling options by name, as text: fps, count, at, frames, step, stride, tail.

    Raises:
        AmexError: naming the stream and what is unknown, out of range or not to be had.
    """
    chosen = PRESETS[known(preset or DEFAULT_PRESET[network], PRESETS, "preset")]
    sampling, _ = sampling_and_more(name, chosen.sampling, options)
    try:
        located = network_weights(network, weights)
    except WeightsError as error:
        raise WeightsError(f"stream {name}: {error}") from error
    kind = find_network(network, located)
    if kind.of_images and sampling.frames != 1:
        raise AmexError(f"stream {name}: {network} looks at single frames: --set {name}.frames=1")
    if sampling.frames < kind.least_frames:
        raise AmexError(
            f"stream {name}: {network} needs windows of at least {kind.least_frames} frames, got {sampling.frames}"
        )
    if sampling.frames % kind.multiple:
        raise AmexError(
            f"stream {name}: {network} needs windows whose frames are a multiple of {kind.multiple}, got "
            f"{sampling.frames}"
        )
    transform = chosen.transform
    if network == "clip" and transform.crop not in (None, kind.example[-2:]):
        transform = dataclasses.replace(transform, resize=kind.example[-1], crop=kind.example[-2:])
    return WindowPlan(
        name=name,
        model=NetworkModel(network=network, weights=located, weights_sha256=digest(located), dim=kind.dim),
        sampling=sampling,
        transform=transform,
        precision=precision,
        compiled=compiled,
        batch_size=batch_size,
    )


def network_weights(network: str, weights: str) -> str:
    """Where the weights of a network are; AmexError if they cannot be had or are another network's."""
    default = None if network == "clip" else NETWORKS[network].published
    if weights.startswith("random:") or not (network == "clip" or isinstance(default, FromHub)):
        return weights_file(weights, default)
    located = model_directory(default.name if weights == "default" and default else weights)
    if default and find_network("clip", located).dim != NETWORKS[network].dim:
        raise AmexError(f"{located} is not {network}, but another CLIP: --stream NAME=clip:{weights}")
    return located
