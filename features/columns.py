"""The columns of the index of a stream: one value per entry and per part, as NumPy arrays.

An entry is a clip or a failure in a commit record. ``columns_of`` makes the columns of one part from its commit record,
and ``join_columns`` joins the parts of a stream. ``Index`` looks up clips in the columns.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .schema import Failure, replaced_parts

# Columns with one value per entry. Missing values: rows are -1 for a failure, seconds are NaN, others NOT_KNOWN.
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
# Columns with one value per part: the numbers of entries and clips; whether another part replaces it; its name; the
# version and the last bytes of its commit file; the parts that it replaces; its record without clips and failures.
PART = {"entries": "<i8", "clips": "<i8", "replaced": "u1"}
PART_TEXTS = ("name", "version", "seal", "replaces", "record")
# A column of texts is two arrays: the bytes of all texts end to end, and the length of each, -1 for None.
LENGTH = "<i4"
COLUMNS = {
    **ENTRY,
    **PART,
    **{f"{text} length": LENGTH for text in (*ENTRY_TEXTS, *PART_TEXTS)},
    **dict.fromkeys((*ENTRY_TEXTS, *PART_TEXTS), "u1"),
    "table": "<u4",  # numbers of the entries that count, sorted by hash
}
NOT_KNOWN = np.iinfo(np.int64).min
RECORDED, CUT_OFF = 1, 2  # flags: the record has start and end; the clip ends where its video is damaged
# The last bytes of a commit record. They contain its sha256, so no other record ends in the same bytes.
SEAL_BYTES = 68

Columns = dict[str, np.ndarray]

EMPTY: Columns = {name: np.zeros(0, dtype) for name, dtype in COLUMNS.items()}


def hash_of(key: bytes) -> int:
    """Return the 32-bit hash of an id for the lookup. Ids with equal hashes are compared byte by byte."""
    return zlib.crc32(key)


def encoded(text: str) -> bytes:
    """Return a text as UTF-8, including lone surrogates, which JSON allows."""
    return text.encode("utf-8", "surrogatepass")


class Texts:
    """Many texts in one array of bytes. Indexing returns a text or None."""

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
        """Yield the bytes of the texts with these numbers; no bytes for None."""
        begins, ends = self.offsets[numbers].tolist(), self.offsets[numbers + 1].tolist()
        for begin, end in zip(begins, ends, strict=True):
            yield self.data[begin:end]


def columns_of(commit: Mapping[str, Any], data: bytes, version: str | None) -> Columns:
    """Return the columns of one part.

    Args:
        commit: the parsed commit record.
        data: the content of its file.
        version: the version of that file, see ``Storage.versions``.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: if an entry of the record is malformed.
    """
    clips, failures = commit["clips"], [Failure(**entry) for entry in commit["failures"]]
    ids = [*(clip["clip_id"] for clip in clips), *(failure.clip_id for failure in failures)]
    sources = [*clips, *(failure.source for failure in failures)]
    keys = list(map(encoded, ids))
    decoders = Counter(clip["decoder"] for clip in clips if "decoder" in clip)
    record = {name: value for name, value in commit.items() if name not in ("clips", "failures", "run")}
    seal = data[-SEAL_BYTES:].decode() if commit["format"] > 1 else None
    replaces = json.dumps(replaced_parts(commit)) if replaced_parts(commit) else None
    numbers = {
        "rows": [*(clip["rows"] for clip in clips), *(-1 for _ in failures)],
        "start": [source.get("start") for source in sources],
        "end": [source.get("end") for source in sources],
        "bytes": [_number_or_missing(source.get("bytes")) for source in sources],
        "modified": [_number_or_missing(source.get("modified")) for source in sources],
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
        "video": [_encoded_or_none(source.get("video")) for source in sources],
        "sha256": [_encoded_or_none(source.get("sha256")) for source in sources],
        "name": [encoded(commit["part"])],
        "version": [_encoded_or_none(version)],
        "seal": [_encoded_or_none(seal)],
        "replaces": [_encoded_or_none(replaces)],
        "record": [encoded(json.dumps({**record, "decoders": decoders}, ensure_ascii=False))],
    }
    columns = {name: np.array(values, COLUMNS[name]) for name, values in numbers.items()}
    for name, values in texts.items():
        columns |= text_column(name, values)
    return columns


def text_column(name: str, values: Sequence[bytes | None]) -> Columns:
    """Return the two arrays of a column of texts."""
    lengths = np.array([-1 if value is None else len(value) for value in values], LENGTH)
    return {name: np.frombuffer(b"".join(filter(None, values)), np.uint8), f"{name} length": lengths}


def with_version(columns: Columns, version: str | None) -> Columns:
    """Return the columns of a part with another version of its commit file."""
    return {**columns, **text_column("version", [_encoded_or_none(version)])}


def without_entries(columns: Columns) -> Columns:
    """Return the columns of a replaced part: the values of the part itself, without entries."""
    of_part = {name: columns[name] for name in (*PART, *PART_TEXTS, *(f"{text} length" for text in PART_TEXTS))}
    zero, replaced = np.zeros(1, PART["entries"]), np.ones(1, PART["replaced"])
    return {**EMPTY, **of_part, "entries": zero, "clips": zero, "replaced": replaced}


def join_columns(parts: Sequence[Columns]) -> Columns:
    """Return the columns of several parts, in this order, with the table of the entries that count."""
    columns = {
        name: np.concatenate([EMPTY[name], *(part[name] for part in parts)]) for name in COLUMNS if name != "table"
    }
    return {**columns, "table": _table(columns)}


def _table(columns: Columns) -> np.ndarray:
    """Return the numbers of the entries that count, sorted by hash. See ``Index`` for which entry of a clip counts."""
    by_hash = np.argsort(columns["hash"], kind="stable").astype(COLUMNS["table"])
    hashes = columns["hash"][by_hash]
    equals_previous = np.zeros(len(hashes) + 1, bool)
    equals_previous[1:-1] = hashes[1:] == hashes[:-1]
    shared_hash = equals_previous[1:] | equals_previous[:-1]
    entries = by_hash[shared_hash]
    if not len(entries):
        return by_hash
    # Only entries with a shared hash can belong to one clip. Their ids decide.
    ids, clips = Texts(columns["id"], columns["id length"]), dict[bytes, int]()
    clip = np.array([clips.setdefault(bytes(key), len(clips)) for key in ids.encoded(entries.astype(np.int64))])
    failed, revision = columns["rows"][entries] < 0, columns["revision"][entries].astype(np.int64)
    order = np.lexsort((entries, -columns["attempts"][entries].astype(np.int64), failed, -revision, clip))
    first = np.append(True, clip[order][1:] != clip[order][:-1])
    counts = ~shared_hash
    counts[np.flatnonzero(shared_hash)[order[first]]] = True
    return by_hash[counts]


def _number_or_missing(number: int | None) -> int:
    return NOT_KNOWN if number is None else number


def _encoded_or_none(text: str | None) -> bytes | None:
    return None if text is None else encoded(text)
