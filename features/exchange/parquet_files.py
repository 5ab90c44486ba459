"""Export features as Parquet tables for vector databases, Arrow and SQL: one row per row of a clip."""

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
from .exporting import SHARD_BYTES, library, metadata, staged_output

# Maximal rows of a row group. A smaller batch is one row group.
GROUP_ROWS = 1 << 16


def export_parquet(excerpt: Excerpt, out: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Export a folder of ``part-00000.parquet`` and so on, or one file if ``out`` ends in .parquet.

    Columns: clip_id, video, start, end (of the clip, seconds), row, row_start, row_end, the other arrays, and
    ``vector``, a fixed-size list. For text: caption, row, tokens and vector. float16 becomes float32, which every
    reader supports; other dtypes stay. Clips without rows are skipped.
    """
    pq = library("pyarrow.parquet", "parquet")
    single_file = out.suffix == ".parquet"
    schema = _schema(excerpt)
    options = {"compression": "zstd", "compression_level": 1, "use_dictionary": _names(excerpt)}
    tables = _tables(excerpt, schema)
    file = writer = None
    number = 0
    with staged_output(out, folder=not single_file) as partial, contextlib.ExitStack() as stack:
        for table in itertools.chain([next(tables, schema.empty_table())], tables):
            if file is None or (not single_file and file.tell() >= shard_bytes):
                stack.close()
                path = partial if single_file else partial / f"part-{number:05d}.parquet"
                file = stack.enter_context(path.open("wb"))
                writer = stack.enter_context(pq.ParquetWriter(file, schema, **options))
                number += 1
            writer.write_table(table)


def _names(excerpt: Excerpt) -> list[str]:
    """Return the text columns. Their values repeat, so they are dictionary-encoded."""
    return ["caption"] if excerpt.of_text else ["clip_id", "video"]


def _tables(excerpt: Excerpt, schema: Any) -> Iterator[Any]:
    """Yield the row groups."""
    for batch in excerpt.batches(empty=False):
        counts = np.diff(batch.offsets)
        clips = np.repeat(np.arange(len(counts)), counts)
        for first in range(0, len(clips), GROUP_ROWS):
            yield _table(excerpt, schema, batch, clips[first : first + GROUP_ROWS], first)


def _table(excerpt: Excerpt, schema: Any, batch: Batch, clips: np.ndarray, first: int) -> Any:
    """Return the rows of a batch from ``first`` on as a table.

    Args:
        clips: position in the batch of the clip of each row.
    """
    import pyarrow as pa

    begin, end = int(clips[0]), int(clips[-1]) + 1
    ids = batch.clip_ids[begin:end]
    columns: dict[str, Any] = {_names(excerpt)[0]: ids}
    if not excerpt.of_text:
        sources = [excerpt.stream.source(clip_id) for clip_id in ids]
        columns |= {name: [getattr(source, name) for source in sources] for name in ("video", "start", "end")}
    place = pa.array(clips - begin)
    arrays = {name: pa.array(column, schema.field(name).type).take(place) for name, column in columns.items()}
    rows = slice(first, first + len(clips))
    if not excerpt.pooled:
        arrays["row"] = pa.array((np.arange(rows.start, rows.stop) - batch.offsets[clips]).astype(np.int32))
    for name, array in batch.arrays.items():
        if name == "times":
            starts, ends = (pa.array(np.ascontiguousarray(array[rows, side])) for side in (0, 1))
            arrays |= {"row_start": starts, "row_end": ends}
        elif (column := "vector" if name == "values" else name) in schema.names:
            arrays[column] = _lists(array[rows])
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def _lists(array: np.ndarray) -> Any:
    """Return an array (rows, ...) as fixed-size lists, nested for more axes."""
    import pyarrow as pa

    lists = pa.array(np.ascontiguousarray(array, _wide(array.dtype)).reshape(-1))
    for size in array.shape[:0:-1]:
        lists = pa.FixedSizeListArray.from_arrays(lists, size)
    return lists


def _wide(dtype: Any) -> np.dtype:
    """Return float32 for float16: Milvus cannot load half floats from Parquet, and pgvector has single precision."""
    return np.dtype(np.float32) if np.dtype(dtype) == np.float16 else np.dtype(dtype)


def _schema(excerpt: Excerpt) -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = {_names(excerpt)[0]: pa.string()}
    if not excerpt.of_text:
        columns |= {"video": pa.string(), "start": pa.float64(), "end": pa.float64()}
    if not excerpt.pooled:
        columns["row"] = pa.int32()
    # ``sentence`` has one entry per caption: --pool exports it.
    arrays = {name: form for name, form in excerpt.arrays.items() if name != "sentence"}
    if arrays.pop("times", None):
        columns |= {"row_start": pa.float64(), "row_end": pa.float64()}
    arrays["values"] = arrays.pop("values")  # the widest column comes last
    for name, (shape, dtype) in arrays.items():
        kind = pa.from_numpy_dtype(_wide(dtype))
        for size in reversed(shape):
            kind = pa.list_(kind, size)
        if math.prod(shape):
            columns["vector" if name == "values" else name] = kind
    return pa.schema(columns, metadata=metadata(excerpt))
