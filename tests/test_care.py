"""Compaction, merge, copy and removal lose no clip, even if they are interrupted."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import amex, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from test_changed import TINY, compute
from test_store import OBJECTS, SPEC, TEXT, damages, make, rows_of, verified
from test_store_damage import contents, resealed

from amex.features import (
    ClipRows,
    ClipSource,
    Failure,
    SpecMismatch,
    Stream,
    clip_arrays,
    compact,
    copy_store,
    create_store,
    declare_stream,
    open_store,
    remove_clips,
    remove_leftovers,
    row_arrays,
    schema,
    write_part,
    write_problems,
)
from amex.features.care import copying, rewriting
from amex.storage import open_path

ROW = 2 * 6 + 16  # bytes of a row of SPEC


def failure(clip_id: str, attempts: int = 1, revision: int = 0) -> Failure:
    source = {"start": None, "end": None, "bytes": 7} | ({"revision": revision} if revision else {})
    return Failure(clip_id=clip_id, video=clip_id, stage="open", reason="torn", attempts=attempts, source=source)


def clip(clip_id: str, count: int, revision: int = 0, **more: Any) -> ClipRows:
    rows = rows_of(clip_id, count, seed=revision)
    source = ClipSource(video=f"{clip_id}.mp4", start=0.5, end=None, bytes=9, modified=8, sha256="x", revision=revision)
    return ClipRows(clip_id=clip_id, arrays=rows.arrays, source=source, decoder=f"of {clip_id}", **more)


def add(store: Path, part: str, clips: list[ClipRows], failures: list[Failure] | None = None, **run: Any) -> None:
    run = {"host": f"host of {part[:6]}", "versions": {"torch": part[:3]}, **run}
    write_part(store, "s", part, spec=SPEC, clips=clips, failures=failures or [], run=run)


def many(path: Path, count: int = 12) -> Path:
    """Return a stream of small parts with revisions, failures, empty and cut-off clips."""
    store = make(path, {})
    for number in range(count):
        part = f"{number:06d}-{number:012x}"
        clips = [
            clip(f"{number}a", 3 + number),
            clip(f"{number}b", 2, damage="torn", missing=None if number % 2 else 1.5),
        ]
        add(store, part, clips, [failure(f"{number}f")])
    add(store, "000001-late", [clip("1a", 5, revision=1), clip("empty", 0)])
    add(store, "000002-late", [clip("2f", 4)], [failure("3f", attempts=2), failure("4a", revision=1)])
    return store


def truth(store: Path, name: str = "s") -> dict[str, Any]:
    """Return everything that a reader can get of the clips of a stream."""
    stream = open_store(store)[name]
    clips = {}
    for clip_id in sorted(stream):
        part, place = stream.place(clip_id)
        rows = stream[clip_id]
        clips[clip_id] = (
            stream.commits[part]["clips"][place],
            {key: (array.dtype.str, array.tobytes()) for key, array in rows.arrays.items()},
        )
    return {"clips": clips, "failures": dict(sorted(stream.failures.items())), "cut": sorted(stream.cut_off())}


def folders(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "s" / "parts").iterdir() if path.is_dir())


# --- Compaction ------------------------------------------------------------------------------------------------------


def test_compaction_joins_small_parts_and_changes_no_clip(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr")
    before, digest = truth(store), open_store(store)["s"].digest(["0a", "1a", "4a", "gone"])
    done = compact(store, "s")
    assert (done.parts_before, done.parts_after, done.damaged) == (14, 1, {})
    assert done.dropped == 4  # rows 1a and 4a of the first revision, failure 2f, the first failure 3f
    assert truth(store) == before
    assert open_store(store)["s"].digest(["0a", "1a", "4a", "gone"]) == digest
    (commit,) = open_store(store)["s"].commits.values()
    assert len(folders(store)) == 1
    assert len(commit["run"]["made_of"]["hosts"]) == 12
    assert [entry["torch"] for entry in commit["run"]["made_of"]["versions"]] == ["000"]
    assert not damages(store)
    kept = contents(store)
    assert len(commit["origins"]) < len(commit["clips"])
    again = compact(store, "s")
    assert (again.parts_after, again.dropped) == (1, 0)
    assert contents(store) == kept
    add(store, "000099-x", [clip("later", 1)])
    compact(store, "s")
    assert open_store(store)["s"].digest(["0a", "1a", "4a", "gone"]) == digest


sizes = st.lists(st.integers(0, 30), min_size=1, max_size=12)


@settings(max_examples=10)
@given(sizes, st.integers(1, 40), st.integers(1, 6))
def test_a_second_compaction_does_nothing_and_new_parts_stay_within_the_limit(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], rows: int, entries: int
) -> None:
    store = make(tmp_path_factory.mktemp("c") / "s.zarr", {})
    for number, count in enumerate(counts):
        clips = [clip(f"{number % 4} {n}", 1 + count % 3, revision=number // 4) for n in range(count // 3)]
        add(store, f"{number:06d}-x", clips, [failure(f"f{number}")])
    before = truth(store)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rewriting, "PART_CLIPS", entries)
        compact(store, "s", part_bytes=rows * ROW)
        parts = list(open_store(store)["s"].commits)
        again = compact(store, "s", part_bytes=rows * ROW)
    stream = open_store(store)["s"]
    assert list(stream.commits) == parts, again
    assert truth(store) == before
    assert verified(stream)
    for commit in stream.commits.values():
        if commit["part"][7:] != "x":
            assert len(commit["clips"]) <= max(1, entries)
            assert commit["rows"] <= rows or len(commit["clips"]) == 1


@pytest.mark.parametrize("spec", [OBJECTS, TEXT], ids=["objects", "text"])
def test_compaction_copies_all_arrays_of_objects_and_text(spec: dict, tmp_path: Path) -> None:
    store = create_store(tmp_path / "s.zarr")
    declare_stream(store, "s", spec, {})
    generator = np.random.default_rng(0)
    for number in range(4):
        shapes = {name: ((3, *shape), dtype) for name, (shape, dtype) in row_arrays(spec).items()} | clip_arrays(spec)
        arrays = {name: generator.integers(0, 99, shape).astype(dtype) for name, (shape, dtype) in shapes.items()}
        clips = [ClipRows(clip_id=f"a person {number}", arrays=arrays), ClipRows(clip_id=f"{number}", arrays=arrays)]
        write_part(store, "s", f"{number}", spec=spec, clips=clips, failures=[], run={})
    before = truth(store)
    assert compact(store, "s").parts_after == 1
    assert truth(store) == before
    assert verified(open_store(store)["s"])


def test_a_trial_reports_the_compaction_and_writes_nothing(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr")
    before = contents(store)
    result = amex("features", "compact", store, "--dry-run")
    assert "s: 14 parts" in result.output
    assert "would be 1 part, about" in result.output
    trial = json.loads(amex("features", "compact", store, "--dry-run", "--json").stdout)
    assert contents(store) == before
    done = json.loads(amex("features", "compact", store, "s", "--json").stdout)
    assert trial["dry_run"]
    assert trial["streams"]["s"]["parts_after"] == done["streams"]["s"]["parts_after"] == 1
    assert "s: nothing to do, 1 part" in amex("features", "compact", store).output
    assert "no stream 't'" in amex("features", "compact", store, "t").output


def test_large_parts_of_an_old_format_are_rewritten_on_request(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {})
    add(store, "000000-x", [clip(str(number), 4) for number in range(5)])
    add(store, "000001-x", [clip("small", 1)])
    resealed(store / "s/commits/000000-x.json", format=3)
    before = truth(store)
    size = {"part_bytes": 9 * ROW}
    assert compact(store, "s", **size).parts_after == 2
    assert "000000-x" in open_store(store)["s"].commits
    done = compact(store, "s", **size, old=True)
    assert done.parts_after == 3  # clips of 4 rows, two in each, and the last with the small part
    assert truth(store) == before
    assert all(commit["format"] == schema.FORMAT for commit in open_store(store)["s"].commits.values())
    assert compact(store, "s", **size, old=True).parts_after == 3
    assert verified(open_store(store)["s"])


def test_damaged_parts_are_reported_and_the_others_are_compacted(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr")
    (bad,) = (store / "s" / "parts").glob("000005-*")
    shard = bad / "values" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 4
    shard.write_bytes(data)
    (store / "s" / "commits" / f"000006-{6:012x}.json").write_text("{")
    (hiding,) = (store / "s" / "parts").glob("000001-late*")
    (hiding / "times" / "c" / "0" / "0").unlink()
    result = amex("features", "compact", store)
    assert result.exit_code == 1
    for part, words in (
        (f"000005-{5:012x}", "has changed"),
        (f"000006-{6:012x}", "is damaged"),
        ("000001-late", "missing"),
    ):
        assert f"s/{part}: " in result.stderr
        assert words in result.stderr
    stream = open_store(store, skip_damaged=True)["s"]
    # The part with rows that a damaged part hides is not changed either: its rows are the intact copy.
    assert sorted(stream.commits)[1:] == [f"000001-{1:012x}", "000001-late", f"000005-{5:012x}"]
    assert len(stream["7a"]) == 10
    assert json.loads(amex("features", "compact", store, "--json").stdout)["streams"]["s"]["parts_after"] == 4


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from amex import features
from amex.storage.local import LocalStorage
nth, calls = int(sys.argv[3]), []

def killing(kept):
    def step(*given, **options):
        calls.append(given)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return kept(*given, **options)
    return step

for name in ("rename", "link", "replace", "unlink", "rmdir", "fsync"):
    setattr(os, name, killing(getattr(os, name)))
Path.rename = killing(Path.rename)
LocalStorage.remove = killing(LocalStorage.remove)
LocalStorage.publish = killing(LocalStorage.publish)
exec(sys.argv[4])
print(len(calls))
"""


def killed_everywhere(code: str, fresh: Callable[[], Path], check: Callable[[Path], None], steps: int) -> None:
    """Run code on new copies of a store, killed at a different step each time.

    Args:
        steps: how many of them at most, evenly spread, with the first and the last.
    """
    command = [sys.executable, "-c", KILLED, "", Path(__file__).parent]
    store = fresh()
    complete = subprocess.run([*command[:3], store, command[4], "0", code], capture_output=True, text=True, check=True)
    count = int(complete.stdout)
    check(store)
    for nth in sorted({round(place) for place in np.linspace(1, count, min(steps, count))}):
        store = fresh()
        ended = subprocess.run([*command[:3], store, command[4], str(nth), code], check=False, capture_output=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        check(store)


COMPACT = "features.compact(Path(sys.argv[1]), 's', part_bytes=40 * 28)"


@pytest.mark.parametrize("steps", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_a_killed_compaction_loses_no_clip(steps: int, tmp_path: Path) -> None:
    original = many(tmp_path / "o.zarr", 6)
    before = truth(original)
    numbers = iter(range(1000))

    def fresh() -> Path:
        return Path(shutil.copytree(original, tmp_path / f"{next(numbers)}.zarr"))

    def check(store: Path) -> None:
        assert truth(store) == before
        assert {damage.kind for damage in damages(store)} <= {"leftover"}
        compact(store, "s", part_bytes=40 * ROW)
        assert truth(store) == before
        kept = list(open_store(store)["s"].commits)
        assert amex("features", "verify", store, "--prune").exit_code == 0
        assert not damages(store)
        compact(store, "s", part_bytes=40 * ROW)
        assert list(open_store(store)["s"].commits) == kept
        shutil.rmtree(store)

    killed_everywhere(COMPACT, fresh, check, steps)


READS = """
import sys, time
from pathlib import Path
from amex.features import open_store
from amex.features import Stream
store = Path(sys.argv[1])
stream = open_store(store)["s"]
ids = sorted(stream)
expected = {clip_id: stream[clip_id].values.tobytes() for clip_id in ids}
print("ready", flush=True)
rounds = 0
while not (store / "done").exists():
    for opened in (stream, open_store(store)["s"]):
        assert sorted(opened) == ids
        for clip_id, rows in zip(ids, opened.read(ids), strict=True):
            assert rows.values.tobytes() == expected[clip_id]
    rounds += 1
assert not [clip_id for clip_id in ids if open_store(store)["s"].state(clip_id) == "absent"]
print(rounds)
"""


def test_an_open_stream_is_readable_during_a_compaction(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr")
    command = [sys.executable, "-c", READS, store]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert reader.stdout.readline() == "ready\n"
    for rows in (20, 60, 10_000):
        compact(store, "s", part_bytes=rows * ROW)
        time.sleep(0.1)
    (store / "done").touch()
    output, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors
    assert int(output) > 0
    assert len(open_store(store)["s"].commits) == 1


AT_ONCE = """
import sys, time
from pathlib import Path
from amex import features
print("ready", flush=True)
begin = float(sys.stdin.readline())
while time.time() < begin:
    pass
exec(sys.argv[2])
"""


def at_once(store: Path, *codes: str) -> None:
    """Run programs in separate processes that start at the same time."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([sys.executable, "-c", AT_ONCE, store, code], **pipes) for code in codes]
    assert [run.stdout.readline() for run in runs] == ["ready\n"] * len(runs)
    for run in runs:
        print(time.time() + 0.1, file=run.stdin, flush=True)
    for run in runs:
        _, errors = run.communicate(timeout=100)
        assert run.returncode == 0, errors


@pytest.mark.parametrize("rows", [(1000, 1000), (30, 70)], ids=["alike", "different"])
def test_concurrent_compactions_lose_no_clip(rows: tuple[int, int], tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr")
    before = truth(store)
    at_once(store, *(f"features.compact(Path(sys.argv[1]), 's', part_bytes={count * ROW})" for count in rows))
    assert truth(store) == before
    compact(store, "s")
    assert truth(store) == before
    assert len(open_store(store)["s"].commits) == 1
    assert not damages(store)


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a file system without locks while other programs rewrite a stream."""
    monkeypatch.setattr("fcntl.flock", lambda *arguments: None)


@pytest.mark.usefixtures("unlocked")
def test_a_compaction_ignores_parts_removed_while_it_opens_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, opened = many(tmp_path / "s.zarr"), []

    def compacted_meanwhile(*args: Any, **options: Any) -> Stream:
        stream = Stream(*args, **options)
        opened.append(stream)
        if len(opened) == 1:
            compact(store, "s")
        return stream

    monkeypatch.setattr("amex.features.care.compact.Stream", compacted_meanwhile)
    compact(store, "s")
    assert len(open_store(store)["s"].commits) == 1


@pytest.mark.usefixtures("unlocked")
def test_a_compaction_restarts_if_its_parts_are_rewritten_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = many(tmp_path / "s.zarr")
    before, look, looked = truth(store), rewriting.find_fault, []

    def others_rewrite(folder: Path, commit: dict[str, Any], **how: Any) -> str:
        reason = look(folder, commit, **how)
        looked.append(folder)
        if len(looked) == 3:
            compact(store, "s", part_bytes=30 * ROW)
        return reason

    monkeypatch.setattr(rewriting, "find_fault", others_rewrite)
    assert compact(store, "s").damaged == {}
    assert truth(store) == before
    assert len(folders(store)) == 1


@pytest.mark.usefixtures("unlocked")
def test_a_removal_also_removes_the_clip_from_parts_compacted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = many(tmp_path / "s.zarr"), rewriting.write_part

    def after_a_compaction(*arguments: Any, **more: Any) -> dict[str, Any]:
        monkeypatch.setattr(rewriting, "write_part", write)
        compact(store, "s")
        return write(*arguments, **more)

    before = truth(store)
    del before["clips"]["0a"]
    monkeypatch.setattr(rewriting, "write_part", after_a_compaction)
    remove_clips(store, "s", ["0a"])
    assert truth(store) == before
    assert not damages(store)


def test_a_clip_removed_during_compactions_does_not_reappear(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr", 12)
    before = truth(store)["clips"]
    compacted = "for rows in (10, 30, 90, 9000): features.compact(Path(sys.argv[1]), 's', part_bytes=rows * 28)"
    gone = ["0a", "3b", "6a", "11b"]
    removed = f"features.remove_clips(Path(sys.argv[1]), 's', {gone})"
    at_once(store, compacted, removed, f"time.sleep(0.2); {removed}")
    assert truth(store)["clips"] == {name: clip for name, clip in before.items() if name not in gone}
    assert not damages(store)


HOLDS = """
import sys, time
from pathlib import Path
from amex.storage import storage_at
with storage_at(Path(sys.argv[1]) / "s" / ".rewriting.lock").locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_rewriting_waits_for_a_running_rewrite_but_not_for_a_killed_one(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr", 3)
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, store], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    waiting = threading.Thread(target=compact, args=(store, "s"))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    assert compact(store, "s", trial=True).parts_after == 1  # a trial does not wait
    holder.kill()
    holder.communicate()
    waiting.join(30)
    assert len(open_store(store)["s"].commits) == 1
    assert not damages(store)


def test_parts_written_during_a_compaction_are_not_lost(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr")
    before = truth(store)["clips"].keys()
    write = (
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_care import add, clip\n"
        "for n in range(8): add(Path(sys.argv[1]), f'{n + 20:06d}-x', [clip(f'new {n}', 3)])"
    )
    at_once(store, "for rows in (10, 30, 90): features.compact(Path(sys.argv[1]), 's', part_bytes=rows * 28)", write)
    now = truth(store)["clips"]
    assert now.keys() == before | {f"new {n}" for n in range(8)}
    assert compact(store, "s").parts_after == 1
    assert truth(store)["clips"].keys() == now.keys()
    assert not damages(store)


def test_copy_and_verify_during_a_compaction_find_all_clips_and_no_damage(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr", 20)
    before = truth(store)
    copied = "features.copy_store(Path(sys.argv[1]), Path(sys.argv[1]).with_name('c.zarr'))"
    verified = (
        "for _ in range(5):\n"
        "    found = [d for d in features.verify_store(Path(sys.argv[1])) if d and d.kind != 'leftover']\n"
        "    assert not found, found"
    )
    compacted = "for rows in (10, 30, 9000): features.compact(Path(sys.argv[1]), 's', part_bytes=rows * 28)"
    at_once(store, compacted, copied, verified)
    assert truth(tmp_path / "c.zarr") == truth(store) == before
    assert not damages(store)
    assert not damages(tmp_path / "c.zarr")


# --- Copies ----------------------------------------------------------------------------------------------------------


def partitions(folder: Path) -> tuple[Path, Path]:
    """Return two stores of one stream with a name conflict, a shared clip, a clip with two revisions, and failures."""
    one, two = make(folder / "one.zarr", {}), make(folder / "two.zarr", {})
    add(one, "000000-x", [clip("a", 3), clip("both", 2)], [failure("f"), failure("g")])
    add(one, "000001-x", [clip("b", 4)])
    add(two, "000000-x", [clip("c", 5), clip("both", 2)], [failure("f", attempts=2)])
    add(two, "000001-y", [clip("b", 2, revision=1), clip("g", 1)])
    for store, name in ((one, "1"), (two, "2")):
        write_problems(
            store, [Failure(clip_id=f"m:{n}", video="", stage="manifest", reason="no clip") for n in ("0", name)]
        )
    return one, two


def test_merging_copies_parts_unchanged(tmp_path: Path) -> None:
    one, two = partitions(tmp_path)
    before = contents(one) | {f"two/{name}": data for name, data in contents(two).items()}
    into = tmp_path / "all.zarr"
    result = amex("features", "merge", one, two, "--into", into)
    assert result.exit_code == 0, result.output
    assert "two.zarr: stream s, 2 clips copied, 2 existed already (2 parts" in result.output
    stream = open_store(into)["s"]
    assert sorted(stream) == ["a", "b", "both", "c", "g"]
    assert (len(stream["b"]), stream.source("b").revision) == (2, 1)
    assert {name: entry.attempts for name, entry in stream.failures.items()} == {"f": 2}
    assert [problem.clip_id for problem in open_store(into).problems] == ["m:0", "m:1", "m:2"]
    assert len(stream.commits) == 4
    assert not damages(into)
    original = next((one / "s" / "parts").glob("000000-x.*"))
    assert contents(into / "s" / "parts" / original.name) == contents(original)
    assert contents(one) | {f"two/{name}": data for name, data in contents(two).items()} == before
    complete = contents(into)
    again = amex("features", "merge", one, two, "--into", into, "--json")
    assert json.loads(again.stdout)["stores"][str(two)]["s"] == {
        "parts": 0, "bytes": 0, "clips": 0, "known": 4, "damaged": {}
    }  # fmt: skip
    assert contents(into) == complete
    compact(into, "s")
    assert amex("features", "merge", one, two, "--into", into).exit_code == 0
    assert len(open_store(into)["s"].commits) == 1


def test_stores_with_different_settings_are_not_merged_and_nothing_is_written(tmp_path: Path) -> None:
    one, _ = partitions(tmp_path)
    other = create_store(tmp_path / "other.zarr")
    spec = {**SPEC, "sampling": {"fps": 5, "frames": 16}}
    declare_stream(other, "s", spec, {})
    write_part(other, "s", "p", spec=spec, clips=[rows_of("z", 1)], failures=[], run={})
    refused = amex("features", "merge", one, other, "--into", tmp_path / "all.zarr")
    assert (refused.exit_code, "sampling.fps: None there, 5 here" in refused.output) == (1, True)
    assert not (tmp_path / "all.zarr").exists()
    before = contents(other)
    with pytest.raises(SpecMismatch, match=r"one.zarr was made with other settings than that of .*other.zarr"):
        copy_store(one, other)
    assert contents(other) == before
    for target, words in ((one, "cannot be in it"), (one / "x", "cannot be in it"), (tmp_path, "not an amex store")):
        refused = amex("features", "cp", one, target)
        assert (refused.exit_code, words in refused.output) == (1, True), refused.output
    assert "no stream 't'" in amex("features", "cp", one, tmp_path / "new", "--stream", "t").output
    assert "there is no store" in amex("features", "merge", tmp_path / "none", "--into", tmp_path / "new").output
    assert not (tmp_path / "new").exists()


def test_a_damaged_part_of_a_source_is_reported_and_the_rest_is_copied(tmp_path: Path) -> None:
    one, two = partitions(tmp_path)
    (bad,) = (one / "s" / "parts").glob("000000-x.*")
    (bad / "offsets" / "c" / "0").write_bytes(b"x" * (bad / "offsets" / "c" / "0").stat().st_size)
    (two / "s" / "commits" / "000001-y.json").write_text("{")
    (two / "problems.json").write_text("{")
    result = amex("features", "merge", one, two, "--into", tmp_path / "all.zarr")
    assert result.exit_code == 1
    for words in (
        "one.zarr/s/000000-x: offsets/c/0 has changed",
        "two.zarr/s/000001-y: ",
        "two.zarr: ",
        "3 damaged and not copied",
    ):
        assert words in result.stderr
    assert sorted(open_store(tmp_path / "all.zarr")["s"]) == ["b", "both", "c"]
    assert not damages(tmp_path / "all.zarr")
    (two / "s" / "spec.json").write_text("{")
    lost = amex("features", "merge", one, two, "--into", tmp_path / "less.zarr")
    assert (lost.exit_code, "two.zarr/s: " in lost.stderr) == (1, True)


MERGE = """
for number in ("one", "two"):
    features.copy_store(Path(sys.argv[1]) / f"{number}.zarr", Path(sys.argv[1]) / "all.zarr")
"""


@pytest.mark.parametrize("steps", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_a_killed_merge_continues_where_it_stopped(steps: int, tmp_path: Path) -> None:
    folder = tmp_path / "stores"
    folder.mkdir()
    partitions(folder)
    for number in ("one", "two"):
        copy_store(folder / f"{number}.zarr", tmp_path / "truth.zarr")
    expected = truth(tmp_path / "truth.zarr")
    numbers = iter(range(1000))

    def fresh() -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"{next(numbers)}"))

    def check(place: Path) -> None:
        for number in ("one", "two"):
            copy_store(place / f"{number}.zarr", place / "all.zarr")
        assert truth(place / "all.zarr") == expected
        assert amex("features", "verify", place / "all.zarr", "--prune").exit_code == 0
        assert not damages(place / "all.zarr")
        assert len(open_store(place / "all.zarr")["s"].commits) == 4

    killed_everywhere(MERGE, fresh, check, steps)


def test_a_merge_does_not_replace_existing_clips(tmp_path: Path) -> None:
    """Even if the name of the new part sorts before the existing part."""
    target = make(tmp_path / "t.zarr", {"000005-z": [rows_of("a", 2, seed=1), rows_of("b", 1)]})
    source = make(tmp_path / "s.zarr", {"000001-a": [rows_of("a", 2, seed=2), rows_of("c", 3)]})
    reread = open_store(target)["s"]
    rows, mark = reread["a"].values.tobytes(), reread.digest(["a", "b"])
    for _ in range(2):
        copy_store(source, target)
        merged = open_store(target)["s"]
        assert sorted(merged) == ["a", "b", "c"]
        assert (merged["a"].values.tobytes(), merged.digest(["a", "b"])) == (rows, mark)
        assert len(merged.commits) == 2


def test_a_subset_is_copied_by_a_manifest_with_its_failures_and_captions(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr")
    declare_stream(store, "t", TEXT, {"weights": "none"})
    shapes = {name: ((2, *shape), dtype) for name, (shape, dtype) in row_arrays(TEXT).items()} | clip_arrays(TEXT)
    arrays = {name: np.ones(shape, dtype) for name, (shape, dtype) in shapes.items()}
    texts = [ClipRows(clip_id=text, arrays=arrays) for text in ("a dog", "a cat", "0a")]
    write_part(store, "t", "p", spec=TEXT, clips=texts, failures=[], run={})
    wanted = ["0a", "0b", "0f", "1a", "3f", "7b", "unknown"]
    manifest = write_lines(tmp_path / "m.jsonl", *({"clip_id": c, "video": c, "captions": ["a dog"]} for c in wanted))
    result = amex("features", "cp", store, tmp_path / "c.zarr", "--manifest", manifest, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["stores"][str(store)]["s"]["clips"] == 4
    before, now = truth(store), truth(tmp_path / "c.zarr")
    assert now["clips"] == {name: before["clips"][name] for name in ("0a", "0b", "1a", "7b")}
    assert now["failures"] == {name: before["failures"][name] for name in ("0f", "3f")}
    assert list(open_store(tmp_path / "c.zarr")["t"]) == ["a dog"]
    assert open_store(tmp_path / "c.zarr")["s"].provenance == open_store(store)["s"].provenance
    assert len(open_store(tmp_path / "c.zarr")["s"].commits) <= 2
    assert not damages(tmp_path / "c.zarr")
    complete = contents(tmp_path / "c.zarr")
    assert amex("features", "cp", store, tmp_path / "c.zarr", "--manifest", manifest).exit_code == 0
    assert contents(tmp_path / "c.zarr") == complete
    assert "has no features of 1 clip" in result.stderr
    none = write_lines(tmp_path / "none.jsonl", {"clip_id": "x", "video": "x"})
    refused = amex("features", "cp", store, tmp_path / "n.zarr", "--manifest", none)
    assert (refused.exit_code, "has no features of" in refused.stderr) == (1, True)
    assert not (tmp_path / "n.zarr").exists()
    assert amex("features", "cp", store, tmp_path / "d.zarr", "--stream", "s").exit_code == 0
    assert list(open_store(tmp_path / "d.zarr")) == ["s"]
    assert truth(tmp_path / "d.zarr") == before


def test_parts_of_format_1_are_copied_and_compacted(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 3)], "q": [rows_of("b", 2)]})
    next((store / "s/parts").glob("p.*")).rename(store / "s/parts/p")
    path = store / "s/commits/p.json"
    commit = schema.read_commit(path) | {"format": 1}
    del commit["folder"]
    path.write_text(json.dumps({**commit, "sha256": hashlib.sha256(schema.canonical(commit)).hexdigest()}))
    before = truth(store)
    copy_store(store, tmp_path / "c.zarr")
    assert truth(tmp_path / "c.zarr") == before
    assert not damages(tmp_path / "c.zarr")
    assert compact(store, "s").parts_after == 1
    assert truth(store) == before
    assert not damages(store)


def test_a_copy_excludes_rows_hidden_by_a_damaged_part(tmp_path: Path) -> None:
    store, target = make(tmp_path / "s.zarr", {}), tmp_path / "t.zarr"
    add(store, "000001-a", [clip("a", 3), clip("b", 2)])
    add(store, "000002-b", [clip("a", 5, revision=1)])
    add(store, "000003-c", [clip("c", 2)])
    before = truth(store)
    (file,) = store.glob("s/parts/000002-b.*/values/c/0/0")
    content = file.read_bytes()
    file.write_bytes(bytes(byte ^ 1 for byte in content))
    assert list(copy_store(store, target)["s"].damaged) == ["000002-b"]
    assert list(open_store(target)["s"]) == ["c"]
    file.write_bytes(content)
    assert not copy_store(store, target)["s"].damaged
    assert truth(target) == before


def test_a_copied_part_gets_another_name_if_its_own_is_taken(tmp_path: Path) -> None:
    """A part with the name of a replaced part would not count."""
    one, _ = partitions(tmp_path)
    into = tmp_path / "all.zarr"
    copy_store(one, into)
    compact(into, "s")
    add(into, "000009-x", [clip("late", 1)])
    part = open_store(into)["s"].place("a")[0]
    assert "000000-x" in open_store(into)["s"].replaced
    declare_stream(tmp_path / "all.zarr", "s", SPEC, {})
    three = make(tmp_path / "three.zarr", {})
    add(three, "000000-x", [clip("d", 2)])
    copy_store(three, into)
    assert sorted(open_store(into)["s"]) == ["a", "b", "both", "d", "late"]
    assert open_store(into)["s"].place("a")[0] == part
    assert not damages(into)


def test_concurrent_merges_of_parts_with_one_name_both_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, target = make(tmp_path / "one.zarr", {}), make(tmp_path / "all.zarr", {})
    add(one, "p", [clip("a", 2)])
    original = copying.write_text

    def slower(path: Path, text: str, **options: object) -> None:
        monkeypatch.setattr(copying, "write_text", original)
        add(target, "p", [clip("b", 3)])
        original(path, text, **options)

    monkeypatch.setattr(copying, "write_text", slower)
    assert copy_store(one, target)["s"].damaged == {}
    assert sorted(open_store(target)["s"]) == ["a", "b"]
    assert truth(target)["clips"]["a"] == truth(one)["clips"]["a"]
    assert {damage.kind for damage in damages(target)} == {"leftover"}  # the folder written under the taken name


# --- Removal ---------------------------------------------------------------------------------------------------------


def bytes_with(store: Path, words: bytes) -> list[str]:
    return [name for name, data in contents(store).items() if words in data]


def test_no_byte_of_a_removed_clip_remains(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {})
    secret = rows_of("secret clip", 7)
    secret.arrays["times"][:] = 12345.678
    marks = (np.float64(12345.678).tobytes(), b"secret clip")
    add(store, "000000-x", [clip("a", 3), secret], [failure("secret clip of another")])
    add(store, "000001-x", [clip("b", 3)], [failure("secret clip", revision=1)])
    late = clip("secret clip", 2, revision=2)
    late.arrays["times"][:] = 12345.678
    add(store, "000002-x", [late])
    before = truth(store)
    refused = amex("features", "rm", store, "s", "secret clip")  # without an answer
    assert (refused.exit_code, "remove 1 clip from" in refused.output) == (1, True)
    assert truth(store) == before
    ids = tmp_path / "ids.txt"
    ids.write_text("secret clip\nsecret clip of another\nnobody\n")
    done = amex("features", "rm", store, "--clips", ids, "--yes")
    assert done.exit_code == 0, done.output
    assert "removed 1 clip and 1 failure of s" in done.stdout
    assert done.stderr == f"1 of 3 ids not in {store}: nobody\n"
    stream = open_store(store)["s"]
    assert [stream.state(name) for name in ("secret clip", "secret clip of another")] == ["absent", "absent"]
    now = truth(store)
    assert now["clips"] == {name: before["clips"][name] for name in ("a", "b")}
    for mark in marks:
        assert not bytes_with(store, mark)
    assert not damages(store)
    again = amex("features", "rm", store, "s", "secret clip", "--yes")
    assert (again.exit_code, "none of these ids is in" in again.output) == (1, True)
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "a"})
    removed = json.loads(amex("features", "rm", store, "--clips", manifest, "--yes", "--json").stdout)
    assert removed["removed"]["s"] == {"clips": 1, "failures": 0, "damaged": {}}
    assert list(open_store(store)["s"]) == ["b"]


REMOVE = "features.remove_clips(Path(sys.argv[1]), 's', ['1a', '3b', '4a', '5f'])"


@pytest.mark.parametrize("steps", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_a_killed_removal_affects_no_other_clip_and_restores_no_old_rows(steps: int, tmp_path: Path) -> None:
    original = many(tmp_path / "o.zarr", 6)
    before, removed = truth(original), ("1a", "3b", "4a", "5f")
    numbers = iter(range(1000))

    def others(record: dict[str, Any]) -> dict[str, Any]:
        return {key: {c: e for c, e in record[key].items() if c not in removed} for key in ("clips", "failures")}

    def check(store: Path) -> None:
        now = truth(store)
        assert others(now) == others(before)
        assert all(now["clips"][name] == before["clips"][name] for name in removed if name in now["clips"])
        assert {damage.kind for damage in damages(store)} <= {"leftover"}
        remove_clips(store, "s", removed)
        stream = open_store(store)["s"]
        assert others(truth(store)) == others(before)
        assert {stream.state(name) for name in removed} == {"absent"}
        assert amex("features", "verify", store, "--prune").exit_code == 0
        for name in removed:
            assert not bytes_with(store, f'"{name}"'.encode())

    killed_everywhere(REMOVE, lambda: Path(shutil.copytree(original, tmp_path / f"{next(numbers)}")), check, steps)


def test_clips_in_a_damaged_part_are_not_removed_and_reported(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr", 3)
    (bad,) = (store / "s" / "parts").glob("000000-0*")
    (bad / "values" / "c" / "0" / "0").unlink()
    result = amex("features", "rm", store, "s", "0a", "1b", "--yes")
    assert (result.exit_code, f"s/000000-{0:012x}: values/c/0/0 is missing" in result.stderr) == (1, True)
    stream = open_store(store)["s"]
    assert (stream.state("0a"), stream.state("1b")) == ("done", "absent")


# --- Leftovers -------------------------------------------------------------------------------------------------------


def test_leftovers_of_replaced_parts_are_deleted_by_the_next_command(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 2)], "q": [rows_of("b", 3)]})
    write_part(store, "s", "r", spec=SPEC, clips=[rows_of("b", 3)], failures=[], run={}, replaces=["p", "q"])
    actual = damages(store)
    assert [damage.kind for damage in actual] == ["leftover"] * 4  # two records and two folders
    (store / "s" / "commits" / "p.json").unlink()
    assert {damage.kind for damage in damages(store)} == {"leftover"}, "the rows of a were removed, not lost"
    kept = shutil.copytree(store, tmp_path / "t.zarr")
    assert "3 leftovers removed" in amex("features", "verify", store, "--prune").output
    remove_leftovers(open_store(kept)["s"])
    for cleaned in (store, kept):
        assert not damages(cleaned)
        assert [name.partition(".")[0] for name in folders(cleaned)] == ["r"]
        assert open_store(cleaned)["s"].state("a") == "absent"


# --- Verification ----------------------------------------------------------------------------------------------------


def test_verify_quick_detects_missing_truncated_and_added_files_and_changed_metadata(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr", 3)
    assert not any(found for found in open_and_verify(store))
    (part,) = (store / "s" / "parts").glob("000001-0*")
    shard = part / "values" / "c" / "0" / "0"
    good = shard.read_bytes()
    for harm, words in ((good[:-1], "bytes, not"), (None, "is missing")):
        shard.unlink()
        if harm is not None:
            shard.write_bytes(harm)
        (damage,) = filter(None, open_and_verify(store))
        assert (damage.kind, words in damage.reason) == ("part", True)
        shard.write_bytes(good)
    (part / "more").touch()
    assert len(list(filter(None, open_and_verify(store)))) == 1
    (part / "more").unlink()
    for name in ("zarr.json", "values/zarr.json", "offsets/c/0", "clip_ids/c/0"):
        data = (part / name).read_bytes()
        (part / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        (damage,) = filter(None, open_and_verify(store))
        assert damage.reason == f"{name} has changed since it was written"
        (part / name).write_bytes(data)
    shard.write_bytes(bytes(len(good)))  # only the full check detects it
    assert not any(open_and_verify(store))
    quick = amex("features", "verify", store, "--quick")
    assert (quick.exit_code, "rows were not read" in quick.output) == (0, True)
    complete = json.loads(amex("features", "verify", store, "--json").stdout)
    assert [entry["part"] for entry in complete["damage"]] == [f"000001-{1:012x}"]
    assert not complete["intact"]
    assert complete["bytes"] > 0


def open_and_verify(store: Path) -> list[Any]:
    from amex.features import verify_store

    return list(verify_store(store, quick=True))


def test_damage_is_reported_in_the_order_of_parts_with_any_number_of_threads(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr", 9)
    for number in (7, 2, 5):
        (part,) = (store / "s" / "parts").glob(f"00000{number}-0*")
        (part / "times" / "c" / "0" / "0").unlink()
    for _ in range(3):
        assert [damage.part[:6] for damage in damages(store)] == ["000002", "000005", "000007"]


# --- Listings --------------------------------------------------------------------------------------------------------


def test_an_unreadable_stream_does_not_block_commands_on_others(tmp_path: Path) -> None:
    store = many(tmp_path / "s.zarr", 3)
    declare_stream(store, "a", SPEC, {})
    (store / "a/spec.json").write_text("{}")
    compacted = amex("features", "compact", store, "--json")
    assert (compacted.exit_code, "a: " in compacted.stderr) == (1, True)
    assert json.loads(compacted.stdout)["streams"]["s"]["parts_after"] == 1
    (store / "ids.txt").write_text("0a\n")
    removed = amex("features", "rm", store, "--clips", store / "ids.txt", "--yes")
    assert (removed.exit_code, "a: " in removed.stderr) == (1, True)
    assert removed.stdout == f"removed 1 clip of s from {store}\n"
    assert open_store(store)["s"].state("0a") == "absent"
    named = amex("features", "compact", store, "a")
    assert (named.exit_code, "spec.json is damaged" in named.output) == (1, True)


def test_clips_are_listed_by_state_without_reading_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = many(tmp_path / "s.zarr", 5)
    manifest = write_lines(tmp_path / "m.jsonl", *({"clip_id": c, "video": c} for c in ("0a", "0f", "x", "y")))
    listed = amex("features", "ls", store).output
    assert "s: 11 clips" in listed
    assert "  0a     3 rows of float16[6] over [" in listed
    assert "s: 1 empty clip\n  empty  empty" in amex("features", "ls", store, "--state", "empty").output
    failed = amex("features", "ls", store, "s", "--state", "failed").output
    assert "  3f  failed: open: torn (2 tries)" in failed
    absent = amex("features", "ls", store, "--state", "absent", "--manifest", manifest).output
    assert "s: 2 absent clips\n  x  absent\n  y  absent" in absent
    assert amex("features", "ls", store, "--state", "absent").exit_code == 2
    record = json.loads(amex("features", "ls", store, "--manifest", manifest, "--state", "failed", "--json").stdout)
    assert record["s"]["listed"][0] == {
        "clip_id": "0f", "state": "failed", "rows": 0, "span": None, "stage": "open", "reason": "torn", "attempts": 1
    }  # fmt: skip
    monkeypatch.setattr(Stream, "read", lambda *given: pytest.fail("rows are read"))
    everything = json.loads(amex("features", "ls", store, "--limit", 0, "--json").stdout)["s"]
    assert everything["clips"] == len(everything["listed"]) == 11
    assert {"clip_id": "0a", "rows": 3, "span": None}.items() <= everything["listed"][0].items()


def test_every_command_of_features_has_json() -> None:
    from amex.cli.features import features

    for name, command in features.commands.items():
        assert "--json" in {option for parameter in command.params for option in parameter.opts}, name


# --- Runs ------------------------------------------------------------------------------------------------------------


def test_a_run_continues_with_a_store_after_compaction_merge_or_removal(
    clips: Path, tmp_path: Path, cluster: str
) -> None:
    names = ("a.mp4", "b.webm", "c.avi", "deep/er/d.mkv")
    manifest = write_lines(
        tmp_path / "m.jsonl", *({"clip_id": n, "video": n} for n in names), {"clip_id": "z", "video": "z"}
    )
    parts = []
    for number in range(2):
        store = tmp_path / f"{number}.zarr"
        compute(
            clips,
            store,
            cluster,
            manifest,
            "--part-clips",
            1,
            "--partition",
            f"{number}/2",
            code=3 if not number else 0,
        )
        parts.append(store)
    into = tmp_path / "all.zarr"
    assert amex("features", "merge", *parts, "--into", into).exit_code == 0

    def run() -> int:
        return compute(clips, into, cluster, manifest, "--part-clips", 1, code=3)["report"]["clips"]

    assert run() == 0
    before = truth(into, TINY)
    for _ in range(2):
        assert amex("features", "compact", into).exit_code == 0
        assert len(open_store(into)[TINY].commits) == 1
        assert run() == 0
        assert truth(into, TINY) == before
        assert amex("features", "rm", into, TINY, "a.mp4", "z", "--yes").exit_code == 0
        assert run() == 2
        assert truth(into, TINY) == before
    for name in names:
        assert amex("features", "rm", into, TINY, name, "--yes").exit_code == 0
    assert run() == 4
    assert truth(into, TINY) == before
    assert amex("features", "verify", into).output.endswith("is intact\n")


def test_a_replaced_part_is_rewritten_under_another_name(clips: Path, tmp_path: Path, cluster: str) -> None:
    """After a killed removal, the record of the part still exists but does not count."""
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "a.mp4"})
    store = tmp_path / "s.zarr"
    compute(clips, store, cluster, manifest)
    before = truth(store, TINY)
    (part,) = open_store(store)[TINY].commits
    spec = open_store(store)[TINY].spec
    write_part(store, TINY, "0-r", spec=spec, clips=[], failures=[], run={}, replaces=[part])
    assert compute(clips, store, cluster, manifest)["report"]["clips"] == 1
    assert truth(store, TINY) == before
    assert part not in open_store(store)[TINY].commits
    assert not damages(store)


# --- S3 --------------------------------------------------------------------------------------------------------------


def test_copy_compaction_removal_and_verify_work_in_s3(tmp_path: Path, s3: str) -> None:
    here = many(tmp_path / "s.zarr", 3)
    before = truth(here)
    there = open_path(f"{s3}/s.zarr")
    assert amex("features", "cp", here, there).exit_code == 0
    assert truth(there) == before
    assert amex("features", "merge", there, "--into", f"{s3}/t.zarr").exit_code == 0
    done = amex("features", "compact", f"{s3}/t.zarr")
    assert done.exit_code == 0, done.output
    assert truth(open_path(f"{s3}/t.zarr")) == before
    assert len(open_store(f"{s3}/t.zarr")["s"].commits) == 1
    assert "nothing to do" in amex("features", "compact", f"{s3}/t.zarr").output
    assert amex("features", "rm", f"{s3}/t.zarr", "s", "0a", "--yes").exit_code == 0
    assert open_store(f"{s3}/t.zarr")["s"].state("0a") == "absent"
    assert amex("features", "cp", f"{s3}/t.zarr", tmp_path / "back.zarr").exit_code == 0
    assert truth(tmp_path / "back.zarr")["clips"] == {k: v for k, v in before["clips"].items() if k != "0a"}
    for options in ((), ("--quick",)):
        assert amex("features", "verify", f"{s3}/t.zarr", *options).exit_code == 0
    (shard,) = open_path(f"{s3}/t.zarr").glob("s/parts/*/values/c/0/0")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "bytes, not" in amex("features", "verify", f"{s3}/t.zarr", "--quick").output
