"""Any bad file fails with a reason, and the next video is read."""

from __future__ import annotations

import io
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from videos import encode, paint

from amex.extract.video.feeder import Feeder
from amex.extract.video.feeders import Feeders
from amex.extract.video.frames import Unreadable
from amex.extract.video.pyav_decoder import pyav_frames
from amex.extract.video.requests import Done, End, Failed, Opened, Restart, SamplingRequest, Window
from amex.extract.video.sampling import Sampling

WHOLE = SamplingRequest(None, None, Sampling(frames=4, stride=4))
BEGINNING = SamplingRequest(0.0, 0.5, Sampling(frames=4, stride=4))


@pytest.fixture(scope="module")
def feeders() -> Iterator[Feeders]:
    feeders = Feeders(deadline=20)
    yield feeders
    feeders.close()


def outcome(feeders: Feeders, path: Path, *requests: SamplingRequest) -> list[Done | Failed]:
    """Return the Done or Failed event of each request, in order. The last event must be the only End."""
    events = list(feeders.read(path, requests or (WHOLE,)))
    assert isinstance(events[-1], End)
    final: dict[int, Done | Failed] = {}
    for event in events:
        if isinstance(event, Restart):
            final = {}
        if isinstance(event, Done | Failed):
            assert event.request not in final
            final[event.request] = event
    return [final[index] for index in range(len(requests or (WHOLE,)))]


def damage(path: Path, begin: float, length: float, seed: int = 0) -> Path:
    """Overwrite a range of a file, given as shares of its size, with noise."""
    data = bytearray(path.read_bytes())
    at, count = int(len(data) * begin), int(len(data) * length)
    data[at : at + count] = np.random.default_rng(seed).bytes(count)
    path.write_bytes(data)
    return path


def truncate(path: Path, share: float) -> Path:
    os.truncate(path, int(path.stat().st_size * share))
    return path


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def no_frames(path: Path) -> Path:
    """A video stream without a single frame."""
    with av.open(str(encode(path.with_name("ten.mp4"), frames=10))) as reader, av.open(str(path), "w") as writer:
        writer.add_stream_from_template(reader.streams.video[0])
        writer.start_encoding()
    return path


def faststart(path: Path) -> Path:
    """A file whose index comes first, so that it still opens when its end is missing."""
    complete = encode(path.with_name("whole.mp4"), frames=120)
    with av.open(str(complete)) as reader, av.open(str(path), "w", options={"movflags": "faststart"}) as writer:
        stream = reader.streams.video[0]
        out = writer.add_stream_from_template(stream)
        for packet in reader.demux(stream):
            if packet.dts is not None:
                packet.stream = out
                writer.mux(packet)
    return path


VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}
MPEG4 = {"codec": "mpeg4", "options": {"bf": "2", "g": "12", "b": "4000000"}}
MPEG2 = {"codec": "mpeg2video", "options": {"bf": "2", "g": "12", "b": "4000000"}}

# name -> (function that makes the file, stage of the failure, words of the reason)
BAD = {
    "empty.mp4": (lambda p: p.write_bytes(b""), "open", "empty"),
    "garbage.mp4": (lambda p: p.write_bytes(np.random.default_rng(1).bytes(50_000)), "open", "not a video"),
    "text.avi": (lambda p: p.write_text("this is not a video\n" * 100), "open", "not a video"),
    "folder.mp4": (lambda p: p.mkdir(), "open", "directory"),
    "absent.mp4": (lambda p: None, "open", "No such file"),
    "sound.mp4": (audio_only, "open", "only audio"),
    "no_frames.avi": (no_frames, "decode", "no frames"),
    "no_frames.mkv": (no_frames, "open", "not a video"),
    "no_frames.mp4": (no_frames, "open", "no video"),
    "no_index.mp4": (lambda p: truncate(encode(p, frames=120), 0.6), "open", "not a video"),
    "truncated.mp4": (lambda p: truncate(faststart(p), 0.6), "decode", "truncated"),
    "truncated.mkv": (lambda p: truncate(encode(p, frames=120), 0.6), "decode", "truncated"),
    "truncated.webm": (lambda p: truncate(encode(p, frames=120, **VP9), 0.6), "decode", "truncated"),
    "truncated.avi": (lambda p: truncate(encode(p, frames=120, **MPEG4), 0.6), "decode", "truncated"),
    "damaged.mp4": (lambda p: damage(encode(p, frames=120), 0.45, 0.1), "decode", "damaged"),
    "damaged.mkv": (lambda p: damage(encode(p, frames=120), 0.45, 0.1), "decode", "damaged"),
    "damaged.webm": (lambda p: damage(encode(p, frames=120, **VP9), 0.45, 0.1), "decode", "damaged"),
    "damaged.avi": (lambda p: damage(encode(p, frames=120, **MPEG4), 0.45, 0.1), "decode", "damaged"),
    "damaged.mpg": (lambda p: damage(encode(p, frames=120, **MPEG2), 0.45, 0.1), "decode", "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_fails_with_a_reason_and_the_next_file_is_read(name: str, tmp_path: Path, feeders: Feeders) -> None:
    make, stage, words = BAD[name]
    path = tmp_path / name
    make(path)
    (failed,) = outcome(feeders, path)
    assert isinstance(failed, Failed)
    assert failed.stage == stage
    assert words in failed.reason
    assert str(tmp_path) not in failed.reason, "the store must not depend on where the videos were"
    good = encode(tmp_path / "good.mp4", frames=20)
    assert outcome(feeders, good) == [Done(0, 20)]


def test_errors_of_the_matroska_reader_are_found_with_several_decoding_threads(tmp_path: Path) -> None:
    # The reader stops at damage without an error. It only logs a message, which need not be the last in the log.
    path = encode(tmp_path / "short.mkv", frames=20)
    with tempfile.TemporaryFile() as log:
        feeder = Feeder(io.BytesIO(), log.fileno(), None)
        frames = pyav_frames(str(path), 1, Fraction(600), feeder.read_log)
        next(frames)
        log.write(b"[matroska,webm @ 0x55] Element at 0x1 exceeds containing master element ending at 0x2\n")
        log.write(b"[h264 @ 0x56] Error splitting the input into NAL units.\n")
        log.flush()
        with pytest.raises(Unreadable, match=r"damaged or truncated.*Element at"):
            list(frames)


@pytest.mark.parametrize("name", [name for name in BAD if name.startswith(("truncated", "damaged"))])
def test_clips_before_the_damage_are_complete(name: str, tmp_path: Path, feeders: Feeders) -> None:
    BAD[name][0](tmp_path / name)
    start = 16 / 30 if name.endswith("mpg") else 0.0
    early = SamplingRequest(start, start + 0.5, Sampling(frames=4, stride=4))
    done, failed = outcome(feeders, tmp_path / name, early, WHOLE)
    assert done == Done(0, 15)
    assert isinstance(failed, Failed)


def test_a_clip_outside_its_video_fails_and_one_between_two_frames_has_the_frame_on_screen(
    tmp_path: Path, feeders: Feeders
) -> None:
    path = encode(tmp_path / "short.mp4", frames=20, fps=10)
    sampling = Sampling(frames=1, stride=1)
    outside, partly, between = outcome(
        feeders,
        path,
        SamplingRequest(5.0, 6.0, sampling),
        SamplingRequest(1.5, 9.0, sampling),
        SamplingRequest(0.11, 0.12, sampling),
    )
    assert outside == Failed(0, "sample", "the clip begins at 5.000 s, the video ends at 2.000 s")
    assert partly == Done(1, 5)
    assert between == Done(2, 1)


def test_a_decoder_that_hangs_is_killed_at_the_deadline(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it blocks forever in native code
    feeders = Feeders(deadline=1.5)
    encode(tmp_path / "good.mp4", frames=20)
    outcome(feeders, tmp_path / "good.mp4")  # the process has started, so the start does not count
    begin = time.monotonic()
    (failed,) = outcome(feeders, tmp_path / "pipe.mp4")
    assert isinstance(failed, Failed)
    assert "hung" in failed.reason
    assert time.monotonic() - begin < 10
    feeders.deadline = 20
    assert outcome(feeders, tmp_path / "good.mp4") == [Done(0, 20)]
    feeders.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_dies_fails_one_video(number: signal.Signals, tmp_path: Path, feeders: Feeders) -> None:
    long = encode(tmp_path / "long.mkv", frames=600, codec="mpeg4", options={"b": "400000"})  # decoded by PyAV
    events = feeders.read(long, [BEGINNING, SamplingRequest(10.0, None, Sampling(frames=1, stride=1))])
    events_seen = list(itertools.islice(events, 8))
    os.kill(feeders.pids[0], number)
    events_seen += events
    assert isinstance(events_seen[0], Opened)
    finished = [event for event in events_seen if isinstance(event, Done | Failed)]
    assert isinstance(finished[-1], Failed)
    assert number.name in finished[-1].reason
    good = encode(tmp_path / "good.mp4", frames=20)
    assert outcome(feeders, good) == [Done(0, 20)]


def test_pyav_takes_over_where_decord_dies(tmp_path: Path, feeders: Feeders) -> None:
    path = encode(tmp_path / "long.mp4", frames=400)
    every = SamplingRequest(None, None, Sampling(frames=1, stride=1))
    events = feeders.read(path, [every])
    events_seen = list(itertools.islice(events, 20))
    assert events_seen[0] == Opened("decord")
    os.kill(feeders.pids[0], signal.SIGSEGV)
    events_seen += events
    at = next(index for index, event in enumerate(events_seen) if isinstance(event, Restart))
    assert events_seen[at + 1] == Opened("pyav (decord hung or died)")
    assert sum(isinstance(event, Window) for event in events_seen[at:]) == 400
    assert events_seen[-2:] == [Done(0, 400), End(400)]


@pytest.mark.parametrize("width", [48, 96, 144])
def test_frames_of_narrow_videos_have_three_channels(width: int, tmp_path: Path, feeders: Feeders) -> None:
    """decord pads the lines of such frames and returns more channels."""
    path = encode(tmp_path / "narrow.mp4", frames=3, width=width, height=48, options={"g": "1"})
    request = SamplingRequest(None, None, Sampling(frames=3, stride=3))
    (window,) = [event.pixels.copy() for event in feeders.read(path, [request]) if isinstance(event, Window)]
    expected = [paint(number, width, 48) for number in range(3)]
    assert window.shape == (3, 48, width, 3)
    assert np.abs(window.astype(int) - expected).mean() < 8


def test_the_decoder_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    import subprocess
    import sys

    os.mkfifo(tmp_path / "pipe.mp4")
    code = (
        "from pathlib import Path; from amex.extract.video.feeders import *\n"
        "from amex.extract.video.sampling import Sampling\n"
        "f = Feeders(deadline=600); f.start(); print(*f.pids, flush=True)\n"
        f"list(f.read(Path({str(tmp_path / 'pipe.mp4')!r}), [SamplingRequest(None, None, Sampling())]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    child.wait(timeout=10)


def test_a_song_with_a_cover_is_not_a_video(tmp_path: Path, feeders: Feeders) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value  # PyAV 15 only accepts the number
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(sound.encode(samples))
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(picture.reformat(format="yuvj420p")))
        for stream in (cover, sound):
            container.mux(stream.encode(None))
    (failed,) = outcome(feeders, path)
    assert failed == Failed(0, "open", "no video in this file, only audio")


def test_large_files_are_decoded_by_pyav(tmp_path: Path, feeders: Feeders, monkeypatch: pytest.MonkeyPatch) -> None:
    small = encode(tmp_path / "small.mp4", frames=30)
    # 512 MiB hold 1,165 decoded frames at 320x240 and 87 at 1920x1080.
    large = encode(tmp_path / "large.mp4", frames=100, width=1920, height=1080, options={"preset": "ultrafast"})
    served = {}
    for path in (small, large):
        served[path.stem] = next(e.decoder for e in feeders.read(path, [BEGINNING]) if isinstance(e, Opened))
    assert served == {"small": "decord", "large": "pyav (over 512 MiB decoded)"}


def long_video(path: Path, minutes: int) -> Path:
    """A 1080p video of ``minutes``, made by repeating the packets of a ten-second one."""
    seed = path.with_name("seed.mp4")
    if not seed.exists():
        # Fine noise keeps the bit rate, and with it the file, as large as a camera's.
        encode(seed, frames=250, fps=25, width=1920, height=1080, options={"preset": "ultrafast", "crf": "12"})
    with av.open(str(path), "w") as writer:
        out = None
        for repeat in range(minutes * 6):
            with av.open(str(seed)) as reader:
                stream = reader.streams.video[0]
                out = out or writer.add_stream_from_template(stream)
                shift = round(repeat * 10 / stream.time_base)
                for packet in reader.demux(stream):
                    if packet.dts is not None:
                        packet.pts += shift
                        packet.dts += shift
                        packet.stream = out
                        writer.mux(packet)
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_depend_on_the_length_of_the_video(tmp_path: Path, feeders: Feeders) -> None:
    """Decode enough of a 2-hour 1080p video to see that memory does not grow; test_extract uses ten minutes."""
    path = long_video(tmp_path / "long.mp4", 120)
    peak = 0
    stop = threading.Event()

    def measure() -> None:
        nonlocal peak
        while not stop.wait(0.2):
            if feeders.pids[0] and psutil.pid_exists(feeders.pids[0]):
                peak = max(peak, psutil.Process(feeders.pids[0]).memory_info().rss)

    watcher = threading.Thread(target=measure)
    watcher.start()
    frames = 0
    begin = time.monotonic()
    for event in feeders.read(path, [SamplingRequest(None, None, Sampling(fps=1, frames=16, stride=8))]):
        frames += 8 * isinstance(event, Window)
        if time.monotonic() - begin > 25:
            break
    stop.set()
    watcher.join()
    assert frames > 60
    assert peak < 700 << 20
