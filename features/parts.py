"""The arrays of a stream's parts: opened once it is sure that a part is the one of its commit record, then read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..storage import NOT_THERE, storage_at
from .index import Index
from .schema import clip_arrays, folder_of, row_arrays
from .shards import DamagedArray, Layout, ShardedArray, ShardReader, Span

# What is raised where bytes on a disk are not those that were written.
DAMAGE = (ValueError, RuntimeError, KeyError, *NOT_THERE)
# Parts that stay open: enough for a pass over a million clips in any order.
OPENED = 4096
# The zarr.json of a part's group has fewer bytes.
GROUP_BYTES = 4096


class BadPart(Exception):
    """The files of a part are not what its commit record says.

    Attributes:
        part, folder: as of ``ShardedArray``.
    """

    def __init__(self, part: str, folder: str, reason: Exception) -> None:
        super().__init__(part, folder, reason)
        self.part, self.folder, self.reason = part, folder, reason


class PartReader:
    """Reads entries of the arrays of a stream's parts. Threads and forked processes may share it.

    Args:
        folder: of the parts.
        spec: the stream's.
    """

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self._folder = folder
        self._shards = ShardReader(folder)
        self._clip_arrays = clip_arrays(spec)
        self._arrays = {**row_arrays(spec), **self._clip_arrays}
        self._opened: dict[str, dict[str, ShardedArray]] = {}  # by the folder of the part, which tells its content

    def open(self, index: Index, parts: Collection[int]) -> dict[int, dict[str, ShardedArray]]:
        """The arrays of parts, by the part's number and the array's name.

        Raises:
            BadPart: if a part is not the one of its commit record.
            OSError, or what else the storage raises: if it cannot be reached.
        """
        records = {part: index.parts[part] for part in parts}
        opened = {part: self._opened.get(folder_of(record)) for part, record in records.items()}
        unopened = [part for part in parts if opened[part] is None]
        if len(self._opened) + len(unopened) > OPENED:
            self._opened.clear()
        # The zarr.json of a part's group says which part it is.
        groups = [(f"{folder_of(records[part])}/zarr.json", 0, GROUP_BYTES) for part in unopened]
        for part, group in zip(unopened, storage_at(self._folder).read_ranges(groups), strict=True):
            clips = index.clips_of(part)
            try:
                arrays = self._arrays_of(records[part], clips.stop - clips.start, group)
            except DAMAGE as error:
                raise BadPart(records[part]["part"], folder_of(records[part]), error) from error
            opened[part] = self._opened[folder_of(records[part])] = arrays
        return opened

    def read(self, spans: Iterable[Span]) -> None:
        """Reads spans of opened arrays.

        Raises:
            BadPart: if a part's bytes are not those that were written.
            OSError, or what else the storage raises: if it cannot be reached.
        """
        try:
            self._shards.read(spans)
        except DamagedArray as error:
            raise BadPart(error.array.part, error.array.folder, error) from error

    def _arrays_of(self, record: Mapping[str, Any], clips: int, group: bytes | Exception) -> dict[str, ShardedArray]:
        """The arrays of a part, whose group has this zarr.json. Raises what ``DAMAGE`` has if they are not its own."""
        folder, files = folder_of(record), record["files"]
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
                raise ValueError(f"{name} is {layout.dtype}{list(layout.shape)}, which the spec does not say")
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
    """How the arrays of a part lie whose commit record, of a format before 4, does not say it.

    Ids, offsets and metadata are compared byte for byte, the data of ``arrays``, which has checksums of its own, by its
    size alone: that it is another part's of the same size, ``verify`` finds out.

    Raises:
        ValueError: unless the folder holds what the commit record says.
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
