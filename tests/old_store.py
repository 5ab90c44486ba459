"""Stores as earlier versions wrote them."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from amex.features import fingerprint, schema
from amex.features.writer import file_digests

# The codecs of formats 1 to 3.
CHUNK_BYTES, SHARD_BYTES = 1 << 20, 16 << 20


def as_format_3(store: Path, stream: str) -> None:
    """Rewrite the parts of a stream in format 3: with zarr-python, in compressed chunks of 1 MiB."""
    for path in sorted((store / stream / "commits").glob("*.json")):
        commit = schema.read_commit(path)
        new = store / stream / "parts" / commit["folder"]
        old = new.rename(new.with_name("old"))
        zarr.create_group(new, attributes={"amex": {"part": commit["part"], "fingerprint": commit["fingerprint"]}})
        for name in commit["arrays"]:
            _write(new, name, zarr.open_array(old / name, mode="r"))
        shutil.rmtree(old)
        files = file_digests(new)
        folder = new.rename(new.with_name(f"{commit['part']}.{fingerprint(files)[:12]}"))
        record = {**commit, "format": 3, "folder": folder.name, "files": files}
        del record["arrays"]
        path.write_text(schema.sealed(record))


def _write(folder: Path, name: str, array: zarr.Array) -> None:
    text = array.dtype.kind not in "fiub"
    size = max(1, 16 if text else array.dtype.itemsize * array[:1].size)
    chunk = max(1, min(array.shape[0], CHUNK_BYTES // size))
    shard = chunk * max(1, min(-(-array.shape[0] // chunk), SHARD_BYTES // (chunk * size)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.create_array(
            folder,
            name=name,
            shape=array.shape,
            dtype=str if text else array.dtype,
            chunks=(chunk, *array.shape[1:]),
            shards=(shard, *array.shape[1:]),
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            config={"write_empty_chunks": True},
        )[:] = array[:]
