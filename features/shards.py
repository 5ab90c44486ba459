"""Write and read Zarr v3 arrays with the codec ``sharding_indexed``.

A shard is a file of consecutive chunks, each with its crc32c, and an index of their positions and lengths at the end.
So the rows of a clip are one range of bytes, and the ranges of many clips are read in parallel:

    layout, files = write_array(folder, "values", array)  # writes values/zarr.json and values/c/0/0
    ShardReader(folder.parent).read([Span(ShardedArray(...), first, count, output, at), ...])

zarr-python and other Zarr readers can read the same files, but need many times longer per chunk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs.vlen import VLenUTF8
from numcodecs.zstd import Zstd

from ..errors import first_line
from ..storage import MISSING_ERRORS, storage_at
from .schema import StoreError

# A chunk is the unit of reading. Few clips are smaller, and reading a smaller chunk is not faster.
CHUNK_BYTES = 16 << 10
# A shard is a file and the unit of writing.
SHARD_BYTES = 16 << 20
# Adjacent chunks are read together up to this size, which fits into the processor's cache.
PIECE_BYTES = 1 << 20
# An array is compressed if this leaves at most this share of its bytes: decompression takes ten times as long as
# reading. Dense features keep 0.9 of their bytes, features of objects 0.6.
COMPRESSION_LIMIT = 0.75
# Arrays with smaller entries, in bytes, are never compressed.
LARGE_ENTRY = 256
# Number of chunks to compress as a trial.
TRIED = 16
# Maximal number and size of the pieces that are read in parallel.
ASKED, ASKED_BYTES = 1024, 64 << 20
# Shard indexes that a reader caches, each at most 16 kB.
INDEXES = 2048
# The value in a shard index for a missing chunk.
ABSENT = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an array is divided into chunks and shards.

    Attributes:
        shape: (entries, ...).
        dtype: NumPy's name of the dtype; ``string`` for texts.
        chunk: entries per chunk.
        shard: entries per shard, a multiple of ``chunk``.
        zstd: whether chunks are compressed.
    """

    shape: tuple[int, ...]
    dtype: str
    chunk: int
    shard: int
    zstd: bool

    def __post_init__(self) -> None:
        entries = max(1, self.shape[0])
        if not 1 <= self.chunk <= entries or not self.chunk <= self.shard < 2 * entries or self.shard % self.chunk:
            raise ValueError(f"chunks of {self.chunk} entries in shards of {self.shard} do not hold {entries} entries")

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Layout:
        """Return the layout that a commit record describes. Raises ValueError if it is invalid."""
        try:
            return cls(**{**record, "shape": tuple(record["shape"])})
        except (TypeError, IndexError) as error:
            raise ValueError(f"the commit record has an invalid layout: {first_line(error)}") from error

    @classmethod
    def of_zarr(cls, record: Mapping[str, Any]) -> Layout:
        """Return the layout that a zarr.json describes. Raises ValueError or KeyError if amex never writes it."""
        (outer,) = record["codecs"]
        if outer["name"] != "sharding_indexed" or outer["configuration"].get("index_location", "end") != "end":
            raise ValueError("its chunks are not in shards that end in an index")
        codecs = [codec["name"] for codec in outer["configuration"]["codecs"]]
        if codecs not in (["bytes", "crc32c"], ["bytes", "zstd", "crc32c"]):
            raise ValueError(f"its codecs are {', '.join(codecs)}")
        shape, dtype = tuple(record["shape"]), np.dtype(record["data_type"])
        chunk, shard = (grid["configuration"]["chunk_shape"] for grid in (outer, record["chunk_grid"]))
        if chunk[1:] != list(shape[1:]) or shard[1:] != list(shape[1:]) or shard[0] % chunk[0]:
            raise ValueError(f"its chunks of {chunk} in shards of {shard} do not hold whole entries")
        return cls(shape=shape, dtype=dtype.name, chunk=chunk[0], shard=shard[0], zstd="zstd" in codecs)

    @cached_property
    def entry_bytes(self) -> int:
        """Bytes per entry."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes per chunk, uncompressed and without checksum."""
        return self.chunk * self.entry_bytes

    @cached_property
    def chunks_a_shard(self) -> int:
        """Chunks per shard. The last shard may have fewer."""
        return self.shard // self.chunk

    @property
    def index_bytes(self) -> int:
        """Bytes of the index at the end of a shard, with its checksum."""
        return 16 * self.chunks_a_shard + 4

    def file(self, shard: int) -> str:
        """Return the path of a shard, relative to the folder of its array."""
        return "/".join(["c", str(shard), *("0" for _ in self.shape[1:])])

    def zarr_json(self, dimensions: Sequence[str]) -> str:
        """Return the text of the array's zarr.json. xarray needs the names of the dimensions."""
        texts = self.dtype == "string"
        to_bytes = {"name": "vlen-utf8"} if texts else {"name": "bytes", "configuration": {"endian": "little"}}
        zstd = [{"name": "zstd", "configuration": {"level": 1, "checksum": False}}] if self.zstd else []
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        inside = {
            "chunk_shape": [self.chunk, *self.shape[1:]],
            "codecs": [to_bytes, *zstd, {"name": "crc32c"}],
            "index_codecs": index,
            "index_location": "end",
        }
        nothing = "" if texts else np.zeros((), self.dtype).item()
        record = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.shard, *self.shape[1:]]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": nothing,
            "codecs": [{"name": "sharding_indexed", "configuration": inside}],
            "dimension_names": list(dimensions),
            "attributes": {},
        }
        return json.dumps(record) + "\n"


# Writing.


@dataclass(frozen=True)
class ConcatenatedArray:
    """Arrays of one dtype, concatenated lazily.

    Attributes:
        shape: shape of an entry.
        arrays: each (entries, *shape).
        of: what an entry belongs to: the name of the first dimension.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    arrays: Sequence[np.ndarray]
    of: str = "row"

    def __len__(self) -> int:
        return sum(map(len, self.arrays))

    def pieces(self, size: int) -> Iterator[np.ndarray]:
        """Yield all entries in order, ``size`` at a time: as a view if they are in one array, otherwise as a copy."""
        slices: list[np.ndarray] = []
        lacking = size
        for array in self.arrays:
            first = 0
            while first < len(array):
                slices.append(array[first : first + lacking])
                first += len(slices[-1])
                lacking -= len(slices[-1])
                if not lacking:
                    yield self._join(slices)
                    slices, lacking = [], size
        if slices:
            yield self._join(slices)

    def _join(self, arrays: list[np.ndarray]) -> np.ndarray:
        fits = arrays[0].dtype == self.dtype and arrays[0].shape[1:] == self.shape and arrays[0].flags.c_contiguous
        if len(arrays) == 1 and fits:
            return arrays[0]
        return np.concatenate([np.empty((0, *self.shape), self.dtype), *arrays], dtype=self.dtype)


def write_array(folder: Path, name: str, array: ConcatenatedArray) -> tuple[Layout, dict[str, dict[str, Any]]]:
    """Write an array into a local folder, shard by shard, and read each shard back to compare it.

    Returns:
        The layout; and ``bytes`` and ``sha256`` of every file, by its path relative to ``folder``.

    Raises:
        StoreError: if the disk returns other bytes than were written.
    """
    texts = array.dtype.kind == "T"
    size = _text_bytes(array) if texts else array.dtype.itemsize * math.prod(array.shape)
    chunk = max(1, min(len(array), CHUNK_BYTES // max(1, size)))
    chunks = max(1, min(-(-len(array) // chunk), SHARD_BYTES // max(1, chunk * size)))
    layout = Layout(
        shape=(len(array), *array.shape),
        dtype="string" if texts else array.dtype.name,
        chunk=chunk,
        shard=chunk * chunks,
        zstd=False,
    )
    files = {}
    for shard, piece in enumerate(array.pieces(layout.shard)):
        if not shard and not texts and _should_compress(layout, piece):
            layout = dataclasses.replace(layout, zstd=True)
        files[f"{name}/{layout.file(shard)}"] = write_file(folder / name / layout.file(shard), _encoded(layout, piece))
    dimensions = [array.of, *(f"{name}_{axis + 1}" for axis in range(len(array.shape)))]
    files[f"{name}/zarr.json"] = write_file(folder / name / "zarr.json", layout.zarr_json(dimensions).encode())
    return layout, files


def _text_bytes(array: ConcatenatedArray) -> int:
    """Return the mean number of bytes of a stored text."""
    return sum(len(text.encode()) + 4 for texts in array.arrays for text in texts) // max(1, len(array))


def _should_compress(layout: Layout, piece: np.ndarray) -> bool:
    """Return whether to compress an array, from a trial with a few chunks of its first shard."""
    if layout.entry_bytes < LARGE_ENTRY:
        return False
    chunks = -(-len(piece) // layout.chunk)
    tried = np.linspace(0, chunks - 1, min(chunks, TRIED)).astype(int)
    bodies = [piece[layout.chunk * k : layout.chunk * (k + 1)].tobytes() for k in tried]
    return sum(len(Zstd(level=1).encode(body)) for body in bodies) <= COMPRESSION_LIMIT * sum(map(len, bodies))


def _encoded(layout: Layout, piece: np.ndarray) -> bytes:
    """Return the bytes of a shard: the chunks with their checksums, then the index."""
    bodies = _texts(layout, piece) if layout.dtype == "string" else _bodies(layout, piece)
    if layout.zstd:
        bodies = map(Zstd(level=1).encode, bodies)
    index = np.full((layout.chunks_a_shard, 2), ABSENT, "<u8")
    pieces, at = [], 0
    for number, body in enumerate(bodies):
        pieces += [body, _crc(body)]
        index[number] = at, len(body) + 4
        at += len(body) + 4
    return b"".join([*pieces, index.tobytes(), _crc(index.tobytes())])


def _bodies(layout: Layout, piece: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the bytes of each chunk. The last chunk is padded with zeros, as Zarr requires."""
    data = as_bytes(piece)
    for begin in range(0, len(data), layout.chunk_bytes):
        body = data[begin : begin + layout.chunk_bytes]
        yield body if len(body) == layout.chunk_bytes else np.pad(body, (0, layout.chunk_bytes - len(body)))


def _texts(layout: Layout, piece: np.ndarray) -> Iterator[bytes]:
    for begin in range(0, len(piece), layout.chunk):
        texts = piece[begin : begin + layout.chunk].tolist()
        yield bytes(VLenUTF8().encode(np.array(texts + [""] * (layout.chunk - len(texts)), object)))


def _crc(body: Any) -> bytes:
    return google_crc32c.value(body).to_bytes(4, "little")


def write_file(path: Path, data: bytes) -> dict[str, Any]:
    """Write a local file and read it back to compare it. Return its ``bytes`` and ``sha256``.

    Raises:
        StoreError: if the disk returns other bytes than were written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if not _reads_back(path, np.frombuffer(data, np.uint8)):
        raise StoreError(f"{path} does not read back as it was written: check the disk and its free space")
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _reads_back(path: Path, data: np.ndarray) -> bool:
    try:
        with path.open("rb", buffering=0) as file:
            pieces = (data[begin : begin + PIECE_BYTES] for begin in range(0, len(data) + 1, PIECE_BYTES))
            return all(np.array_equal(np.frombuffer(file.read(PIECE_BYTES), np.uint8), piece) for piece in pieces)
    except MISSING_ERRORS:
        return False


# Reading.


@dataclass(frozen=True, eq=False)
class ShardedArray:
    """An array of a committed part.

    Attributes:
        part: name of the part.
        folder: folder of the part, relative to the folder of the stream's parts.
        files: paths of the shards, relative to the folder of the stream's parts.
        sizes: bytes of each shard, from the commit record.
        layout: see ``Layout``.
        in_order: whether all chunks are in order and have equal lengths, as this module writes them without
            compression. Then their positions are known without reading the index of the shard.
    """

    part: str
    folder: str
    files: Sequence[str]
    sizes: Sequence[int]
    layout: Layout
    in_order: bool


class Span(NamedTuple):
    """Entries of an array to read, and the array to read them into.

    Attributes:
        first, count: the entries ``first : first + count``.
        output: (bytes,) uint8: the bytes of the target array, see ``as_bytes``.
        at: entry of the target array for the first entry.
    """

    array: ShardedArray
    first: int
    count: int
    output: np.ndarray
    at: int


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Return a view of the bytes of a contiguous array: (bytes,) uint8."""
    return array.reshape(-1).view(np.uint8)


class _Piece(NamedTuple):
    """Adjacent chunks of one shard, to be read with one request.

    Attributes:
        first, count: the entries to copy, counted from the first entry of the first chunk.
        at: see ``Span``.
        shard: number of the shard.
        begin, end: numbers of the chunks in the shard, half-open.
    """

    array: ShardedArray
    output: np.ndarray
    first: int
    count: int
    at: int
    shard: int
    begin: int
    end: int


class DamagedArray(ValueError):
    """The bytes read from an array are not those that were written."""

    def __init__(self, array: ShardedArray, reason: str) -> None:
        super().__init__(reason)
        self.array = array


class ShardReader:
    """Reads the arrays below one folder. Threads and forked processes may share it.

    Args:
        folder: the folder of the stream's parts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._indexes: dict[str, list[tuple[int, int]]] = {}  # by file; only of arrays that are not in order

    def read(self, spans: Iterable[Span]) -> None:
        """Read spans of any clips and arrays in parallel, and check the crc32c of every chunk.

        Raises:
            DamagedArray: if bytes are missing or have changed.
            OSError, or another error of the storage: if the storage cannot be reached.
        """
        batch: list[_Piece] = []
        size = 0
        for span in spans:
            for piece in _pieces(span):
                batch.append(piece)
                size += (piece.end - piece.begin) * piece.array.layout.chunk_bytes
                if size >= ASKED_BYTES or len(batch) >= ASKED:
                    self._read(batch)
                    batch, size = [], 0
        self._read(batch)

    def _read(self, pieces: Sequence[_Piece]) -> None:
        indexes = self._indexes_of(pieces)
        lengths, ranges = [], []
        for array, *_, shard, begin, end in pieces:
            file = array.files[shard]
            if array.in_order:
                length = array.layout.chunk_bytes + 4
                lengths.append(itertools.repeat(length, end - begin))
                ranges.append((file, begin * length, end * length))
            else:
                chunks = _check_adjacent(array, shard, indexes[file][begin:end])
                lengths.append([length for _, length in chunks])
                ranges.append((file, chunks[0][0], sum(chunks[-1])))
        for piece, chunk_lengths, range_, data in zip(pieces, lengths, ranges, self._fetch(ranges), strict=True):
            _copy_entries(piece, chunk_lengths, _checked(piece.array, data, range_))

    def _fetch(self, ranges: Sequence[tuple[str, int, int]]) -> Sequence[bytes | Exception]:
        return storage_at(self._folder).read_ranges(ranges) if ranges else []

    def _indexes_of(self, pieces: Sequence[_Piece]) -> dict[str, list[tuple[int, int]]]:
        """Return the indexes of the shards whose chunks are not in order: (begin, length) of each chunk, by file."""
        needed = {piece.array.files[piece.shard]: piece for piece in pieces if not piece.array.in_order}
        indexes = {file: index for file in needed if (index := self._indexes.get(file))}  # a thread may clear them
        missing = [file for file in needed if file not in indexes]
        if len(self._indexes) + len(missing) > INDEXES:
            self._indexes.clear()
        ranges = []
        for file in missing:
            array, size = needed[file].array, needed[file].array.sizes[needed[file].shard]
            ranges.append((file, max(0, size - array.layout.index_bytes), size))
        for range_, data in zip(ranges, self._fetch(ranges), strict=True):
            file, array = range_[0], needed[range_[0]].array
            index = _checked(array, data, range_)
            if len(index) != array.layout.index_bytes or _crc(index[:-4]) != index[-4:]:
                raise DamagedArray(array, f"the index of {file} is not what was written")
            chunks = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)
            self._indexes[file] = indexes[file] = list(map(tuple, chunks.tolist()))
        return indexes


def _pieces(span: Span) -> Iterator[_Piece]:
    """Yield the chunks of a span, up to ``PIECE_BYTES`` at a time."""
    array, first, count, output, at = span
    layout = array.layout
    entries, chunks = layout.chunk, layout.chunks_a_shard
    end = first + count
    while first < end:
        begin = first // entries
        shard = begin // chunks
        until = min((end - 1) // entries + 1, begin + max(1, PIECE_BYTES // layout.chunk_bytes), (shard + 1) * chunks)
        in_piece = min(end, until * entries) - first
        shard_begin = shard * chunks
        chunk_range = begin - shard_begin, until - shard_begin
        yield _Piece(array, output, first - begin * entries, in_piece, at, shard, *chunk_range)
        first += in_piece
        at += in_piece


def _check_adjacent(array: ShardedArray, shard: int, chunks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (begin, length) of chunks if they are adjacent in their shard; raise DamagedArray otherwise."""
    for (begin, length), (next_begin, _) in itertools.pairwise([*chunks, (sum(chunks[-1]), 0)]):
        if length < 4 or begin + length != next_begin or next_begin > array.sizes[shard]:
            raise DamagedArray(array, f"{array.files[shard]} lacks chunks, or has them in another order")
    return chunks


def _checked(array: ShardedArray, data: bytes | Exception, range_: tuple[str, int, int]) -> bytes:
    """Return the bytes of a range. Raises DamagedArray if bytes are missing, or the error of the storage."""
    file, begin, end = range_
    if isinstance(data, MISSING_ERRORS):
        raise DamagedArray(array, f"{file} is missing") from data
    if isinstance(data, Exception):
        raise data
    if len(data) != end - begin:
        raise DamagedArray(array, f"{file} is shorter than it was written")
    return data


def _copy_entries(piece: _Piece, lengths: Iterable[int], data: bytes) -> None:
    """Check chunks and copy their entries to the output.

    Args:
        lengths: length of each chunk in ``data``, with its checksum.
    """
    array, output, first, count, at, *_ = piece
    layout = array.layout
    view = np.frombuffer(data, np.uint8)
    # The following numbers are in bytes.
    skip, left, to = first * layout.entry_bytes, count * layout.entry_bytes, at * layout.entry_bytes
    begin = 0
    for length in lengths:
        end = begin + length - 4
        body = view[begin:end]
        if google_crc32c.value(body) != int.from_bytes(data[end : end + 4], "little"):
            raise DamagedArray(array, f"a checksum in {array.files[piece.shard]} differs")
        if layout.zstd:
            try:
                body = np.frombuffer(Zstd().decode(body), np.uint8)
            except RuntimeError as error:
                raise DamagedArray(array, f"{array.files[piece.shard]}: {first_line(error)}") from error
        if len(body) != layout.chunk_bytes:
            raise DamagedArray(array, f"{array.files[piece.shard]} has chunks of another size")
        size = min(left, len(body) - skip)
        output[to : to + size] = body[skip : skip + size]
        begin, skip, left, to = end + 4, 0, left - size, to + size
