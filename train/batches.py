"""Which pairs of a clip and a caption come in which batch of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, Sampler

from .data import DataError, Split


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


class EpochSampler(Sampler):
    """Every index once an epoch, shuffled by seed and epoch, dealt out to the processes; yields (epoch, index).

    Args:
        groups: (groups, most) indices, each once; those of a group follow one another, and -1 fills it up.
    """

    def __init__(self, groups: np.ndarray, seed: int, rank: int = 0, world: int = 1) -> None:
        self.groups, self.seed, self.rank, self.world, self.epoch = groups, seed, rank, world, 0
        self.length = int(np.count_nonzero(groups >= 0))

    def set_epoch(self, epoch: int) -> None:
        """Called by mmengine's hook before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = self.groups[np.random.default_rng((self.seed, self.epoch)).permutation(len(self.groups))].ravel()
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
