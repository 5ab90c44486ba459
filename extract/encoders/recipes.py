"""What the users of a paper extract: its streams under its names, fed by its convention.

A recipe stands for options of ``amex extract``, which ``Recipe.arguments`` spells out, and computes nothing itself.
Where amex cannot follow a source, ``note`` says how the numbers differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .settings import known


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Streams of one paper or program.

    Attributes:
        streams: name in the store -> network, as ``--stream NAME=NETWORK``.
        presets: by stream, as ``--preset``.
        settings: by stream, as ``--set``.
        source: whose convention it is.
        note: what differs from it, what it leaves to the user.
    """

    streams: Mapping[str, str]
    presets: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    source: str
    note: str

    @property
    def arguments(self) -> list[str]:
        """The options of ``amex extract`` that it stands for."""
        given = [name if name == network else f"{name}={network}" for name, network in self.streams.items()]
        return [
            *(f"--stream {stream}" for stream in given),
            *(f"--preset {name}={preset}" for name, preset in self.presets.items()),
            *(f"--set {name}.{key}={value}" for name, of in self.settings.items() for key, value in of.items()),
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
        note="CLIP as OpenAI published it: CLIP4Clip goes on to train both towers, on 12 of the frames.",
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
            "SlowFast with PyTorchVideo's checkpoint; the release has PySlowFast's, a pickle of another layout. A "
            "window is every second frame at 30 fps; there its length also follows the file's own rate. Not L2-normed: "
            "Moment-DETR norms what it loads."
        ),
    ),
    "hero": Recipe(
        streams={"slowfast_features": "slowfast_r50", "resnet_features": "resnet152"},
        presets={"slowfast_features": "slowfast_2s", "resnet_features": "howto100m_2d"},
        settings={"resnet_features": {"fps": "0.5"}},
        source="Li et al., HERO, EMNLP 2020; linjieli222/HERO_Video_Feature_Extractor with --clip_len 2",
        note="SlowFast as in moment_detr. ResNet features are not L2-normed; the release's are.",
    ),
    "howto100m": Recipe(
        streams={"resnet152": "resnet152", "resnext101_3d": "resnext101_3d"},
        presets={"resnet152": "howto100m_2d", "resnext101_3d": "howto100m_3d"},
        source="Miech et al., HowTo100M, ICCV 2019; antoine77340/video_feature_extractor, --type 2d and --type 3d",
        note="Not L2-normed; the release's are. The last 3D window is filled with its last frame, there with black.",
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
            "By the scripts; the released features have 10 fps and 224 pixels. No JPEG between decoding and network. "
            "The last window is filled with its last frame; there it begins earlier. Each caption is encoded alone, "
            "not in its paragraph."
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
        note="Resize and crop of the release are not known: 256/224. TGIF: --set resnet152.stride=8.",
    ),
    "mcsan": Recipe(
        **_HGR,
        source="Nian et al., MCSAN, Mathematics 2022, features not known; HANet's on MSR-VTT, which are HGR's",
        note="A reconstruction. For VATEX, HANet takes I3D: --stream i3d_rgb instead.",
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
            "Han et al., AME-Net, ACM TOMM 2022, features not known; 36 regions a frame, and global features of 2048 + "
            "512, as BiC-Net by the same authors, lionel-hing/BiC-Net"
        ),
        note=(
            "A reconstruction, as the configuration amenet_msrvtt reads it: objects of COCO, 1024 numbers each. Tokens "
            "of BiC-Net have two layers: --set text_bert.layers=2."
        ),
    ),
    "hcmi": Recipe(
        streams={"clip_vit_b32": "clip_vit_b32", "text_clip": "text_clip"},
        presets={"clip_vit_b32": "clip4clip"},
        source="Jiang et al., HunYuan_tvr (HCMI), 2022: frames and words of CLIP; one frame a second as CLIP4Clip",
        note=(
            "Which CLIP and which frames the paper's figures are of is not known. The configuration hcmi_msrvtt trains "
            "a text tower of its own and needs no text_clip."
        ),
    ),
}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name; raises AmexError with the nearest one for another."""
    return RECIPES[known(name, RECIPES, "recipe")]
