"""The index agrees with the commit records, whatever happens to its file and whatever other processes write."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import amex
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import SPEC, damages, make, rows_of

from amex.features import (
    ClipRows,
    ClipSource,
    DamagedPart,
    Failure,
    MissingClip,
    Stream,
    columns,
    create_store,
    declare_stream,
    fingerprint,
    index,
    open_store,
    opening,
    schema,
    write_part,
)
from amex.features.schema import INDEX
from amex.storage.local import LocalStorage

ABSENT = "nowhere"
IDS = ("a", "b", "é", "日本", "a\0b", "x" * 40, "\N{PILE OF POO}")
SHA = "0" * 64


@pytest.fixture(autouse=True)
def always_write_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the index of small streams too."""
    monkeypatch.setattr(opening, "SPARED_BYTES", 0)
    monkeypatch.setattr(opening, "SPARED_SHARE", 0)


def record_of(
    part: str, clips: list[dict[str, Any]], failures: list[dict[str, Any]], replaces: list[str] | None = None
) -> dict[str, Any]:
    return {
        "format": schema.FORMAT,
        "part": part,
        "folder": f"{part}.{fingerprint({'clips': clips})[:12]}",
        "fingerprint": fingerprint(SPEC),
        "rows": sum(clip["rows"] for clip in clips),
        "clips": clips,
        "failures": failures,
        "files": {"values/c/0/0": {"bytes": len(clips), "sha256": fingerprint({"clips": clips})}},
        **({"replaces": replaces} if replaces else {}),
        "run": {},
    }


def commit(store: Path, record: dict[str, Any], *, old: bool = True) -> Path:
    """Write a commit record. By default its modification time is long ago."""
    path = store / "s" / "commits" / f"{record['part']}.json"
    temporary = store / "s" / "parts" / f".{path.name}"
    temporary.write_text(schema.sealed(record))
    if old:
        modified = random.Random(temporary.read_text()).randrange(10**18, 10**18 + 10**17)
        os.utime(temporary, ns=(modified, modified))
    temporary.rename(path)
    return path


def empty_store(folder: Path) -> Path:
    store = create_store(folder / "s.zarr")
    declare_stream(store, "s", SPEC, {})
    return store


def truth(store: Path) -> dict[str, Any]:
    """Return the expected answers, from reading all commit records one by one."""
    commits = {}
    for path in sorted((store / "s" / "commits").iterdir(), key=str):
        commits[path.stem] = schema.read_commit(path)
    for part in {name for record in commits.values() for name in schema.replaced_parts(record)}:
        commits.pop(part, None)
    rows: dict[str, tuple[tuple[int, ...], Any]] = {}
    failed: dict[str, tuple[tuple[int, ...], Any]] = {}
    for part, record in commits.items():
        first = 0
        for place, clip in enumerate(record["clips"]):
            entry = ((clip.get("revision", 0),), (part, place, first, clip))
            if clip["clip_id"] not in rows or entry[0] > rows[clip["clip_id"]][0]:
                rows[clip["clip_id"]] = entry
            first += clip["rows"]
        for failure in record["failures"]:
            entry = ((failure["source"].get("revision", 0), failure["attempts"]), failure)
            if failure["clip_id"] not in failed or entry[0] > failed[failure["clip_id"]][0]:
                failed[failure["clip_id"]] = entry
    for clip_id in rows.keys() & failed.keys():
        (failed if failed[clip_id][0][0] <= rows[clip_id][0][0] else rows).pop(clip_id)
    return {
        "commits": commits,
        "rows": {clip_id: entry for clip_id, (_, entry) in rows.items()},
        "failures": {clip_id: Failure(**entry) for clip_id, (_, entry) in failed.items()},
    }


def check(stream: Stream, expected: dict[str, Any]) -> None:
    """Assert that every answer of a stream is the expected one."""
    rows, failures, commits = expected["rows"], expected["failures"], expected["commits"]
    assert dict(stream.commits) == commits
    assert dict(stream.failures) == failures
    assert (len(stream.failures), len(stream)) == (len(failures), len(rows))
    assert sorted(stream) == sorted(rows)
    assert list(stream) == [e["clip_id"] for p, c in commits.items() for i, e in enumerate(c["clips"])
                            if rows.get(e["clip_id"], ("", 0))[:2] == (p, i)]  # fmt: skip
    assert stream.rows == sum(entry[3]["rows"] for entry in rows.values())
    requested = [*IDS, *rows, *failures, ABSENT]
    entries = stream.index.find(requested)
    states = stream.states(requested)
    starts = [0.0 if number % 2 else None for number in range(len(requested))]
    are_of = stream.are_of(requested, starts, [None] * len(requested))
    for clip_id, entry, state, start, same in zip(requested, entries, states, starts, are_of, strict=True):
        assert (clip_id in stream) == (clip_id in rows) == (entry >= 0)
        assert (clip_id in stream.failures) == (clip_id in failures)
        assert stream.state(clip_id) == state
        if clip_id in rows:
            part, place, first, clip = rows[clip_id]
            source = ClipSource.of(clip)
            assert state == ("done" if clip["rows"] else "empty")
            assert stream.index.parts.names[stream.index.part[entry]] == part
            assert stream.index.parts[stream.index.part[entry]]["files"] == commits[part]["files"]
            places = (stream.index.place[entry], stream.index.first[entry], stream.index.rows[entry])
            assert places == (place, first, clip["rows"])
            assert stream.rows_of(clip_id) == clip["rows"]
            assert stream.video(clip_id) == (clip.get("video") or "")
        elif clip_id in failures:
            source = ClipSource.of(failures[clip_id].source)
            assert state == "failed"
            assert stream.tries(clip_id) == (failures[clip_id].source.get("revision", 0), failures[clip_id].attempts)
        else:
            source = None
            assert state == "absent"
        if source is not None:
            assert stream.source(clip_id) == source
        if clip_id not in rows:
            with pytest.raises(MissingClip):
                stream.rows_of(clip_id)
        assert same == (source is None or source.has_times(start, None))
    cut = {clip_id: entry[3] for clip_id, entry in rows.items() if "damage" in entry[3]}
    assert stream.cut_off() == cut
    counting = {(entry[0], entry[1]) for entry in rows.values()}
    for number, (part, record) in enumerate(commits.items()):
        counts = [(part, place) in counting for place in range(len(record["clips"]))]
        assert stream.index.counts[stream.index.clips_of(number)].tolist() == counts
        assert (number in stream.index.mixed) == (not all(counts))


def check_twice(store: Path) -> None:
    """Check the stream with the existing index, if any, and with the index that the first opening wrote."""
    for _ in range(2):
        check(open_store(store)["s"], truth(store))


def union(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for entry in entries for name, value in entry.items()}


sources = st.fixed_dictionaries(
    {},
    optional={
        "video": st.sampled_from([None, "", "v.mp4", "ü.mp4"]),
        "bytes": st.none() | st.integers(0, 2**50),
        "modified": st.none() | st.integers(-(2**62), 2**62),
        "sha256": st.just(SHA),
        "revision": st.integers(0, 2),
    },
)
times = st.fixed_dictionaries({}) | st.fixed_dictionaries({"start": st.none() | st.just(0.0), "end": st.none()})
damaged = st.just({}) | st.fixed_dictionaries({"damage": st.just("torn"), "missing": st.none() | st.just(1.5)})
clips = st.builds(
    lambda clip_id, rows, *more: {"clip_id": clip_id, "rows": rows, **union(more)},
    st.sampled_from(IDS), st.integers(0, 3), sources, times, damaged,
)  # fmt: skip
failed = st.builds(
    lambda clip_id, attempts, *more: {"clip_id": clip_id, "video": "v", "stage": "open", "reason": "torn"}
    | {"attempts": attempts, "source": union(more)},
    st.sampled_from(IDS), st.integers(1, 3), sources, times,
)  # fmt: skip
PARTS = ("p", "p-1", "q", "é", "z")
replaced = st.lists(st.sampled_from(PARTS), max_size=2)
# Changes of a part's commit record between two openings: None deletes the record, a tuple is its new content.
changes = st.tuples(st.sampled_from(PARTS), st.none() | st.tuples(st.lists(clips), st.lists(failed), replaced))


@pytest.mark.parametrize("bits", [32, 2])
@settings(max_examples=60)
@given(rounds=st.lists(st.tuples(st.lists(changes, max_size=4), st.booleans()), min_size=1, max_size=4))
def test_an_index_agrees_with_the_commit_records_after_any_changes(
    tmp_path_factory: pytest.TempPathFactory, bits: int, rounds: list[tuple[list[Any], bool]]
) -> None:
    store = empty_store(tmp_path_factory.mktemp("s"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        hash_of = columns.hash_of
        monkeypatch.setattr(columns, "hash_of", lambda key: hash_of(key) % 2**bits)
        for part_changes, old in rounds:
            for part, content in part_changes:
                if content is None:
                    (store / "s" / "commits" / f"{part}.json").unlink(missing_ok=True)
                else:
                    *entries, others = content
                    commit(store, record_of(part, *entries, [name for name in others if name != part]), old=old)
            check_twice(store)


def example_store(folder: Path) -> Path:
    """Return a store with clips, failures, duplicates and a replaced part."""
    store = empty_store(folder)
    failure = {
        "clip_id": "b",
        "video": "v",
        "stage": "open",
        "reason": "torn",
        "attempts": 2,
        "source": {"revision": 1},
    }
    commit(store, record_of("p", [{"clip_id": "a", "rows": 2}, {"clip_id": "b", "rows": 1}], [failure]))
    commit(store, record_of("q", [{"clip_id": "é", "rows": 2, "video": "v.mp4", "start": None, "end": 2.5}], []))
    commit(store, record_of("old", [{"clip_id": "gone", "rows": 2}], []))
    commit(store, record_of("r", [{"clip_id": "日本", "rows": 0}, {"clip_id": "a", "rows": 3}], [], ["old"]))
    return store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return example_store(tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the commit files that are read."""
    names: list[str] = []
    read_each = LocalStorage.read_each

    def recording(self: LocalStorage, requested: list[str]) -> Iterator[tuple[str, bytes]]:
        names.extend(requested)
        return read_each(self, requested)

    monkeypatch.setattr(LocalStorage, "read_each", recording)
    return names


def test_only_commit_records_missing_from_the_index_are_read(store: Path, read: list[str]) -> None:
    open_store(store)["s"]
    assert sorted(read) == ["old.json", "p.json", "q.json", "r.json"]
    read.clear()
    open_store(store)["s"]
    assert read == []
    commit(store, record_of("s", [{"clip_id": "new", "rows": 1}], []))
    (store / "s/commits/q.json").unlink()
    open_store(store)["s"]
    assert read == ["s.json"]
    read.clear()
    check(open_store(store)["s"], truth(store))
    assert read == []
    (store / "s/commits/r.json").unlink()  # the part that it replaced counts again
    check(open_store(store)["s"], truth(store))
    assert read == ["old.json"]


def test_the_index_of_a_copied_store_is_used(store: Path, tmp_path: Path, read: list[str]) -> None:
    open_store(store)["s"]
    shutil.copytree(store, tmp_path / "copy", copy_function=shutil.copyfile)  # with new modification times
    read.clear()
    for old in (False, True):
        check(open_store(tmp_path / "copy")["s"], truth(store))
        for path in (tmp_path / "copy/s/commits").iterdir() if not old else ():
            os.utime(path, (10**9, 10**9))
    assert read == []


@pytest.mark.parametrize("young", [True, False])
def test_a_rewritten_commit_record_is_noticed_even_with_the_same_time_and_size(store: Path, young: bool) -> None:
    path = commit(store, record_of("q", [{"clip_id": "new", "rows": 1}], []), old=not young)
    before = path.stat()
    check_twice(store)
    if not young:  # the size stays the same, so the time must differ
        before = path.stat()
    commit(store, record_of("q", [{"clip_id": "neu", "rows": 1}], []), old=not young)
    assert path.stat().st_size == before.st_size
    if young:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    check_twice(store)
    assert open_store(store)["s"].state("neu") == "done"


def test_any_flipped_bit_or_truncation_of_the_file_is_detected(store: Path) -> None:
    open_store(store)["s"]
    data = (store / "s" / INDEX).read_bytes()
    mark = fingerprint(SPEC)
    assert len(index.parse_index(data, mark)) == 6
    for place in range(len(data)):
        for bit in range(8):
            wrong = bytearray(data)
            wrong[place] ^= 1 << bit
            with pytest.raises(ValueError, match=r"checksum|another format"):
                index.parse_index(bytes(wrong), mark)
    for size in range(len(data)):
        with pytest.raises(ValueError, match=r"checksum|another format"):
            index.parse_index(data[:size], mark)
    with pytest.raises(ValueError, match="another stream"):
        index.parse_index(data, fingerprint({}))


def test_a_damaged_or_foreign_file_is_ignored_and_rewritten(store: Path, tmp_path: Path) -> None:
    check_twice(store)
    path = store / "s" / INDEX
    good = path.read_bytes()
    other = example_store(tmp_path / "other")
    commit(other, record_of("q", [{"clip_id": "another", "rows": 1}], []))
    open_store(other)["s"]
    later = good.replace(index.MAGIC, b"amex index 2\n")
    foreign = (other / "s" / INDEX).read_bytes()
    generator = random.Random(0)
    flipped = [bytearray(good) for _ in range(20)]
    for data in flipped:
        data[generator.randrange(len(good))] ^= 1 << generator.randrange(8)
    for data in (b"", b"\0" * 100, generator.randbytes(5000), good[:-9], later, foreign, *map(bytes, flipped)):
        path.write_bytes(data)
        check(open_store(store)["s"], truth(store))
        assert path.read_bytes() == good
    path.unlink()
    path.mkdir()
    check_twice(store)


def test_an_outdated_index_is_updated(store: Path) -> None:
    moments = []
    for number in range(6):
        commit(store, record_of(f"n{number}", [{"clip_id": f"n{number}", "rows": 1}], []))
        if number > 2:
            (store / "s/commits" / f"n{number - 3}.json").unlink()
        open_store(store)["s"]
        moments.append((store / "s" / INDEX).read_bytes())
    for moment in moments:
        (store / "s" / INDEX).write_bytes(moment)
        check_twice(store)


def test_an_unwritable_index_file_causes_no_error_and_no_message(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in (errno.EROFS, errno.EACCES, errno.ENOSPC):
        monkeypatch.setattr(LocalStorage, "put", lambda *_, number=number: raise_(OSError(number, os.strerror(number))))
        check(open_store(store)["s"], truth(store))
    assert not (store / "s" / INDEX).exists()
    assert capfd.readouterr() == ("", "")


def raise_(error: Exception) -> None:
    raise error


def in_a_fork(work: Callable[[], None]) -> Callable[[], int]:
    """Run a function in a fork of this process. Return a function that waits for its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return lambda: os.waitpid(child, 0)[1]


def test_a_disk_that_fills_up_during_the_write_leaves_no_partial_file(store: Path) -> None:
    def with_little_space() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        check(open_store(store)["s"], truth(store))

    assert in_a_fork(with_little_space)() == 0
    assert sorted(path.name for path in (store / "s").iterdir()) == ["commits", "parts", "spec.json", "zarr.json"]


def test_a_kill_during_the_write_leaves_a_leftover_and_correct_answers(store: Path) -> None:
    def killed() -> None:
        serialized = index.Index.serialized

        def interrupted(self: index.Index, mark: str) -> Iterator[Any]:
            for number, piece in enumerate(serialized(self, mark)):
                yield piece
                if number == 5:
                    os.kill(os.getpid(), signal.SIGKILL)

        index.Index.serialized = interrupted
        open_store(store)["s"]

    assert os.WTERMSIG(in_a_fork(killed)()) == signal.SIGKILL
    (leftover,) = (store / "s").glob(f".{INDEX}.*")
    check_twice(store)
    reported = [(damage.path, damage.kind) for damage in damages(store) if "/parts/" not in damage.path]
    assert (f"s/{leftover.name}", "leftover") in reported


def test_processes_read_correct_answers_while_others_open_the_stream_and_change_commits(store: Path) -> None:
    expected = truth(store)

    def open_often() -> None:
        for _ in range(20):
            stream = open_store(store)["s"]
            assert {clip_id: stream.rows_of(clip_id) for clip_id in expected["rows"]} == {
                clip_id: entry[3]["rows"] for clip_id, entry in expected["rows"].items()
            }

    waiting = [in_a_fork(open_often) for _ in range(4)]
    for number in range(60):
        commit(store, record_of(f"n{number}", [{"clip_id": f"n{number}", "rows": 1}], []))
        if number > 2:
            (store / "s/commits" / f"n{number - 3}.json").unlink()
    assert [wait() for wait in waiting] == [0] * 4
    check_twice(store)
    assert not list((store / "s").glob(".*"))


def test_a_stream_opened_during_compaction_has_all_clips(tmp_path: Path) -> None:
    store = empty_store(tmp_path)
    for number in range(30):
        commit(store, record_of(f"a{number:02d}", [{"clip_id": f"clip{number}", "rows": 1}], []))

    def compact() -> None:
        for number in range(29):
            before = [f"a{number:02d}" if number == 0 else f"z{number - 1:02d}", f"a{number + 1:02d}"]
            merged = [{"clip_id": f"clip{n}", "rows": 1} for n in range(number + 2)]
            commit(store, record_of(f"z{number:02d}", merged, [], before))
            for part in before:
                (store / "s/commits" / f"{part}.json").unlink()

    wait = in_a_fork(compact)
    opens = 0
    while opens < 20:
        assert len(open_store(store)["s"]) == 30
        opens += 1
    assert wait() == 0
    check_twice(store)
    assert len(open_store(store)["s"].commits) == 1


def test_an_open_stream_works_in_a_fork_and_finds_later_commits(store: Path) -> None:
    stream = open_store(store)["s"]
    expected = truth(store)
    assert in_a_fork(lambda: check(stream, expected))() == 0
    (store / "s/commits/p.json").unlink()
    failure = {"clip_id": "b", "video": "v", "stage": "open", "reason": "torn again", "attempts": 1, "source": {}}
    commit(store, record_of("t", [{"clip_id": "a", "rows": 5}], [failure], ["p"]))
    assert stream.rows_of("a") == 2
    with pytest.raises(FileNotFoundError):
        stream.commits["p"]
    assert stream.failures["b"].reason == "torn again"  # the old commit record is gone, so the stream is refreshed
    assert stream.rows_of("a") == 3
    check(stream, truth(store))
    commit(store, record_of("u", [{"clip_id": "later", "rows": 5}], []))
    stream.refresh()
    check(stream, truth(store))


def test_an_answer_uses_one_index_even_if_another_thread_refreshes_the_stream(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, expected = open_store(store)["s"], truth(store)
    before = stream.index
    # This changes the numbers of all entries.
    commit(store, record_of("0", [{"clip_id": f"other{number}", "rows": 9} for number in range(7)], []))
    after = open_store(store)["s"].index

    def swap_the_index_after(name: str) -> None:
        method = getattr(index.Index, name)

        def swapping(self: index.Index, *args: Any) -> Any:
            answer = method(self, *args)
            stream.index = after if stream.index is before else before
            return answer

        monkeypatch.setattr(index.Index, name, swapping)

    for name in ("locate", "locate_all"):
        swap_the_index_after(name)
    for _ in range(2):
        for clip_id, (part, place, _first, clip) in expected["rows"].items():
            for _ in range(2):
                assert stream.place(clip_id) == (part, place)
                assert stream.rows_of(clip_id) == clip["rows"]
                assert stream.state(clip_id) == ("done" if clip["rows"] else "empty")
                assert stream.source(clip_id) == ClipSource.of(clip)
                assert stream.video(clip_id) == (clip.get("video") or "")
                assert clip_id in stream
                assert stream.states([clip_id]).tolist() == [stream.state(clip_id)]
        for clip_id, failure in expected["failures"].items():
            assert stream.state(clip_id) == "failed"
            assert stream.tries(clip_id)[1] == failure.attempts


def test_damage_of_an_indexed_record_is_detected_when_the_record_is_read(store: Path) -> None:
    check_twice(store)
    path = store / "s/commits/p.json"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b'"torn"', b'"born"'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    stream = open_store(store)["s"]
    with pytest.raises(DamagedPart, match=r"p\.json is damaged"):
        stream.commits["p"]
    with pytest.raises(DamagedPart, match=r"p\.json is damaged"):
        stream.failures["b"]
    assert "p.json is damaged" in "".join(map(str, damages(store)))
    with pytest.raises(DamagedPart):
        Stream(store, "s", afresh=True)
    os.utime(path)
    assert list(open_store(store, skip_damaged=True)["s"].damaged) == ["p"]
    with pytest.raises(DamagedPart):
        open_store(store)["s"]


def test_a_replaced_record_may_be_damaged(store: Path) -> None:
    for _ in range(2):
        check(open_store(store)["s"], truth(store))
        (store / "s/commits/old.json").write_text("{")
        stream = open_store(store)["s"]
        assert ("old" in stream.commits, stream.damaged, stream.state("gone")) == (False, {}, "absent")
        commit(store, record_of("old", [{"clip_id": "gone", "rows": 2}], []))


def test_small_streams_have_no_index_file_and_verify_accepts_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 3)], "q": [rows_of("b", 2)]})
    open_store(store)["s"]
    path = store / "s" / INDEX
    good = path.read_bytes()
    assert amex("features", "verify", store).output.endswith("is intact\n")
    for wrong in (good[:50], b"x"):
        path.write_bytes(wrong)
        assert amex("features", "verify", store).output.endswith("is intact\n")
        assert path.read_bytes() == good or index.parse_index(path.read_bytes(), fingerprint(SPEC))
    monkeypatch.undo()
    assert amex("features", "verify", store).output.endswith("is intact\n")
    assert not path.exists()
    open_store(store)["s"]
    assert not path.exists()
    assert amex("features", "info", store).exit_code == 0


def test_a_crafted_index_cannot_name_files_outside_the_part(store: Path) -> None:
    stream = open_store(store)["s"]
    path = store / "s" / INDEX
    crafted = dict(stream.index._columns)
    secret = json.loads(stream.index._texts("record")[0]) | {"folder": "../../secret"}
    others = [stream.index._texts("record")[number].encode() for number in range(1, 4)]
    texts = [json.dumps(secret).encode(), *others]
    crafted |= columns.text_column("record", texts)
    path.write_bytes(b"".join(bytes(piece) for piece in index.Index(crafted).serialized(fingerprint(SPEC))))
    with pytest.raises(DamagedPart, match=r"clips\.index"):
        open_store(store)["s"].index.parts[0]


def test_a_store_of_format_1_is_indexed(tmp_path: Path, read: list[str]) -> None:
    store = empty_store(tmp_path)
    record = {"format": 1, "part": "p", "fingerprint": fingerprint(SPEC), "rows": 2}
    record |= {"clips": [{"clip_id": "a", "rows": 2}], "failures": [], "files": {}}
    path = store / "s/commits/p.json"
    path.write_text(json.dumps({"sha256": fingerprint(record), **record}))
    check_twice(store)
    assert read == ["p.json"] * 2  # too new for its time to identify it, and format 1 has no seal
    os.utime(path, (10**9, 10**9))
    read.clear()
    check_twice(store)
    check_twice(store)
    assert read == ["p.json"]


def test_clips_are_read_through_an_index(tmp_path: Path) -> None:
    parts = {f"p{number}": [rows_of(f"{number}-{clip}", clip) for clip in range(5)] for number in range(4)}
    store = make(tmp_path / "s.zarr", parts)
    revised = [rows_of("1-3", 7, seed=1)]
    revised = [ClipRows(clip_id=c.clip_id, arrays=c.arrays, source=ClipSource(revision=1)) for c in revised]
    write_part(store, "s", "p9", spec=SPEC, clips=revised, failures=[], run={})
    for _ in range(2):
        stream = open_store(store)["s"]
        for clip in [*parts["p0"], *parts["p3"], *revised]:
            np.testing.assert_array_equal(stream[clip.clip_id].values, clip.arrays["values"])
        assert stream.to_dask().shape == (stream.rows, 6) == (40 + 7 - 3, 6)
        assert len(stream.read(list(stream))) == stream.rows


def test_a_store_in_s3_is_opened_by_one_listing_and_one_get(s3: str, server: Any) -> None:
    store = create_store(f"{s3}/s.zarr")
    declare_stream(store, "s", SPEC, {})
    for part in ("p", "q"):
        write_part(store, "s", part, spec=SPEC, clips=[rows_of(part, 3)], failures=[], run={})
    assert len(open_store(store)["s"]) == 2
    server.seen.clear()
    stream = open_store(store)["s"]
    assert not [path for _, path in server.seen if "/commits/" in path]
    assert [method for method, path in server.seen if path.endswith(INDEX)] == ["HEAD", "GET"]
    assert [method for method, path in server.seen if path.count("/") == 1] == ["GET"]  # the listing
    assert in_a_fork(lambda: stream.commits["q"])() == 0
    assert sorted(stream) == ["p", "q"]
    assert stream["q"].values.shape == (3, 6)
    write_part(store, "s", "r", spec=SPEC, clips=[rows_of("r", 3)], failures=[], run={}, replaces=["p"])
    assert sorted(open_store(store)["s"]) == ["q", "r"]
    (store / "s" / INDEX).write_bytes(b"x")
    server.seen.clear()
    assert sorted(open_store(store)["s"]) == ["q", "r"]
    assert sorted(method for method, path in server.seen if "/commits/" in path) == ["GET"] * 3


def test_the_benchmark_of_opening_runs() -> None:
    program = Path(__file__).parents[1] / "benchmarks" / "opening.py"
    command = [sys.executable, program, "--clips", "20000", "--parts", "100"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output.count("index read") == 3
