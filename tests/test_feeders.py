"""Feeders: their events do not depend on their number, and a feeder that fails only fails its video."""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import encode, paint, read_number

from amex.extract.video import feeder as feeder_module
from amex.extract.video import feeders as feeders_module
from amex.extract.video.feeders import Feeders
from amex.extract.video.memory import Ring, RingReader, new_memory
from amex.extract.video.requests import Digest, Done, End, Event, Failed, Opened, SamplingRequest, Video, Window
from amex.extract.video.sampling import Sampling
from amex.extract.video.transform import Transform

EVERY = Sampling(frames=1, stride=1)
PIXELS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SMALL = Transform(resize=(24, 32), crop=(16, 16), **PIXELS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("feeders")
    return [encode(folder / f"{n}.mp4", frames=10 + 7 * n, width=192, height=64, first=n) for n in range(5)]


def deliveries(feeders: Feeders, videos: list[Video]) -> dict[int, list[Event]]:
    """Return the events of each video, with copies of the pixels of its windows."""
    events: dict[int, list[Event]] = {video.number: [] for video in videos}
    for video, event in feeders.run(iter(videos)):
        if isinstance(event, Window):
            fields = (event.request, event.index, event.start, event.end)
            event = (*fields, event.pixels.dtype.str, event.pixels.shape, event.pixels.tobytes())
        events[video.number].append(event)
    return events


def test_events_do_not_depend_on_the_number_of_feeders(files: list[Path]) -> None:
    requests = (
        SamplingRequest(None, None, Sampling(frames=4, stride=2), SMALL),
        SamplingRequest(0.1, 0.3, EVERY),
        SamplingRequest(None, None, Sampling(fps=5, frames=1, stride=1), SMALL),
    )
    videos = [Video(number, path, requests) for number, path in enumerate(files)]
    order = []
    for count in (1, 2, 4):
        feeders = Feeders(count, threads=1)
        order.append(deliveries(feeders, videos))
        assert len(feeders.pids) == count
        feeders.close()
    assert order[0] == order[1] == order[2]
    for events in order[0].values():
        assert isinstance(events[0], Opened)
        assert isinstance(events[-1], End)
        assert {event.request for event in events if isinstance(event, Done)} == {0, 1, 2}


def test_a_feeder_that_hangs_fails_its_video_and_the_others_continue(files: list[Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it blocks forever in native code
    paths = [files[0], tmp_path / "pipe.mp4", *files[1:]]
    videos = [Video(number, path, (SamplingRequest(None, None, EVERY, SMALL),)) for number, path in enumerate(paths)]
    feeders = Feeders(2)
    deliveries(feeders, [videos[0], videos[2]])  # the processes have started, so the start does not count
    feeders.deadline = 2.0
    events = deliveries(feeders, videos)
    feeders.close()
    for number, path in enumerate(paths):
        *_, last, end = events[number]
        assert isinstance(end, End)
        if path.name == "pipe.mp4":
            assert isinstance(last, Failed)
            assert "hung: nothing for 2 s" in last.reason
        else:
            assert isinstance(last, Done)


def test_a_video_that_is_not_available_yet_delays_no_other(files: list[Path]) -> None:
    ready: queue.SimpleQueue[Video] = queue.SimpleQueue()

    def videos() -> Iterator[Video | None]:
        yield Video(0, files[0], (SamplingRequest(None, None, EVERY),))
        requested = 0
        while ready.empty():
            requested += 1
            assert requested < 1000
            yield None
        yield ready.get()

    feeders = Feeders(2)
    ended = []
    for video, event in feeders.run(videos()):
        if isinstance(event, End):
            ended.append(video.number)
            if video.number == 0:
                ready.put(Video(1, files[1], (SamplingRequest(None, None, EVERY),)))
    feeders.close()
    assert ended == [0, 1]


def test_a_window_larger_than_the_ring_enlarges_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "v.mp4", frames=30)
    frame = 320 * 240 * 3
    monkeypatch.setattr(feeders_module, "RING_BYTES", 2 * frame)  # two windows of one frame
    requests = (SamplingRequest(None, None, EVERY), SamplingRequest(0.5, None, Sampling(frames=4, stride=4)))
    feeders = Feeders()
    numbers: list[list[int]] = [[], []]
    for event in feeders.read(path, requests):
        if isinstance(event, Window):
            numbers[event.request] += [read_number(image) for image in event.pixels]
    feeders.close()
    assert numbers[0] == list(range(30))
    assert numbers[1][:12] == list(range(15, 27))


def test_frames_that_do_not_fit_a_transform_fail_only_its_requests(files: list[Path]) -> None:
    large = Transform(resize=None, crop=(65, 65), **PIXELS)
    requests = (SamplingRequest(None, None, EVERY, large), SamplingRequest(None, None, EVERY, SMALL))
    feeders = Feeders()
    events = list(feeders.read(files[0], requests))
    feeders.close()
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert failed == Failed(0, "transform", "a frame of 192x64 is smaller than the crop of 65x65")
    assert Done(1, 10) in events


def test_frames_that_change_their_size_within_a_window_fail_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "grows.ts"
    with av.open(str(path), "w", format="mpegts") as out:
        stream = None
        for number, (width, height) in enumerate([(192, 64), (256, 64)]):
            with av.open(str(encode(tmp_path / f"{number}.ts", frames=10, width=width, height=height))) as source:
                video = source.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                for packet in source.demux(video):
                    if packet.dts is not None:
                        packet.pts += number * 30_000
                        packet.dts += number * 30_000
                        packet.stream = stream
                        out.mux(packet)
    feeders = Feeders(decoder="pyav")
    requests = (SamplingRequest(None, None, Sampling(frames=16, stride=16)), SamplingRequest(None, None, EVERY, SMALL))
    events = list(feeders.read(path, requests))
    feeders.close()
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert failed.request == 0
    assert "the size of the frames changes within a window: 192x64, then 256x64" in failed.reason
    assert Done(1, 20) in events


def test_the_time_of_a_feeder_is_counted_by_activity(files: list[Path]) -> None:
    feeders = Feeders()
    *_, end = feeders.read(files[4], [SamplingRequest(None, None, EVERY, SMALL)])
    feeders.close()
    assert set(end.seconds) == {"decode", "transform", "blocked"}
    assert end.seconds["decode"] > 0
    assert end.seconds["transform"] > 0


def test_the_digest_of_a_file_is_the_first_event_on_request(files: list[Path]) -> None:
    import hashlib

    feeders = Feeders(digest=True)
    first, *_ = feeders.read(files[0], [SamplingRequest(None, None, EVERY, SMALL)])
    feeders.close()
    assert first == Digest(hashlib.sha256(files[0].read_bytes()).hexdigest())


def test_computing_the_digest_of_a_large_file_sends_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder_module, "HEARTBEAT_SECONDS", 0.0)
    path = tmp_path / "v.mp4"
    path.write_bytes(bytes(range(256)) * (feeder_module.DIGEST_BYTES >> 6))
    beats: list[None] = []
    assert feeder_module.file_digest(path, beats.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert beats == [None] * 4


def test_an_interrupted_header_request_leaves_no_answer_for_the_next_request(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    feeders = Feeders()
    expected = [feeders.header(path) for path in (files[0], files[4])]
    assert expected[0] != expected[1]

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(feeders_module.select, "select", interrupted)
        with pytest.raises(KeyboardInterrupt):
            feeders.header(files[0])
    assert feeders.header(files[4]) == expected[1]
    feeders.close()


def test_feeders_can_be_used_after_a_reader_stopped_early(files: list[Path]) -> None:
    feeders = Feeders(2)
    videos = [Video(number, path, (SamplingRequest(None, None, EVERY),)) for number, path in enumerate(files)]
    next(iter(feeders.run(iter(videos))))
    assert sum(isinstance(event, Done) for _, event in feeders.run(iter(videos))) == len(files)
    feeders.close()


def test_a_feeder_killed_between_two_videos_fails_neither(files: list[Path]) -> None:
    feeders = Feeders(1)
    videos = [Video(0, files[0], (SamplingRequest(None, None, EVERY),))]
    first = deliveries(feeders, videos)
    os.kill(feeders.pids[0], signal.SIGKILL)
    os.waitid(os.P_PID, feeders.pids[0], os.WEXITED | os.WNOWAIT)
    assert deliveries(feeders, videos) == first
    feeders.close()


def test_transparent_pixels_of_a_frame_have_the_painted_colours(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", frames=3, options={"crf": "1"})
    feeders = Feeders()
    for event in feeders.read(path, [SamplingRequest(None, None, EVERY)]):
        if isinstance(event, Window):
            assert np.abs(event.pixels[0].astype(int) - paint(event.index)).mean() < 12
    feeders.close()


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=60),
    lag=st.integers(0, 3),
    size=st.sampled_from([64, 1024, 4096]),
)
def test_a_ring_returns_the_same_arrays_for_any_sizes(lengths: list[int], lag: int, size: int) -> None:
    """The reader lags behind by some windows, and the writer waits if the ring is full."""
    descriptor = new_memory(size)
    ring = Ring(os.dup(descriptor))
    mapped = RingReader(descriptor)
    offered: queue.Queue[tuple[int, int, tuple[int, ...], int, int] | None] = queue.Queue()

    def write() -> None:
        for number, length in enumerate(lengths):
            array, offset, until = ring.reserve((length,), np.dtype(np.uint8))
            array[:] = np.arange(length) * (number + 1) % 251
            offered.put((ring.size, offset, array.shape, until, number))
        offered.put(None)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    read = 0
    behind: list[int] = []
    while True:
        try:
            entry = offered.get(timeout=0.05)
        except queue.Empty:  # the writer waits for free space
            ring.release(behind.pop(0))
            continue
        if entry is None:
            break
        ring_size, offset, shape, until, number = entry
        array = mapped.array(ring_size, offset, shape, "|u1")
        assert (array == np.arange(shape[0]) * (number + 1) % 251).all()
        read += 1
        behind.append(until)
        if len(behind) > lag:
            ring.release(behind.pop(0))
    writer.join()
    os.close(ring.descriptor)
    mapped.close()
    assert read == len(lengths)
