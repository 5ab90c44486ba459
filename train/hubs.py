"""Store embeddings of training pairs in a model, for its hubness correction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .data import Split
from .evaluate import evaluating
from .models import Embeddings, SpacesModel

BATCH = 256


def store_neighbours(model: SpacesModel, train: Split) -> None:
    """Encode training clips and captions, evenly spread, as many as the model has allocated, and store them in it."""
    with evaluating(model):
        videos = _encode(model, model.encode_videos, train.videos, len(train.clips), len(model.known_videos))
        texts = _encode(model, model.encode_texts, train.captions_batch, len(train.captions), len(model.known_texts))
        model.store_neighbours(videos, texts)


def _encode(
    model: SpacesModel, encoder: Callable[[Any], Embeddings], batch_of: Callable[[Any], Any], count: int, room: int
) -> Embeddings:
    places = np.linspace(0, count - 1, room).round().astype(int)
    parts = [
        encoder(model.to_device(batch_of(places[begin : begin + BATCH].tolist()))) for begin in range(0, room, BATCH)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
