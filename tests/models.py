"""Directories of small transformers models with their own tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as t
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizerFast,
    CLIPVisionConfig,
    PreTrainedConfig,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.image_processing_utils import BaseImageProcessor
from transformers.video_processing_utils import BaseVideoProcessor

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "pushes",
    "is",
    "pushed",
    "by",
    "moves",
    "left",
    "##s",
    "##ing",
]


def tiny_bert(folder: Path) -> Path:
    """Write a BERT with two layers of width 32 and a tokenizer of WORDS."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder


def tiny_clip(folder: Path, *, side: int = 32, patch: int = 8, dim: int = 24) -> Path:
    """Write a CLIP. By default its towers have two layers, images are 32x32 pixels and the projection has length 24."""
    folder.mkdir(parents=True)
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = CLIPTextConfig(
        vocab_size=len(tokens), projection_dim=dim, bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, **layers
    )
    vision = CLIPVisionConfig(image_size=side, patch_size=patch, projection_dim=dim, **layers)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=dim)
    CLIPModel(config).save_pretrained(folder)
    return folder


# Layers of every tiny transformer.
LAYERS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
SQUARE = {"height": 32, "width": 32}


def vision_models() -> dict[str, tuple[PreTrainedConfig, BaseImageProcessor]]:
    """Return tiny image models: family -> configuration and processor."""
    patches = {"image_size": 32, "patch_size": 8}
    few = {key: value for key, value in LAYERS.items() if key != "intermediate_size"}
    text = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, **LAYERS}
    stages = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    short = {"size": {"shortest_edge": 36}, "crop_size": SQUARE}
    return {
        "siglip": (
            t.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=patches | LAYERS),
            t.SiglipImageProcessorPil(size=SQUARE),
        ),
        "siglip_vision": (t.SiglipVisionConfig(**patches, **LAYERS), t.SiglipImageProcessorPil(size=SQUARE)),
        "clip": (
            t.CLIPConfig(
                text_config={**text, "projection_dim": 24},
                vision_config={**patches, **LAYERS, "projection_dim": 24},
                projection_dim=24,
            ),
            t.CLIPImageProcessorPil(**short),
        ),
        "clip_vision": (t.CLIPVisionConfig(**patches, **LAYERS), t.CLIPImageProcessorPil(**short)),
        "dinov2": (t.Dinov2Config(**patches, **few), t.BitImageProcessorPil(**short)),
        "dinov3": (
            t.DINOv3ViTConfig(**patches, **LAYERS, num_register_tokens=4),
            t.DINOv3ViTImageProcessor(size=SQUARE),
        ),
        "vit": (t.ViTConfig(**patches, **LAYERS), t.ViTImageProcessorPil(size=SQUARE)),
        "convnext": (
            t.ConvNextConfig(**stages),
            t.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875),
        ),
        "resnet": (
            t.ResNetConfig(**stages, embedding_size=8, layer_type="basic"),
            t.ConvNextImageProcessorPil(size={"shortest_edge": 384}),
        ),
    }


def video_models() -> dict[str, tuple[PreTrainedConfig, BaseVideoProcessor]]:
    """Return tiny video models with windows of four frames: family -> configuration and processor."""
    patches = {"image_size": 32, "patch_size": 8, "num_frames": 4}
    short = {"size": {"shortest_edge": 32}, "crop_size": SQUARE}
    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    jepa = {**LAYERS, "patch_size": 8, "crop_size": 32, "frames_per_clip": 4, **predictor}
    return {
        "videomae": (t.VideoMAEConfig(**patches, **LAYERS), t.VideoMAEVideoProcessor(**short)),
        "vivit": (
            t.VivitConfig(image_size=32, num_frames=4, tubelet_size=[2, 8, 8], **LAYERS),
            t.VivitVideoProcessor(**short),
        ),
        "timesformer": (t.TimesformerConfig(**patches, **LAYERS), t.TimesformerVideoProcessor(**short)),
        "vjepa2": (t.VJEPA2Config(**jepa), t.VJEPA2VideoProcessor(crop_size=32)),
    }


def save_model(config: PreTrainedConfig, processor: BaseImageProcessor | BaseVideoProcessor, folder: Path) -> Path:
    """Write a model with random weights and its processor to a directory."""
    torch.manual_seed(0)
    t.AutoModel.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
