"""A clip has exactly its own frames, with both decoders, any rate, any clock and any cut."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st
from videos import encode, paint, read_number

from amex.extract.video.container import open_video, read_index
from amex.extract.video.decoders import DecodingRequest, choose_decoder
from amex.extract.video.feeders import Feeders
from amex.extract.video.pyav_decoder import pyav_frames
from amex.extract.video.requests import Failed, Restart, SamplingRequest, Window
from amex.extract.video.sampling import Sampler, Sampling

LONGEST = Fraction(600)
EVERY = Sampling(frames=1, stride=1)
RATES = [Fraction(24000, 1001), Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(60), Fraction(25, 2)]
CLOCKS = [Fraction(1, 15360), Fraction(1, 12800), Fraction(1, 90000), Fraction(1, 1000)]  # the last is Matroska's
FRAMES = 60


def on_clock(path: Path, rate: Fraction, clock: Fraction) -> list[Fraction]:
    """Write a video whose k-th frame is shown at the tick nearest to k / rate; return the bounds of its frames."""
    ticks = [round(k / rate / clock) for k in range(FRAMES + 1)]
    options = {"video_track_timescale": str(clock.denominator)} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height = 32, 32
        stream.codec_context.time_base = clock
        image = av.VideoFrame.from_ndarray(paint(0)[:32, :32], format="rgb24")
        for begin, end in itertools.pairwise(ticks):
            image.pts, image.time_base, image.duration = begin, clock, end - begin
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return [tick * clock for tick in ticks]


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Return the bounds of frames for a rate and a clock: the true ones, those of the index, and those of PyAV."""
    folder = tmp_path_factory.mktemp("clocks")

    @functools.cache
    def get(rate: Fraction, clock: Fraction) -> tuple[list[Fraction], list[Fraction], list[Fraction]]:
        path = folder / f"{rate.numerator}_{clock.denominator}.{'mkv' if clock == Fraction(1, 1000) else 'mp4'}"
        edges = on_clock(path, rate, clock)
        request = DecodingRequest(path=str(path), requests=[SamplingRequest(None, None, EVERY)], longest_frame=LONGEST)
        assert choose_decoder(request, {}, list, lambda reached: None).name == "decord"
        container, stream = open_video(str(path))
        with container:
            index = read_index(str(path), container, stream, list, lambda reached: None)
        index_times = [begin for begin, _ in index.intervals(index.typical_gap)]
        return edges, index_times, [frame.begin for frame in pyav_frames(str(path), 1, LONGEST, list)]

    return get


@given(st.sampled_from(RATES), st.sampled_from(CLOCKS), st.integers(0, 300), st.integers(1, 200))
def test_both_decoders_give_a_clip_the_frames_that_start_in_it(
    timed: object, rate: Fraction, clock: Fraction, start: int, length: int
) -> None:
    edges, index_times, read = timed(rate, clock)
    assert index_times == read == edges[:-1]
    begin, end = Fraction(start, 100), Fraction(start + length, 100)
    expected = [key for key, time in enumerate(edges[:-1]) if begin <= time < end]
    for times in (index_times, read):
        sampler = Sampler(EVERY, start / 100, (start + length) / 100)
        windows = []
        for key, (time, until) in enumerate(itertools.pairwise([*times, edges[-1]])):
            windows += sampler.push(key, time, until, last=key == FRAMES - 1)
        keys = [window.keys[0] for window in [*windows, *sampler.finish()]]
        assert keys == expected or (not expected and len(keys) <= 1)  # no frame starts in the clip: the one on screen


@pytest.fixture(scope="module", params=["decord", "pyav"])
def feeders(request: pytest.FixtureRequest) -> Iterator[Feeders]:
    feeders = Feeders(deadline=30, decoder=request.param)
    yield feeders
    feeders.close()


def numbers(feeders: Feeders, path: Path, request: SamplingRequest) -> tuple[list[int], list[tuple[float, float]]]:
    """Return the numbers painted into the frames of a request with one frame per window, and the windows' times."""
    windows: list[int] = []
    times: list[tuple[float, float]] = []
    for event in feeders.read(path, [request]):
        match event:
            case Restart():
                windows, times = [], []
            case Window():
                windows.append(read_number(event.pixels[0]))
                times.append((event.start, event.end))
            case Failed():
                raise AssertionError(event)
    return windows, times


def test_a_clip_that_starts_at_the_time_of_a_frame_starts_with_that_frame(tmp_path: Path, feeders: Feeders) -> None:
    path = encode(tmp_path / "v.mp4", frames=225, width=192, height=64, options={"preset": "ultrafast"})
    with av.open(str(path)) as container:
        assert container.streams.video[0].time_base == Fraction(1, 15360)
    actual, times = numbers(feeders, path, SamplingRequest(3.7, 7.4, EVERY))
    assert actual == list(range(111, 222))
    assert times[0][0] == 3.7
    assert times[-1][1] == 7.4


@pytest.mark.parametrize("name", ["slides.mp4", "slides.mkv"])
def test_the_slide_on_screen_is_sampled(tmp_path: Path, feeders: Feeders, name: str) -> None:
    path = encode(tmp_path / name, frames=4, pts=[0, 10_000, 20_000, 30_000], width=192, height=64)
    a_second = Sampling(fps=1, frames=1, stride=1, at="shown")
    inside, times = numbers(feeders, path, SamplingRequest(12, 18, a_second))
    assert inside == [1] * 6
    assert times == [(10.0, 20.0)] * 6, "the frame's own time on screen"
    across, _ = numbers(feeders, path, SamplingRequest(5, 15, a_second))
    assert across == [0] * 5 + [1] * 5
    assert numbers(feeders, path, SamplingRequest(12, 18, EVERY)) == ([1], [(10.0, 20.0)])
    nearest = Sampling(fps=1, frames=1, stride=1)
    assert numbers(feeders, path, SamplingRequest(5, 15, nearest))[0] == [1] * 5
    assert numbers(feeders, path, SamplingRequest(12, 18, nearest))[0] == [1] * 6
