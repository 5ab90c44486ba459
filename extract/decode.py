"""Decoding one video, forwards, once: frames with their true presentation times, from decord or from PyAV.

Runs in a process of its own (``python -m amex.extract.decode``), because native decoders hang and crash; the other end
is ``decoder.py``. Imports no torch, so that it starts in a fraction of a second and is small.

decord is the default. It is asked to serve only what it was measured to serve right and within bounds: it decodes a
whole file ahead of its reader (3.9 GB and growing after 9 s of a 900-frame 1080p file whose first frames alone were
read), returns duplicates for frames it could not decode, and knows nothing of edit lists. What it is not asked for,
or fails on, PyAV serves: as fast, streaming, and with an honest report of damage.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import av
import av.error
import numpy as np

from .sampling import Sampler, Sampling

# decord serves a file of at most so many bytes, and a video of at most so many bytes of decoded frames: its memory is
# the sum of the two.
DECORD_FILE_BYTES = 64 << 20
DECORD_FRAME_BYTES = 512 << 20
# Codecs whose damage decord reports. It returns broken MPEG-4 part 2 and MPEG-2 frames without a word.
DECORD_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1"})
# What FFmpeg's Matroska reader says when it loses its way. Its name may be missing: decoding threads write in between.
MATROSKA_LOST = re.compile(r"matroska|EBML|master element|File ended prematurely")
# Containers that store no presentation times, only an order: the i-th frame shown has the i-th decoding time.
WITHOUT_PTS = frozenset({"avi"})
# Tell the other end at least every so many frames that decoding moves on.
BEAT_FRAMES = 16
BEAT_PACKETS = 4096

HEADER = struct.Struct("<II")  # lengths of the JSON text and of the bytes after it


class Unreadable(Exception):
    """A video cannot be decoded, or no further. ``stage`` is ``open`` or ``decode``."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage


class DecordFailed(Exception):
    """decord gave up or complained; PyAV has to start over."""


@dataclass(frozen=True)
class Shown:
    """A decoded frame and when it is shown: [begin, end) seconds on the video's own clock."""

    begin: float
    end: float
    image: Callable[[], np.ndarray]  # (height, width, 3) uint8 RGB, upright
    last: bool


@dataclass
class Choice:
    """Which decoder serves a video. ``why`` says what speaks against decord; ``times`` are all frames' intervals."""

    why: str = ""
    times: list[tuple[float, float]] = field(default_factory=list)


def open_video(path: str) -> tuple[Any, Any]:
    """A PyAV container and its video stream; raises Unreadable."""
    try:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise Unreadable("open", "the file is empty")
        container = av.open(path)
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise Unreadable("open", f"not a video file ({_reason(error)})") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise Unreadable("open", _reason(error)) from error
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:  # a song's cover
        kinds = sorted({other.type for other in container.streams if other is not stream})
        raise Unreadable("open", f"no video in this file, only {', '.join(kinds) or 'a header'}")
    return container, stream


def choose(path: str, complaints: Callable[[], list[str]]) -> Choice:
    """Whether decord may serve ``path``: reads headers and packets, decodes nothing. Raises Unreadable."""
    container, stream = open_video(path)
    with container:
        complaints()  # those of opening
        codec = stream.codec_context.codec.canonical_name
        if os.path.getsize(path) > DECORD_FILE_BYTES:
            return Choice(f"file over {DECORD_FILE_BYTES >> 20} MiB")
        if codec not in DECORD_CODECS:
            return Choice(f"codec {codec}")
        if container.format.name in WITHOUT_PTS:
            return Choice("no presentation times in the container")
        packets = []
        try:
            for packet in container.demux(stream):
                if packet.size:
                    if packet.pts is None or packet.is_discard or packet.is_corrupt:
                        return Choice("edit list or incomplete packets")
                    packets.append((packet.pts, packet.duration or 0, packet.is_keyframe))
        except (av.error.FFmpegError, ValueError) as error:
            return Choice(f"damaged container ({_reason(error)})")
        if complaints():
            return Choice("damaged container")
        if not packets or packets[0][0] != min(packets)[0] or not packets[0][2]:
            return Choice("frames before the first keyframe")
        if stream.frames > len(packets):
            return Choice("fewer packets than announced")
        ordered = sorted(packets)
        pts = [packet[0] for packet in ordered]
        if any(a >= b for a, b in itertools.pairwise(pts)):
            return Choice("repeated presentation times")
        if stream.codec_context.width * stream.codec_context.height * 3 * len(pts) > DECORD_FRAME_BYTES:
            return Choice(f"over {DECORD_FRAME_BYTES >> 20} MiB decoded")
        base = stream.time_base
        final = pts[-1] + (ordered[-1][1] or _typical_gap(pts))
        edges = [float(value * base) for value in [*pts, final]]
        return Choice(times=list(itertools.pairwise(edges)))


def decord_frames(path: str, times: list[tuple[float, float]], threads: int) -> Iterator[Shown]:
    """Frames from decord, read one after the other, paired in order with the presentation times of the packets."""
    import decord

    try:
        # Above zero and below one frame: decord then raises where it would return a duplicate instead.
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=threads, fault_tol=0.5 / len(times))
        if len(reader) != len(times):
            raise DecordFailed(f"decord counts {len(reader)} frames, the container holds {len(times)}")
        for index, (begin, end) in enumerate(times):
            yield Shown(begin, end, reader.next().asnumpy, index == len(times) - 1)
    except (decord.DECORDError, RuntimeError, StopIteration) as error:
        raise DecordFailed(_reason(error)) from error


def pyav_frames(path: str, threads: int, complaints: Callable[[], list[str]]) -> Iterator[Shown]:
    """Frames from PyAV in a stream; raises Unreadable at the first sign of damage, after all frames before it."""
    complaints()  # those of others; of its own, those of opening count too
    container, stream = open_video(path)
    with container:
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        held: tuple[float, float, Any] | None = None  # a frame's end is the next one's beginning
        for begin, duration, frame in _pyav_timed(container, stream, complaints):
            if held is not None:
                if begin < held[0]:
                    raise Unreadable("decode", f"presentation times run backwards at {begin:.3f} s")
                yield Shown(held[0], begin, _imager(held[2]), False)
            held = (begin, duration, frame)
        if held is None:
            raise Unreadable("decode", "the video stream has no frames")
        yield Shown(held[0], held[0] + held[1], _imager(held[2]), True)


def video_end(path: str, alive: Callable[[], None]) -> float:
    """When the last frame ceases to be shown, from the packets, in seconds. Calls ``alive`` now and then."""
    container, stream = open_video(path)
    end = 0
    with container, contextlib.suppress(av.error.FFmpegError, ValueError):  # what is damaged shows when it is decoded
        for number, packet in enumerate(container.demux(stream)):
            if number % BEAT_PACKETS == 0:
                alive()
            ticks = packet.dts if container.format.name in WITHOUT_PTS else packet.pts
            if packet.size and ticks is not None and not packet.is_discard:
                end = max(end, ticks + (packet.duration or 0))
    return float(end * stream.time_base)


def _pyav_timed(container: Any, stream: Any, complaints: Callable[[], list[str]]) -> Iterator[tuple[float, float, Any]]:
    """(begin, duration, frame) of every presented frame."""
    matroska = container.format.name == "matroska,webm"
    base = float(stream.time_base)
    rate = stream.average_rate or stream.guessed_rate
    fallback = float(1 / rate) if rate else 0.0
    decoding_times: list[int] = []
    packets = frames = 0
    begin = 0.0
    try:
        for packet in container.demux(stream):
            packets += packet.dts is not None
            if packet.is_corrupt:
                raise Unreadable("decode", f"damaged or truncated: an incomplete packet after {begin:.3f} s")
            if container.format.name in WITHOUT_PTS and packet.size and packet.dts is not None:
                decoding_times.append(packet.dts)
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise Unreadable("decode", f"damaged: a broken frame after {begin:.3f} s")
                ticks = decoding_times[frames] if decoding_times else frame.pts
                if ticks is None:
                    raise Unreadable("decode", f"a frame without a presentation time after {begin:.3f} s")
                frames += 1
                begin = ticks * base
                yield begin, (frame.duration or 0) * base or fallback, frame
            # Matroska skips what it cannot read and goes on; only its log tells.
            if matroska and (lost := [line for line in complaints() if MATROSKA_LOST.search(line)]):
                raise Unreadable("decode", f"damaged or truncated after {begin:.3f} s: {lost[0]}")
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise Unreadable("decode", f"damaged after {begin:.3f} s ({_reason(error)})") from error
    if packets < stream.frames:
        raise Unreadable("decode", f"truncated after {begin:.3f} s: {packets} of {stream.frames} frames are there")


def _imager(frame: Any) -> Callable[[], np.ndarray]:
    def image() -> np.ndarray:
        pixels = frame.to_ndarray(format="rgb24")
        # PyAV gives the rotation tag in degrees counter-clockwise, as rot90 counts; decord has applied it already.
        return np.rot90(pixels, round(frame.rotation / 90) % 4) if frame.rotation else pixels

    return image


def _typical_gap(pts: list[int]) -> int:
    return round((pts[-1] - pts[0]) / (len(pts) - 1)) if len(pts) > 1 else 1


def _reason(error: BaseException | str) -> str:
    """An error or a log line in a few words, the same in every run: no clock times, addresses or places."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(
        r"\[\d\d:\d\d:\d\d\] |\S+\.cc:\d+: | @ 0x[0-9a-f]+|\[/[^\]]*\]|Stack trace.*", "", text, flags=re.DOTALL
    )
    return " ".join(text.split())[:120]


class Server:
    """Answers decoding requests on a pipe.

    A request is a JSON line ``{"path", "tracks": [[start, end, sampling], ...], "threads", "decord": bool}``. A track
    is one way of sampling one stretch; the answer is a sequence of events (see ``decoder.py``), ``end`` or ``fail``
    the last of them.
    """

    def __init__(self, output: BinaryIO, log: int) -> None:
        self.output = output
        self.log = log
        self.log_read = 0

    def complaints(self) -> list[str]:
        """What the native libraries have logged since the last call, line by line."""
        size = os.fstat(self.log).st_size
        text = os.pread(self.log, size - self.log_read, self.log_read).decode(errors="replace")
        self.log_read = size
        return [_reason(line) for line in text.splitlines() if line.strip()]

    def send(self, event: str, payload: bytes | memoryview = b"", **fields: Any) -> None:
        text = json.dumps({"event": event, **fields}).encode()
        self.output.write(HEADER.pack(len(text), len(payload)))
        self.output.write(text)
        self.output.write(payload)

    def alive(self) -> None:
        """Says that work goes on."""
        self.send("beat")
        self.output.flush()

    def serve(self, request: dict[str, Any]) -> None:
        path, threads = request["path"], request["threads"]
        try:
            choice = choose(path, self.complaints) if request["decord"] else Choice("decord hung or died")
            if not choice.why:
                try:
                    self.send("open", decoder="decord")
                    until = choice.times[-1][1]
                    self.run(decord_frames(path, choice.times, threads), request["tracks"], until, decord=True)
                    return
                except DecordFailed as error:
                    choice.why = f"decord: {error}"
                    self.send("restart")
            self.send("open", decoder=f"pyav ({choice.why})")
            counted = any(sampling.get("count") for _, _, sampling in request["tracks"])
            until = video_end(path, self.alive) if counted else float("inf")
            self.run(pyav_frames(path, threads, self.complaints), request["tracks"], until, decord=False)
        except Unreadable as error:
            self.send("fail", stage=error.stage, reason=str(error))
        except BrokenPipeError:
            raise
        except Exception as error:  # a video that surprises us costs itself, not the process
            self.send("fail", stage="decode", reason=f"{type(error).__name__}: {_reason(error)}")

    def run(self, frames: Iterator[Shown], tracks: list[Any], until: float, *, decord: bool) -> None:
        """Feeds every track's sampler from one pass and sends frames, windows and finished tracks.

        Args:
            until: when the video ends, where a track asks for so many samples a clip.
            decord: whether frames are decord's, whose complaints are a reason to start over.
        """
        samplers = [Sampler(Sampling(**sampling), start, end, until) for start, end, sampling in tracks]
        waiting = sorted(
            ((sampler, index) for index, sampler in enumerate(samplers)),
            key=lambda pair: pair[0].start,
            reverse=True,
        )
        active: list[tuple[Sampler, int]] = []
        key, shown_until = -1, 0.0
        self.complaints()
        for key, shown in enumerate(frames):
            shown_until = shown.end
            while waiting and waiting[-1][0].start <= shown.begin:
                active.append(waiting.pop())
            windows, users = [], []
            for sampler, index in active:
                made = sampler.push(key, shown.begin, shown.end, last=shown.last)
                windows += [(index, window) for window in made]
                if sampler.holds(key) or any(key in window.keys for window in made):
                    users.append(index)
            if users:
                image = np.ascontiguousarray(shown.image())
                self.send("frame", image.data.cast("B"), key=key, users=users, shape=image.shape)
            self._send_windows(windows, active)
            for pair in [pair for pair in active if pair[0].end <= shown.end or shown.last]:
                active.remove(pair)
                self._finish(*pair, active)
            if not active and not waiting:
                break
            if key % BEAT_FRAMES == 0:
                self.alive()
                if decord and (said := self.complaints()):
                    raise DecordFailed(said[-1])
        if decord and (said := self.complaints()):
            raise DecordFailed(said[-1])
        for sampler, index in waiting:  # tracks that begin after the last frame
            if sampler.start < shown_until:
                self._finish(sampler, index, active)
            else:
                reason = f"the clip begins at {sampler.start:.3f} s, the video ends at {shown_until:.3f} s"
                self.send("fail", track=index, stage="sample", reason=reason)
        self.send("end", frames=key + 1)

    def _finish(self, sampler: Sampler, index: int, active: list[tuple[Sampler, int]]) -> None:
        self._send_windows([(index, window) for window in sampler.finish()], active)
        self.send("done", track=index, frames=sampler.frames)

    def _send_windows(self, windows: list[tuple[int, Any]], active: list[tuple[Sampler, int]]) -> None:
        if not windows:
            return
        held = [sampler.oldest for sampler, _ in active if sampler.oldest is not None]
        for number, (index, window) in enumerate(windows):
            fields = {"track": index, "keys": window.keys, "start": window.start, "end": window.end}
            if number == len(windows) - 1:  # frames before this key are needed no more
                fields["oldest"] = min(held) if held else window.keys[-1] + 1
            self.send("window", **fields)


def die_with_parent(requests: BinaryIO, handle: Callable[[bytes], None]) -> None:
    """Hands each request line to ``handle`` on this thread; ends the process at once when the pipe closes.

    The reading is on a thread of its own, so a decoder that never returns still dies with the process that asked.
    """
    import queue

    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for line in requests:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        handle(lines.get())


def main() -> None:
    """Serves requests from standard input; events go to standard output, logs to standard error (a file)."""
    output = os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    os.dup2(2, 1)  # nothing a library prints may end up among the events
    av.logging.restore_default_callback()  # to standard error, from any thread, without the interpreter
    server = Server(output, log=2)

    def handle(line: bytes) -> None:
        server.serve(json.loads(line))
        output.flush()

    try:
        die_with_parent(sys.stdin.buffer, handle)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
