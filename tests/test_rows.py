"""Rows wait for their part in one copy, in the store's dtypes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amex.extract.run.rows import RequestRows, RowsError, overflow_reason

LAYOUT = {
    "values": ((3, 4), "float16"),
    "scores": ((3,), "float32"),
    "labels": ((3,), "int32"),
    "counts": ((), "int32"),
    "times": ((2,), "float64"),
}


def row_of(index: int) -> dict[str, np.ndarray]:
    """A row as an encoder returns it."""
    rng = np.random.default_rng(index)
    return {
        "values": rng.standard_normal((3, 4), np.float32),
        "scores": rng.random(3, np.float32),
        "labels": rng.integers(0, 1000, 3),
        "counts": np.asarray(index),
    }


@settings(max_examples=30)
@given(count=st.integers(0, 150), seed=st.integers(0, 9))
def test_rows_that_arrive_in_any_order_are_stored_in_order(count: int, seed: int) -> None:
    rows = RequestRows(LAYOUT)
    rows.times.extend((index / 2, index / 2 + 1) for index in range(count))
    for index in np.random.default_rng(seed).permutation(count):
        rows.put(int(index), row_of(int(index)))
    arrays = rows.arrays()
    assert arrays.keys() == LAYOUT.keys()
    for name, (shape, dtype) in LAYOUT.items():
        rows_alone = rows.times if name == "times" else [row_of(index)[name] for index in range(count)]
        assert arrays[name].dtype == dtype
        assert np.array_equal(arrays[name], np.array(rows_alone, dtype).reshape(count, *shape))
    assert all(rows.arrays()[name] is arrays[name] for name in LAYOUT if name != "times")  # clips share them


def test_a_stream_without_times_has_none() -> None:
    rows = RequestRows({"values": ((4,), "float32")}, times=[(0.0, 1.0)])
    rows.put(0, {"values": np.full(4, 1e6)})
    assert rows.arrays().keys() == {"values"}
    assert rows.arrays()["values"].tolist() == [[1e6] * 4]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("value", "reason"),
    [(1e5, "reaches 1e+05, more than float16 holds"), (np.nan, "is not finite"), (-np.inf, "is not finite")],
)
def test_a_feature_that_float16_cannot_hold_is_remembered_with_its_reason(value: float, reason: str) -> None:
    rows = RequestRows(LAYOUT, times=[(0.0, 1.0), (1.0, 2.0)])
    rows.put(1, {**row_of(1), "values": np.where(np.eye(3, 4) > 0, value, 0)})
    rows.put(0, row_of(0))
    assert rows.overflow == {1: reason}
    with pytest.raises(RowsError, match="1 rows for 2 windows"):
        rows.arrays()


def test_float16_holds_its_largest_value() -> None:
    assert overflow_reason(np.array([-65504.0, 65504.0])) == ""
    assert overflow_reason(np.zeros((0, 4))) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros(4)}, r"'values' of shape \[4\]; its spec declares \[3, 4\]"),
        ({"counts": np.zeros(1)}, r"'counts' of shape \[1\]; its spec declares \[\]"),
        ({"scores": None}, r"no 'scores'; its spec declares 'scores' \[3\] float32"),
    ],
)
def test_arrays_that_differ_from_the_spec_are_refused(change: dict[str, np.ndarray | None], message: str) -> None:
    arrays = {name: array for name, array in {**row_of(0), **change}.items() if array is not None}
    rows = RequestRows(LAYOUT, times=[(0.0, 1.0)])
    with pytest.raises(RowsError, match=message):
        rows.put(0, arrays)


def test_arrays_in_use_are_never_moved() -> None:
    rows = RequestRows({"values": ((4,), "float32")}, times=[(0.0, 1.0)])
    rows.put(0, {"values": np.zeros(4)})
    given = rows.arrays()
    with pytest.raises(ValueError, match="cannot resize"):
        rows.put(1, {"values": np.zeros(4)})
    assert given["values"].tolist() == [[0.0] * 4]


def test_rows_need_no_torch() -> None:
    program = "import sys, amex.extract.run.rows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
