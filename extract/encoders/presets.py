"""Presets: the sampling and transform of published features, by name.

Every number here changes features. A preset must never change: a new convention gets a new name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...errors import AmexError, plural
from ..video import Sampling, Transform
from .efficientnet import VARIANTS
from .kinds import DEFAULT_PRESET
from .networks import NETWORKS, NetworkModel, find_network
from .settings import check_name, parse_sampling
from .weights import FromHub, WeightsError, digest, model_directory, weights_file
from .windows import WindowPlan


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Sampling and transform of a published convention. ``source`` describes its origin."""

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
# Two conventions are in use with these checkpoints. This one matches the statistics of their batch-norms.
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
        source="video_features r21d, 128x171/112; pads the tail",
    ),
    "r2plus1d_tiny": Preset(
        sampling=Sampling(fps=8, frames=12, stride=4),
        transform=Transform(resize=(96, 96), antialias=True, crop=None, **TINY),
        source="amex's own network for Shapes, 96x96",
    ),
    "s3d": Preset(
        sampling=Sampling(frames=64, stride=64),
        transform=Transform(resize=(256, 256), crop=(224, 224), **KINETICS),
        source="torchvision S3D, windows of i3d",
    ),
    "i3d": Preset(
        sampling=Sampling(frames=64, stride=64),
        transform=_I3D,
        source="video_features i3d rgb, 256/224, [-1, 1]",
    ),
    "i3d_25fps": Preset(
        sampling=Sampling(fps=25, frames=64, stride=64),
        transform=_I3D,
        source="video_features i3d rgb with extraction_fps=25",
    ),
    "mmaction2_32x2": Preset(
        sampling=Sampling(frames=32, step=2, stride=64),
        transform=_MMACTION,
        source="mmaction2 i3d-r50, r2plus1d-34, 256/224",
    ),
    "mmaction2_8x8": Preset(
        sampling=Sampling(frames=8, step=8, stride=64),
        transform=_MMACTION,
        source="mmaction2 r2plus1d-34, 256/224",
    ),
    "ig65m_8": Preset(
        sampling=Sampling(frames=8, stride=8),
        transform=_R2PLUS1D,
        source="r2plus1d-34 ig65m",
    ),
    "ig65m_32": Preset(
        sampling=Sampling(frames=32, stride=32),
        transform=_R2PLUS1D,
        source="r2plus1d-34 ig65m",
    ),
    "mil_nce_16fps": Preset(
        sampling=Sampling(fps=16, frames=32, stride=16),
        transform=_MIL_NCE,
        source="coot-videotext's MIL-NCE S3D, [0, 1]",
    ),
    "mil_nce_30fps": Preset(
        sampling=Sampling(fps=30, frames=30, stride=30),
        transform=_MIL_NCE,
        source="MMPT's MIL-NCE S3D, [0, 1]",
    ),
    "mil_nce_16fps_256": Preset(
        sampling=Sampling(fps=16, frames=32, stride=16),
        transform=dataclasses.replace(_MIL_NCE, resize=256, crop=(256, 256)),
        source="coot-videotext's scripts, 256x256, [0, 1]; pads the tail",
    ),
    "slowfast_2s": Preset(
        sampling=Sampling(fps=30, frames=32, step=2, stride=60),
        transform=Transform(resize=224, interpolation="bicubic", antialias=True, crop=(224, 224), **SLOWFAST),
        source="HERO_Video_Feature_Extractor slowfast, 224",
    ),
    "howto100m_3d": Preset(
        sampling=Sampling(fps=24, frames=16, stride=16),
        transform=Transform(resize=112, antialias=True, crop=(112, 112), **HOWTO100M),
        source="video_feature_extractor 3d, mean 110.6 std 1, no L2 norm, no black frames",
    ),
    "howto100m_2d": Preset(
        sampling=Sampling(fps=1, frames=1, stride=1),
        transform=Transform(resize=224, interpolation="bicubic", antialias=True, crop=None, **IMAGENET),
        source="video_feature_extractor 2d, short side 224, whole frame, no L2 norm",
    ),
    "frames_1fps": Preset(
        sampling=Sampling(fps=1, frames=1, stride=1),
        transform=Transform(resize=256, antialias=True, crop=(224, 224), **IMAGENET),
        source="video_feature_extractor 2d, ImageNet 256/224",
    ),
    "clip4clip": Preset(
        sampling=Sampling(fps=1, frames=1, stride=1),
        transform=Transform(resize=224, interpolation="bicubic", antialias=True, crop=(224, 224), **CLIP),
        source="CLIP4Clip, 224 bicubic, CLIP's mean and std",
    ),
}
# The presets above sample the nearest frame, like ffmpeg's fps filter. These two sample the frame on screen.
for _name in ("frames_1fps", "clip4clip"):
    _preset = PRESETS[_name]
    PRESETS[f"{_name}_shown"] = dataclasses.replace(
        _preset,
        sampling=dataclasses.replace(_preset.sampling, at="shown"),
        source=f"{_name}, but the frame on screen at each second",
    )

# As in the networks' evaluation: resize to 32 pixels more than the input size, then crop the centre.
for _variant, (*_, _side) in VARIANTS.items():
    PRESETS[f"efficientnet_lite{_variant}"] = Preset(
        sampling=Sampling(fps=1, frames=1, stride=1, at="shown"),
        transform=Transform(
            resize=_side + 32, interpolation="bicubic", antialias=True, crop=(_side, _side), **TENSORFLOW
        ),
        source=f"EfficientNet-Lite's evaluation: {_side + 32}/{_side} bicubic, mean 127, std 128",
    )


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
    """Plan a stream of a network that amex knows by name.

    Args:
        name: of the stream.
        network: a key of NETWORKS, or ``clip``.
        weights: ``default``, a path or ``random:SEED``; for a CLIP, its directory or name on the model hub.
        preset: a key of PRESETS; None for the network's default.
        options: options of sampling, values as text: fps, count, at, frames, step, stride, tail.

    Raises:
        AmexError: if the weights cannot be loaded, or an option is unknown or out of range.
    """
    chosen = PRESETS[check_name(preset or DEFAULT_PRESET[network], PRESETS, "preset")]
    sampling, _ = parse_sampling(name, chosen.sampling, options)
    try:
        location = network_weights(network, weights)
    except WeightsError as error:
        raise WeightsError(f"stream {name}: {error}") from error
    kind = find_network(network, location)
    if kind.of_images and sampling.frames != 1:
        raise AmexError(f"stream {name}: {network} takes single frames: --set {name}.frames=1")
    if sampling.frames < kind.least_frames:
        raise AmexError(
            f"stream {name}: {network} needs windows of at least {plural(kind.least_frames, 'frame')}, "
            f"got {sampling.frames}"
        )
    if sampling.frames % kind.multiple:
        raise AmexError(
            f"stream {name}: {network} needs windows whose number of frames is a multiple of {kind.multiple}, got "
            f"{sampling.frames}"
        )
    transform = chosen.transform
    if network == "clip" and transform.crop not in (None, kind.example[-2:]):
        transform = dataclasses.replace(transform, resize=kind.example[-1], crop=kind.example[-2:])
    return WindowPlan(
        name=name,
        model=NetworkModel(network=network, weights=location, weights_sha256=digest(location), dim=kind.dim),
        sampling=sampling,
        transform=transform,
        precision=precision,
        compiled=compiled,
        batch_size=batch_size,
    )


def network_weights(network: str, weights: str) -> str:
    """Return the path of a network's weights, or ``random:SEED``.

    Raises:
        AmexError: if the weights cannot be found, or belong to another network.
    """
    default = None if network == "clip" else NETWORKS[network].published
    if weights.startswith("random:") or not (network == "clip" or isinstance(default, FromHub)):
        return weights_file(weights, default)
    location = model_directory(default.name if weights == "default" and default else weights)
    if default and find_network("clip", location).dim != NETWORKS[network].dim:
        raise AmexError(f"{location} is not {network}, but another CLIP; use --stream NAME=clip:{weights}")
    return location
