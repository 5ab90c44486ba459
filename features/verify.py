"""Is every byte of a store the one that was committed? Mending what is not is ``amex extract --repair``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..places import remove
from .reader import Stream
from .schema import folder_of


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A part whose bytes are not what its commit record says, or a folder no commit record speaks of."""

    stream: str
    part: str
    reason: str
    committed: bool = True

    def __str__(self) -> str:
        return f"{self.stream}/{self.part}: {self.reason}"


def verify(stream: Stream) -> Iterator[Damage | None]:
    """Reads every committed byte of a stream; yields a Damage for each bad part, None for each good one.

    Leftovers of interrupted runs come last, with ``committed=False``: they do no harm, and cost disk.
    """
    for part, reason in stream.damaged.items():
        yield Damage(stream=stream.name, part=part, reason=reason)
    for part, commit in stream.commits.items():
        yield next(_damage(stream, part, commit), None)
    for left in leftovers(stream):
        if part_of(left.name) not in stream.damaged:
            reason = "left by an interrupted run (no commit record)"
            yield Damage(stream=stream.name, part=left.name, reason=reason, committed=False)


def leftovers(stream: Stream) -> list[Path]:
    """What lies among the parts and belongs to none."""
    known = {folder_of(commit) for commit in stream.commits.values()} | {"zarr.json"}
    return sorted(path for path in (stream.path / "parts").iterdir() if path.name not in known)


def part_of(name: str) -> str:
    """The part that a folder or a leftover among the parts is of."""
    return name.lstrip(".").partition(".")[0]


def sweep(stream: Stream) -> None:
    """Removes what interrupted or slower writers left of parts that are committed. Safe while other runs write."""
    for left in leftovers(stream):
        if part_of(left.name) in stream.commits:
            remove(left)


def _damage(stream: Stream, part: str, commit: dict) -> Iterator[Damage]:
    folder = stream.path / "parts" / folder_of(commit)
    if commit["fingerprint"] != stream.fingerprint:
        yield Damage(stream=stream.name, part=part, reason="was made under another spec than the stream's")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if extra := sorted(there - commit["files"].keys()):
        yield Damage(stream=stream.name, part=part, reason=f"{extra[0]} was added after the commit")
    for name, expected in commit["files"].items():
        if name not in there:
            yield Damage(stream=stream.name, part=part, reason=f"{name} is missing")
            continue
        with (folder / name).open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if digest != expected["sha256"]:
            yield Damage(stream=stream.name, part=part, reason=f"{name} has changed since it was written")
