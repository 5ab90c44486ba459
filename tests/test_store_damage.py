"""Damage of a store is detected by verify and by readers; names cannot leave the store; streams can be removed."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import amex
from hypothesis import given
from hypothesis import strategies as st
from test_store import OBJECTS, SPEC, damages, make, part_folder, rows_of

from amex.errors import plural
from amex.features import (
    ClipRows,
    DamagedPart,
    Failure,
    MissingClip,
    SpecMismatch,
    StoreError,
    create_store,
    declare_stream,
    open_store,
    remove_stream,
    repair_metadata,
    row_arrays,
    schema,
    verify_store,
    write_part,
    write_problems,
)
from amex.storage.local import LocalStorage

TWIN = {**SPEC, "network": "twin"}
CLIPS = {"000000-x": ["a", "b"], "000001-x": ["c", "d"], "000002-x": ["e", "f"]}
FAILED = [Failure(clip_id="z", video="z", stage="open", reason="torn")]


def objects_of(clip_id: str, count: int) -> ClipRows:
    generator = np.random.default_rng([*clip_id.encode()])
    shapes = {name: ((count, *shape), dtype) for name, (shape, dtype) in row_arrays(OBJECTS).items()}
    return ClipRows(
        clip_id=clip_id,
        arrays={name: generator.integers(0, 99, shape).astype(dtype) for name, (shape, dtype) in shapes.items()},
    )


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for commit records, because no other process writes to these stores."""
    monkeypatch.setattr(sys.modules["amex.features.care.verify"], "COMMITTED_WITHIN", 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with two streams of three parts, one with objects, and a problems.json; read-only."""
    store = create_store(tmp_path_factory.mktemp("made") / "s.zarr")
    for stream, spec in (("s", SPEC), ("o", OBJECTS)):
        declare_stream(store, stream, spec, {"weights": "none"})
        for number, (part, ids) in enumerate(CLIPS.items()):
            clips = [(rows_of if stream == "s" else objects_of)(clip_id, 3 + number) for clip_id in ids]
            write_part(store, stream, part, spec=spec, clips=clips, failures=FAILED, run={"host": ""})
    write_problems(store, [Failure(clip_id="m:1", video="", stage="manifest", reason="no clip")])
    return store


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "s.zarr"))


def commit_file(store: Path, number: int) -> Path:
    return store / "s" / "commits" / f"00000{number}-x.json"


def resealed(path: Path, **changed: object) -> None:
    record = json.loads(path.read_bytes())
    del record["sha256"]
    path.write_text(schema.sealed(record | changed))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Names -----------------------------------------------------------------------------------------------------------

BAD_NAMES = ("..", "../x", "a/b", "/etc", "", ".x", "__x", "c", "commits", "Zarr.json", "a b", "a\n", "\0", "x" * 101)


def test_writers_and_readers_refuse_invalid_stream_names(store: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    shutil.copy(store / "s" / "spec.json", tmp_path / "x")
    before = contents(tmp_path)
    for name in BAD_NAMES:
        with pytest.raises(StoreError, match="cannot be a stream's name"):
            declare_stream(store, name, SPEC, {})
        with pytest.raises(StoreError, match="cannot be a stream's name"):
            write_part(store, name, "p", spec=SPEC, clips=[], failures=[], run={})
        with pytest.raises(StoreError, match="no stream"):
            open_store(store)[name]
        with pytest.raises(StoreError, match="cannot be a stream's name"):
            remove_stream(store, name)
        assert name not in open_store(store)
    assert contents(tmp_path) == before
    declare_stream(store, "größe-2.v_1", SPEC, {})
    assert "größe-2.v_1" in open_store(store)


def test_streams_with_names_of_earlier_versions_can_be_read_extended_and_removed(store: Path) -> None:
    for name in ("my stream", "r+b", "x(1)", "c", "__x"):
        (store / "s").rename(store / name)
        opened = open_store(store)
        assert name in opened
        assert list(opened) == sorted(["o", name])
        assert len(opened[name].read(["a", "f"])) == 8
        declare_stream(store, name, SPEC, {})
        write_part(store, name, f"9-{name}", spec=SPEC, clips=[rows_of(name, 2)], failures=[], run={})
        assert name in open_store(store)[name]
        for command in ("info", "ls", "failures", "verify"):
            assert amex("features", command, store).exit_code == 0
        (store / name).rename(store / "s")
    (store / "s").rename(store / "my stream")
    assert amex("features", "rm", store, "my stream", "--yes").exit_code == 0
    assert list(open_store(store)) == ["o"]


def test_an_import_cannot_write_outside_the_store(tmp_path: Path) -> None:
    values = np.ones((1, 4), np.float32)
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        file["clip"] = values
        file.attrs["amex_spec"] = json.dumps({"output": {"shape": [4], "dtype": "float32", "times": False}})
        file.attrs["amex_stream"] = "../../escaped"
    np.savez(tmp_path / "f.npz", **{"..": values})
    (tmp_path / "c.jsonl").write_text('{"video": "a"}\n')
    named = ("--captions", tmp_path / "c.jsonl")
    inside = tmp_path / "deep" / "er" / "s.zarr"
    before = contents(tmp_path)
    for source in (("f.hdf5",), ("f.npz", *named), ("f.npz", "--stream", "../../x", *named)):
        result = amex("features", "import", tmp_path / source[0], *source[1:], "--store", inside)
        assert (result.exit_code, "cannot be a stream's name" in result.output) == (1, True), result.output
    assert contents(tmp_path).keys() - before.keys() == {"deep/er/s.zarr/zarr.json"}


def test_commit_records_with_paths_outside_the_part_are_refused(store: Path) -> None:
    path = commit_file(store, 1)
    good = path.read_bytes()
    digest = {"bytes": 3, "sha256": "x"}
    for changed in (
        {"folder": "../../o/parts"},
        {"folder": ".."},
        {"files": {"../secret": digest}},
        {"files": {"/etc/passwd": digest}},
    ):
        resealed(path, **changed)
        with pytest.raises(DamagedPart, match=r"000001-x\.json is damaged \(its fi?o?l"):
            open_store(store)["s"]
        path.write_bytes(good)
    resealed(path, failures=[{"clip": "z"}])
    with pytest.raises(StoreError, match="entries that this amex does not know"):
        open_store(store)["s"]
    path.write_bytes(good)
    spec = {**SPEC, "output": {**SPEC["output"], "arrays": {"../../x": {"shape": [], "dtype": "int32"}}}}
    with pytest.raises(StoreError, match="cannot be an array's name"):
        declare_stream(store, "t", spec, {})
    resealed(store / "s" / "spec.json", spec=spec, fingerprint=schema.fingerprint(spec))
    with pytest.raises(StoreError, match="cannot be an array's name"):
        open_store(store)["s"]


# --- Counts ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
def test_a_count_of_one_is_singular(count: int) -> None:
    assert plural(count, "damaged part") == (f"{count:,} damaged parts" if count != 1 else "1 damaged part")


def test_messages_never_count_1_with_a_plural(tmp_path: Path) -> None:
    store, path = make(tmp_path / "s.zarr", {"p": [rows_of("a", 1)]}, {"p": FAILED}), tmp_path / "s.zarr" / "s"
    (path / "parts" / ".left").mkdir()
    outputs = [amex("features", *command).output for command in (
        ("info", store), ("ls", store), ("failures", store), ("verify", store), ("rm", store, "s"),
        ("export", store, "s", "--out", tmp_path / "out"), ("import", tmp_path / "out", "--store", tmp_path / "t.zarr"),
    )]  # fmt: skip
    (path / "commits" / "p.json").write_text("{")
    outputs += [amex("features", command, store).output for command in ("info", "verify")]
    for output in outputs:
        assert re.search(r"\b1 \w+", output), output
        assert not re.search(r"\b1 (damaged )?(clip|row|part|failure|damage|leftover|stream)s|\b1 \w+ are", output), (
            output
        )


# --- Removing --------------------------------------------------------------------------------------------------------


def test_rm_asks_before_it_removes_a_stream(store: Path) -> None:
    others = contents(store / "o")
    refused = amex("features", "rm", store, "s")  # without an answer
    assert refused.exit_code == 1
    assert "remove s from" in refused.output
    assert "6 clips, 24 rows" in refused.output
    assert len(open_store(store)["s"]) == 6
    assert "no stream 't'" in amex("features", "rm", store, "t", "--yes").output
    assert "no stream 'zarr.json'" in amex("features", "rm", store, "zarr.json", "--yes").output
    (store / "s" / "spec.json").write_text("{")  # unreadable streams can be removed too
    removed = amex("features", "rm", store, "s", "--yes")
    assert removed.exit_code == 0, removed.output
    assert list(open_store(store)) == ["o"]
    assert sorted(path.name for path in store.iterdir()) == ["o", "problems.json", "zarr.json"]
    assert contents(store / "o") == others
    assert not damages(store)


def test_leftovers_of_a_killed_removal_are_pruned(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(storage: LocalStorage) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalStorage, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_stream(store, "s")
    monkeypatch.undo()
    assert list(open_store(store)) == ["o"]
    assert [damage.kind for damage in damages(store)] == ["leftover"]
    assert "1 leftover removed" in amex("features", "verify", store, "--prune").output
    assert not damages(store)
    declare_stream(store, "s", TWIN, {})


# --- Readers ---------------------------------------------------------------------------------------------------------


def test_a_damaged_commit_record_is_an_error_to_all_readers_unless_skipped(store: Path, tmp_path: Path) -> None:
    commit_file(store, 1).write_text("{")
    with pytest.raises(DamagedPart, match=r"000001-x\.json is damaged.*--repair"):
        open_store(store)["s"]
    info = amex("features", "info", store)
    assert (info.exit_code, "4 clips, 1 failed, 1 damaged part," in info.output) == (1, True)
    as_json = amex("features", "info", store, "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)["s"]["damaged_parts"]) == (1, 1)
    outs = {form: tmp_path / form for form in ("npy", "hdf5")}
    readers = [("failures", store), ("ls", store, "s")]
    readers += [("export", store, "s", "--format", form, "--out", out) for form, out in outs.items()]
    for reader in readers:
        refused = amex("features", *reader)
        assert (refused.exit_code, "000001-x.json is damaged" in refused.output) == (1, True), reader
    assert not any(out.exists() for out in outs.values())
    for reader in readers:
        result = amex("features", *reader, "--skip-damaged")
        assert result.exit_code == 0, result.output
        assert "s: damaged part 000001-x is left out" in result.stderr
    assert "s: 4 clips" in amex("features", "ls", store, "s", "--skip-damaged").output
    assert json.loads((outs["npy"] / "clip_ids.json").read_text()) == ["a", "b", "e", "f"]
    assert list(open_store(store, skip_damaged=True)["s"].damaged) == ["000001-x"]


def test_files_deleted_while_a_stream_is_open_are_an_error_and_never_zeros(store: Path) -> None:
    stream = open_store(store)["s"]
    complete = stream.to_dask()
    assert stream["c"].values.any()
    (part_folder(store, "000001-x") / "values" / "c" / "0" / "0").unlink()
    for read in (lambda: stream["c"], complete.compute):
        with pytest.raises(DamagedPart, match=r"part 000001-x of stream 's'.*c/0/0 is missing"):
            read()
    assert stream["a"].values.any()
    remove_stream(store, "s")
    for clip_id in "ae":  # in a part that was read before, and in an unread part
        with pytest.raises(StoreError, match=r"stream .s. was removed from .*while it was read"):
            stream[clip_id]


def test_an_hdf5_export_of_a_damaged_stream_leaves_no_file(store: Path, tmp_path: Path) -> None:
    (part_folder(store, "000002-x") / "values" / "c" / "0" / "0").write_bytes(b"")
    refused = amex("features", "export", store, "s", "--format", "hdf5", "--out", tmp_path / "out" / "f.hdf5")
    assert (refused.exit_code, "part 000002-x of stream 's'" in refused.output) == (1, True)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_stream_without_spec_is_listed_and_reported_as_damaged(store: Path) -> None:
    (store / "s" / "spec.json").unlink()
    assert list(open_store(store)) == ["o", "s"]
    for command in ("info", "ls", "failures"):
        result = amex("features", command, store)
        assert (result.exit_code, "s/spec.json is missing" in result.output) == (1, True)
    assert [(damage.kind, damage.path) for damage in damages(store)] == [("lost", "s/spec.json")]
    with pytest.raises(StoreError, match="amex features rm"):
        declare_stream(store, "s", TWIN, {})
    declare_stream(store, "s", SPEC, {"weights": "none"})
    assert len(open_store(store)["s"]) == 6
    assert not damages(store)


# --- Swapped records and folders --------------------------------------------------------------------------------------


def test_a_commit_record_copied_over_another_is_detected(store: Path) -> None:
    shutil.copy(commit_file(store, 0), commit_file(store, 1))
    (damage,) = damages(store)
    assert (damage.kind, damage.stream, damage.part) == ("part", "s", "000001-x")
    assert "it is the record of part '000000-x'" in damage.reason
    with pytest.raises(DamagedPart, match="000001-x"):
        open_store(store)["s"]


def test_a_commit_record_of_another_stream_is_detected(store: Path) -> None:
    shutil.copy(store / "o" / "commits" / commit_file(store, 1).name, commit_file(store, 1))
    with pytest.raises(DamagedPart, match="another spec"):
        open_store(store)["s"]
    assert [damage.part for damage in damages(store)] == ["000001-x"]


def test_a_complete_part_without_its_commit_record_is_lost_and_an_incomplete_one_is_a_leftover(store: Path) -> None:
    record = commit_file(store, 1)
    content = record.read_bytes()
    record.unlink()
    (lost,) = damages(store)
    assert (lost.kind, lost.part) == ("lost", "000001-x")
    assert "2 clips are absent, the first 'c'" in lost.reason
    assert amex("features", "verify", store).exit_code == 1
    # Its clips were recomputed in another part, so the folder is a leftover now.
    write_part(store, "s", "000007-y", spec=SPEC, clips=[rows_of("c", 4), rows_of("d", 4)], failures=[], run={})
    assert [damage.kind for damage in damages(store)] == ["leftover"]
    (store / "s" / "commits" / "000007-y.json").unlink()
    (part_folder(store, "000001-x") / "offsets" / "zarr.json").unlink()
    shutil.rmtree(part_folder(store, "000007-y"))
    assert [damage.kind for damage in damages(store)] == ["leftover"]
    record.write_bytes(content)
    assert [(damage.kind, damage.reason) for damage in damages(store)] == [("part", "offsets/zarr.json is missing")]


def test_parts_of_a_running_run_are_not_reported(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some parts are committed after the stream was opened, and one commit record is written after its folder."""
    verified = verify_store(store)
    observed = [next(verified)]
    write_part(store, "o", "000008-x", spec=OBJECTS, clips=[objects_of("p", 3)], failures=[], run={})
    write_part(store, "s", "000008-x", spec=SPEC, clips=[rows_of("p", 3)], failures=[], run={})
    assert not any([*observed, *verified])
    record = commit_file(store, 1)
    content = record.read_bytes()
    record.unlink()
    monkeypatch.setattr(sys.modules["amex.features.care.verify"], "COMMITTED_WITHIN", 30)
    commit = threading.Timer(0.3, record.write_bytes, [content])
    commit.start()
    assert not damages(store)
    commit.join()


def test_notes_about_stalled_videos_are_not_damage(store: Path) -> None:
    (store / "s" / "stalled").mkdir()
    (store / "s" / "stalled" / "000009-x.json").write_text("{}")
    assert not damages(store)
    assert amex("features", "verify", store, "--prune").exit_code == 0
    assert (store / "s" / "stalled" / "000009-x.json").exists()


def test_verify_during_a_write_reports_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["amex.features.care.verify"], "COMMITTED_WITHIN", 30)
    done = threading.Event()

    def write() -> None:
        for number in itertools.count(10):
            if done.is_set():
                return
            clips = [rows_of(f"clip {number}", 3)]
            write_part(store, "s", f"{number:06d}-x", spec=SPEC, clips=clips, failures=[], run={})

    writer_thread = threading.Thread(target=write)
    writer_thread.start()
    try:
        actual = [damage for _ in range(10) for damage in damages(store) if damage.kind != "leftover"]
    finally:
        done.set()
        writer_thread.join()
    assert not actual
    assert len(open_store(store)["s"]) > 6


def test_a_complete_part_of_format_1_without_its_commit_record_is_lost_and_never_pruned(store: Path) -> None:
    commit_file(store, 1).unlink()
    old = part_folder(store, "000001-x").rename(store / "s" / "parts" / "000001-x")
    before = contents(old)
    pruned = amex("features", "verify", store, "--prune")
    assert (pruned.exit_code, "2 clips are absent, the first 'c'" in pruned.output) == (1, True)
    assert contents(old) == before
    (old / "values" / "c" / "0" / "0").unlink()  # Zarr would return zeros for it
    assert [damage.kind for damage in damages(store)] == ["leftover"]


def test_swapped_part_folders_are_detected(store: Path) -> None:
    """Swap within a stream, and between streams with the same clips, rows and shapes."""
    declare_stream(store, "t", TWIN, {})
    for number, (part, ids) in enumerate(CLIPS.items()):
        clips = [rows_of(clip_id, 3 + number, seed=1) for clip_id in ids]
        write_part(store, "t", part, spec=TWIN, clips=clips, failures=FAILED, run={"host": ""})
    (twin,) = (store / "t" / "parts").glob("000001-x.*")
    for other in (part_folder(store, "000000-x"), twin):
        mine = part_folder(store, "000001-x")
        exchange(mine, other)
        assert {"s/000001-x"} <= {f"{damage.stream}/{damage.part}" for damage in damages(store)}
        with pytest.raises(DamagedPart, match=r"part 000001-x of stream 's'.*is not|has"):
            open_store(store)["s"]["c"]
        with pytest.raises(DamagedPart, match="part 00000"):
            open_store(store)["s"].to_dask().compute()
        assert len(open_store(store)["s"]["e"]) == 5
        exchange(mine, other)
    assert not damages(store)


def exchange(one: Path, other: Path) -> None:
    away = one.with_name("away")
    one.rename(away)
    other.rename(one)
    away.rename(other)


# --- Every byte ------------------------------------------------------------------------------------------------------

FILES = {
    "zarr.json": "the store",
    "problems.json": "the ledger",
    "s/zarr.json": "a stream",
    "s/parts/zarr.json": "its parts",
    "s/spec.json": "its spec",
    "s/commits/000001-x.json": "a commit record",
    "s/parts/000001-x.*/zarr.json": "a part",
    "s/parts/000001-x.*/values/zarr.json": "an array",
    "s/parts/000001-x.*/values/c/0/0": "rows",
    "s/parts/000001-x.*/times/c/0/0": "times",
    "s/parts/000001-x.*/offsets/c/0": "offsets",
    "s/parts/000001-x.*/clip_ids/c/0": "ids",
    "o/parts/000002-x.*/boxes/c/0/0/0": "boxes",
}


def mutations(file: Path, good: bytes, store: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    generator = random.Random(str(file.name))
    for _ in range(2):
        bad = bytearray(good)
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
        yield "a flipped bit", lambda bad=bad: file.write_bytes(bad)
    yield "cut off", lambda: file.write_bytes(good[: len(good) // 2])
    yield "empty", lambda: file.write_bytes(b"")
    yield "other JSON", lambda: file.write_bytes(b"{}")
    alike = [other for other in sorted(store.rglob(file.name)) if other.is_file() and other.read_bytes() != good]
    for other in generator.sample(alike, min(2, len(alike))):
        yield f"copied from {other.relative_to(store)}", lambda other=other: shutil.copy(other, file)
    yield "deleted", file.unlink


@pytest.mark.parametrize("pattern", FILES, ids=FILES.values())
def test_every_changed_file_is_detected_by_verify_and_by_readers(pattern: str, store: Path) -> None:
    (file,) = store.glob(pattern)
    good, name = file.read_bytes(), file.relative_to(store).as_posix()
    truth = {clip_id: rows_of(clip_id, 3 + number) for number, ids in enumerate(CLIPS.values()) for clip_id in ids}
    for what, mutate in mutations(file, good, store):
        mutate()
        matters = name != "problems.json" or what != "deleted"  # problems.json is optional
        actual = damages(store)
        assert bool(actual) == matters, (what, name)
        assert all("\n" not in str(damage) for damage in actual)
        about = " ".join(f"{damage.path} {damage}" for damage in actual)
        part = name.split("/")[2].split(".")[0] if name.count("/") > 2 or "commits" in name else name
        assert part in about or not matters, (what, name, about)
        try:
            stream = open_store(store)["s"]
            for clip_id, clip in truth.items():
                rows = stream[clip_id]
                assert np.array_equal(rows.values, clip.arrays["values"]), (what, name)
                assert np.array_equal(rows.times, clip.arrays["times"]), (what, name)
        except StoreError:
            pass
        file.write_bytes(good)
    assert not damages(store)


METADATA = ("zarr.json", "s/zarr.json", "s/parts/zarr.json", "s/spec.json", "problems.json")


def test_repair_rewrites_metadata(store: Path) -> None:
    for file in METADATA[:3]:
        (store / file).write_text("{")
    (store / "s/spec.json").write_text((store / "s/spec.json").read_text().replace('"none"', '"nine"'))
    (store / "problems.json").write_text("[{")
    failures = amex("features", "failures", store)
    assert (failures.exit_code, failures.output.count("\n")) == (1, 1)
    assert sorted(damage.path for damage in damages(store)) == sorted([*METADATA, "s/spec.json"])
    mended = amex("features", "verify", store, "--repair")
    assert mended.exit_code == 0, mended.output
    assert all(f"{file}: made anew" in mended.output for file in METADATA[:-1])
    assert "problems.json: removed; the next amex extract writes it" in mended.output
    assert not damages(store)
    opened = open_store(store)
    assert opened.problems == []
    assert len(opened["s"]["a"]) == 3
    assert "resealed" in opened["s"].provenance
    assert repair_metadata(store) == []


def test_a_damaged_problems_file_is_a_one_line_error_and_the_next_run_rewrites_it(store: Path) -> None:
    for text in ("{", "null", '[{"clip": 1}]', "[" * 9999, "\xff"):
        (store / "problems.json").write_text(text, encoding="latin-1")
        with pytest.raises(StoreError, match=r"problems\.json is damaged"):
            _ = open_store(store).problems
    write_problems(store, FAILED)
    assert open_store(store).problems == FAILED


def test_a_repair_with_the_same_settings_rewrites_a_damaged_spec(store: Path) -> None:
    spec = store / "s" / "spec.json"
    spec.write_text(spec.read_text().replace('"frames": 16', '"frames": 17'))
    with pytest.raises(StoreError, match=r"spec\.json is damaged.*--repair"):
        declare_stream(store, "s", SPEC, {})
    with pytest.raises(StoreError, match="other settings"):
        declare_stream(store, "s", TWIN, {}, repair=True)
    declare_stream(store, "s", SPEC, {"weights": "none"}, repair=True)
    assert len(open_store(store)["s"]) == 6
    assert not damages(store)
    shutil.copy(store / "o" / "spec.json", spec)
    assert [(damage.kind, damage.path) for damage in damages(store)] == [("lost", "s/spec.json")]
    with pytest.raises(SpecMismatch):
        declare_stream(store, "s", TWIN, {}, repair=True)
    declare_stream(store, "s", SPEC, {"weights": "none"}, repair=True)
    assert not damages(store)


def test_verify_reports_what_it_compared_and_what_it_cannot_detect(store: Path) -> None:
    output = amex("features", "verify", store).output
    assert "every byte of 6 parts" in output
    assert "whose rows and record are both gone" in output
    assert output.endswith("is intact\n")


def test_a_store_of_format_2_is_readable_and_upgraded_by_the_next_writer(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {"p": [rows_of("a", 3)]})
    record = json.loads((store / "s" / "spec.json").read_text())
    del record["sha256"]
    (store / "s" / "spec.json").write_text(json.dumps({**record, "format": 2}, indent=1))
    about = {"format": 2, "created": "2026-01-01T00:00:00+00:00"}
    group = {"attributes": {"amex": about}, "zarr_format": 3, "node_type": "group"}
    (store / "zarr.json").write_text(json.dumps(group))
    (store / "problems.json").write_text(json.dumps([vars(FAILED[0])]))
    resealed(store / "s" / "commits" / "p.json", format=2)
    assert open_store(store).problems == FAILED
    assert len(open_store(store)["s"]["a"]) == 3
    with pytest.raises(MissingClip):
        open_store(store)["s"]["b"]
    verified = amex("features", "verify", store)
    assert verified.exit_code == 0
    assert "without a checksum, so only known to be readable: zarr.json, s/spec.json, problems.json" in verified.output
    create_store(store)
    assert schema.read_store(store) == {**about, "format": schema.FORMAT}
    assert len(open_store(store)["s"]["a"]) == 3
    assert not damages(store)
    (store / "zarr.json").write_text(schema.group_text({"format": schema.FORMAT + 1}))
    with pytest.raises(StoreError, match="upgrade amex"):
        open_store(store)
