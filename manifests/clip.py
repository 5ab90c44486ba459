"""The clip record and its file format: one JSON object a line."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import AmexError, check_text, printable
from ..foreign import parse_json, uncollected
from ..storage import write_whole

# No clip begins or ends further from the beginning of its video, in seconds: thirty years.
MOST_SECONDS = 1e9


class ManifestError(AmexError):
    """A manifest or an annotation file cannot be used as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A stretch of one video, with what is said about it.

    Attributes:
        clip_id: unique within a manifest.
        video: a path below the videos folder, with or without its extension, or an id that is a file name there.
        start: seconds on the video's own clock, or None for the video's beginning.
        end: seconds, exclusive, or None for the video's end.
        split: ``train``, ``val``, ``test``, or ``""`` where there is none.
        captions: what the clip shows, each in one sentence.
        extras: whatever else a data set knows of the clip, as JSON has it: boxes, labels, links to other clips.

    Raises:
        ValueError: if a field has the wrong type, a text cannot be stored, or ``end <= start``.
    """

    clip_id: str
    video: str
    start: float | None = None
    end: float | None = None
    split: str = ""
    captions: tuple[str, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("clip_id", "video"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} must be a non-empty string, got {value!r}")
        if not isinstance(self.split, str):
            raise ValueError(f"split must be a string, got {self.split!r}")
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not abs(value) <= MOST_SECONDS:  # nor is NaN
                raise ValueError(
                    f"{name} must be a finite number of seconds, a billion at most, or null, got {value!r}"
                )
        if self.end is not None and self.end <= (self.start or 0.0):
            raise ValueError(f"a clip must end after it starts: [{self.start}, {self.end})")
        if not isinstance(self.captions, list | tuple) or not all(isinstance(text, str) for text in self.captions):
            raise ValueError("captions must be a list of strings")
        if not isinstance(self.extras, Mapping):
            raise ValueError(f"extras must be a JSON object, got {self.extras!r}")
        object.__setattr__(self, "captions", tuple(self.captions))
        object.__setattr__(self, "split", sys.intern(self.split))  # one object for a million clips
        for name, text in (("clip_id", self.clip_id), ("video", self.video), ("split", self.split)):
            check_text(name, text)
        for caption in self.captions:
            check_text("a caption", caption)
        if self.extras:
            check_text("extras", json.dumps(dict(self.extras), ensure_ascii=False))

    @classmethod
    def from_json(cls, record: Any) -> Clip:
        """The clip of one parsed manifest line; raises ValueError that says what is wrong with it."""
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, got {type(record).__name__}")
        if not record.keys() <= FIELDS:
            unknown = min(record.keys() - FIELDS)
            raise ValueError(f"unknown field {unknown!r}; known are {', '.join(sorted(FIELDS))}")
        if missing := [name for name in ("clip_id", "video") if name not in record]:
            raise ValueError(f"field {missing[0]!r} is missing")
        return cls(**record)


FIELDS = frozenset(each.name for each in dataclasses.fields(Clip))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not a usable clip: a line of a manifest, or a file of a folder of videos.

    Attributes:
        file: its name, or the file's path below the folder; printable.
        line: None for a whole file.
        reason: one printable line.
    """

    file: str
    line: int | None = None
    reason: str

    def __post_init__(self) -> None:
        for name in ("file", "reason"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    @property
    def place(self) -> str:
        """``FILE:LINE``, or the file."""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def scan_manifest(path: str | os.PathLike[str]) -> Iterator[Clip | Problem]:
    """Yields a Clip or a Problem for each line that is not blank, in file order, so that one bad line costs one clip.

    A repeated ``clip_id`` is a Problem at its second place.

    Raises:
        ManifestError: if the file cannot be read at all.
    """
    path = Path(path)
    first_line: dict[str, int] = {}
    try:
        handle = path.open("rb")
    except OSError as error:
        raise ManifestError(
            f"cannot read the manifest {path}: {error.strerror}. Make one with: amex manifest build"
        ) from error
    with handle:
        for number, raw in enumerate(handle, start=1):
            if not raw.strip():
                continue
            try:
                clip = Clip.from_json(parse_json(raw))
            except (ValueError, TypeError) as error:  # json and unicode errors are ValueErrors
                yield Problem(file=path.name, line=number, reason=f"not a clip: {error}")
                continue
            if clip.clip_id in first_line:
                reason = f"duplicate clip_id {clip.clip_id!r}, first on line {first_line[clip.clip_id]}"
                yield Problem(file=path.name, line=number, reason=reason)
                continue
            first_line[clip.clip_id] = number
            yield clip


def read_manifest(path: str | os.PathLike[str]) -> list[Clip]:
    """All clips of a manifest.

    Raises:
        ManifestError: naming the file and the line of the first problem.
    """
    clips: list[Clip] = []
    with uncollected():
        for item in scan_manifest(path):
            if isinstance(item, Problem):
                raise ManifestError(f"{Path(path).parent / str(item)}")
            clips.append(item)
    return clips


def write_manifest(clips: Iterable[Clip], path: str | os.PathLike[str]) -> int:
    """Writes clips as JSON lines, whole or not at all, and returns how many.

    Raises:
        ManifestError: if two clips share a ``clip_id``, or the file cannot be written.
    """
    path = Path(path)
    seen: set[str] = set()
    with write_whole(path, ManifestError) as handle:
        for clip in clips:
            if clip.clip_id in seen:
                raise ManifestError(f"duplicate clip_id {clip.clip_id!r}: every clip needs its own")
            seen.add(clip.clip_id)
            handle.write(json_line(clip))
    return len(seen)


def json_line(clip: Clip) -> str:
    """The line of a clip in a manifest, with its end."""
    record = {name: getattr(clip, name) for name in Clip.__slots__}
    return json.dumps(record, ensure_ascii=False, default=dict) + "\n"
