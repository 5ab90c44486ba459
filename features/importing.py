"""Features from elsewhere into a store: NumPy files, HDF5, the layout of HGR, bottom-up-attention TSV.

Files are read piece by piece, and nothing in them is executed. Values keep their dtype, so that nothing is lost.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import socket
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .reader import Stream
from .schema import StoreError, clip_arrays, row_arrays
from .writer import ClipRows, create_store, declare_stream, write_part

# What a part of imported features holds, roughly: few files, little memory.
PART_BYTES = 64 << 20
# HGR's names of the splits, and ours.
HGR_SPLITS = {"trn": "train", "val": "val", "tst": "test"}
# Arrays of a stream that have a name of their own, in files that amex exports and in such as are made by hand.
ROW_ARRAYS = ("times", "boxes", "scores", "labels", "counts", "frame_size", "tokens", "attributes", "attribute_scores")


class ImportProblem(StoreError):
    """A file of features cannot be read, or does not hold what its format says."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Features of one stream in a file or folder, ready to be read once, clip by clip.

    Attributes:
        name: what the stream is called unless told otherwise.
        spec: as ``declare_stream`` takes it.
        clips: yields them in order.
        count: how many.
        splits, captions: by clip id, where the format knows them.
    """

    name: str
    spec: dict[str, Any]
    clips: Callable[[], Iterator[ClipRows]]
    count: int
    splits: Mapping[str, str]
    captions: Mapping[str, Sequence[str]]


def import_stream(
    source: Source, store: Path, name: str, *, origin: Path, progress: Callable[[int], None] = lambda done: None
) -> tuple[int, int]:
    """Writes what the store does not hold yet; returns how many clips were written and how many were there.

    Raises:
        SpecMismatch: if the stream holds other features.
        ImportProblem: if the file breaks off.
    """
    store = create_store(store)
    provenance = {"weights": "imported", "imported_from": str(origin.resolve()), "host": socket.gethostname()}
    declare_stream(store, name, source.spec, provenance)
    there = Stream(store, name)
    written = known = size = 0
    held: list[ClipRows] = []

    def flush() -> None:
        nonlocal size
        digest = hashlib.sha256("\0".join(clip.clip_id for clip in held).encode()).hexdigest()[:12]
        part = f"{written:06d}-{digest}"
        run = {"host": socket.gethostname(), "imported_from": origin.name}
        write_part(store, name, part, spec=source.spec, clips=held, failures=[], run=run)
        held.clear()
        size = 0

    for clip in source.clips():
        progress(1)
        if clip.clip_id in there:
            known += 1
            continue
        held.append(clip)
        size += sum(array.nbytes for array in clip.arrays.values())
        if size >= PART_BYTES:
            flush()
        written += 1
    if held:
        flush()
    return written, known


def find_sources(path: Path, form: str, ids: Sequence[str] | None, arrays: Sequence[str] = ()) -> list[Source]:
    """The streams in a file or folder.

    Args:
        form: ``auto``, or one of FORMATS.
        ids: clip ids in the order of the rows, for NumPy files that do not name them.
        arrays: of an npz file, those to take; all by default.

    Raises:
        ImportProblem: if there are none, or they cannot be read.
    """
    if not path.exists():
        raise ImportProblem(f"{path} does not exist")
    form = guess(path) if form == "auto" else form
    try:
        return FORMATS[form](path, ids, arrays)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, StoreError):
            raise
        raise ImportProblem(f"{path} cannot be read as {form}: {error}") from error


def guess(path: Path) -> str:
    """The format of a file or folder, by its name and layout."""
    if path.is_dir():
        return "hgr" if (path / "ordered_feature").is_dir() else "npy"
    forms = {".npy": "npy", ".npz": "npy", ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5", ".tsv": "butd"}
    if path.suffix.lower() not in forms:
        raise ImportProblem(f"{path}: its name does not tell the format; say --format {'|'.join(FORMATS)}")
    return forms[path.suffix.lower()]


# --- NumPy -----------------------------------------------------------------------------------------------------------


@contextmanager
def _open_array(path: Path, member: str | None) -> Iterator[tuple[BinaryIO, tuple[int, ...], np.dtype]]:
    """An array of a .npy or .npz file, ready to be read from its first row on, with its shape and dtype."""
    with ExitStack() as stack:
        if member is None:
            handle: Any = stack.enter_context(path.open("rb"))
        else:
            handle = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(f"{member}.npy"))
        version = np.lib.format.read_magic(handle)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(handle)
        if dtype.hasobject:
            raise ImportProblem(f"{path}: {member or 'the array'} holds Python objects, which are not read")
        if fortran and len(shape) > 1:
            raise ImportProblem(
                f"{path}: {member or 'the array'} is in Fortran order; save it with np.ascontiguousarray"
            )
        yield handle, shape, dtype


def _shape(path: Path, member: str | None) -> tuple[tuple[int, ...], np.dtype]:
    with _open_array(path, member) as (_, shape, dtype):
        return shape, dtype


def _whole(path: Path, member: str | None) -> np.ndarray:
    with np.load(path, allow_pickle=False) as loaded:
        return loaded[member] if member is not None else loaded


def _counted(path: Path, member: str | None, counts: Iterable[int]) -> Iterator[np.ndarray]:
    """An array piece by piece: as many rows each as ``counts`` says."""
    with _open_array(path, member) as (handle, shape, dtype):
        width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        for count in counts:
            data = handle.read(count * width)
            if len(data) != count * width:
                raise ImportProblem(f"{path}: {member or 'the array'} breaks off before its last row")
            yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def from_numpy(path: Path, ids: Sequence[str] | None, arrays: Sequence[str]) -> list[Source]:
    """Arrays whose first axis is the clip, (clips, D) or (clips, rows, D), or a folder that ``export`` made.

    In an npz file each array is a stream; with an array ``offsets`` in it, ``values`` and what goes with it are one.
    """
    if path.is_dir():
        return [_exported(path)]
    if path.suffix.lower() == ".npy":
        members: dict[str, str | None] = {path.stem: None}
    else:
        with zipfile.ZipFile(path) as archive:
            members = {Path(name).stem: Path(name).stem for name in archive.namelist()}
        if "clip_ids" in members:
            members.pop("clip_ids")
            ids = [str(clip_id) for clip_id in _whole(path, "clip_ids")]
        if {"values", "offsets"} <= members.keys():
            files = {name: (path, member) for name, member in members.items() if name != "offsets"}
            offsets = _whole(path, "offsets").astype(np.int64)
            return [_ragged(path.stem, files, offsets, _needed(path, ids), _source_spec(path, "values"))]
        if unknown := sorted(set(arrays) - members.keys()):
            raise ImportProblem(f"{path} has no array {unknown[0]!r}; there is {', '.join(members)}")
        members = {name: member for name, member in members.items() if not arrays or name in arrays}
    ids = _needed(path, ids)
    return [_stacked(path, name, member, ids) for name, member in members.items()]


def _needed(path: Path, ids: Sequence[str] | None) -> Sequence[str]:
    if ids is None:
        raise ImportProblem(f"{path} does not say which clip each row is of: name them with --captions FILE")
    return ids


def _stacked(path: Path, name: str, member: str | None, ids: Sequence[str]) -> Source:
    shape, dtype = _shape(path, member)
    if len(shape) not in (2, 3) or not np.issubdtype(dtype, np.floating):
        raise ImportProblem(
            f"{path}: {name} is {dtype}{list(shape)}; features are floats, (clips, D) or (clips, rows, D)"
        )
    if shape[0] != len(ids):
        raise ImportProblem(f"{path}: {name} has {shape[0]} rows for {len(ids)} clips")
    spec = _spec(_source_spec(path, name), {"values": (shape[-1:], dtype)})

    def clips() -> Iterator[ClipRows]:
        with _open_array(path, member) as (handle, _, _):
            size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            for clip_id in ids:
                data = handle.read(size)
                if len(data) != size:
                    raise ImportProblem(f"{path}: {name} breaks off at clip {clip_id!r}")
                yield ClipRows(clip_id=clip_id, arrays={"values": np.frombuffer(data, dtype).reshape(-1, shape[-1])})

    return Source(name=name, spec=spec, clips=clips, count=len(ids), splits={}, captions={})


def _exported(folder: Path) -> Source:
    """A folder of .npy files as ``export_npy`` writes it."""
    if not (folder / "values.npy").is_file():
        raise ImportProblem(
            f"{folder} is neither an HGR folder (ordered_feature/) nor one of amex features export (values.npy)"
        )
    ids = json.loads((folder / "clip_ids.json").read_text())
    record = json.loads((folder / "spec.json").read_text()) if (folder / "spec.json").is_file() else None
    files = {path.stem: (path, None) for path in sorted(folder.glob("*.npy")) if path.stem != "offsets"}
    offsets = np.load(folder / "offsets.npy", allow_pickle=False)
    made = record["spec"] if record else _source_spec(folder / "values.npy", "values")
    return _ragged(record["stream"] if record else folder.name, files, offsets, ids, made)


def _ragged(
    name: str,
    files: Mapping[str, tuple[Path, str | None]],
    offsets: np.ndarray,
    ids: Sequence[str],
    spec: dict[str, Any],
) -> Source:
    """Arrays of rows end to end, rows ``offsets[i]:offsets[i+1]`` those of clip i."""
    path = next(iter(files.values()))[0]
    counts = np.diff(offsets)
    if len(counts) != len(ids) or (counts < 0).any() or offsets[0] != 0:
        raise ImportProblem(f"{path}: {len(offsets)} offsets do not divide rows among {len(ids)} clips")
    shapes = {array: _shape(*where) for array, where in files.items()}
    if "output" not in spec:
        extra = sorted(shapes.keys() - {"values", *ROW_ARRAYS})
        if extra:
            raise ImportProblem(f"{path}: no array of rows is called {extra[0]!r}; known are {', '.join(ROW_ARRAYS)}")
        spec = _spec(spec, {array: (shape[1:], dtype) for array, (shape, dtype) in shapes.items()})
    single = clip_arrays(spec)
    for array in (*row_arrays(spec), *single):
        if array not in shapes:
            raise ImportProblem(f"{path}: the array {array!r} is missing beside it")
        entries = len(ids) if array in single else int(offsets[-1])
        if shapes[array][0][0] != entries:
            raise ImportProblem(f"{path}: {array} has {shapes[array][0][0]} entries, {entries} are expected")

    def clips() -> Iterator[ClipRows]:
        ones = itertools.repeat(1, len(ids))
        open_ = {array: _counted(*files[array], counts=ones if array in single else counts) for array in files}
        for clip_id, *pieces in zip(ids, *open_.values(), strict=False):
            yield ClipRows(clip_id=clip_id, arrays=dict(zip(open_, pieces, strict=True)))

    return Source(name=name, spec=spec, clips=clips, count=len(ids), splits={}, captions={})


# --- HDF5 ------------------------------------------------------------------------------------------------------------


def from_hdf5(path: Path, ids: Sequence[str] | None, arrays: Sequence[str]) -> list[Source]:
    """One dataset a clip, (rows, D) or (D,), named by the clip; what ``export_hdf5`` puts beside them comes along."""
    return [_hdf5(path.stem, [path], {}, {}, lambda name: name)]


def _hdf5(
    name: str,
    paths: Sequence[Path],
    splits: Mapping[str, str],
    captions: Mapping[str, Sequence[str]],
    clip_of: Callable[[str], str],
) -> Source:
    import h5py

    found: list[tuple[Path, str, str]] = []  # file, dataset, clip
    spec: dict[str, Any] | None = None
    first: tuple[tuple[int, ...], np.dtype] | None = None
    for path in paths:
        with h5py.File(path, "r") as file:
            if "amex_spec" in file.attrs:
                spec = json.loads(file.attrs["amex_spec"])
                name = str(file.attrs["amex_stream"])

            def visit(key: str, item: Any, path: Path = path) -> None:
                nonlocal first
                if not isinstance(item, h5py.Dataset) or key.startswith(f"{BESIDE}/"):
                    return
                if not np.issubdtype(item.dtype, np.floating) or item.ndim not in (1, 2, 3):
                    raise ImportProblem(
                        f"{path}: {key} is {item.dtype}{list(item.shape)}; features are floats, (rows, D)"
                    )
                form = (item.shape[1:] if item.ndim > 1 else item.shape, item.dtype)
                first = first or form
                if form != first:
                    raise ImportProblem(
                        f"{path}: {key} has rows of {form[1]}{list(form[0])}, others of {first[1]}{list(first[0])}"
                    )
                found.append((path, key, clip_of(str(item.attrs.get("clip_id", key)))))

            file.visititems(visit)
    if first is None:
        raise ImportProblem(f"{paths[0]} holds no features: one dataset a clip is expected")
    made = spec or _spec(_source_spec(paths, name), {"values": first})

    def clips() -> Iterator[ClipRows]:
        for path, entries in itertools.groupby(found, key=lambda entry: entry[0]):
            with h5py.File(path, "r") as file:
                for _, key, clip_id in entries:
                    values = np.atleast_2d(file[key][()])
                    beside = {n: file[f"{BESIDE}/{n}/{key}"][()] for n in row_arrays(made) if n != "values"}
                    yield ClipRows(clip_id=clip_id, arrays={"values": values, **beside})

    return Source(name=name, spec=made, clips=clips, count=len(found), splits=splits, captions=captions)


# The group, in an exported HDF5 file, of what is beside the features: times, boxes, ...
BESIDE = "_amex"


# --- HGR -------------------------------------------------------------------------------------------------------------


def from_hgr(path: Path, ids: Sequence[str] | None, arrays: Sequence[str]) -> list[Source]:
    """HGR's folders: ordered_feature/SA/<feature>/*_ft.hdf5, public_split/*_names.npy, ref_captions.json."""
    splits: dict[str, str] = {}
    for short, split in HGR_SPLITS.items():
        names = path / "public_split" / f"{short}_names.npy"
        if names.is_file():
            splits |= {str(name): split for name in np.load(names, allow_pickle=False)}
    references = path / "annotation" / "RET" / "ref_captions.json"
    captions = json.loads(references.read_text()) if references.is_file() else {}
    folders = sorted(folder for folder in (path / "ordered_feature" / "SA").glob("*") if folder.is_dir())
    folders = [folder for folder in folders if not arrays or folder.name in arrays]
    if not folders:
        raise ImportProblem(f"{path}: no features below ordered_feature/SA")
    # Datasets have '_' where the names of videos have '/'.
    plain = {name.replace("/", "_"): name for name in splits}
    found = []
    for folder in folders:
        files = [folder / f"{short}_ft.hdf5" for short in HGR_SPLITS if (folder / f"{short}_ft.hdf5").is_file()]
        if not files:
            raise ImportProblem(f"{folder}: none of trn_ft.hdf5, val_ft.hdf5, tst_ft.hdf5 is there")
        source = _hdf5(folder.name, files, splits, captions, lambda key: plain.get(key, key))
        found.append(source)
    return found


# --- bottom-up attention ---------------------------------------------------------------------------------------------

# The original columns (Anderson et al., CVPR 2018), and those with classes and attributes that LXMERT's release has.
BUTD = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT = (
    "image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf",
    "num_boxes", "boxes", "features",
)  # fmt: skip


def from_butd(path: Path, ids: Sequence[str] | None, arrays: Sequence[str]) -> list[Source]:
    """Bottom-up-attention TSV, six columns or ten: an image is a clip of one row of objects."""
    count, most, widths = 0, 0, set()
    columns: tuple[str, ...] = ()
    for found, record in _tsv(path):
        columns = found
        boxes = int(record["num_boxes"])
        widths.add(len(base64.b64decode(record["features"])) // 4 // max(1, boxes))
        count, most = count + 1, max(most, boxes)
    if len(widths) != 1:
        raise ImportProblem(f"{path}: features of lengths {sorted(widths)}; one length is expected")
    half, number = np.dtype("float32"), np.dtype("int32")
    form: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        "values": ((most, widths.pop()), half),
        "boxes": ((most, 4), half),
        "counts": ((), number),
        "frame_size": ((2,), number),
    }
    if columns == LXMERT:
        form |= {"scores": ((most,), half), "labels": ((most,), number)}
        form |= {"attributes": ((most,), number), "attribute_scores": ((most,), half)}
    spec = _spec(_source_spec(path, path.stem), form)

    def clips() -> Iterator[ClipRows]:
        for _, record in _tsv(path):
            yield ClipRows(clip_id=record["image_id"], arrays=_image(record, form))

    return [Source(name=path.stem, spec=spec, clips=clips, count=count, splits={}, captions={})]


def _tsv(path: Path) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    with path.open(encoding="ascii") as handle:
        for number, line in enumerate(handle, start=1):
            fields = line.rstrip("\n").split("\t")
            columns = {len(BUTD): BUTD, len(LXMERT): LXMERT}.get(len(fields))
            if columns is None:
                raise ImportProblem(f"{path}:{number}: {len(fields)} columns; bottom-up-attention files have 6 or 10")
            yield columns, dict(zip(columns, fields, strict=True))


def _image(record: Mapping[str, str], form: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, np.ndarray]:
    count = int(record["num_boxes"])
    columns = {"values": ("features", "f4"), "boxes": ("boxes", "f4")}
    if "scores" in form:
        columns |= {"scores": ("objects_conf", "f4"), "labels": ("objects_id", "i8")}
        columns |= {"attributes": ("attrs_id", "i8"), "attribute_scores": ("attrs_conf", "f4")}
    arrays = {
        "counts": np.array([count], np.int32),
        "frame_size": np.array([[int(record["image_w"]), int(record["image_h"])]], np.int32),
    }
    for name, (column, kind) in columns.items():
        shape, dtype = form[name]
        # Images with fewer boxes end in what a detector's empty places hold.
        padded = np.full(shape, -1 if dtype.kind == "i" else 0, dtype)
        padded[:count] = np.frombuffer(base64.b64decode(record[column]), kind).reshape(count, *shape[1:])
        arrays[name] = padded[None]
    return arrays


# --- specs -----------------------------------------------------------------------------------------------------------


def _source_spec(files: Path | Sequence[Path], array: str) -> dict[str, Any]:
    """What is known of how imported features were made: the bytes they came in."""
    digest = hashlib.sha256()
    for path in [files] if isinstance(files, Path) else files:
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return {"network": "imported", "source": {"sha256": digest.hexdigest(), "array": array}}


def _spec(made: dict[str, Any], form: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, Any]:
    """A spec with the arrays there are: name -> (shape of an entry, dtype), ``values`` among them."""
    described = {name: {"shape": list(shape), "dtype": np.dtype(dtype).name} for name, (shape, dtype) in form.items()}
    values, timed = described.pop("values"), described.pop("times", None) is not None
    return {**made, "output": {**values, "arrays": described, "times": timed}}


FORMATS: dict[str, Callable[[Path, Sequence[str] | None, Sequence[str]], list[Source]]] = {
    "npy": from_numpy,
    "hdf5": from_hdf5,
    "hgr": from_hgr,
    "butd": from_butd,
}
