"""A feeder: a process that decodes videos into windows. ``feeders.py`` is the other end, in the worker.

Follow a frame in ``Feeder.run``: it is decoded, selected by the samplers of the requests, transformed once per
transform, and copied to shared memory with the windows that it completes. Decoding has its own process, because native
decoders hang and crash. The process does not import torch, so that it starts fast and stays small.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np

from .container import read_header
from .decoders import DecodingRequest, choose_decoder
from .frames import HEARTBEAT_FRAMES, DecoderFailed, TimedFrame, Unreadable, short_reason
from .memory import Ring
from .requests import SamplingRequest
from .sampling import SampledWindow, Sampler, Sampling, exact
from .transform import Transform, TransformError

# FFmpeg messages of this level or above mean damage. 34 undamaged camera files caused none.
LOG_LEVEL = av.logging.ERROR
# Prefixes of messages from scalers and filters, which also appear for undamaged files.
REMARKS = ("[in @", "[swscaler @", "[Parsed_")
# Maximum seconds between heartbeats to the worker.
HEARTBEAT_SECONDS = 2.0
# Bytes of a file that are read and digested at a time.
DIGEST_BYTES = 1 << 20


@dataclass
class ActiveRequest:
    """A request while its video is decoded.

    Attributes:
        index: number of the request in its video.
        frames: key -> transformed frame. Requests with the same transform share this dictionary.
        windows: number of windows sent so far.
    """

    index: int
    request: SamplingRequest
    sampler: Sampler
    frames: dict[int, np.ndarray] = field(repr=False)
    windows: int = 0


class Clock:
    """Measures the seconds spent on each activity. One activity is current at any time."""

    def __init__(self) -> None:
        self.seconds = {"decode": 0.0, "transform": 0.0, "blocked": 0.0}
        self._activity, self._since = "decode", time.perf_counter()

    def switch(self, activity: str) -> None:
        """Start another activity."""
        now = time.perf_counter()
        self.seconds[self._activity] += now - self._since
        self._activity, self._since = activity, now


class Feeder:
    """Answers messages with events, one JSON line each. The pixels of windows are in the ring.

    ``{"path", "probe": true}`` asks for a video's header. The answer is one event, ``header`` or ``fail``.

    ``{"path", "requests": [[start, end, sampling, transform], ...], ...}`` asks for a pass over a video. The answer is
    a sequence of events (see ``requests.py``). The last one is ``end``, or a ``fail`` without a request. More fields:
    ``threads``; ``decoder``; ``failed_decoders``, the decoders that failed on this video -> reason; ``longest_frame``,
    the maximum seconds that a frame may be shown; ``keep_damaged``, whether a request keeps its windows before damage;
    ``digest``, whether to compute the sha256 of the file.
    """

    def __init__(self, output: BinaryIO, log: int, ring: Ring) -> None:
        self.output = output
        self.log = log
        self.log_read = 0
        self.ring = ring
        self.clock = Clock()
        self.reached: Fraction | None = None  # end of the last decoded frame, in seconds

    def read_log(self) -> list[str]:
        """Return the lines that native libraries logged since the last call."""
        size = os.fstat(self.log).st_size
        if size == self.log_read:
            return []
        text = os.pread(self.log, size - self.log_read, self.log_read).decode(errors="replace")
        self.log_read = size
        lines = [line.strip() for line in text.splitlines()]
        return [short_reason(line) for line in lines if line and not line.startswith(REMARKS)]

    def send(self, event: str, **fields: Any) -> None:
        """Write an event to the pipe."""
        self.output.write(json.dumps({"event": event, **fields}).encode() + b"\n")

    def heartbeat(self, reached: Fraction | None) -> None:
        """Report that work continues and the time reached in the video; None: it starts from the beginning."""
        self.send("beat", reached=None if reached is None else float(reached))
        self.output.flush()

    def answer(self, message: dict[str, Any]) -> None:
        """Answer one message. Any error fails only its video."""
        self.reached = None
        self.clock = Clock()
        try:
            if message.get("probe"):
                self.send("header", **vars(read_header(message["path"])))
            else:
                self.decode(message)
        except Unreadable as error:
            self.fail(error.stage, str(error))
        except BrokenPipeError:
            raise
        except Exception as error:  # reported as the failure of this video; the process continues with the next one
            position = "" if self.reached is None else f" after {float(self.reached):.3f} s"
            reason = f"{type(error).__name__}: {short_reason(error)}"
            self.fail("decode", f"the decoder failed unexpectedly{position} ({reason})")

    def fail(self, stage: str, reason: str) -> None:
        """Report that the whole video failed."""
        self.send("fail", stage=stage, reason=reason)

    def decode(self, message: dict[str, Any]) -> None:
        """Decode a video in one pass. If a decoder fails, start again with the next decoder."""
        path = message["path"]
        if message["digest"]:
            self.send("digest", sha256=file_digest(path, self.heartbeat))
            self.output.flush()
        request = DecodingRequest(
            path=path,
            requests=[parse_request(record) for record in message["requests"]],
            longest_frame=exact(message["longest_frame"]),
            decoder=message["decoder"],
            threads=message["threads"],
        )
        failed_decoders = dict(message["failed_decoders"])
        while True:
            choice = choose_decoder(request, failed_decoders, self.read_log, self.heartbeat)
            self.send("open", decoder=choice.name, retry=None if choice.final else choice.decoder)
            self.output.flush()
            try:
                self.run(
                    choice.frames(), request, choice.until, final=choice.final, keep_damaged=message["keep_damaged"]
                )
                return
            except DecoderFailed as error:
                failed_decoders[choice.decoder] = str(error)
                self.send("restart")

    def run(
        self,
        frames: Iterator[TimedFrame],
        decoding: DecodingRequest,
        until: Fraction | float,
        *,
        final: bool,
        keep_damaged: bool,
    ) -> None:
        """Pass the frames to the samplers of all requests; send the windows and the results of the requests.

        Args:
            until: end of the video in seconds, for requests with a ``count`` of samples.
            final: whether no other decoder is left. If so, logged errors mean that the video is damaged.
            keep_damaged: whether a request keeps its windows before damage.

        Raises:
            DecoderFailed: if the decoder failed and another one is left.
        """
        transformed: dict[Transform | None, dict[int, np.ndarray]] = {}
        waiting = []
        for index, request in enumerate(decoding.requests):
            sampler = Sampler(request.sampling, request.start, request.end, until)
            waiting.append(ActiveRequest(index, request, sampler, transformed.setdefault(request.transform, {})))
        waiting.sort(key=lambda item: item.sampler.start, reverse=True)
        active: list[ActiveRequest] = []
        damage: Unreadable | None = None
        count, beat = 0, time.monotonic()
        self.read_log()
        try:
            for key, frame in enumerate(frames):
                count, self.reached = count + frame.decoded, frame.end
                while waiting and (waiting[-1].sampler.start < frame.end or waiting[-1].sampler.start == frame.begin):
                    active.append(waiting.pop())
                complete: list[tuple[ActiveRequest, SampledWindow]] = []
                image: np.ndarray | None = None
                for item in active.copy():
                    windows = item.sampler.push(key, frame.begin, frame.end, last=frame.last)
                    needed = item.sampler.holds(key) or any(key in window.keys for window in windows)
                    if needed and key not in item.frames:
                        if image is None:
                            image = frame.image()
                        if not self.transform(item, key, image):
                            active.remove(item)
                            continue
                    complete += [(item, window) for window in windows]
                self.send_windows(complete, active)
                for item in [item for item in active if item.sampler.end <= frame.end or frame.last]:
                    self.finish(item, active)
                self.drop_frames(active, transformed)
                if not active and not waiting:
                    break
                if key % HEARTBEAT_FRAMES == 0 or time.monotonic() > beat + HEARTBEAT_SECONDS:
                    beat = time.monotonic()
                    self.heartbeat(frame.end)
                    if not final and (lines := self.read_log()):
                        raise DecoderFailed(lines[-1])
        except Unreadable as error:
            damage = error
        if not final and (lines := self.read_log()):
            raise DecoderFailed(lines[-1])
        for item in active.copy():  # requests that the damage cuts off
            self.cut_off(item, active, damage, decoding.path, keep_damaged=keep_damaged)
        for item in waiting:  # requests that begin after the last frame
            if damage is not None:
                self.send("fail", request=item.index, stage=damage.stage, reason=str(damage))
                continue
            begin, end = float(item.sampler.start), float(self.reached)
            reason = f"the clip begins at {begin:.3f} s, the video ends at {end:.3f} s"
            self.send("fail", request=item.index, stage="sample", reason=reason)
        self.clock.switch("decode")
        seconds = {name: round(value, 6) for name, value in self.clock.seconds.items()}
        self.send("end", frames=count, seconds=seconds)

    def transform(self, item: ActiveRequest, key: int, image: np.ndarray) -> bool:
        """Transform and store a frame of a request. If that is not possible, fail the request and return False."""
        self.clock.switch("transform")
        try:
            transform = item.request.transform
            item.frames[key] = image if transform is None else transform(image)
        except TransformError as error:
            self.send("fail", request=item.index, stage="transform", reason=str(error))
            return False
        finally:
            self.clock.switch("decode")
        return True

    def cut_off(
        self,
        item: ActiveRequest,
        active: list[ActiveRequest],
        damage: Unreadable | None,
        path: str,
        *,
        keep_damaged: bool,
    ) -> None:
        """End a request at damage: send the windows before it if ``keep_damaged``, else fail the request."""
        windows = item.sampler.finish() if keep_damaged else []
        if not keep_damaged or not item.sampler.windows:
            active.remove(item)
            self.send("fail", request=item.index, stage=damage.stage, reason=str(damage))
            return
        self.send_windows([(item, window) for window in windows], active)
        if item not in active:
            return
        active.remove(item)
        header = read_header(path)
        end = min(float(item.sampler.end), header.end if header.stated else float("inf"))
        missing = None if end == float("inf") else round(max(0.0, end - float(self.reached)), 3)
        frames = item.sampler.frames
        self.send("done", request=item.index, frames=frames, missing=missing, damage=str(damage))

    def finish(self, item: ActiveRequest, active: list[ActiveRequest]) -> None:
        """Send the last windows of a request and report that it is done."""
        self.send_windows([(item, window) for window in item.sampler.finish()], active)
        if item in active:
            active.remove(item)
            self.send("done", request=item.index, frames=item.sampler.frames)

    def send_windows(self, windows: list[tuple[ActiveRequest, SampledWindow]], active: list[ActiveRequest]) -> None:
        """Copy windows to shared memory and report them."""
        for item, window in windows:
            if item not in active:
                continue
            frames = [item.frames[key] for key in window.keys]
            shapes = list(dict.fromkeys(frame.shape for frame in frames))
            if len(shapes) > 1:
                sizes = ", then ".join(f"{width}x{height}" for height, width, _ in shapes)
                active.remove(item)
                reason = f"the size of the frames changes within a window: {sizes}"
                self.send("fail", request=item.index, stage="transform", reason=reason)
                continue
            self.output.flush()  # the worker must read the earlier windows to free space in the ring
            self.clock.switch("blocked")
            pixels, offset, until = self.ring.reserve((len(frames), *shapes[0]), frames[0].dtype)
            self.clock.switch("transform")
            np.stack(frames, out=pixels)
            self.clock.switch("decode")
            self.send(
                "window",
                request=item.index,
                index=item.windows,
                start=window.start,
                end=window.end,
                place=[self.ring.size, offset, pixels.shape, pixels.dtype.str],
                until=until,
            )
            item.windows += 1
        if windows:
            self.output.flush()

    @staticmethod
    def drop_frames(active: list[ActiveRequest], transformed: dict[Transform | None, dict[int, np.ndarray]]) -> None:
        """Delete the frames that no later window uses."""
        for transform, frames in transformed.items():
            if not frames:
                continue
            needed = [
                item.sampler.oldest
                for item in active
                if item.request.transform == transform and item.sampler.oldest is not None
            ]
            oldest = min(needed, default=None)
            for key in [key for key in frames if oldest is None or key < oldest]:
                del frames[key]


def parse_request(record: list[Any]) -> SamplingRequest:
    """Build a request from its JSON record. JSON turns tuples into lists."""
    start, end, sampling, transform = record
    if transform is not None:
        pairs = {name: tuple(value) if isinstance(value, list) else value for name, value in transform.items()}
        transform = Transform(**pairs)
    return SamplingRequest(start, end, Sampling(**sampling), transform)


def file_digest(path: str | os.PathLike[str], heartbeat: Callable[[None], None] = lambda reached: None) -> str | None:
    """Return the sha256 of a file; None if it cannot be read or is not a regular file.

    Args:
        heartbeat: called regularly while a large file is read.
    """
    with contextlib.suppress(OSError):
        if os.path.isfile(path):
            digest, beat = hashlib.sha256(), time.monotonic()
            with open(path, "rb", buffering=0) as handle:
                while block := handle.read(DIGEST_BYTES):
                    digest.update(block)
                    if time.monotonic() > beat + HEARTBEAT_SECONDS:
                        beat = time.monotonic()
                        heartbeat(None)
            return digest.hexdigest()
    return None


def listen(messages: BinaryIO, ring: Ring, handle: Callable[[dict[str, Any]], None]) -> None:
    """Call ``handle`` with each request on this thread; end the process when the pipe closes.

    A second thread reads the pipe. Therefore the process ends with its worker even if a decoder hangs, and the ring
    gets free space while a request is answered.
    """
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in messages:
            message = json.loads(line)
            if "release" in message:
                ring.release(message["release"])
            else:
                requests.put(message)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        handle(requests.get())


def main() -> None:
    """Answer requests from standard input. Events go to standard output, logs to standard error (a file).

    The argument of the command is the descriptor of the shared memory.
    """
    output = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)  # keeps the prints of libraries out of the events
    av.logging.restore_default_callback()  # logs to standard error from any thread, without the interpreter
    av.logging.set_libav_level(LOG_LEVEL)
    ring = Ring(int(sys.argv[1]))
    feeder = Feeder(output, log=2, ring=ring)

    def handle(message: dict[str, Any]) -> None:
        feeder.answer(message)
        output.flush()

    try:
        listen(sys.stdin.buffer, ring, handle)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
