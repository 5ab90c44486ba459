"""The streams amex can make: which network, fed how. Names for the conventions that published features follow.

Every number here changes features. None may change under its name: a new convention gets a new name.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..errors import AmexError
from .decode import DECORD_CODECS, DECORD_FILE_BYTES, DECORD_FRAME_BYTES
from .encoders import NETWORKS, Encoder, shared_encoder
from .sampling import Sampling
from .transform import Transform
from .weights import digest


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A way of feeding frames to a network. ``source`` says whose it is."""

    sampling: Sampling
    transform: Transform
    source: str


KINETICS = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIGNED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # to [-1, 1]
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # to [0, 1]
HOWTO100M = {"mean": (110.6 / 255, 103.2 / 255, 96.3 / 255), "std": (1 / 255, 1 / 255, 1 / 255)}
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
    "howto100m_3d": Preset(
        sampling=Sampling(fps=24, frames=16, stride=16),
        transform=Transform(resize=112, antialias=True, crop=(112, 112), **HOWTO100M),
        source="video_feature_extractor 3d: 24 fps, 16 every 16, mean 110.6 std 1; not L2-normed, no black frames",
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

# What each network is fed unless another preset is asked for.
DEFAULT_PRESET = {"r2plus1d_18": "r2plus1d_18", "s3d": "s3d", "i3d_rgb": "i3d", "resnet152": "frames_1fps"}


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """One stream of a run: all that a worker needs to compute it. Small, and sent with every part.

    Attributes:
        name: in the store.
        network: a key of NETWORKS.
        weights: from ``weights.locate``.
        weights_sha256: their digest.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: windows a batch; no part of the spec.
    """

    name: str
    network: str
    sampling: Sampling
    transform: Transform
    weights: str
    weights_sha256: str
    precision: str
    compiled: bool
    batch_size: int

    def encoder(self, device: str) -> Encoder:
        """The stream's network on a device, loaded once a process."""
        return shared_encoder(
            self.network,
            self.weights,
            self.weights_sha256,
            device=device,
            precision=self.precision,
            compiled=self.compiled,
        )

    @property
    def spec(self) -> dict[str, Any]:
        """All that decides the stream's numbers, for the store to fingerprint."""
        spec = {
            "network": self.network,
            "weights_sha256": self.weights_sha256,
            "sampling": dataclasses.asdict(self.sampling),
            "transform": dataclasses.asdict(self.transform),
            "output": {"shape": [NETWORKS[self.network].dim], "dtype": "float16"},
            "compute": {"precision": self.precision, "compiled": self.compiled},
            "decoder": {
                "name": "decord, else pyav",
                "decord_codecs": sorted(DECORD_CODECS),
                "decord_file_bytes": DECORD_FILE_BYTES,
                "decord_frame_bytes": DECORD_FRAME_BYTES,
            },
        }
        return json.loads(json.dumps(spec))  # as it reads back: lists, not tuples


def plan_stream(
    name: str,
    *,
    network: str,
    weights: str,
    precision: str,
    preset: str | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
    compiled: bool = False,
    batch_size: int = 1,
) -> StreamPlan:
    """A stream from what the command line says of it.

    Args:
        weights: from ``weights.locate``.
        preset: a key of PRESETS, None for the network's own.
        options: sampling options by name, as text: fps, frames, step, stride, tail.

    Raises:
        AmexError: naming the stream and what is unknown or out of range.
    """
    chosen = PRESETS[_known(preset or DEFAULT_PRESET[network], PRESETS, "preset")]
    sampling = dataclasses.replace(chosen.sampling, **_parse(name, options))
    kind = NETWORKS[network]
    if kind.of_images and sampling.frames != 1:
        raise AmexError(f"stream {name}: {network} looks at single frames: --set {name}.frames=1")
    if sampling.frames < kind.least_frames:
        raise AmexError(
            f"stream {name}: {network} needs windows of at least {kind.least_frames} frames, got {sampling.frames}"
        )
    return StreamPlan(
        name=name,
        network=network,
        sampling=sampling,
        transform=chosen.transform,
        weights=weights,
        weights_sha256=digest(kind.build, weights),
        precision=precision,
        compiled=compiled,
        batch_size=batch_size,
    )


def known_network(name: str) -> str:
    """``name`` if it is a network; raises AmexError with the nearest ones otherwise."""
    return _known(name, NETWORKS, "stream")


def _known(name: str, table: dict[str, Any], what: str) -> str:
    if name in table:
        return name
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise AmexError(f"unknown {what} {name!r}; {hint}there is {', '.join(table)}")


def _parse(stream: str, options: Mapping[str, str]) -> dict[str, Any]:
    parsers = {
        "fps": lambda text: None if text == "native" else float(text),
        "frames": int,
        "step": int,
        "stride": int,
        "tail": str,
    }
    parsed = {}
    for key, text in options.items():
        parser = parsers[_known(key, parsers, f"option of stream {stream}:")]
        try:
            parsed[key] = parser(text)
        except ValueError as error:
            raise AmexError(f"stream {stream}: {key}={text!r} is not a number") from error
    return parsed
