"""Choose the decoder of a video.

``auto`` uses decord for the videos that it decodes correctly within memory bounds, as measured. PyAV decodes all other
videos and those on which decord fails: equally fast, in a stream, and with reliable reports of damage. If few frames
are needed, PyAV decodes only the groups of pictures around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from ..limits import DECODERS
from .container import Index, header_of, open_video, read_index
from .decord_decoder import decord_frames, decord_rejection
from .frames import TimedFrame
from .nvdec import nvdec_frames, nvdec_missing, nvdec_rejection
from .pyav_decoder import pyav_frames
from .sparse import SparsePlan, needs_most_frames, plan_sparse, sparse_frames


@dataclass(frozen=True, kw_only=True)
class DecodingRequest:
    """A pass over a video.

    Attributes:
        requests: each with ``start``, ``end`` (seconds or None) and ``sampling``.
        longest_frame: maximum seconds that a frame may be shown.
        decoder: a key of limits.DECODERS.
        threads: decoding threads; 0 leaves the number to the library.
    """

    path: str
    requests: Sequence[Any]
    longest_frame: Fraction
    decoder: str = "auto"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class DecoderChoice:
    """The decoder of one pass.

    Attributes:
        decoder: a value in limits.DECODERS.
        why: why the decoders before it were not chosen.
        until: end of the video in seconds; infinity if no request needs it.
        frames: starts the pass. The iterator raises Unreadable at damage. It raises DecoderFailed if the decoder fails;
            then choose the next decoder.
    """

    decoder: str
    why: str
    until: Fraction | float
    frames: Callable[[], Iterator[TimedFrame]]

    @property
    def name(self) -> str:
        """The name in commit records."""
        return f"{self.decoder} ({self.why})" if self.why else self.decoder

    @property
    def final(self) -> bool:
        """Whether no other decoder is left. Errors of this decoder then mean that the video is damaged."""
        return self.decoder == "pyav"


@dataclass(frozen=True)
class _OpenVideo:
    """An open video. Its index and sparse plan are computed when they are first needed."""

    request: DecodingRequest
    container: Any
    stream: Any
    read_log: Callable[[], list[str]]
    heartbeat: Callable[[Fraction | None], None]

    @cached_property
    def index(self) -> Index:
        return read_index(self.request.path, self.container, self.stream, self.read_log, self.heartbeat)

    @cached_property
    def plan(self) -> SparsePlan | None:
        """The plan of a sparse pass; None if it saves too little or the index is not reliable."""
        header = header_of(self.request.path, self.container, self.stream)
        if "index" not in vars(self) and needs_most_frames(header, self.request.requests):
            return None
        index = self.index
        self.heartbeat(None)  # reading the index reached the end of the video; planning starts at its beginning
        return plan_sparse(
            self.container, self.stream, index, self.request.requests, self.request.longest_frame, self.heartbeat
        )

    def rejection(self, decoder: str) -> str | None:
        """Return why a decoder cannot be used for the video: None if it can, empty if the reason is not reported."""
        match decoder:
            case "decord":
                bounded = self.request.decoder == "auto"
                facts = (self.request.path, self.container, self.stream, lambda: self.index, self.request.longest_frame)
                return decord_rejection(*facts, bounded=bounded) or None
            case "nvdec":
                reason = nvdec_missing() or nvdec_rejection(self.container, self.stream)
                return f"nvdec: {reason}" if reason else None
            case "pyav sparse":
                return "" if self.plan is None else None
            case _:
                return None

    def frames(self, decoder: str) -> Callable[[], Iterator[TimedFrame]]:
        """Return a function that starts a pass with a decoder."""
        path, threads, longest_frame = self.request.path, self.request.threads, self.request.longest_frame
        match decoder:
            case "decord":
                index = self.index
                return lambda: decord_frames(path, index, threads)
            case "nvdec":
                return lambda: nvdec_frames(path, longest_frame, self.read_log)
            case "pyav sparse":
                plan, index = self.plan, self.index
                return lambda: sparse_frames(path, plan, index, threads, self.read_log)
            case _:
                return lambda: pyav_frames(path, threads, longest_frame, self.read_log, self.heartbeat)


def choose_decoder(
    request: DecodingRequest,
    failed_decoders: Mapping[str, str],
    read_log: Callable[[], list[str]],
    heartbeat: Callable[[Fraction | None], None],
) -> DecoderChoice:
    """Choose the decoder of a pass. Reads the header, and the packets if they decide; decodes nothing.

    Args:
        failed_decoders: decoders that already failed on this video -> reason.
        read_log: returns the lines that FFmpeg logged since the last call.
        heartbeat: called with the time reached while no frame is returned; with None if it starts from the beginning.

    Raises:
        Unreadable: if the file is not a video.
    """
    container, stream = open_video(request.path)
    with container:
        read_log()  # discards the messages of opening
        video = _OpenVideo(request, container, stream, read_log, heartbeat)
        reasons = []
        for decoder in DECODERS[request.decoder]:
            rejection = (
                failure_text(decoder, failed_decoders[decoder])
                if decoder in failed_decoders
                else video.rejection(decoder)
            )
            if rejection is None:
                counted = any(wanted.sampling.count is not None for wanted in request.requests)
                until = video.index.end if counted else float("inf")
                return DecoderChoice(decoder=decoder, why="; ".join(reasons), until=until, frames=video.frames(decoder))
            reasons += [rejection] if rejection else []
    raise AssertionError("the last decoder has no objections")


def failure_text(decoder: str, reason: str) -> str:
    """Return the reason of a failure, with the decoder's name exactly once."""
    return reason if reason.startswith(decoder) else f"{decoder}: {reason}"
