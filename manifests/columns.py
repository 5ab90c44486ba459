"""Interpret the columns of a list: find the columns of videos, captions and times, and parse their cells."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ..errors import nearest
from .clip import ManifestError

# The meanings of columns and their usual names in published lists. If two columns match, the first name wins.
USUAL: Mapping[str, tuple[str, ...]] = {
    "video": (
        *("video", "videoid", "vid", "youtubeid", "ytid", "videopath", "videofile", "videoname", "path", "filepath"),
        *("file", "filename", "url", "videourl", "contenturl", "youtubeurl", "link", "youtube", "id"),
    ),
    "caption": (
        *("caption", "captions", "text", "texts", "sentence", "sentences", "description", "desc", "query", "name"),
        *("title", "narration"),
    ),
    "start": (
        *("start", "starttime", "starttimestamp", "startsec", "startseconds", "begin", "begintime", "starts"),
        *("tstart", "from"),
    ),
    "end": (*("end", "endtime", "endtimestamp", "endsec", "endseconds", "stop", "stoptime", "ends", "tend", "to"),),
    "times": ("times", "timestamp", "timestamps", "segment", "segments", "window", "interval"),
    "split": ("split", "subset", "fold", "partition", "set"),
    "clip_id": ("clipid", "segmentid"),
}
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLITS |= {"test": "test", "testing": "test"}

CLOCK = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:\.\d*)?)")
THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+")
YOUTUBE = re.compile(r"(?:https?://)?(?:[a-z]+\.)?(?:youtube(?:-nocookie)?\.com|youtu\.be)/", re.IGNORECASE)
YOUTUBE_ID = re.compile(r"[\w-]{11}")


def normalize_name(name: str) -> str:
    """Return a column name in lower case and without punctuation: ``Start_timestamp`` becomes ``starttimestamp``."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def guess_columns(columns: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Return meaning -> column: the given columns, and others by their usual names.

    Args:
        columns: the columns of the list.
        given: meaning -> column, chosen by the user.

    Raises:
        ManifestError: if a given column does not exist, or no column is the video, or a start has no end.
    """
    columns = list(columns)
    names = ", ".join(columns)
    listed = f"its columns are {names if len(names) <= 300 else f'{names[:300]}...'}"
    for meaning, column in given.items():
        if meaning not in USUAL:
            raise ManifestError(f"unknown meaning {meaning!r} of a column; choose from {', '.join(USUAL)}")
        if column not in columns:
            raise ManifestError(f"there is no column {column!r}; {listed}{column_hint(column, columns)}")
    chosen = dict(given)
    by_name = {normalize_name(column): column for column in columns if column not in given.values()}
    for meaning, names in USUAL.items():
        if meaning in chosen or (meaning == "times" and ("start" in chosen or "end" in chosen)):
            continue
        if meaning in ("start", "end") and "times" in given:
            continue
        column = next((by_name[name] for name in names if name in by_name), None)
        if column is not None:
            chosen[meaning] = by_name.pop(normalize_name(column))
    if "video" not in chosen:
        raise ManifestError(f"no column has a usual name for the video: use --columns video=NAME; {listed}")
    if ("start" in chosen) != ("end" in chosen):
        missing = "end" if "start" in chosen else "start"
        raise ManifestError(f"no column is the {missing} of a clip: use --columns {missing}=NAME; {listed}")
    return chosen


def column_hint(name: str, choices: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` if a choice is similar to ``name`` or has the same meaning; otherwise ``""``."""
    by_name = {normalize_name(choice): choice for choice in choices}
    same_meaning = [
        normalize_name(meaning)
        for meaning, names in USUAL.items()
        if normalize_name(name) in names and normalize_name(meaning) in by_name
    ]
    matches = same_meaning or nearest(normalize_name(name), by_name, 1)
    return f"; did you mean {by_name[matches[0]]!r}?" if matches else ""


def parse_seconds(value: Any) -> float | None:
    """Return the seconds in a cell, a number or ``h:mm:ss.fff``; None for an empty cell.

    Raises:
        ValueError: if the cell is not a time, or negative.
    """
    if is_blank(value):
        return None
    if isinstance(value, str):
        text = value.strip().replace(",", ".")  # many spreadsheets use a decimal comma
        if clock := CLOCK.fullmatch(text):
            hours, minutes, rest = clock.groups()
            return int(hours or 0) * 3600 + int(minutes) * 60 + float(rest)
        if THOUSANDS.fullmatch(value.strip()):
            raise ValueError(f"{_shown(value)} may be thousands or a fraction: write seconds without a comma")
        try:
            number = float(text) if "_" not in text else math.nan
        except ValueError:
            number = math.nan
    else:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{_shown(value)} is not a time: give seconds, or h:mm:ss")
    return number


def parse_list(value: Any) -> list[Any] | None:
    """Return the items of a cell that is a list, or a list as JSON or Python text; None for other cells."""
    if isinstance(value, str):
        text = value.strip()
        if not (text.startswith("[") and text.endswith("]")):
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            try:
                with warnings.catch_warnings(action="ignore"):  # about invalid escapes
                    value = ast.literal_eval(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return None
    return list(value) if isinstance(value, list | tuple) else None


def parse_captions(value: Any) -> list[str]:
    """Return the captions in a cell: one, or a list.

    Raises:
        ValueError: if a caption is empty or not a text.
    """
    items = parse_list(value)
    if items is None or not all(isinstance(item, str) for item in items):
        items = [value]  # possibly a text that begins with a bracket
    return [parse_caption(item) for item in items]


def parse_caption(value: Any) -> str:
    """Return a caption. Raises ValueError if it is empty or not a text."""
    if is_blank(value):
        raise ValueError("the caption is empty")
    if not isinstance(value, str):
        raise ValueError(f"the caption is not a text: {_shown(value)}")
    return value.strip()


def parse_name(value: Any, what: str) -> str:
    """Return the id or path in a cell. A whole number counts as an id. Raises ValueError if there is none.

    Args:
        what: what the cell names, for the error message.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # tables with gaps store whole numbers as floats
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if is_blank(value):
        raise ValueError(f"the {what} is empty")
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is not the name of a {what}")
    return value.strip()


def parse_split(value: Any) -> str:
    """Return the split in a cell: train, val or test for their usual names; other names unchanged.

    Raises:
        ValueError: if the cell is not a text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is not a split")
    return SPLITS.get(value.strip().casefold(), value.strip())


def parse_video(text: str) -> tuple[str, str]:
    """Return the video in a text, and the kind of the text: ``name``, ``youtube`` or ``url``.

    The video is the id in a YouTube address, or the file name in another address.

    Raises:
        ValueError: if an address has neither.
    """
    youtube = YOUTUBE.match(text)
    if not youtube and "://" not in text:
        return text, "name"
    address = urlsplit(text)
    folders = [unquote(folder) for folder in address.path.split("/") if folder]
    if not youtube:
        if not folders or not address.netloc or "/" in folders[-1] or folders[-1] == "..":
            raise ValueError(f"the address {_shown(text)} has no file name")
        return folders[-1], "url"
    for video_id in (*parse_qs(address.query).get("v", ()), *folders[-1:]):
        if YOUTUBE_ID.fullmatch(video_id):
            return video_id, "youtube"
    raise ValueError(f"the address {_shown(text)} has no YouTube id")


def video_address(text: str) -> str:
    """Return an address without query and fragment; empty for a name or a YouTube address."""
    if YOUTUBE.match(text) or "://" not in text:
        return ""
    return urlsplit(text)._replace(query="", fragment="").geturl()


def parse_intervals(value: Any) -> tuple[Any, Any] | list[tuple[Any, Any]]:
    """Return ``(start, end)`` from a cell, or a list of such pairs. Raises ValueError for other cells."""
    items = parse_list(value)
    nested = bool(items) and all(isinstance(item, list | tuple) for item in items)
    if items is None or not all(len(pair) == 2 for pair in (items if nested else [items])):
        raise ValueError(f"{_shown(value)} is neither [start, end] nor a list of such pairs")
    return [tuple(pair) for pair in items] if nested else tuple(items)


def is_blank(value: Any) -> bool:
    """Return whether a cell is empty."""
    return value is None or (isinstance(value, str) and not value.strip())


def default_clip_id(video: str, start: float | None, end: float | None) -> str:
    """Return the id for a clip without one: the video, and the times if the clip is a part of it."""
    return video if end is None else f"{video}_{start}_{end}"


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."
