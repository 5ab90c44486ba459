"""What the columns of a list mean: which one is the video, the caption, the time; and what their cells say."""

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

# The meanings of columns, and the names that published lists give them: of two columns the name that is first counts.
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


def plain(name: str) -> str:
    """The name of a column without what people spell differently: ``Start_timestamp`` is ``starttimestamp``."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def guess_columns(columns: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Which column has which meaning: those given, and the others by their usual names.

    Raises:
        ManifestError: if a column that is given is not there, or there is none for the video, or a start has no end.
    """
    columns = list(columns)
    names = ", ".join(columns)
    listed = f"its columns are {names if len(names) <= 300 else f'{names[:300]}...'}"
    for meaning, column in given.items():
        if meaning not in USUAL:
            raise ManifestError(f"columns cannot mean {meaning!r}; choose from {', '.join(USUAL)}")
        if column not in columns:
            raise ManifestError(f"there is no column {column!r}; {listed}{near(column, columns)}")
    chosen = dict(given)
    by_name = {plain(column): column for column in columns if column not in given.values()}
    for meaning, names in USUAL.items():
        if meaning in chosen or (meaning == "times" and ("start" in chosen or "end" in chosen)):
            continue
        if meaning in ("start", "end") and "times" in given:
            continue
        column = next((by_name[name] for name in names if name in by_name), None)
        if column is not None:
            chosen[meaning] = by_name.pop(plain(column))
    if "video" not in chosen:
        raise ManifestError(f"no column is called as a video usually is: say --columns video=NAME; {listed}")
    if ("start" in chosen) != ("end" in chosen):
        lacking = "end" if "start" in chosen else "start"
        raise ManifestError(f"no column is the {lacking} of a clip: say --columns {lacking}=NAME; {listed}")
    return chosen


def near(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where a name is like a known one, or is another word for it; or nothing."""
    by_name = {plain(each): each for each in known}
    meant = [plain(meaning) for meaning, names in USUAL.items() if plain(name) in names and plain(meaning) in by_name]
    matches = meant or nearest(plain(name), by_name, 1)
    return f"; did you mean {by_name[matches[0]]!r}?" if matches else ""


def seconds(value: Any) -> float | None:
    """The seconds that a cell says, as a number or as ``h:mm:ss.fff``; None for an empty one.

    Raises:
        ValueError: if it says no time at or after the video's beginning.
    """
    if blank(value):
        return None
    if isinstance(value, str):
        text = value.strip().replace(",", ".")  # the decimal point of half the world's spreadsheets
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
        raise ValueError(f"{_shown(value)} is no time: give seconds, or h:mm:ss")
    return number


def several(value: Any) -> list[Any] | None:
    """The items of a cell that is a list, or the text of one as Python or JSON writes it; None for another cell."""
    if isinstance(value, str):
        text = value.strip()
        if not (text.startswith("[") and text.endswith("]")):
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            try:
                with warnings.catch_warnings(action="ignore"):  # of backslashes that escape nothing
                    value = ast.literal_eval(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return None
    return list(value) if isinstance(value, list | tuple) else None


def captions_of(value: Any) -> list[str]:
    """The captions in a cell: one, or a list.

    Raises:
        ValueError: if it is empty, or is no text.
    """
    items = several(value)
    if items is None or not all(isinstance(item, str) for item in items):
        items = [value]  # a text that begins with a bracket, perhaps
    return [caption_of(item) for item in items]


def caption_of(value: Any) -> str:
    """One caption; raises ValueError if it is empty, or is no text."""
    if blank(value):
        raise ValueError("the caption is empty")
    if not isinstance(value, str):
        raise ValueError(f"the caption is no text: {_shown(value)}")
    return value.strip()


def name_of(value: Any, what: str) -> str:
    """An id or a path in a cell, where a number may stand for one; raises ValueError if there is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as tables with gaps keep whole numbers
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if blank(value):
        raise ValueError(f"it names no {what}")
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is no name of a {what}")
    return value.strip()


def split_of(value: Any) -> str:
    """The split in a cell: train, val or test for all that people call them, another one as it is.

    Raises:
        ValueError: if it is no text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is no split")
    return SPLITS.get(value.strip().casefold(), value.strip())


def video_of(text: str) -> tuple[str, str]:
    """The video that a text names, and how it does: ``name``, ``youtube`` or ``url``.

    A YouTube address names the id in it; another address names its file.

    Raises:
        ValueError: if an address names neither.
    """
    youtube = YOUTUBE.match(text)
    if not youtube and "://" not in text:
        return text, "name"
    address = urlsplit(text)
    folders = [unquote(folder) for folder in address.path.split("/") if folder]
    if not youtube:
        if not folders or not address.netloc or "/" in folders[-1] or folders[-1] == "..":
            raise ValueError(f"the address {_shown(text)} names no file")
        return folders[-1], "url"
    for video_id in (*parse_qs(address.query).get("v", ()), *folders[-1:]):
        if YOUTUBE_ID.fullmatch(video_id):
            return video_id, "youtube"
    raise ValueError(f"the address {_shown(text)} names no video of YouTube")


def address_of(text: str) -> str:
    """The address of a video that is named by the file in it, without what varies from call to call; else empty."""
    if YOUTUBE.match(text) or "://" not in text:
        return ""
    return urlsplit(text)._replace(query="", fragment="").geturl()


def intervals(value: Any) -> tuple[Any, Any] | list[tuple[Any, Any]]:
    """What a cell gives as ``[start, end]``, or as a list of such pairs; raises ValueError if it has others."""
    items = several(value)
    nested = bool(items) and all(isinstance(item, list | tuple) for item in items)
    if items is None or not all(len(pair) == 2 for pair in (items if nested else [items])):
        raise ValueError(f"{_shown(value)} is no [start, end] and no list of them")
    return [tuple(pair) for pair in items] if nested else tuple(items)


def blank(value: Any) -> bool:
    """Whether a cell says nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def cut_id(video: str, start: float | None, end: float | None) -> str:
    """The id of a clip that has none: that of its video, with its times where it is cut."""
    return video if end is None else f"{video}_{start}_{end}"


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."
