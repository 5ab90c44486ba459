"""What a stream knows of its clips, as NumPy arrays: built from the commit records, and kept in a file beside them.

A stream of a million clips has hundreds of megabytes of commit records. The index has what most questions need of them
in a tenth of that, without a Python object a clip. The file is a copy and never the truth: it is compared with the
commits by one listing, what it lacks is read from them, and it is ignored where anything is wrong with it.

    index.find(["a", "b"])    # (2,) entry numbers; -1 for a clip that has no rows
    index.part[entry]         # whose record is index.parts[number], without its clips
    index.place[entry]        # among the part's clips
    index.first[entry]        # row in the part
    index.rows[entry]
"""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import first_line
from ..storage import Storage, storage_at
from .schema import INDEX, DamagedPart, Failure, StoreError, check_names, replaced_by

# How the file begins. A change of what is in it needs another number here.
MAGIC = b"amex index 1\n"
# What the file has of every entry. Rows are -1 for a failure, seconds NaN for none, other numbers NOT_KNOWN for none.
ENTRY = {
    "rows": "<i8",
    "start": "<f8",
    "end": "<f8",
    "bytes": "<i8",
    "modified": "<i8",
    "hash": "<u4",
    "revision": "<i4",
    "attempts": "<i4",
    "flags": "u1",
}
ENTRY_TEXTS = ("id", "video", "sha256")
# And of every part: how many entries, whether another part replaces it; its name, the version of its commit file, the
# end of that, the parts it replaces, and its record without clips and failures.
PART = {"entries": "<i8", "clips": "<i8", "replaced": "u1"}
PART_TEXTS = ("name", "version", "seal", "replaces", "record")
# A text is its bytes in a column of all texts, and their number, -1 for none, in another.
LENGTH = "<i4"
COLUMNS = {
    **ENTRY,
    **PART,
    **{f"{text} length": LENGTH for text in (*ENTRY_TEXTS, *PART_TEXTS)},
    **dict.fromkeys((*ENTRY_TEXTS, *PART_TEXTS), "u1"),
    "table": "<u4",  # entries that count, by hash
}
NOT_KNOWN = np.iinfo(np.int64).min
RECORDED, CUT_OFF = 1, 2  # flags: the record has start and end; the clip ends where damage begins
# Bytes at the end of a commit record that no other record has, since its sha256 is among them.
SEAL_BYTES = 68
# The file is written when it spares at least so many bytes of JSON, or that share of what it has. A file to be opened
# costs as much time as so many bytes, a dropped entry as well.
SPARED_BYTES, SPARED_SHARE = 4 << 20, 1 / 8
FILE_COST, ENTRY_COST = 32 << 10, 256
# Files whose ends are read together.
ASKED_TOGETHER = 256
# Listings until a stream is given up in which other processes remove commits all the time.
LISTINGS = 20

Columns = dict[str, np.ndarray]


def hash_of(key: bytes) -> int:
    """32 bits that an id is looked up by. Ids of one hash are told apart by their bytes."""
    return zlib.crc32(key)


def encoded(text: str) -> bytes:
    """UTF-8, also of what JSON can say and UTF-8 cannot."""
    return text.encode("utf-8", "surrogatepass")


class Texts:
    """Many texts end to end; an index gives a text, or None."""

    def __init__(self, data: np.ndarray, lengths: np.ndarray) -> None:
        self.lengths = lengths
        self.offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(np.maximum(lengths, 0), out=self.offsets[1:])
        self.data = memoryview(data)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> str | None:
        if self.lengths[number] < 0:
            return None
        return str(self.data[self.offsets[number] : self.offsets[number + 1]], "utf-8", "surrogatepass")

    def encoded(self, numbers: np.ndarray) -> Iterator[memoryview]:
        """The bytes of some; a text of None has none."""
        begins, ends = self.offsets[numbers].tolist(), self.offsets[numbers + 1].tolist()
        for begin, end in zip(begins, ends, strict=True):
            yield self.data[begin:end]


class Parts(Sequence[dict[str, Any]]):
    """The commit records of the parts that count, by number, without their clips, failures and run.

    ``decoders`` is there in their place: how many clips each decoder has served.

    Attributes:
        names: of all parts, in the order of their numbers.
        numbers: by name.
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
    """Every entry of the commit records of a stream, clips and failures, part by part in the order of their names.

    The highest revision of a clip counts; among equals rows before failures, then the last attempt, then the first
    entry. Parts that another one replaces have no entries here.

    Attributes:
        part: (entries,) number of its part.
        place: (entries,) among the clips, or behind them the failures, of the part.
        first: (entries,) first row in the part.
        rows: (entries,) -1 for a failure.
        start, end: (entries,) seconds that it was computed from; NaN where there are none.
        recorded: (entries,) whether the record has those.
        revision, attempts: (entries,) of a failure both, of rows the attempts are 0.
        counts: (entries,) bool: whether it is the one that counts of its clip.
        clips: the entries that count and have rows, be they 0, in order.
        failures: the failures that count, in order.
        ids: of every entry.
        parts: the records of the parts by number.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self.rows, self.start, self.end = columns["rows"], columns["start"], columns["end"]
        self.revision, self.attempts = columns["revision"], columns["attempts"]
        self.ids, self.videos, self.digests = (self._texts(name) for name in ENTRY_TEXTS)
        # Where the entries of each part begin, and where those of the last one end.
        self.begins = np.concatenate([[0], np.cumsum(columns["entries"])])
        self.part = np.repeat(np.arange(len(columns["entries"]), dtype=np.int32), columns["entries"])
        before = np.cumsum(self.rows.clip(0))
        before -= self.rows.clip(0)
        self.first = before - np.append(before, 0)[self.begins[:-1]][self.part]
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
        """The clips that end where damage begins."""
        return self.clips[(self._columns["flags"][self.clips] & CUT_OFF) > 0]

    @cached_property
    def mixed(self) -> frozenset[int]:
        """The numbers of parts that hold rows which do not count."""
        return frozenset(np.unique(self.part[~self.counts & (self.rows >= 0)]).tolist())

    def clips_of(self, part: int) -> slice:
        """The entries of a part that have rows, whether they count or not."""
        begin = int(self.begins[part])
        return slice(begin, begin + int(self._clips[part]))

    def names(self, entries: np.ndarray) -> Iterator[str]:
        """The ids of entries."""
        for key in self.ids.encoded(entries):
            yield str(key, "utf-8", "surrogatepass")

    def locate(self, clip_id: str) -> int:
        """The entry that counts of a clip, with rows or not; -1 if there is none."""
        key = encoded(clip_id)
        mark = self._hashes.dtype.type(hash_of(key))
        offsets = self.ids.offsets
        for place in range(int(self._hashes.searchsorted(mark)), len(self._hashes)):
            if self._hashes[place] != mark:
                break
            entry = int(self._table[place])
            if self.ids.data[offsets[entry] : offsets[entry + 1]] == key:
                return entry
        return -1

    def locate_all(self, clip_ids: Sequence[str]) -> np.ndarray:
        """(n,) int64: ``locate`` of many."""
        keys = list(map(encoded, clip_ids))
        marks = np.fromiter(map(hash_of, keys), self._hashes.dtype, len(keys))
        entries = np.full(len(keys), -1, np.int64)
        left, places = np.arange(len(keys)), self._hashes.searchsorted(marks)
        while len(left):
            inside = places < len(self._hashes)
            left, places = left[inside], places[inside]
            same_hash = self._hashes[places] == marks[left]
            left, places = left[same_hash], places[same_hash]
            candidates = self._table[places].astype(np.int64)
            pairs = zip(self.ids.encoded(candidates), left.tolist(), strict=True)
            same = np.fromiter((key == keys[number] for key, number in pairs), bool, len(left))
            entries[left[same]] = candidates[same]
            left, places = left[~same], places[~same] + 1
        return entries

    def find(self, clip_ids: Sequence[str]) -> np.ndarray:
        """(n,) int64: the entries that have the rows of clips, be they 0; -1 where there are none."""
        entries = self.locate_all(clip_ids)
        known = np.flatnonzero(entries >= 0)
        entries[known[self.rows[entries[known]] < 0]] = -1
        return entries

    def source(self, entry: int) -> dict[str, Any]:
        """What an entry was computed from, as ``ClipSource`` names it."""
        columns = self._columns
        recorded = bool(columns["flags"][entry] & RECORDED)
        seconds = (float(columns[name][entry]) for name in ("start", "end"))
        numbers = (int(columns[name][entry]) for name in ("bytes", "modified"))
        start, end = (None if value != value else value for value in seconds)
        size, modified = (None if value == NOT_KNOWN else value for value in numbers)
        known = {"video": self.videos[entry], "bytes": size, "modified": modified, "sha256": self.digests[entry]}
        return {"recorded": recorded, "start": start, "end": end, "revision": int(self.revision[entry]), **known}

    # What building needs of an earlier index.

    @cached_property
    def committed(self) -> dict[str, int]:
        """The numbers of all parts that the index knows, also of those that are replaced, by name."""
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
        """The names of parts that do not count any more, whether anything of them is still there or not."""
        texts = (self.replaces[number] for number in range(len(self.replaces)))
        return frozenset(name for text in texts if text is not None for name in json.loads(text))

    def is_replaced(self, part: int) -> bool:
        return bool(self._columns["replaced"][part])

    def of_part(self, part: int) -> Columns:
        """The columns of one part."""
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

    def pieces(self, fingerprint: str) -> Iterator[bytes | memoryview]:
        """The file: what it begins with, a header that says how long each column is, the columns, and a checksum."""
        header = {"fingerprint": fingerprint, "lengths": {name: len(self._columns[name]) for name in COLUMNS}}
        text = json.dumps(header).encode()
        text += b" " * (-(len(MAGIC) + 4 + len(text)) % 8)  # so that every column begins where its numbers may
        checksum = 0
        columns = (memoryview(self._columns[name]).cast("B") for name in _by_size() if len(self._columns[name]))
        for piece in (MAGIC + struct.pack("<I", len(text)) + text, *columns):
            checksum = zlib.crc32(piece, checksum)
            yield piece
        yield struct.pack("<I", checksum)


def _by_size() -> list[str]:
    return sorted(COLUMNS, key=lambda name: -np.dtype(COLUMNS[name]).itemsize)


EMPTY: Columns = {name: np.zeros(0, dtype) for name, dtype in COLUMNS.items()}


def parse_index(data: bytes, fingerprint: str) -> Index:
    """The index of the content of a file. Raises ValueError if it is damaged, or of a stream of another fingerprint."""
    body = memoryview(data)[:-4]
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + 8:
        raise ValueError("it is none, or of another format")
    if struct.pack("<I", zlib.crc32(body)) != data[-4:]:
        raise ValueError("its checksum differs")
    (size,) = struct.unpack_from("<I", data, len(MAGIC))
    at = len(MAGIC) + 4 + size
    header = json.loads(data[len(MAGIC) + 4 : at])
    if header["fingerprint"] != fingerprint:
        raise ValueError("it is another stream's")
    columns = {}
    for name in _by_size():
        columns[name] = np.frombuffer(body, COLUMNS[name], header["lengths"][name], at)
        at += columns[name].nbytes
    return Index(columns)


def columns_of(commit: Mapping[str, Any], data: bytes, version: str | None) -> Columns:
    """The columns of one part.

    Args:
        data: the record as it lies in its file.
        version: of that file.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: if an entry has not what it should have.
    """
    clips, failures = commit["clips"], [Failure(**entry) for entry in commit["failures"]]
    ids = [*(clip["clip_id"] for clip in clips), *(failure.clip_id for failure in failures)]
    sources = [*clips, *(failure.source for failure in failures)]
    keys = list(map(encoded, ids))
    decoders = Counter(clip["decoder"] for clip in clips if "decoder" in clip)
    record = {name: value for name, value in commit.items() if name not in ("clips", "failures", "run")}
    sealed = data[-SEAL_BYTES:].decode() if commit["format"] > 1 else None
    replaces = json.dumps(replaced_by(commit)) if replaced_by(commit) else None
    numbers = {
        "rows": [*(clip["rows"] for clip in clips), *(-1 for _ in failures)],
        "start": [source.get("start") for source in sources],
        "end": [source.get("end") for source in sources],
        "bytes": [_known(source.get("bytes")) for source in sources],
        "modified": [_known(source.get("modified")) for source in sources],
        "hash": list(map(hash_of, keys)),
        "revision": [source.get("revision", 0) for source in sources],
        "attempts": [*(0 for _ in clips), *(failure.attempts for failure in failures)],
        "flags": [RECORDED * ("start" in source) + CUT_OFF * ("damage" in source) for source in sources],
        "entries": [len(ids)],
        "clips": [len(clips)],
        "replaced": [0],
        "table": [],
    }
    texts = {
        "id": keys,
        "video": [_encoded(source.get("video")) for source in sources],
        "sha256": [_encoded(source.get("sha256")) for source in sources],
        "name": [encoded(commit["part"])],
        "version": [_encoded(version)],
        "seal": [_encoded(sealed)],
        "replaces": [_encoded(replaces)],
        "record": [encoded(json.dumps({**record, "decoders": decoders}, ensure_ascii=False))],
    }
    columns = {name: np.array(values, COLUMNS[name]) for name, values in numbers.items()}
    for name, values in texts.items():
        columns[name] = np.frombuffer(b"".join(filter(None, values)), np.uint8)
        columns[f"{name} length"] = np.array([-1 if value is None else len(value) for value in values], LENGTH)
    return columns


def _known(number: int | None) -> int:
    return NOT_KNOWN if number is None else number


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else encoded(text)


def _without_entries(columns: Columns) -> Columns:
    """The columns of a part that another one replaces."""
    kept = {name: columns[name] for name in (*PART, *PART_TEXTS, *(f"{text} length" for text in PART_TEXTS))}
    zero, replaced = np.zeros(1, PART["entries"]), np.ones(1, PART["replaced"])
    return {**EMPTY, **kept, "entries": zero, "clips": zero, "replaced": replaced}


def join(parts: Sequence[Columns]) -> Index:
    """The index of the columns of parts, in this order."""
    columns = {
        name: np.concatenate([EMPTY[name], *(part[name] for part in parts)]) for name in COLUMNS if name != "table"
    }
    return Index({**columns, "table": _table(columns)})


def _table(columns: Columns) -> np.ndarray:
    """The entries that count, by hash."""
    by_hash = np.argsort(columns["hash"], kind="stable").astype(COLUMNS["table"])
    hashes = columns["hash"][by_hash]
    as_before = np.zeros(len(hashes) + 1, bool)
    as_before[1:-1] = hashes[1:] == hashes[:-1]
    several = as_before[1:] | as_before[:-1]
    entries = by_hash[several]
    if not len(entries):
        return by_hash
    # These alone may be of one clip. Which are, their ids tell.
    ids, clips = Texts(columns["id"], columns["id length"]), dict[bytes, int]()
    clip = np.array([clips.setdefault(bytes(key), len(clips)) for key in ids.encoded(entries.astype(np.int64))])
    failed, revision = columns["rows"][entries] < 0, columns["revision"][entries].astype(np.int64)
    order = np.lexsort((entries, -columns["attempts"][entries].astype(np.int64), failed, -revision, clip))
    first = np.append(True, clip[order][1:] != clip[order][:-1])
    kept = ~several
    kept[np.flatnonzero(several)[order[first]]] = True
    return by_hash[kept]


def read_index(stream: Path, fingerprint: str) -> tuple[Index, int]:
    """What the file of a stream says, and its bytes; nothing if it is not there or of no use."""
    storage = storage_at(stream)
    with contextlib.suppress(*storage.errors, ValueError, KeyError):
        data = storage.read([INDEX])[INDEX]
        return parse_index(data, fingerprint), len(data)
    return Index(EMPTY), 0


def open_index(
    stream: Path, fingerprint: str, parse: Callable[[str, bytes], dict[str, Any]], *, afresh: bool = False
) -> tuple[Index, dict[str, DamagedPart]]:
    """The index of a stream as it is on disk now, and the errors of damaged commit records by part.

    Args:
        parse: makes a commit record of a part's name and its file's content; raises DamagedPart.
        afresh: read every commit record, and replace the file if there is one.

    Raises:
        StoreError: if a commit record has entries that this amex does not know.
    """
    index, size = (Index(EMPTY), 0) if afresh else read_index(stream, fingerprint)
    commits, cost = storage_at(stream / "commits"), 0
    worth = max(SPARED_BYTES, SPARED_SHARE * size)
    for _ in range(LISTINGS):
        opening = _Opening(commits, index, parse)
        index = opening.index(worth)
        cost += opening.cost
        if opening.is_complete:
            break
    else:
        raise StoreError(f"the commits in {stream / 'commits'} are removed faster than they are read; try again")
    if opening.unknown:
        raise next(iter(opening.unknown.values()))
    storage = storage_at(stream / INDEX)
    with contextlib.suppress(*storage.errors):
        if cost > worth and index.committed:
            storage.put(index.pieces(fingerprint))
        elif afresh:
            storage.remove()
    return index, opening.damaged


class _Opening:
    """One listing of the commits of a stream, and what of them the earlier index does not know.

    Attributes:
        is_complete: whether every commit that was listed was there to be read; else what replaced one is not listed.
        damaged: by part the error of its record.
        unknown: by part the error of a record with entries that this amex does not know.
        cost: bytes of JSON that were read because the index did not know them, or as many as took that time.
    """

    def __init__(self, commits: Storage, old: Index, parse: Callable[[str, bytes], dict[str, Any]]) -> None:
        self._commits, self._old, self._parse = commits, old, parse
        self.is_complete, self.cost = True, 0
        self.damaged: dict[str, DamagedPart] = {}
        self.unknown: dict[str, StoreError] = {}
        self._listed = {name.removesuffix(".json"): about for name, about in commits.versions("*.json").items()}
        self._new: dict[str, Columns] = {}
        self._same, self._renamed = self._unchanged()
        self._read([part for part in self._listed if part not in self._same])
        self._replaced = {name for text in self._replaces() for name in json.loads(text)}
        # There are no entries of a part that was replaced once, and is not any more.
        again = [part for part, number in self._same.items() if old.is_replaced(number) and part not in self._replaced]
        for part in again:
            del self._same[part]
        self._read(again)
        for part in self._replaced:
            self.damaged.pop(part, None)
            self.unknown.pop(part, None)

    def index(self, worth: float) -> Index:
        """The index now; the earlier one where that says the same.

        Args:
            worth: the cost from which on versions of files that it does not know are reason enough for another.
        """
        old = self._old
        dropped = [number for part, number in old.committed.items() if part not in self._same]
        self.cost += sum(FILE_COST + ENTRY_COST * int(old.begins[n + 1] - old.begins[n]) for n in dropped)
        replaced = any(part in self._replaced and not old.is_replaced(number) for part, number in self._same.items())
        if not (self._new or dropped or replaced or FILE_COST * self._renamed > worth):
            return old
        counting, others = [], []
        for part, (_, version) in self._listed.items():
            if part in self._new:
                columns = self._new[part]
            elif part in self._same:
                columns = self._renewed(old.of_part(self._same[part]), version)
            else:
                continue
            if part in self._replaced:
                others.append(_without_entries(columns))
            else:
                counting.append(columns)
        return join([*counting, *others])

    @staticmethod
    def _renewed(columns: Columns, version: str | None) -> Columns:
        text = np.frombuffer(_encoded(version) or b"", np.uint8)
        length = np.array([-1 if version is None else len(text)], LENGTH)
        return {**columns, "version": text, "version length": length}

    def _unchanged(self) -> tuple[dict[str, int], int]:
        """The numbers in the earlier index of parts whose commit files are what they were, by name.

        The file of a part has the version it had; or it ends as it did, which no other record does. How many of these
        have another version is returned too.
        """
        old, same, asked, renamed = self._old, dict[str, int](), list[str](), 0
        for part, (_, version) in self._listed.items():
            number = old.committed.get(part)
            if number is None:
                continue
            if version is not None and old.versions[number] == version:
                same[part] = number
            elif old.seals[number] is not None:
                asked.append(part)
        for first in range(0, len(asked), ASKED_TOGETHER):
            some = asked[first : first + ASKED_TOGETHER]
            sizes = [self._listed[part][0] for part in some]
            ends = [(f"{p}.json", max(0, size - SEAL_BYTES), size) for p, size in zip(some, sizes, strict=True)]
            for part, end in zip(some, self._commits.read_ranges(ends), strict=True):
                number = old.committed[part]
                if end == encoded(old.seals[number]):
                    same[part] = number
                    renamed += self._listed[part][1] is not None
        self.cost += FILE_COST * renamed
        return same, renamed

    def _read(self, parts: Sequence[str]) -> None:
        there = 0
        for file, data in self._commits.read_each([f"{part}.json" for part in parts]):
            there += 1
            part = file.removesuffix(".json")
            try:
                commit = self._parse(part, data)
                self._new[part] = columns_of(commit, data, self._listed[part][1])
                self.cost += len(data) + FILE_COST
            except DamagedPart as error:
                self.damaged[part] = error
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                reason = f"has entries that this amex does not know: {first_line(error)}"
                self.unknown[part] = StoreError(f"{self._commits.path / file} {reason}")
        self.is_complete &= there == len(parts)

    def _replaces(self) -> Iterator[str]:
        """Of every part that replaces others their names, as JSON."""
        for number in self._same.values():
            if (text := self._old.replaces[number]) is not None:
                yield text
        for columns in self._new.values():
            if len(columns["replaces"]):
                yield str(columns["replaces"].tobytes(), "utf-8")
