"""Models of text-video retrieval, by name."""

from __future__ import annotations

from ..options import Inputs, ModelOptions
from ..own import own_model
from .amenet import AMENet
from .base import Embeddings, RetrievalModel, SpacesModel
from .baselines import CLIPMean, DualEncoding
from .hcmi import HCMI
from .hgr import HGR
from .layers import masked_mean, unit
from .mcsan import MCSAN
from .text import CaptionReader

__all__ = [
    "HGR",
    "AMENet",
    "CaptionReader",
    "Embeddings",
    "Inputs",
    "ModelOptions",
    "RetrievalModel",
    "SpacesModel",
    "build_model",
    "masked_mean",
    "unit",
]


NETWORKS: dict[str, type[RetrievalModel]] = {
    "amenet": AMENet,
    "global": AMENet,
    "hgr": HGR,
    "mcsan": MCSAN,
    "hcmi": HCMI,
    "dual_encoding": DualEncoding,
    "clip_mean": CLIPMean,
}


def build_model(options: ModelOptions, inputs: Inputs) -> RetrievalModel:
    """Build a model with new weights."""
    return (NETWORKS.get(options.name) or own_model(options.name))(options, inputs)
