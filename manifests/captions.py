"""Read captions files: JSON lines with clips and, optionally, the rows of an array of features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..foreign import read_json_lines, reading
from .clip import Clip, ManifestError


@dataclass(frozen=True)
class Captions:
    """The clips of a captions file.

    Attributes:
        clips: in the order of the lines, or of the rows if the file has rows.
        rows: clip ids by row number; None if the file has no rows.
    """

    clips: list[Clip]
    rows: Mapping[int, str] | None


def read_captions(path: Path) -> Captions:
    """Read lines with ``video`` or ``clip_id``, and optionally ``caption`` or ``captions``, ``split`` and ``row``.

    Raises:
        ManifestError: naming the line, if it is not a clip, if it repeats a clip or a row, or if only some lines have a
            row.
    """
    places: dict[str, str] = {}
    rows: dict[int, Clip] = {}
    clips: list[Clip] = []
    for where, record in read_json_lines(path, ManifestError):
        with reading(where, ManifestError, "is not a clip with its captions"):
            clip, row = _clip(record), record.get("row")
            if clip.clip_id in places:
                raise ManifestError(f"{where}: duplicate clip {clip.clip_id!r}, first at {places[clip.clip_id]}")
            places[clip.clip_id] = where
            if "row" in record and (type(row) is not int or row < 0):
                raise ManifestError(f"{where}: row {row!r} is not a row number; rows are counted from 0")
            if row in rows:
                raise ManifestError(f"{where}: duplicate row {row}, first at {places[rows[row].clip_id]}")
            if clips and ("row" in record) != bool(rows):
                raise ManifestError(f"{where}: either every line must have a row, or none")
            clips.append(clip)
            if "row" in record:
                rows[row] = clip
    if not clips:
        raise ManifestError(f"{path} has no clips")
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
