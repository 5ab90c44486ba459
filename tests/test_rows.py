"""Until their part is written, rows are in memory once, in the store's dtypes."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import encode

from amex.extract.run import part
from amex.extract.run.part import ClipTask, Job, PartTask, Report, VideoTask, run_part, shared_feeders
from amex.extract.run.rows import RequestRows, RowsError, overflow_reason
from amex.extract.video.sampling import Sampling
from amex.features import create_store, declare_stream

linux = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells how much memory a process has used"
)
LAYOUT = {
    "values": ((3, 4), "float16"),
    "scores": ((3,), "float32"),
    "labels": ((3,), "int32"),
    "counts": ((), "int32"),
    "times": ((2,), "float64"),
}


def row_of(index: int) -> dict[str, np.ndarray]:
    """Return a row like an encoder's."""
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
    assert all(rows.arrays()[name] is arrays[name] for name in LAYOUT if name != "times")  # clips share the arrays


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
def test_a_feature_that_float16_cannot_hold_is_recorded_with_its_reason(value: float, reason: str) -> None:
    rows = RequestRows(LAYOUT, times=[(0.0, 1.0), (1.0, 2.0)])
    rows.put(1, {**row_of(1), "values": np.where(np.eye(3, 4) > 0, value, 0)})
    rows.put(0, row_of(0))
    assert rows.overflow == {1: reason}
    with pytest.raises(RowsError, match="1 row for 2 windows"):
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
    stored = rows.arrays()
    with pytest.raises(RowsError, match=r"put\(\) was called after arrays"):
        rows.put(1, {"values": np.zeros(4)})
    assert stored["values"].tolist() == [[0.0] * 4]


def test_rows_do_not_import_torch() -> None:
    program = "import sys, amex.extract.run.rows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


MEMORY = """
import sys
import numpy as np
from amex.extract.run.rows import RequestRows
from amex.features import ClipRows, create_store, declare_stream, row_arrays, write_part

def megabytes(line):
    (status,) = (text for text in open("/proc/self/status") if text.startswith(line))
    return int(status.split()[1]) / 1024

shape = [36, 2048]
arrays = {"boxes": {"shape": [36, 4], "dtype": "float32"}, "scores": {"shape": [36], "dtype": "float32"}}
spec = {"output": {"shape": shape, "dtype": "float16", "arrays": arrays}}
row = {"boxes": np.ones((36, 4), np.float32), "scores": np.ones(36, np.float32)}
noise = np.random.default_rng(0).standard_normal((8, *shape), np.float32)
store = create_store(sys.argv[1])
declare_stream(store, "s", spec, {})
before = megabytes("VmRSS")
clips, size = [], 0
for clip, windows in enumerate([700, *[30] * 23]):
    rows = RequestRows(row_arrays(spec), failure=None)
    for index in range(windows):
        rows.times.append((index, index + 1))
        rows.put(index, {"values": noise[index % 8], **row})
    clips.append(ClipRows(clip_id=str(clip), arrays=rows.arrays()))
    size += sum(array.nbytes for array in clips[-1].arrays.values()) / 2**20
rows_held = megabytes("VmHWM") - before
write_part(store, "s", "p", spec=spec, clips=clips, failures=[], run={})
print(size, rows_held, megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells how much memory a process has used"
)
def test_writing_rows_takes_little_more_memory_than_the_rows(tmp_path: Path) -> None:
    run = [sys.executable, "-c", MEMORY, str(tmp_path / "s.zarr")]
    size, rows_held, peak = map(float, subprocess.run(run, check=True, capture_output=True, timeout=300).stdout.split())
    assert size > 190
    assert rows_held < 1.15 * size + 20
    assert peak < 1.5 * size


class Objects:
    """An encoder of 36 boxes with 2,048 numbers each."""

    device = torch.device("cpu")
    values = torch.randn(8, 36, 2048, generator=torch.Generator().manual_seed(0)).relu()

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": self.values[: len(windows)], "boxes": torch.ones(len(windows), 36, 4)}


class ObjectsEverySecond:
    name = "objects"
    sampling = Sampling(fps=1.0, frames=1, stride=1)
    transform = None
    batch_size = 8

    @property
    def spec(self) -> dict[str, Any]:
        boxes = {"shape": [36, 4], "dtype": "float32"}
        return {"output": {"shape": [36, 2048], "dtype": "float16", "arrays": {"boxes": boxes}}}

    def encoder(self, device: str) -> Objects:
        return Objects()


def run_objects(folder: Path, seconds: int, progress: Callable[[Report], None] = lambda report: None) -> int:
    """Run a part of one video; return its number of rows."""
    video = encode(folder / "v.mp4", frames=seconds, codec="mpeg4", fps=1, width=64, height=48)
    store, plan = create_store(folder / "s.zarr"), ObjectsEverySecond()
    declare_stream(store, plan.name, plan.spec, {})
    clip = ClipTask(clip_id="a", video=video.name, start=None, end=None, attempt=1, streams=(0,))
    task = PartTask(index=0, videos=(VideoTask(path=Path(video.name), missing="", clips=(clip,)),))
    return run_part(
        task, Job(store=store, videos=folder, streams=(plan,), texts=(), deadline=60), progress=progress
    ).rows


def test_a_worker_has_the_feeders_of_one_setting_at_a_time(tmp_path: Path) -> None:
    """Workers of a cluster serve several runs."""
    job = Job(store=tmp_path, videos=tmp_path, streams=(), texts=(), deadline=61)
    feeders = shared_feeders(job, "cpu")
    feeders.start()
    assert shared_feeders(job, "cpu") is feeders
    assert feeders.pids
    assert shared_feeders(dataclasses.replace(job, deadline=62), "cpu") is not feeders
    assert not feeders.pids


def test_the_progress_keeps_its_rows_while_the_part_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[Report] = []
    rows: list[int] = []
    write_part = part.write_part

    def write(*args: Any, **kwargs: Any) -> dict[str, Any]:
        rows.append(reports[-1].rows)
        return write_part(*args, **kwargs)

    monkeypatch.setattr(part, "write_part", write)
    assert run_objects(tmp_path, 10, reports.append) == 10
    assert rows == [10]


def test_the_memory_of_rows_is_freed_with_their_part(tmp_path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        assert run_objects(tmp_path, 10) == 10
        assert not [item for item in gc.get_objects() if type(item) is RequestRows]
    finally:
        gc.enable()


TWO_HOURS = """
import sys
from pathlib import Path
import psutil
sys.path.insert(0, sys.argv[2])
from test_rows import run_objects
rows = run_objects(Path(sys.argv[1]), 7200)
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
texts = [Path(f"/proc/{process.pid}/status").read_text() for process in processes]
print(rows, sum(int(text.partition("VmHWM:")[2].split()[0]) / 1024 for text in texts))
"""


@linux
@pytest.mark.slow
def test_two_hours_of_objects_need_less_than_three_gigabytes(tmp_path: Path) -> None:
    """The memory of a worker and its feeders; the rows alone are 1 GB."""
    run = [sys.executable, "-c", TWO_HOURS, str(tmp_path), str(Path(__file__).parent)]
    rows, peak = map(float, subprocess.run(run, check=True, capture_output=True, timeout=600).stdout.split())
    assert rows == 7200
    assert peak < 3000
