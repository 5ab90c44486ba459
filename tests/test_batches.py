"""Batches: each window is encoded once, no row depends on its batch, and too little memory makes batches smaller."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amex.errors import AmexError
from amex.extract.encoders.batches import Batches
from amex.extract.encoders.presets import plan_windows


class Sums:
    """An encoder whose row is the sum of a window; it has memory for a limited number of windows."""

    device = torch.device("cpu")

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.sizes: list[int] = []

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(windows) > self.most:
            raise torch.OutOfMemoryError("no memory for so much\nand more lines")
        self.sizes.append(len(windows))
        return {"values": windows.float().sum((1, 2, 3, 4))[:, None]}


def encoded(batches: Batches[int], windows: list[np.ndarray]) -> dict[int, float]:
    rows: dict[int, float] = {}
    results: list[Any] = []
    for owner, window in enumerate(windows):
        results += batches.add(owner, window)
    results += batches.flush()
    for result in results:
        for place, owner in enumerate(result.owners):
            assert owner not in rows
            rows[owner] = float(result.arrays["values"][place, 0])
    return rows


@settings(deadline=None)
@given(
    shapes=st.lists(st.sampled_from([(1, 2, 3, 3), (2, 2, 2, 3), (1, 4, 4, 3)]), max_size=40),
    size=st.integers(1, 7),
    most=st.sampled_from([1, 2, 3, 1000]),
)
def test_every_window_is_encoded_once_whatever_its_shape(shapes: list[tuple[int, ...]], size: int, most: int) -> None:
    windows = [np.full(shape, number % 250, np.uint8) for number, shape in enumerate(shapes)]
    encoder = Sums(most)
    rows = encoded(Batches(encoder, size), windows)
    assert rows == {owner: float(window.sum(dtype=float)) for owner, window in enumerate(windows)}
    assert max(encoder.sizes, default=0) <= min(size, most)


def test_too_little_memory_makes_batches_smaller_and_is_noted_once() -> None:
    notes: list[str] = []
    encoder = Sums(most=3)
    windows = [np.full((1, 2, 2, 3), number, np.uint8) for number in range(32)]
    encoded(Batches(encoder, 8, note=notes.append), windows)
    assert notes == [f"no memory for batches of {size}; batches of {size // 2} from now on" for size in (8, 4)]
    assert encoder.sizes == [2] * 16


def test_memory_of_a_failed_batch_is_freed_before_the_smaller_batches() -> None:
    outputs: list[weakref.ref[torch.Tensor]] = []

    class Layers(Sums):
        def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
            assert not [layer for layer in outputs if layer() is not None]
            layer = windows.float()
            outputs.append(weakref.ref(layer))
            return super().__call__(layer)

    encoder = Layers(most=2)
    encoded(Batches(encoder, 8), [np.zeros((1, 2, 2, 3), np.uint8)] * 8)
    assert encoder.sizes == [2] * 4


def test_no_memory_for_one_window_is_a_one_line_error() -> None:
    with pytest.raises(AmexError, match=r"no memory for one window: no memory for so much$"):
        encoded(Batches(Sums(most=0), 2), [np.zeros((1, 2, 2, 3), np.uint8)] * 2)


def test_memory_of_batches_does_not_grow_with_the_number_of_frame_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amex.extract.encoders.batches.PENDING_BYTES", 4 * 3 * 20)
    batches: Batches[int] = Batches(Sums(), 4)
    windows = [np.full((1, 1, width, 3), 1, np.uint8) for width in range(1, 11) for _ in range(3)]
    early = [each for number, window in enumerate(windows) for each in batches.add(number, window)]
    assert [owner for each in early for owner in each.owners] == list(
        range(3 * 8)
    )  # the batches of widths 9 and 10 fit in memory
    assert [owner for each in batches.flush() for owner in each.owners] == list(range(24, 30))


def test_owners_of_a_batch_are_reported_before_it_is_encoded() -> None:
    begun: list[list[int] | None] = []
    encoded(Batches(Sums(), 2, begins=begun.append), [np.zeros((1, 2, 2, 3), np.uint8)] * 3)
    assert begun == [[0, 1], None, [2], None]


def test_a_row_does_not_depend_on_the_other_windows_of_its_batch() -> None:
    plan = plan_windows("r2plus1d_tiny", network="r2plus1d_tiny", weights="default", precision="fp32")
    encoder = plan.encoder("cpu")
    windows = list(np.random.default_rng(0).integers(0, 256, (5, 12, 96, 96, 3), dtype=np.uint8))
    alone = torch.cat([encoder(torch.from_numpy(window)[None])["values"] for window in windows])
    rows = []
    batches = Batches(encoder, 2)
    for number, window in enumerate(windows):
        rows += [result.arrays["values"] for result in batches.add(number, window)]
    rows += [result.arrays["values"] for result in batches.flush()]
    torch.testing.assert_close(torch.from_numpy(np.concatenate(rows)), alone, rtol=1e-4, atol=1e-4)
