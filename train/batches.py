"""Which pairs of a clip and a caption come in which batch of an epoch."""

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


def groups_of(split: Split) -> np.ndarray:
    """(groups, 1 or 2) indices of the split that stay together in every epoch; -1 where a group has but one.

    Raises:
        DataError: if ``data.together`` is given and joins no two clips.
    """
    key = split.data.together
    if not key:
        return np.arange(len(split))[:, None]
    # With all captions of a clip, its first goes with the other clip's first.
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
        raise DataError(f"data.together={key}: that key of no training clip's extras names another training clip")
    return np.array([(i, partners.get(i, -1)) for i in range(len(split)) if partners.get(i, i) >= i])


# Among so many pairs, drawn at random, those of similar captions are looked for.
NEIGHBOURHOOD = 2048


class SimilarCaptions:
    """Puts pairs whose captions have words in common next to one another, in an order that is else random.

    Words count by how rare they are. Each pair of a batch then has negatives that differ from it in little.

    Args:
        most: how many follow one another.
    """

    def __init__(self, split: Split, most: int) -> None:
        self.split, self.most = split, most
        self.words = [sorted(set(re.findall(r"\w+", caption.lower()))) for caption in split.captions]
        counts = Counter(word for words in self.words for word in words)
        self.rarity = {word: math.log((1 + len(self.words)) / (1 + count)) + 1 for word, count in counts.items()}

    def likeness(self, captions: Sequence[int]) -> np.ndarray:
        """(captions, captions) cosines of their words."""
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
        """The groups in their new order; a group stands where the caption of its first pair puts it."""
        parts = []
        for begin in range(0, len(groups), NEIGHBOURHOOD):
            some = groups[begin : begin + NEIGHBOURHOOD]
            likeness = self.likeness([self.split.pair(epoch, int(index))[1] for index in some[:, 0]])
            left, most = np.ones(len(some), dtype=bool), min(self.most, len(some))
            for first in range(len(some)):
                if left[first]:
                    near = np.where(left, likeness[first], -1.0)
                    near[first] = 2.0
                    chosen = np.argpartition(-near, most - 1)[:most]
                    chosen = chosen[left[chosen]]
                    left[chosen] = False
                    parts.append(some[chosen])
        return np.concatenate([parts[place] for place in generator.permutation(len(parts))])


class EpochSampler(Sampler):
    """Every index once an epoch, shuffled by seed and epoch, dealt out to the processes; yields (epoch, index).

    Args:
        groups: (groups, most) indices, each once; those of a group follow one another, and -1 fills it up.
        arrange: changes the order of the shuffled groups, as ``SimilarCaptions`` does.
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
        """Called by mmengine's hook before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        groups = self.groups[generator.permutation(len(self.groups))]
        if self.arrange is not None:
            groups = self.arrange(groups, self.epoch, generator)
        order = groups.ravel()
        # Every process needs equally many: the first come again at the end.
        order = np.resize(order[order >= 0], len(self) * self.world)
        return iter([(self.epoch, int(index)) for index in order[self.rank :: self.world]])

    def __len__(self) -> int:
        return -(-self.length // self.world)


class PairBatches(BatchSampler):
    """Batches of ``batch_size`` pairs, the last of which may be smaller. A single pair left over joins the last batch.

    One pair has no negatives, and batch normalisation has no variance over it. The sampler holds two pairs or more.
    """

    def __iter__(self) -> Iterator[list[Any]]:
        batches = list(super().__iter__())
        if len(batches[-1]) == 1:
            batches[-2:] = [batches[-2] + batches[-1]]
        return iter(batches)

    def __len__(self) -> int:
        pairs = len(self.sampler)
        return super().__len__() - (pairs % self.batch_size == 1)
