"""`amex ablate`: results are of what there is now, and none is lost or made twice."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import amex, write_lines
from tiny import TINY, lines, tiny_store

from amex.features import ClipRows, create_store, declare_stream, open_store, write_part


class Bench:
    """A folder with a configuration of two variants, a store, a manifest with role graphs, and the runs."""

    def __init__(self, folder: Path, which: str = "global") -> None:
        self.store, self.manifest, self.work = tiny_store(folder), folder / "m.jsonl", folder / "w"
        self.config = folder / "mine.py"
        changes = {"a": [], "b": ["model.dropout=0.5"], "broken": ["model.dim=none"]}
        self.config.write_text(f"model = {{'name': {which!r}}}\nvariants = {changes}\n")
        assert amex("manifest", "parse", self.manifest).exit_code == 0

    def run(self, *more: Any, code: int = 0) -> str:
        given = ("--store", self.store, "--manifest", self.manifest, "--work-dir", self.work)
        few = ("train.epochs=1", "data.batch_size=9")
        settings = (word for setting in (*TINY, *few) for word in ("--set", setting))
        named = ("--variant", "a", "--variant", "b") if "--variant" not in more else ()
        seeds = ("--seeds", "0") if "--seeds" not in more else ()
        result = amex("ablate", self.config, *given, *settings, *named, *seeds, *more)
        assert result.exit_code == code, result.output
        return result.output

    def table(self, name: str = "ablation-test.json") -> dict[str, Any]:
        return json.loads((self.work / name).read_text())

    def trained(self) -> dict[str, int]:
        """The runs there are, with when each was trained."""
        return {str(path): path.stat().st_mtime_ns for path in self.work.glob("*/seed*/last.pth")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("finished"), "hgr")
    bench.run()
    return bench


@pytest.fixture
def bench(finished: Bench, tmp_path: Path) -> Bench:
    """A copy of the finished runs; paths in it are part of what decides no figure."""
    shutil.copytree(finished.config.parent, tmp_path / "copy")
    copied = object.__new__(Bench)
    for name, path in vars(finished).items():
        setattr(copied, name, tmp_path / "copy" / path.name)
    return copied


def test_what_is_finished_is_not_trained_again(bench: Bench) -> None:
    before, table = bench.trained(), bench.table()
    said = bench.run()
    assert bench.trained() == before
    assert "again" not in said
    assert {name: entry["mean"] for name, entry in bench.table().items()} == {
        name: entry["mean"] for name, entry in table.items()
    }


def change_setting(bench: Bench) -> None:
    bench.config.write_text(bench.config.read_text() + "train = {'weight_decay': 0.1}\n")


def change_features(bench: Bench) -> None:
    """Features made in the same way from other videos: the same stream, other rows."""
    stream = open_store(bench.store)["motion"]
    rows = {clip: stream[clip].arrays for clip in stream}
    shutil.rmtree(bench.store)
    other = [ClipRows(clip_id=clip, arrays={**arrays, "values": -arrays["values"]}) for clip, arrays in rows.items()]
    declare_stream(create_store(bench.store), "motion", stream.spec, {})
    write_part(bench.store, "motion", "0", spec=stream.spec, clips=other, failures=[], run={})
    assert open_store(bench.store)["motion"].fingerprint == stream.fingerprint


def change_caption(bench: Bench) -> None:
    write_lines(bench.manifest, *lines(train2=["a dog chases a dog"]))


def change_graphs(bench: Bench) -> None:
    path = bench.manifest.with_suffix(".rolegraphs.json")
    record = json.loads(path.read_text())
    nodes, _ = record["graphs"]["a dog chases a cat"]
    nodes["1"]["role"] = "ARGM-LOC"
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_setting, "config.train.weight_decay: 0.0 then, 0.1 now"),
        (change_features, "learned_from.features of motion: 'sha256 "),
        (change_caption, "learned_from.clips of split train: '9 clips"),
        (change_graphs, "learned_from.role graphs: '"),
    ],
)
def test_what_changed_is_trained_again_and_named(bench: Bench, change: Any, words: str) -> None:
    before, table = bench.trained(), bench.table()
    change(bench)
    said = bench.run()
    assert said.count("trained again") == 2
    assert words in said
    after = bench.trained()
    assert len(after) == 4
    assert before.items() < after.items()  # the runs of before are still there
    for name, entry in bench.table().items():
        assert (bench.work / entry["runs"]["0"]["folder"] / "best.pth").is_file()
        assert entry["runs"]["0"]["folder"] != table[name]["runs"]["0"]["folder"]
    assert "again" not in bench.run()
    assert bench.trained() == after


def test_features_of_other_clips_and_paths_change_nothing(bench: Bench) -> None:
    before = bench.trained()
    stream = open_store(bench.store)["motion"]
    late = [ClipRows(clip_id="late", arrays=stream["train0"].arrays)]
    write_part(bench.store, "motion", "late", spec=stream.spec, clips=late, failures=[], run={})
    bench.store = bench.store.rename(bench.store.with_name("moved.zarr"))
    assert "again" not in bench.run()
    assert bench.trained() == before


def test_a_changed_test_split_is_evaluated_again_with_the_weights_there_are(bench: Bench) -> None:
    before, table = bench.trained(), bench.table()
    write_lines(bench.manifest, *lines(test1=["a dog chases a cat", "a horse chases a car"]))
    said = bench.run()
    assert said.count("evaluated again") == 2
    assert bench.trained() == before
    assert all(bench.table()[name]["mean"] != entry["mean"] for name, entry in table.items())
    assert "again" not in bench.run()


def test_one_variant_leaves_the_results_of_the_others_in_the_table(bench: Bench) -> None:
    table = bench.table()
    said = bench.run("--variant", "b", "--seeds", "1")
    both = bench.table()
    assert both["a"] == table["a"]
    assert both["b"]["runs"].keys() == {"0", "1"}
    assert both["b"]["runs"]["0"] == table["b"]["runs"]["0"]
    figures = [run["figures"]["rsum"] for run in both["b"]["runs"].values()]
    assert both["b"]["mean"]["rsum"] == pytest.approx(np.mean(figures))
    assert both["b"]["std"]["rsum"] == pytest.approx(np.std(figures, ddof=1))
    assert re.search(r"^\s*a .* 1 ", said, re.MULTILINE)
    assert re.search(r"^\s*b .* 2 ", said, re.MULTILINE)


def test_results_of_other_settings_are_left_out_of_the_table_by_name_and_come_back(bench: Bench) -> None:
    table = bench.table()
    said = bench.run("--variant", "b", "--set", "train.lr=0.02")
    assert "a, seed 0: not in the table, unfinished or made from something else" in said
    assert bench.table().keys() == {"b"}
    before = bench.trained()
    bench.run("--variant", "b")
    assert bench.trained() == before
    assert bench.table() == table


def test_merged_figures_have_a_table_of_their_own(bench: Bench) -> None:
    table, before = bench.table(), bench.trained()
    bench.run("--merge")
    assert bench.table() == table
    assert bench.table("ablation-test-merged.json").keys() == table.keys()
    assert bench.trained() == before


def test_figures_of_an_earlier_amex_are_not_taken_for_those_of_this_one(bench: Bench) -> None:
    (run,) = (bench.work / "a").iterdir()
    old = run.rename(bench.work / "a" / "seed0")
    (old / "made_from.json").unlink()
    said = bench.run("--variant", "a")
    assert f"{old} was made by an earlier amex" in said
    assert bench.table().keys() == {"a", "b"}


def test_an_interrupted_run_goes_on_in_its_folder(bench: Bench) -> None:
    (run,) = (bench.work / "a").iterdir()
    (run / "result-test.json").unlink()
    table, before = bench.table(), bench.trained()
    assert "again" not in bench.run()
    assert bench.trained() == before
    assert bench.table() == table


def test_variants_that_would_share_a_folder_are_refused_by_name(finished: Bench, tmp_path: Path) -> None:
    config = tmp_path / "c.py"
    config.write_text("model = {'name': 'global'}\nvariants = {'lr 1': [], 'no graph': [], 'lr=1': ['train.lr=1']}\n")
    given = ("--store", finished.store, "--manifest", finished.manifest, "--work-dir", tmp_path / "w")
    result = amex("ablate", config, *given, "--variant", "no graph")
    assert result.exit_code == 1
    assert "variants 'lr 1' and 'lr=1' would both be kept in the folder 'lr-1': rename one" in result.output
    assert not (tmp_path / "w").exists()


def test_a_split_that_is_not_there_is_refused_before_anything_is_trained(finished: Bench, tmp_path: Path) -> None:
    given = ("--store", finished.store, "--manifest", finished.manifest, "--work-dir", tmp_path / "w")
    result = amex("ablate", finished.config, *given, "--variant", "a", "--split", "tset")
    assert result.exit_code == 1
    assert "no clip of split 'tset'" in result.output
    assert not (tmp_path / "w").exists()
