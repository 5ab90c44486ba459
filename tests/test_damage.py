"""Damage is reported and fails only its video; the user decides whether to keep the windows before it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import amex, extract, write_lines
from test_decoder import BAD, WHOLE, outcome
from videos import encode

from amex.cli.extract import limited
from amex.extract.run.check import check_videos
from amex.extract.video import feeders as feeders_module
from amex.extract.video.container import gif_is_complete
from amex.extract.video.feeder import Feeder
from amex.extract.video.feeders import Feeders
from amex.extract.video.pyav_decoder import pyav_frames
from amex.extract.video.requests import Done, Failed, Opened, SamplingRequest, Window
from amex.extract.video.sampling import Sampling
from amex.features import open_store
from amex.manifests import Clip, scan_manifest
from amex.manifests.videos import EXTENSIONS

EVERY = Sampling(frames=1, stride=1)
R2 = "r2plus1d_18"
NO_CONTAINER = "not a video container: amex does not open playlists, still images or raw codec streams"


@pytest.fixture
def feeders() -> Iterator[Feeders]:
    feeders = Feeders(deadline=20, threads=1)
    yield feeders
    feeders.close()


def small(path: Path, **options: object) -> Path:
    return encode(path, **{"frames": 10, "width": 208, "height": 64, **options})


def long_first_frame(path: Path) -> Path:
    """A file of 2 KB whose first frame has a duration of more than a day."""
    data = bytearray(small(path, frames=3, pts=[0, 40, 120]).read_bytes())
    at = data.index(b"stts") + 4
    count, first_count = struct.unpack(">4xII", data[at : at + 12])
    assert (count, first_count) == (3, 1)
    data[at + 12 : at + 16] = struct.pack(">I", 2**31 - 1)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("at", ["shown", "nearest"])
def test_a_frame_shown_for_a_day_is_damage_unless_allowed(tmp_path: Path, feeders: Feeders, at: str) -> None:
    path = long_first_frame(tmp_path / "v.mp4")
    assert path.stat().st_size < 3000
    begin = time.monotonic()
    (failed,) = outcome(feeders, path, SamplingRequest(None, None, Sampling(fps=1, frames=1, stride=1, at=at)))
    assert time.monotonic() - begin < 10
    assert isinstance(failed, Failed)
    assert failed.stage == "decode"
    assert "damaged at 0.000 s" in failed.reason
    assert "longer than --longest-frame 600" in failed.reason
    feeders.longest_frame = 1e6
    assert isinstance(outcome(feeders, path, WHOLE)[0], Done)


@pytest.mark.parametrize("name", ["gap.mp4", "gap.mkv"])
def test_a_gap_of_a_day_in_the_timestamps_is_damage_and_earlier_clips_are_done(
    name: str, tmp_path: Path, feeders: Feeders
) -> None:
    day = 26 * 3600 * 1000
    path = small(tmp_path / name, pts=[*range(0, 320, 40), day, day + 40])
    before, across, after = outcome(
        feeders,
        path,
        SamplingRequest(0.0, 0.2, EVERY),
        SamplingRequest(0.1, None, EVERY),
        SamplingRequest(93600.0, None, EVERY),
    )
    assert before == Done(0, 5)
    assert isinstance(across, Failed)
    assert isinstance(after, Failed)
    assert "damaged at 0.280 s" in across.reason


def test_timestamps_too_long_for_the_file_size_are_damage(tmp_path: Path, feeders: Feeders) -> None:
    path = small(tmp_path / "v.mkv", frames=40, pts=[590_000 * k for k in range(40)], width=64)
    (failed,) = outcome(feeders, path, SamplingRequest(None, None, Sampling(fps=1, frames=1, stride=1)))
    assert isinstance(failed, Failed)
    assert "s are too long for" in failed.reason


def test_slides_shown_for_minutes_are_not_damage(tmp_path: Path, feeders: Feeders) -> None:
    path = encode(tmp_path / "v.mp4", frames=6, pts=[300_000 * k for k in range(6)])
    (done,) = outcome(feeders, path, SamplingRequest(None, None, Sampling(fps=0.1, frames=1, stride=1, at="shown")))
    assert done == Done(0, 6)


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run another program instead of the feeder."""
    monkeypatch.setattr(feeders_module, "COMMAND", (sys.executable, "-c", code))


BEATS = """
import os, sys, time, json
sys.stdin.readline()
while True:
    text = json.dumps({"event": "beat", "reached": 1.5}).encode()
    os.write(1, text + b"\\n")
    time.sleep(0.02)
"""


def test_a_decoder_that_sends_heartbeats_without_progress_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, BEATS)
    feeders = Feeders(deadline=0.7)
    begin = time.monotonic()
    (failed,) = outcome(feeders, tmp_path / "v.mp4")
    assert time.monotonic() - begin < 10
    assert "no later frame for 0.7 s, killed, 1.500 s into the video" in failed.reason


SILENT = "import sys, time; sys.stdin.readline(); time.sleep(60)"


def test_a_suspended_run_does_not_kill_its_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run is suspended (SIGSTOP, gang scheduling), each wait takes longer than its interval."""
    stand_in(monkeypatch, SILENT)
    clock, waits = [0.0], []

    def select(*given: object) -> tuple[list[int], list[int], list[int]]:
        waits.append(given[3])
        clock[0] += 3600.0 if len(waits) == 2 else given[3]
        return [], [], []

    monkeypatch.setattr(feeders_module.select, "select", select)
    monkeypatch.setattr(feeders_module.time, "monotonic", lambda: clock[0])
    (failed,) = outcome(Feeders(deadline=5.0), tmp_path / "v.mp4")
    assert "nothing for 5 s" in failed.reason
    assert waits == [1.0] * 5


SPENT_PIPES = """
import fcntl, os, sys
from pathlib import Path
from amex.extract.video.feeders import Feeders
from amex.extract.video.requests import SamplingRequest
from amex.extract.video.sampling import Sampling

pipes = []
try:
    while True:
        pipes.append(os.pipe())
        fcntl.fcntl(pipes[-1][0], fcntl.F_SETPIPE_SZ, 1 << 20)
except PermissionError:  # this user has no pipe pages left
    pass
feeders = Feeders(deadline=20)
print(*(type(event).__name__ for event in feeders.read(Path(sys.argv[1]), [SamplingRequest(None, None, Sampling())])))
feeders.close()
"""


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="only Linux counts the pages of pipes")
def test_a_decoder_starts_after_the_user_has_used_up_all_pipe_pages(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPENT_PIPES, encode(tmp_path / "a.mp4", frames=20)]
    if os.geteuid() == 0:  # the limit does not apply to root
        if not shutil.which("setpriv"):
            pytest.skip("no setpriv to give up root's privileges with; util-linux has it")
        command = ["setpriv", "--bounding-set=-sys_admin,-sys_resource", "--inh-caps=-all", *command]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.stdout.split()[-2:] == ["Done", "End"], run.stderr


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("list.mkv", "ffconcat version 1.0\nfile secret.mp4\n", NO_CONTAINER),
        (
            "list.mp4",
            "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.ts\n#EXT-X-ENDLIST\n",
            "not a video file, or an incomplete one (Invalid data found when processing input)",
        ),
        (
            "session.avi",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
            NO_CONTAINER,
        ),
    ],
)
def test_a_playlist_is_not_a_video(name: str, text: str, reason: str, tmp_path: Path, feeders: Feeders) -> None:
    small(tmp_path / "secret.mp4")
    small(tmp_path / "secret.ts")
    path = tmp_path / name
    path.write_text(text)
    assert outcome(feeders, path) == [Failed(0, "open", reason)]
    frames = [event for event in feeders.read(path, [WHOLE]) if isinstance(event, Window)]
    assert not frames


def test_raw_streams_and_still_images_are_refused_and_audio_is_named(tmp_path: Path, feeders: Feeders) -> None:
    """The content of a file decides, not its name."""
    small(tmp_path / "v.h264").rename(tmp_path / "bare.mp4")
    small(tmp_path / "v.png", frames=1, codec="png", pix_fmt="rgb24").rename(tmp_path / "still.gif")
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    reasons = {}
    for name in ("bare.mp4", "still.gif", "sound.mp4"):
        (failed,) = outcome(feeders, tmp_path / name)
        reasons[name] = failed.reason
    assert "raw codec streams" in reasons["bare.mp4"]
    assert "raw codec streams" in reasons["still.gif"]
    assert reasons["sound.mp4"] == "no video in this file, only audio"


def test_every_video_extension_has_a_container_that_is_opened(tmp_path: Path, feeders: Feeders) -> None:
    codecs = {".gif": ("gif", "rgb8"), ".flv": ("flv", "yuv420p"), ".mxf": ("mpeg2video", "yuv420p")}
    codecs |= dict.fromkeys((".asf", ".wmv"), ("msmpeg4", "yuv420p")) | dict.fromkeys(
        (".mpeg", ".mpg", ".vob"), ("mpeg2video", "yuv420p")
    )
    codecs |= {".ogv": ("libvpx", "yuv420p"), ".webm": ("libvpx", "yuv420p")}
    for extension in sorted(EXTENSIONS):
        codec, pixels = codecs.get(extension, ("libx264", "yuv420p"))
        usual = {".3g2": ".3gp", ".3gpp": ".3gp", ".divx": ".avi", ".qt": ".mov"}.get(extension, extension)
        path = small(tmp_path / f"v{usual}", codec=codec, pix_fmt=pixels, fps=25).rename(tmp_path / f"v{extension}")
        assert isinstance(outcome(feeders, path)[0], Done), extension


def test_an_unknown_codec_is_reported(tmp_path: Path, feeders: Feeders) -> None:
    path = small(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    (failed,) = outcome(feeders, path)
    assert failed.stage == "open"
    assert "the codec of the video is missing" in failed.reason


@pytest.mark.parametrize(
    ("place", "words"), [(30, "mb_type"), (60, "negative number of zero coeffs"), (70, "intra chroma")]
)
def test_ffmpegs_messages_about_a_wrong_byte_are_damage(
    place: int, words: str, tmp_path: Path, feeders: Feeders
) -> None:
    """FFmpeg continues and returns all frames."""
    path = encode(tmp_path / "v.mp4", frames=90, width=208, height=160, options={"preset": "ultrafast"})
    data = bytearray(path.read_bytes())
    data[len(data) * place // 100] ^= 0xFF
    path.write_bytes(data)
    before, cut_off = outcome(feeders, path, SamplingRequest(0.0, 0.5, EVERY), WHOLE)
    assert before == Done(0, 15)
    assert cut_off.stage == "decode"
    assert re.match(r"damaged or truncated after \d\.\d{3} s: \[h264\] ", cut_off.reason)
    assert words in cut_off.reason


@pytest.mark.parametrize("place", [30, 50, 70])
def test_decord_hides_no_frame_with_lost_macroblocks(place: int, tmp_path: Path, feeders: Feeders) -> None:
    """FFmpeg conceals the blocks, marks the frame and logs a message below the error level. decord drops the mark."""
    path = encode(tmp_path / "v.mkv", frames=90, width=208, height=160, options={"preset": "ultrafast"})
    content = path.read_bytes()
    at = len(content) * place // 100
    path.write_bytes(content[:at] + b"\xff" * 60 + content[at + 60 :])
    events = [
        event
        for event in feeders.read(path, [SamplingRequest(None, None, EVERY)])
        if isinstance(event, Opened | Failed)
    ]
    assert events[0] == Opened("decord")
    assert "pyav (decord: [h264] concealing" in events[1].decoder
    assert "a broken frame" in events[-1].reason


def test_an_unexpected_error_is_reported_with_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.BytesIO()
    with tempfile.TemporaryFile() as log:
        feeder = Feeder(output, log.fileno(), None)

        def surprise(request: object) -> None:
            feeder.reached = Fraction(16, 5)
            raise AttributeError("'NoneType' object has no attribute 'x'")

        monkeypatch.setattr(feeder, "decode", surprise)
        feeder.answer({"path": str(tmp_path)})
    event = json.loads(output.getvalue())
    assert event["reason"].startswith("the decoder failed unexpectedly after 3.200 s (")


def test_a_gif_without_its_trailer_is_damaged(tmp_path: Path, feeders: Feeders) -> None:
    path = small(tmp_path / "v.gif", codec="gif", pix_fmt="rgb8", fps=10)
    assert gif_is_complete(str(path))
    assert outcome(feeders, path) == [Done(0, 10)]
    content = path.read_bytes()
    assert content[-1:] == b";"
    for cut in (1, 2, 300):
        path.write_bytes(content[:-cut])
        (failed,) = outcome(feeders, path)
        assert isinstance(failed, Failed), cut
        assert "0.900 s" in failed.reason or cut == 300


def test_no_camera_file_is_damaged_in_any_decoder(real_data: Path) -> None:
    """Messages of FFmpeg about an intact file never count as damage, in any decoder."""
    with tempfile.TemporaryFile() as log:
        feeder = Feeder(io.BytesIO(), log.fileno(), None)
        for path in sorted((real_data / "videos").iterdir())[:6]:
            assert list(pyav_frames(str(path), 2, Fraction(600), feeder.read_log))[-1].last


def damaged_video(path: Path) -> Path:
    BAD["truncated.mp4"][0](path)
    path.with_name("whole.mp4").unlink()
    return path


def test_windows_before_the_damage_are_kept_on_request(tmp_path: Path, feeders: Feeders) -> None:
    path = damaged_video(tmp_path / "v.mp4")  # 4 s; 60 % of the bytes exist
    tracks = [
        SamplingRequest(0.0, 0.5, EVERY),
        SamplingRequest(0.2, None, EVERY),
        SamplingRequest(0.3, 3.0, EVERY),
        SamplingRequest(3.9, None, EVERY),
    ]
    strict = outcome(feeders, path, *tracks)
    assert [type(event) for event in strict] == [Done, Failed, Failed, Failed]
    assert all(" s" in event.reason for event in strict[1:])
    feeders.keep_damaged = True
    before, complete, across, after = outcome(feeders, path, *tracks)
    assert before == strict[0] == Done(0, 15)
    assert isinstance(after, Failed)
    assert complete.damage == across.damage == strict[1].reason
    reached = 4.0 - complete.missing
    assert complete.frames == round((reached - 0.2) * 30)
    assert across.missing == pytest.approx(3.0 - reached, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v.avi", {"height": 160, "options": {"preset": "ultrafast"}}),
        ("v.gif", {"codec": "gif", "pix_fmt": "rgb8", "fps": 10}),
    ],
)
def test_missing_seconds_are_unknown_if_the_file_does_not_store_its_duration(
    name: str, options: dict[str, object], tmp_path: Path, feeders: Feeders
) -> None:
    path = small(tmp_path / name, **{"frames": 60, **options})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    feeders.keep_damaged = True
    (done,) = outcome(feeders, path, SamplingRequest(None, None, EVERY))
    assert done.damage
    assert done.missing is None


@pytest.mark.parametrize("name", ["damaged.mp4", "damaged.mkv", "damaged.avi"])
def test_the_position_of_damage_does_not_depend_on_the_number_of_threads(name: str, tmp_path: Path) -> None:
    BAD[name][0](tmp_path / name)
    results = []
    for threads in (1, 4):
        feeders = Feeders(deadline=20, threads=threads, keep_damaged=True)
        (done,) = outcome(feeders, tmp_path / name, SamplingRequest(None, None, EVERY))
        feeders.close()
        assert done.damage
        results.append(done)
    assert results[0] == results[1]


def test_missing_seconds_of_kept_clips_are_in_the_commit_in_info_and_in_the_ledger(
    tmp_path: Path, cluster: str
) -> None:
    videos, store = tmp_path / "videos", tmp_path / "s.zarr"
    videos.mkdir()
    damaged_video(videos / "v.mp4")
    clips = [
        {"clip_id": "early", "video": "v", "start": 0.0, "end": 0.5},
        {"clip_id": "whole", "video": "v"},
        {"clip_id": "late", "video": "v", "start": 3.9},
    ]
    manifest = write_lines(tmp_path / "m.jsonl", *clips)
    keeping = extract(videos, store, cluster, "--manifest", manifest, "--damaged", "keep", code=3)
    assert keeping["streams"][R2] == {"done": 2, "empty": 0, "failed": 1, "absent": 0}
    (commit,) = open_store(store)[R2].commits.values()
    entries = {clip["clip_id"]: clip for clip in commit["clips"]}
    assert "damage" not in entries["early"]
    missing = entries["whole"]["missing"]
    assert 0 < missing < 4
    assert 1 < open_store(store)[R2]["whole"].times[-1, 1] <= 4.0 - missing + 1e-3
    ledger = {entry["clip_id"]: entry for entry in json.loads(amex("features", "failures", store, "--json").stdout)}
    assert ledger.keys() == {"whole", "late"}
    assert ledger["whole"] == {
        "stream": R2,
        "clip_id": "whole",
        "video": "v.mp4",
        "stage": "kept",
        "reason": entries["whole"]["damage"],
        "attempts": None,
        "source": open_store(store)[R2].source("whole").entry,
        "missing": missing,
        "kept": True,
    }
    assert ledger["late"].keys() == ledger["whole"].keys()
    assert (ledger["late"]["kept"], ledger["late"]["missing"], ledger["late"]["attempts"]) == (False, None, 1)
    assert "1 clip cut off where the video is damaged" in amex("features", "failures", store).output
    assert "1 cut off by damage" in amex("features", "info", store).output


@pytest.mark.parametrize(
    ("code", "words"), [("input(); import time; time.sleep(60)", "hung"), ("input(); import os; os.abort()", "SIGABRT")]
)
def test_a_file_that_hangs_or_kills_its_decoder_is_one_line_of_manifest_check(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path / "v.mp4")
    stand_in(monkeypatch, code)
    check = check_videos([Clip(clip_id="x", video="v")], tmp_path, deadline=1.0)
    assert check.bad == 1
    assert words in check.unreadable["v"]


def test_a_file_that_hangs_delays_a_dry_run_by_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path / "v.mp4")
    stand_in(monkeypatch, SILENT)
    options = ("--stream", "r2plus1d_tiny", "--device", "cpu", "--dry-run", "--deadline", 0.5, "--json")
    begin = time.monotonic()
    result = amex("extract", "--dataset", "folder", "--videos", tmp_path, "--store", tmp_path / "s.zarr", *options)
    assert time.monotonic() - begin < 20
    assert json.loads(result.stdout)["clips"] == 1


@pytest.mark.parametrize("option", ["--deadline", "--longest-frame", "--stall", "--part-minutes"])
@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf"])
def test_limits_must_be_finite_and_positive(option: str, value: str, tmp_path: Path) -> None:
    result = amex("extract", "--dataset", "folder", "--videos", tmp_path, "--store", tmp_path / "s", option, value)
    assert result.exit_code == 2
    assert option in result.output


def test_a_limit_counts_clips_and_keeps_every_problem(tmp_path: Path) -> None:
    lines = [{"clip_id": "p"}, {"clip_id": "a", "video": "v"}, {"clip_id": "q"}, {"clip_id": "b", "video": "v"}]
    items = list(scan_manifest(write_lines(tmp_path / "m.jsonl", *lines)))
    limited_items = limited(items, 1)
    assert [item.clip_id for item in limited_items if isinstance(item, Clip)] == ["a"]
    assert len(limited_items) == 3
    assert limited(items, None) == items
