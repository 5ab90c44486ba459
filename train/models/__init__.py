"""Models of text-video retrieval, by name."""

from __future__ import annotations

from ..options import Inputs, ModelOptions
from .amenet import AMENet
from .base import Embeddings, RetrievalModel, SpacesModel
from .baselines import CLIPMean, DualEncoding
from .hcmi import HCMI
from .hgr import HGR
from .mcsan import MCSAN

__all__ = ["HGR", "AMENet", "Embeddings", "RetrievalModel", "SpacesModel", "build_model"]


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
    """A model with fresh weights."""
    return NETWORKS[options.name](options, inputs)
