"""The index of a stream: where the rows of each clip are, as NumPy arrays.

A stream of a million clips has hundreds of megabytes of commit records. The index has the values that most questions
need in a tenth of that size, and no Python object per clip. ``opening`` builds it from the commit records and caches it
in a file.

    index.find(["a", "b"])    # (2,) entry numbers; -1 for a clip without rows
    index.part[entry]         # number of the part; its record is index.parts[number]
    index.place[entry]        # position among the clips of the part
    index.first[entry]        # first row in the part
    index.rows[entry]         # number of rows
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import first_line
from . import columns as columns_module
from .columns import (
    COLUMNS,
    CUT_OFF,
    ENTRY,
    ENTRY_TEXTS,
    NOT_KNOWN,
    PART,
    PART_TEXTS,
    RECORDED,
    Columns,
    Texts,
    encoded,
)
from .schema import INDEX, DamagedPart, check_names

# The first bytes of the file. Change the number whenever the content of the file changes.
MAGIC = b"amex index 1\n"


class Parts(Sequence[dict[str, Any]]):
    """The commit records of the parts that count, by number, without their clips, failures and run.

    Instead, ``decoders`` has the number of clips that each decoder has served.

    Attributes:
        names: of all parts that count, by number.
        numbers: part number by name.
    """

    def __init__(self, names: Texts, records: Texts, count: int) -> None:
        self._records, self._count = records, count
        self.names = [names[number] for number in range(count)]
        self.numbers = {name: number for number, name in enumerate(self.names)}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self._count:
            raise IndexError(number)
        try:
            record = json.loads(self._records[number])
            check_names(record, self.names[number])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedPart(f"a record in {INDEX} is damaged ({first_line(error)}): delete that file") from error
        return record


class Index:
    """All entries (clips and failures) in the commit records of a stream, part by part in the order of their names.

    If a clip has several entries, the one with the highest revision counts; of equal revisions, rows before failures,
    then the last attempt, then the first entry. Parts that another part replaces have no entries here.

    Attributes:
        part: (entries,) number of the part.
        place: (entries,) position in the part: clips first, then failures.
        first: (entries,) first row in the part.
        rows: (entries,) number of rows; -1 for a failure.
        start, end: (entries,) seconds of the video from which the entry was computed; NaN if the record has none.
        recorded: (entries,) whether the record has start and end.
        revision, attempts: (entries,) see ``Failure``; clips have 0 attempts.
        counts: (entries,) bool: whether this entry is the one of its clip that counts.
        clips: numbers of the entries that count and have rows, possibly 0, in order.
        failures: numbers of the failures that count, in order.
        ids: clip id of every entry.
        parts: the records of the parts by number.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self.rows, self.start, self.end = columns["rows"], columns["start"], columns["end"]
        self.revision, self.attempts = columns["revision"], columns["attempts"]
        self.ids, self.videos, self.digests = (self._texts(name) for name in ENTRY_TEXTS)
        # The first entry of each part, and the total number of entries.
        self.begins = np.concatenate([[0], np.cumsum(columns["entries"])])
        self.part = np.repeat(np.arange(len(columns["entries"]), dtype=np.int32), columns["entries"])
        rows_before = np.cumsum(self.rows.clip(0))
        rows_before -= self.rows.clip(0)
        self.first = rows_before - np.append(rows_before, 0)[self.begins[:-1]][self.part]
        self.place = np.arange(len(self.rows)) - self.begins[self.part]
        self._table = columns["table"]
        self._hashes = columns["hash"][self._table]
        self.parts = Parts(self._texts("name"), self._texts("record"), int((columns["replaced"] == 0).sum()))
        self._clips = columns["clips"]
        self.counts = np.zeros(len(self.rows), bool)
        self.counts[self._table] = True
        self.clips = np.flatnonzero(self.counts & (self.rows >= 0))
        self.failures = np.flatnonzero(self.counts & (self.rows < 0))

    def _texts(self, name: str) -> Texts:
        return Texts(self._columns[name], self._columns[f"{name} length"])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def recorded(self) -> np.ndarray:
        return (self._columns["flags"] & RECORDED) > 0

    @property
    def cut_off(self) -> np.ndarray:
        """Entry numbers of the clips that end where their video is damaged."""
        return self.clips[(self._columns["flags"][self.clips] & CUT_OFF) > 0]

    @cached_property
    def mixed(self) -> frozenset[int]:
        """The numbers of the parts that contain rows that do not count."""
        return frozenset(np.unique(self.part[~self.counts & (self.rows >= 0)]).tolist())

    def clips_of(self, part: int) -> slice:
        """Return the entries of a part that have rows, whether they count or not."""
        begin = int(self.begins[part])
        return slice(begin, begin + int(self._clips[part]))

    def names(self, entries: np.ndarray) -> Iterator[str]:
        """Yield the clip ids of entries."""
        for key in self.ids.encoded(entries):
            yield str(key, "utf-8", "surrogatepass")

    def locate(self, clip_id: str) -> int:
        """Return the entry of a clip that counts, with rows or failed; -1 if there is none."""
        key = encoded(clip_id)
        hash_ = self._hashes.dtype.type(columns_module.hash_of(key))
        offsets = self.ids.offsets
        for position in range(int(self._hashes.searchsorted(hash_)), len(self._hashes)):
            if self._hashes[position] != hash_:
                break
            entry = int(self._table[position])
            if self.ids.data[offsets[entry] : offsets[entry + 1]] == key:
                return entry
        return -1

    def locate_all(self, clip_ids: Sequence[str]) -> np.ndarray:
        """Return ``locate`` of many clips: (n,) int64."""
        keys = list(map(encoded, clip_ids))
        hashes = np.fromiter(map(columns_module.hash_of, keys), self._hashes.dtype, len(keys))
        entries = np.full(len(keys), -1, np.int64)
        pending, positions = np.arange(len(keys)), self._hashes.searchsorted(hashes)
        while len(pending):
            inside = positions < len(self._hashes)
            pending, positions = pending[inside], positions[inside]
            same_hash = self._hashes[positions] == hashes[pending]
            pending, positions = pending[same_hash], positions[same_hash]
            candidates = self._table[positions].astype(np.int64)
            pairs = zip(self.ids.encoded(candidates), pending.tolist(), strict=True)
            same = np.fromiter((key == keys[number] for key, number in pairs), bool, len(pending))
            entries[pending[same]] = candidates[same]
            pending, positions = pending[~same], positions[~same] + 1
        return entries

    def find(self, clip_ids: Sequence[str]) -> np.ndarray:
        """Return the entries with the rows of clips, possibly 0 rows: (n,) int64; -1 for a clip without an entry."""
        entries = self.locate_all(clip_ids)
        located = np.flatnonzero(entries >= 0)
        entries[located[self.rows[entries[located]] < 0]] = -1
        return entries

    def source(self, entry: int) -> dict[str, Any]:
        """Return what an entry was computed from: the fields of ``ClipSource``."""
        columns = self._columns
        recorded = bool(columns["flags"][entry] & RECORDED)
        seconds = (float(columns[name][entry]) for name in ("start", "end"))
        numbers = (int(columns[name][entry]) for name in ("bytes", "modified"))
        start, end = (None if value != value else value for value in seconds)
        size, modified = (None if value == NOT_KNOWN else value for value in numbers)
        file = {"video": self.videos[entry], "bytes": size, "modified": modified, "sha256": self.digests[entry]}
        return {"recorded": recorded, "start": start, "end": end, "revision": int(self.revision[entry]), **file}

    # Used by ``opening`` to update an index.

    @cached_property
    def committed(self) -> dict[str, int]:
        """The numbers of all parts in the index, including replaced ones, by name."""
        names = self._texts("name")
        return {names[number]: number for number in range(len(names))}

    @cached_property
    def versions(self) -> Texts:
        return self._texts("version")

    @cached_property
    def seals(self) -> Texts:
        return self._texts("seal")

    @cached_property
    def replaces(self) -> Texts:
        return self._texts("replaces")

    @cached_property
    def replaced(self) -> frozenset[str]:
        """The names of the parts that no longer count, whether their files still exist or not."""
        texts = (self.replaces[number] for number in range(len(self.replaces)))
        return frozenset(name for text in texts if text is not None for name in json.loads(text))

    def is_replaced(self, part: int) -> bool:
        return bool(self._columns["replaced"][part])

    def of_part(self, part: int) -> Columns:
        """Return the columns of one part."""
        columns = {}
        begin, end = int(self.begins[part]), int(self.begins[part + 1])
        for names, texts, first, last in (
            (ENTRY, ENTRY_TEXTS, begin, end),
            (PART, PART_TEXTS, part, part + 1),
        ):
            for name in (*names, *(f"{text} length" for text in texts)):
                columns[name] = self._columns[name][first:last]
            for text in texts:
                offsets = self._offsets[text]
                columns[text] = self._columns[text][offsets[first] : offsets[last]]
        return columns

    @cached_property
    def _offsets(self) -> dict[str, np.ndarray]:
        return {text: self._texts(text).offsets for text in (*ENTRY_TEXTS, *PART_TEXTS)}

    def serialized(self, fingerprint: str) -> Iterator[bytes | memoryview]:
        """Yield the content of the file: magic bytes, a header with the column lengths, the columns, a checksum."""
        header = {"fingerprint": fingerprint, "lengths": {name: len(self._columns[name]) for name in COLUMNS}}
        text = json.dumps(header).encode()
        text += b" " * (-(len(MAGIC) + 4 + len(text)) % 8)  # aligns the columns to 8 bytes
        checksum = 0
        columns = (memoryview(self._columns[name]).cast("B") for name in _widest_first() if len(self._columns[name]))
        for piece in (MAGIC + struct.pack("<I", len(text)) + text, *columns):
            checksum = zlib.crc32(piece, checksum)
            yield piece
        yield struct.pack("<I", checksum)


def _widest_first() -> list[str]:
    """Return the column names by falling item size, so that every column is aligned."""
    return sorted(COLUMNS, key=lambda name: -np.dtype(COLUMNS[name]).itemsize)


def parse_index(data: bytes, fingerprint: str) -> Index:
    """Return the index from the content of its file.

    Raises:
        ValueError: if the file is damaged, or belongs to a stream with another fingerprint.
    """
    body = memoryview(data)[:-4]
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + 8:
        raise ValueError("not an index, or an index of another format")
    if struct.pack("<I", zlib.crc32(body)) != data[-4:]:
        raise ValueError("its checksum differs")
    (size,) = struct.unpack_from("<I", data, len(MAGIC))
    at = len(MAGIC) + 4 + size
    header = json.loads(data[len(MAGIC) + 4 : at])
    if header["fingerprint"] != fingerprint:
        raise ValueError("it belongs to another stream")
    columns = {}
    for name in _widest_first():
        columns[name] = np.frombuffer(body, COLUMNS[name], header["lengths"][name], at)
        at += columns[name].nbytes
    return Index(columns)
