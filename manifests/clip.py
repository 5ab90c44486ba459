"""The clip, and the manifest file: one JSON object per line."""

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
from ..storage import write_atomic

# Maximal start or end of a clip, in seconds: thirty years.
MOST_SECONDS = 1e9


class ManifestError(AmexError):
    """A manifest or an annotation file cannot be used as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A part of a video, or a full video, with its captions.

    Attributes:
        clip_id: unique within a manifest.
        video: path below the videos folder, with or without extension, or an id: a file name without extension.
        start: seconds on the video's own clock; None for the beginning of the video.
        end: seconds, exclusive; None for the end of the video.
        split: ``train``, ``val``, ``test``, or ``""`` for none.
        captions: sentences that describe the clip.
        extras: other annotations of the clip as JSON values: boxes, labels, links to other clips.

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
        """Return the clip of a parsed manifest line. Raises ValueError with the reason if it is invalid."""
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
    """A line of a manifest, or a file in a folder of videos, that is not a usable clip.

    Attributes:
        file: name of the manifest, or path of the file below the folder; printable.
        line: line number; None if the problem concerns the file.
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
    """Yield a Clip or a Problem for each line that is not blank, in file order. A bad line does not affect other lines.

    A line that repeats a ``clip_id`` is a Problem.

    Raises:
        ManifestError: if the file cannot be read.
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
    """Return all clips of a manifest.

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
    """Write clips as JSON lines, atomically. Return the number of clips.

    Raises:
        ManifestError: if two clips share a ``clip_id``, or the file cannot be written.
    """
    path = Path(path)
    ids: set[str] = set()
    with write_atomic(path, ManifestError) as handle:
        for clip in clips:
            if clip.clip_id in ids:
                raise ManifestError(f"duplicate clip_id {clip.clip_id!r}: clip ids must be unique")
            ids.add(clip.clip_id)
            handle.write(json_line(clip))
    return len(ids)


def json_line(clip: Clip) -> str:
    """Return the manifest line of a clip, with the line break."""
    record = {name: getattr(clip, name) for name in Clip.__slots__}
    return json.dumps(record, ensure_ascii=False, default=dict) + "\n"
