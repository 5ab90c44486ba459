"""Small transformers models with tokenizers of their own, as directories."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizerFast,
    CLIPVisionConfig,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

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
    """A BERT of two layers, 32 wide, whose tokenizer knows WORDS."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder


def tiny_clip(folder: Path) -> Path:
    """A CLIP with towers of two layers that looks at 32x32 pixels and projects to 24."""
    folder.mkdir(parents=True)
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = CLIPTextConfig(
        vocab_size=len(tokens), projection_dim=24, bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, **layers
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=24, **layers)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    return folder
