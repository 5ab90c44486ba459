"""Data sets for moment retrieval: a clip is a full video, its captions are queries, and each query has time windows.

The extras of such a clip have lists with one item per caption. ``moments`` has the windows of each query, ``[start,
end]`` in seconds, empty if they are not published. Other lists have other annotations, for example ``query_ids``.
``duration`` is the duration of the video in seconds, if the annotations have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .clip import Clip, ManifestError, Problem


@dataclass(frozen=True, kw_only=True)
class Query:
    """A sentence, and the windows of the video that it describes.

    Attributes:
        text: the sentence.
        windows: ``[start, end]`` in seconds.
        file: the annotation file, for problems.
        line: line in the file; None if the file does not have one query per line.
        duration: duration of the video in seconds; None if the file does not have it.
        extras: other annotations by name; all queries of a data set have the same names.
    """

    video: str
    text: str
    windows: Sequence[Any]
    file: str
    line: int | None = None
    duration: float | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


def clips_of_queries(queries: Iterable[Query], split: str) -> Iterator[Clip | Problem]:
    """Yield a Problem for each unusable query, then a clip for each video, in the order of their first queries.

    Windows are clipped to the video, as in 2D-TAN. A query is unusable if it has no words, or if one of its windows
    ends before it begins or is outside of the video.
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
    for video, queries_of_video in usable.items():
        first = queries_of_video[0][0]
        extras: dict[str, Any] = {"moments": [moments for _, moments in queries_of_video]}
        extras |= {name: [query.extras[name] for query, _ in queries_of_video] for name in first.extras}
        if first.duration is not None:
            extras["duration"] = first.duration
        captions = tuple(query.text for query, _ in queries_of_video)
        yield Clip(clip_id=video, video=video, split=split, captions=captions, extras=extras)


def _moments(query: Query) -> list[list[float]]:
    """Return the windows of a query, clipped to the video.

    Numbers are checked here, because JSON files can have NaN, and lists instead of numbers.

    Raises:
        ValueError: if the query is unusable. The message continues a sentence that begins with the query.
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
            raise ValueError(f"is outside of its video, which is {length:.2f} s long: [{start}, {end}]")
        moments.append([max(start, 0.0), min(end, length)])
    return moments


@dataclass(frozen=True, kw_only=True)
class MomentQuery:
    """A query of a clip, from the extras of the clip.

    Attributes:
        caption: the text.
        windows: ``[start, end]`` in seconds on the video's own clock; empty if they are not published.
        saliency: ``clips``, the numbers of 2-s clips, and ``scores`` of each; None if not published.
        query_id: the id in the data set; None if there is none.
    """

    caption: str
    windows: Sequence[Sequence[float]]
    saliency: Mapping[str, Any] | None
    query_id: Any = None


def queries_of(clip: Clip) -> list[MomentQuery]:
    """Return the queries of a clip, in the order of its captions; none if its extras have no ``moments``.

    Raises:
        ManifestError: naming the clip, if its extras do not fit its captions.
    """
    if "moments" not in clip.extras:
        return []
    lists = {}
    for name in ("moments", "saliency", "query_ids"):
        values = clip.extras.get(name, [None] * len(clip.captions))
        if not isinstance(values, list) or len(values) != len(clip.captions):
            raise ManifestError(f"clip {clip.clip_id!r}: extras[{name!r}] is not a list with one item per caption")
        lists[name] = values
    queries = []
    for caption, windows, saliency, query_id in zip(clip.captions, *lists.values(), strict=True):
        query = Query(video=clip.video, text=caption or "-", windows=windows, file="")
        try:
            moments = _moments(query)
        except (TypeError, ValueError) as error:
            raise ManifestError(
                f"clip {clip.clip_id!r}: the moments of query {caption!r} are wrong: {error}"
            ) from error
        queries.append(MomentQuery(caption=caption, windows=moments, saliency=saliency, query_id=query_id))
    return queries
