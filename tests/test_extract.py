"""``amex extract`` end to end: real encodes, a real Dask worker, a real store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torchvision
from conftest import QUICK, amex, extract, write_lines
from test_decoder import BAD, long_video
from test_names import NAME, TINY
from videos import encode

from amex.extract.run import job
from amex.features import open_store

R2 = "r2plus1d_18"
FRAMES_STREAM = ("--stream", R2, "--stream", "resnet152", "--weights", "resnet152=random:0", *QUICK)


def tree(store: Path) -> dict[str, bytes]:
    """Return every file of a store, without the values that differ between equal runs: time, host, duration."""
    files = {}
    for path in sorted(store.rglob("*")):
        if path.is_file() and path.name != "sources.json":  # contains the store's name
            data = path.read_bytes()
            if path.parent.name == "commits" or path == store / "zarr.json":
                record = json.loads(data)
                record.pop("run", None)
                record.pop("sha256", None)
                if "attributes" in record:
                    for name in ("created", "sha256"):
                        record["attributes"]["amex"].pop(name, None)
                data = json.dumps(record, sort_keys=True).encode()
            files[path.relative_to(store).as_posix()] = data
    return files


def test_a_folder_of_videos_becomes_a_store(clips: Path, tmp_path: Path, cluster: str) -> None:
    result = extract(clips, tmp_path / "s.zarr", cluster)
    assert result["streams"] == {R2: {"done": 4, "empty": 0, "failed": 0, "absent": 0}}
    assert result["report"]["frames_decoded"] == 4 * 40
    stream = open_store(tmp_path / "s.zarr")[R2]
    assert sorted(stream) == ["a.mp4", "b.webm", "c.avi", "deep/er/d.mkv"]
    rows = stream["a.mp4"]
    assert rows.values.shape == (3, 512)
    assert rows.values.dtype == np.float16
    np.testing.assert_allclose(rows.times, [[0, 2 / 30], [16 / 30, 18 / 30], [32 / 30, 34 / 30]], atol=1e-4)
    commits = list(stream.commits.values())
    assert commits[0]["clips"][0]["decoder"] == "decord"
    assert commits[0]["clips"][2]["decoder"] == "pyav (codec mpeg4)"
    assert "torch" in commits[0]["run"]["versions"]


def test_the_same_command_again_does_nothing(clips: Path, tmp_path: Path, cluster: str) -> None:
    extract(clips, tmp_path / "s.zarr", cluster)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr" / R2).rglob("*") if path.is_file()}
    again = extract(clips, tmp_path / "s.zarr", cluster)
    assert again["report"]["clips"] == again["report"]["frames_decoded"] == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr" / R2).rglob("*") if path.is_file()}


def test_new_clips_and_streams_are_extracted_and_existing_ones_skipped(
    clips: Path, tmp_path: Path, cluster: str
) -> None:
    store, manifest = tmp_path / "s.zarr", tmp_path / "m.jsonl"
    first = {"clip_id": "a", "video": "a"}
    second = {"clip_id": "b", "video": "b", "start": 0.2, "end": 0.9}
    write_lines(manifest, first)
    extract(clips, store, cluster, "--manifest", manifest)
    write_lines(manifest, first, second)
    grown = extract(clips, store, cluster, "--manifest", manifest)
    assert grown["report"]["clips"] == 1
    assert grown["report"]["frames_decoded"] == 27  # 0.9 s at 30 frames per second
    added = extract(clips, store, cluster, "--manifest", manifest, *FRAMES_STREAM)
    assert added["streams"]["resnet152"]["done"] == added["streams"][R2]["done"] == 2
    assert len(open_store(store)[R2].commits) == 2
    assert len(open_store(store)["resnet152"].commits) == 1


def test_clips_and_streams_share_one_pass_over_each_video(clips: Path, tmp_path: Path, cluster: str) -> None:
    manifest = write_lines(
        tmp_path / "m.jsonl",
        {"clip_id": "whole", "video": "a"},
        {"clip_id": "early", "video": "a", "start": 0.0, "end": 0.8},
        {"clip_id": "overlapping", "video": "a", "start": 0.4, "end": 1.2},
        {"clip_id": "same", "video": "a", "start": 0.4, "end": 1.2},
        {"clip_id": "other", "video": "b"},
    )
    result = extract(clips, tmp_path / "s.zarr", cluster, "--manifest", manifest, *FRAMES_STREAM)
    assert result["report"]["frames_decoded"] == 40 + 40
    for name in (R2, "resnet152"):
        stream = open_store(tmp_path / "s.zarr")[name]
        (commit,) = stream.commits.values()
        assert commit["run"]["frames_decoded"] == {"a.mp4": 40, "b.webm": 40}
        np.testing.assert_array_equal(stream["same"].values, stream["overlapping"].values)
        for clip_id, start, end in (("early", 0.0, 0.8), ("overlapping", 0.4, 1.2)):
            times = stream[clip_id].times
            assert start <= times[0, 0]
            assert times[-1, 0] < end
    # The features of a clip do not depend on the other clips of its pass.
    alone = write_lines(tmp_path / "alone.jsonl", {"clip_id": "overlapping", "video": "a", "start": 0.4, "end": 1.2})
    extract(clips, tmp_path / "alone.zarr", cluster, "--manifest", alone)
    np.testing.assert_array_equal(
        open_store(tmp_path / "alone.zarr")[R2]["overlapping"].values,
        open_store(tmp_path / "s.zarr")[R2]["overlapping"].values,
    )


@pytest.fixture(scope="module")
def by_clips(clips: Path, tmp_path_factory: pytest.TempPathFactory, cluster: str) -> dict[str, bytes]:
    """The store of one run, with one part per clip."""
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    extract(clips, store, cluster, "--part-clips", "1")
    return tree(store)


def test_the_tasks_of_a_job_array_make_the_store_of_one_run(
    clips: Path, tmp_path: Path, cluster: str, by_clips: dict[str, bytes]
) -> None:
    store, one_clip = tmp_path / "array.zarr", ("--part-clips", "1")
    results = [extract(clips, store, cluster, "--partition", f"{number}/3", *one_clip) for number in range(3)]
    assert [result["report"]["clips"] for result in results] == [2, 1, 1]
    assert [result["streams"][R2]["done"] for result in results] == [2, 1, 1]
    assert tree(store) == by_clips
    again = extract(clips, store, cluster, "--partition", "0/3", *one_clip)
    assert again["report"]["clips"] == 0
    refused = amex("extract", "--dataset", "folder", "--videos", clips, "--store", store, "--partition", "3/3")
    assert refused.exit_code == 2
    assert "K from 0 to N-1" in refused.output


@pytest.mark.slow
def test_the_tasks_of_a_job_array_may_run_at_the_same_time(
    clips: Path, tmp_path: Path, by_clips: dict[str, bytes]
) -> None:
    store = tmp_path / "array.zarr"
    command = [sys.executable, "-m", "amex.cli", "extract", "--dataset", "folder", "--videos", clips, "--store", store]
    more = ("--device", "cpu", "--json", "--part-clips", "1", *QUICK)
    tasks = [
        subprocess.Popen(
            [str(word) for word in (*command, "--partition", f"{number}/3", *more)], stdout=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    results = [json.loads(task.communicate(timeout=300)[0]) for task in tasks]
    assert [result["streams"][R2]["done"] for result in results] == [2, 1, 1]
    assert [result["report"]["clips"] for result in results] == [2, 1, 1]
    assert all(result["exit_code"] == 0 for result in results)
    assert tree(store) == by_clips


def test_absent_clips_are_reported_and_fail_the_run(
    clips: Path, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tasks = job.run_tasks
    store = tmp_path / "s.zarr"

    def run_and_lose_one(*given: Any) -> Any:
        result = run_tasks(*given)
        max((store / NAME / "commits").glob("*.json")).unlink()
        return result

    monkeypatch.setattr(job, "run_tasks", run_and_lose_one)
    options = ("--dataset", "folder", "--videos", clips, "--store", store, "--cluster", cluster, "--device", "cpu")
    options = (*options, "--part-clips", 1, *TINY)
    lost = amex("extract", *options)
    assert lost.exit_code == 1
    message = f"{NAME}: 1 absent (neither done nor failed), the first 'deep/er/d.mkv': run the same command again"
    assert message in lost.output
    monkeypatch.setattr(job, "run_tasks", run_tasks)
    share = amex("extract", *options, "--partition", "0/2")
    assert share.exit_code == 0, share.output  # the clips of other partitions do not count
    assert extract(clips, store, cluster, "--part-clips", 1, *TINY)["report"]["clips"] == 1


def test_every_kind_of_bad_input_is_in_the_ledger_and_the_other_clips_are_done(tmp_path: Path, cluster: str) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, (make, _, _) in BAD.items():
        make(videos / name)
    for helper in ("whole.mp4", "ten.mp4"):
        (videos / helper).unlink()
    encode(videos / "good.mp4", frames=40)
    (videos / "twice.avi").touch()
    (videos / "twice.mkv").touch()
    records = [{"clip_id": name, "video": name} for name in BAD]
    manifest = write_lines(
        tmp_path / "m.jsonl",
        *records,
        {"clip_id": "good", "video": "good"},
        {"clip_id": "outside", "video": "good", "start": 60, "end": 70},
        {"clip_id": "gone", "video": "never-downloaded"},
        {"clip_id": "ambiguous", "video": "twice"},
        {"clip_id": "escape", "video": "../../etc/passwd"},
        {"clip_id": "remote", "video": "https://example.org/x.mp4"},
        {"clip_id": "good", "video": "good"},
        '{"clip_id": "half a line',
        {"clip_id": "last", "video": "good.mp4", "start": 0.5},
    )
    store = tmp_path / "s.zarr"
    result = extract(videos, store, cluster, "--manifest", manifest, code=3)
    total = len(BAD) + 7
    assert result["streams"][R2] == {"done": 2, "empty": 0, "failed": total - 2, "absent": 0}
    assert len(result["problems"]) == 2
    entries = {entry["clip_id"]: entry for entry in json.loads(amex("features", "failures", store, "--json").stdout)}
    assert len(entries) == total - 2 + 2
    for name, (_, stage, words) in BAD.items():
        if name in ("absent.mp4", "folder.mp4"):
            stage, words = "find", "no video"
        assert entries[name]["stage"] == stage, entries[name]
        assert words in entries[name]["reason"]
    assert entries["outside"]["stage"] == "sample"
    for name, words in [
        ("gone", "no video"),
        ("ambiguous", "twice.avi, twice.mkv"),
        ("escape", "leaves"),
        ("remote", "URL"),
    ]:
        assert entries[name]["stage"] == "find"
        assert words in entries[name]["reason"]
    lines = manifest.read_text().splitlines()
    assert "duplicate clip_id 'good'" in entries[f"m.jsonl:{len(lines) - 2}"]["reason"]
    assert entries[f"m.jsonl:{len(lines) - 1}"]["stage"] == "manifest"
    assert len(open_store(store)[R2]["last"]) == 2
    assert "decode" in amex("features", "failures", store).output


def test_failed_clips_are_retried_only_on_request_and_attempts_are_counted(tmp_path: Path, cluster: str) -> None:
    videos, store = tmp_path / "videos", tmp_path / "s.zarr"
    videos.mkdir()
    (videos / "v.mp4").write_bytes(b"")
    encode(videos / "w.mp4", frames=40)
    extract(videos, store, cluster, code=3)
    idle = extract(videos, store, cluster, code=3)
    assert idle["report"]["clips"] == 0
    extract(videos, store, cluster, "--retry-failed", code=3)
    assert open_store(store)[R2].failures["v.mp4"].attempts == 2
    encode(videos / "v.mp4", frames=40)
    idle = extract(videos, store, cluster, "--changed", "keep", code=3)
    assert idle["report"]["clips"] == 0
    healed = extract(videos, store, cluster)  # another file needs no request
    assert healed["report"]["clips"] == 1
    assert healed["streams"][R2]["done"] == 2
    assert amex("features", "verify", store).exit_code == 0


def test_a_clip_too_short_for_a_window_is_empty_with_tail_drop(clips: Path, tmp_path: Path, cluster: str) -> None:
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "x", "video": "a", "start": 0.0, "end": 0.2})
    options = ("--manifest", manifest, "--weights", f"{R2}=random:0", "--set", f"{R2}.tail=drop")
    result = extract(clips, tmp_path / "s.zarr", cluster, *options)
    assert result["streams"][R2]["empty"] == 1
    stream = open_store(tmp_path / "s.zarr")[R2]
    assert stream.state("x") == "empty"
    assert stream["x"].values.shape == (0, 512)


@pytest.mark.parametrize(("factor", "words"), [(float("nan"), "not finite"), (1e7, "more than float16 holds")])
def test_features_that_are_not_finite_are_failures(
    factor: float, words: str, clips: Path, tmp_path: Path, cluster: str
) -> None:
    torch.manual_seed(0)
    state = torchvision.models.video.r2plus1d_18().state_dict()
    state["layer4.1.conv2.1.weight"] *= factor  # the last batch-norm
    torch.save(state, tmp_path / "w.pt")
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "x", "video": "a"})
    options = ("--manifest", manifest, "--weights", f"{R2}={tmp_path / 'w.pt'}", "--set", f"{R2}.frames=2")
    extract(clips, tmp_path / "s.zarr", cluster, *options, code=3)
    failure = open_store(tmp_path / "s.zarr")[R2].failures["x"]
    assert failure.stage == "encode"
    assert words in failure.reason


def test_other_settings_need_another_stream_name(clips: Path, tmp_path: Path, cluster: str) -> None:
    store = tmp_path / "s.zarr"
    extract(clips, store, cluster, "--limit", 1)
    refused = extract(
        clips, store, cluster, "--limit", 1, "--precision", "fp32", *QUICK, "--set", f"{R2}.fps=5", code=1
    )
    assert "sampling.fps: None in the store, 5.0 now" in refused["output"]
    assert "--stream NAME=NETWORK" in refused["output"]
    variant = ("--stream", f"slow={R2}", "--weights", "slow=random:0", "--set", "slow.fps=5", "--set", "slow.frames=2")
    extract(clips, store, cluster, "--limit", 1, *variant)
    assert sorted(open_store(store)) == [R2, "slow"]
    other = extract(clips, store, cluster, "--weights", f"{R2}=random:1", *QUICK[2:], code=1)
    assert "weights_sha256" in other["output"]


def test_a_flipped_bit_is_found_and_repair_recomputes_only_its_part(clips: Path, tmp_path: Path, cluster: str) -> None:
    store = tmp_path / "s.zarr"
    extract(clips, store, cluster, "--part-clips", 1)
    undamaged = tree(store)
    parts = sorted(open_store(store)[R2].commits)
    assert len(parts) == 4
    untouched = {p: p.stat().st_mtime_ns for p in (store / R2).rglob("*") if p.is_file() and parts[2] not in str(p)}
    shard = next(p for p in (store / R2 / "parts").glob(f"{parts[2]}.*/values/c/**/*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    verified = amex("features", "verify", store)
    assert verified.exit_code == 1
    assert f"{R2}/{parts[2]}" in verified.output
    assert "--repair" in verified.output
    repaired = extract(clips, store, cluster, "--part-clips", 1, "--repair")
    assert repaired["repaired"] == [f"{R2}/{parts[2]}"]
    assert repaired["report"]["clips"] == 1
    assert tree(store) == undamaged
    assert untouched == {p: p.stat().st_mtime_ns for p in untouched}
    (store / R2 / "commits" / f"{parts[0]}.json").write_text("{")
    (store / R2 / "spec.json").write_text("{")
    (store / "zarr.json").write_text("{")
    assert "is damaged" in extract(clips, store, cluster, "--part-clips", 1, code=1)["output"]
    mended = extract(clips, store, cluster, "--part-clips", 1, "--repair")
    assert mended["repaired"] == ["zarr.json", f"{R2}/{parts[0]}"]
    final = tree(store)
    assert b"remade" in final["zarr.json"]
    assert final == undamaged | {"zarr.json": final["zarr.json"]}
    assert amex("features", "verify", store).exit_code == 0


def test_a_dry_run_estimates_without_weights_and_changes_nothing(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    arguments = (
        "extract",
        "--dataset",
        "folder",
        "--videos",
        clips,
        "--store",
        tmp_path / "s.zarr",
        "--dry-run",
        *QUICK[2:],
    )
    typos = tmp_path / "typos.csv"
    typos.write_text("video,caption\n" + "nothing.mp4,x\n" * 6)
    text = amex(*arguments, "--annotations", typos)
    assert "would compute 4 of 4 clips" in text.output
    assert "left out: typos.csv:2: no video 'nothing.mp4'" in text.output
    assert "left out: 1 more" in text.output
    estimate = json.loads(amex(*arguments, "--json").stdout)
    assert estimate["rows"] == {R2: 4 * 3}
    assert estimate["bytes"] == 12 * (512 * 2 + 16)
    assert 0 < estimate["decoding_hours"] < estimate["hours"]
    assert estimate["video_hours"] == pytest.approx(4 * 40 / 30 / 3600, rel=0.05)
    assert not (tmp_path / "s.zarr").exists()
    assert not (tmp_path / "none").exists()


def test_check_names_missing_unreadable_and_short_videos(clips: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    pipe = write_lines(tmp_path / "pipe.jsonl", {"clip_id": "pipe", "video": "pipe"})
    waiting = json.loads(amex("manifest", "check", pipe, "--videos", tmp_path, "--json").stdout)
    assert waiting["unreadable"] == {"pipe": "not a regular file"}
    manifest = write_lines(
        tmp_path / "m.jsonl",
        {"clip_id": "fine", "video": "a", "end": 1.0},
        {"clip_id": "long", "video": "b", "start": 1.0, "end": 30.0},
        {"clip_id": "none", "video": "nowhere"},
        "{}",
    )
    result = amex("manifest", "check", manifest, "--videos", clips, "--json")
    assert result.exit_code == 3
    verified = json.loads(result.stdout)
    assert list(verified["missing"]) == ["nowhere"]
    assert "needs 30.0 s of b, which has 1.3 s" in verified["too_short"]["long"]
    assert list(verified["manifest"]) == ["m.jsonl:4"]
    output = amex("manifest", "check", manifest, "--videos", clips).output
    assert output.endswith("of 3 videos, missing: 1 video, too short: 1 clip, manifest: 1 line\n")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_worker_and_decoder_use_less_than_two_gigabytes_for_a_long_video(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    long_video(videos / "long.mp4", 10)
    (videos / "seed.mp4").unlink()
    import subprocess
    import sys

    options = ["--weights", f"{R2}=random:0", "--set", f"{R2}.fps=2", "--device", "cpu"]
    command = [sys.executable, "-m", "amex.cli", "extract", "--dataset", "folder", "--videos", videos]
    run = subprocess.Popen([*map(str, command), "--store", str(tmp_path / "s.zarr"), *options])
    peak = decoding = 0
    while run.poll() is None:
        total = {}
        for process in psutil.Process(run.pid).children(recursive=True):
            try:
                total[" ".join(process.cmdline())] = process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        workers = [rss for name, rss in total.items() if "spawn_main" in name]
        decoders = [rss for name, rss in total.items() if "amex.extract.video.feeder" in name]
        decoding = max(decoding, *decoders, 0)
        peak = max(peak, max(workers, default=0) + max(decoders, default=0))
        time.sleep(0.2)
    assert run.returncode == 0
    assert len(open_store(tmp_path / "s.zarr")[R2]["long.mp4"]) == 75  # 600 s at 2 fps, 16 frames each
    assert 0 < peak < 2 << 30, f"{peak >> 20} MiB"
    assert 0 < decoding < 700 << 20, f"{decoding >> 20} MiB"


def test_an_unsuitable_checkpoint_is_reported_with_its_stream(clips: Path, tmp_path: Path, cluster: str) -> None:
    import torch

    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    streams = ("--stream", "first=r2plus1d_tiny", "--stream", "second=r2plus1d_tiny")
    options = ("--weights", f"second={tmp_path / 'other.pt'}", "--limit", 1)
    result = extract(clips, tmp_path / "s.zarr", cluster, *streams, *options, code=1)
    assert "stream second: " in result["output"]
    assert "other.pt is not a checkpoint of this network" in result["output"]
