"""Recipes: the streams of a paper, with its names and conventions.

A recipe is a set of options for ``amex extract``; ``Recipe.arguments`` lists them. ``note`` describes where the
features differ from the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .settings import check_name


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The streams of one paper or program.

    Attributes:
        streams: name in the store -> network, for ``--stream NAME=NETWORK``.
        presets: stream -> preset, for ``--preset``.
        settings: stream -> options, for ``--set``.
        source: paper and code that define the convention.
        note: differences from the source, and choices of the user.
    """

    streams: Mapping[str, str]
    presets: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    source: str
    note: str

    @property
    def arguments(self) -> list[str]:
        """The equivalent options of ``amex extract``."""
        streams = [name if name == network else f"{name}={network}" for name, network in self.streams.items()]
        return [
            *(f"--stream {stream}" for stream in streams),
            *(f"--preset {name}={preset}" for name, preset in self.presets.items()),
            *(f"--set {name}.{key}={value}" for name, pairs in self.settings.items() for key, value in pairs.items()),
        ]


_HGR = {
    "streams": {"resnet152": "resnet152"},
    "presets": {"resnet152": "frames_1fps"},
    "settings": {"resnet152": {"fps": "native", "stride": "16"}},
}

RECIPES: dict[str, Recipe] = {
    "clip4clip": Recipe(
        streams={"clip_vit_b32": "clip_vit_b32", "text_clip": "text_clip"},
        presets={"clip_vit_b32": "clip4clip"},
        source="Luo et al., CLIP4Clip, 2021; ArrowLuo/CLIP4Clip with --feature_framerate 1",
        note="OpenAI's published CLIP. CLIP4Clip also trains both towers, on 12 of the frames.",
    ),
    "moment_detr": Recipe(
        streams={
            "slowfast_features": "slowfast_r50",
            "clip_features": "clip_vit_b32",
            "clip_text_features": "text_clip",
        },
        presets={"slowfast_features": "slowfast_2s", "clip_features": "clip4clip"},
        settings={"clip_features": {"fps": "0.5"}},
        source="Lei et al., Moment-DETR, NeurIPS 2021; linjieli222/HERO_Video_Feature_Extractor with --clip_len 2",
        note=(
            "SlowFast with PyTorchVideo's checkpoint; the release uses PySlowFast's, a pickle with another layout. A "
            "window is every second frame at 30 fps; in the release its length also depends on the file's frame rate. "
            "Not L2-normalised, because Moment-DETR normalises features when it loads them."
        ),
    ),
    "hero": Recipe(
        streams={"slowfast_features": "slowfast_r50", "resnet_features": "resnet152"},
        presets={"slowfast_features": "slowfast_2s", "resnet_features": "howto100m_2d"},
        settings={"resnet_features": {"fps": "0.5"}},
        source="Li et al., HERO, EMNLP 2020; linjieli222/HERO_Video_Feature_Extractor with --clip_len 2",
        note="SlowFast as in moment_detr. ResNet features are not L2-normalised; those of the release are.",
    ),
    "howto100m": Recipe(
        streams={"resnet152": "resnet152", "resnext101_3d": "resnext101_3d"},
        presets={"resnet152": "howto100m_2d", "resnext101_3d": "howto100m_3d"},
        source="Miech et al., HowTo100M, ICCV 2019; antoine77340/video_feature_extractor, --type 2d and --type 3d",
        note=(
            "Not L2-normalised; the features of the release are. The last 3D window is filled with its last frame; in "
            "the release with black frames."
        ),
    ),
    "coot": Recipe(
        streams={"video_feat_100m": "s3d_milnce_joint", "text_bert": "text_bert"},
        presets={"video_feat_100m": "mil_nce_16fps_256"},
        settings={"text_bert": {"layers": "2"}},
        source=(
            "Ging et al., COOT, NeurIPS 2020; simon-ging/coot-videotext, extract_100m_features.py and "
            "config/retrieval/paper2020/yc2_100m_coot.yaml"
        ),
        note=(
            "Follows the scripts; the released features have 10 fps and 224 pixels. No JPEG compression between "
            "decoding and network. The last window is filled with its last frame; in the source it starts earlier. "
            "Each caption is encoded alone, not in its paragraph."
        ),
    ),
    "mmpt": Recipe(
        streams={"s3d": "s3d_milnce_joint", "text_bert": "text_bert"},
        presets={"s3d": "mil_nce_30fps"},
        source="Xu et al., VideoCLIP, EMNLP 2021; fairseq/examples/MMPT, --type s3d",
        note="The last window repeats its last frame.",
    ),
    "hgr": Recipe(
        **_HGR,
        source="Chen et al., HGR, CVPR 2020; cshizhe/hgr_v2t, issue 6: ResNet-152, one frame every 16 of MSR-VTT",
        note="Resize and crop of the release are unknown; amex uses 256/224. TGIF: --set resnet152.stride=8.",
    ),
    "mcsan": Recipe(
        **_HGR,
        source="Nian et al., MCSAN, Mathematics 2022, features unknown; those of HANet on MSR-VTT, which are HGR's",
        note="A reconstruction. For VATEX, HANet uses I3D: use --stream i3d_rgb instead.",
    ),
    "amenet": Recipe(
        streams={
            "resnet152": "resnet152",
            "r2plus1d_18": "r2plus1d_18",
            "frcnn_r50_coco": "frcnn_r50_coco",
            "text_bert": "text_bert",
        },
        settings={"frcnn_r50_coco": {"count": "8", "boxes": "36"}},
        source=(
            "Han et al., AME-Net, ACM TOMM 2022, features unknown; 36 regions per frame and global features of 2048 + "
            "512, as in BiC-Net by the same authors, lionel-hing/BiC-Net"
        ),
        note=(
            "A reconstruction for the configuration amenet_msrvtt: objects of COCO with 1024 numbers each. BiC-Net's "
            "tokens use two layers: --set text_bert.layers=2."
        ),
    ),
    "hcmi": Recipe(
        streams={"clip_vit_b32": "clip_vit_b32", "text_clip": "text_clip"},
        presets={"clip_vit_b32": "clip4clip"},
        source="Jiang et al., HunYuan_tvr (HCMI), 2022: frames and words of CLIP; one frame a second as CLIP4Clip",
        note=(
            "The CLIP and the frames behind the paper's figures are unknown. The configuration hcmi_msrvtt trains its "
            "own text tower and does not need text_clip."
        ),
    ),
}


def find_recipe(name: str) -> Recipe:
    """Return a recipe by name. Raise AmexError, which suggests a similar name, if there is none."""
    return RECIPES[check_name(name, RECIPES, "recipe")]
