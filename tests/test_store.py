"""Rows are read back unchanged, damage on disk is detected, and invalid input is refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from old_store import as_format_3

from amex.features import (
    ClipRows,
    Damage,
    DamagedPart,
    Failure,
    MissingClip,
    SpecMismatch,
    StoreError,
    Stream,
    clip_arrays,
    create_store,
    declare_stream,
    diff_specs,
    fingerprint,
    open_store,
    remove_leftovers,
    row_arrays,
    schema,
    shards,
    verify,
    verify_store,
    write_part,
    writer,
)
from amex.features.part_array import PartArray

DIM = 6
SPEC = {"network": "test", "sampling": {"fps": None, "frames": 16}, "output": {"shape": [DIM], "dtype": "float16"}}


def rows_of(clip_id: str, count: int, seed: int = 0) -> ClipRows:
    generator = np.random.default_rng([seed, count, *clip_id.encode()])
    values = generator.normal(size=(count, DIM)).astype(np.float16)
    starts = np.sort(generator.uniform(0, 1e5, count))
    arrays = {"values": values, "times": np.stack([starts, starts + 0.5], 1)}
    return ClipRows(clip_id=clip_id, arrays=arrays, decoder="decord")


def make(path: Path, parts: dict[str, list[ClipRows]], failures: dict[str, list[Failure]] | None = None) -> Path:
    store = create_store(path)
    declare_stream(store, "s", SPEC, {"weights": "none"})
    for part, clips in parts.items():
        fails = (failures or {}).get(part, [])
        write_part(store, "s", part, spec=SPEC, clips=clips, failures=fails, run={"host": ""})
    return store


def part_folder(store: Path, part: str) -> Path:
    (folder,) = (store / "s" / "parts").glob(f"{part}.*")
    return folder


def verified(stream: Stream) -> bool:
    return not [damage for damage in verify(stream) if damage]


def damages(store: Path) -> list[Damage]:
    return [damage for damage in verify_store(store) if damage]


ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
contents = st.lists(st.dictionaries(ids, st.integers(0, 40), max_size=6), min_size=1, max_size=3)


@settings(max_examples=25)
@given(contents, st.randoms())
def test_rows_come_back_bit_for_bit_by_clip_and_in_batches(
    tmp_path_factory: pytest.TempPathFactory, contents: list[dict[str, int]], order: object
) -> None:
    observed: set[str] = set()
    parts: dict[str, list[ClipRows]] = {}
    for index, content in enumerate(contents):
        parts[f"{index:06d}-x"] = [rows_of(c, n) for c, n in content.items() if c not in observed]
        observed |= content.keys()
    store = make(tmp_path_factory.mktemp("store") / "s.zarr", parts)
    stream = open_store(store)["s"]
    truth = {clip.clip_id: clip for clips in parts.values() for clip in clips}
    assert set(stream) == truth.keys()
    for clip_id, clip in truth.items():
        rows = stream[clip_id]
        assert rows.values.dtype == np.float16
        np.testing.assert_array_equal(rows.values, clip.arrays["values"])
        np.testing.assert_array_equal(rows.times, clip.arrays["times"])
        assert stream.state(clip_id) == ("done" if len(clip.arrays["values"]) else "empty")
    wanted = list(truth) * 2
    order.shuffle(wanted)  # type: ignore[attr-defined]
    batch = stream.read(wanted)
    assert batch.clip_ids == tuple(wanted)
    assert batch.offsets[-1] == len(batch)
    for clip_id, rows in zip(wanted, batch, strict=True):
        np.testing.assert_array_equal(rows.values, truth[clip_id].arrays["values"])
        np.testing.assert_array_equal(rows.times, truth[clip_id].arrays["times"])
    assert stream.to_dask().shape == (stream.rows, DIM)
    assert stream.to_dask("times").shape == (stream.rows, 2)
    assert all(found is None for found in verify(stream))


@pytest.mark.parametrize(("values", "times"), [((3, DIM), (2, 2)), ((3, DIM + 1), (3, 2)), ((3,), (3, 2))])
def test_a_clip_whose_arrays_do_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, values: tuple[int, ...], times: tuple[int, ...]
) -> None:
    store = make(tmp_path / "s.zarr", {})
    clip = ClipRows(clip_id="torn", arrays={"values": np.zeros(values, "float16"), "times": np.zeros(times)})
    with pytest.raises(StoreError, match="clip 'torn' has"):
        write_part(store, "s", "p", spec=SPEC, clips=[rows_of("a", 4), clip], failures=[], run={"host": ""})
    assert len(open_store(store)["s"].commits) == 0
    assert not damages(store)


@pytest.mark.parametrize(
    ("shape", "dtype"), [([0], "float32"), ([3, 0], "float32"), ([3], ">f4"), ([3], "complex64"), ([3], "S3")]
)
def test_a_spec_with_unsupported_dtypes_or_names_is_refused(tmp_path: Path, shape: list[int], dtype: str) -> None:
    store = create_store(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="the spec of stream 's' cannot be stored: values has entries of"):
        declare_stream(store, "s", {"output": {"shape": shape, "dtype": dtype}}, {})
    assert "s" not in open_store(store)


@pytest.mark.parametrize("rows", [slice(None, None, -1), slice(9, 2, -3), slice(2, 9, 3), slice(9, 2), slice(-3, None)])
def test_an_array_of_a_part_is_sliced_in_either_direction(tmp_path: Path, rows: slice) -> None:
    stream = open_store(make(tmp_path / "s.zarr", {"p": [rows_of("a", 12)]}))["s"]
    array = PartArray(stream, stream.index, 0, "values")
    assert np.array_equal(array[rows], stream["a"].values[rows])
    assert np.array_equal(array[rows, 1:], stream["a"].values[rows, 1:])


def test_a_batch_takes_any_iterable_of_ids_and_refuses_unknown_arrays(tmp_path: Path) -> None:
    stream = open_store(make(tmp_path / "s.zarr", {"p": [rows_of("a", 2), rows_of("b", 3)]}))["s"]
    batch = stream.read(iter(["b", "a"]), ["times"])
    assert (batch.clip_ids, list(batch.arrays), batch.offsets.tolist()) == (("b", "a"), ["times"], [0, 3, 5])
    with pytest.raises(StoreError, match="stream 's' has no array 'time'; there is values, times"):
        stream.read(["a"], ["time"])


@settings(max_examples=15)
@given(
    counts=st.lists(st.integers(0, 40), max_size=6),
    chunk=st.integers(1, 400),
    shard=st.integers(1, 1200),
    dtype=st.sampled_from(("float16", "float64", ">f2")),
)
def test_an_array_of_several_files_reads_as_one(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], chunk: int, shard: int, dtype: str
) -> None:
    clips = [rows_of(str(index), count, seed=index) for index, count in enumerate(counts)]
    for clip in clips:
        clip.arrays["values"] = clip.arrays["values"].astype(dtype)
        clip.arrays["values"][1:2] = [[np.nan, -0.0, np.inf, *range(DIM - 3)]]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "CHUNK_BYTES", chunk)
        patched.setattr(shards, "SHARD_BYTES", shard)
        store = make(tmp_path_factory.mktemp("store") / "s.zarr", {"p": clips})
    stream = open_store(store)["s"]
    for clip in clips:
        for name, array in clip.arrays.items():
            stored = array.astype("float16") if name == "values" else array
            assert stream[clip.clip_id][name].tobytes() == stored.tobytes()
    assert verified(stream)
    written = sum(file.startswith("values/c/") for file in stream.commits["p"]["files"])
    per_chunk = max(1, min(sum(counts), chunk // (2 * DIM)))
    assert written == -(-sum(counts) // (per_chunk * max(1, shard // (per_chunk * 2 * DIM))))


@pytest.mark.parametrize("harm", ["lose", "cut", "flip", "swap"])
def test_a_disk_that_returns_other_bytes_is_detected_before_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    original = Path.write_bytes

    def harmful(path: Path, data: bytes) -> None:
        if path.match("values/c/1/0"):
            if harm == "lose":
                return
            if harm == "swap":
                data = (path.parents[1] / "0/0").read_bytes()
            elif harm == "cut":
                data = data[: len(data) // 2]
            else:
                data = bytes([data[0] ^ 1]) + data[1:]
        original(path, data)

    monkeypatch.setattr(Path, "write_bytes", harmful)
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * DIM * 4)
    monkeypatch.setattr(shards, "CHUNK_BYTES", 2 * DIM * 4)
    with pytest.raises(
        StoreError, match="values/c/1/0 does not read back as it was written: check the disk and its free space"
    ):
        make(tmp_path / "s.zarr", {"p": [rows_of("a", 3), rows_of("b", 9)]})
    assert not len(open_store(tmp_path / "s.zarr")["s"])
    assert not list((tmp_path / "s.zarr" / "s" / "parts").glob("p.*"))


def test_any_zarr_reader_can_read_a_part(tmp_path: Path) -> None:
    clips = [rows_of("a", 3), rows_of("b", 0), rows_of("ü/ñ.mp4", 2)]
    part = zarr.open_group(part_folder(make(tmp_path / "s.zarr", {"p": clips}), "p"), mode="r")
    assert list(part["clip_ids"][:]) == ["a", "b", "ü/ñ.mp4"]
    assert list(part["offsets"][:]) == [0, 3, 3, 5]
    assert part["values"].shape == (5, DIM)
    assert part["times"].dtype == np.float64


def test_whole_stream_statistics_through_dask(tmp_path: Path) -> None:
    clips = [rows_of("a", 30), rows_of("b", 50)]
    stream = open_store(make(tmp_path / "s.zarr", {"0": clips[:1], "1": clips[1:]}))["s"]
    truth = np.concatenate([clip.arrays["values"] for clip in clips]).astype(np.float64)
    np.testing.assert_allclose(stream.to_dask().astype("float64").mean(axis=0).compute(), truth.mean(axis=0))


def test_every_flipped_bit_is_detected_with_its_part(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"one": [rows_of("a", 3)], "two": [rows_of("b", 4)]})
    generator = np.random.default_rng(0)
    files = [p for p in (store / "s").rglob("*") if p.is_file() and "two" in str(p.relative_to(store))]
    assert len(files) >= 9  # four arrays with metadata and data, and the commit record
    for file in files:
        good = file.read_bytes()
        for _ in range(12):
            bad = bytearray(good)
            bad[generator.integers(len(bad))] ^= 1 << generator.integers(8)
            file.write_bytes(bad)
            assert [damage.part for damage in damages(store)] == ["two"], file
        file.write_bytes(good)
    assert all(found is None for found in verify(open_store(store)["s"]))


def test_reading_damaged_values_is_an_error_not_a_number(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 3)]})
    shard = next(p for p in (part_folder(store, "p") / "values" / "c").rglob("*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[3] ^= 4
    shard.write_bytes(data)
    with pytest.raises(DamagedPart, match=r"part p of stream 's'.*--repair"):
        open_store(store)["s"]["a"]


def test_missing_and_added_files_are_damage(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 3)]})
    extra = part_folder(store, "p") / "values" / "c" / "extra"
    extra.write_bytes(b"")
    (damage,) = verify(open_store(store)["s"])
    assert "extra" in damage.reason
    extra.unlink()
    shutil.rmtree(part_folder(store, "p") / "times")
    (damage,) = verify(open_store(store)["s"])
    assert "times" in damage.reason


def test_a_part_without_a_commit_record_does_not_exist_and_is_rewritten(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 3)]})
    left = part_folder(store, "p")
    (store / "s/commits/p.json").unlink()
    stream = open_store(store)["s"]
    assert stream.state("a") == "absent"
    (damage,) = verify(stream)
    assert (damage.kind, damage.part) == ("lost", "p")
    assert "1 clip is absent, the first 'a'" in damage.reason
    make(store, {"p": [rows_of("a", 5, seed=1)]})
    stream = open_store(store)["s"]
    assert len(stream["a"]) == 5
    remove_leftovers(stream)
    assert not left.exists()
    assert verified(stream)


def test_a_damaged_leftover_is_not_reused(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 3)]})
    (store / "s/commits/p.json").unlink()
    (part_folder(store, "p") / "values" / "zarr.json").write_text("{}")
    make(store, {"p": [rows_of("a", 3)]})
    assert verified(open_store(store)["s"])


def test_folders_of_format_1_have_the_name_of_the_part(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 3)]})
    part_folder(store, "p").rename(store / "s/parts/p")
    path = store / "s/commits/p.json"
    commit = schema.read_commit(path) | {"format": 1}
    del commit["folder"]
    path.write_text(json.dumps({**commit, "sha256": hashlib.sha256(schema.canonical(commit)).hexdigest()}))
    stream = open_store(store)["s"]
    assert len(stream["a"]) == 3
    assert verified(stream)
    remove_leftovers(stream)
    assert len(open_store(store)["s"]["a"]) == 3


def test_a_store_of_format_3_is_readable(tmp_path: Path) -> None:
    """Its commit records have no layouts, and a compressed chunk has the rows of many clips."""
    many = [rows_of(str(index), 3000 + index) for index in range(60)]  # two chunks, three of times
    store = make(tmp_path / "s.zarr", {"p": many, "q": [rows_of("a", 3), rows_of("b", 0)], "r": []})
    as_format_3(store, "s")
    stream = open_store(store)["s"]
    assert {commit["format"] for commit in stream.commits.values()} == {3}
    for clip in (many[59], many[0], many[31], rows_of("a", 3), rows_of("b", 0)):
        for name, array in clip.arrays.items():
            assert stream[clip.clip_id][name].tobytes() == array.tobytes()
    batch = stream.read([clip.clip_id for clip in many])
    assert batch.values.tobytes() == b"".join(clip.arrays["values"].tobytes() for clip in many)
    assert verified(stream)
    make(store, {"t": [rows_of("new", 2)]})
    assert len(open_store(store)["s"].read(["b", "new", "7"])) == 3009


@pytest.mark.parametrize("file", ["values/c/0/0", "times/c/0/0", "offsets/c/0", "clip_ids/zarr.json", "zarr.json"])
def test_damage_in_format_3_is_detected_at_the_first_read(file: str, tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 3), rows_of("b", 2)]})
    as_format_3(store, "s")
    path = part_folder(store, "p") / file
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(DamagedPart, match="part p of stream 's'"):
            open_store(store)["s"].read(["b", "a"])
    path.write_bytes(content)
    assert len(open_store(store)["s"].read(["b", "a"])) == 5


def test_the_first_of_two_writers_of_a_part_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writer has started when the first one commits, like a worker that was presumed dead."""
    store = make(tmp_path / "s.zarr", {})
    original = writer.publish_part

    def slower(*part: Any) -> Path:
        monkeypatch.setattr(writer, "publish_part", original)
        make(store, {"p": [rows_of("a", 5, seed=1)]})
        return original(*part)

    monkeypatch.setattr(writer, "publish_part", slower)
    options = {"spec": SPEC, "clips": [rows_of("a", 3)], "failures": [], "run": {"host": ""}}
    assert writer.write_part(store, "s", "p", **options)["rows"] == 5
    stream = open_store(store)["s"]
    assert len(stream["a"]) == 5
    (left,) = [damage for damage in verify(stream) if damage]
    assert left.kind == "leftover"
    remove_leftovers(stream)
    assert verified(stream)


def test_remove_leftovers_during_a_write_of_a_committed_part_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "s.zarr", {})
    original = writer.write_array

    def swept(*array: Any) -> tuple:
        monkeypatch.setattr(writer, "write_array", original)
        make(store, {"p": [rows_of("a", 5, seed=1)]})
        remove_leftovers(open_store(store)["s"])
        return original(*array)

    monkeypatch.setattr(writer, "write_array", swept)
    options = {"spec": SPEC, "clips": [rows_of("a", 3)], "failures": [], "run": {"host": ""}}
    assert writer.write_part(store, "s", "p", **options)["rows"] == 5
    assert verified(open_store(store)["s"])
    assert not damages(store)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import make, rows_of
store = make(Path(sys.argv[1]), {})
step, nth = sys.argv[3].split()
kept, calls = getattr(os, step), []
def killed(*paths, **options):
    calls.append(paths)
    if len(calls) == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return kept(*paths, **options)
setattr(os, step, killed)
make(store, {"p": [rows_of("a", 3)]})
"""


# Kill during the write of an array, during the sync, and during the commit.
@pytest.mark.parametrize("step", ["mkdir 3", "mkdir 8", "fsync 3", "rename 1", "fsync 10", "link 1", "unlink 1"])
def test_leftovers_of_a_killed_writer_are_deleted_once_the_part_is_committed(step: str, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    killed = subprocess.run([sys.executable, "-c", KILLED, store, Path(__file__).parent, step], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert damages(store)
    make(store, {"p": [rows_of("a", 3)]})
    remove_leftovers(open_store(store)["s"])
    assert not list(store.rglob(".*"))
    assert verified(open_store(store)["s"])


def test_another_spec_under_the_same_name_is_refused_field_by_field(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 1)]})
    other = json.loads(json.dumps(SPEC))
    other["sampling"]["fps"] = 25
    other["network"] = "other"
    with pytest.raises(SpecMismatch) as caught:
        declare_stream(store, "s", other, {})
    assert "network: 'test' in the store, 'other' now" in str(caught.value)
    assert "sampling.fps: None in the store, 25 now" in str(caught.value)
    assert declare_stream(store, "s", SPEC, {"weights": "elsewhere"}) == fingerprint(SPEC)


@given(st.recursive(st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=8))
def test_equal_specs_have_no_difference_and_one_fingerprint(spec: object) -> None:
    again = json.loads(json.dumps(spec))
    assert list(diff_specs(spec, again)) == []
    assert fingerprint({"a": spec}) == fingerprint({"a": again})


def test_a_success_replaces_a_failure_and_the_last_failure_counts(tmp_path: Path) -> None:
    first = [
        Failure(clip_id="a", video="a", stage="decode", reason="x"),
        Failure(clip_id="b", video="b", stage="open", reason="y"),
    ]
    second = [Failure(clip_id="b", video="b", stage="decode", reason="z", attempts=2)]
    stream = open_store(make(tmp_path / "s.zarr", {"0": [], "1": [rows_of("a", 2)]}, {"0": first, "1": second}))["s"]
    assert stream.state("a") == "done"
    assert stream.failures == {"b": second[0]}
    with pytest.raises(MissingClip, match="'b' failed in s: decode: z"):
        stream["b"]
    with pytest.raises(MissingClip, match="'c' is not in stream"):
        stream["c"]


def test_a_part_counts_instead_of_the_parts_that_it_replaces(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 2), rows_of("b", 3)], "q": [rows_of("c", 1)]})
    with_a = [rows_of("a", 2), rows_of("c", 1)]
    write_part(store, "s", "r", spec=SPEC, clips=with_a, failures=[], run={}, replaces=["p", "q"])
    for _ in range(2):
        stream = open_store(store)["s"]
        assert (list(stream.commits), sorted(stream), stream.rows) == (["r"], ["a", "c"], 3)
        assert stream.state("b") == "absent"
        (store / "s/commits/p.json").unlink(missing_ok=True)
        for folder in (store / "s/parts").glob("q.*"):
            shutil.rmtree(folder)


def test_a_path_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not an amex store"):
        open_store(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="choose another --store"):
        create_store(tmp_path)
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="not an amex store"):
        open_store(tmp_path / "other.zarr")
    store = make(tmp_path / "s.zarr", {})
    with pytest.raises(StoreError, match="no stream 'r2' in"):
        open_store(store)["r2"]
    spec = store / "s" / "spec.json"
    spec.write_text(spec.read_text().replace('"frames": 16', '"frames": 17'))
    with pytest.raises(StoreError, match="damaged"):
        open_store(store)["s"]


OBJECTS = {
    "network": "test",
    "output": {
        "shape": [3, DIM],
        "dtype": "float16",
        "arrays": {"boxes": {"shape": [3, 4], "dtype": "float32"}, "counts": {"shape": [], "dtype": "int32"}},
    },
}
TEXT = {
    "network": "test",
    "output": {
        "of": "captions",
        "shape": [DIM],
        "dtype": "float16",
        "arrays": {"tokens": {"shape": [], "dtype": "int32"}},
        "clip_arrays": {"sentence": {"shape": [4], "dtype": "float16"}},
    },
}


@settings(max_examples=20)
@given(st.sampled_from([OBJECTS, TEXT]), contents, st.randoms())
def test_all_arrays_of_objects_and_text_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, spec: dict, contents: list[dict[str, int]], order: object
) -> None:
    generator = np.random.default_rng(0)
    store = create_store(tmp_path_factory.mktemp("store") / "s.zarr")
    declare_stream(store, "s", spec, {})
    truth: dict[str, dict[str, np.ndarray]] = {}
    for index, content in enumerate(contents):
        clips = []
        for clip_id, count in content.items():
            if clip_id in truth:
                continue
            shapes = {name: ((count, *shape), dtype) for name, (shape, dtype) in row_arrays(spec).items()}
            shapes |= clip_arrays(spec)
            arrays = {name: generator.integers(0, 99, shape).astype(dtype) for name, (shape, dtype) in shapes.items()}
            truth[clip_id] = arrays
            clips.append(ClipRows(clip_id=clip_id, arrays=arrays))
        write_part(store, "s", f"{index:06d}-x", spec=spec, clips=clips, failures=[], run={})
    stream = open_store(store)["s"]
    assert ("times" in row_arrays(spec)) == (spec is OBJECTS)
    wanted = list(truth)
    order.shuffle(wanted)
    for clip_id, rows in zip(wanted, stream.read(wanted), strict=True):
        assert rows.arrays.keys() == truth[clip_id].keys()
        for name, array in truth[clip_id].items():
            np.testing.assert_array_equal(rows[name], array)
            assert rows[name].dtype == array.dtype
            np.testing.assert_array_equal(stream[clip_id][name], array)
    for name in (*row_arrays(spec), *clip_arrays(spec)):
        assert len(stream.to_dask(name)) == (len(truth) if name == "sentence" else stream.rows)
    assert not [damage for damage in verify(stream) if damage]


DECLARE = """
import sys, time
from pathlib import Path
import numpy as np
from amex.features import ClipRows, create_store, declare_stream, write_part
spec = {{"network": "n", "output": {{"shape": [2], "dtype": "float16"}}, "by": int(sys.argv[2]) % {kinds}}}
print("ready", flush=True)
begin = float(sys.stdin.readline())
while time.time() < begin:  # start at the same time
    pass
try:
    store = create_store(Path(sys.argv[1]))
    mark = declare_stream(store, "s", spec, {{}})
    rows = ClipRows(clip_id=sys.argv[2], arrays={{"values": np.ones((1, 2)), "times": np.ones((1, 2))}})
    write_part(store, "s", sys.argv[2], spec=spec, clips=[rows], failures=[], run={{}})
    print(mark)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("kinds", [1, 2])
def test_concurrent_runs_agree_on_one_store_and_one_spec(kinds: int, tmp_path: Path) -> None:
    code = DECLARE.format(kinds=kinds)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "s.zarr", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    assert [run.stdout.readline() for run in runs] == ["ready\n"] * 4
    begin = time.time() + 0.1
    for run in runs:
        print(begin, file=run.stdin, flush=True)
    outputs = [run.communicate(timeout=60)[0].strip() for run in runs]
    refused = [word for word in outputs if word.startswith("SpecMismatch")]
    stream = open_store(tmp_path / "s.zarr")["s"]
    assert set(outputs) - set(refused) <= {stream.fingerprint}
    assert len(stream) == 4 - len(refused)
    assert len(refused) == 0 if kinds == 1 else len(refused) >= 2
    assert verified(stream)


def test_concurrent_declarations_of_an_empty_stream_end_with_one_spec(
    tmp_path: Path,
) -> None:
    """Six writers, half of them with another spec: all commits have the final spec of the stream."""
    for attempt in range(25):
        store, begin = create_store(tmp_path / f"{attempt}.zarr"), threading.Barrier(6)
        marks: dict[int, str] = {}

        def run(number: int, store: Path = store, begin: threading.Barrier = begin, marks: dict = marks) -> None:
            spec = {"network": "n", "output": {"shape": [2], "dtype": "float16"}, "by": number % 2}
            rows = ClipRows(clip_id=str(number), arrays={"values": np.ones((1, 2)), "times": np.ones((1, 2))})
            begin.wait()
            with contextlib.suppress(SpecMismatch):
                mark = declare_stream(store, "s", spec, {})
                write_part(store, "s", str(number), spec=spec, clips=[rows], failures=[], run={})
                marks[number] = mark

        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream = open_store(store)["s"]
        assert set(marks.values()) <= {stream.fingerprint}
        assert sorted(stream) == sorted(map(str, marks))
