"""The content of the page as JSON: clips, captions and boxes of a searcher and its store."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import AmexError
from ...features import is_caption_stream, row_arrays
from ...manifests import Clip

if TYPE_CHECKING:
    from ...features import Store, Stream
    from ...searching import Searching
    from ...train.search import Hit

# Maximum number of frames with boxes per clip, and of boxes per frame.
MOST_FRAMES, MOST_BOXES = 1500, 20
# Boxes disappear if the next frame with boxes is later than this multiple of the usual distance.
PATIENCE = 1.5


class UnknownClip(AmexError):
    """A clip id is unknown."""


class Library:
    """Searches and lists clips. Its methods are thread-safe.

    Args:
        searcher: called by one thread at a time, because models and indices are not thread-safe.
        streams: the result of ``clip_streams`` for the searcher's store.
        no_pictures: a line that says why there are no pictures; empty if there are.
    """

    def __init__(self, searcher: Searching, streams: Mapping[str, Stream], no_pictures: str = "") -> None:
        self._searcher, self._streams, self._no_pictures = searcher, streams, no_pictures
        self._searching = threading.Lock()
        self._clips = {clip.clip_id: clip for clip in searcher.clips}

    def about(self) -> dict[str, Any]:
        """Return what is searched, with which model, and the choices of the filters."""
        return {
            "description": self._searcher.description,
            "clips": self._searcher.coverage.clip_line,
            "streams": list(self._streams),
            "splits": sorted({clip.split for clip in self._clips.values() if clip.split}),
            "captions": any(clip.captions for clip in self._clips.values()),
            "no_pictures": self._no_pictures,
        }

    def clip(self, clip_id: str) -> Clip:
        """Raises UnknownClip."""
        try:
            return self._clips[clip_id]
        except KeyError as error:
            raise UnknownClip("there is no such clip here") from error

    def clips(self, query: str, k: int, *, split: str = "", stream: str = "") -> dict[str, Any]:
        """Return the ``k`` clips that fit a text best; without a text, the first clips of the manifest.

        Args:
            split, stream: only clips of this split, and with features in this stream; empty for all.

        Returns:
            ``hits``; ``more``: whether there are further clips.
        """
        if stream and stream not in self._streams:
            raise AmexError(f"no stream {stream!r}; there is {', '.join(self._streams) or 'none'}")

        def wanted(clip: Clip) -> bool:
            return split in ("", clip.split) and (not stream or clip.clip_id in self._streams[stream])

        hits = self._found(query, k + 1, wanted) if query else self._listed(k + 1, wanted)
        return {"hits": hits[:k], "more": len(hits) > k}

    def captions(self, clip_id: str, k: int) -> dict[str, Any]:
        """Return the ``k`` captions that fit a clip best."""
        self.clip(clip_id)
        with self._searching:
            hits = self._searcher.captions_for(clip_id, k)
        return {"captions": [{"caption": hit.caption, "score": _number(hit.score)} for hit in hits]}

    def boxes(self, clip_id: str, name: str) -> dict[str, Any]:
        """Return the boxes of a clip in a stream of objects.

        Returns:
            ``frames``: each with ``from`` and ``until`` (seconds on the video's clock, in which its boxes are drawn),
            ``size`` (width, height) and ``boxes`` (x0, y0, x1, y1 in pixels of the frame; the label's name, its
            number, the score), the best first.
        """
        self.clip(clip_id)
        if name not in self._streams or not has_boxes(self._streams[name]):
            raise AmexError(f"{name!r} is no stream of objects")
        stream = self._streams[name]
        rows = stream[clip_id]
        if not len(rows):
            return {"frames": []}
        begins = rows.times[:, 0]
        # Objects are found a few times a second: the boxes of a frame stay until those of the next one come.
        usual = float(np.median(np.diff(begins))) if len(begins) > 1 else float(np.ptp(rows.times))
        until = np.minimum(np.append(begins[1:], np.inf), begins + PATIENCE * usual)
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_FRAMES)).round().astype(int))
        frames = []
        for row in chosen.tolist():
            count = int(rows["counts"][row])
            best = np.argsort(-rows["scores"][row, :count].astype(np.float32), kind="stable")[:MOST_BOXES].tolist()
            boxes = [
                {
                    "box": [_number(edge) for edge in rows["boxes"][row, index]],
                    "label": _label(stream.labels, int(rows["labels"][row, index])),
                    "number": int(rows["labels"][row, index]),
                    "score": _number(rows["scores"][row, index]),
                }
                for index in best
            ]
            size = [int(length) for length in rows["frame_size"][row]]
            frames.append({"from": float(begins[row]), "until": float(until[row]), "size": size, "boxes": boxes})
        return {"frames": frames}

    def _found(self, query: str, k: int, wanted: Callable[[Clip], bool]) -> list[dict[str, Any]]:
        """Search, with growing limits, until ``k`` hits pass the filter."""
        limit = k
        while True:
            with self._searching:
                hits = self._searcher.clips_for(query, min(limit, len(self._clips)))
            matches = [hit for hit in hits if wanted(hit.clip)]
            if len(matches) >= k or limit >= len(self._clips):
                return [self._hit(hit) for hit in matches[:k]]
            limit *= 4

    def _listed(self, k: int, wanted: Callable[[Clip], bool]) -> list[dict[str, Any]]:
        clips = []
        for clip in self._clips.values():
            if wanted(clip):
                clips.append(self._record(clip, clip.captions[0] if clip.captions else ""))
            if len(clips) == k:
                break
        return clips

    def _hit(self, hit: Hit) -> dict[str, Any]:
        record = self._record(hit.clip, hit.caption)
        return record | {"rank": hit.rank, "score": _number(hit.score), "weak": hit.weak}

    def _record(self, clip: Clip, caption: str) -> dict[str, Any]:
        """Return the record of a clip. Times are those of the manifest: rows may cover only a few frames."""
        streams = {name: stream for name, stream in self._streams.items() if clip.clip_id in stream}
        return {
            "clip": clip.clip_id,
            "caption": caption,
            "split": clip.split,
            "start": clip.start,
            "end": clip.end,
            "streams": list(streams),
            "boxes": [name for name, stream in streams.items() if has_boxes(stream)],
        }


def clip_streams(store: Store) -> dict[str, Stream]:
    """Return the streams of clips of a store; skip damaged ones."""
    streams = {}
    for name in store:
        with contextlib.suppress(AmexError):
            if not is_caption_stream(store[name].spec):
                streams[name] = store[name]
    return streams


def has_boxes(stream: Stream) -> bool:
    """Return whether a stream has all that is needed to draw boxes."""
    return (
        bool(stream.labels)
        and {"boxes", "scores", "labels", "counts", "frame_size", "times"} <= row_arrays(stream.spec).keys()
    )


def _label(labels: Sequence[str], number: int) -> str:
    """Return the name of a class; its number if an imported stream has no name for it."""
    return labels[number] if 0 <= number < len(labels) else f"class {number}"


def _number(value: Any) -> float | None:
    """Return a number for JSON; None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None
