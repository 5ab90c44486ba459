"""The near end of the decoding process: sends it videos, turns its bytes into events, and kills it past a deadline."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..limits import DEADLINE, LONGEST_FRAME
from .decode import HEADER, Header, Unreadable
from .sampling import Sampling

# decord reads this when it is imported. It counts how often decord asked for a frame that its threads had not finished,
# so a low value fails good files on a busy machine (256 failed 10 of 27). A real stall is ended by the deadline.
ENVIRONMENT = {"DECORD_EOF_RETRY_MAX": "131072"}
# What is started to decode.
COMMAND = (sys.executable, "-m", "amex.extract.video.decode")
# Seconds between looks at the clock while the process is silent.
LOOK_INTERVAL = 1.0


@dataclass(frozen=True)
class Track:
    """One way of sampling one stretch of a video: what clips and streams that agree on it share."""

    start: float | None
    end: float | None
    sampling: Sampling


@dataclass(frozen=True)
class Opened:
    """Decoding begins. ``decoder`` is ``decord``, or ``pyav`` with the reason in parentheses."""

    decoder: str


@dataclass(frozen=True)
class Frame:
    """A frame that the tracks ``users`` will have in a window: (height, width, 3) uint8 RGB, upright."""

    key: int
    users: tuple[int, ...]
    image: np.ndarray


@dataclass(frozen=True)
class Sampled:
    """A window of a track. No later window has a frame before ``oldest`` (None: no news on that)."""

    track: int
    keys: tuple[int, ...]
    start: float
    end: float
    oldest: int | None


@dataclass(frozen=True)
class Done:
    """All windows of a track have been sent; the clip has ``frames`` frames.

    ``damage`` says why that is not the whole clip, if it is not; then ``missing`` seconds of it, None if nobody knows
    how many.
    """

    track: int
    frames: int
    missing: float | None = None
    damage: str = ""


@dataclass(frozen=True)
class Failed:
    """No more of a track will come, and what came is not the whole."""

    track: int
    stage: str
    reason: str


@dataclass(frozen=True)
class Restart:
    """The decoder changed: all that came of this video is void and comes again."""


@dataclass(frozen=True)
class End:
    """The video is finished; ``frames`` were decoded in the pass that counts."""

    frames: int


Event = Opened | Frame | Sampled | Done | Failed | Restart | End


class DecoderGone(Exception):
    """The decoding process hung or died. The message says how."""


class Decoder:
    """Decodes videos in a process of its own, started at the first video and again after each death.

    Args:
        deadline: seconds without any news from the process, or with news but without a later frame, after which it is
            taken for hung and killed.
        threads: decoding threads; 0 leaves the number to the library.
        longest: for so many seconds at most a frame may be shown. A longer one is damage.
        keep: of a track that meets damage, keep what comes before.

    Attributes:
        advanced: when a decoder was last known to get on, on the monotonic clock.
    """

    def __init__(
        self, *, deadline: float = DEADLINE, threads: int = 0, longest: float = LONGEST_FRAME, keep: bool = False
    ) -> None:
        self.deadline = deadline
        self.threads = threads
        self.longest = longest
        self.keep = keep
        self.advanced = time.monotonic()
        self._reached = float("-inf")  # how far a pass is, in seconds of the video
        self._waited = 0.0  # seconds of waiting since then
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Any = None

    @property
    def pid(self) -> int | None:
        """The decoding process, None while there is none."""
        return self._process.pid if self._process else None

    def read(self, path: Path, tracks: Sequence[Track]) -> Iterator[Event]:
        """Yields the events of one pass over a video. Every track ends in a Done or a Failed; then comes the End.

        Where the process hangs or dies on decord, a new one tries PyAV, once.
        """
        open_tracks = set(range(len(tracks)))
        decord = True
        frames = 0
        while True:
            decoder = ""
            try:
                for event in self._pass(path, tracks, decord):
                    match event:
                        case Opened():
                            decoder = event.decoder
                        case Restart():
                            open_tracks = set(range(len(tracks)))
                        case Done() | Failed():
                            open_tracks.discard(event.track)
                        case End():
                            frames = event.frames
                            break
                        case _Broken():
                            for track in sorted(open_tracks):
                                yield Failed(track, event.stage, event.reason)
                            break
                    yield event
            except DecoderGone as error:
                if decoder == "decord":
                    decord = False
                    open_tracks = set(range(len(tracks)))
                    yield Restart()
                    continue
                where = f", {self._reached:.3f} s into the video" if self._reached > float("-inf") else ""
                for track in sorted(open_tracks):
                    yield Failed(track, "decode" if decoder else "open", f"{error}{where}")
            yield End(frames)
            return

    def header(self, path: Path) -> Header:
        """What a file says of its video; raises Unreadable, also where the process hangs or dies on it."""
        if not path.is_file():  # a pipe would be waited for
            raise Unreadable("open", "not a regular file")
        try:
            for event in self._ask({"path": str(path), "probe": True}):
                match event:
                    case Header():
                        return event
                    case _Broken():
                        raise Unreadable(event.stage, event.reason)
        except DecoderGone as error:
            raise Unreadable("open", str(error)) from error
        raise AssertionError("the decoder answered a question for a header with something else")

    def close(self) -> None:
        """Ends the decoding process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                pipe.close()
            self._process = None
            self._log.close()

    def _pass(self, path: Path, tracks: Sequence[Track], decord: bool) -> Iterator[Event | _Broken]:
        """The events of one request for a pass over a video."""
        request = {
            "path": str(path),
            "tracks": [[track.start, track.end, dataclasses.asdict(track.sampling)] for track in tracks],
            "threads": self.threads,
            "decord": decord,
            "longest": self.longest,
            "keep": self.keep,
        }
        return self._ask(request)

    def _ask(self, request: dict[str, Any]) -> Iterator[Event | Header | _Broken]:
        self._start()
        self._begin()
        finished = False
        try:
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                raise self._gone() from None
            while not finished:
                event = self._receive()
                if event is not None:
                    finished = isinstance(event, End | Header | _Broken)
                    yield event
        finally:
            if not finished:  # also when the reader of these events stops early: what is left in the pipe is void
                self.close()

    def _receive(self) -> Event | Header | _Broken | None:
        text_length, length = HEADER.unpack(self._exactly(HEADER.size))
        record = json.loads(self._exactly(text_length))
        payload = self._exactly(length)
        match record.pop("event"):
            case "header":
                return Header(**record)
            case "open":
                self._begin()
                return Opened(record["decoder"])
            case "frame":
                image = np.frombuffer(payload, np.uint8).reshape(record["shape"])
                return Frame(record["key"], tuple(record["users"]), image)
            case "window":
                return Sampled(**{"oldest": None, **record, "keys": tuple(record["keys"])})
            case "done":
                return Done(**record)
            case "fail":
                return Failed(**record) if "track" in record else _Broken(**record)
            case "restart":
                return Restart()
            case "end":
                return End(**record)
            case _:  # a beat: the process is alive
                if record["reached"] is None:
                    self._begin()
                elif record["reached"] > self._reached:
                    self._begin(record["reached"])
                return None

    def _begin(self, reached: float = float("-inf")) -> None:
        """Notes how far a pass has got."""
        self.advanced = time.monotonic()
        self._reached, self._waited = reached, 0.0

    def _exactly(self, length: int) -> bytearray:
        data = bytearray(length)
        view, filled = memoryview(data), 0
        descriptor = self._process.stdout.fileno()
        while filled < length:
            if not self._wait(descriptor):
                raise DecoderGone(f"the decoder hung: nothing for {self.deadline:g} s, killed")
            if self._waited > self.deadline:
                raise DecoderGone(f"the decoder hung: no later frame for {self.deadline:g} s, killed")
            count = os.readv(descriptor, [view[filled:]])
            if not count:
                raise self._gone()
            filled += count
        return data

    def _wait(self, descriptor: int) -> bool:
        """Waits for the process's next bytes, until the deadline; returns whether they are there.

        Waits in short intervals: one that took longer than it was to take was one of suspension, which does not count.
        """
        silent = 0.0
        while silent < self.deadline:
            interval = min(LOOK_INTERVAL, self.deadline - silent)
            begin = time.monotonic()
            ready, _, _ = select.select([descriptor], [], [], interval)
            spent = min(time.monotonic() - begin, interval)
            silent += spent
            self._waited += spent
            if ready:
                return True
        return False

    def _gone(self) -> DecoderGone:
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", which is how a system out of memory ends a process" if name == "SIGKILL" else ""
            return DecoderGone(f"the decoder was killed by {name}{hint}")
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
        return DecoderGone(f"the decoder ended with status {code}: {''.join(last)}")

    def _start(self) -> None:
        if self._process is not None:
            return
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process, closed in close()
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**ENVIRONMENT, **os.environ},
            bufsize=0,
        )


@dataclass(frozen=True)
class _Broken:
    """The whole video ends here."""

    stage: str
    reason: str
