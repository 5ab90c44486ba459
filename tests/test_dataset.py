"""Streams as data sets of torch: items, padded batches, joined streams, and the workers that read them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from amex.features import (
    ClipRows,
    Failure,
    MissingClip,
    Store,
    StoreError,
    create_store,
    declare_stream,
    open_store,
    write_part,
)

DIM, OBJECTS = 5, 3
MOTION = {"network": "motion", "output": {"shape": [DIM], "dtype": "float16"}}
BOXED = {
    "network": "objects",
    "output": {
        "shape": [OBJECTS, DIM],
        "dtype": "float16",
        "arrays": {
            "boxes": {"shape": [OBJECTS, 4], "dtype": "float32"},
            "scores": {"shape": [OBJECTS], "dtype": "float32"},
            "labels": {"shape": [OBJECTS], "dtype": "int32"},
            "counts": {"shape": [], "dtype": "int32"},
            "frame_size": {"shape": [2], "dtype": "int32"},
        },
    },
}
TEXT = {
    "network": "text",
    "output": {
        "of": "captions",
        "shape": [DIM],
        "dtype": "float32",
        "clip_arrays": {"sentence": {"shape": [DIM], "dtype": "float32"}},
    },
}


def add(store: Path, name: str, spec: dict[str, Any], rows: Mapping[str, int], *, parts: int = 2) -> None:
    """A stream of random rows, so many of each clip, in several parts."""
    rng = np.random.default_rng(len(name))
    output = spec["output"]
    arrays = {"values": output, **output.get("arrays", {})}
    if output.get("of") != "captions":
        arrays["times"] = {"shape": [2], "dtype": "float64"}

    def drawn(count: tuple[int, ...], array: dict[str, Any]) -> np.ndarray:
        return rng.integers(1, 100, (*count, *array["shape"])).astype(array["dtype"])

    clips = [
        ClipRows(
            clip_id=clip_id,
            arrays={key: drawn((count,), array) for key, array in arrays.items()}
            | {key: drawn((), array) for key, array in output.get("clip_arrays", {}).items()},
        )
        for clip_id, count in rows.items()
    ]
    declare_stream(create_store(store), name, spec, {})
    for part in range(parts):
        write_part(store, name, str(part), spec=spec, clips=clips[part::parts], failures=[], run={"host": ""})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Streams of 24 clips of 0 to 7 rows, of objects of 20 of these, and of text."""
    path = tmp_path_factory.mktemp("made") / "s.zarr"
    add(path, "motion", MOTION, {f"c{i}": i % 8 for i in range(24)})
    add(path, "objects", BOXED, {f"c{i}": 1 + i % 3 for i in range(4, 24)})
    add(path, "text", TEXT, {f"a caption of {i} words \U0001f600": i for i in range(1, 5)})
    return open_store(path)


@settings(max_examples=15)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=8), data=st.data())
def test_a_batch_has_the_rows_of_its_clips_and_zeros_behind_them(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("drawn") / "s.zarr"
    add(path, "motion", MOTION, {f"c{i}": count for i, count in enumerate(counts)})
    stream = open_store(path)["motion"]
    dataset = stream.dataset()
    assert sorted(dataset.clip_ids) == sorted(stream)
    indices = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=12))
    (batch,) = dataset.__getitems__(indices)
    longest = max(1, *(stream.rows_of(dataset.clip_ids[index]) for index in indices), 1)
    assert batch["values"].shape == (len(indices), longest, DIM)
    assert batch["values"].dtype == torch.float16
    assert batch["times"].dtype == torch.float64
    assert batch["clip"].tolist() == indices
    for place, index in enumerate(indices):
        rows = stream[dataset.clip_ids[index]]
        assert batch["mask"][place].tolist() == [row < len(rows) for row in range(longest)]
        for name in ("values", "times"):
            np.testing.assert_array_equal(batch[name][place, : len(rows)], rows[name])
            assert not batch[name][place, len(rows) :].any()
            np.testing.assert_array_equal(dataset[index][name], rows[name])


def test_all_arrays_of_objects_and_of_captions_are_in_a_batch(store: Store) -> None:
    objects, text = store["objects"].dataset(), store["text"].dataset()
    batch = objects.batch([3, 0])
    assert {name: tuple(array.shape[2:]) for name, array in batch.items() if array.ndim > 2} == {
        "values": (OBJECTS, DIM), "boxes": (OBJECTS, 4), "scores": (OBJECTS,), "labels": (OBJECTS,),
        "frame_size": (2,), "times": (2,),
    }  # fmt: skip
    assert batch["counts"].shape == batch["mask"].shape
    caption = text.clip_ids[2]
    assert torch.equal(text.batch([2])["sentence"], torch.from_numpy(store["text"][caption]["sentence"])[None])
    assert text[2]["values"].shape == (store["text"].rows_of(caption), DIM)


def test_a_batch_is_one_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, reads = store["motion"].dataset(), []
    read = dataset.stream.read
    monkeypatch.setattr(dataset.stream, "read", lambda clip_ids: reads.append(len(clip_ids)) or read(clip_ids))
    dataset.batch(range(20))
    assert reads == [20]


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_a_loader_reads_every_clip_once_in_workers_of_every_kind(store: Store, start: str) -> None:
    dataset = store["motion"].dataset()
    store["motion"][dataset.clip_ids[5]]  # files are open already
    loader = DataLoader(
        dataset,
        batch_size=5,
        shuffle=True,
        num_workers=2 if start == "fork" else 1,  # others import torch again
        multiprocessing_context=start,
        persistent_workers=True,
    )
    for _ in range(2):
        observed = []
        for batch in loader:
            observed += batch["clip"].tolist()
            for place, index in enumerate(batch["clip"]):
                rows = store["motion"][dataset.clip_ids[index]]
                np.testing.assert_array_equal(batch["values"][place][batch["mask"][place]], rows.values)
        assert sorted(observed) == list(range(24))


def test_a_plain_loader_takes_subsets_items_and_joined_streams(store: Store) -> None:
    dataset, joined = store["motion"].dataset(), store.dataset(["motion", "objects"])
    batches = list(DataLoader(Subset(dataset, [3, 5, 7, 9]), batch_size=3))
    assert [batch["clip"].tolist() for batch in batches] == [[3, 5, 7], [9]]
    alone = list(DataLoader(dataset, batch_size=None))
    assert [len(item["values"]) for item in alone] == [store["motion"].rows_of(clip_id) for clip_id in dataset.clip_ids]
    for batch in DataLoader(joined, batch_size=6, drop_last=True):
        assert batch["motion"]["clip"].tolist() == batch["objects"]["clip"].tolist()
        assert batch["objects"]["values"].shape[0] == 6
    assert joined[0]["motion"]["values"].shape == (4, DIM)


def test_joined_streams_have_the_clips_that_all_of_them_have(store: Store) -> None:
    joined = store.dataset(["motion", "objects"])
    assert set(joined.clip_ids) == {f"c{i}" for i in range(4, 24)}
    chosen = store.dataset(["objects", "motion"], ["c9", "c0", "c5", "never"])
    assert chosen.clip_ids.tolist() == ["c9", "c5"]
    batch = chosen.batch([1, 0])
    assert batch["objects"]["mask"].sum(1).tolist() == [3, 1]
    assert batch["motion"]["mask"].sum(1).tolist() == [5, 1]


def test_what_cannot_be_a_dataset_is_refused_by_name(store: Store) -> None:
    write_part(
        store.path, "motion", "failed", spec=MOTION, clips=[], run={"host": ""},
        failures=[Failure(clip_id="lost", video="lost.mp4", stage="decode", reason="no frame is intact")],
    )  # fmt: skip
    motion = open_store(store.path)["motion"]
    with pytest.raises(MissingClip, match="'lost' failed in motion: decode: no frame is intact"):
        motion.dataset(["c1", "lost"])
    with pytest.raises(MissingClip, match="'never' is not in stream 'motion'"):
        motion.dataset(["never"])
    with pytest.raises(StoreError, match="no clip is in all of the streams motion, objects"):
        store.dataset(["motion", "objects"], ["c0"])
    with pytest.raises(StoreError, match="different names"):
        store.dataset(["motion", "motion"])
    with pytest.raises(StoreError, match="name at least one"):
        store.dataset([])
    for read in (motion.dataset, motion.read, lambda name: store.dataset(["motion", "objects"], name)):
        with pytest.raises(StoreError, match=r"clip ids are a list: \['c1'\]"):
            read("c1")
    with pytest.raises(IndexError):
        store["motion"].dataset()[24]


def test_a_dataset_pickles_without_what_the_stream_knows_or_has_read(tmp_path: Path) -> None:
    add(tmp_path / "s.zarr", "motion", MOTION, {f"clip {i:06d}": 9 for i in range(3000)})
    dataset = open_store(tmp_path / "s.zarr")["motion"].dataset()
    complete, few = pickle.dumps(dataset), pickle.dumps(dataset.stream.dataset(["clip 000001"]))
    assert len(complete) < 3000 * 20
    assert len(few) < 1000
    again = pickle.loads(complete)
    assert again.clip_ids.tolist() == dataset.clip_ids.tolist()
    assert torch.equal(again.batch([7, 2])["values"], dataset.batch([7, 2])["values"])


def test_reading_a_store_needs_no_torch(store: Store) -> None:
    code = (
        "import sys; from amex.features import open_store; open_store(sys.argv[1])['motion']['c1']; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, store.path], check=True)
