"""Features as Parquet tables, a row a window: what vector databases, Arrow and SQL load."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..rows import Batch
from .excerpt import Excerpt
from .exporting import SHARD_BYTES, begun, library, metadata

# Rows of a row group at most; a batch of an excerpt that has fewer is one row group.
GROUP_ROWS = 1 << 16


def export_parquet(excerpt: Excerpt, out: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """A folder of ``part-00000.parquet`` and so on, or one file if ``out`` ends in .parquet; a row a row of a clip.

    Columns are clip_id, video, start, end (of the clip, seconds), row, row_start, row_end, arrays beside the features,
    and ``vector``, a fixed-size list. Of text they are caption, row, tokens and vector. float16 is written as float32,
    which every reader knows; all else keeps its dtype. Clips without rows are left out.
    """
    pq = library("pyarrow.parquet", "parquet")
    one = out.suffix == ".parquet"
    schema = _schema(excerpt)
    options = {"compression": "zstd", "compression_level": 1, "use_dictionary": _names(excerpt)}
    tables = _tables(excerpt, schema)
    file = writer = None
    number = 0
    with begun(out, folder=not one) as partial, contextlib.ExitStack() as stack:
        for table in itertools.chain([next(tables, schema.empty_table())], tables):
            if file is None or (not one and file.tell() >= shard_bytes):
                stack.close()
                file = stack.enter_context((partial if one else partial / f"part-{number:05d}.parquet").open("wb"))
                writer = stack.enter_context(pq.ParquetWriter(file, schema, **options))
                number += 1
            writer.write_table(table)


def _names(excerpt: Excerpt) -> list[str]:
    """The columns of texts, which repeat."""
    return ["caption"] if excerpt.of_text else ["clip_id", "video"]


def _tables(excerpt: Excerpt, schema: Any) -> Iterator[Any]:
    """Row groups."""
    for batch in excerpt.batches(empty=False):
        counts = np.diff(batch.offsets)
        clips = np.repeat(np.arange(len(counts)), counts)
        for first in range(0, len(clips), GROUP_ROWS):
            yield _table(excerpt, schema, batch, clips[first : first + GROUP_ROWS], first)


def _table(excerpt: Excerpt, schema: Any, batch: Batch, clips: np.ndarray, first: int) -> Any:
    """Rows of a batch from ``first`` on, ``clips`` their clips, as a table."""
    import pyarrow as pa

    begin, end = int(clips[0]), int(clips[-1]) + 1
    ids = batch.clip_ids[begin:end]
    columns: dict[str, Any] = {_names(excerpt)[0]: ids}
    if not excerpt.of_text:
        sources = [excerpt.stream.source(clip_id) for clip_id in ids]
        columns |= {name: [getattr(source, name) for source in sources] for name in ("video", "start", "end")}
    place = pa.array(clips - begin)
    made = {name: pa.array(column, schema.field(name).type).take(place) for name, column in columns.items()}
    rows = slice(first, first + len(clips))
    if not excerpt.pooled:
        made["row"] = pa.array((np.arange(rows.start, rows.stop) - batch.offsets[clips]).astype(np.int32))
    for name, array in batch.arrays.items():
        if name == "times":
            made["row_start"], made["row_end"] = (pa.array(np.ascontiguousarray(array[rows, side])) for side in (0, 1))
        elif (column := "vector" if name == "values" else name) in schema.names:
            made[column] = _lists(array[rows])
    return pa.table([made[name] for name in schema.names], schema=schema)


def _lists(array: np.ndarray) -> Any:
    """An array (rows, ...) as fixed-size lists, of lists if it has more axes."""
    import pyarrow as pa

    lists = pa.array(np.ascontiguousarray(array, _wide(array.dtype)).reshape(-1))
    for size in array.shape[:0:-1]:
        lists = pa.FixedSizeListArray.from_arrays(lists, size)
    return lists


def _wide(dtype: Any) -> np.dtype:
    """float32 for float16: Milvus's loader does not take half floats in Parquet, and pgvector has single precision."""
    return np.dtype(np.float32) if np.dtype(dtype) == np.float16 else np.dtype(dtype)


def _schema(excerpt: Excerpt) -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = {_names(excerpt)[0]: pa.string()}
    if not excerpt.of_text:
        columns |= {"video": pa.string(), "start": pa.float64(), "end": pa.float64()}
    if not excerpt.pooled:
        columns["row"] = pa.int32()
    arrays = {name: form for name, form in excerpt.arrays.items() if name != "sentence"}  # one a caption: with --pool
    if arrays.pop("times", None):
        columns |= {"row_start": pa.float64(), "row_end": pa.float64()}
    arrays["values"] = arrays.pop("values")  # the widest last
    for name, (shape, dtype) in arrays.items():
        kind = pa.from_numpy_dtype(_wide(dtype))
        for size in reversed(shape):
            kind = pa.list_(kind, size)
        if math.prod(shape):
            columns["vector" if name == "values" else name] = kind
    return pa.schema(columns, metadata=metadata(excerpt))
