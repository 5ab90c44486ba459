"""Arrange the training pairs of an epoch into batches."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, Sampler

from .data import Split
from .selection import DataError


def partner_groups(split: Split) -> np.ndarray:
    """Return the groups of pairs that stay together in every epoch.

    Returns:
        (groups, 1 or 2) indices of the split; -1 fills a group of one.

    Raises:
        DataError: if ``data.together`` is set and no two clips are partners.
    """
    key = split.data.together
    if not key:
        return np.arange(len(split))[:, None]
    # With all captions, the n-th caption of a clip is grouped with the n-th caption of its partner.
    places = [(clip, 0) for clip in split.with_captions]
    if split.data.captions == "all":
        places = [(clip, nth) for clip, own in enumerate(split.own) for nth in range(len(own))]
    index_of = {place: index for index, place in enumerate(places)}
    number = {clip.clip_id: index for index, clip in enumerate(split.clips)}
    partners: dict[int, int] = {}
    for index, (clip, nth) in enumerate(places):
        named = number.get(str(split.clips[clip].extras.get(key)))
        other = index_of.get((named, nth), index)
        if index != other and index not in partners and other not in partners:
            partners |= {index: other, other: index}
    if not partners:
        raise DataError(f"data.together={key}: no training clip names another training clip under that key of extras")
    return np.array([(i, partners.get(i, -1)) for i in range(len(split)) if partners.get(i, i) >= i])


# How many random pairs are searched for similar captions.
NEIGHBOURHOOD = 2048


class SimilarCaptions:
    """Arranges pairs so that those with similar captions follow each other; the order is random otherwise.

    The similarity counts shared words by their rarity. Each pair then has hard negatives in its batch.

    Args:
        most: how many similar pairs follow each other.
    """

    def __init__(self, split: Split, most: int) -> None:
        self.split, self.most = split, most
        self.words = [sorted(set(re.findall(r"\w+", caption.lower()))) for caption in split.captions]
        counts = Counter(word for words in self.words for word in words)
        self.rarity = {word: math.log((1 + len(self.words)) / (1 + count)) + 1 for word, count in counts.items()}

    def likeness(self, captions: Sequence[int]) -> np.ndarray:
        """Return (captions, captions) cosines of word counts, weighted by rarity."""
        number: dict[str, int] = {}
        for caption in captions:
            for word in self.words[caption]:
                number.setdefault(word, len(number))
        vectors = np.zeros((len(captions), len(number) + 1), dtype=np.float32)
        for row, caption in zip(vectors, captions, strict=True):
            words = self.words[caption]
            row[[number[word] for word in words]] = [self.rarity[word] for word in words]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
        return vectors @ vectors.T

    def __call__(self, groups: np.ndarray, epoch: int, generator: np.random.Generator) -> np.ndarray:
        """Return the groups in a new order; the caption of its first pair places a group."""
        parts = []
        for begin in range(0, len(groups), NEIGHBOURHOOD):
            window = groups[begin : begin + NEIGHBOURHOOD]
            likeness = self.likeness([self.split.pair(epoch, int(index))[1] for index in window[:, 0]])
            left, most = np.ones(len(window), dtype=bool), min(self.most, len(window))
            for first in range(len(window)):
                if left[first]:
                    near = np.where(left, likeness[first], -1.0)
                    near[first] = 2.0
                    nearest = np.argpartition(-near, most - 1)[:most]
                    nearest = nearest[left[nearest]]
                    left[nearest] = False
                    parts.append(window[nearest])
        return np.concatenate([parts[place] for place in generator.permutation(len(parts))])


class EpochSampler(Sampler):
    """Yields every index once an epoch as (epoch, index), shuffled by seed and epoch and split over the processes.

    Args:
        groups: (groups, most) indices, each once, padded with -1. Indices of a group follow each other.
        arrange: reorders the shuffled groups, as ``SimilarCaptions`` does.
    """

    def __init__(
        self,
        groups: np.ndarray,
        seed: int,
        rank: int = 0,
        world: int = 1,
        arrange: Callable[[np.ndarray, int, np.random.Generator], np.ndarray] | None = None,
    ) -> None:
        self.groups, self.seed, self.rank, self.world, self.epoch = groups, seed, rank, world, 0
        self.arrange = arrange
        self.length = int(np.count_nonzero(groups >= 0))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; mmengine calls this before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        groups = self.groups[generator.permutation(len(self.groups))]
        if self.arrange is not None:
            groups = self.arrange(groups, self.epoch, generator)
        order = groups.ravel()
        # All processes need equally many pairs: the first ones are repeated at the end.
        order = np.resize(order[order >= 0], len(self) * self.world)
        return iter([(self.epoch, int(index)) for index in order[self.rank :: self.world]])

    def __len__(self) -> int:
        return -(-self.length // self.world)


class PairBatches(BatchSampler):
    """Batches of ``batch_size`` pairs. The last batch may be smaller; a single remaining pair joins the last batch.

    One pair has no negatives and no variance for batch normalisation. The sampler must hold two or more pairs.
    """

    def __iter__(self) -> Iterator[list[Any]]:
        batches = list(super().__iter__())
        if len(batches[-1]) == 1:
            batches[-2:] = [batches[-2] + batches[-1]]
        return iter(batches)

    def __len__(self) -> int:
        pairs = len(self.sampler)
        return super().__len__() - (pairs % self.batch_size == 1)
