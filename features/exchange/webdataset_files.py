"""Features as tar shards of webdataset, a sample a clip."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from ...storage import write_json
from .excerpt import Excerpt
from .exporting import SHARD_BYTES, about, begun, library

# Characters of a key. A name in a tar that is longer than 100 needs a header of its own.
KEY = 60


def export_webdataset(excerpt: Excerpt, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """``000000.tar`` and so on, of samples ``KEY.values.npy``, ``KEY.times.npy``, ``KEY.json``; and spec.json.

    The JSON of a sample has clip_id, video, start and end, or of text the caption.
    """
    webdataset = library("webdataset", "webdataset")
    with begun(folder, folder=True) as partial:
        pattern = str(partial).replace("%", "%%") + "/%06d.tar"
        # mtime: equal exports are equal bytes.
        with webdataset.ShardWriter(pattern, maxcount=1 << 62, maxsize=shard_bytes, verbose=0, mtime=0) as shards:
            for clip_id, rows in excerpt.each():
                entries = {name: array[0] if excerpt.pooled else array for name, array in rows.arrays.items()}
                arrays = {f"{name}.npy": np.asarray(entry) for name, entry in entries.items()}
                shards.write({"__key__": key(clip_id), **arrays, "json": _described(excerpt, clip_id)})
        write_json(partial / "spec.json", about(excerpt))


def key(clip_id: str) -> str:
    """A clip's key: its id where that can be one, else what can of it and a digest; the same in all streams.

    webdataset takes what follows the first dot of a name for its extension, and slashes for folders.
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
