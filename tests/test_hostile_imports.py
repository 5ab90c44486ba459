"""Malicious or broken files of features are refused with a one-line error."""

from __future__ import annotations

import base64
import errno
import json
import os
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import amex, write_lines
from hypothesis import given
from hypothesis import strategies as st

from amex.features import find_sources, open_store
from amex.features.exchange.source import ImportProblem
from amex.manifests import read_manifest

DEEP = "[" * 10_000 + "]" * 10_000
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def refused(tmp_path: Path, source: Path, *more: Any) -> str:
    """Run an import that must fail. Return its error line. Nothing may be in the store."""
    result = amex("features", "import", source, "--store", tmp_path / "s.zarr", *more)
    assert result.exit_code == 1, result.output
    (line,) = result.output.strip().splitlines()
    assert str(source) in line
    assert len(line) < 600
    assert not (tmp_path / "s.zarr").exists()
    return line


def imported(tmp_path: Path, source: Path, *more: Any) -> Any:
    result = amex("features", "import", source, "--store", tmp_path / "s.zarr", *more)
    assert result.exit_code == 0, result.output
    (stream,) = open_store(tmp_path / "s.zarr").values()
    return stream


# --- HDF5: only the file itself is read -----------------------------------------------------------------------------


def external(file: h5py.File, secret: Path) -> None:
    file.create_dataset("b", shape=(2, 3), dtype="f4", external=[(str(secret), 0, 24)])


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((2, 3), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "b", (2, 3))
    file.create_virtual_dataset("b", layout)


def external_link(file: h5py.File, secret: Path) -> None:
    file["b"] = h5py.ExternalLink(str(secret), "/b")


def external_group(file: h5py.File, secret: Path) -> None:
    file["deep/er"] = h5py.ExternalLink(str(secret), "/")


def soft_link(file: h5py.File, secret: Path) -> None:
    external_link(file.create_group("_amex"), secret)
    file["b"] = h5py.SoftLink("/_amex/b")


def beside(make: Callable[[h5py.File, Path], None]) -> Callable[[h5py.File, Path], None]:
    """Change the scores of a clip in an exported file."""

    def made(file: h5py.File, secret: Path) -> None:
        output = {
            "shape": [3],
            "dtype": "float32",
            "times": False,
            "arrays": {"scores": {"shape": [3], "dtype": "float32"}},
        }
        file.attrs["amex_spec"], file.attrs["amex_stream"] = json.dumps({"network": "x", "output": output}), "x"
        make(file.create_group("_amex/scores"), secret)
        file["_amex/scores"].move("b", "a")

    return made


@pytest.mark.parametrize(
    "make", [external, virtual, external_link, external_group, soft_link, beside(external), beside(external_link)]
)
def test_hdf5_references_to_other_files_are_not_followed(
    make: Callable[[h5py.File, Path], None], tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "secret", "w") as file:
        file["b"] = VALUES
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a"] = VALUES
        make(file, tmp_path / "secret")
    message = refused(tmp_path, tmp_path / "f.h5")
    assert "data in other files, which are not read" in message or "links are not followed" in message


def test_a_dataset_with_two_names_in_its_file_is_two_clips(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a"] = VALUES
        file["deep/b"] = file["a"]
    stream = imported(tmp_path, tmp_path / "f.h5")
    assert sorted(stream) == ["a", "deep/b"]
    assert np.array_equal(stream["deep/b"].values, VALUES)


def spec_of(**output: Any) -> str:
    return json.dumps({"network": "x", "output": {"shape": [3], "dtype": "float32", "times": False} | output})


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def make(file: h5py.File) -> None:
        file["a"] = VALUES
        file.attrs["amex_spec"], file.attrs["amex_stream"] = spec_of(), "x"
        (file["a"] if name == "clip_id" else file).attrs[name] = value

    return make


def dataset(**options: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.create_dataset("a", **options) and None


def cycle(file: h5py.File) -> None:
    file["deep/a"] = VALUES
    file["deep/er"] = file["/"]


def named(*names: str | bytes) -> Callable[[h5py.File], None]:
    def make(file: h5py.File) -> None:
        for name in names:
            file.create_dataset(name, data=VALUES)

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (dataset(data=h5py.Empty("f4")), "no shape and no values"),
        (dataset(data=np.float32(1)), "features must be floats"),
        (dataset(data=np.zeros((2, 3), int)), "features must be floats"),
        (dataset(data=np.zeros((2, 0), np.float32)), "a stream cannot store"),
        (dataset(data=np.zeros((2, 3), np.longdouble)), "a stream cannot store"),
        (dataset(shape=(3,), dtype=h5py.vlen_dtype("f4")), "features must be floats"),
        (dataset(shape=(3,), dtype=h5py.ref_dtype), "features must be floats"),
        (dataset(shape=(3,), dtype=h5py.regionref_dtype), "features must be floats"),
        (dataset(shape=(10**8, 1000), dtype="f4"), "unpacks to 400.0 GB from 0.000 GB of files"),
        (dataset(shape=(10**8, 1000), dtype="f4", chunks=(1000, 1000)), "use --max-gb 400"),
        (dataset(shape=(2, 9), dtype="f4", chunks=(10**8, 9), maxshape=(None, 9)), "use --max-gb 4"),
        (cycle, "nested more than"),
        (named("x/" * 200 + "a"), "nested more than"),
        (named("a", "../../b"), "'..' as a folder"),
        (named(b"a\xff"), "is not UTF-8"),
        (attribute("clip_id", "../b"), "'..' as a folder"),
        (attribute("clip_id", ""), "cannot be the id"),
        (attribute("clip_id", h5py.Empty("f4")), "must be a text"),
        (attribute("clip_id", np.ones(4)), "must be a text"),
        (attribute("amex_spec", "null"), "does not describe a stream"),
        (attribute("amex_spec", 5), "must be a text"),
        (attribute("amex_spec", DEEP[:3000]), "nested more than"),
        (attribute("amex_spec", spec_of(shape=[4])), "must be float32[entries, 4]"),
        (attribute("amex_spec", spec_of(dtype="float64")), "must be float64[entries, 3]"),
        (attribute("amex_spec", spec_of(shape=None)), "cannot be read as hdf5"),
        (attribute("amex_spec", spec_of(times=True)), "has no times"),
        (attribute("amex_spec", spec_of(arrays={"../../x": {"shape": [], "dtype": "float32"}})), "unknown array"),
        (attribute("amex_spec", spec_of(x=float("nan"))), "not JSON compliant"),
        (attribute("amex_stream", 5), "must be a text"),
    ],
)  # fmt: skip
def test_hostile_hdf5_is_refused_from_its_headers(
    make: Callable[[h5py.File], None], words: str, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        make(file)
    tracemalloc.start()
    assert words in refused(tmp_path, tmp_path / "f.h5")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


# --- NumPy -----------------------------------------------------------------------------------------------------------


def npy(shape: str, descr: str = "<f4", version: tuple[int, int] = (1, 0), data: bytes = bytes(72)) -> bytes:
    """Return a .npy file with any text as the shape in its header."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy("(-6, 3)"), "an impossible shape"),
        (npy("(6, -3)"), "an impossible shape"),
        (npy(f"(6, {'1' * 400})"), "an impossible shape"),
        (npy(f"(6, {'1' * 5000})"), "cannot be read as npy"),
        (npy("(6, 4611686018427387904, 8)"), "an impossible shape"),
        (npy(f"(6, {10**12})"), "ends early"),
        (npy("()"), "features must be floats"),
        (npy("(True, 3)"), "an impossible shape"),
        (npy("(6, 0)"), "a stream cannot store"),
        (npy("(" * 300 + "6" + ",)" * 300), "cannot be read as npy"),
        (npy("(6, 3)", "|V0"), "an impossible shape"),
        (npy("(6, 3)", "|O"), "Python objects"),
        (npy("(6, 3)", "<c8", data=bytes(144)), "features must be floats"),
        (npy("(6, 3)", "<f16", data=bytes(288)), "a stream cannot store"),
        (npy("(6, 3)", version=(9, 9)), "version (9, 9)"),
        (npy("(6, 3)", data=bytes(71)), "ends early: float32[6, 3] needs 72 bytes, but has 71"),
        (b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000, "cannot be read as npy"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "cannot be read as npy"),
        (b"", "cannot be read as npy"),
    ],
)  # fmt: skip
def test_hostile_npy_is_refused_from_its_header(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "f.npy").write_bytes(content)
    described = write_lines(tmp_path / "c.jsonl", *({"video": f"v{i}"} for i in range(6)))
    assert words in refused(tmp_path, tmp_path / "f.npy", "--captions", described)


RAGGED: dict[str, Any] = {
    "clip_ids": np.array(["a", "b", "c"]),
    "offsets": np.array([0, 1, 4, 6]),
    "values": np.ones((6, 3), np.float32),
    "times": np.stack([np.arange(6.0), np.arange(6.0) + 1], axis=1),
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"offsets": np.array(5)}, "offsets is int64[], not a list"),
        ({"offsets": np.array([0.0, np.nan, 4, 6])}, "not a list"),
        ({"offsets": np.array([], int)}, "never decrease"),
        ({"offsets": np.array([0, 5, 4, 6])}, "never decrease"),
        ({"offsets": np.array([0, 2**63 - 1, -(2**63), 6])}, "never decrease"),
        ({"offsets": np.array([0, 1, 4, 2**64 - 1], np.uint64)}, "the offsets require 18446744073709551615"),
        ({"clip_ids": np.array("a")}, "not a list"),
        ({"clip_ids": np.array([1.0, 2, 3])}, "not a list"),
        ({"clip_ids": np.array([None, "b", "c"], object)}, "Python objects"),
        ({"clip_ids": np.array([b"a", b"\xff", b"c"])}, "cannot be read as npy"),
        ({"clip_ids": np.array(["a", "", "c"])}, "cannot be the id"),
        ({"clip_ids": np.array(["a", "\ud800", "c"])}, "cannot be the id"),
        ({"clip_ids": np.array(["a", "b"])}, "3 rows for 2 clips"),
        ({"clip_ids": np.array(["a", "b", "a"])}, "duplicates: 'a'"),
        ({"values": np.array(1.0)}, "a stream cannot store"),
        ({"values": np.ones((6, 3), int)}, "a stream cannot store"),
        ({"values": np.full((6, 3), "a")}, "a stream cannot store"),
        ({"values": np.ones((6, 0), np.float32)}, "a stream cannot store"),
        ({"times": np.ones(6)}, "must be float64[entries, 2]"),
        ({"times": np.full((6, 2), "a")}, "must be float64[entries, 2]"),
        ({"scores": np.full(6, "a")}, "a stream cannot store"),
        ({"zork": np.ones(6)}, "unknown array 'zork'"),
    ],
)
def test_inconsistent_arrays_of_an_npz_are_refused(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", **{**RAGGED, **changed})
    assert words in refused(tmp_path, tmp_path / "f.npz")


def test_texts_and_integers_are_valid_ids(tmp_path: Path) -> None:
    for number, ids in enumerate(([1, 2, 3], [b"1", b"2", b"3"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        np.savez(folder / "f.npz", **{**RAGGED, "clip_ids": np.array(ids)})
        assert sorted(imported(folder, folder / "f.npz")) == ["1", "2", "3"]


def bomb(path: Path) -> None:
    """1.2 GB of zeros in 1.2 MB."""
    packer = zlib.compressobj(wbits=-15)
    megabyte = packer.compress(bytes(10**6)) + packer.flush(zlib.Z_FULL_FLUSH)
    header = npy("(1,)", "<U300000000", data=b"")
    start = zlib.compressobj(wbits=-15)
    packed = start.compress(header) + start.flush(zlib.Z_FULL_FLUSH) + megabyte * 1200 + packer.flush()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy("(1, 3)"))
        archive.writestr("clip_ids.npy", packed)
        info = archive.getinfo("clip_ids.npy")
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, len(header) + 1200 * 10**6


def test_a_zip_bomb_is_refused_before_unpacking_unless_allowed(tmp_path: Path) -> None:
    bomb(tmp_path / "f.npz")
    tracemalloc.start()
    message = refused(tmp_path, tmp_path / "f.npz")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert (
        "unpacks to 1.2 GB from 0.001 GB of files; the limit is 1.0 GB: if the size is right, use --max-gb 2" in message
    )
    np.savez_compressed(tmp_path / "small.npz", x=np.zeros((1, 30, 100), np.float32))
    described = write_lines(tmp_path / "c.jsonl", {"video": "a"})
    more = ("--captions", described, "--max-gb")
    assert "--max-gb 1" in refused(tmp_path, tmp_path / "small.npz", *more, "0.00001")
    assert len(imported(tmp_path, tmp_path / "small.npz", *more, "0.0001")["a"]) == 30


def member(name: str, compression: int = zipfile.ZIP_DEFLATED) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr(name, npy("(6, 3)"))

    return make


def patched(offset: int, value: bytes, at: bytes) -> Callable[[Path], None]:
    """Change the bytes after the last signature ``at`` of an npz file."""

    def make(path: Path) -> None:
        np.savez(path, x=np.arange(18, dtype=np.float32).reshape(6, 3))
        data = bytearray(path.read_bytes())
        place = data.rfind(at) + offset
        data[place : place + len(value)] = value
        path.write_bytes(data)

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (member("x.txt"), "no array of features"),
        (member("x.npy", zipfile.ZIP_LZMA), "save it with np.savez"),
        (member("x.npy", zipfile.ZIP_BZIP2), "save it with np.savez"),
        (patched(8, b"\x01", b"PK\x01\x02"), "encrypted"),
        (patched(10, b"\x61", b"PK\x01\x02"), "save it with np.savez"),
        (patched(24, b"\x64", b"PK\x01\x02"), "CRC-32"),  # the header has a smaller size
        (patched(50, b"\xff", b"'shape'"), "CRC-32"),
        (lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)), "no array of features"),
        (lambda path: path.write_bytes(b"not a zip"), "not a zip file"),
    ],
)
def test_hostile_zip_files_are_refused(make: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    make(tmp_path / "f.npz")
    described = write_lines(tmp_path / "c.jsonl", *({"video": f"v{i}"} for i in range(6)))
    assert words in refused(tmp_path, tmp_path / "f.npz", "--captions", described)


@pytest.mark.parametrize("name", ["clip_ids.json", "spec.json"])
@pytest.mark.parametrize(
    "content", [DEEP, "1" * 5000, "null", "5", '"x"', "{}", '{"stream":5,"spec":{"output":{}}}', "\0", None]
)
def test_hostile_files_beside_exported_arrays_are_refused(name: str, content: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    for array in ("values", "times", "offsets"):
        np.save(folder / f"{array}.npy", RAGGED[array])
    (folder / "clip_ids.json").write_text('["a", "b", "c"]')
    if content is None:
        (folder / "offsets.npy").unlink()
    else:
        (folder / name).write_text(content)
    refused(tmp_path, folder)


# --- bottom-up attention ---------------------------------------------------------------------------------------------


def b64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def image(
    name: str = "1", width: Any = 640, boxes: Any = 2, where: str | None = None, values: str | None = None
) -> str:
    where = b64(np.ones((2, 4), np.float32)) if where is None else where
    values = b64(np.ones((2, 8), np.float32)) if values is None else values
    return "\t".join(map(str, (name, width, 480, boxes, where, values)))


def labelled(kind: type) -> str:
    numbers, scores = b64(np.full(2, 2**33 if kind is np.int64 else 1, kind)), b64(np.ones(2, np.float32))
    features = (b64(np.ones((2, 4), np.float32)), b64(np.ones((2, 8), np.float32)))
    return "\t".join(("2", "480", "640", numbers, scores, numbers, scores, "2", *features))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (image("2", boxes=5), "f.tsv:2 cannot be read: features has 16 numbers for 5 boxes"),
        (image("2", boxes="1" * 400), "num_boxes is '11111111111111111111', but must be a count"),
        (image("2", boxes="1" * 5000), "must be a count"),
        (image("2", boxes=-2), "must be a count"),
        (image("2", boxes="2.0"), "must be a count"),
        (image("2", width=2**31), "must be a count"),
        (image("2", values="!!!"), "f.tsv:2 cannot be read: Only base64"),
        (image("2", values="AAA"), "f.tsv:2 cannot be read: Incorrect padding"),
        (image("2", values=b64(np.ones(15, np.float32))), "15 numbers for 2 boxes"),
        (image("2", values=b64(np.ones(3, np.int8))), "multiple of element size"),
        (image("2", where=""), "boxes has 0 numbers for 2 boxes"),
        (image("2", values=""), "features have the lengths [0, 8]"),
        (image(), "duplicates: '1'"),
        (image(""), "cannot be the id"),
        (labelled(np.int32), "10 columns after lines of 6"),
        ("\0" * 3000, "1 column"),
        ("\ud800", "f.tsv:2 cannot be read"),
    ],
)
def test_hostile_tsv_names_the_line(second: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "f.tsv").write_bytes(f"{image()}\n{second}\n".encode("utf-8", "surrogatepass"))
    assert words in refused(tmp_path, tmp_path / "f.tsv")


@pytest.mark.parametrize(
    ("kind", "words"), [(np.int32, "objects_id has 1 numbers"), (np.int64, "do not fit into 32 bits")]
)
def test_labels_must_fit_into_32_bits(kind: type, words: str, tmp_path: Path) -> None:
    (tmp_path / "f.tsv").write_text(labelled(kind))
    assert words in refused(tmp_path, tmp_path / "f.tsv")


def test_padding_to_many_boxes_is_limited(tmp_path: Path) -> None:
    many = image("0", boxes=100_000, where=b64(np.ones((100_000, 4), "f4")), values=b64(np.ones(100_000, "f4")))
    one = (image(str(i), boxes=1, where=b64(np.ones(4, "f4")), values=b64(np.ones(1, "f4"))) for i in range(1, 3000))
    (tmp_path / "f.tsv").write_text("\n".join((many, *one)))
    assert "use --max-gb 7" in refused(tmp_path, tmp_path / "f.tsv")


def test_an_image_without_objects_is_a_row_without_objects(tmp_path: Path) -> None:
    (tmp_path / "f.tsv").write_text(
        f"\ufeff{image()}\r\n{image('2', boxes=0, where='', values='')}\r\n", encoding="utf-8"
    )
    stream = imported(tmp_path, tmp_path / "f.tsv")
    assert [stream[name]["counts"].tolist() for name in "12"] == [[2], [0]]
    assert not stream["2"].values.any()


# --- HGR -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("ref_captions.json", DEEP), "nested more than"),
        (("ref_captions.json", "[]"), "not an object"),
        (("ref_captions.json", '{"c":"one text"}'), "the captions of 'c'"),
        (("ref_captions.json", '{"c":[5]}'), "the captions of 'c'"),
        (("trn_names.npy", np.array("a/1")), "not a list"),
        (("trn_names.npy", np.array(["a/1", None], object)), "Python objects"),
        (("trn_names.npy", np.array(["a/1", "a_1"])), "'a/1' and 'a_1' would share one dataset"),
        (("trn_names.npy", np.array(["c"])), "'c' is already in the split train"),
        (("val_ft.hdf5", "c"), "duplicates: 'c'"),
        (("val_ft.hdf5", b"no hdf5"), "val_ft.hdf5 cannot be read as hdf5"),
    ],
)  # fmt: skip
def test_hostile_folders_of_hgr_are_refused(change: tuple[str, Any], words: str, tmp_path: Path) -> None:
    root = tmp_path / "hgr"
    features = root / "ordered_feature" / "SA" / "x"
    for folder in (features, root / "public_split", root / "annotation" / "RET"):
        folder.mkdir(parents=True)
    contents: dict[str, Any] = {"trn_names.npy": np.array(["a/1"]), "tst_names.npy": np.array(["c"])}
    contents |= {"trn_ft.hdf5": "a_1", "tst_ft.hdf5": "c", "ref_captions.json": "{}"} | dict([change])
    for name, content in contents.items():
        if name.endswith(".npy"):
            np.save(root / "public_split" / name, content, allow_pickle=True)
        elif name.endswith(".json"):
            (root / "annotation" / "RET" / name).write_text(content)
        elif isinstance(content, bytes):
            (features / name).write_bytes(content)
        else:
            with h5py.File(features / name, "w") as file:
                file[content] = VALUES
    assert words in refused(tmp_path, root)


# --- Values ---------------------------------------------------------------------------------------------------------


def test_duplicate_ids_are_named_whatever_the_format(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name in "abcd":
            file[name] = VALUES
            file[name].attrs["clip_id"] = "same" if name < "d" else "other"
    assert "clip ids must be unique; duplicates: 'same'" in refused(tmp_path, tmp_path / "f.h5")
    np.save(tmp_path / "f.npy", np.zeros((20, 3), np.float32))
    described = write_lines(tmp_path / "c.jsonl", *({"video": f"v{i // 2}"} for i in range(20)))
    result = amex("features", "import", tmp_path / "f.npy", "--captions", described, "--store", tmp_path / "s.zarr")
    assert result.exit_code == 1
    assert "c.jsonl:2: duplicate clip 'v0', first at" in result.output
    with pytest.raises(ImportProblem, match="'v0', 'v1', 'v2', 'v3', 'v4' and 5 more"):
        find_sources(tmp_path / "f.npy", "npy", [f"v{i // 2}" for i in range(20)])


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ((0, np.nan), "nan in row 1 of times"),
        ((np.inf, np.inf), "inf in row 1 of times"),
        ((2, 1), "ends before it starts"),
    ],
)
def test_invalid_times_are_refused_even_with_allow_nan(times: tuple[float, float], words: str, tmp_path: Path) -> None:
    changed = RAGGED["times"].copy()
    changed[2] = times
    np.savez(tmp_path / "f.npz", **{**RAGGED, "times": changed})
    for more in ((), ("--allow-nan",)):
        result = amex("features", "import", tmp_path / "f.npz", "--store", tmp_path / "s.zarr", *more)
        assert result.exit_code == 1
        assert "clip 'b'" in result.output
        assert words in result.output
        assert list(open_store(tmp_path / "s.zarr")) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("array", ["values", "scores"])
def test_nan_features_are_refused_unless_allowed(bad: float, array: str, tmp_path: Path) -> None:
    arrays = {**RAGGED, "scores": np.ones((6, 3), np.float32)}
    arrays[array] = arrays[array].copy()
    arrays[array][4, 1] = bad
    np.savez(tmp_path / "f.npz", **arrays)
    result = amex("features", "import", tmp_path / "f.npz", "--store", tmp_path / "s.zarr")
    assert result.exit_code == 1
    assert f"clip 'c' has {bad} in row 0 of {array}; --allow-nan imports it; nothing is imported" in result.output
    stream = imported(tmp_path, tmp_path / "f.npz", "--allow-nan")
    assert np.array_equal(stream.read(["a", "b", "c"]).arrays[array], arrays[array], equal_nan=True)


def test_an_interrupted_import_reports_its_progress_and_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).standard_normal((30, 4, 16)).astype(np.float32)
    values[20, 2, 3] = np.nan
    np.save(tmp_path / "f.npy", values)
    described = write_lines(tmp_path / "c.jsonl", *({"video": f"v{i}"} for i in range(30)))
    monkeypatch.setattr("amex.features.exchange.importing.PART_BYTES", 2000)
    command = ("features", "import", tmp_path / "f.npy", "--captions", described, "--store", tmp_path / "s.zarr")
    result = amex(*command)
    assert result.exit_code == 1
    assert (
        "clip 'v20' has nan in row 2 of values; --allow-nan imports it; 16 clips before it are imported"
        in result.output
    )
    reread = open_store(tmp_path / "s.zarr")["f"]
    assert list(reread) == [f"v{i}" for i in range(16)]
    assert np.array_equal(reread.read(list(reread)).values, values[:16].reshape(-1, 16))
    assert "14 clips imported, 16 existed already" in amex(*command, "--allow-nan").output
    opened = open_store(tmp_path / "s.zarr")["f"]
    assert np.array_equal(opened.read([f"v{i}" for i in range(30)]).values, values.reshape(-1, 16), equal_nan=True)


# --- Selected rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["npy", "npz", "compressed", "ragged"])
@given(rows=st.lists(st.integers(0, 9), unique=True, min_size=1, max_size=10))
def test_any_rows_can_be_imported_alone_in_any_order(
    form: str, rows: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    counts = [1] * 10 if form != "ragged" else [3, 0, 1, 2, 0, 5, 1, 1, 0, 2]
    values = np.arange(sum(counts) * 4, dtype=np.float32).reshape(-1, 4)
    offsets = np.cumsum([0, *counts])
    path = folder / ("f.npy" if form == "npy" else "f.npz")
    if form == "npy":
        np.save(path, values)
    else:
        complete = {"values": values, "offsets": offsets} if form == "ragged" else {"x": values}
        (np.savez_compressed if form == "compressed" else np.savez)(path, **complete)
    (source,) = find_sources(path, "auto", {row: f"v{row}" for row in rows})
    read = {clip.clip_id: clip.arrays["values"] for clip in source.clips()}
    assert list(read) == list(source.ids) == [f"v{row}" for row in sorted(rows)]
    for row in rows:
        assert np.array_equal(read[f"v{row}"], values[offsets[row] : offsets[row + 1]])


def test_the_field_row_selects_rows(tmp_path: Path) -> None:
    values = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.save(tmp_path / "f.npy", values)
    described = write_lines(tmp_path / "c.jsonl", {"video": "b", "row": 7}, {"video": "a", "row": 2})
    stream = imported(tmp_path, tmp_path / "f.npy", "--captions", described, "--manifest", tmp_path / "m.jsonl")
    assert list(stream) == ["a", "b"]
    assert np.array_equal(stream.read(["a", "b"]).values, values[[2, 7]])
    assert [clip.clip_id for clip in read_manifest(tmp_path / "m.jsonl")] == ["a", "b"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"video": "a", "row": 3}], "has 3 rows, 0 to 2; --captions has clip 'a' in row 3"),
        (
            [{"video": "a"}, {"video": "b"}],
            "3 rows for 2 clips: to import some of them, --captions needs the field row",
        ),
        ([{"video": name} for name in "abcd"], "3 rows for 4 clips"),
    ],
)
def test_missing_or_unspecified_rows_are_refused(lines: list[Any], words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.zeros((3, 2), np.float32))
    assert words in refused(tmp_path, tmp_path / "f.npy", "--captions", write_lines(tmp_path / "c.jsonl", *lines))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".npy", "pipe.npy"])
def test_pipes_and_devices_are_refused_immediately(name: str, tmp_path: Path) -> None:
    if name == "pipe.npy":
        os.mkfifo(tmp_path / name)
    refused(tmp_path, tmp_path / name)


def test_a_store_that_cannot_be_created_is_a_one_line_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", **RAGGED)
    for store in (tmp_path / ("s" * 300), tmp_path / "f.npz" / "s.zarr"):
        result = amex("features", "import", tmp_path / "f.npz", "--store", store)
        assert result.exit_code == 1
        assert f"Error: {store}" in result.output


def test_a_full_disk_ends_an_import_with_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["clip"] = np.ones((3, 4), "float32")

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    result = amex("features", "import", tmp_path / "a.h5", "--store", tmp_path / "s.zarr")
    assert result.exit_code == 1
    assert "No space left on device" in result.output
    assert isinstance(result.exception, SystemExit)
