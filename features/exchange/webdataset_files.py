"""Export features as WebDataset tar shards, one sample per clip."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from ...storage import write_json
from .excerpt import Excerpt
from .exporting import SHARD_BYTES, library, spec_record, staged_output

# Maximal characters of a key. Names above 100 characters need an extra header in a tar file.
KEY = 60


def export_webdataset(excerpt: Excerpt, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Export ``000000.tar`` and so on with samples ``KEY.values.npy``, ``KEY.times.npy``, ``KEY.json``; and spec.json.

    The JSON of a sample has clip_id, video, start and end; for text the caption.
    """
    webdataset = library("webdataset", "webdataset")
    with staged_output(folder, folder=True) as partial:
        pattern = str(partial).replace("%", "%%") + "/%06d.tar"
        # With a fixed mtime, equal exports have equal bytes.
        with webdataset.ShardWriter(pattern, maxcount=1 << 62, maxsize=shard_bytes, verbose=0, mtime=0) as shards:
            for clip_id, rows in excerpt.each():
                entries = {name: array[0] if excerpt.pooled else array for name, array in rows.arrays.items()}
                arrays = {f"{name}.npy": np.asarray(entry) for name, entry in entries.items()}
                shards.write({"__key__": key(clip_id), **arrays, "json": _described(excerpt, clip_id)})
        write_json(partial / "spec.json", spec_record(excerpt))


def key(clip_id: str) -> str:
    """Return the key of a clip: its id if it is valid; otherwise the valid characters and a digest.

    The key is the same in all streams. WebDataset treats the text after the first dot as the extension, and slashes as
    folders.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]+", clip_id) and len(clip_id) <= KEY:
        return clip_id
    digest = hashlib.sha256(clip_id.encode()).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', clip_id)[: KEY - 17]}-{digest}"


def _described(excerpt: Excerpt, clip_id: str) -> dict[str, Any]:
    if excerpt.of_text:
        return {"caption": clip_id}
    source = excerpt.stream.source(clip_id)
    return {"clip_id": clip_id, "video": source.video, "start": source.start, "end": source.end}
