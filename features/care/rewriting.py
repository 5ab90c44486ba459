"""Rewrite clips of committed parts into new parts, for compaction, removal, and copies of some clips.

A ``Piece`` is the selected content of a part. ``grouped`` joins small pieces into groups, and ``PartRewriter.rewrite``
writes each group as one part.
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
    clip_origins,
    entry_bytes,
    free_name,
    part_folder,
    row_arrays,
)
from ..writer import ClipRows, clip_entry, is_committed, write_part
from .verify import find_fault

# Default size of a new part, in bytes of rows. They are in memory until the part is written.
PART_BYTES = 256 << 20
# Maximal number of clips and failures of a new part, because a commit record is read as a whole.
PART_CLIPS = 1 << 15
# A piece is small if it fills less than this share of a new part.
SMALL = 0.5


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Selected clips and failures of one part, at most as many as fit into one new part.

    Attributes:
        part: name of the part.
        places: positions of the clips in the part, in order.
        failures: the failures.
        share: share of a new part that this piece fills, by bytes and by number of entries.
        bytes: estimated size of its files.
        alone: whether to rewrite this piece even if no other piece joins it.
    """

    part: str
    places: Sequence[int]
    failures: Sequence[dict[str, Any]]
    share: tuple[float, float]
    bytes: int
    alone: bool


@dataclass
class PartRewriter:
    """Rewrites parts of a stream.

    Args:
        stream: the stream to read.
        part_bytes: maximal bytes of rows of a new part; more if a single clip is larger.

    Attributes:
        commits: the commit records when this object was made. The stream has newer records if it had to refresh
            because a part was gone.
        damaged: part -> reason, of the parts checked so far.
        changed: whether another program has rewritten or removed parts since the stream was opened.
    """

    stream: Stream
    part_bytes: int = PART_BYTES
    damaged: dict[str, str] = field(default_factory=dict, init=False)
    changed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._row_bytes = entry_bytes(row_arrays(self.stream.spec))
        self._clip_bytes = entry_bytes(clip_arrays(self.stream.spec))
        self._fault = functools.cache(self._check_part)
        self._index, self.commits = self.stream.index, self.stream.commits

    def counting(self, part: str) -> list[int]:
        """Return the positions of the clips of a part whose rows count."""
        stream, ids = self.stream, self._ids(part)
        return [place for place, name in enumerate(ids) if name in stream and stream.place(name) == (part, place)]

    def failures(self, part: str) -> list[dict[str, Any]]:
        """Return the failures of a part that count."""
        current = self.stream.failures
        entries = self.commits[part]["failures"]
        return [entry for entry in entries if current.get(entry["clip_id"]) == Failure(**entry)]

    def pieces(
        self, part: str, places: Sequence[int], failures: Sequence[dict[str, Any]], *, alone: bool = True
    ) -> list[Piece]:
        """Divide selected clips and failures of a part into pieces that fit into new parts; at least one."""
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
            selected, entries = places[begin:end], failures if end == len(places) else ()
            rows = sum(clips[place]["rows"] for place in selected)
            pieces.append(
                Piece(
                    part=part,
                    places=selected,
                    failures=entries,
                    share=self._share(rows, len(selected), len(entries)),
                    bytes=size * rows // max(1, commit["rows"]),
                    alone=alone or len(cuts) > 1,
                )
            )
        return pieces

    def rewrite(
        self, pieces: Iterable[Piece], store: Path, *, replaces: Collection[str] = (), taken: Collection[str]
    ) -> dict[str, Any] | None:
        """Write pieces as one part. Return its commit record, or None if nothing was written.

        Damaged parts are skipped, and parts with rows that are hidden by rows of a damaged part.

        Args:
            store: the target; it must have the stream with the same spec.
            replaces: the parts that the new part replaces, if it contains them.
            taken: names that the new part cannot have, see ``schema.free_name``.
        """
        started = time.monotonic()
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
            run=run_record(commits, time.monotonic() - started),
            replaces=[part for part in dict.fromkeys(piece.part for piece in read) if part in replaces],
        )

    def is_intact(self, part: str) -> bool:
        """Return whether a part is undamaged, and all parts whose rows hide some of its rows."""
        stream = self.stream
        hiding = {stream.place(name)[0] for name in self._ids(part) if name in stream}
        return not any(self._fault(other) for other in sorted({part, *hiding}))

    def _check_part(self, part: str) -> str:
        commit = self.commits[part]
        reason = find_fault(self.stream.path / "parts" / part_folder(commit), commit)
        if reason:
            self._note(part, reason)
        return reason

    def _note(self, part: str, reason: str) -> None:
        """Record a damaged part, unless another program has removed it meanwhile."""
        if self._is_committed(part):
            self.damaged[part] = reason
        else:
            self.changed = True

    def _is_overtaken(self, parts: Iterable[str] = ()) -> bool:
        """Return whether the stream has refreshed, so that clips may be in other parts, or whether a part is gone."""
        if self.stream.index is not self._index or not all(map(self._is_committed, parts)):
            self.changed = True
            return True
        return False

    def _is_committed(self, part: str) -> bool:
        return is_committed(self.stream.path.parent, self.stream.name, part)

    def _ids(self, part: str) -> Iterator[str]:
        return (clip["clip_id"] for clip in self.commits[part]["clips"])

    def _share(self, rows: int, clips: int, failures: int) -> tuple[float, float]:
        size = rows * self._row_bytes + clips * self._clip_bytes
        return size / self.part_bytes, (clips + failures) / PART_CLIPS

    def _read(self, piece: Piece) -> Iterator[ClipRows]:
        commit = self.commits[piece.part]
        entries = [commit["clips"][place] for place in piece.places]
        origins = clip_origins(commit, len(commit["clips"]))
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
            rewritten = clip_entry(clip)
            if unknown := [key for key, value in entry.items() if (rewritten.get(key) or None) != (value or None)]:
                raise StoreError(f"clip {clip.clip_id!r} has fields that this amex does not know: {', '.join(unknown)}")
            yield clip


def grouped(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Group pieces into new parts: first each large piece alone, then small pieces in order, as many as fit.

    Grouping the results again joins nothing, because two neighbours do not fit into one part.
    """
    large, small = [], [list[Piece]()]
    filled = (0.0, 0.0)
    for piece in pieces:
        if max(piece.share) >= SMALL:
            large.append([piece])
            continue
        total = (filled[0] + piece.share[0], filled[1] + piece.share[1])
        if small[-1] and max(total) > 1:
            small.append([])
            total = piece.share
        small[-1].append(piece)
        filled = total
    groups = [*large, *small]
    return [group for group in groups if len(group) > 1 or any(piece.alone for piece in group)]


def completed(groups: Sequence[Sequence[Piece]]) -> list[list[str]]:
    """Return, for each group, the parts without a piece in a later group: these can be replaced."""
    last = {piece.part: number for number, group in enumerate(groups) for piece in group}
    return [[part for part in last if last[part] == number] for number in range(len(groups))]


def new_name(commits: Sequence[dict[str, Any]], clips: Sequence[ClipRows], failures: Iterable[Failure]) -> str:
    """Return the name of a rewritten part. It sorts beside the first source part and has a digest of the content.

    So two programs that do the same work write the same part.
    """
    content = [
        [part_folder(commit) for commit in commits],
        [clip.clip_id for clip in clips],
        [[failure.clip_id, *failure.rank] for failure in failures],
    ]
    first = commits[0]["part"].partition("-")[0][:60]
    return f"{first}-{hashlib.sha256(canonical(content)).hexdigest()[:12]}"


def run_record(commits: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Return the ``run`` of a rewritten part: this host, and the hosts and versions of the source parts."""
    hosts, versions = [], []
    for commit in commits:
        run = commit["run"]
        origin = run.get("made_of", {"hosts": [run.get("host")], "versions": [run.get("versions")]})
        hosts += [host for host in origin["hosts"] if host and host not in hosts]
        versions += [entry for entry in origin["versions"] if entry and entry not in versions]
    return {
        "host": socket.gethostname(),
        "seconds": round(seconds, 3),
        "versions": {"amex": version("amex")},
        "made_of": {"parts": [commit["part"] for commit in commits], "hosts": hosts, "versions": versions},
    }
