"""The names of networks and kinds of networks on the command line.

Imports nothing heavy, so that commands can check their options first.
"""

from __future__ import annotations

from ...errors import AmexError

# The kinds KIND of ``--stream NAME=KIND:WHICH``.
KINDS = {
    "mmdet": "objects by any MMDetection configuration: its name or a file",
    "frames": "frames by any vision model of transformers: a directory or a name on its hub",
    "video": "windows of frames by any video model of transformers: a directory or a name on its hub",
    "clip": "frames by any CLIP's vision tower, as in CLIP4Clip: a directory or a name on its hub",
    "timm": "frames by any model of timm",
    "python": "windows of frames by a network of your own, which the function MODULE:FACTORY returns",
    "text": "captions by any transformers encoder: a directory, minilm, or a name on the model hub",
}

# Networks of windows and frames -> their default presets. ``clip`` is written clip:MODEL on the command line.
DEFAULT_PRESET = {
    "r2plus1d_18": "r2plus1d_18",
    "s3d": "s3d",
    "i3d_rgb": "i3d",
    "resnet152": "frames_1fps_shown",
    "efficientnet_lite0": "efficientnet_lite0",
    "efficientnet_lite1": "efficientnet_lite1",
    "efficientnet_lite2": "efficientnet_lite2",
    "s3d_milnce": "mil_nce_16fps",
    "s3d_milnce_joint": "mil_nce_16fps",
    "slowfast_r50": "slowfast_2s",
    "resnext101_3d": "howto100m_3d",
    "clip_vit_b32": "clip4clip_shown",
    "clip": "clip4clip_shown",
    "r2plus1d_tiny": "r2plus1d_tiny",
}

# Names of detectors -> their MMDetection configurations.
ALIASES = {"frcnn_r50_coco": "faster-rcnn_r50_fpn_1x_coco", "shapes_detector": "shapes_detector"}

# Names of text encoders -> their default models.
DEFAULT_MODELS = {"text_bert": "google-bert/bert-base-uncased", "text_clip": "openai/clip-vit-base-patch32"}


def is_text(network: str) -> bool:
    """Return whether a network of ``--stream NAME=NETWORK`` reads captions."""
    return network.partition(":")[0] == "text" or network in DEFAULT_MODELS


def check_network(stream: str, network: str) -> None:
    """Check the name or kind of a network of ``--stream NAME=NETWORK``.

    Raises:
        AmexError: if it is unknown; the message suggests similar names.
    """
    from .settings import check_name  # imports decoders

    kind, colon, which = network.partition(":")
    if not colon:
        networks = [name for name in DEFAULT_PRESET if name != "clip"]
        check_name(network, [*networks, *ALIASES, *DEFAULT_MODELS], "stream")
    elif not which or kind not in KINDS:
        forms = ", ".join(f"{kind}:WHICH ({what})" for kind, what in KINDS.items())
        raise AmexError(f"stream {stream}: unknown {network!r}; use one of {forms}")
