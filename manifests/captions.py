"""Captions as data sets come with them: JSON lines that name clips, and perhaps the rows of an array of features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..foreign import read_json_lines, reading
from .clip import Clip, ManifestError


@dataclass(frozen=True)
class Captions:
    """The clips of a file of captions.

    Attributes:
        clips: in the order of their lines, or of their rows.
        rows: clip ids by row, if the lines say which row each is.
    """

    clips: list[Clip]
    rows: Mapping[int, str] | None


def read_captions(path: Path) -> Captions:
    """Reads ``video`` or ``clip_id``, and if they are there ``caption`` or ``captions``, ``split`` and ``row``.

    Raises:
        ManifestError: naming the line that is no clip, repeats a clip or a row, or that alone has a row or has none.
    """
    places: dict[str, str] = {}
    rows: dict[int, Clip] = {}
    clips: list[Clip] = []
    for where, record in read_json_lines(path, ManifestError):
        with reading(where, ManifestError, "is not a clip with its captions"):
            clip, row = _clip(record), record.get("row")
            if clip.clip_id in places:
                raise ManifestError(
                    f"{where}: clip {clip.clip_id!r} is named a second time, first at {places[clip.clip_id]}"
                )
            places[clip.clip_id] = where
            if "row" in record and (type(row) is not int or row < 0):
                raise ManifestError(f"{where}: row {row!r} is not the number of a row, which are counted from 0")
            if row in rows:
                raise ManifestError(f"{where}: row {row} is named a second time, first at {places[rows[row].clip_id]}")
            if clips and ("row" in record) != bool(rows):
                raise ManifestError(f"{where}: every line must say its row, or none")
            clips.append(clip)
            if "row" in record:
                rows[row] = clip
    if not clips:
        raise ManifestError(f"{path} names no clips")
    if not rows:
        return Captions(clips, None)
    ordered = dict(sorted(rows.items()))
    return Captions(list(ordered.values()), {row: clip.clip_id for row, clip in ordered.items()})


def _clip(record: Mapping[str, Any]) -> Clip:
    clip_id = record.get("clip_id", record.get("video"))
    captions = record.get("captions", record.get("caption", ()))
    if not isinstance(captions, (str, list, tuple)):
        raise ValueError(f"captions must be a text or a list of texts, got {captions!r}")
    return Clip(
        clip_id=clip_id,
        video=record.get("video", clip_id),
        split=record.get("split") or "",
        captions=(captions,) if isinstance(captions, str) else tuple(captions),
    )
