"""Features as tensors in safetensors files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import first_line, plural
from ..storage import write_json
from .excerpt import Excerpt
from .exporting import SHARD_BYTES, about, begun, library, metadata
from .reader import Batch
from .schema import StoreError

# A file is made in memory.
LARGEST = 2 << 30
# Bytes of ids in a file's metadata. Of a header with more than 100 MB safetensors reads nothing.
IDS_BYTES = 32 << 20


def export_safetensors(excerpt: Excerpt, out: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """A folder of files that each hold clips end to end, or one file if ``out`` ends in .safetensors.

    A file's tensors are ``values`` (rows, D), ``times`` (rows, 2), ``offsets`` (clips + 1,) and what else the stream
    has; its metadata has ``clip_ids`` in JSON, and amex_stream, amex_fingerprint and amex_spec. Beside the files,
    ``features.safetensors.index.json`` says which file a clip is in.

    Raises:
        StoreError: if one file would be too large.
    """
    numpy = library("safetensors.numpy", "safetensors")
    one = out.suffix == ".safetensors"
    ids_bytes = sum(len(clip_id.encode()) for clip_id in excerpt.ids)
    if one and (excerpt.size > LARGEST or ids_bytes > IDS_BYTES):
        raise StoreError(
            f"{out} would hold {excerpt.size / 1e9:,.1f} GB of {plural(len(excerpt.ids), 'clip')}, too much for one "
            "file: let --out be a folder"
        )
    with begun(out) as partial:
        if one:
            _write(numpy, partial, excerpt, list(excerpt.batches()))
            return
        partial.mkdir()
        held: list[Batch] = []
        size = number = 0
        files: dict[str, str] = {}

        def write() -> None:
            nonlocal size, number
            name = f"features-{number:05d}.safetensors"
            files.update((clip_id, name) for batch in held for clip_id in batch.clip_ids)
            _write(numpy, partial / name, excerpt, held)
            held.clear()
            size, number = 0, number + 1

        for batch in excerpt.batches():
            held.append(batch)
            size += sum(array.nbytes for array in batch.arrays.values())
            if size >= shard_bytes or _ids_bytes(held) >= IDS_BYTES:
                write()
        if held or not number:
            write()
        write_json(partial / "features.safetensors.index.json", {"metadata": about(excerpt), "clip_map": files})


def _ids_bytes(batches: Sequence[Batch]) -> int:
    return sum(len(clip_id.encode()) for batch in batches for clip_id in batch.clip_ids)


def _write(numpy: Any, path: Path, excerpt: Excerpt, batches: Sequence[Batch]) -> None:
    from safetensors import SafetensorError

    tensors = {
        name: np.concatenate([np.empty((0, *shape), dtype), *(batch.arrays[name] for batch in batches)])
        for name, (shape, dtype) in excerpt.arrays.items()
    }
    counts = [np.diff(batch.offsets) for batch in batches]
    tensors["offsets"] = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]), dtype=np.int64)
    ids = [clip_id for batch in batches for clip_id in batch.clip_ids]
    try:
        numpy.save_file(tensors, path, {**metadata(excerpt), "clip_ids": json.dumps(ids, ensure_ascii=False)})
    except SafetensorError as error:
        raise OSError(first_line(error)) from error
