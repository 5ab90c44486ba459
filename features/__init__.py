"""The feature store: one Zarr store per project, one stream per kind of feature, one part per unit of writing.

This package does not use models or videos. Reading starts with ``open_store``:

    rows = open_store("store.zarr")["r2plus1d_18"]["clip_id"]
    rows.values   # (rows, 512) float16
    rows.times    # (rows, 2) seconds, half-open
"""

from .care.compact import RewriteResult, compact, remove_clips
from .care.copying import CopyResult, check_mergeable, copy_store
from .care.verify import Damage, remove_leftovers, repair_metadata, verify, verify_store
from .exchange.card import describe_store, describe_stream, provenance_lines, render_card, write_card
from .exchange.excerpt import Excerpt
from .exchange.exporting import SHARD_BYTES, export_hdf5, export_hgr, export_npy
from .exchange.importing import FORMATS, Source, find_sources, import_stream
from .exchange.parquet_files import export_parquet
from .exchange.safetensors_files import export_safetensors
from .exchange.webdataset_files import export_webdataset
from .reader import Store, Stream, open_store
from .rows import Batch, Rows
from .schema import (
    ClipSource,
    DamagedPart,
    Failure,
    MissingClip,
    SpecMismatch,
    StoreError,
    bytes_of,
    clip_arrays,
    diff_specs,
    entry_bytes,
    fingerprint,
    is_caption_stream,
    row_arrays,
)
from .sources import read_sources, write_sources
from .writer import ClipRows, create_store, declare_stream, is_committed, remove_stream, write_part, write_problems

__all__ = [
    "FORMATS",
    "SHARD_BYTES",
    "Batch",
    "ClipRows",
    "ClipSource",
    "CopyResult",
    "Damage",
    "DamagedPart",
    "Excerpt",
    "Failure",
    "MissingClip",
    "RewriteResult",
    "Rows",
    "Source",
    "SpecMismatch",
    "Store",
    "StoreError",
    "Stream",
    "bytes_of",
    "check_mergeable",
    "clip_arrays",
    "compact",
    "copy_store",
    "create_store",
    "declare_stream",
    "describe_store",
    "describe_stream",
    "diff_specs",
    "entry_bytes",
    "export_hdf5",
    "export_hgr",
    "export_npy",
    "export_parquet",
    "export_safetensors",
    "export_webdataset",
    "find_sources",
    "fingerprint",
    "import_stream",
    "is_caption_stream",
    "is_committed",
    "open_store",
    "provenance_lines",
    "read_sources",
    "remove_clips",
    "remove_leftovers",
    "remove_stream",
    "render_card",
    "repair_metadata",
    "row_arrays",
    "verify",
    "verify_store",
    "write_card",
    "write_part",
    "write_problems",
    "write_sources",
]
