"""Data sets of moments: a clip is a whole video, its captions are queries, and each query has windows of the video.

Extras of such a clip have lists aligned with its captions. ``moments`` has every window of a query, ``[start, end]``
in seconds, none where they are not published; other lists have what else a data set knows of a query, such as its
``query_ids``. ``duration`` is the video's, in seconds, where the annotations tell it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .clip import Clip, ManifestError, Problem


@dataclass(frozen=True, kw_only=True)
class Query:
    """A sentence, and the windows of its video that it describes.

    Attributes:
        windows: ``[start, end]`` in seconds.
        file: where it was read, for a Problem.
        line: of that file; None where its lines are no queries.
        duration: of the video, in seconds; None where the file does not tell it.
        extras: names to values, the same names for every query of a data set.
    """

    video: str
    text: str
    windows: Sequence[Any]
    file: str
    line: int | None = None
    duration: float | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


def clips_of_queries(queries: Iterable[Query], split: str) -> Iterator[Clip | Problem]:
    """A clip of each video, in the order in which videos first occur, and a Problem for each query that is unusable.

    A window that ends after its video, or begins before it, is cut to the video, as 2D-TAN does. A query is unusable
    if it has no words, or if one of its windows ends before it begins or lies outside of the video.
    """
    usable: dict[str, list[tuple[Query, list[list[float]]]]] = {}
    for query in queries:
        try:
            moments = _moments(query)
        except ValueError as error:
            reason = f"query {query.text!r} of video {query.video!r} {error}"
            yield Problem(file=query.file, line=query.line, reason=reason)
            continue
        usable.setdefault(query.video, []).append((query, moments))
    for video, found in usable.items():
        extras: dict[str, Any] = {"moments": [moments for _, moments in found]}
        extras |= {name: [query.extras[name] for query, _ in found] for name in found[0][0].extras}
        if (duration := found[0][0].duration) is not None:
            extras["duration"] = duration
        captions = tuple(query.text for query, _ in found)
        yield Clip(clip_id=video, video=video, split=split, captions=captions, extras=extras)


def _moments(query: Query) -> list[list[float]]:
    """The parts of a query's windows that lie in its video; raises ValueError, whose text is a predicate of the query.

    Numbers are checked here and not where files are read: JSON has NaN, and lists where numbers should be.
    """
    if not isinstance(query.text, str) or not query.text.strip():
        raise ValueError("has no words")
    length = math.inf if query.duration is None else query.duration
    if not length > 0:
        raise ValueError(f"is of a video that is {length} s long")
    moments = []
    for window in query.windows:
        try:
            start, end = map(float, window)
        except (TypeError, ValueError):
            raise ValueError(f"needs a start and an end, not {window!r}") from None
        if not end > start or not math.isfinite(end - start):
            raise ValueError(f"does not end after it begins: [{start}, {end}]")
        if end <= 0 or start >= length:
            raise ValueError(f"lies outside of its video, which is {length:.2f} s long: [{start}, {end}]")
        moments.append([max(start, 0.0), min(end, length)])
    return moments


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A query of a clip, as the clip's extras describe it.

    Attributes:
        caption: its text.
        windows: ``[start, end]`` in seconds on the video's own clock; empty where they are not published.
        saliency: the numbers of ``clips`` of 2 s and the ``scores`` of each; None where there are none.
        query_id: by which its data set knows it; None where it has none.
    """

    caption: str
    windows: Sequence[Sequence[float]]
    saliency: Mapping[str, Any] | None
    query_id: Any = None


def queries_of(clip: Clip) -> list[Asked]:
    """The queries of a clip, in the order of its captions; none if its extras have no ``moments``.

    Raises:
        ManifestError: naming the clip, if what its extras say of moments does not fit its captions.
    """
    if "moments" not in clip.extras:
        return []
    lists = {}
    for name in ("moments", "saliency", "query_ids"):
        values = clip.extras.get(name, [None] * len(clip.captions))
        if not isinstance(values, list) or len(values) != len(clip.captions):
            raise ManifestError(f"clip {clip.clip_id!r}: extras[{name!r}] is no list of one entry for each caption")
        lists[name] = values
    asked = []
    for caption, windows, saliency, query_id in zip(clip.captions, *lists.values(), strict=True):
        query = Query(video=clip.video, text=caption or "-", windows=windows, file="")
        try:
            moments = _moments(query)
        except (TypeError, ValueError) as error:
            raise ManifestError(
                f"clip {clip.clip_id!r}: the moments of query {caption!r} are wrong: {error}"
            ) from error
        asked.append(Asked(caption=caption, windows=moments, saliency=saliency, query_id=query_id))
    return asked
