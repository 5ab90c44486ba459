"""Import HDF5 files with one dataset per clip, and the folders of HGR, which contain such files.

HDF5 files can refer to other files, by links, external storage and virtual datasets. None of these are followed:
otherwise the author of a file could choose which files of this machine are read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...errors import plural
from ...foreign import NESTED, parse_json, read_json, reading
from ..schema import row_arrays
from ..writer import ClipRows
from .numpy_files import npy
from .source import ImportProblem, Selection, Source, check_array, check_spec, file_spec, with_output

# The group of an exported file with the arrays other than the features: times, boxes, ...
BESIDE = "_amex"
# Split names of HGR -> split names of amex.
HGR_SPLITS = {"trn": "train", "val": "val", "tst": "test"}


@dataclass(frozen=True)
class Entry:
    """The header of a dataset.

    Attributes:
        path: the file.
        key: path of the dataset in the file.
    """

    path: Path
    key: str
    clip_id: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def where(self) -> str:
        return f"{self.path}: {self.key!r}"

    @property
    def rows(self) -> tuple[int, ...]:
        """The shape of the rows of features. A vector is one row."""
        return self.shape if len(self.shape) > 1 else (1, *self.shape)


def from_hdf5(path: Path, selection: Selection) -> list[Source]:
    """Return the stream of a file with one dataset per clip, (rows, D) or (D,), named by the clip id.

    The other arrays that ``export_hdf5`` writes are imported too.
    """
    return [_source(path, path.stem, [path], selection)]


def _source(
    path: Path,
    name: str,
    files: Sequence[Path],
    selection: Selection,
    clip_of: Callable[[str], str] = lambda key: key,
    splits: Mapping[str, str] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
) -> Source:
    import h5py

    features: list[Entry] = []
    beside: dict[tuple[Path, str], Entry] = {}
    spec: dict[str, Any] | None = None
    size = 0
    for file_path in files:
        with reading(file_path, ImportProblem, "cannot be read as hdf5"), h5py.File(file_path, "r") as file:
            if "amex_spec" in file.attrs:
                spec, name = parse_json(_text(file.attrs["amex_spec"])), _text(file.attrs["amex_stream"])
                check_spec(file_path, spec)
            for key, dataset in _datasets(file_path, file["/"]):
                entry = Entry(file_path, key, clip_of(_clip_id(file_path, key, dataset)), dataset.shape, dataset.dtype)
                size += math.prod(_unpacked(dataset)) * dataset.dtype.itemsize
                if key.startswith(f"{BESIDE}/"):
                    beside[file_path, key] = entry
                else:
                    features.append(entry)
    selection.check_size(path, size, files)
    if not features:
        raise ImportProblem(f"{path} has no features: it must have one dataset per clip")
    features = [features[place] for place, _ in selection.select(path, [entry.clip_id for entry in features])]
    if spec is None:
        for entry in features:
            if entry.dtype.kind != "f" or len(entry.shape) not in (1, 2, 3):
                shape = list(entry.shape)
                raise ImportProblem(
                    f"{entry.where} is {entry.dtype}{shape}; features must be floats of shape (rows, D)"
                )
        form = {"values": (features[0].rows[1:], features[0].dtype)}
        spec = with_output(file_spec(files, name), form)
    arrays = [array for array in row_arrays(spec) if array != "values"]
    for entry in features:
        check_array(entry.where, "values", entry.rows, entry.dtype, spec)
        for array in arrays:
            other = beside.get((entry.path, f"{BESIDE}/{array}/{entry.key}"))
            if other is None:
                raise ImportProblem(f"{entry.where} has no {array} in the group {BESIDE}")
            check_array(other.where, array, other.shape, other.dtype, spec)
            if other.shape[0] != entry.rows[0]:
                raise ImportProblem(
                    f"{other.where} has {plural(other.shape[0], 'entry')} for {plural(entry.rows[0], 'row')}"
                )

    def clips() -> Iterator[ClipRows]:
        for file_path, entries in itertools.groupby(features, key=lambda entry: entry.path):
            with h5py.File(file_path, "r") as file:
                for entry in entries:
                    values = file[entry.key][()].reshape(entry.rows)
                    others = {array: file[f"{BESIDE}/{array}/{entry.key}"][()] for array in arrays}
                    yield ClipRows(clip_id=entry.clip_id, arrays={"values": values, **others})

    ids = [entry.clip_id for entry in features]
    return Source(path=path, name=name, spec=spec, ids=ids, clips=clips, splits=splits or {}, captions=captions or {})


def _datasets(path: Path, group: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield path and dataset of all datasets below a group. Raises ImportProblem if data may be outside of the file."""
    import h5py

    if depth > NESTED:  # possibly a group that contains itself
        raise ImportProblem(f"{path} has groups nested more than {NESTED} deep")
    parent = group.name
    for name in group:
        if not isinstance(name, str):
            raise ImportProblem(f"{path}: the name {name!r} is not UTF-8")
        key = f"{parent}/{name}".lstrip("/")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ImportProblem(f"{path}: {key!r} is a link, and links are not followed: replace it by the dataset")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(path, item, depth + 1)
        elif isinstance(item, h5py.Dataset):
            if item.is_virtual or item.external:
                raise ImportProblem(
                    f"{path}: {key!r} has its data in other files, which are not read: copy the data into this file"
                )
            if item.shape is None:
                raise ImportProblem(f"{path}: {key!r} has no shape and no values")
            yield key, item


def _clip_id(path: Path, key: str, dataset: Any) -> str:
    clip_id = _text(dataset.attrs["clip_id"]) if "clip_id" in dataset.attrs else key
    if ".." in PurePosixPath(clip_id).parts:
        raise ImportProblem(f"{path}: {clip_id!r} cannot be the id of a clip: it has '..' as a folder")
    return clip_id


def _unpacked(dataset: Any) -> tuple[int, ...]:
    """Return the shape in memory while a dataset is read: the full dataset, at least one chunk."""
    return max(dataset.shape, dataset.chunks or (), key=math.prod)


def _text(value: Any) -> str:
    """Return an attribute that must be a text."""
    text = value.decode() if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise ValueError(f"an attribute is {type(value).__name__}, but must be a text")
    return text


def from_hgr(path: Path, selection: Selection) -> list[Source]:
    """Return the streams of HGR's folders: ordered_feature/SA/<stream>/*_ft.hdf5, with splits and captions."""
    splits: dict[str, str] = {}
    for short, split in HGR_SPLITS.items():
        names = path / "public_split" / f"{short}_names.npy"
        for name in npy(names).texts() if names.is_file() else ():
            if splits.setdefault(name, split) != split:
                raise ImportProblem(f"{names}: {name!r} is already in the split {splits[name]}")
    # The names of datasets have '_' instead of the '/' in the names of videos.
    video_of: dict[str, str] = {}
    for name in splits:
        if video_of.setdefault(name.replace("/", "_"), name) != name:
            other = video_of[name.replace("/", "_")]
            raise ImportProblem(f"{path / 'public_split'}: {other!r} and {name!r} would share one dataset")
    folders = sorted(folder for folder in (path / "ordered_feature" / "SA").glob("*") if folder.is_dir())
    folders = [folder for folder in folders if not selection.arrays or folder.name in selection.arrays]
    if not folders:
        raise ImportProblem(f"{path}: no features below ordered_feature/SA")
    captions = _references(path / "annotation" / "RET" / "ref_captions.json")
    sources = []
    for folder in folders:
        files = [folder / f"{short}_ft.hdf5" for short in HGR_SPLITS if (folder / f"{short}_ft.hdf5").is_file()]
        if not files:
            raise ImportProblem(f"{folder} has none of trn_ft.hdf5, val_ft.hdf5, tst_ft.hdf5")
        sources.append(
            _source(folder, folder.name, files, selection, lambda key: video_of.get(key, key), splits, captions)
        )
    return sources


def _references(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        return {}
    captions = read_json(path, ImportProblem)
    if not isinstance(captions, dict):
        raise ImportProblem(f"{path} is not an object of captions by clip")
    for clip_id, texts in captions.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ImportProblem(f"{path}: the captions of {clip_id!r} are not a list of texts")
    return captions
