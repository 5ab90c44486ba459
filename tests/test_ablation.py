"""`amex ablate`: results belong to the current inputs, and no run is lost or repeated."""

from __future__ import annotations

import dataclasses
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
from amex.train.ranks import Ranks


class Bench:
    """A folder with a configuration of two variants, a store, a manifest with role graphs, and the runs."""

    def __init__(self, folder: Path, which: str = "global") -> None:
        self.store, self.manifest, self.work = tiny_store(folder), folder / "m.jsonl", folder / "w"
        self.config = folder / "mine.py"
        changes = {"a": [], "b": ["model.dropout=0.5"], "broken": ["model.dim=none"]}
        self.config.write_text(f"model = {{'name': {which!r}}}\nvariants = {changes}\n")
        assert amex("manifest", "parse", self.manifest).exit_code == 0

    def run(self, *more: Any, code: int = 0) -> str:
        arguments = ("--store", self.store, "--manifest", self.manifest, "--work-dir", self.work)
        few = ("train.epochs=1", "data.batch_size=9")
        settings = (word for setting in (*TINY, *few) for word in ("--set", setting))
        named = ("--variant", "a", "--variant", "b") if "--variant" not in more else ()
        seeds = ("--seeds", "0") if "--seeds" not in more else ()
        result = amex("ablate", self.config, *arguments, *settings, *named, *seeds, *more)
        assert result.exit_code == code, result.output
        return result.output

    def table(self, name: str = "ablation-test.json") -> dict[str, Any]:
        return json.loads((self.work / name).read_text())

    def trained(self) -> dict[str, int]:
        """The existing runs, with their training times."""
        return {str(path): path.stat().st_mtime_ns for path in self.work.glob("*/seed*/last.pth")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("finished"), "hgr")
    bench.run()
    return bench


@pytest.fixture
def bench(finished: Bench, tmp_path: Path) -> Bench:
    """A copy of the finished runs; their paths determine no figure."""
    shutil.copytree(finished.config.parent, tmp_path / "copy")
    copied = object.__new__(Bench)
    for name, path in vars(finished).items():
        setattr(copied, name, tmp_path / "copy" / path.name)
    return copied


def test_finished_runs_are_not_trained_again(bench: Bench) -> None:
    before, table = bench.trained(), bench.table()
    result = bench.run()
    assert bench.trained() == before
    assert "again" not in result
    assert {name: entry["mean"] for name, entry in bench.table().items()} == {
        name: entry["mean"] for name, entry in table.items()
    }


def change_setting(bench: Bench) -> None:
    bench.config.write_text(bench.config.read_text() + "train = {'weight_decay': 0.1}\n")


def change_features(bench: Bench) -> None:
    """Features of other videos with the same settings: the same stream, other rows."""
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
def test_changed_inputs_are_named_and_trained_again(bench: Bench, change: Any, words: str) -> None:
    before, table = bench.trained(), bench.table()
    change(bench)
    result = bench.run()
    assert result.count("trained again") == 2
    assert words in result
    after = bench.trained()
    assert len(after) == 4
    assert before.items() < after.items()  # the earlier runs still exist
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


def test_a_changed_test_split_is_evaluated_again_without_training(bench: Bench) -> None:
    before, table = bench.trained(), bench.table()
    write_lines(bench.manifest, *lines(test1=["a dog chases a cat", "a horse chases a car"]))
    result = bench.run()
    assert result.count("evaluated again") == 2
    assert bench.trained() == before
    assert all(bench.table()[name]["mean"] != entry["mean"] for name, entry in table.items())
    assert "again" not in bench.run()


def test_training_one_variant_keeps_the_results_of_others_in_the_table(bench: Bench) -> None:
    table = bench.table()
    result = bench.run("--variant", "b", "--seeds", "1")
    both = bench.table()
    assert both["a"] == table["a"]
    assert both["b"]["runs"].keys() == {"0", "1"}
    assert both["b"]["runs"]["0"] == table["b"]["runs"]["0"]
    figures = [run["figures"]["rsum"] for run in both["b"]["runs"].values()]
    assert both["b"]["mean"]["rsum"] == pytest.approx(np.mean(figures))
    assert both["b"]["std"]["rsum"] == pytest.approx(np.std(figures, ddof=1))
    assert re.search(r"^\s*a .* 1 ", result, re.MULTILINE)
    assert re.search(r"^\s*b .* 2 ", result, re.MULTILINE)


def test_results_of_other_settings_leave_the_table_and_return_with_their_settings(bench: Bench) -> None:
    table = bench.table()
    result = bench.run("--variant", "b", "--set", "train.lr=0.02")
    assert "a, seed 0: not in the table, unfinished or made from other data" in result
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


def test_figures_of_an_earlier_amex_are_not_reused(bench: Bench) -> None:
    (run,) = (bench.work / "a").iterdir()
    old = run.rename(bench.work / "a" / "seed0")
    (old / "made_from.json").unlink()
    result = bench.run("--variant", "a")
    assert f"{old} was made by an earlier amex" in result
    assert bench.table().keys() == {"a", "b"}


def test_an_interrupted_run_resumes_in_its_folder(bench: Bench) -> None:
    (run,) = (bench.work / "a").iterdir()
    (run / "result-test.json").unlink()
    table, before = bench.table(), bench.trained()
    assert "again" not in bench.run()
    assert bench.trained() == before
    assert bench.table() == table


def test_variants_are_compared_with_the_first_query_by_query(bench: Bench) -> None:
    result = bench.run("--seeds", "0,1")
    table = bench.table()
    assert "against" not in table["a"]
    against = table["b"]["against"]
    assert against["variant"] == "a"
    assert against["seeds"] == [0, 1]
    for figure, (difference, low, high) in against["intervals"].items():
        assert difference == pytest.approx(table["b"]["mean"][figure] - table["a"]["mean"][figure])
        assert low <= difference <= high
    assert {"rsum", "t2v R@1", "v2t R@10"} <= against["intervals"].keys()
    assert re.search(r"less a .*rsum", result)
    for run in table["a"]["runs"].values():
        ranks = Ranks.load(bench.work / run["folder"] / "ranks-test.npz")
        for way in ("t2v", "v2t"):
            assert 100 * (ranks.hits[way] <= 1).mean() == pytest.approx(run["figures"][f"{way} R@1"])


def test_variants_of_other_queries_are_not_compared(bench: Bench) -> None:
    path = next((bench.work / "b").iterdir()) / "ranks-test.npz"
    ranks = Ranks.load(path)
    dataclasses.replace(ranks, queries="others").save(path)
    result = bench.run()
    assert "b is not compared with a: galleries or captions differ" in result


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"junk")])
def test_missing_or_damaged_ranks_are_computed_again_without_training(bench: Bench, spoil: Any) -> None:
    before, table = bench.trained(), bench.table()
    path = next((bench.work / "b").iterdir()) / "ranks-test.npz"
    spoil(path)
    assert bench.run().count("evaluated again") == 1
    assert path.is_file()
    assert bench.trained() == before
    assert bench.table() == table


def test_variants_that_would_share_a_folder_are_refused_by_name(finished: Bench, tmp_path: Path) -> None:
    config = tmp_path / "c.py"
    config.write_text("model = {'name': 'global'}\nvariants = {'lr 1': [], 'no graph': [], 'lr=1': ['train.lr=1']}\n")
    arguments = ("--store", finished.store, "--manifest", finished.manifest, "--work-dir", tmp_path / "w")
    result = amex("ablate", config, *arguments, "--variant", "no graph")
    assert result.exit_code == 1
    assert "variants 'lr 1' and 'lr=1' would share the folder 'lr-1': rename one" in result.output
    assert not (tmp_path / "w").exists()


def test_an_unknown_split_is_refused_before_training(finished: Bench, tmp_path: Path) -> None:
    arguments = ("--store", finished.store, "--manifest", finished.manifest, "--work-dir", tmp_path / "w")
    result = amex("ablate", finished.config, *arguments, "--variant", "a", "--split", "tset")
    assert result.exit_code == 1
    assert "no clip of split 'tset'" in result.output
    assert not (tmp_path / "w").exists()


def test_concepts_absent_from_a_batch_or_split_are_ignored_in_its_figures(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "mcsan")
    # Two clips in nine share a verb; the test clips have none of their words.
    alone = {
        f"train{number}": [f"the {word} alone"] for number, word in enumerate(["dog", "cat", "horse"] * 2 + ["dog"])
    }
    write_lines(bench.manifest, *lines(**alone, **{f"test{number}": [f"a stone {number}"] for number in range(3)}))
    assert amex("manifest", "parse", bench.manifest).exit_code == 0
    bench.run("--variant", "a", "--set", "data.batch_size=3")
    (run,) = bench.table()["a"]["runs"].values()
    assert not any("concept mAP" in name for name in run["figures"])
    assert 0 <= run["train"]["video_action_mAP"] <= 1


def test_changed_word_vectors_cause_a_new_training(tmp_path: Path) -> None:
    bench, table = Bench(tmp_path), tmp_path / "words.npz"
    arguments = ("--variant", "a", "--set", f"model.word_vectors={table}")
    np.savez(table, words=np.array(["dog", "cat"]), vectors=np.eye(2, 4, dtype=np.float32))
    bench.run(*arguments)
    assert "again" not in bench.run(*arguments)
    np.savez(table, words=np.array(["dog", "cat"]), vectors=np.eye(2, 4, 1, dtype=np.float32))
    assert "learned_from.word vectors: 'sha256 " in bench.run(*arguments)
