"""A feeder: a process that turns one video after another into finished windows. Its other end is ``feeders.py``.

Follow a frame in ``Feeder.run``: decoded, taken by the samplers of the requests that want it, transformed once for each
transform, and copied into shared memory with the windows it completes. A process of its own, because native decoders
hang and crash. Imports no torch, so that it starts in a fraction of a second and is small.
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
from .decoders import DecodingRequest, choose
from .frames import BEAT_FRAMES, DecoderFailed, Shown, Unreadable, short_reason
from .memory import Ring
from .requests import SamplingRequest
from .sampling import SampledWindow, Sampler, Sampling, exact
from .transform import Transform, TransformError

# FFmpeg's complaints at this level and above are damage: 34 undamaged camera files cause none.
LOG_LEVEL = av.logging.ERROR
# What scales and converts decoded frames remarks on files that are whole.
REMARKS = ("[in @", "[swscaler @", "[Parsed_")
# Tell the worker at least after so many seconds that decoding moves on.
BEAT_SECONDS = 2.0
# Bytes of a file that are digested at a time.
DIGEST_BYTES = 1 << 20


@dataclass
class Sampled:
    """A request while its video is decoded.

    Attributes:
        index: which of the video's requests.
        frames: transformed frames by key, shared by all requests of one transform.
    """

    index: int
    request: SamplingRequest
    sampler: Sampler
    frames: dict[int, np.ndarray] = field(repr=False)
    windows: int = 0


class Clock:
    """Seconds spent on each of several activities, one at a time."""

    def __init__(self) -> None:
        self.seconds = {"decode": 0.0, "transform": 0.0, "blocked": 0.0}
        self._doing, self._since = "decode", time.perf_counter()

    def now(self, doing: str) -> None:
        """From now on it is this."""
        moment = time.perf_counter()
        self.seconds[self._doing] += moment - self._since
        self._doing, self._since = doing, moment


class Feeder:
    """Answers requests with events, a JSON line each; the pixels of windows lie in the ring.

    ``{"path", "probe": true}`` asks for a video's header: the answer is one event, ``header`` or ``fail``.

    ``{"path", "requests": [[start, end, sampling, transform], ...], ...}`` asks for a pass over a video; the answer is
    a sequence of events (see ``requests.py``), ``end`` or a ``fail`` of no request the last of them. Further fields are
    ``threads``; ``decoder``, and ``without``, those that failed on this video and how; ``longest``, the seconds for
    which a frame may be shown; ``keep``, whether a request that meets damage keeps what came before; and ``digest``,
    whether the file's sha256 is wanted.
    """

    def __init__(self, output: BinaryIO, log: int, ring: Ring) -> None:
        self.output = output
        self.log = log
        self.log_read = 0
        self.ring = ring
        self.clock = Clock()
        self.reached: Fraction | None = None  # how far the video was decoded

    def complaints(self) -> list[str]:
        """What the native libraries have logged since the last call, line by line."""
        size = os.fstat(self.log).st_size
        if size == self.log_read:
            return []
        text = os.pread(self.log, size - self.log_read, self.log_read).decode(errors="replace")
        self.log_read = size
        lines = [line.strip() for line in text.splitlines()]
        return [short_reason(line) for line in lines if line and not line.startswith(REMARKS)]

    def send(self, event: str, **fields: Any) -> None:
        self.output.write(json.dumps({"event": event, **fields}).encode() + b"\n")

    def alive(self, reached: Fraction | None) -> None:
        """Says that work goes on, and how far it is; None: it starts over."""
        self.send("beat", reached=None if reached is None else float(reached))
        self.output.flush()

    def serve(self, message: dict[str, Any]) -> None:
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
        except Exception as error:  # a video that surprises us costs itself, not the process
            where = "" if self.reached is None else f" after {float(self.reached):.3f} s"
            what = f"{type(error).__name__}: {short_reason(error)}"
            self.fail("decode", f"the decoder failed unexpectedly{where} ({what})")

    def fail(self, stage: str, reason: str) -> None:
        self.send("fail", stage=stage, reason=reason)

    def decode(self, message: dict[str, Any]) -> None:
        """One pass over a video, or a further one where a decoder gives up."""
        path = message["path"]
        if message["digest"]:
            self.send("digest", sha256=file_digest(path, self.alive))
            self.output.flush()
        asked = DecodingRequest(
            path=path,
            requests=[parse_request(request) for request in message["requests"]],
            longest=exact(message["longest"]),
            decoder=message["decoder"],
            threads=message["threads"],
        )
        without = dict(message["without"])
        while True:
            choice = choose(asked, without, self.complaints, self.alive)
            self.send("open", decoder=choice.name, retry=None if choice.final else choice.decoder)
            self.output.flush()
            try:
                self.run(choice.frames(), asked, choice.until, final=choice.final, keep=message["keep"])
                return
            except DecoderFailed as error:
                without[choice.decoder] = str(error)
                self.send("restart")

    def run(
        self, frames: Iterator[Shown], asked: DecodingRequest, until: Fraction | float, *, final: bool, keep: bool
    ) -> None:
        """Feeds the sampler of every request from one pass and sends windows and finished requests.

        Args:
            until: when the video ends, where a request asks for so many samples a clip.
            final: whether complaints are the video's damage, and no reason to try another decoder.
            keep: whether a request that meets damage keeps what came before.
        """
        transformed: dict[Transform | None, dict[int, np.ndarray]] = {}
        waiting = []
        for index, request in enumerate(asked.requests):
            sampler = Sampler(request.sampling, request.start, request.end, until)
            waiting.append(Sampled(index, request, sampler, transformed.setdefault(request.transform, {})))
        waiting.sort(key=lambda sampled: sampled.sampler.start, reverse=True)
        active: list[Sampled] = []
        damage: Unreadable | None = None
        count, beat = 0, time.monotonic()
        self.complaints()
        try:
            for key, shown in enumerate(frames):
                count, self.reached = count + shown.decoded, shown.end
                while waiting and (waiting[-1].sampler.start < shown.end or waiting[-1].sampler.start == shown.begin):
                    active.append(waiting.pop())
                made: list[tuple[Sampled, SampledWindow]] = []
                image: np.ndarray | None = None
                for sampled in active.copy():
                    windows = sampled.sampler.push(key, shown.begin, shown.end, last=shown.last)
                    wanted = sampled.sampler.holds(key) or any(key in window.keys for window in windows)
                    if wanted and key not in sampled.frames:
                        if image is None:
                            image = shown.image()
                        if not self.transform(sampled, key, image):
                            active.remove(sampled)
                            continue
                    made += [(sampled, window) for window in windows]
                self.send_windows(made, active)
                for sampled in [each for each in active if each.sampler.end <= shown.end or shown.last]:
                    self.finish(sampled, active)
                self.forget(active, transformed)
                if not active and not waiting:
                    break
                if key % BEAT_FRAMES == 0 or time.monotonic() > beat + BEAT_SECONDS:
                    beat = time.monotonic()
                    self.alive(shown.end)
                    if not final and (lines := self.complaints()):
                        raise DecoderFailed(lines[-1])
        except Unreadable as error:
            damage = error
        if not final and (lines := self.complaints()):
            raise DecoderFailed(lines[-1])
        for sampled in active.copy():  # requests that the damage cuts off
            self.cut_off(sampled, active, damage, asked.path, keep=keep)
        for sampled in waiting:  # requests that begin after the last frame
            if damage is not None:
                self.send("fail", request=sampled.index, stage=damage.stage, reason=str(damage))
                continue
            begins, ends = float(sampled.sampler.start), float(self.reached)
            reason = f"the clip begins at {begins:.3f} s, the video ends at {ends:.3f} s"
            self.send("fail", request=sampled.index, stage="sample", reason=reason)
        self.clock.now("decode")
        seconds = {name: round(value, 6) for name, value in self.clock.seconds.items()}
        self.send("end", frames=count, seconds=seconds)

    def transform(self, sampled: Sampled, key: int, image: np.ndarray) -> bool:
        """Keeps a frame as a request wants it; False if it does not fit, and the request has failed."""
        self.clock.now("transform")
        try:
            transform = sampled.request.transform
            sampled.frames[key] = image if transform is None else transform(image)
        except TransformError as error:
            self.send("fail", request=sampled.index, stage="transform", reason=str(error))
            return False
        finally:
            self.clock.now("decode")
        return True

    def cut_off(
        self, sampled: Sampled, active: list[Sampled], damage: Unreadable | None, path: str, *, keep: bool
    ) -> None:
        """Ends a request at damage: with what it has, or as a failure."""
        windows = sampled.sampler.finish() if keep else []
        if not keep or not sampled.sampler.windows:
            active.remove(sampled)
            self.send("fail", request=sampled.index, stage=damage.stage, reason=str(damage))
            return
        self.send_windows([(sampled, window) for window in windows], active)
        if sampled not in active:
            return
        active.remove(sampled)
        header = read_header(path)
        end = min(float(sampled.sampler.end), header.end if header.stated else float("inf"))
        missing = None if end == float("inf") else round(max(0.0, end - float(self.reached)), 3)
        frames = sampled.sampler.frames
        self.send("done", request=sampled.index, frames=frames, missing=missing, damage=str(damage))

    def finish(self, sampled: Sampled, active: list[Sampled]) -> None:
        self.send_windows([(sampled, window) for window in sampled.sampler.finish()], active)
        if sampled in active:
            active.remove(sampled)
            self.send("done", request=sampled.index, frames=sampled.sampler.frames)

    def send_windows(self, windows: list[tuple[Sampled, SampledWindow]], active: list[Sampled]) -> None:
        """Copies windows into shared memory and tells of them."""
        for sampled, window in windows:
            if sampled not in active:
                continue
            frames = [sampled.frames[key] for key in window.keys]
            shapes = list(dict.fromkeys(frame.shape for frame in frames))
            if len(shapes) > 1:
                sizes = ", then ".join(f"{width}x{height}" for height, width, _ in shapes)
                active.remove(sampled)
                reason = f"the size of the frames changes within a window: {sizes}"
                self.send("fail", request=sampled.index, stage="transform", reason=reason)
                continue
            self.output.flush()  # what was sent before must be read to make room
            self.clock.now("blocked")
            pixels, offset, until = self.ring.reserve((len(frames), *shapes[0]), frames[0].dtype)
            self.clock.now("transform")
            np.stack(frames, out=pixels)
            self.clock.now("decode")
            self.send(
                "window",
                request=sampled.index,
                index=sampled.windows,
                start=window.start,
                end=window.end,
                place=[self.ring.size, offset, pixels.shape, pixels.dtype.str],
                until=until,
            )
            sampled.windows += 1
        if windows:
            self.output.flush()

    @staticmethod
    def forget(active: list[Sampled], transformed: dict[Transform | None, dict[int, np.ndarray]]) -> None:
        """Drops the frames that no later window uses."""
        for transform, frames in transformed.items():
            if not frames:
                continue
            held = [
                sampled.sampler.oldest
                for sampled in active
                if sampled.request.transform == transform and sampled.sampler.oldest is not None
            ]
            oldest = min(held, default=None)
            for key in [key for key in frames if oldest is None or key < oldest]:
                del frames[key]


def parse_request(record: list[Any]) -> SamplingRequest:
    """A request as it comes from JSON, which has no tuples."""
    start, end, sampling, transform = record
    if transform is not None:
        pairs = {name: tuple(value) if isinstance(value, list) else value for name, value in transform.items()}
        transform = Transform(**pairs)
    return SamplingRequest(start, end, Sampling(**sampling), transform)


def file_digest(path: str | os.PathLike[str], alive: Callable[[None], None] = lambda reached: None) -> str | None:
    """sha256 of a file; None if it cannot be read, or is a pipe, which would wait for ever.

    Args:
        alive: called now and then while reading goes on: a large file takes longer than a decoder may be silent.
    """
    with contextlib.suppress(OSError):
        if os.path.isfile(path):
            digest, beat = hashlib.sha256(), time.monotonic()
            with open(path, "rb", buffering=0) as handle:
                while block := handle.read(DIGEST_BYTES):
                    digest.update(block)
                    if time.monotonic() > beat + BEAT_SECONDS:
                        beat = time.monotonic()
                        alive(None)
            return digest.hexdigest()
    return None


def listen(messages: BinaryIO, ring: Ring, handle: Callable[[dict[str, Any]], None]) -> None:
    """Hands each request to ``handle`` on this thread; ends the process at once when the pipe closes.

    The reading is on a thread of its own, so a decoder that never returns still dies with the process that asked, and
    room in the ring is made while a request is answered.
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
    """Serves requests from standard input; events go to standard output, logs to standard error (a file).

    The command's argument is the descriptor of the shared memory.
    """
    output = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)  # nothing a library prints may end up among the events
    av.logging.restore_default_callback()  # to standard error, from any thread, without the interpreter
    av.logging.set_libav_level(LOG_LEVEL)
    ring = Ring(int(sys.argv[1]))
    feeder = Feeder(output, log=2, ring=ring)

    def handle(message: dict[str, Any]) -> None:
        feeder.serve(message)
        output.flush()

    try:
        listen(sys.stdin.buffer, ring, handle)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
