"""Commit records, and the failures in them, as mappings that read a record when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .index import Parts
from .schema import Failure

if TYPE_CHECKING:
    from .reader import Stream

# Commit records that are kept after they were read: a pass over the clips of a stream takes them part by part.
KEPT = 4


class Commits(Mapping[str, dict[str, Any]]):
    """The commit records of the parts that count, each read and checked when it is asked for.

    Raises:
        DamagedPart: if a record is damaged.
        FileNotFoundError: if it was removed since the stream was opened, as by another part that replaces it.
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
        self._recent = ((part, commit), *self._recent[: KEPT - 1])
        return commit

    def __contains__(self, part: object) -> bool:
        return part in self._parts.numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts.names)

    def __len__(self) -> int:
        return len(self._parts)


class Failures(Mapping[str, Failure]):
    """The clips of a stream that failed. An entry is read from its commit record when it is asked for.

    Raises:
        DamagedPart: if that is damaged.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __getitem__(self, clip_id: str) -> Failure:
        entry = self._stream._entry(clip_id) if clip_id in self else {}
        if clip_id not in self:  # by now: the stream may have looked at the disk again
            raise KeyError(clip_id)
        return Failure(**entry)

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and self._stream.state(clip_id) == "failed"

    def __iter__(self) -> Iterator[str]:
        index = self._stream.index
        return index.names(index.failures)

    def __len__(self) -> int:
        return len(self._stream.index.failures)
