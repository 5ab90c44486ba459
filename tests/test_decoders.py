"""The choice of decoders and fallbacks; sparse passes and GPUs give the frames of a forward pass."""

from __future__ import annotations

import io
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import amex
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import encode, read_number, remux

from amex.errors import AmexError
from amex.extract.encoders.settings import decoder_rules
from amex.extract.run import plan
from amex.extract.run.cluster import Workers
from amex.extract.run.job import require_nvdec
from amex.extract.video import nvdec
from amex.extract.video.container import Header, open_video, read_index
from amex.extract.video.decoders import DecoderChoice, DecodingRequest, choose_decoder
from amex.extract.video.feeder import Feeder
from amex.extract.video.feeders import Feeders
from amex.extract.video.frames import DecoderFailed, RgbConverter
from amex.extract.video.nvdec import nvdec_frames, nvdec_missing
from amex.extract.video.pyav_decoder import pyav_frames
from amex.extract.video.requests import Done, Failed, Opened, SamplingRequest
from amex.extract.video.sampling import Sampler, Sampling
from amex.extract.video.sparse import PacketRun, is_consistent, needed_packets, runs_of

LONGEST = Fraction(600)
FRAMES = 240
SMALL = {"width": 208, "height": 64}
X264 = "keyint=24:min-keyint=24:scenecut=0:bframes=3:b-adapt=0:"
CLOSED = {"options": {"x264-params": X264 + "open-gop=0"}}
OPEN = {"options": {"x264-params": X264 + "open-gop=1:b-pyramid=normal:ref=4"}}
HEVC = {
    "codec": "libx265",
    "options": {"x265-params": "keyint=24:min-keyint=24:scenecut=0:bframes=4:open-gop=1:log-level=none"},
}
MPEG2 = {"codec": "mpeg2video", "options": {"bf": "2", "g": "12", "b": "4000000"}}
VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "g": "24"}}
AV1 = {"codec": "libsvtav1", "options": {"preset": "12", "g": "24"}}
VARIABLE = list(itertools.accumulate(random.Random(0).choices([20, 33, 50, 120], k=FRAMES - 1), initial=0))
FILES = {
    "closed.mp4": CLOSED,
    "closed.ts": CLOSED,
    "open.mp4": OPEN,
    "open.mkv": OPEN,
    "open.ts": OPEN,
    "variable.mkv": {**OPEN, "pts": VARIABLE},
    "hevc.mp4": HEVC,
    "hevc.ts": HEVC,
    "mpeg2.ts": MPEG2,
    "mpeg2.mkv": MPEG2,
    "vp9.webm": VP9,
    "av1.mkv": AV1,
}


def span(start: float | None = None, end: float | None = None, **sampling: object) -> SamplingRequest:
    return SamplingRequest(start, end, Sampling(**{"frames": 1, "stride": 1, **sampling}))


# Each needs few frames. Some are on both sides of a keyframe, or before the keyframe of an open group.
REQUESTS = {
    "a clip late in the file": [span(6.3, 7.3)],
    "clips across keyframes": [span(0.9, 1.1, at="shown"), span(3.9, 4.1)],
    "so many a clip": [span(count=2), span(4.0, None, count=1)],
    "one frame in three seconds": [span(fps=1 / 3)],
    "the frame on screen": [span(fps=1 / 4, at="shown")],
    "windows with gaps": [span(4.2, 4.9, fps=15, frames=4, step=2, stride=60)],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("sparse")

    def get(name: str) -> Path:
        return (
            folder / name if (folder / name).exists() else encode(folder / name, frames=FRAMES, **SMALL, **FILES[name])
        )

    return get


@pytest.fixture
def read_log() -> Iterator[Callable[[], list[str]]]:
    with tempfile.TemporaryFile() as log:
        yield Feeder(io.BytesIO(), log.fileno(), None).read_log


def chosen(path: Path, requests: Sequence[SamplingRequest], decoder: str = "pyav", **without: str) -> DecoderChoice:
    request = DecodingRequest(path=str(path), requests=requests, longest_frame=LONGEST, decoder=decoder, threads=1)
    return choose_decoder(
        request, {name.replace("_", " "): why for name, why in without.items()}, list, lambda reached: None
    )


def windows(
    choice: DecoderChoice, requests: Sequence[SamplingRequest]
) -> tuple[list[list[tuple[float, float, list[bytes]]]], int, set]:
    """Return each request's windows with times and pixels, the number of decoded frames, and the painted numbers."""
    samplers = [Sampler(each.sampling, each.start, each.end, choice.until) for each in requests]
    images: dict[int, np.ndarray] = {}
    actual: list[list[tuple[float, float, list[bytes]]]] = [[] for _ in requests]
    decoded, running = 0, dict(enumerate(samplers))
    for key, shown in enumerate(choice.frames()):
        decoded += shown.decoded
        for number, sampler in list(running.items()):
            cut = sampler.push(key, shown.begin, shown.end, last=shown.last)
            if sampler.holds(key) or any(key in window.keys for window in cut):
                images[key] = shown.image()
            if sampler.end <= shown.end or shown.last:
                cut += running.pop(number).finish()
            actual[number] += [(w.start, w.end, [images[k].tobytes() for k in w.keys]) for w in cut]
        if not running:
            break
    return actual, decoded, {read_number(image) for image in images.values()}


@pytest.mark.parametrize("requests", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("name", FILES)
def test_a_sparse_pass_gives_the_frames_and_times_of_a_forward_pass(
    name: str, requests: list[SamplingRequest], files: Callable[[str], Path]
) -> None:
    sparse = chosen(files(name), requests)
    forward = chosen(files(name), requests, pyav_sparse="not now")
    assert not forward.name.startswith("pyav sparse")
    expected, _, numbers = windows(forward, requests)
    if sparse.decoder == "pyav":  # the groups are so long that all of them are needed
        assert name == "av1.mkv" or FILES[name] in (OPEN, FILES["variable.mkv"])
        return
    actual, decoded, actual_numbers = windows(sparse, requests)
    assert (actual, actual_numbers) == (expected, numbers)
    assert decoded < FRAMES / 2


def test_a_sparse_pass_is_used_if_few_groups_are_needed(files: Callable[[str], Path]) -> None:
    starts = {name: 11.0 if name == "variable.mkv" else 7.0 for name in FILES}
    served = {name: chosen(files(name), [span(start, start + 0.1)]).name for name, start in starts.items()}
    assert served == dict.fromkeys(FILES, "pyav sparse")


def test_a_clip_that_begins_after_the_video_fails_with_that_reason(files: Callable[[str], Path]) -> None:
    feeders = Feeders(deadline=20, threads=1, decoder="pyav")
    requests = [span(11.0, 12.0), span(11.0, 12.0, count=2)]
    failures = [event for event in feeders.read(files("closed.mp4"), requests) if isinstance(event, Failed)]
    feeders.close()
    reason = "the clip begins at 11.000 s, the video ends at 8.000 s"
    assert sorted(failures, key=lambda failure: failure.request) == [Failed(n, "sample", reason) for n in range(2)]


@settings(max_examples=30)
@given(st.integers(0, 800), st.integers(1, 60), st.sampled_from(["closed.mp4", "open.mkv", "hevc.mp4", "mpeg2.ts"]))
def test_any_short_clip_is_the_same_in_a_sparse_pass(
    files: Callable[[str], Path], start: int, length: int, name: str
) -> None:
    requests = [span(start / 100, (start + length) / 100, at="shown"), span(7.5, 7.6)]
    sparse = chosen(files(name), requests)
    actual, *_ = windows(sparse, requests)
    assert actual == windows(chosen(files(name), requests, pyav_sparse="not now"), requests)[0]


def test_frames_before_an_open_groups_keyframe_need_the_previous_group(files: Callable[[str], Path]) -> None:
    path = files("hevc.mp4")
    container, stream = open_video(str(path))
    with container:
        index = read_index(str(path), container, stream, list, lambda reached: None)
    assert is_consistent(index, stream.frames, LONGEST)
    before, keyframe, *_ = [k for k in np.flatnonzero(index.keyframe) if k and index.pts[k + 1] < index.pts[k]]
    needed = np.zeros(len(index), bool)
    needed[keyframe + 1] = True
    assert runs_of(index, needed, "hevc") == (PacketRun(before, before, keyframe + 2),)


def test_choosing_a_decoder_sends_heartbeats(files: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats contain increasing times; None restarts them."""
    monkeypatch.setattr("amex.extract.video.container.HEARTBEAT_PACKETS", 16)
    monkeypatch.setattr("amex.extract.video.sparse.HEARTBEAT_PACKETS", 16)
    reached: list[Fraction | None] = []
    request = DecodingRequest(
        path=str(files("closed.mp4")), requests=[span(6.3, 7.3)], longest_frame=LONGEST, decoder="pyav"
    )
    assert choose_decoder(request, {}, list, reached.append).name == "pyav sparse"
    assert len(reached) > FRAMES // 16
    assert all(None in pair or pair[0] < pair[1] for pair in itertools.pairwise(reached))


def test_if_most_frames_are_needed_a_forward_pass_runs_without_an_index(
    files: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from amex.extract.video import decoders

    monkeypatch.setattr(decoders, "read_index", None)
    for requests in (
        [span()],
        [span(0.0, 1.0)],
        [span(fps=1), span(2.0)],
    ):
        assert chosen(files("closed.mp4"), requests).name == "pyav"


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: remux(encode(folder / "w.mp4", frames=120, **SMALL, **CLOSED), folder / "v.mp4", cut=0.5),
        lambda folder: encode(folder / "v.avi", frames=120, **SMALL, codec="mpeg4", options={"g": "12"}),
        lambda folder: encode(folder / "v.mpg", frames=120, **MPEG2),
    ],
    ids=["edit list", "no presentation times", "not seekable"],
)
def test_containers_with_an_unreliable_index_are_read_forwards(make: Callable[[Path], Path], tmp_path: Path) -> None:
    assert chosen(make(tmp_path), [span(3.0, 3.2)]).name == "pyav"


def test_a_file_that_does_not_match_its_index_is_read_forwards(files: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(files("closed.mp4").read_bytes())
    requests = [span(6.3, 7.3)]
    choice = chosen(path, requests)
    assert not choice.final
    encode(path, frames=FRAMES, first=7, **SMALL, options={"x264-params": X264 + "open-gop=0:bframes=0"})
    with pytest.raises(DecoderFailed, match=r"unexpected packet instead of \d\.\d{3} s"):
        windows(choice, requests)
    again = chosen(path, requests, "auto", decord="hung or died", pyav_sparse="unexpected packet")
    assert again.name == "pyav (decord: hung or died; pyav sparse: unexpected packet)"
    assert again.final


def break_frame(source: Path, target: Path, second: float) -> Path:
    """Copy a video and overwrite the packet that is shown at ``second``."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
    packet = min(packets, key=lambda packet: abs(float(packet.pts * packet.time_base) - second))
    data = bytearray(source.read_bytes())
    data[packet.pos + 8 : packet.pos + packet.size] = b"\xff" * (packet.size - 8)
    target.write_bytes(data)
    return target


def test_a_sparse_pass_reports_damage_only_of_the_groups_that_it_decodes(
    files: Callable[[str], Path], tmp_path: Path
) -> None:
    feeders = Feeders(deadline=20, threads=1, decoder="pyav")
    inside = list(feeders.read(break_frame(files("closed.mp4"), tmp_path / "inside.mp4", 6.7), [span(6.6, 6.9)]))
    outside = list(feeders.read(break_frame(files("closed.mp4"), tmp_path / "outside.mp4", 2.1), [span(6.6, 6.9)]))
    feeders.close()
    names = [event.decoder for event in inside if isinstance(event, Opened)]
    assert names[0] == "pyav sparse"
    assert names[1].startswith("pyav (pyav sparse: ")
    assert isinstance(inside[-2], Failed)
    assert "damaged" in inside[-2].reason
    assert outside[0] == Opened("pyav sparse")
    assert outside[-2] == Done(0, 9)


def test_an_index_takes_thirty_bytes_per_packet(files: Callable[[str], Path]) -> None:
    """A video of ten hours has a million packets."""
    path = files("closed.mp4")
    container, stream = open_video(str(path))
    with container:
        index = read_index(str(path), container, stream, list, lambda reached: None)
        needed = needed_packets(index, [span(7.0, 7.2)], 0, Fraction(1, 30), lambda reached: None)
    arrays = (index.pts, index.dts, index.duration, index.size, index.keyframe)
    assert sum(array.nbytes for array in arrays) <= 30 * FRAMES
    assert needed.sum() == 6


def test_an_index_that_cannot_be_read_completely_is_marked_broken(files: Callable[[str], Path]) -> None:
    """A damaged transport stream announces streams that did not exist when it was opened."""
    path = files("closed.ts")
    container, stream = open_video(str(path))

    class Damaged:
        format = container.format

        def demux(self, stream: object) -> Iterator[object]:
            yield from itertools.islice(container.demux(stream), 100)
            raise IndexError("list index out of range")

    with container:
        index = read_index(str(path), Damaged(), stream, list, lambda reached: None)
    assert len(index) == 100
    assert index.broken == "damaged container (list index out of range)"
    assert not is_consistent(index, 0, LONGEST)


def test_each_choice_tries_its_decoders_in_order(files: Callable[[str], Path], tmp_path: Path) -> None:
    path, every = files("closed.mp4"), [span()]
    assert chosen(path, every, "auto").name == "decord"
    assert chosen(path, every, "decord").name == "decord"
    assert chosen(path, every, "pyav").name == "pyav"
    assert chosen(path, every, "auto", decord="decord hung or died").name == "pyav (decord hung or died)"
    large = encode(tmp_path / "large.mp4", frames=100, width=1920, height=1080, options={"preset": "ultrafast"})
    assert chosen(large, every, "auto").name == "pyav (over 512 MiB decoded)"
    assert chosen(large, every, "decord").name == "decord", "whoever asks for decord has the memory"


def test_a_choice_of_decoder_is_part_of_the_spec() -> None:
    specs = [str(decoder_rules(name)) for name in ("auto", "pyav", "decord", "nvdec")]
    assert len(set(specs)) == 4
    assert decoder_rules() == decoder_rules("auto")


def test_a_dry_run_times_the_decoder_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Callable[[str], Path]
) -> None:
    tried: list[str] = []

    class Asked(Feeders):
        def header(self, path: Path) -> Header:
            tried.append(self.decoder)
            return super().header(path)

    monkeypatch.setattr(plan, "Feeders", Asked)
    videos = files("closed.mp4").parent
    where = ("--dataset", "folder", "--videos", videos, "--store", tmp_path / "s.zarr", "--device", "cpu")
    options = ("--stream", "r2plus1d_tiny", "--limit", 1, "--dry-run", "--decoder", "decord")
    assert amex("extract", *where, *options).exit_code == 0
    assert tried == ["decord"]


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(nvdec.ctypes, "CDLL", load)


def test_nvdec_without_a_driver_is_refused_before_the_run(no_driver: None, tmp_path: Path) -> None:
    with pytest.raises(AmexError, match=r"--decoder nvdec: this machine lacks libcuda.so.1, an NVIDIA driver; use"):
        require_nvdec("cuda", "local")
    with pytest.raises(AmexError, match=r"--decoder nvdec: this machine lacks libcuda.so.1"):
        require_nvdec("cuda", Workers(client=None))  # workers that were started during planning
    encode(tmp_path / "v.mp4", frames=10, **SMALL)
    options = ("--dataset", "folder", "--videos", tmp_path, "--store", tmp_path / "s.zarr", "--device", "cpu")
    refused = amex("extract", *options, "--stream", "r2plus1d_tiny", "--decoder", "nvdec")
    assert refused.exit_code == 1
    assert "--decoder nvdec needs workers with a GPU (--device cuda); use --decoder auto" in refused.output
    assert not (tmp_path / "s.zarr").exists()


def test_a_video_that_nvdec_cannot_decode_falls_back_with_the_reason(
    no_driver: None, files: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    every = [span()]
    without_driver = chosen(files("closed.mp4"), every, "nvdec")
    assert without_driver.name == "pyav (nvdec: libcuda.so.1, an NVIDIA driver)"
    monkeypatch.setattr("amex.extract.video.decoders.nvdec_missing", lambda: "")
    assert chosen(files("closed.mp4"), every, "nvdec").name == "nvdec"
    assert chosen(files("mpeg2.ts"), every, "nvdec").name == "pyav (nvdec: codec mpeg2video)"
    ten_bits = encode(tmp_path / "v.mp4", frames=10, **SMALL, pix_fmt="yuv420p10le")
    assert chosen(ten_bits, every, "nvdec").name == "pyav (nvdec: pixels yuv420p10le)"
    failed = chosen(files("closed.mp4"), every, "nvdec", nvdec="no decoder surfaces left")
    assert failed.name == "pyav (nvdec: no decoder surfaces left)"


@pytest.mark.skipif(not nvdec_missing(), reason="this machine can decode on a GPU")
def test_a_missing_gpu_is_a_failure_of_the_decoder(
    files: Callable[[str], Path], read_log: Callable[[], list[str]]
) -> None:
    with pytest.raises(DecoderFailed):
        next(nvdec_frames(str(files("closed.mp4")), LONGEST, read_log))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p"])
@pytest.mark.parametrize("size", [(208, 64), (322, 242)])
def test_interleaved_planes_give_the_same_rgb_as_separate_ones(
    pix_fmt: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """NVDEC returns NV12. Converted directly, its RGB differs by up to 141."""
    width, height = size
    path = encode(tmp_path / "v.mkv", frames=2, width=width, height=height, pix_fmt=pix_fmt)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    converter = RgbConverter()
    image = converter.image_of(frame.reformat(format="nv12"))()
    assert np.array_equal(image, converter.image_of(frame)())
    assert np.array_equal(image, frame.to_ndarray(format="rgb24"))


@pytest.mark.parametrize("name", ["closed.mp4", "open.mkv", "variable.mkv", "hevc.mp4", "hevc.ts", "vp9.webm"])
def test_a_gpu_gives_the_frames_and_times_of_the_cpu(
    name: str, files: Callable[[str], Path], read_log: Callable[[], list[str]]
) -> None:
    if reason := nvdec_missing():
        pytest.skip(f"NVDEC needs {reason}")
    path = str(files(name))
    on_cpu, on_gpu = pyav_frames(path, 1, LONGEST, read_log), nvdec_frames(path, LONGEST, read_log)
    for cpu, gpu in zip(on_cpu, on_gpu, strict=True):
        assert (cpu.begin, cpu.end, cpu.last) == (gpu.begin, gpu.end, gpu.last)
        assert np.array_equal(cpu.image(), gpu.image())
