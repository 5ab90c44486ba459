"""Small networks that replace networks with downloaded weights, and Faster R-CNN, while pages of the docs run.

``warm_python`` imports this module in its server, so that the networks are replaced in all processes of a page.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from functools import partial
from pathlib import Path

import torch
from models import save_model, tiny_bert, tiny_clip, video_models, vision_models
from torch import nn

from amex.extract.encoders import networks, objects, weights

# Model of the hub -> function that saves a small model of the same kind in a folder.
HUB = {
    "openai/clip-vit-base-patch32": partial(tiny_clip, side=224, patch=32, dim=512),
    "google-bert/bert-base-uncased": tiny_bert,
    "sentence-transformers/all-mpnet-base-v2": tiny_bert,
    "google/siglip2-base-patch16-224": lambda folder: save_model(*vision_models()["siglip"], folder),
    "facebook/dinov2-base": lambda folder: save_model(*vision_models()["dinov2"], folder),
    "MCG-NJU/videomae-base": lambda folder: save_model(*video_models()["videomae"], folder),
}


class Thin(nn.Module):
    """A linear layer on the mean colours of the four quarters of a picture."""

    def __init__(self, example: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(12, dim)
        self.pool = nn.AdaptiveAvgPool2d(2) if len(example) == 3 else nn.AdaptiveAvgPool3d((1, 2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.pool(x.to(self.linear.weight.dtype)).flatten(1))


def replace_downloads() -> None:
    """Replace the networks, and the functions that download."""
    thin = {}
    for name, network in networks.NETWORKS.items():
        if isinstance(network.published, weights.Published | weights.UserSupplied):
            thin[network.published.url] = partial(Thin, network.example, network.dim)
            made = {"build": thin[network.published.url], "headless": lambda module: module, "least_frames": 1}
            networks.NETWORKS[name] = dataclasses.replace(network, **made)

    def fetch(published: weights.Published) -> Path:
        if published.url not in thin:
            raise weights.WeightsError(f"no network in this test: {published.url}")
        published.path.parent.mkdir(parents=True, exist_ok=True)
        if not published.path.exists():
            torch.save(weights.draw(thin[published.url], "random:0").state_dict(), published.path)
        return published.path

    def snapshot_download(name: str, **given: object) -> str:
        folder = Path(os.environ["HF_HOME"]) / f"models--{name.replace('/', '--')}" / "snapshots" / ("0" * 40)
        if name not in HUB:
            raise OSError(f"no network in this test: {name}")
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as own:
                HUB[name](Path(own) / "model").rename(folder)
        return str(folder)

    def find_config(config: str) -> Path:
        return objects.SHAPES_DETECTOR_CONFIG if config == "frcnn_r50_coco" else found(config)

    import huggingface_hub

    found, objects.find_config = objects.find_config, find_config
    weights.Published.fetch = fetch
    huggingface_hub.snapshot_download = snapshot_download


replace_downloads()
