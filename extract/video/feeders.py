"""The worker's end of its feeders: send them videos, convert their lines to events, and kill them after a deadline."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..limits import DEADLINE, LONGEST_FRAME
from .container import Header
from .frames import Unreadable
from .memory import RING_BYTES, RingReader, new_memory
from .requests import Digest, Done, End, Event, Failed, Opened, Restart, SamplingRequest, Video, Window

# decord reads this on import: how often it may ask for a frame that its threads have not finished. A low value fails
# undamaged files on a busy machine (256 failed 10 of 27). The deadline ends real hangs.
ENVIRONMENT = {"DECORD_EOF_RETRY_MAX": "131072"}
# The command of a feeder. The descriptor of the shared memory is appended.
COMMAND = (sys.executable, "-m", "amex.extract.video.feeder")
# Seconds between checks of the clock while the feeders are silent.
CHECK_INTERVAL = 1.0
# Seconds between checks for the next video while it is not available yet.
VIDEO_INTERVAL = 0.02
# Maximum bytes read from a feeder's pipe at once.
READ_BYTES = 1 << 16


class FeederDied(Exception):
    """A feeder hung or died. The message tells how."""


class Feeders:
    """A pool of processes that decode videos.

    A process starts with its first video and is restarted after it dies. If it hangs or dies, only its video fails.

    Args:
        count: number of processes.
        deadline: seconds without an event, or without a later frame, after which a process is killed.
        threads: decoding threads per process; 0 leaves the number to the library.
        longest_frame: maximum seconds that a frame may be shown; a longer frame counts as damage.
        keep_damaged: keep the windows of a request that come before damage.
        digest: also compute the sha256 of each file.
        decoder: a key of ``limits.DECODERS``.

    Attributes:
        advanced: when a feeder last made progress, on the monotonic clock.
    """

    def __init__(
        self,
        count: int = 1,
        *,
        deadline: float = DEADLINE,
        threads: int = 0,
        longest_frame: float = LONGEST_FRAME,
        keep_damaged: bool = False,
        digest: bool = False,
        decoder: str = "auto",
    ) -> None:
        self.count = count
        self.deadline = deadline
        self.threads = threads
        self.longest_frame = longest_frame
        self.keep_damaged = keep_damaged
        self.digest = digest
        self.decoder = decoder
        self.advanced = time.monotonic()
        self._feeders = [_Feeder(self) for _ in range(count)]

    @property
    def pids(self) -> list[int]:
        """The ids of the running processes."""
        return [feeder.process.pid for feeder in self._feeders if feeder.process is not None]

    def start(self) -> None:
        """Start all processes now instead of with their first video."""
        for feeder in self._feeders:
            feeder.start()

    def close(self) -> None:
        """End the processes."""
        for feeder in self._feeders:
            feeder.close()

    def run(self, videos: Iterator[Video | None]) -> Iterator[tuple[Video, Event]]:
        """Yield the events of all videos. The events of one video are in order; several videos may interleave.

        Every request ends with a Done or a Failed event, then the video ends with an End event. If a feeder hangs or
        dies, a new one tries the next decoder, if one is left.

        Args:
            videos: the next video is taken when a feeder is free. None means that a video will be available later.
        """
        more = True
        try:
            while True:
                pending = False
                for feeder in self._feeders:
                    if more and not pending and feeder.video is None:
                        video = next(videos, ...)
                        more, pending = video is not ..., video is None
                        if more and not pending:
                            yield from feeder.begin(video)
                busy = [feeder for feeder in self._feeders if feeder.video is not None]
                if not busy and not more:
                    return
                for feeder in self._ready(busy, VIDEO_INTERVAL if pending else CHECK_INTERVAL):
                    yield from feeder.events()
        finally:
            for feeder in self._feeders:
                if feeder.video is not None:  # the caller stopped early: discard the unread events with the process
                    feeder.close()

    def read(self, path: Path, requests: Sequence[SamplingRequest]) -> Iterator[Event]:
        """Yield the events of one video."""
        for _, event in self.run(iter([Video(0, path, tuple(requests))])):
            yield event

    def header(self, path: Path) -> Header:
        """Return the header of a video file. Raise Unreadable if it cannot be read, or the process hangs or dies."""
        if not path.is_file():  # opening a pipe would block
            raise Unreadable("open", "not a regular file")
        feeder = self._feeders[0]
        answered = False
        try:
            feeder.request({"path": str(path), "probe": True})
            while True:
                self._ready([feeder], CHECK_INTERVAL)
                for record in feeder.receive():
                    event = record.pop("event")
                    answered = event in ("header", "fail")
                    if event == "header":
                        return Header(**record)
                    if event == "fail":
                        raise Unreadable(**record)
        except FeederDied as error:
            raise Unreadable("open", str(error)) from error
        finally:
            if not answered:  # a late answer would be mistaken for the answer to the next request
                feeder.close()

    def _ready(self, busy: Sequence[_Feeder], interval: float) -> list[_Feeder]:
        """Wait for up to ``interval`` seconds; return the feeders that have output or are overdue.

        Updates the silent time of each feeder. Time for which the process was suspended does not count: that is the
        time by which a wait took longer than its interval.
        """
        started = time.monotonic()
        if busy:
            interval = min(interval, max(0.0, self.deadline - max(feeder.silent for feeder in busy)))
            readable, _, _ = select.select([feeder.output for feeder in busy], [], [], interval)
        else:
            readable = []
            time.sleep(interval)
        spent = min(time.monotonic() - started, interval)
        now = time.monotonic()
        for feeder in busy:
            feeder.readable = feeder.output in readable
            if not feeder.readable:  # it was silent since the last check, also while the worker was busy elsewhere
                feeder.silent += min(started - feeder.checked, CHECK_INTERVAL) + spent
            feeder.waited += spent
            feeder.checked = now
        return [feeder for feeder in busy if feeder.readable or feeder.overdue]


class _Feeder:
    """One feeder process and the state of its current video.

    Attributes:
        silent: seconds without an event, counted while the worker listens.
        waited: seconds without progress in the video, counted while the worker listens.
        checked: time of the last check, on the monotonic clock.
        reached: position in the video, in seconds.
    """

    def __init__(self, feeders: Feeders) -> None:
        self.feeders = feeders
        self.process: subprocess.Popen[bytes] | None = None
        self.video: Video | None = None
        self.log: Any = None
        self.memory: RingReader | None = None
        self.unread = b""
        self.failed_decoders: dict[str, str] = {}  # decoders that failed on this video -> reason
        self.decoder = ""
        self.retry: str | None = None  # the decoder of this pass, if another decoder is left
        self.open_requests: set[int] = set()
        self.silent = self.waited = 0.0
        self.checked = 0.0
        self.readable = False
        self.reached = float("-inf")

    @property
    def output(self) -> int:
        """The descriptor of the pipe with the events."""
        return self.process.stdout.fileno()

    @property
    def overdue(self) -> bool:
        """Whether the deadline has passed."""
        return max(self.silent, self.waited) >= self.feeders.deadline

    def begin(self, video: Video) -> Iterator[tuple[Video, Event]]:
        """Start to decode a video."""
        self.video, self.failed_decoders = video, {}
        yield from self._start_pass()

    def _start_pass(self) -> Iterator[tuple[Video, Event]]:
        self.decoder, self.retry = "", None
        self.open_requests = set(range(len(self.video.requests)))
        try:
            self.request(
                {
                    "path": str(self.video.path),
                    "requests": [
                        [
                            request.start,
                            request.end,
                            dataclasses.asdict(request.sampling),
                            None if request.transform is None else dataclasses.asdict(request.transform),
                        ]
                        for request in self.video.requests
                    ],
                    "threads": self.feeders.threads,
                    "decoder": self.feeders.decoder,
                    "failed_decoders": self.failed_decoders,
                    "longest_frame": self.feeders.longest_frame,
                    "keep_damaged": self.feeders.keep_damaged,
                    "digest": self.feeders.digest,
                }
            )
        except FeederDied as error:
            yield from self._died(error)

    def events(self) -> Iterator[tuple[Video, Event]]:
        """Yield the available events. If the process died or is overdue, retry or fail its video."""
        video = self.video
        try:
            for record in self.receive():
                for event in self._events_of(record):
                    yield video, event
                    if isinstance(event, Window):
                        self.send({"release": record["until"]})
        except FeederDied as error:
            yield from self._died(error)

    def _died(self, error: FeederDied) -> Iterator[tuple[Video, Event]]:
        self.close(keep_video=True)
        if self.retry is not None:
            self.failed_decoders[self.retry] = f"{self.retry} hung or died"
            yield self.video, Restart()
            yield from self._start_pass()
            return
        position = f", {self.reached:.3f} s into the video" if self.reached > float("-inf") else ""
        for request in sorted(self.open_requests):
            yield self.video, Failed(request, "decode" if self.decoder else "open", f"{error}{position}")
        video, self.video = self.video, None
        yield video, End(0)

    def _events_of(self, record: dict[str, Any]) -> Iterator[Event]:
        match record.pop("event"):
            case "digest":
                self.advance()
                yield Digest(record["sha256"])
            case "open":
                self.advance()
                self.decoder, self.retry = record["decoder"], record["retry"]
                yield Opened(self.decoder)
            case "window":
                size, offset, shape, dtype = record["place"]
                pixels = self.memory.array(size, offset, tuple(shape), dtype)
                yield Window(record["request"], record["index"], record["start"], record["end"], pixels)
            case "done":
                self.open_requests.discard(record["request"])
                yield Done(**record)
            case "fail" if "request" in record:
                self.open_requests.discard(record["request"])
                yield Failed(**record)
            case "fail":  # the whole video failed
                for request in sorted(self.open_requests):
                    yield Failed(request, record["stage"], record["reason"])
                self.video = None
                yield End(0)
            case "restart":
                self.open_requests = set(range(len(self.video.requests)))
                yield Restart()
            case "end":
                self.video = None
                yield End(**record)
            case "beat":
                if record["reached"] is None:
                    self.advance()
                elif record["reached"] > self.reached:
                    self.advance(record["reached"])

    def advance(self, reached: float = float("-inf")) -> None:
        """Record progress up to ``reached``, in seconds of the video."""
        self.feeders.advanced = self.checked = time.monotonic()
        self.reached, self.silent, self.waited = reached, 0.0, 0.0

    def request(self, message: dict[str, Any]) -> None:
        """Start the process if necessary and send it a request. Raise FeederDied if it died."""
        self.start()
        self.advance()
        if not self.send(message):
            raise self.death()

    def send(self, message: dict[str, Any]) -> bool:
        """Send a line to the process; return False if it died."""
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]]:
        """Return the available lines. Raise FeederDied if the process died or is overdue."""
        deadline = f"{self.feeders.deadline:g} s, killed"
        if self.silent >= self.feeders.deadline:
            raise FeederDied(f"the decoder hung: nothing for {deadline}")
        if self.waited >= self.feeders.deadline:
            raise FeederDied(f"the decoder hung: no later frame for {deadline}")
        if not self.readable:
            return []
        data = os.read(self.output, READ_BYTES)
        if not data:
            raise self.death()
        self.silent = 0.0
        *lines, self.unread = (self.unread + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def death(self) -> FeederDied:
        """Return an error that tells how the process died."""
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return FeederDied(f"the decoder was killed by {name}{hint}")
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().splitlines()[-1:]
        return FeederDied(f"the decoder ended with status {code}: {''.join(last)}")

    def start(self) -> None:
        """Start the process if it is not running."""
        if self.process is not None and self.process.poll() is not None:
            self.close(keep_video=True)
        if self.process is not None:
            return
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        descriptor = new_memory(RING_BYTES)
        self.memory = RingReader(descriptor)
        self.process = subprocess.Popen(
            [*COMMAND, str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**ENVIRONMENT, **os.environ},
            bufsize=0,
            pass_fds=(descriptor,),
        )

    def close(self, *, keep_video: bool = False) -> None:
        """End the process. With ``keep_video``, the caller still has to retry or fail its video."""
        self.unread = b""
        if not keep_video:
            self.video = None
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        self.process = None
        self.log.close()
        self.memory.close()
