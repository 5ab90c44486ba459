"""Arrays in shards: Zarr v3 arrays with the codec ``sharding_indexed``, written whole and read by ranges of bytes.

A shard is a file of chunks, one after the other, each with its crc32c, and an index of where they begin and how long
they are. So the rows of a clip are one range of bytes, and the ranges of many clips can be asked for at once:

    layout = write_array(folder, "values", joined)  # writes values/zarr.json and values/c/0/0
    read_ranges(storage_at(folder.parent), [(ShardedArray(...), first, count, at), ...], out)

zarr-python and other readers of Zarr read the same files; per chunk they cost many times what this does.
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
from ..storage import NOT_THERE, storage_at
from .schema import StoreError

# A chunk is the unit of reading. Few clips have fewer bytes, and a smaller one costs as much time.
CHUNK_BYTES = 16 << 10
# A shard is a file, and the unit of writing.
SHARD_BYTES = 16 << 20
# Chunks that lie side by side are read so many bytes at a time, which stay in the processor's cache.
PIECE_BYTES = 1 << 20
# Compression pays where it leaves at most this share of the bytes: chunks are decompressed at a tenth of the speed at
# which they are read. Dense features keep 0.9, objects 0.6.
PAYS = 0.75
# Bytes of an entry from which on an array is large enough for that to matter.
LARGE_ENTRY = 256
# Chunks that are compressed to find out.
TRIED = 16
# Pieces that are asked for at once, by number and by bytes.
ASKED, ASKED_BYTES = 1024, 64 << 20
# Indexes of shards that a reader keeps, of 16 kB or less.
INDEXES = 2048
# What the index says of a chunk that is not there.
ABSENT = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an array lies in its files.

    Attributes:
        shape: (entries, ...).
        dtype: as NumPy calls it; ``string`` for texts.
        chunk: entries of a chunk.
        shard: entries of a shard, a multiple of ``chunk``.
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
        """That of an array as a commit record has it. Raises ValueError if it cannot be one."""
        try:
            return cls(**{**record, "shape": tuple(record["shape"])})
        except (TypeError, IndexError) as error:
            raise ValueError(f"an array cannot lie as the commit record says: {first_line(error)}") from error

    @classmethod
    def of_zarr(cls, record: Mapping[str, Any]) -> Layout:
        """That of an array by its zarr.json. Raises ValueError or KeyError if no version of amex writes such arrays."""
        (outer,) = record["codecs"]
        if outer["name"] != "sharding_indexed" or outer["configuration"].get("index_location", "end") != "end":
            raise ValueError("its chunks are not in shards that end in an index")
        codecs = [codec["name"] for codec in outer["configuration"]["codecs"]]
        if codecs not in (["bytes", "crc32c"], ["bytes", "zstd", "crc32c"]):
            raise ValueError(f"its codecs are {', '.join(codecs)}")
        shape, dtype = tuple(record["shape"]), np.dtype(record["data_type"])
        chunk, shard = (place["configuration"]["chunk_shape"] for place in (outer, record["chunk_grid"]))
        if chunk[1:] != list(shape[1:]) or shard[1:] != list(shape[1:]) or shard[0] % chunk[0]:
            raise ValueError(f"its chunks of {chunk} in shards of {shard} do not hold whole entries")
        return cls(shape=shape, dtype=dtype.name, chunk=chunk[0], shard=shard[0], zstd="zstd" in codecs)

    @cached_property
    def entry_bytes(self) -> int:
        """Bytes of an entry."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, before it is compressed and without its checksum."""
        return self.chunk * self.entry_bytes

    @cached_property
    def chunks_a_shard(self) -> int:
        """Places of chunks in a shard; in the last shard some may be empty."""
        return self.shard // self.chunk

    @property
    def index_bytes(self) -> int:
        """Bytes of the index at a shard's end, with its checksum."""
        return 16 * self.chunks_a_shard + 4

    def file(self, shard: int) -> str:
        """The name of a shard's file, below the folder of its array."""
        return "/".join(["c", str(shard), *("0" for _ in self.shape[1:])])

    def zarr_json(self, dimensions: Sequence[str]) -> str:
        """The text of the array's zarr.json, for readers of Zarr; xarray needs the names of its dimensions."""
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
class Joined:
    """Arrays end to end, of one dtype, not copied until a piece of them is asked for.

    Attributes:
        shape: of an entry.
        arrays: each (entries, *shape).
        of: what an entry belongs to, which names the first dimension.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    arrays: Sequence[np.ndarray]
    of: str = "row"

    def __len__(self) -> int:
        return sum(map(len, self.arrays))

    def pieces(self, size: int) -> Iterator[np.ndarray]:
        """All entries in order, ``size`` at a time: as a view where they lie in one array, else as a copy."""
        held: list[np.ndarray] = []
        wanted = size
        for array in self.arrays:
            first = 0
            while first < len(array):
                held.append(array[first : first + wanted])
                first += len(held[-1])
                wanted -= len(held[-1])
                if not wanted:
                    yield self._join(held)
                    held, wanted = [], size
        if held:
            yield self._join(held)

    def _join(self, arrays: list[np.ndarray]) -> np.ndarray:
        fits = arrays[0].dtype == self.dtype and arrays[0].shape[1:] == self.shape and arrays[0].flags.c_contiguous
        if len(arrays) == 1 and fits:
            return arrays[0]
        return np.concatenate([np.empty((0, *self.shape), self.dtype), *arrays], dtype=self.dtype)


def write_array(folder: Path, name: str, array: Joined) -> tuple[Layout, dict[str, dict[str, Any]]]:
    """Writes an array, shard by shard, into a folder of this machine; reads back and compares each.

    Returns:
        its layout; and of every file, by its name below ``folder``, ``bytes`` and ``sha256``.

    Raises:
        StoreError: if the disk does not give back what was written.
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
        if not shard and not texts and _pays(layout, piece):
            layout = dataclasses.replace(layout, zstd=True)
        files[f"{name}/{layout.file(shard)}"] = write_file(folder / name / layout.file(shard), _encoded(layout, piece))
    dimensions = [array.of, *(f"{name}_{axis + 1}" for axis in range(len(array.shape)))]
    files[f"{name}/zarr.json"] = write_file(folder / name / "zarr.json", layout.zarr_json(dimensions).encode())
    return layout, files


def _text_bytes(array: Joined) -> int:
    """The mean length of texts as they are stored."""
    return sum(len(text.encode()) + 4 for texts in array.arrays for text in texts) // max(1, len(array))


def _pays(layout: Layout, piece: np.ndarray) -> bool:
    """Whether compression pays for an array, as a few chunks of its first shard tell."""
    if layout.entry_bytes < LARGE_ENTRY:
        return False
    chunks = -(-len(piece) // layout.chunk)
    tried = np.linspace(0, chunks - 1, min(chunks, TRIED)).astype(int)
    bodies = [piece[layout.chunk * k : layout.chunk * (k + 1)].tobytes() for k in tried]
    return sum(len(Zstd(level=1).encode(body)) for body in bodies) <= PAYS * sum(map(len, bodies))


def _encoded(layout: Layout, piece: np.ndarray) -> bytes:
    """A shard: chunks with their checksums, and the index."""
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
    """The bytes of the entries of each chunk; what the last one lacks is 0, as Zarr has it."""
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
    """Writes a file of this machine, and compares what the disk gives back. Returns its ``bytes`` and ``sha256``.

    Raises:
        StoreError: if the disk gives back something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if not _reads_back(path, np.frombuffer(data, np.uint8)):
        raise StoreError(f"{path} does not read back as it was written: check the disk and its space")
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _reads_back(path: Path, data: np.ndarray) -> bool:
    try:
        with path.open("rb", buffering=0) as file:
            pieces = (data[begin : begin + PIECE_BYTES] for begin in range(0, len(data) + 1, PIECE_BYTES))
            return all(np.array_equal(np.frombuffer(file.read(PIECE_BYTES), np.uint8), piece) for piece in pieces)
    except NOT_THERE:
        return False


# Reading.


@dataclass(frozen=True, eq=False)
class ShardedArray:
    """An array of a committed part, as readers need it.

    Attributes:
        part, folder: the name of its part, and where that lies below the folder of the stream's parts.
        files: the names of its shards, below the folder of the stream's parts.
        sizes: bytes of its shards, as the commit record has them.
        layout: see ``Layout``.
        in_order: whether all chunks lie in order and have one length, as where this module writes without compression.
            Then nobody has to read an index to find one.
    """

    part: str
    folder: str
    files: Sequence[str]
    sizes: Sequence[int]
    layout: Layout
    in_order: bool


class Span(NamedTuple):
    """Entries of an array, and where they go.

    Attributes:
        first, count: entries ``first : first + count``.
        output: (bytes,) uint8 of the array that they go to, see ``as_bytes``.
        at: the entry of the output that the first one becomes.
    """

    array: ShardedArray
    first: int
    count: int
    output: np.ndarray
    at: int


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array, as a view of one axis."""
    return array.reshape(-1).view(np.uint8)


class _Piece(NamedTuple):
    """Chunks of one shard that lie side by side.

    Attributes:
        first, count: of their entries those that are wanted, counted from the first entry of the first chunk.
        at: as of the span.
        shard: which shard.
        begin, end: which of its chunks.
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
    """What was read of an array is not what was written."""

    def __init__(self, array: ShardedArray, reason: str) -> None:
        super().__init__(reason)
        self.array = array


class ShardReader:
    """Reads entries of the arrays below one folder. Threads and forked processes may share it.

    Args:
        folder: of the stream's parts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._indexes: dict[str, list[tuple[int, int]]] = {}  # by file, where an array is not in order

    def read(self, spans: Iterable[Span]) -> None:
        """Reads spans, those of many clips and arrays at once, and checks the crc32c of every chunk.

        Raises:
            DamagedArray: where bytes are not there, or are not those that were written.
            OSError, or what else the storage raises: if it cannot be reached.
        """
        held: list[_Piece] = []
        size = 0
        for span in spans:
            for piece in _pieces(span):
                held.append(piece)
                size += (piece.end - piece.begin) * piece.array.layout.chunk_bytes
                if size >= ASKED_BYTES or len(held) >= ASKED:
                    self._read(held)
                    held, size = [], 0
        self._read(held)

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
                places = _side_by_side(array, shard, indexes[file][begin:end])
                lengths.append([length for _, length in places])
                ranges.append((file, places[0][0], sum(places[-1])))
        for piece, each, asked, data in zip(pieces, lengths, ranges, self._ask(ranges), strict=True):
            _put(piece, each, _checked(piece.array, data, asked))

    def _ask(self, ranges: Sequence[tuple[str, int, int]]) -> Sequence[bytes | Exception]:
        return storage_at(self._folder).read_ranges(ranges) if ranges else []

    def _indexes_of(self, pieces: Sequence[_Piece]) -> dict[str, list[tuple[int, int]]]:
        """By file the indexes of the shards whose chunks are not in order: where each begins, and its length."""
        wanted = {piece.array.files[piece.shard]: piece for piece in pieces if not piece.array.in_order}
        indexes = {file: index for file in wanted if (index := self._indexes.get(file))}  # a thread may clear them
        missing = [file for file in wanted if file not in indexes]
        if len(self._indexes) + len(missing) > INDEXES:
            self._indexes.clear()
        ranges = []
        for file in missing:
            array, size = wanted[file].array, wanted[file].array.sizes[wanted[file].shard]
            ranges.append((file, max(0, size - array.layout.index_bytes), size))
        for asked, data in zip(ranges, self._ask(ranges), strict=True):
            file, array = asked[0], wanted[asked[0]].array
            index = _checked(array, data, asked)
            if len(index) != array.layout.index_bytes or _crc(index[:-4]) != index[-4:]:
                raise DamagedArray(array, f"the index of {file} is not what was written")
            places = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)
            self._indexes[file] = indexes[file] = list(map(tuple, places.tolist()))
        return indexes


def _pieces(span: Span) -> Iterator[_Piece]:
    """The chunks of a span, up to ``PIECE_BYTES`` at a time."""
    array, first, count, output, at = span
    layout = array.layout
    entries, chunks = layout.chunk, layout.chunks_a_shard
    end = first + count
    while first < end:
        begin = first // entries
        shard = begin // chunks
        until = min((end - 1) // entries + 1, begin + max(1, PIECE_BYTES // layout.chunk_bytes), (shard + 1) * chunks)
        some = min(end, until * entries) - first
        before = shard * chunks
        yield _Piece(array, output, first - begin * entries, some, at, shard, begin - before, until - before)
        first += some
        at += some


def _side_by_side(array: ShardedArray, shard: int, places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The places of chunks, if they lie one after the other in a shard; raises DamagedArray otherwise."""
    for (begin, length), (after, _) in itertools.pairwise([*places, (sum(places[-1]), 0)]):
        if length < 4 or begin + length != after or after > array.sizes[shard]:
            raise DamagedArray(array, f"{array.files[shard]} lacks chunks, or has them in another order")
    return places


def _checked(array: ShardedArray, data: bytes | Exception, asked: tuple[str, int, int]) -> bytes:
    """The bytes of a range. Raises DamagedArray if there are fewer or none, and what else the storage raised."""
    file, begin, end = asked
    if isinstance(data, NOT_THERE):
        raise DamagedArray(array, f"{file} is missing") from data
    if isinstance(data, Exception):
        raise data
    if len(data) != end - begin:
        raise DamagedArray(array, f"{file} is shorter than it was written")
    return data


def _put(piece: _Piece, lengths: Iterable[int], data: bytes) -> None:
    """Checks chunks, and copies their entries to where they go.

    Args:
        lengths: of the chunks in ``data``, with their checksums.
    """
    array, output, first, count, at, *_ = piece
    layout = array.layout
    view = np.frombuffer(data, np.uint8)
    # In bytes from here on.
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
