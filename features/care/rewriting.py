"""Clips of committed parts into new parts: what compaction, removal, and copies of some clips have in common.

A ``Piece`` is what is kept of a part. Small pieces are joined to groups, and ``Sources.rewrite`` makes a part of each.
"""

from __future__ import annotations

import functools
import hashlib
import socket
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...errors import first_line
from ..reader import Stream
from ..schema import (
    ClipSource,
    Failure,
    StoreError,
    bytes_of,
    canonical,
    clip_arrays,
    entry_bytes,
    folder_of,
    free_name,
    origins_of,
    row_arrays,
)
from ..writer import ClipRows, clip_entry, is_committed, write_part
from .verify import fault_of

# Bytes of rows of a new part, by default. They are in memory until it is written.
PART_BYTES = 256 << 20
# Clips and failures of a new part, at most: a commit record is read whole.
PART_CLIPS = 1 << 15
# What fills less of a new part than this is small.
SMALL = 0.5


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is kept of a part, or as much of it as fits into one new part.

    Attributes:
        places: of the clips in the part, in order.
        failures: entries of the ledger.
        share: how much of a new part it fills, by bytes and by entries.
        bytes: of files, about.
        alone: whether a new part is worth while that has nothing else in it.
    """

    part: str
    places: Sequence[int]
    failures: Sequence[dict[str, Any]]
    share: tuple[float, float]
    bytes: int
    alone: bool


@dataclass
class Sources:
    """The parts of a stream, to be rewritten.

    Args:
        part_bytes: bytes of rows of a new part, at most, unless a single clip has more.

    Attributes:
        commits: the commit records. The stream has others once it had to look at the disk again, because a part that
            it was to read is gone.
        damaged: part -> why it cannot be rewritten, of those looked at so far.
        changed: whether another program has rewritten or removed parts since the stream was opened.
    """

    stream: Stream
    part_bytes: int = PART_BYTES
    damaged: dict[str, str] = field(default_factory=dict, init=False)
    changed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._row_bytes = entry_bytes(row_arrays(self.stream.spec))
        self._clip_bytes = entry_bytes(clip_arrays(self.stream.spec))
        self._fault = functools.cache(self._look)
        self._index, self.commits = self.stream.index, self.stream.commits

    def counting(self, part: str) -> list[int]:
        """The places of the clips of a part whose rows there are those that count."""
        stream, ids = self.stream, self._ids(part)
        return [place for place, name in enumerate(ids) if name in stream and stream.place(name) == (part, place)]

    def failures(self, part: str) -> list[dict[str, Any]]:
        """The failures of a part that count."""
        known = self.stream.failures
        entries = self.commits[part]["failures"]
        return [entry for entry in entries if known.get(entry["clip_id"]) == Failure(**entry)]

    def pieces(
        self, part: str, places: Sequence[int], failures: Sequence[dict[str, Any]], *, alone: bool = True
    ) -> list[Piece]:
        """What is kept of a part, in as many pieces as it fills new parts; one at least."""
        commit = self.commits[part]
        clips, size = commit["clips"], bytes_of(commit)
        cuts, rows = [0], 0
        for index, place in enumerate(places):
            if index > cuts[-1] and max(self._share(rows + clips[place]["rows"], index + 1 - cuts[-1], 0)) > 1:
                cuts.append(index)
                rows = 0
            rows += clips[place]["rows"]
        pieces = []
        for begin, end in zip(cuts, [*cuts[1:], len(places)], strict=True):
            kept, entries = places[begin:end], failures if end == len(places) else ()
            rows = sum(clips[place]["rows"] for place in kept)
            pieces.append(
                Piece(
                    part=part,
                    places=kept,
                    failures=entries,
                    share=self._share(rows, len(kept), len(entries)),
                    bytes=size * rows // max(1, commit["rows"]),
                    alone=alone or len(cuts) > 1,
                )
            )
        return pieces

    def rewrite(
        self, pieces: Iterable[Piece], store: Path, *, replaces: Collection[str] = (), taken: Collection[str]
    ) -> dict[str, Any] | None:
        """Makes a part of pieces; returns its commit record, None if nothing was written.

        A part that is damaged is left out, and one that holds rows which a damaged one hides.

        Args:
            store: where the stream was declared with the same spec.
            replaces: the parts that the new one replaces, if they are in it.
            taken: names that the new part cannot have, see ``schema.free_name``.
        """
        begun = time.monotonic()
        clips: list[ClipRows] = []
        failures: dict[str, Failure] = {}
        read: list[Piece] = []
        for piece in pieces:
            if self._is_overtaken():
                return None
            if not self.is_intact(piece.part):
                continue
            try:
                clips += self._read(piece)
            except StoreError as error:
                self._note(piece.part, first_line(error))
                continue
            failures |= {entry["clip_id"]: Failure(**entry) for entry in piece.failures}
            read.append(piece)
        if self._is_overtaken(piece.part for piece in read):
            return None
        if not read or (len(read) == 1 and not read[0].alone):
            return None
        commits = [self.commits[piece.part] for piece in read]
        return write_part(
            store,
            self.stream.name,
            free_name(new_name(commits, clips, failures.values()), taken),
            spec=self.stream.spec,
            clips=clips,
            failures=list(failures.values()),
            run=run_record(commits, time.monotonic() - begun),
            replaces=[part for part in dict.fromkeys(piece.part for piece in read) if part in replaces],
        )

    def is_intact(self, part: str) -> bool:
        """Whether every byte of a part is the one that was written, and of those whose rows hide some of its own."""
        stream = self.stream
        hiding = {stream.place(name)[0] for name in self._ids(part) if name in stream}
        return not any(self._fault(other) for other in sorted({part, *hiding}))

    def _look(self, part: str) -> str:
        commit = self.commits[part]
        reason = fault_of(self.stream.path / "parts" / folder_of(commit), commit)
        if reason:
            self._note(part, reason)
        return reason

    def _note(self, part: str, reason: str) -> None:
        """A part is damaged, unless another program has removed it meanwhile."""
        if self._is_there(part):
            self.damaged[part] = reason
        else:
            self.changed = True

    def _is_overtaken(self, parts: Iterable[str] = ()) -> bool:
        """Whether the stream had to look at the disk again, so that its clips are elsewhere, or a part is gone."""
        if self.stream.index is not self._index or not all(map(self._is_there, parts)):
            self.changed = True
            return True
        return False

    def _is_there(self, part: str) -> bool:
        return is_committed(self.stream.path.parent, self.stream.name, part)

    def _ids(self, part: str) -> Iterator[str]:
        return (clip["clip_id"] for clip in self.commits[part]["clips"])

    def _share(self, rows: int, clips: int, failures: int) -> tuple[float, float]:
        size = rows * self._row_bytes + clips * self._clip_bytes
        return size / self.part_bytes, (clips + failures) / PART_CLIPS

    def _read(self, piece: Piece) -> Iterator[ClipRows]:
        commit = self.commits[piece.part]
        entries = [commit["clips"][place] for place in piece.places]
        origins = origins_of(commit, len(commit["clips"]))
        batch = self.stream.read([entry["clip_id"] for entry in entries])
        for place, entry, rows in zip(piece.places, entries, batch, strict=True):
            clip = ClipRows(
                clip_id=entry["clip_id"],
                arrays=rows.arrays,
                decoder=entry.get("decoder", ""),
                source=ClipSource.of(entry),
                missing=entry.get("missing"),
                damage=entry.get("damage", ""),
                origin=origins[place],
            )
            made = clip_entry(clip)
            if lost := [key for key, value in entry.items() if (made.get(key) or None) != (value or None)]:
                raise StoreError(f"this amex does not know what {', '.join(lost)} of clip {clip.clip_id!r} means")
            yield clip


def grouped(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Pieces that make a part: large ones one each, then small ones in order, as many as fit.

    What is made of them is not joined further when it is grouped itself: two neighbours do not fit into one part.
    """
    large, small = [], [list[Piece]()]
    filled = (0.0, 0.0)
    for piece in pieces:
        if max(piece.share) >= SMALL:
            large.append([piece])
            continue
        more = (filled[0] + piece.share[0], filled[1] + piece.share[1])
        if small[-1] and max(more) > 1:
            small.append([])
            more = piece.share
        small[-1].append(piece)
        filled = more
    groups = [*large, *small]
    return [group for group in groups if len(group) > 1 or any(piece.alone for piece in group)]


def completed(groups: Sequence[Sequence[Piece]]) -> list[list[str]]:
    """By group, the parts that have no piece in a later one: those that it can replace."""
    last = {piece.part: number for number, group in enumerate(groups) for piece in group}
    return [[part for part in last if last[part] == number] for number in range(len(groups))]


def new_name(commits: Sequence[dict[str, Any]], clips: Sequence[ClipRows], failures: Iterable[Failure]) -> str:
    """The name of a part that is made of others: it sorts where the first of them does, and tells what is in it.

    So programs that do the same work write the same part.
    """
    content = [
        [folder_of(commit) for commit in commits],
        [clip.clip_id for clip in clips],
        [[failure.clip_id, *failure.rank] for failure in failures],
    ]
    first = commits[0]["part"].partition("-")[0][:60]
    return f"{first}-{hashlib.sha256(canonical(content)).hexdigest()[:12]}"


def run_record(commits: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The ``run`` of a part that is made of others: who made it, and of them each host and set of versions once."""
    hosts, versions = [], []
    for commit in commits:
        run = commit["run"]
        before = run.get("made_of", {"hosts": [run.get("host")], "versions": [run.get("versions")]})
        hosts += [host for host in before["hosts"] if host and host not in hosts]
        versions += [entry for entry in before["versions"] if entry and entry not in versions]
    return {
        "host": socket.gethostname(),
        "seconds": round(seconds, 3),
        "versions": {"amex": version("amex")},
        "made_of": {"parts": [commit["part"] for commit in commits], "hosts": hosts, "versions": versions},
    }
