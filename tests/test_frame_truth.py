"""Every sampled frame is the right one, and its time is right to half a frame, whatever the file.

The frames' numbers are painted in, so this reads them back from the pixels that an encoder would get.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from videos import encode, paint, read_number, remux, rotate

from amex.extract.video.decoder import Decoder, Done, Failed, Frame, Opened, Restart, Sampled, Track
from amex.extract.video.sampling import Sampling

FRAMES = 120
X264 = "keyint=24:min-keyint=24:bframes=3:b-adapt=0:"
CLOSED = {"options": {"x264-params": X264 + "open-gop=0"}}
OPEN = {"options": {"x264-params": X264 + "open-gop=1"}}
VARIABLE = list(itertools.accumulate(random.Random(0).choices([20, 33, 50, 120], k=FRAMES - 1), initial=0))
STEADY = [k / 30 for k in range(FRAMES)]


def h264_cut(path: Path) -> Path:
    """45 frames cut off in mid-GOP without re-encoding: the file keeps 21 frames that are not to be shown."""
    return remux(encode(path.with_name("whole.mp4"), frames=FRAMES, **CLOSED), path, cut=1.5)


# name -> how it is made, the true times of its frames, the number of its first frame, the decoder that serves it
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
        [16 / 30 + time for time in STEADY],  # the muxer's own start
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
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(deadline=30)
    yield decoder
    decoder.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("truth")
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = FILES[name][0](folder / name)
        return made[name]

    return get


def watch(decoder: Decoder, path: Path, *tracks: Track) -> tuple[list[list[tuple[list[int], Sampled]]], str]:
    """For each track its windows, with the numbers painted into their frames; and the decoder that served."""
    images: dict[int, np.ndarray] = {}
    windows: list[list[tuple[list[int], Sampled]]] = [[] for _ in tracks]
    served = ""
    for event in decoder.read(path, tracks):
        match event:
            case Opened():
                served = event.decoder
            case Restart():
                images.clear()
                windows = [[] for _ in tracks]
            case Frame():
                images[event.key] = event.image
            case Sampled():
                windows[event.track].append(([read_number(images[key]) for key in event.keys], event))
            case Failed():
                raise AssertionError(event)
    return windows, served


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_the_right_one_at_the_right_time(
    name: str, decoder: Decoder, files: Callable[[str], Path]
) -> None:
    _, times, first, served_by = FILES[name]
    (windows,), served = watch(decoder, files(name), Track(None, None, Sampling(frames=1, stride=1)))
    assert [numbers[0] for numbers, _ in windows] == list(range(first, first + len(times)))
    gaps = np.diff([*times, times[-1] + times[-1] - times[-2]])
    for (_, window), time, gap in zip(windows, times, gaps, strict=True):
        assert abs(window.start - time) < gap / 2
    assert served.startswith(served_by)
    if served.startswith("pyav"):
        assert "(" in served, "the store must say why decord did not serve"


@pytest.mark.parametrize("name", FILES)
def test_overlapping_windows_and_cut_clips_hold_the_right_frames(
    name: str, decoder: Decoder, files: Callable[[str], Path]
) -> None:
    _, times, first, _ = FILES[name]
    start, end = times[20] - 1e-3, times[60] - 1e-3
    (windows, sparse), _ = watch(
        decoder,
        files(name),
        Track(start, end, Sampling(frames=16, stride=4)),
        Track(start, end, Sampling(fps=5, frames=1, stride=1)),
    )
    truth = list(range(first + 20, first + 60))
    assert [numbers for numbers, _ in windows] == [truth[k : k + 16] for k in range(0, 25, 4)]
    for k, (numbers, _) in enumerate(sparse):
        instant = times[20] + k / 5
        nearest = min(range(20, 60), key=lambda i: abs(times[i] - instant))
        assert abs(times[numbers[0] - first] - instant) <= abs(times[nearest] - instant) + 1e-3


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (270, 3)])
@pytest.mark.parametrize("decord", [True, False], ids=["decord", "pyav"])
def test_rotation_tags_are_honoured(tmp_path: Path, degrees: int, turns: int, decord: bool) -> None:
    path = encode(tmp_path / "turned.mp4", frames=8, options={"crf": "1"})
    rotate(path, degrees)
    decoder = Decoder(deadline=30)
    events = list(decoder._pass(path, [Track(None, None, Sampling(frames=1, stride=1))], decord))
    decoder.close()
    images = [event.image for event in events if isinstance(event, Frame)]
    assert next(event.decoder for event in events if isinstance(event, Opened)).startswith(["pyav", "decord"][decord])
    # Turned back by hand (the matrix turns clockwise), the first frame is the painted one.
    assert read_number(np.rot90(images[3], turns)) == 3
    assert np.abs(np.rot90(images[0], turns).astype(int) - paint(0)).mean() < 12


def test_frames_are_decoded_once_however_many_tracks_want_them(decoder: Decoder, files: Callable[[str], Path]) -> None:
    tracks = [
        Track(None, None, Sampling(frames=16, stride=2)),
        Track(0.5, 3.0, Sampling(frames=8, stride=1)),
        Track(0.2, 3.5, Sampling(fps=10, frames=1, stride=1)),
        Track(None, None, Sampling(frames=1, stride=1)),
    ]
    events = list(decoder.read(files("h264_closed.mp4"), tracks))
    frames = [event.key for event in events if isinstance(event, Frame)]
    assert frames == list(range(FRAMES))
    assert events[-1].frames == FRAMES
    assert sum(isinstance(event, Done) for event in events) == len(tracks)


@pytest.mark.parametrize("name", ["a.mp4", "b.webm", "c.avi", "deep/er/d.mkv"])
def test_so_many_frames_a_clip_are_spread_evenly_by_both_decoders(decoder: Decoder, clips: Path, name: str) -> None:
    four = Sampling(count=4, frames=1, stride=1)
    tracks = [Track(None, None, four), Track(0.5, None, four), Track(0.2, 0.8, four)]
    truth = [[5, 15, 25, 35], [18, 24, 30, 36], [8, 13, 17, 21]]
    found: list[list[int]] = [[], [], []]
    for event in decoder.read(clips / name, tracks):
        if isinstance(event, Sampled):
            found[event.track].append(event.keys[0])
    # Clips begin and end on frames' edges, and middles may fall on one, where containers round differently.
    assert np.abs(np.array(found) - truth).max() <= 1


def test_decoding_stops_when_the_last_clip_ends(decoder: Decoder, files: Callable[[str], Path]) -> None:
    *_, end = decoder.read(files("h264_closed.mp4"), [Track(0.0, 1.0, Sampling(frames=1, stride=1))])
    assert end.frames == 30


def test_real_clips_have_the_frames_that_were_counted(decoder: Decoder, real_data: Path) -> None:
    import csv

    with (real_data / "videos.csv").open() as handle:
        counts = {row["file"]: row for row in csv.DictReader(handle) if row["file"].startswith("videos/")}
    assert len(counts) == 27
    for name, row in counts.items():
        *events, end = decoder.read(real_data / name, [Track(None, None, Sampling(frames=1, stride=1))])
        failures = [event for event in events if isinstance(event, Failed)]
        assert not failures, (name, failures)
        starts = [event.start for event in events if isinstance(event, Sampled)]
        assert starts == sorted(starts)
        # The second stream of this file is counted there, the best one is decoded here.
        assert name.endswith("nasa_13013.mp4") or end.frames >= int(row["frames_decoded"]), name
