"""Mappings of the commit records and the failures of a stream. A record is read from disk on access."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .index import Parts
from .schema import Failure

if TYPE_CHECKING:
    from .reader import Stream

# Commit records to cache: a pass over the clips of a stream uses them part by part.
CACHED = 4


class Commits(Mapping[str, dict[str, Any]]):
    """The commit records of the parts that count, by part name. Each record is read and checked on access.

    Raises:
        DamagedPart: if a record is damaged.
        FileNotFoundError: if a record was deleted since the stream was opened, for example after a compaction.
    """

    def __init__(self, parts: Parts, read: Callable[[str], dict[str, Any]]) -> None:
        self._parts, self._read = parts, read
        self._recent: tuple[tuple[str, dict[str, Any]], ...] = ()

    def __getitem__(self, part: str) -> dict[str, Any]:
        for name, commit in self._recent:
            if name == part:
                return commit
        if part not in self._parts.numbers:
            raise KeyError(part)
        commit = self._read(part)
        self._recent = ((part, commit), *self._recent[: CACHED - 1])
        return commit

    def __contains__(self, part: object) -> bool:
        return part in self._parts.numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts.names)

    def __len__(self) -> int:
        return len(self._parts)


class Failures(Mapping[str, Failure]):
    """The failed clips of a stream, by clip id. Each failure is read from its commit record on access.

    Raises:
        DamagedPart: if the commit record is damaged.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __getitem__(self, clip_id: str) -> Failure:
        entry = self._stream._entry(clip_id) if clip_id in self else {}
        if clip_id not in self:  # reading the entry may have refreshed the stream
            raise KeyError(clip_id)
        return Failure(**entry)

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and self._stream.state(clip_id) == "failed"

    def __iter__(self) -> Iterator[str]:
        index = self._stream.index
        return index.names(index.failures)

    def __len__(self) -> int:
        return len(self._stream.index.failures)
