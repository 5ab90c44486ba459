"""For any file, every sampled frame is the right one, and its time is exact to half a frame.

The frames contain their painted numbers. The tests read them from the pixels that an encoder would get.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from videos import encode, paint, read_number, remux, rotate

from amex.extract.video.feeders import Feeders
from amex.extract.video.requests import Done, Failed, Opened, Restart, SamplingRequest, Window
from amex.extract.video.sampling import Sampling

FRAMES = 120
X264 = "keyint=24:min-keyint=24:bframes=3:b-adapt=0:"
CLOSED = {"options": {"x264-params": X264 + "open-gop=0"}}
OPEN = {"options": {"x264-params": X264 + "open-gop=1"}}
VARIABLE = list(itertools.accumulate(random.Random(0).choices([20, 33, 50, 120], k=FRAMES - 1), initial=0))
STEADY = [k / 30 for k in range(FRAMES)]


def h264_cut(path: Path) -> Path:
    """45 frames cut in mid-GOP without re-encoding: the file contains 21 frames that must not be shown."""
    return remux(encode(path.with_name("whole.mp4"), frames=FRAMES, **CLOSED), path, cut=1.5)


# name -> function that makes the file, true times of its frames, number of its first frame, its decoder
FILES: dict[str, tuple[Callable[[Path], Path], list[float], int, str]] = {
    "h264_closed.mp4": (lambda p: encode(p, frames=FRAMES, **CLOSED), STEADY, 0, "decord"),
    "h264_open.mp4": (lambda p: encode(p, frames=FRAMES, **OPEN), STEADY, 0, "decord"),
    "hevc.mp4": (
        lambda p: encode(
            p,
            frames=FRAMES,
            codec="libx265",
            options={"x265-params": "keyint=24:min-keyint=24:bframes=3:open-gop=1:log-level=none"},
        ),
        STEADY,
        0,
        "",
    ),
    "vp9.webm": (
        lambda p: encode(p, frames=FRAMES, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
        STEADY,
        0,
        "",
    ),
    "av1.mkv": (lambda p: encode(p, frames=FRAMES, codec="libsvtav1", options={"preset": "12"}), STEADY, 0, ""),
    "mpeg2.mpg": (
        lambda p: encode(p, frames=FRAMES, codec="mpeg2video", options={"bf": "2", "g": "12", "b": "4000000"}),
        [16 / 30 + time for time in STEADY],  # start time of the muxer
        0,
        "pyav",
    ),
    "mpeg4.avi": (
        lambda p: encode(p, frames=FRAMES, codec="mpeg4", options={"bf": "2", "g": "12", "b": "4000000"}),
        STEADY,
        0,
        "pyav",
    ),
    "variable.mp4": (lambda p: encode(p, frames=FRAMES, pts=VARIABLE), [t / 1000 for t in VARIABLE], 0, "decord"),
    "variable.mkv": (lambda p: encode(p, frames=FRAMES, pts=VARIABLE), [t / 1000 for t in VARIABLE], 0, "decord"),
    "late.mkv": (
        lambda p: encode(p, frames=FRAMES, pts=[5000 + 33 * k for k in range(FRAMES)]),
        [5 + 0.033 * k for k in range(FRAMES)],
        0,
        "decord",
    ),
    "late.ts": (  # decord cannot read transport streams
        lambda p: encode(p, frames=FRAMES, pts=[5000 + 33 * k for k in range(FRAMES)]),
        [5 + 0.033 * k for k in range(FRAMES)],
        0,
        "pyav",
    ),
    "cut.mp4": (h264_cut, [k / 30 for k in range(FRAMES - 45)], 45, "pyav"),
    "ten_bits.mp4": (lambda p: encode(p, frames=FRAMES, pix_fmt="yuv420p10le"), STEADY, 0, ""),
}


@pytest.fixture(scope="module")
def feeders() -> Iterator[Feeders]:
    feeders = Feeders(deadline=30)
    yield feeders
    feeders.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("truth")
    paths: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in paths:
            paths[name] = FILES[name][0](folder / name)
        return paths[name]

    return get


def watch(feeders: Feeders, path: Path, *requests: SamplingRequest) -> tuple[list[list[tuple[list[int], Window]]], str]:
    """Return each request's windows with the numbers painted into their frames, and the decoder."""
    windows: list[list[tuple[list[int], Window]]] = [[] for _ in requests]
    served = ""
    for event in feeders.read(path, requests):
        match event:
            case Opened():
                served = event.decoder
            case Restart():
                windows = [[] for _ in requests]
            case Window():
                windows[event.request].append(([read_number(image) for image in event.pixels], event))
            case Failed():
                raise AssertionError(event)
    return windows, served


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_the_right_one_at_the_right_time(
    name: str, feeders: Feeders, files: Callable[[str], Path]
) -> None:
    _, times, first, served_by = FILES[name]
    (windows,), served = watch(feeders, files(name), SamplingRequest(None, None, Sampling(frames=1, stride=1)))
    assert [numbers[0] for numbers, _ in windows] == list(range(first, first + len(times)))
    gaps = np.diff([*times, times[-1] + times[-1] - times[-2]])
    for (_, window), time, gap in zip(windows, times, gaps, strict=True):
        assert abs(window.start - time) < gap / 2
    assert served.startswith(served_by)
    if served.startswith("pyav"):
        assert "(" in served, "the store must say why decord did not serve"


@pytest.mark.parametrize("name", FILES)
def test_overlapping_windows_and_cut_clips_have_the_right_frames(
    name: str, feeders: Feeders, files: Callable[[str], Path]
) -> None:
    _, times, first, _ = FILES[name]
    start, end = times[20] - 1e-3, times[60] - 1e-3
    (windows, sparse), _ = watch(
        feeders,
        files(name),
        SamplingRequest(start, end, Sampling(frames=16, stride=4)),
        SamplingRequest(start, end, Sampling(fps=5, frames=1, stride=1)),
    )
    truth = list(range(first + 20, first + 60))
    assert [numbers for numbers, _ in windows] == [truth[k : k + 16] for k in range(0, 25, 4)]
    for k, (numbers, _) in enumerate(sparse):
        instant = times[20] + k / 5
        nearest = min(range(20, 60), key=lambda i: abs(times[i] - instant))
        assert abs(times[numbers[0] - first] - instant) <= abs(times[nearest] - instant) + 1e-3


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (270, 3)])
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_rotation_tags_are_applied(tmp_path: Path, degrees: int, turns: int, decoder: str) -> None:
    path = encode(tmp_path / "turned.mp4", frames=8, options={"crf": "1"})
    rotate(path, degrees)
    feeders = Feeders(deadline=30, decoder=decoder)
    images = []
    for event in feeders.read(path, [SamplingRequest(None, None, Sampling(frames=1, stride=1))]):
        if isinstance(event, Opened):
            assert event.decoder.startswith(decoder)
        if isinstance(event, Window):
            images.append(event.pixels[0].copy())
    feeders.close()
    # The matrix turns clockwise. Turned back, the first frame is the painted one.
    assert read_number(np.rot90(images[3], turns)) == 3
    assert np.abs(np.rot90(images[0], turns).astype(int) - paint(0)).mean() < 12


def test_frames_are_decoded_once_for_all_requests(feeders: Feeders, files: Callable[[str], Path]) -> None:
    requests = [
        SamplingRequest(None, None, Sampling(frames=16, stride=2)),
        SamplingRequest(0.5, 3.0, Sampling(frames=8, stride=1)),
        SamplingRequest(0.2, 3.5, Sampling(fps=10, frames=1, stride=1)),
        SamplingRequest(None, None, Sampling(frames=1, stride=1)),
    ]
    events = list(feeders.read(files("h264_closed.mp4"), requests))
    assert events[-1].frames == FRAMES
    assert sum(isinstance(event, Done) for event in events) == len(requests)


@pytest.mark.parametrize("name", ["a.mp4", "b.webm", "c.avi", "deep/er/d.mkv"])
def test_both_decoders_spread_a_count_of_frames_evenly_over_a_clip(feeders: Feeders, clips: Path, name: str) -> None:
    four = Sampling(count=4, frames=1, stride=1)
    requests = [SamplingRequest(None, None, four), SamplingRequest(0.5, None, four), SamplingRequest(0.2, 0.8, four)]
    truth = [[5, 15, 25, 35], [18, 24, 30, 36], [8, 13, 17, 21]]
    numbers_seen: list[list[int]] = [[], [], []]
    for event in feeders.read(clips / name, requests):
        if isinstance(event, Window):
            numbers_seen[event.request].append(read_number(event.pixels[0]))
    # Clips start and end at bounds of frames. A midpoint may be on a bound, which containers round differently.
    assert np.abs(np.array(numbers_seen) - truth).max() <= 1


def test_decoding_stops_when_the_last_clip_ends(feeders: Feeders, files: Callable[[str], Path]) -> None:
    *_, end = feeders.read(files("h264_closed.mp4"), [SamplingRequest(0.0, 1.0, Sampling(frames=1, stride=1))])
    assert end.frames == 30


def test_real_clips_have_the_counted_frames(feeders: Feeders, real_data: Path) -> None:
    import csv

    with (real_data / "videos.csv").open() as handle:
        counts = {row["file"]: row for row in csv.DictReader(handle) if row["file"].startswith("videos/")}
    assert len(counts) == 27
    for name, row in counts.items():
        *events, end = feeders.read(real_data / name, [SamplingRequest(None, None, Sampling(frames=1, stride=1))])
        failures = [event for event in events if isinstance(event, Failed)]
        assert not failures, (name, failures)
        starts = [event.start for event in events if isinstance(event, Window)]
        assert starts == sorted(starts)
        # The reference counts the second stream of this file; amex decodes the best one.
        assert name.endswith("nasa_13013.mp4") or end.frames >= int(row["frames_decoded"]), name
