"""Read the arrays of a stream's parts. A part is opened only if it is the one that its commit record describes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..storage import MISSING_ERRORS, storage_at
from .index import Index
from .schema import clip_arrays, part_folder, row_arrays
from .shards import DamagedArray, Layout, ShardedArray, ShardReader, Span

# Exceptions that mean that the bytes on disk are not those that were written.
DAMAGE_ERRORS = (ValueError, RuntimeError, KeyError, *MISSING_ERRORS)
# Maximal number of open parts: enough for a pass over a million clips in any order.
OPENED = 4096
# The zarr.json of a part's group is smaller than this.
GROUP_BYTES = 4096


class BadPart(Exception):
    """The files of a part do not match its commit record.

    Attributes:
        part: name of the part.
        folder: folder of the part, below the folder of all parts.
        reason: the original error.
    """

    def __init__(self, part: str, folder: str, reason: Exception) -> None:
        super().__init__(part, folder, reason)
        self.part, self.folder, self.reason = part, folder, reason


class PartReader:
    """Reads the arrays of a stream's parts. Threads and forked processes may share it.

    Args:
        folder: the folder of the parts.
        spec: the spec of the stream.
    """

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self._folder = folder
        self._shards = ShardReader(folder)
        self._clip_arrays = clip_arrays(spec)
        self._arrays = {**row_arrays(spec), **self._clip_arrays}
        self._opened: dict[str, dict[str, ShardedArray]] = {}  # by folder: its name has a digest of the content

    def open(self, index: Index, parts: Collection[int]) -> dict[int, dict[str, ShardedArray]]:
        """Return the arrays of parts, by part number and array name.

        Args:
            index: the index of the stream.
            parts: numbers of the parts.

        Raises:
            BadPart: if a part does not match its commit record.
            OSError, or another error of the storage: if the storage cannot be reached.
        """
        records = {part: index.parts[part] for part in parts}
        opened = {part: self._opened.get(part_folder(record)) for part, record in records.items()}
        unopened = [part for part in parts if opened[part] is None]
        if len(self._opened) + len(unopened) > OPENED:
            self._opened.clear()
        # The zarr.json of a part's group identifies the part.
        groups = [(f"{part_folder(records[part])}/zarr.json", 0, GROUP_BYTES) for part in unopened]
        for part, group in zip(unopened, storage_at(self._folder).read_ranges(groups), strict=True):
            clips = index.clips_of(part)
            try:
                arrays = self._arrays_of(records[part], clips.stop - clips.start, group)
            except DAMAGE_ERRORS as error:
                raise BadPart(records[part]["part"], part_folder(records[part]), error) from error
            opened[part] = self._opened[part_folder(records[part])] = arrays
        return opened

    def read(self, spans: Iterable[Span]) -> None:
        """Read spans of opened arrays into their outputs.

        Raises:
            BadPart: if a part has changed since it was written.
            OSError, or another error of the storage: if the storage cannot be reached.
        """
        try:
            self._shards.read(spans)
        except DamagedArray as error:
            raise BadPart(error.array.part, error.array.folder, error) from error

    def _arrays_of(self, record: Mapping[str, Any], clips: int, group: bytes | Exception) -> dict[str, ShardedArray]:
        """Open the arrays of a part. Raises one of ``DAMAGE_ERRORS`` if its files do not match the commit record.

        Args:
            group: the content of the zarr.json of the part's group, or the error of reading it.
        """
        folder, files = part_folder(record), record["files"]
        if isinstance(group, Exception):
            raise group
        if hashlib.sha256(group).hexdigest() != files["zarr.json"]["sha256"]:
            raise ValueError("zarr.json is not what was committed")
        if "arrays" in record:
            layouts = {name: Layout.of(record["arrays"][name]) for name in self._arrays}
        else:
            layouts = _layouts(self._folder / folder, files, self._arrays)
        arrays = {}
        for name, (shape, dtype) in self._arrays.items():
            layout, entries = layouts[name], clips if name in self._clip_arrays else record["rows"]
            if (layout.shape, layout.dtype) != ((entries, *shape), np.dtype(dtype).name):
                raise ValueError(f"{name} is {layout.dtype}{list(layout.shape)}, unlike the spec")
            names = [f"{name}/{layout.file(shard)}" for shard in range(-(-entries // layout.shard))]
            arrays[name] = ShardedArray(
                part=record["part"],
                folder=folder,
                files=[f"{folder}/{file}" for file in names],
                sizes=[files[file]["bytes"] for file in names],
                layout=layout,
                in_order="arrays" in record and not layout.zstd,
            )
        return arrays


def _layouts(folder: Path, files: Mapping[str, Any], arrays: Collection[str]) -> dict[str, Layout]:
    """Return the layouts of a part's arrays from their zarr.json, for commit records of a format before 4.

    Ids, offsets and metadata are compared byte by byte. The data of ``arrays`` has its own checksums, so only its size
    is compared; only ``verify`` detects the data of another part with the same size.

    Raises:
        ValueError: if the folder does not match the commit record.
    """
    storage = storage_at(folder)
    sizes = storage.sizes()
    for name, file in files.items():
        if name not in sizes:
            raise ValueError(f"{name} is missing")
        if sizes[name] != file["bytes"]:
            raise ValueError(f"{name} has {sizes[name]} bytes, not {file['bytes']}")
    small = [name for name in files if name.split("/")[0] not in arrays or name.endswith("zarr.json")]
    contents = storage.read(small)
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
            raise ValueError(f"{name} is not what was committed")
    return {name: Layout.of_zarr(json.loads(contents[f"{name}/zarr.json"])) for name in arrays}
