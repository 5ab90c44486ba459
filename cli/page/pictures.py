"""Thumbnails of clips, and H.264 copies for browsers. Other processes decode; caches are bounded."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.error
from PIL import Image

from ...errors import AmexError, first_line
from ...extract.video import Failed, Feeders, Restart, Sampling, SamplingRequest, Window
from ...storage import temporary_folder

# Height of a thumbnail and of a copy in pixels.
STILL_HEIGHT, COPY_HEIGHT = 240, 480
# Maximum number of thumbnails in memory (some 10 kB each), and of copies on disk (some MB each).
MOST_STILLS, MOST_COPIES = 1000, 20
# Maximum seconds of a copy.
COPY_SECONDS = 60.0
# Ticks per second of a copy's clock, as in MPEG.
CLOCK = 90_000


class Copy(NamedTuple):
    """A clip as H.264.

    Attributes:
        begin, end: the seconds that it shows, on the clock of its video. Its own clock begins at 0.
        cut: whether the clip is longer than the copy.
    """

    path: Path
    begin: float
    end: float
    cut: bool


class Pictures:
    """Makes thumbnails and copies. Its methods are thread-safe.

    One process decodes for thumbnails and one for copies, so that a long copy delays no thumbnail.

    Args:
        folder: the folder for copies.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # In order of age. Errors are kept too, so that a broken clip is not decoded at every view.
        self._stills: dict[tuple[object, ...], bytes | AmexError] = {}
        self._copies: dict[tuple[object, ...], Copy] = {}
        # With ``keep_damaged``, a damaged video is shown up to the damage.
        self._still_feeders, self._copy_feeders = (Feeders(keep_damaged=True) for _ in range(2))
        self._still_lock, self._copy_lock = threading.Lock(), threading.Lock()
        self._ended = threading.Event()

    def close(self) -> None:
        """Stop decoding. Later requests raise an error."""
        self._ended.set()
        for lock, feeders in ((self._still_lock, self._still_feeders), (self._copy_lock, self._copy_feeders)):
            for pid in feeders.pids:  # a hanging process would block the close
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with lock:
                feeders.close()

    def still(self, path: Path, start: float | None, end: float | None) -> bytes:
        """Return a JPEG of the frame in the middle of [start, end) seconds of a video. Raises AmexError."""
        key = _key(path, start, end)
        picture = self._stills.get(key)
        if picture is None:
            with self._still_lock:
                picture = self._stills.get(key)  # another thread may have made it
                if picture is None:
                    picture = self._stills[key] = self._make_still(path, start, end)
                    if len(self._stills) > MOST_STILLS:
                        del self._stills[next(iter(self._stills))]
        if isinstance(picture, AmexError):
            raise picture
        return picture

    def copy(self, path: Path, start: float | None, end: float | None) -> Copy:
        """Return [start, end) seconds of a video as H.264 without sound. Raises AmexError."""
        key = _key(path, start, end)
        with self._copy_lock:
            copy = self._copies.pop(key, None)
            if copy is None or not copy.path.is_file():
                copy = self._make_copy(key, path, start, end)
            self._copies[key] = copy
            if len(self._copies) > MOST_COPIES:
                self._copies.pop(next(iter(self._copies))).path.unlink(missing_ok=True)
            return copy

    def _make_still(self, path: Path, start: float | None, end: float | None) -> bytes | AmexError:
        pixels = None
        try:
            for window in self._windows(self._still_feeders, path, start, end, Sampling(count=1, frames=1)):
                pixels = None if window is None else window.pixels[0].copy()
        except AmexError as error:
            return error
        if pixels is None:
            return AmexError(f"{path} has no frame in these seconds")
        picture = Image.fromarray(pixels)
        picture.thumbnail((4 * STILL_HEIGHT, STILL_HEIGHT))
        written = io.BytesIO()
        picture.save(written, "JPEG", quality=85)
        return written.getvalue()

    def _make_copy(self, key: tuple[object, ...], path: Path, start: float | None, end: float | None) -> Copy:
        until = (start or 0.0) + COPY_SECONDS
        cut = end is None or end > until
        out = self._folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.mp4"
        encoder = None
        try:
            every_frame = Sampling(frames=1, stride=1)
            for window in self._windows(self._copy_feeders, path, start, until if cut else end, every_frame):
                if window is None:
                    if encoder:
                        encoder.close()
                    encoder = None
                    continue
                encoder = encoder or _Encoder(out, window)
                encoder.add(window)
            if encoder is None:
                raise AmexError(f"{path} has no frame in these seconds")
            encoder.finish()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            out.unlink(missing_ok=True)
            raise AmexError(f"{path} cannot be converted for a browser: {first_line(error)}") from error
        except BaseException:
            out.unlink(missing_ok=True)
            raise
        finally:
            if encoder:
                encoder.close()
        return Copy(out, encoder.begin, encoder.end, cut=cut and encoder.end >= until)

    def _windows(
        self, feeders: Feeders, path: Path, start: float | None, end: float | None, sampling: Sampling
    ) -> Iterator[Window | None]:
        """Yield the windows of some seconds of a video; None if all earlier windows are void. Raises AmexError."""
        with contextlib.closing(feeders.read(path, [SamplingRequest(start, end, sampling)])) as events:
            for event in events:
                if self._ended.is_set():
                    raise AmexError("the page is closing")
                if isinstance(event, Failed):
                    raise AmexError(f"{path}: {event.reason}")
                if isinstance(event, Restart):
                    yield None
                elif isinstance(event, Window):
                    yield event


class _Encoder:
    """Encodes frames to an MP4 file.

    Attributes:
        begin, end: the seconds of the video that are in the file.
    """

    def __init__(self, out: Path, first: Window) -> None:
        self.begin, self.end, self._last = first.start, first.end, -1
        height, width = first.pixels.shape[1:3]
        share = min(1.0, COPY_HEIGHT / min(height, width))
        # H.264 halves both for its colours.
        self._size = [max(2, 2 * round(share * length / 2)) for length in (width, height)]
        self._container = av.open(str(out), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "24"})
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, CLOCK)

    def add(self, window: Window) -> None:
        frame = av.VideoFrame.from_ndarray(window.pixels[0], format="rgb24")
        frame = frame.reformat(*self._size, format="yuv420p")
        frame.pts = self._last = max(self._last + 1, round((window.start - self.begin) * CLOCK))
        frame.time_base = Fraction(1, CLOCK)
        self._container.mux(self._stream.encode(frame))
        self.end = window.end

    def finish(self) -> None:
        """Write the frames that the encoder has buffered."""
        self._container.mux(self._stream.encode(None))

    def close(self) -> None:
        self._container.close()


def _key(path: Path, start: float | None, end: float | None) -> tuple[object, ...]:
    """Return the cache key of a picture, which changes with the file."""
    try:
        status = path.stat()
    except OSError as error:
        raise AmexError(f"{path} cannot be read: {error.strerror}") from error
    return path, status.st_size, status.st_mtime_ns, start, end


@contextlib.contextmanager
def open_pictures() -> Iterator[Pictures]:
    """Yield pictures; delete their copies on exit."""
    with temporary_folder() as folder, contextlib.closing(Pictures(folder)) as pictures:
        yield pictures
