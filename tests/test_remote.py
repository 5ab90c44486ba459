"""Stores in S3, tested with a local server: commits are one PUT, busy servers are retried, errors are one line."""

from __future__ import annotations

import functools
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, amex, extract, write_lines
from distributed import Client
from s3_server import Server
from s3fs import S3FileSystem
from stand_in import ask_s3_again_at_once
from test_extract import R2
from test_names import NAME, TINY
from test_store import SPEC, rows_of

from amex.features import (
    StoreError,
    create_store,
    declare_stream,
    open_store,
    remove_stream,
    shards,
    verify,
    write_part,
)
from amex.storage import open_path, write_text
from amex.storage.s3 import S3_OPTIONS, SENT_TOGETHER, ObjectStorage


@pytest.fixture(scope="module")
def scheduler(server: Server, cluster: str) -> Iterator[str]:
    """Yield the session's scheduler with a worker that has the same environment and the same short retry delays."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with Client(cluster, set_as_default=False) as client:
        client.run(lambda: os.environ.update(settings))
        client.run(ask_s3_again_at_once, True)
        yield cluster
        client.run(ask_s3_again_at_once, False)
        client.run(lambda: [os.environ.pop(name) for name in settings])


def run(videos: Path | str, store: Path | str, scheduler: str, *more: Any) -> Any:
    source = () if "--manifest" in more else ("--dataset", "folder")
    arguments = (
        "--videos",
        videos,
        "--store",
        store,
        "--cluster",
        scheduler,
        "--device",
        "cpu",
        "--part-clips",
        1,
        *QUICK,
    )
    return amex("extract", *source, *arguments, *more)


def test_few_files_are_in_memory_during_an_upload_to_s3(
    server: Server, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, lock, sent = create_store(f"{s3}/s.zarr"), threading.Lock(), Counter()
    declare_stream(store, "s", SPEC, {})
    monkeypatch.setattr(shards, "CHUNK_BYTES", 1)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)  # one row per file

    def slow(request: dict[str, Any]) -> None:
        if "/values/c/" in request["PATH_INFO"] and request["REQUEST_METHOD"] == "PUT":
            with lock:
                sent["now"] += 1
                sent["most"] = max(sent["most"], sent["now"])
            time.sleep(0.05)
            with lock:
                sent["now"] -= 1

    server.trouble = slow
    write_part(store, "s", "0", spec=SPEC, clips=[rows_of("a", 24)], failures=[], run={})
    assert 1 < sent["most"] <= SENT_TOGETHER
    assert len(open_store(store)["s"]["a"]) == 24


def test_a_run_writes_the_same_store_to_s3_and_to_disk(clips: Path, tmp_path: Path, scheduler: str, s3: str) -> None:
    extract(clips, tmp_path / "s.zarr", scheduler, "--part-clips", 1)
    result = run(clips, f"{s3}/a/s.zarr", scheduler)
    assert result.exit_code == 0, result.output
    here, reread = open_store(tmp_path / "s.zarr")[R2], open_store(f"{s3}/a/s.zarr")[R2]
    assert here.fingerprint == reread.fingerprint
    assert list(here) == list(reread)
    assert here.commits.keys() == reread.commits.keys()
    for clip_id in here:
        assert (here[clip_id].times == reread[clip_id].times).all()
        assert (here[clip_id].values == reread[clip_id].values).all()
    assert not [damage for damage in verify(reread) if damage]
    again = run(clips, f"{s3}/a/s.zarr", scheduler)
    assert again.output.startswith("computed 0 clips")
    assert amex("features", "verify", f"{s3}/a/s.zarr").output.endswith("is intact\n")
    assert "4 clips" in amex("features", "info", f"{s3}/a/s.zarr").output


def test_commits_of_other_processes_are_visible_immediately(
    clips: Path, tmp_path: Path, scheduler: str, s3: str
) -> None:
    store, manifest = f"{s3}/s.zarr", tmp_path / "m.jsonl"
    lines = [{"clip_id": name, "video": name} for name in ("a.mp4", "b.webm", "c.avi")]
    where = ("--videos", clips, "--store", store, "--cluster", scheduler, "--device", "cpu", *TINY)
    opened = None
    for count in (1, 2, 3):
        write_lines(manifest, *lines[:count])
        result = amex("extract", "--manifest", manifest, *where)
        assert result.exit_code == 0, result.output
        assert "computed 1 clip," in result.output
        assert f"{NAME}: {count} done, 0 empty, 0 failed, 0 absent" in result.output
        opened = opened or open_path(store)  # also with a path that was made before
        assert len(list((opened / NAME / "commits").iterdir())) == count
        assert len(open_store(opened)[NAME]) == count


def test_a_model_is_trained_from_a_store_in_s3(tmp_path: Path, scheduler: str, s3: str) -> None:
    assert amex("manifest", "shapes", "--out", tmp_path, "--clips", 20).exit_code == 0
    manifest = tmp_path / "manifest.jsonl"
    stream = ("--manifest", manifest, "--stream", "r2plus1d_tiny")
    where = ("--store", f"{s3}/s.zarr", "--cluster", scheduler)
    result = amex("extract", *stream, "--videos", tmp_path / "videos", *where, "--device", "cpu")
    assert result.exit_code == 0, result.output
    # Without memory for the features, worker processes read each sample from the store.
    small = ("model.text=words", "train.epochs=1", "data.workers=1", "data.memory_gb=0")
    settings = [word for setting in small for word in ("--set", setting)]
    trained = amex(
        "train", "dual_encoding_shapes", *where[:2], "--manifest", manifest, "--work-dir", tmp_path / "w", *settings
    )
    assert trained.exit_code == 0, trained.output
    assert "rsum" in amex("eval", tmp_path / "w" / "best.pth").output


def test_busy_servers_are_retried(clips: Path, scheduler: str, s3: str, server: Server) -> None:
    """A quarter of all requests fails with 503 or 500."""
    chance = random.Random(0)
    server.trouble = lambda environ: chance.choice([503, 500]) if chance.random() < 0.25 else None
    result = run(clips, f"{s3}/s.zarr", scheduler)
    server.trouble = lambda environ: None
    assert result.exit_code == 0, result.output
    stream = open_store(f"{s3}/s.zarr")[R2]
    assert len(stream) == 4
    assert not [damage for damage in verify(stream) if damage]


def test_timeouts_are_retried(s3: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(S3_OPTIONS["config_kwargs"], "read_timeout", 1)
    path = open_path(f"{s3}/x.json")
    write_text(path, "there")
    server.seen.clear()
    slow = iter([3.0])
    server.trouble = lambda environ: time.sleep(next(slow, 0.0))
    assert path.read_text() == "there"
    assert len(server.seen) > 1


def test_the_commit_record_is_uploaded_last_and_readers_never_see_a_partial_part(
    clips: Path, scheduler: str, s3: str, server: Server
) -> None:
    server.seen.clear()
    done = threading.Event()
    problems: list[str] = []

    def read() -> None:
        while not done.wait(0.1):
            try:
                stream = open_store(f"{s3}/s.zarr")[R2]
                problems.extend(f"{clip_id}: no rows" for clip_id in stream if not len(stream[clip_id]))
            except StoreError as error:
                if "not an amex store" not in str(error) and "no stream" not in str(error):
                    problems.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    result = run(clips, f"{s3}/s.zarr", scheduler)
    done.set()
    reader.join()
    assert result.exit_code == 0, result.output
    assert problems == []
    puts = [path for method, path in server.seen if method == "PUT"]
    for place, path in enumerate(puts):
        if "/commits/" in path:
            part = path.rpartition("/")[2].removesuffix(".json")
            assert any(f"/parts/{part}." in before for before in puts[:place])
            assert not any(f"/parts/{part}." in after for after in puts[place:])


def test_the_first_of_two_writers_in_s3_wins(s3: str) -> None:
    path = open_path(f"{s3}/x.json")
    write_text(path, "first", once=True)
    write_text(path, "second", once=True)
    assert path.read_text() == "first"
    write_text(path, "third")
    assert path.read_text() == "third"


def test_only_the_damaged_part_in_s3_is_recomputed(clips: Path, scheduler: str, s3: str) -> None:
    assert run(clips, f"{s3}/s.zarr", scheduler).exit_code == 0
    part = sorted(open_store(f"{s3}/s.zarr")[R2].commits)[1]
    (shard,) = open_path(f"{s3}/s.zarr").glob(f"{R2}/parts/{part}.*/values/c/0/0")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    result = amex("features", "verify", f"{s3}/s.zarr")
    assert (result.exit_code, f"{R2}/{part}" in result.output) == (1, True)
    mended = run(clips, f"{s3}/s.zarr", scheduler, "--repair")
    assert f"repaired: {R2}/{part}" in mended.output
    assert amex("features", "verify", f"{s3}/s.zarr").output.endswith("is intact\n")


def test_a_part_in_s3_without_commit_record_is_reported_and_recomputed(s3: str) -> None:
    store = create_store(f"{s3}/s.zarr")
    declare_stream(store, "s", SPEC, {})
    part = {"spec": SPEC, "clips": [rows_of("a", 3)], "failures": [], "run": {}}
    write_part(store, "s", "0", **part)
    (store / "s" / "commits" / "0.json").unlink()
    result = amex("features", "verify", store)
    assert (result.exit_code, "its commit record is missing: 1 clip is absent" in result.output) == (1, True)
    write_part(store, "s", "0", **part)
    assert amex("features", "verify", store).output.endswith("is intact\n")


def test_a_killed_removal_in_s3_is_reported_and_can_be_finished(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create_store(f"{s3}/s.zarr")
    for stream, spec in (("s", SPEC), ("t", {**SPEC, "network": "other"})):
        declare_stream(store, stream, spec, {})
        write_part(store, stream, "0", spec=spec, clips=[rows_of("a", 3)], failures=[], run={})
    original, removed = ObjectStorage.remove, []

    def killed(storage: ObjectStorage) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(storage.path)
        original(storage)

    monkeypatch.setattr(ObjectStorage, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_stream(store, "s")
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"spec\.json is missing"):
        open_store(f"{s3}/s.zarr")["s"]
    result = amex("features", "verify", f"{s3}/s.zarr")
    assert (result.exit_code, "s/spec.json" in result.output) == (1, True)
    done = amex("features", "rm", f"{s3}/s.zarr", "s", "--yes")
    assert done.exit_code == 0, done.output
    assert amex("features", "verify", f"{s3}/s.zarr").output.endswith("is intact\n")
    assert list(open_store(f"{s3}/s.zarr")) == ["t"]
    assert len(open_store(f"{s3}/s.zarr")["t"]["a"]) == 3


@pytest.mark.parametrize(
    ("status", "place", "words"),
    [(403, "s.zarr", "Forbidden"), (None, "../nowhere-at-all/s.zarr", "nowhere-at-all")],
)
def test_errors_of_s3_are_one_line(
    status: int | None, place: str, words: str, clips: Path, scheduler: str, s3: str, server: Server
) -> None:
    server.trouble = lambda environ: status
    store = f"{s3}/{place}" if status else "s3://nowhere-at-all/s.zarr"
    for refused in (run(clips, store, scheduler), amex("features", "info", store)):
        assert refused.exit_code == 1
        (line,) = refused.output.splitlines()
        assert line.startswith("Error: ")
        assert store in line
        assert words in line


def test_a_stream_without_access_in_s3_is_a_one_line_error(
    clips: Path, scheduler: str, s3: str, server: Server
) -> None:
    assert run(clips, f"{s3}/s.zarr", scheduler).exit_code == 0
    server.trouble = lambda environ: 403 if "/commits" in environ["PATH_INFO"] else None
    refused = amex("features", "ls", f"{s3}/s.zarr", R2)
    assert refused.exit_code == 1
    (line,) = refused.output.splitlines()
    assert line == f"Error: {s3}/s.zarr cannot be read or written: Forbidden"


def test_missing_credentials_are_a_one_line_error(
    clips: Path, scheduler: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3FileSystem.clear_instance_cache()
    refused = run(clips, f"{s3}/s.zarr", scheduler)
    assert refused.exit_code == 1
    (line,) = refused.output.splitlines()
    assert "redentials" in line


def test_videos_in_s3_are_downloaded_one_by_one_and_deleted(
    clips: Path, tmp_path: Path, scheduler: str, s3: str, server: Server
) -> None:
    root = open_path(f"{s3}/videos")
    for path in (path for path in clips.rglob("*") if path.is_file()):
        (root / path.relative_to(clips).as_posix()).write_bytes(path.read_bytes())
    before = set(Path(tempfile.gettempdir()).glob("amex-*"))
    chance = random.Random(0)
    server.trouble = lambda environ: 503 if chance.random() < 0.2 else None
    manifest = write_lines(
        tmp_path / "m.jsonl",
        {"clip_id": "a", "video": "a.mp4"},
        {"clip_id": "cut", "video": "a.mp4", "start": 0.2, "end": 0.8},
        {"clip_id": "d", "video": "d"},  # named by id
        {"clip_id": "gone", "video": "gone.mp4"},
        {"clip_id": "out", "video": "../a.mp4"},
    )
    result = run(root, tmp_path / "s.zarr", scheduler, "--manifest", manifest)
    assert result.exit_code == 3, result.output
    stream = open_store(tmp_path / "s.zarr")[R2]
    assert set(stream) == {"a", "cut", "d"}
    assert {failure.stage for failure in stream.failures.values()} == {"find"}
    assert stream.failures.keys() == {"gone", "out"}
    source = stream.source("a")
    assert (source.bytes, source.modified is None) == ((clips / "a.mp4").stat().st_size, False)
    again = run(root, tmp_path / "s.zarr", scheduler, "--manifest", manifest)
    assert "computed 0 clips" in again.output
    assert set(Path(tempfile.gettempdir()).glob("amex-*")) <= before
    assert run(clips, tmp_path / "here.zarr", scheduler).exit_code == 0
    assert (open_store(tmp_path / "here.zarr")[R2]["a.mp4"].times == stream["a"].times).all()


def test_videos_on_a_web_server_are_downloaded(clips: Path, tmp_path: Path, scheduler: str) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=clips)
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{http.server_port}"
    lines = ({"clip_id": name, "video": name} for name in ("a.mp4", "deep/er/d.mkv", "none.mp4"))
    manifest = write_lines(tmp_path / "m.jsonl", *lines)
    result = run(address, tmp_path / "s.zarr", scheduler, "--manifest", manifest)
    unlisted = run(address, tmp_path / "t.zarr", scheduler)
    assert result.exit_code == 3, result.output
    stream = open_store(tmp_path / "s.zarr")[R2]
    assert set(stream) == {"a.mp4", "deep/er/d.mkv"}
    assert stream.failures["none.mp4"].stage == "find"
    assert stream.failures["none.mp4"].reason == f"no {address}/none.mp4"
    assert (unlisted.exit_code, "cannot be listed" in unlisted.output) == (1, True)
    http.shutdown()
    http.server_close()
    refused = run(address, tmp_path / "t.zarr", scheduler, "--manifest", manifest)
    assert (refused.exit_code, refused.output) == (
        1,
        f"Error: {address}/ cannot be reached: [Errno 111] Connection refused\n",
    )


def test_missing_s3_libraries_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    refused = amex("features", "info", "s3://bucket/s.zarr")
    assert (refused.exit_code, "pip install 'amex[s3]'" in refused.output) == (1, True)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_use_their_own_connections_to_s3(s3: str, start: str) -> None:
    import torch
    from test_dataset import MOTION, add
    from torch.utils.data import DataLoader

    add(open_path(f"{s3}/s.zarr"), "motion", MOTION, {f"c{i}": i % 5 for i in range(20)})
    stream = open_store(f"{s3}/s.zarr")["motion"]
    complete = stream.dataset().batch(range(20))  # this process has open connections
    loader = DataLoader(stream.dataset(), batch_size=10, num_workers=1, multiprocessing_context=start)
    assert torch.equal(torch.cat([batch["mask"].sum(1) for batch in loader]), complete["mask"].sum(1))


def test_the_doctor_lists_a_bucket(s3: str) -> None:
    from amex.cli.doctor import places
    from amex.cli.doctor.findings import Subject

    (finding,) = places.bucket(Subject(folder=Path(), bucket=s3))
    assert finding.found == f"{s3} can be listed: nothing is in it"
    (wrong,) = places.bucket(Subject(folder=Path(), bucket="s3://nobody-has-this/x"))
    assert (wrong.state, wrong.essential) == ("broken", True)
    assert "AWS_ENDPOINT_URL" in wrong.remedy
    assert not list(places.bucket(Subject(folder=Path())))
