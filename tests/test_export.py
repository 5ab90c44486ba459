"""The library of each format reads exports back bit for bit; a failed export leaves no readable file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from conftest import amex, write_lines
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from webdataset.tariterators import base_plus_ext

from amex.features import (
    ClipRows,
    ClipSource,
    Failure,
    Stream,
    create_store,
    declare_stream,
    open_store,
    write_part,
)
from amex.features.exchange.webdataset_files import key

HOSTILE = ("a", "deep/er/b.mp4", "..", "__c__", "ünï/Ω.x", "e//f", '"q"\n', "x" * 4000, "A", "%06d")
NEW = ("parquet", "webdataset", "safetensors")


def run(*arguments: object) -> str:
    result = amex("features", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    """Run a command that must fail. Return its error line."""
    result = amex("features", *arguments)
    assert result.exit_code == 1, result.output
    assert len(result.output.strip().splitlines()) == 1, result.output
    return result.output


def make(store: Path, name: str, output: dict[str, Any], clips: list[ClipRows], parts: int = 2) -> Stream:
    """Return a stream with clips in several parts and a failed clip."""
    spec = {"network": "imported", "source": {"sha256": "0" * 64, "array": name}, "output": output}
    create_store(store)
    declare_stream(store, name, spec, {"weights": "imported", "imported_from": "nowhere"})
    failures = [Failure(clip_id="failed", video="f.mp4", stage="open", reason="no video")]
    for part in range(parts):
        rows = clips[part::parts]
        write_part(store, name, f"p{part}", spec=spec, clips=rows, failures=failures if not part else [], run={})
    return open_store(store)[name]


def clip(clip_id: str, index: int, **arrays: np.ndarray) -> ClipRows:
    source = ClipSource(video=f"v{index}.mp4", start=index / 3, end=index + 1.0) if index else ClipSource()
    return ClipRows(clip_id=clip_id, arrays=arrays, source=source)


def windows(store: Path, dtype: str = "float16", ids: tuple[str, ...] = HOSTILE, dim: int = 8) -> Stream:
    """Return a stream with 0 to 3 rows per clip."""
    rng = np.random.default_rng(0)
    clips = []
    for index, clip_id in enumerate(ids):
        values = rng.standard_normal((index % 4, dim)).astype(dtype)
        values[:1, 0] = (np.nan, np.inf, -0.0)[index % 3]
        clips.append(clip(clip_id, index, values=values, times=np.sort(rng.random((index % 4, 2)))))
    return make(store, "windows", {"shape": [dim], "dtype": dtype}, clips)


def objects(store: Path) -> Stream:
    """Return a stream of objects: at most two boxes, none in the last clip."""
    rng = np.random.default_rng(1)
    clips = []
    for index, counts in enumerate(([1, 2], [0, 2, 0], [0])):
        rows = len(counts)
        boxes = rng.random((rows, 2, 4)).astype(np.float32)
        values = rng.standard_normal((rows, 2, 8)).astype(np.float16)
        values[np.arange(2) >= np.array(counts)[:, None]] = np.nan  # a mean must not include it
        clips.append(
            clip(
                f"o{index}", index, values=values, boxes=boxes, counts=np.array(counts, np.int32),
                times=np.sort(rng.random((rows, 2))),
            )
        )  # fmt: skip
    arrays = {"boxes": {"shape": [2, 4], "dtype": "float32"}, "counts": {"shape": [], "dtype": "int32"}}
    return make(store, "objects", {"shape": [2, 8], "dtype": "float16", "arrays": arrays}, clips)


def text(store: Path, sentence: bool = True) -> Stream:
    """Return a stream of captions."""
    rng = np.random.default_rng(2)
    clips = []
    for words in ("a dog", "a cat sleeps", "ein Bär"):
        rows = len(words.split())
        single = {"sentence": rng.standard_normal(8).astype(np.float16)} if sentence else {}
        values, tokens = rng.standard_normal((rows, 8)).astype(np.float16), rng.integers(0, 9, rows).astype(np.int32)
        clips.append(ClipRows(clip_id=words, arrays={"values": values, "tokens": tokens, **single}))
    output = {"shape": [8], "dtype": "float16", "of": "captions", "arrays": {"tokens": {"shape": [], "dtype": "int32"}}}
    if sentence:
        output["clip_arrays"] = {"sentence": {"shape": [8], "dtype": "float16"}}
    return make(store, "text", output, clips)


def bits(array: np.ndarray) -> tuple[Any, ...]:
    """Return the properties that equal arrays share."""
    return array.dtype, array.shape, np.ascontiguousarray(array).tobytes()


def column(table: pa.Table, name: str, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Return a column as an array (rows, ...)."""
    flat = table[name].combine_chunks()
    while pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    return flat.to_numpy(zero_copy_only=False).reshape(len(table), *shape)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_parquet_has_one_row_per_window(dtype: str, tmp_path: Path) -> None:
    stream = windows(tmp_path / "s.zarr", dtype)
    result = run("export", stream.path.parent, "windows", "--out", tmp_path / "t.parquet", "--format", "parquet")
    assert "7 clips of windows as parquet; 3 empty clips left out" in result
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.names == ["clip_id", "video", "start", "end", "row", "row_start", "row_end", "vector"]
    wide = np.promote_types(dtype, np.float32)
    assert table.schema.field("vector").type == pa.list_(pa.from_numpy_dtype(wide), 8)
    assert json.loads(table.schema.metadata[b"amex_spec"]) == stream.spec
    assert table.schema.metadata[b"amex_fingerprint"].decode() == stream.fingerprint
    ids = [clip_id for clip_id in stream for _ in range(stream.rows_of(clip_id))]
    assert table["clip_id"].to_pylist() == ids
    assert table["row"].to_pylist() == [row for clip_id in stream for row in range(stream.rows_of(clip_id))]
    assert table["video"].to_pylist() == [stream.source(clip_id).video for clip_id in ids]
    assert table["start"].to_pylist() == [stream.source(clip_id).start for clip_id in ids]
    assert table["end"].to_pylist() == [stream.source(clip_id).end for clip_id in ids]
    complete = stream.read(list(stream))
    assert bits(column(table, "vector", (8,)).astype(dtype)) == bits(complete.values)
    for side, name in enumerate(("row_start", "row_end")):
        assert bits(column(table, name)) == bits(complete.times[:, side])


def test_parquet_of_objects_has_boxes_beside_vectors(tmp_path: Path) -> None:
    stream = objects(tmp_path / "s.zarr")
    run("export", stream.path.parent, "objects", "--out", tmp_path / "t.parquet", "--format", "parquet")
    table, complete = pq.read_table(tmp_path / "t.parquet"), stream.read(list(stream))
    assert bits(column(table, "vector", (2, 8)).astype(np.float16)) == bits(complete.values)
    assert bits(column(table, "boxes", (2, 4))) == bits(complete["boxes"])
    assert bits(column(table, "counts")) == bits(complete["counts"])


def test_parquet_of_text_has_one_row_per_token_or_one_vector_per_caption(tmp_path: Path) -> None:
    stream = text(tmp_path / "s.zarr")
    complete = stream.read(list(stream))
    for name, options in (("tokens", ()), ("captions", ("--pool", "mean"))):
        run(
            "export", stream.path.parent, "text", "--out", tmp_path / f"{name}.parquet", "--format", "parquet", *options
        )
    tokens, captions = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("tokens", "captions"))
    assert tokens.schema.names == ["caption", "row", "tokens", "vector"]
    assert bits(column(tokens, "vector", (8,)).astype(np.float16)) == bits(complete.values)
    assert captions["caption"].to_pylist() == list(stream)
    assert bits(column(captions, "vector", (8,))) == bits(complete["sentence"].astype(np.float32))
    without = text(tmp_path / "w.zarr", sentence=False)
    run("export", tmp_path / "w.zarr", "text", "--out", tmp_path / "w", "--pool", "mean")
    means = [without[caption].values.astype(np.float32).mean(axis=0) for caption in without]
    assert bits(np.load(tmp_path / "w" / "values.npy")) == bits(np.array(means))


def test_parquet_is_cut_into_files_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amex.features.exchange.excerpt.BATCH_BYTES", 10_000)
    monkeypatch.setattr("amex.features.exchange.parquet_files.GROUP_ROWS", 20)
    stream = windows(tmp_path / "s.zarr", "float32", tuple(f"c{i}" for i in range(200)), dim=64)
    run("export", tmp_path / "s.zarr", "windows", "--out", tmp_path / "t", "--format", "parquet", "--shard-mb", 0.02)
    files = sorted((tmp_path / "t").iterdir())
    assert files[0].name == "part-00000.parquet"
    assert len(files) > 2
    assert pq.ParquetFile(files[0]).num_row_groups > 1
    table = pq.read_table(tmp_path / "t")
    assert bits(column(table, "vector", (64,))) == bits(stream.read(list(stream)).values)


def test_duckdb_searches_the_vectors(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    stream = windows(tmp_path / "s.zarr", "float16", tuple(f"c{i}" for i in range(9)))
    out = tmp_path / "t"
    run("export", tmp_path / "s.zarr", "windows", "--out", out, "--format", "parquet", "--pool", "mean")
    query = np.nan_to_num(stream["c2"].values.astype(np.float32).mean(axis=0)).tolist()
    rows = duckdb.sql(
        f"select clip_id, array_distance(vector::FLOAT[8], {query}::FLOAT[8]) from '{out}/*.parquet' order by 2"
    ).fetchall()
    assert rows[0] == ("c2", 0.0)


@pytest.mark.parametrize("kind", ["windows", "objects", "text"])
def test_webdataset_has_one_sample_per_clip(kind: str, tmp_path: Path) -> None:
    stream = {"windows": windows, "objects": objects, "text": text}[kind](tmp_path / "s.zarr")
    out = tmp_path / "100%d"
    run("export", tmp_path / "s.zarr", kind, "--out", out, "--format", "webdataset", "--shard-mb", 0.0001)
    shards = sorted(map(str, out.glob("*.tar")))
    assert len(shards) > 1
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    named = "caption" if kind == "text" else "clip_id"
    assert [sample["json"][named] for sample in samples] == list(stream)
    for sample in samples:
        rows = stream[sample["json"][named]]
        for name, array in rows.arrays.items():
            assert bits(sample[f"{name}.npy"]) == bits(np.asarray(array))
        if kind != "text":
            source = stream.source(sample["json"]["clip_id"])
            assert (sample["json"]["video"], sample["json"]["start"]) == (source.video, source.start)
            assert sample["json"]["end"] == source.end
    assert json.loads((out / "spec.json").read_text())["spec"] == stream.spec
    again = tmp_path / "again"
    run("export", tmp_path / "s.zarr", kind, "--out", again, "--format", "webdataset", "--shard-mb", 0.0001)
    assert all((again / Path(shard).name).read_bytes() == Path(shard).read_bytes() for shard in shards)


@pytest.mark.parametrize("kind", ["windows", "objects", "text"])
def test_safetensors_has_few_tensors_and_the_ids_in_its_metadata(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amex.features.exchange.excerpt.BATCH_BYTES", 30)
    stream = {"windows": windows, "objects": objects, "text": text}[kind](tmp_path / "s.zarr")
    out, one = tmp_path / "t", tmp_path / "one.safetensors"
    run("export", tmp_path / "s.zarr", kind, "--out", out, "--format", "safetensors", "--shard-mb", 0.0001)
    run("export", tmp_path / "s.zarr", kind, "--out", one, "--format", "safetensors")
    index = json.loads((out / "features.safetensors.index.json").read_text())
    assert list(index["clip_map"]) == list(stream)
    assert index["metadata"]["fingerprint"] == stream.fingerprint
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 1
    for file in (*files, one):
        tensors = load_file(file)
        with safe_open(file, "np") as opened:
            ids = json.loads(opened.metadata()["clip_ids"])
            assert json.loads(opened.metadata()["amex_spec"]) == stream.spec
        assert file == one or [clip_id for clip_id in stream if index["clip_map"][clip_id] == file.name] == ids
        complete = stream.read(ids)
        assert bits(tensors.pop("offsets")) == bits(complete.offsets)
        assert tensors.keys() == complete.arrays.keys()
        assert all(bits(tensors[name]) == bits(array) for name, array in complete.arrays.items())


def test_safetensors_are_torch_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("safetensors.torch")
    stream = windows(tmp_path / "s.zarr")
    run("export", tmp_path / "s.zarr", "windows", "--out", tmp_path / "t.safetensors", "--format", "safetensors")
    tensors = torch.load_file(tmp_path / "t.safetensors")
    assert bits(tensors["values"].numpy()) == bits(stream.read(list(stream)).values)


def test_a_stream_too_large_for_one_tensor_file_needs_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows(tmp_path / "s.zarr")
    monkeypatch.setattr("amex.features.exchange.safetensors_files.LARGEST", 100)
    out = tmp_path / "t.safetensors"
    assert "make --out a folder" in refused(
        "export", tmp_path / "s.zarr", "windows", "--out", out, "--format", "safetensors"
    )
    assert not out.exists()


def pooled(out: Path, form: str) -> dict[str, np.ndarray]:
    """Return the vectors of an export by clip."""
    if form == "npy":
        return dict(zip(json.loads((out / "clip_ids.json").read_text()), np.load(out / "values.npy"), strict=True))
    if form == "hdf5":
        vectors: dict[str, np.ndarray] = {}
        with h5py.File(out) as file:
            file.visititems(
                lambda name, item: vectors.update({name: item[()]} if isinstance(item, h5py.Dataset) else {})
            )
        return vectors
    if form == "parquet":
        table = pq.read_table(out)
        assert table.schema.names == ["clip_id", "video", "start", "end", "vector"]
        return dict(zip(table["clip_id"].to_pylist(), column(table, "vector", (8,)), strict=True))
    if form == "safetensors":
        file = next(out.glob("*.safetensors"))
        with safe_open(file, "np") as opened:
            ids = json.loads(opened.metadata()["clip_ids"])
        return dict(zip(ids, load_file(file)["values"], strict=True))
    samples = webdataset.WebDataset(sorted(map(str, out.glob("*.tar"))), shardshuffle=False).decode()
    return {sample["json"]["clip_id"]: sample["values.npy"] for sample in samples}


@pytest.mark.parametrize("form", ["npy", "hdf5", *NEW])
def test_pooling_gives_one_vector_per_clip(form: str, tmp_path: Path) -> None:
    """The mean over rows in float32; for objects over existing boxes, then over rows with boxes."""
    store, ids = tmp_path / "s.zarr", ("a", "b", "deep/er/c", "d", "e")
    stream, boxes = windows(store, ids=ids), objects(store)
    result = run("export", store, "windows", "--out", tmp_path / "w", "--format", form, "--pool", "mean", "--json")
    facts = json.loads(result)
    assert (facts["clips"], facts["rows"], facts["left_out"]) == (3, 3, 2)
    vectors = pooled(tmp_path / "w", form)
    assert sorted(vectors) == ["b", "d", "deep/er/c"]
    for clip_id, vector in vectors.items():
        assert bits(vector) == bits(stream[clip_id].values.astype(np.float32).mean(axis=0)), clip_id
    run("export", store, "objects", "--out", tmp_path / "o", "--format", form, "--pool", "mean")
    vectors = pooled(tmp_path / "o", form)
    values = {clip_id: boxes[clip_id].values.astype(np.float32) for clip_id in boxes}
    assert sorted(vectors) == ["o0", "o1"]
    assert np.allclose(vectors["o0"], (values["o0"][0, 0] + values["o0"][1].mean(axis=0)) / 2)
    assert np.allclose(vectors["o1"], values["o1"][1].mean(axis=0))
    assert vectors["o0"].dtype == np.float32


@pytest.mark.parametrize("kind", ["windows", "objects", "text"])
@pytest.mark.parametrize("out", ["t", "t.safetensors"])
def test_imported_tensors_have_the_same_fingerprint(
    kind: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amex.features.exchange.excerpt.BATCH_BYTES", 30)
    stream = {"windows": windows, "objects": objects, "text": text}[kind](tmp_path / "s.zarr")
    shards = ("--shard-mb", 0.0001)
    run("export", tmp_path / "s.zarr", kind, "--out", tmp_path / out, "--format", "safetensors", *shards)
    run("import", tmp_path / out, "--store", tmp_path / "b.zarr", "--allow-nan")
    reread = open_store(tmp_path / "b.zarr")[kind]
    assert reread.fingerprint == stream.fingerprint
    assert list(reread) == list(stream)
    for clip_id in stream:
        for name, array in stream[clip_id].arrays.items():
            assert bits(reread[clip_id].arrays[name]) == bits(array)


def test_captions_select_clips_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amex.features.exchange.excerpt.BATCH_BYTES", 30)
    stream = windows(tmp_path / "s.zarr", ids=tuple("abcdefgh"))
    shards = ("--shard-mb", 0.0001)
    run("export", tmp_path / "s.zarr", "windows", "--out", tmp_path / "t", "--format", "safetensors", *shards)
    two = write_lines(tmp_path / "two.jsonl", {"video": "h"}, {"video": "d"})
    run("import", tmp_path / "t", "--store", tmp_path / "b.zarr", "--allow-nan", "--captions", two)
    reread = open_store(tmp_path / "b.zarr")["windows"]
    assert sorted(reread) == ["d", "h"]
    assert bits(reread["h"].values) == bits(stream["h"].values)


def changed(file: Path, tensors: dict[str, Any], **facts: str | None) -> None:
    """Rewrite a file of tensors with changes; None deletes a tensor or a metadata entry."""
    with safe_open(file, "np") as opened:
        metadata = {**opened.metadata(), **facts}
    both = {**load_file(file), **tensors}
    kept = {name: tensor for name, tensor in both.items() if tensor is not None}
    save_file(kept, file, {name: fact for name, fact in metadata.items() if fact is not None})


@pytest.mark.parametrize(
    ("hurt", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-3]), "cannot be read as safetensors"),
        (lambda file: file.write_bytes(b"nothing"), "cannot be read as safetensors"),
        (lambda file: file.unlink(), "cannot be read as safetensors"),
        (lambda file: changed(file, {}, clip_ids=None), "is not an export of amex"),
        (lambda file: changed(file, {}, clip_ids='["a"]'), "offsets are int64[3] for 1 clip"),
        (lambda file: changed(file, {}, clip_ids="7"), "are not a list"),
        (lambda file: changed(file, {}, amex_spec="{"), "cannot be read as safetensors"),
        (lambda file: changed(file, {}, amex_spec="{}"), "its spec does not describe a stream"),
        (lambda file: changed(file, {"offsets": np.array([0, 1, 99])}), "do not begin with 0 and end with"),
        (lambda file: changed(file, {"offsets": np.array([0.0])}), "entries of offsets have another shape or dtype"),
        (lambda file: changed(file, {"offsets": None}), "is not an export of amex"),
        (lambda file: changed(file, {"times": np.zeros((1, 3))}), "have another shape or dtype"),
        (lambda file: changed(file, {"times": None}), "other tensors"),
        (lambda file: changed(file, {"values": np.zeros(3, np.float16)}), "have another shape or dtype"),
        (lambda file: (file.parent / "features.safetensors.index.json").write_text("[]"), "is not an index of amex"),
        (
            lambda file: (file.parent / "features.safetensors.index.json").write_text('{"clip_map": {"a": "../x"}}'),
            "is not an index of amex",
        ),
        (
            lambda file: (file.parent / "features.safetensors.index.json").write_text(
                '{"clip_map": {"zzz": "features-00001.safetensors"}}'
            ),
            "names other clips",
        ),
    ],
)
def test_damaged_or_hostile_tensors_are_refused(
    hurt: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amex.features.exchange.excerpt.BATCH_BYTES", 30)
    windows(tmp_path / "s.zarr", ids=tuple("abcdefgh"))
    shards = ("--shard-mb", 0.00001)
    run("export", tmp_path / "s.zarr", "windows", "--out", tmp_path / "t", "--format", "safetensors", *shards)
    hurt(tmp_path / "t" / "features-00001.safetensors")
    assert words in refused("import", tmp_path / "t", "--store", tmp_path / "b.zarr", "--allow-nan")
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize("form", ["npy", "hdf5"])
def test_exported_means_are_imported_as_a_new_stream(form: str, tmp_path: Path) -> None:
    stream = windows(tmp_path / "s.zarr", ids=tuple("abcde"))
    out = tmp_path / ("m.h5" if form == "hdf5" else "m")
    run("export", tmp_path / "s.zarr", "windows", "--out", out, "--format", form, "--pool", "mean")
    run("import", out, "--store", tmp_path / "s.zarr", "--stream", "means", "--allow-nan")
    means = open_store(tmp_path / "s.zarr")["means"]
    assert means.spec["pool"] == "mean"
    assert means.fingerprint != stream.fingerprint
    assert bits(means["b"].values[0]) == bits(stream["b"].values.astype(np.float32).mean(axis=0))


@pytest.mark.parametrize("form", ["npy", "hdf5", *NEW])
def test_a_manifest_selects_and_orders_clips(form: str, tmp_path: Path) -> None:
    windows(tmp_path / "s.zarr", ids=("a", "b", "deep/er/c", "d", "f"))
    lines = [{"clip_id": name, "video": name} for name in ("f", "d", "absent", "failed", "b")]
    manifest = write_lines(tmp_path / "m.jsonl", *lines)
    command = ("export", tmp_path / "s.zarr", "windows", "--format", form, "--pool", "mean", "--manifest")
    result = run(*command, manifest, "--out", tmp_path / "t")
    assert "windows has no features of 2 (1 absent, 1 failed)" in result
    vectors = list(pooled(tmp_path / "t", form))
    assert (sorted(vectors) if form == "hdf5" else vectors[::-1]) == ["b", "d"]  # f is empty; HDF5 sorts
    none = write_lines(tmp_path / "none.jsonl", {"clip_id": "x", "video": "x"})
    assert "stream windows has none of" in refused(*command, none, "--out", tmp_path / "n")


def test_a_manifest_selects_captions(tmp_path: Path) -> None:
    text(tmp_path / "s.zarr")
    lines = [{"clip_id": n, "video": n, "captions": ["ein Bär", words]} for n, words in (("a", "a dog"), ("b", "new"))]
    manifest = write_lines(tmp_path / "m.jsonl", *lines)
    out = tmp_path / "t.parquet"
    result = run("export", tmp_path / "s.zarr", "text", "--out", out, "--format", "parquet", "--manifest", manifest)
    assert "2 captions of text as parquet" in result
    assert pq.read_table(out)["caption"].to_pylist() == ["ein Bär"] * 2 + ["a dog"] * 2


@pytest.mark.parametrize("form", ["npy", "hdf5", *NEW])
@pytest.mark.parametrize("options", [(), ("--pool", "mean")])
def test_a_stream_without_clips_exports_no_rows(form: str, options: tuple[str, ...], tmp_path: Path) -> None:
    make(tmp_path / "s.zarr", "windows", {"shape": [8], "dtype": "float16"}, [])
    out = tmp_path / "t"
    assert "0 clips" in run("export", tmp_path / "s.zarr", "windows", "--out", out, "--format", form, *options)
    if form == "parquet":
        assert pq.read_table(out).num_rows == 0
        assert pq.read_schema(out / "part-00000.parquet").field("vector").type.list_size == 8
    elif form == "safetensors":
        tensors = load_file(out / "features-00000.safetensors")
        assert (tensors["values"].shape, tensors["offsets"].tolist()) == ((0, 8), [0])
    elif form == "webdataset":
        assert not list(webdataset.WebDataset([str(out / "000000.tar")], shardshuffle=False, empty_check=False))
    elif form == "npy":
        assert np.load(out / "values.npy").shape == (0, 8)


def test_rows_of_several_axes_are_nested(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    make(tmp_path / "s.zarr", "x", {"shape": [3, 4], "dtype": "float32", "times": False}, [clip("a", 1, values=values)])
    run("export", tmp_path / "s.zarr", "x", "--out", tmp_path / "t.parquet", "--format", "parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.names == ["clip_id", "video", "start", "end", "row", "vector"]
    assert bits(column(table, "vector", (3, 4))) == bits(values)
    assert table["vector"][0].as_py() == values[0].tolist()
    run("export", tmp_path / "s.zarr", "x", "--out", tmp_path / "n", "--pool", "mean")
    assert bits(np.load(tmp_path / "n" / "values.npy")) == bits(values.mean(axis=0)[None])


@pytest.mark.parametrize("form", ["npy", "hdf5", "hgr", *NEW])
def test_damage_leaves_no_export(form: str, tmp_path: Path) -> None:
    """Damaged data is always an error; damaged commit records are skipped with --skip-damaged."""
    ids = tuple(f"c{i}" for i in range(8))
    stream = windows(tmp_path / "s.zarr", ids=ids)
    manifest = write_lines(tmp_path / "m.jsonl", *({"clip_id": n, "video": n, "split": "train"} for n in ids))
    files = [file for file in (stream.path / "parts").glob("p1.*/values/c/**/*") if file.is_file()]
    complete = {file: file.read_bytes() for file in files}
    for file, data in complete.items():
        file.write_bytes(bytes(byte ^ 1 for byte in data))
    command = ("export", tmp_path / "s.zarr", "windows", "--out", tmp_path / "out" / "t", "--format", form)
    command = (*command, "--manifest", manifest) if form == "hgr" else command
    for options in ((), ("--skip-damaged",)):
        assert "amex extract command with --repair" in refused(*command, *options)
        assert not list((tmp_path / "out").iterdir())
    for file, data in complete.items():
        file.write_bytes(data)
    record = stream.path / "commits" / "p1.json"
    record.write_bytes(record.read_bytes()[:-20])
    assert "commit record" in refused(*command)
    assert not (tmp_path / "out" / "t").exists()
    result = run(*command, "--skip-damaged")
    assert "damaged part p1 is left out" in result
    left = 2 if form == "parquet" else 4  # two of the four are empty
    assert f"{left} clips of windows" in result


@pytest.mark.parametrize("form", ["npy", "hdf5", "hgr", *NEW])
def test_an_existing_output_is_not_overwritten(form: str, tmp_path: Path) -> None:
    windows(tmp_path / "s.zarr", ids=("a", "b"))
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "b", "video": "b", "split": "train"})
    command = ("export", tmp_path / "s.zarr", "windows", "--format", form, "--manifest", manifest, "--out")
    (tmp_path / "file.parquet").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file.parquet", "folder", "link"):
        assert "choose another --out" in refused(*command, tmp_path / name)
    assert "cannot write" in refused(*command, tmp_path / "file.parquet" / "t")
    assert (tmp_path / "file.parquet").read_text() == (tmp_path / "folder" / "mine").read_text() == "mine"


def test_nothing_is_exported_into_a_store(tmp_path: Path) -> None:
    """The spec.json of an export would look like an unreadable stream."""
    store = tmp_path / "s.zarr"
    windows(store, ids=("a",))
    (tmp_path / "link").symlink_to(store)
    for out in (store / "out", tmp_path / "link" / "out", store / "windows" / "deep" / "out"):
        assert "choose another --out" in refused("export", store, "windows", "--out", out)
    assert sorted(path.name for path in store.iterdir()) == ["windows", "zarr.json"]


def test_clip_ids_that_conflict_as_dataset_names_are_refused(tmp_path: Path) -> None:
    windows(tmp_path / "s.zarr", ids=("x", "a", "y", "a/b"))
    assert "'a/b' cannot be" in refused(
        "export", tmp_path / "s.zarr", "windows", "--out", tmp_path / "t.h5", "--format", "hdf5"
    )


@pytest.mark.parametrize("form", ["npy", "hdf5", *NEW])
def test_a_full_disk_leaves_no_export(form: str, tmp_path: Path) -> None:
    """A limit of the file size simulates the full disk."""
    windows(tmp_path / "s.zarr", "float32", tuple(f"c{i}" for i in range(80)), dim=512)
    command = ("features", "export", "s.zarr", "windows", "--out", "out/t", "--format", form)
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from amex.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "out/t: " in done.stderr
    assert "File too large" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_kill_leaves_no_export(tmp_path: Path) -> None:
    windows(tmp_path / "s.zarr", ids=tuple("abcdefgh"))
    program = """
import os, signal, sys
from pathlib import Path
from amex import features
from amex.features.exchange import excerpt

excerpt.BATCH_BYTES = 30
read, reads = features.Stream.read, []

def dies(stream, ids):
    if len(reads) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    reads.append(ids)
    return read(stream, ids)

stream = features.open_store("s.zarr")["windows"]
features.Stream.read = dies
for form in sys.argv[1:]:
    if not os.fork():
        getattr(features, f"export_{form}")(features.Excerpt(stream), Path(form))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL
"""
    forms = ("npy", "hdf5", *NEW)
    subprocess.run([sys.executable, "-c", program, *forms], cwd=tmp_path, check=True)
    assert not [form for form in forms if (tmp_path / form).exists()]
    for form in forms:
        run("export", tmp_path / "s.zarr", "windows", "--out", tmp_path / form, "--format", form)


@given(st.lists(st.text(min_size=1), min_size=2, unique=True))
@example(["a.b", "a_b", "A.b", "a/b"])
def test_webdataset_keys_are_valid_and_unique(ids: list[str]) -> None:
    keys = [key(clip_id) for clip_id in ids]
    assert len(set(keys)) == len(ids)
    for name in keys:
        assert base_plus_ext(f"{name}.values.npy") == (name, "values.npy")
        assert len(f"{name}.attribute_scores.npy") < 100


def test_real_features_are_exported_completely(real_data: Path, tmp_path: Path) -> None:
    folder, store = real_data / "features" / "vidvrd", tmp_path / "s.zarr"
    run("import", folder / "features.npz", "--captions", folder / "captions.jsonl", "--store", store)
    stream = open_store(store)["resnet152"]
    complete = stream.read(list(stream)).values
    run("export", store, "resnet152", "--out", tmp_path / "m", "--format", "parquet", "--pool", "mean")
    table = pq.read_table(tmp_path / "m")
    assert table["clip_id"].to_pylist() == list(stream)
    means = complete.reshape(len(stream), 20, 2048).astype(np.float32).mean(axis=1)
    assert np.allclose(column(table, "vector", (2048,)), means, atol=1e-5)
    run("export", store, "resnet152", "--out", tmp_path / "t", "--format", "safetensors", "--shard-mb", 10)
    tensors = [load_file(file)["values"] for file in sorted((tmp_path / "t").glob("*.safetensors"))]
    assert len(tensors) > 1
    assert bits(np.concatenate(tensors)) == bits(complete)
    run("export", store, "resnet152", "--out", tmp_path / "w", "--format", "webdataset", "--shard-mb", 10)
    shards = sorted(map(str, (tmp_path / "w").glob("*.tar")))
    samples = webdataset.WebDataset(shards, shardshuffle=False).decode()
    assert bits(np.concatenate([sample["values.npy"] for sample in samples])) == bits(complete)


@pytest.mark.parametrize(("form", "package"), [(form, form) for form in NEW[1:]] + [("parquet", "pyarrow")])
def test_a_package_that_is_missing_is_named_with_the_extra(
    form: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows(tmp_path / "s.zarr")
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    message = refused("export", tmp_path / "s.zarr", "windows", "--out", tmp_path / "t", "--format", form)
    assert f"--format {form} needs {package}" in message
    assert "pip install 'amex[export]'" in message
    assert not (tmp_path / "t").exists()


def test_clips_without_a_split_of_hgr_are_reported(tmp_path: Path) -> None:
    windows(tmp_path / "s.zarr", ids=("a", "b", "c"))
    command = ("export", tmp_path / "s.zarr", "windows", "--format", "hgr", "--manifest")
    lines = [{"clip_id": name, "video": name} for name in "abc"]
    none = write_lines(tmp_path / "none.jsonl", *lines)
    assert "no clip of" in refused(*command, none, "--out", tmp_path / "n")
    subset = write_lines(tmp_path / "some.jsonl", {**lines[0], "split": "test"}, *lines[1:])
    result = run(*command, subset, "--out", tmp_path / "t")
    assert "2 clips in none of the splits train, val and test left out" in result
    assert "1 clip of windows as hgr" in result


@pytest.mark.parametrize(
    ("name", "form"), [("t.h5", "hdf5"), ("t.parquet", "parquet"), ("t.safetensors", "safetensors")]
)
def test_the_extension_of_the_output_selects_the_format(name: str, form: str, tmp_path: Path) -> None:
    windows(tmp_path / "s.zarr", ids=("a", "b"))
    assert f" as {form}" in run("export", tmp_path / "s.zarr", "windows", "--out", tmp_path / name)
    assert (tmp_path / name).is_file()


def test_hgr_export_needs_a_manifest_and_refuses_pooling(tmp_path: Path) -> None:
    windows(tmp_path / "s.zarr")
    command = ("features", "export", tmp_path / "s.zarr", "windows", "--out", "t", "--format", "hgr")
    assert "needs --manifest" in amex(*command).output
    (tmp_path / "m.jsonl").write_text("")
    assert "leave out --pool" in amex(*command, "--manifest", tmp_path / "m.jsonl", "--pool", "mean").output
