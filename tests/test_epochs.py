"""An epoch has every pair once, in an order fixed by the seed; partner clips share a batch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amex.manifests import Clip
from amex.train.batches import EpochSampler, PairBatches, partner_groups
from amex.train.config import DataOptions
from amex.train.selection import DataError


class Pairs:
    """The parts of a split that determine an epoch's order; ``partners`` by clip, None for no partner."""

    def __init__(self, partners: list[object], captions: list[int], data: DataOptions) -> None:
        self.data = data
        self.clips = [
            Clip(clip_id=f"c{i}", video="v.mp4", split="train", captions=(), extras={} if p is None else {"twin": p})
            for i, p in enumerate(partners)
        ]
        self.own = [list(range(count)) for count in captions]
        self.with_captions = [index for index, own in enumerate(self.own) if own]

    def __len__(self) -> int:
        return len(self.with_captions) if self.data.captions == "one" else sum(map(len, self.own))


def twins(count: int) -> list[object]:
    return [f"c{i + 1 if i % 2 == 0 else i - 1}" for i in range(count)]


def test_without_a_key_an_epoch_is_a_permutation() -> None:
    split = Pairs([None] * 9, [1] * 9, DataOptions())
    sampler = EpochSampler(partner_groups(split), 3)
    sampler.set_epoch(2)
    assert [index for _, index in sampler] == np.random.default_rng((3, 2)).permutation(9).tolist()


@given(
    clips=st.lists(st.tuples(st.none() | st.integers(-1, 12), st.integers(0, 3)), min_size=2, max_size=12),
    captions=st.sampled_from(["one", "all"]),
    world=st.integers(1, 3),
)
def test_every_pair_occurs_once_next_to_its_partner(
    clips: list[tuple[int | None, int]], captions: str, world: int
) -> None:
    partners, counts = [None if p is None else f"c{p}" for p, _ in clips], [count for _, count in clips]
    split = Pairs(partners, counts, DataOptions(together="twin", captions=captions))
    try:
        groups = partner_groups(split)
    except DataError:
        groups = np.arange(len(split))[:, None]
    assert sorted(groups[groups >= 0].tolist()) == list(range(len(split)))
    if not len(split):
        return
    shares = [[index for _, index in EpochSampler(groups, 0, rank, world)] for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    order = [index for several in zip(*shares, strict=True) for index in several]
    assert set(order) == set(range(len(split)))
    first = order[: len(split)]
    beside = {frozenset(two) for two in pairwise(first)}
    assert {frozenset(two) for two in groups.tolist() if len(two) == 2 and -1 not in two} <= beside


def test_nearly_every_batch_has_both_or_none() -> None:
    split = Pairs([*twins(200), *[None] * 80], [3] * 280, DataOptions(together="twin"))
    both = split_up = 0
    sampler = EpochSampler(partner_groups(split), 0)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for batch in PairBatches(sampler, 32, drop_last=False):
            present = {index for _, index in batch}
            twins_there = [index for index in present if index < 200]
            both += sum(index ^ 1 in present for index in twins_there)
            split_up += sum(index ^ 1 not in present for index in twins_there)
    assert both + split_up == 20 * 200
    assert split_up < 0.05 * both


def test_captions_are_paired_with_those_of_the_partner_clip() -> None:
    split = Pairs(["c1", "c0", None], [3, 2, 1], DataOptions(together="twin", captions="all"))
    assert partner_groups(split).tolist() == [[0, 3], [1, 4], [2, -1], [5, -1]]


@pytest.mark.parametrize("partners", [[None] * 4, ["c9"] * 4, ["c0", "c1", "c2", "c3"], [7, None, {}, ["c1"]]])
def test_a_key_without_partners_is_an_error(partners: list[object]) -> None:
    with pytest.raises(DataError, match=r"data\.together=twin: no training clip names another training clip"):
        partner_groups(Pairs(partners, [1] * 4, DataOptions(together="twin")))
