"""Compare the concepts that a model predicts for clips and captions with those of the captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..concepts import Concepts
from ..data import Split
from ..models import Embeddings, RetrievalModel

# How many concepts an example shows, and how many a level lists.
MOST_PROBABLE, FREQUENT = 5, 10


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A predicted concept of a clip or caption: its probability, and whether it is present."""

    name: str
    chance: float
    right: bool


@dataclass(frozen=True, kw_only=True)
class Frequent:
    """A concept: its number of clips, and its average precision over clips and over captions, in percent."""

    name: str
    clips: int
    video: float
    text: float


@dataclass(frozen=True, kw_only=True)
class Level:
    """The predictions of one level.

    Attributes:
        name: the level.
        concepts: number of taught concepts.
        measured: number of these that a clip of the split has.
        video, text: mean average precision over clips and over captions, in percent.
        random: expected value for a random order of clips: the mean frequency of the concepts.
        frequent: the concepts of most clips.
        examples: for each requested clip, the most probable concepts of the clip and of its first caption.
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
    """Yield the predictions of a model with concepts, level by level.

    Args:
        examples: clips that have captions.
    """
    labels = concepts.labels([(caption, ()) for caption in split.captions])
    for name, kind in model.concept_levels.items():
        names, in_caption = concepts.names[kind], labels[kind]["truth"].numpy() > 0
        in_clip = np.zeros((len(split.clips), len(names)), bool)
        # For a caption, ignore concepts that only other captions of its clip mention.
        counted = np.ones_like(in_caption)
        for clip, own in enumerate(split.own):
            in_clip[clip] = in_caption[own].any(0)
            counted[own] &= in_caption[own] | ~in_clip[clip]
        of_clips, of_captions = (side[f"{name} concepts"].numpy() for side in (videos, texts))
        with_captions = split.with_captions
        frequency = in_clip[with_captions].mean(0)
        measured = np.flatnonzero(frequency)
        precision = {
            int(c): (
                100 * average_precision(of_clips[with_captions, c], in_clip[with_captions, c]),
                100 * average_precision(of_captions[counted[:, c], c], in_caption[counted[:, c], c]),
            )
            for c in measured
        }
        video, text = np.mean(list(precision.values()), axis=0) if precision else (0.0, 0.0)
        most_frequent = sorted(precision, key=lambda c: -frequency[c])[:FREQUENT]
        yield Level(
            name=name,
            concepts=len(names),
            measured=len(measured),
            video=float(video),
            text=float(text),
            random=float(100 * frequency[measured].mean()) if len(measured) else 0.0,
            frequent=[
                Frequent(name=names[c], clips=int(in_clip[:, c].sum()), video=precision[c][0], text=precision[c][1])
                for c in most_frequent
            ],
            examples=[
                (
                    _most_probable(of_clips[clip], in_clip[clip], names),
                    _most_probable(of_captions[split.own[clip][0]], in_caption[split.own[clip][0]], names),
                )
                for clip in examples
            ],
        )


def average_precision(chances: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean precision at the ranks of the true items, ordered by chance; ties keep their order."""
    hits = truth[np.argsort(-chances, kind="stable")]
    places = np.flatnonzero(hits) + 1
    return float(np.mean(np.arange(1, len(places) + 1) / places)) if len(places) else 0.0


def _most_probable(chances: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> list[Prediction]:
    order = np.argsort(-chances, kind="stable")[:MOST_PROBABLE]
    return [Prediction(name=names[c], chance=float(chances[c]), right=bool(truth[c])) for c in order]
