"""Is every byte of a store the one that was committed? Mending what is not is ``amex extract --repair``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from .reader import Stream


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
    known = stream.commits.keys() | stream.damaged.keys()
    for folder in sorted((stream.path / "parts").iterdir()):
        if folder.is_dir() and folder.name not in known:
            reason = "left by an interrupted run (no commit record)"
            yield Damage(stream=stream.name, part=folder.name, reason=reason, committed=False)


def _damage(stream: Stream, part: str, commit: dict) -> Iterator[Damage]:
    folder = stream.path / "parts" / part
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
