"""Which concepts a model predicts of clips and of captions, against those that the captions have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..concepts import Concepts
from ..data import Split
from ..models import Embeddings, RetrievalModel

# The likeliest of an example, and the most frequent of a level.
LIKELIEST, FREQUENT = 5, 10


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One concept of a clip or caption: how likely the model finds it, from 0 to 1, and whether it is there."""

    name: str
    chance: float
    right: bool


@dataclass(frozen=True, kw_only=True)
class Frequent:
    """A concept: of how many clips it is, and its average precision among clips and among captions, in percent."""

    name: str
    clips: int
    video: float
    text: float


@dataclass(frozen=True, kw_only=True)
class Level:
    """Predictions of one level.

    Attributes:
        concepts: how many the model was taught; ``measured``: how many of these a clip of the split has.
        video, text: their mean average precision among clips and among captions, in percent.
        random: what a random order of clips is expected to reach: the mean of the concepts' frequencies.
        frequent: those that most clips have.
        examples: by clip, in the order asked for, the likeliest by the clip and by its first caption.
    """

    name: str
    concepts: int
    measured: int
    video: float
    text: float
    random: float
    frequent: list[Frequent]
    examples: list[tuple[list[Prediction], list[Prediction]]]


def predictions(
    model: RetrievalModel,
    split: Split,
    videos: Embeddings,
    texts: Embeddings,
    concepts: Concepts,
    examples: Sequence[int],
) -> Iterator[Level]:
    """What a model that tells concepts predicts, level by level.

    Args:
        examples: clips that have captions.
    """
    labels = concepts.labels([(caption, ()) for caption in split.captions])
    for name, kind in model.concept_levels.items():
        known, said = concepts.names[kind], labels[kind]["truth"].numpy() > 0
        shown = np.zeros((len(split.clips), len(known)), bool)
        # What another caption of its clip has counts neither way for a caption.
        counted = np.ones_like(said)
        for clip, own in enumerate(split.own):
            shown[clip] = said[own].any(0)
            counted[own] &= said[own] | ~shown[clip]
        seen, spoken = (side[f"{name} concepts"].numpy() for side in (videos, texts))
        with_captions = split.with_captions
        frequency = shown[with_captions].mean(0)
        measured = np.flatnonzero(frequency)
        precision = {
            int(c): (
                100 * average_precision(seen[with_captions, c], shown[with_captions, c]),
                100 * average_precision(spoken[counted[:, c], c], said[counted[:, c], c]),
            )
            for c in measured
        }
        video, text = np.mean(list(precision.values()), axis=0) if precision else (0.0, 0.0)
        often = sorted(precision, key=lambda c: -frequency[c])[:FREQUENT]
        yield Level(
            name=name,
            concepts=len(known),
            measured=len(measured),
            video=float(video),
            text=float(text),
            random=float(100 * frequency[measured].mean()) if len(measured) else 0.0,
            frequent=[
                Frequent(name=known[c], clips=int(shown[:, c].sum()), video=precision[c][0], text=precision[c][1])
                for c in often
            ],
            examples=[
                (
                    _likeliest(seen[clip], shown[clip], known),
                    _likeliest(spoken[split.own[clip][0]], said[split.own[clip][0]], known),
                )
                for clip in examples
            ],
        )


def average_precision(chances: np.ndarray, truth: np.ndarray) -> float:
    """The mean precision at the places of what is true, in the order of the chances; ties keep their order."""
    hits = truth[np.argsort(-chances, kind="stable")]
    places = np.flatnonzero(hits) + 1
    return float(np.mean(np.arange(1, len(places) + 1) / places)) if len(places) else 0.0


def _likeliest(chances: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> list[Prediction]:
    order = np.argsort(-chances, kind="stable")[:LIKELIEST]
    return [Prediction(name=names[c], chance=float(chances[c]), right=bool(truth[c])) for c in order]
