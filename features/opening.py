"""Open the index of a stream: read it from its file, and update it from the commit records.

The file is a cache. One listing of the commit records shows which of them changed; only those are read. A damaged file
is ignored.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import first_line
from ..storage import Storage, storage_at
from .columns import EMPTY, SEAL_BYTES, Columns, columns_of, encoded, join_columns, with_version, without_entries
from .index import Index, parse_index
from .schema import INDEX, DamagedPart, StoreError

# The file is written if the next opening then reads at least this many bytes of JSON less, or this share of the size
# of the file. Opening a file costs as much time as reading FILE_COST bytes; a dropped entry as ENTRY_COST bytes.
SPARED_BYTES, SPARED_SHARE = 4 << 20, 1 / 8
FILE_COST, ENTRY_COST = 32 << 10, 256
# Commit files whose last bytes are read together.
ASKED_TOGETHER = 256
# Listings before giving up, if other processes keep deleting commit records.
LISTINGS = 20


def read_index(stream: Path, fingerprint: str) -> tuple[Index, int]:
    """Return the index in the file of a stream, and the size of the file; an empty index if the file is unusable."""
    storage = storage_at(stream)
    with contextlib.suppress(*storage.errors, ValueError, KeyError):
        data = storage.read([INDEX])[INDEX]
        return parse_index(data, fingerprint), len(data)
    return Index(EMPTY), 0


def open_index(
    stream: Path, fingerprint: str, parse: Callable[[str, bytes], dict[str, Any]], *, afresh: bool = False
) -> tuple[Index, dict[str, DamagedPart]]:
    """Return the index of the commit records on disk, and the errors of damaged commit records by part.

    Args:
        parse: parses a commit record from the name of its part and the content of its file; raises DamagedPart.
        afresh: read every commit record, and replace the file if there is one.

    Raises:
        StoreError: if a commit record has entries that this version of amex does not understand.
    """
    index, size = (Index(EMPTY), 0) if afresh else read_index(stream, fingerprint)
    commits, cost = storage_at(stream / "commits"), 0
    worth_writing = max(SPARED_BYTES, SPARED_SHARE * size)
    for _ in range(LISTINGS):
        update = _IndexUpdate(commits, index, parse)
        index = update.index(worth_writing)
        cost += update.cost
        if update.is_complete:
            break
    else:
        raise StoreError(f"other programs keep deleting commit records in {stream / 'commits'}; try again")
    if update.unknown:
        raise next(iter(update.unknown.values()))
    storage = storage_at(stream / INDEX)
    with contextlib.suppress(*storage.errors):
        if cost > worth_writing and index.committed:
            storage.put(index.serialized(fingerprint))
        elif afresh:
            storage.remove()
    return index, update.damaged


class _IndexUpdate:
    """One listing of the commit records of a stream, compared with an earlier index.

    Attributes:
        is_complete: whether all listed commit records could be read. Otherwise another program has replaced some, and
            a new listing is necessary.
        damaged: error of each damaged record, by part.
        unknown: error of each record with entries that this version of amex does not understand, by part.
        cost: bytes of JSON that were read because the index did not have them, plus the time of other work in bytes.
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
        # The index has no entries of a part that used to be replaced and no longer is.
        restored = [
            part for part, number in self._same.items() if old.is_replaced(number) and part not in self._replaced
        ]
        for part in restored:
            del self._same[part]
        self._read(restored)
        for part in self._replaced:
            self.damaged.pop(part, None)
            self.unknown.pop(part, None)

    def index(self, worth_writing: float) -> Index:
        """Return the updated index, or the old one if nothing changed.

        Args:
            worth_writing: the cost from which new versions of unchanged files justify a new index.
        """
        old = self._old
        dropped = [number for part, number in old.committed.items() if part not in self._same]
        self.cost += sum(FILE_COST + ENTRY_COST * int(old.begins[n + 1] - old.begins[n]) for n in dropped)
        replaced = any(part in self._replaced and not old.is_replaced(number) for part, number in self._same.items())
        if not (self._new or dropped or replaced or FILE_COST * self._renamed > worth_writing):
            return old
        counting, others = [], []
        for part, (_, version) in self._listed.items():
            if part in self._new:
                columns = self._new[part]
            elif part in self._same:
                columns = with_version(old.of_part(self._same[part]), version)
            else:
                continue
            if part in self._replaced:
                others.append(without_entries(columns))
            else:
                counting.append(columns)
        return Index(join_columns([*counting, *others]))

    def _unchanged(self) -> tuple[dict[str, int], int]:
        """Find the parts whose commit file has not changed since the earlier index.

        A file has not changed if it has the same version, or ends in the same bytes (a copied file has a new version).

        Returns:
            The number of each such part in the earlier index, by name; and how many of them have a new version.
        """
        old, same, candidates, renamed = self._old, dict[str, int](), list[str](), 0
        for part, (_, version) in self._listed.items():
            number = old.committed.get(part)
            if number is None:
                continue
            if version is not None and old.versions[number] == version:
                same[part] = number
            elif old.seals[number] is not None:
                candidates.append(part)
        for first in range(0, len(candidates), ASKED_TOGETHER):
            parts = candidates[first : first + ASKED_TOGETHER]
            sizes = [self._listed[part][0] for part in parts]
            ends = [(f"{p}.json", max(0, size - SEAL_BYTES), size) for p, size in zip(parts, sizes, strict=True)]
            for part, end in zip(parts, self._commits.read_ranges(ends), strict=True):
                number = old.committed[part]
                if end == encoded(old.seals[number]):
                    same[part] = number
                    renamed += self._listed[part][1] is not None
        self.cost += FILE_COST * renamed
        return same, renamed

    def _read(self, parts: Sequence[str]) -> None:
        """Read and parse the commit records of parts."""
        count = 0
        for file, data in self._commits.read_each([f"{part}.json" for part in parts]):
            count += 1
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
        self.is_complete &= count == len(parts)

    def _replaces(self) -> Iterator[str]:
        """Yield the ``replaces`` of every part that replaces others, as JSON."""
        for number in self._same.values():
            if (text := self._old.replaces[number]) is not None:
                yield text
        for columns in self._new.values():
            if len(columns["replaces"]):
                yield str(columns["replaces"].tobytes(), "utf-8")
