"""Which decoder serves a video, and its frames.

``auto`` asks decord for what it was measured to serve right and within bounds. What it is not asked for, or fails on,
PyAV serves: as fast, streaming, and with an honest report of damage; where few frames are needed, only around those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from ..limits import DECODERS
from .container import Index, header_of, open_video, read_index
from .decord_decoder import decord_frames, decord_objection
from .frames import Shown
from .nvdec import nvdec_frames, nvdec_missing, nvdec_objection
from .pyav_decoder import pyav_frames
from .sparse import SparsePlan, is_hopeless, plan_sparse, sparse_frames


@dataclass(frozen=True, kw_only=True)
class DecodingRequest:
    """A pass over a video.

    Attributes:
        requests: what is wanted of it, each with ``start``, ``end`` (seconds or None) and ``sampling``.
        longest: for so many seconds at most a frame may be shown.
        decoder: a key of limits.DECODERS.
        threads: decoding threads; 0 leaves the number to the library.
    """

    path: str
    requests: Sequence[Any]
    longest: Fraction
    decoder: str = "auto"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The decoder of one pass.

    Attributes:
        decoder: one of those in limits.DECODERS.
        why: what spoke against the decoders before it.
        until: when the video ends, in seconds; infinity where no request needs to know.
        frames: starts the pass. The iterator raises Unreadable at damage, or DecoderFailed: then choose again.
    """

    decoder: str
    why: str
    until: Fraction | float
    frames: Callable[[], Iterator[Shown]]

    @property
    def name(self) -> str:
        """As commits record it."""
        return f"{self.decoder} ({self.why})" if self.why else self.decoder

    @property
    def final(self) -> bool:
        """Whether no other decoder is left to try: its complaints and failures are the video's."""
        return self.decoder == "pyav"


@dataclass(frozen=True)
class _OpenVideo:
    """An open video, and what is read of it when it is first asked for."""

    request: DecodingRequest
    container: Any
    stream: Any
    complaints: Callable[[], list[str]]
    alive: Callable[[Fraction | None], None]

    @cached_property
    def index(self) -> Index:
        return read_index(self.request.path, self.container, self.stream, self.complaints, self.alive)

    @cached_property
    def plan(self) -> SparsePlan | None:
        """Of a sparse pass; None where it does not pay or cannot be trusted."""
        header = header_of(self.request.path, self.container, self.stream)
        if "index" not in vars(self) and is_hopeless(header, self.request.requests):
            return None
        index = self.index
        self.alive(None)  # reading it was at the end of the video; the plan begins again
        return plan_sparse(self.container, self.stream, index, self.request.requests, self.request.longest, self.alive)

    def objection(self, decoder: str) -> str | None:
        """Why a decoder may not serve the video; empty for a reason that is not worth telling, None if it may."""
        match decoder:
            case "decord":
                bounded = self.request.decoder == "auto"
                facts = (self.request.path, self.container, self.stream, lambda: self.index, self.request.longest)
                return decord_objection(*facts, bounded=bounded) or None
            case "nvdec":
                reason = nvdec_missing() or nvdec_objection(self.container, self.stream)
                return f"nvdec: {reason}" if reason else None
            case "pyav sparse":
                return "" if self.plan is None else None
            case _:
                return None

    def frames(self, decoder: str) -> Callable[[], Iterator[Shown]]:
        path, threads, longest = self.request.path, self.request.threads, self.request.longest
        match decoder:
            case "decord":
                index = self.index
                return lambda: decord_frames(path, index, threads)
            case "nvdec":
                return lambda: nvdec_frames(path, longest, self.complaints)
            case "pyav sparse":
                plan, index = self.plan, self.index
                return lambda: sparse_frames(path, plan, index, threads, self.complaints)
            case _:
                return lambda: pyav_frames(path, threads, longest, self.complaints, self.alive)


def choose(
    request: DecodingRequest,
    without: Mapping[str, str],
    complaints: Callable[[], list[str]],
    alive: Callable[[Fraction | None], None],
) -> Choice:
    """The decoder of a pass: reads headers, and packets where these decide; decodes nothing. Raises Unreadable.

    Args:
        without: the decoders that failed on this video already, and why.
        complaints: what FFmpeg has logged since the last call.
        alive: told how far reading or decoding is while no frame comes; None: it starts over.
    """
    container, stream = open_video(request.path)
    with container:
        complaints()  # those of opening
        video = _OpenVideo(request, container, stream, complaints, alive)
        reasons = []
        for decoder in DECODERS[request.decoder]:
            objection = failure(decoder, without[decoder]) if decoder in without else video.objection(decoder)
            if objection is None:
                counted = any(wanted.sampling.count is not None for wanted in request.requests)
                until = video.index.end if counted else float("inf")
                return Choice(decoder=decoder, why="; ".join(reasons), until=until, frames=video.frames(decoder))
            reasons += [objection] if objection else []
    raise AssertionError("the last decoder has no objections")


def failure(decoder: str, reason: str) -> str:
    """A decoder and how it failed, its name said once."""
    return reason if reason.startswith(decoder) else f"{decoder}: {reason}"
