"""Models of text-video retrieval, by name."""

from __future__ import annotations

from ..config import AMENet as Options
from .amenet import AMENet
from .base import Embeddings, RetrievalModel, SpacesModel

__all__ = ["AMENet", "Embeddings", "RetrievalModel", "SpacesModel", "build_model"]


def build_model(options: Options, widths: dict[str, int], words: int = 0) -> RetrievalModel:
    """A model with fresh weights; arguments as of ``AMENet``."""
    return AMENet(options, widths, words)
