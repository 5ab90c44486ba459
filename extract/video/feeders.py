"""The worker's end of its feeders: hands them videos, turns their lines into events, and kills them past a deadline."""

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
from .memory import RING_BYTES, Mapped, new_memory
from .requests import Digest, Done, End, Event, Failed, Opened, Restart, SamplingRequest, Video, Window

# decord reads this when it is imported. It counts how often decord asked for a frame that its threads had not finished,
# so a low value fails good files on a busy machine (256 failed 10 of 27). A real stall is ended by the deadline.
ENVIRONMENT = {"DECORD_EOF_RETRY_MAX": "131072"}
# What is started to decode. The descriptor of the shared memory is added.
COMMAND = (sys.executable, "-m", "amex.extract.video.feeder")
# Seconds between looks at the clock while the feeders are silent, and while the next video is awaited.
LOOK_INTERVAL = 1.0
VIDEO_INTERVAL = 0.02
# Bytes read from a feeder's pipe at once.
READ_BYTES = 1 << 16


class FeederGone(Exception):
    """A feeder hung or died. The message says how."""


class Feeders:
    """Decodes videos in processes of their own, as many at once as there are feeders.

    A process is started at its first video and again after each death. One that hangs or dies costs its video.

    Args:
        count: processes.
        deadline: seconds without any news from a feeder, or with news but without a later frame, after which it is
            taken for hung and killed.
        threads: decoding threads of each; 0 leaves the number to the library.
        longest: for so many seconds at most a frame may be shown. A longer one is damage.
        keep: of a request that meets damage, keep what comes before.
        digest: also compute the sha256 of each file.
        decoder: a key of ``limits.DECODERS``.

    Attributes:
        advanced: when a feeder was last known to get on, on the monotonic clock.
    """

    def __init__(
        self,
        count: int = 1,
        *,
        deadline: float = DEADLINE,
        threads: int = 0,
        longest: float = LONGEST_FRAME,
        keep: bool = False,
        digest: bool = False,
        decoder: str = "auto",
    ) -> None:
        self.count = count
        self.deadline = deadline
        self.threads = threads
        self.longest = longest
        self.keep = keep
        self.digest = digest
        self.decoder = decoder
        self.advanced = time.monotonic()
        self._feeders = [_Feeder(self) for _ in range(count)]

    @property
    def pids(self) -> list[int]:
        """The processes that there are."""
        return [feeder.process.pid for feeder in self._feeders if feeder.process is not None]

    def start(self) -> None:
        """Starts all processes now, not at their first videos."""
        for feeder in self._feeders:
            feeder.start()

    def close(self) -> None:
        """Ends the processes."""
        for feeder in self._feeders:
            feeder.close()

    def run(self, videos: Iterator[Video | None]) -> Iterator[tuple[Video, Event]]:
        """Yields the events of all videos as they come, those of one video in order.

        Every request ends in a Done or a Failed; then the video ends in an End. Where a feeder hangs or dies,
        a new one tries the next decoder, if one is left.

        Args:
            videos: asked for the next one when a feeder has none; None means that there will be one later.
        """
        more = True
        try:
            while True:
                awaited = False
                for feeder in self._feeders:
                    if more and not awaited and feeder.video is None:
                        video = next(videos, ...)
                        more, awaited = video is not ..., video is None
                        if more and not awaited:
                            yield from feeder.begin(video)
                busy = [feeder for feeder in self._feeders if feeder.video is not None]
                if not busy and not more:
                    return
                for feeder in self._ready(busy, VIDEO_INTERVAL if awaited else LOOK_INTERVAL):
                    yield from feeder.events()
        finally:
            for feeder in self._feeders:
                if feeder.video is not None:  # its reader stops early: what is left in the pipe is void
                    feeder.close()

    def read(self, path: Path, requests: Sequence[SamplingRequest]) -> Iterator[Event]:
        """The events of one video."""
        for _, event in self.run(iter([Video(0, path, tuple(requests))])):
            yield event

    def header(self, path: Path) -> Header:
        """What a file says of its video; raises Unreadable, also where the process hangs or dies on it."""
        if not path.is_file():  # a pipe would be waited for
            raise Unreadable("open", "not a regular file")
        feeder = self._feeders[0]
        answered = False
        try:
            feeder.ask({"path": str(path), "probe": True})
            while True:
                self._ready([feeder], LOOK_INTERVAL)
                for record in feeder.receive():
                    event = record.pop("event")
                    answered = event in ("header", "fail")
                    if event == "header":
                        return Header(**record)
                    if event == "fail":
                        raise Unreadable(**record)
        except FeederGone as error:
            raise Unreadable("open", str(error)) from error
        finally:
            if not answered:  # also where the wait is interrupted: the answer would be taken for that of the next video
                feeder.close()

    def _ready(self, busy: Sequence[_Feeder], interval: float) -> list[_Feeder]:
        """Those that have something to say, or nothing for too long.

        Counts the time that each is silent. Waits in short intervals: one that took longer than it was to take was one
        of suspension, which does not count.
        """
        looked = time.monotonic()
        if busy:
            interval = min(interval, max(0.0, self.deadline - max(feeder.silent for feeder in busy)))
            readable, _, _ = select.select([feeder.output for feeder in busy], [], [], interval)
        else:
            readable = []
            time.sleep(interval)
        spent = min(time.monotonic() - looked, interval)
        now = time.monotonic()
        for feeder in busy:
            feeder.readable = feeder.output in readable
            if not feeder.readable:  # nor was it while the worker did something else
                feeder.silent += min(looked - feeder.looked, LOOK_INTERVAL) + spent
            feeder.waited += spent
            feeder.looked = now
        return [feeder for feeder in busy if feeder.readable or feeder.late]


class _Feeder:
    """One process, and what is known of the video that it decodes.

    Attributes:
        silent: seconds since it last said something, as far as the worker listened.
        waited: the same since it last got on.
        reached: how far it is, in seconds of the video.
    """

    def __init__(self, feeders: Feeders) -> None:
        self.feeders = feeders
        self.process: subprocess.Popen[bytes] | None = None
        self.video: Video | None = None
        self.log: Any = None
        self.memory: Mapped | None = None
        self.unread = b""
        self.without: dict[str, str] = {}  # decoders that failed on the video -> how
        self.decoder = ""
        self.retry: str | None = None  # the decoder of this pass, if another one is left to try
        self.open_requests: set[int] = set()
        self.silent = self.waited = 0.0
        self.looked = 0.0
        self.readable = False
        self.reached = float("-inf")

    @property
    def output(self) -> int:
        return self.process.stdout.fileno()

    @property
    def late(self) -> bool:
        return max(self.silent, self.waited) >= self.feeders.deadline

    def begin(self, video: Video) -> Iterator[tuple[Video, Event]]:
        """Takes a video."""
        self.video, self.without = video, {}
        yield from self._ask_for_pass()

    def _ask_for_pass(self) -> Iterator[tuple[Video, Event]]:
        self.decoder, self.retry = "", None
        self.open_requests = set(range(len(self.video.requests)))
        try:
            self.ask(
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
                    "without": self.without,
                    "longest": self.feeders.longest,
                    "keep": self.feeders.keep,
                    "digest": self.feeders.digest,
                }
            )
        except FeederGone as error:
            yield from self._gone(error)

    def events(self) -> Iterator[tuple[Video, Event]]:
        """The events that have come; where the process is gone or late, what that means for its video."""
        video = self.video
        try:
            for record in self.receive():
                for event in self._events_of(record):
                    yield video, event
                    if isinstance(event, Window):
                        self.say({"release": record["until"]})
        except FeederGone as error:
            yield from self._gone(error)

    def _gone(self, error: FeederGone) -> Iterator[tuple[Video, Event]]:
        self.close(keep_video=True)
        if self.retry is not None:
            self.without[self.retry] = f"{self.retry} hung or died"
            yield self.video, Restart()
            yield from self._ask_for_pass()
            return
        where = f", {self.reached:.3f} s into the video" if self.reached > float("-inf") else ""
        for request in sorted(self.open_requests):
            yield self.video, Failed(request, "decode" if self.decoder else "open", f"{error}{where}")
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
            case "fail":  # the whole video ends here
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
        """Notes how far a pass has got."""
        self.feeders.advanced = self.looked = time.monotonic()
        self.reached, self.silent, self.waited = reached, 0.0, 0.0

    def ask(self, message: dict[str, Any]) -> None:
        """Sends a request to the process; raises FeederGone."""
        self.start()
        self.advance()
        if not self.say(message):
            raise self.death()

    def say(self, message: dict[str, Any]) -> bool:
        """Sends a line; False where nobody is there to read it."""
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]]:
        """The lines that have come; raises FeederGone where the process is gone or late."""
        deadline = f"{self.feeders.deadline:g} s, killed"
        if self.silent >= self.feeders.deadline:
            raise FeederGone(f"the decoder hung: nothing for {deadline}")
        if self.waited >= self.feeders.deadline:
            raise FeederGone(f"the decoder hung: no later frame for {deadline}")
        if not self.readable:
            return []
        data = os.read(self.output, READ_BYTES)
        if not data:
            raise self.death()
        self.silent = 0.0
        *lines, self.unread = (self.unread + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def death(self) -> FeederGone:
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", which is how a system out of memory ends a process" if name == "SIGKILL" else ""
            return FeederGone(f"the decoder was killed by {name}{hint}")
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().splitlines()[-1:]
        return FeederGone(f"the decoder ended with status {code}: {''.join(last)}")

    def start(self) -> None:
        """Starts the process, unless it is there. One that died while it had no video costs none."""
        if self.process is not None and self.process.poll() is not None:
            self.close(keep_video=True)
        if self.process is not None:
            return
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process, closed in close()
        descriptor = new_memory(RING_BYTES)
        self.memory = Mapped(descriptor)
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
        """Ends the process; with ``keep_video`` its video is still to be dealt with."""
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
