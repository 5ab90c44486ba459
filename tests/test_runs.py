"""Training runs: learning rates, batches, and the conditions for resuming."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import amex, write_lines
from tiny import TINY, lines, tiny_store
from torch.optim.optimizer import register_optimizer_step_pre_hook

from amex.train import hooks
from amex.train.batches import PairBatches
from amex.train.checkpoint import read_checkpoint
from amex.train.config import load_config
from amex.train.data import Split
from amex.train.fitting import fit


@pytest.fixture
def rates() -> Iterator[list[float]]:
    """The learning rate of every optimizer step."""
    observed: list[float] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: observed.append(optimizer.param_groups[0]["lr"]))
    yield observed
    handle.remove()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "m.jsonl", *lines())


def train(store: Path, manifest: Path, work: Path, *more: str, which: str = "global", resume: bool = False) -> None:
    config = load_config(which, [*TINY, *more])
    fit(config, store=store, manifest=manifest, work_dir=work, resume=resume)


def history(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_run_resumed_with_more_epochs_follows_the_schedule_of_the_new_length(
    store: Path, manifest: Path, tmp_path: Path, rates: list[float], warmup: int
) -> None:
    cosine = ("train.schedule=cosine", f"train.warmup={warmup}", "data.batch_size=3")
    train(store, manifest, tmp_path / "whole", *cosine, "train.epochs=6")
    complete = rates.copy()
    steps = np.arange(18)
    rise = np.minimum(1, 1e-3 + (1 - 1e-3) * steps / max(1, warmup - 1)) if warmup else 1
    assert complete == pytest.approx(0.01 * rise * (1 + np.cos(np.pi * steps / 18)) / 2)
    rates.clear()
    train(store, manifest, tmp_path / "parts", *cosine, "train.epochs=4")
    assert rates[-1] < 0.1 * max(rates)  # the shorter run ended on its own schedule
    rates.clear()
    train(store, manifest, tmp_path / "parts", *cosine, "train.epochs=6", resume=True)
    assert rates == complete[12:]
    assert [line["lr"] for line in history(tmp_path / "parts")[4:]] == [complete[14], complete[17]]


def test_resuming_prints_only_json_and_never_shortens_a_run(store: Path, manifest: Path, tmp_path: Path) -> None:
    settings = [word for setting in TINY for word in ("--set", setting)]
    arguments = ("train", "global", "--store", store, "--manifest", manifest, "--work-dir", tmp_path / "w", *settings)
    for epochs in (1, 2):
        done = amex(*arguments, "--resume", "--json", "--set", f"train.epochs={epochs}")
        assert json.loads(done.stdout)["epoch"] == epochs
    shorter = amex(*arguments, "--resume", "--set", "train.epochs=1")
    assert shorter.exit_code == 1
    assert "is of epoch 2 already: train.epochs=1 is below it" in shorter.output
    assert json.loads((tmp_path / "w" / "config.json").read_text())["train"]["epochs"] == 2


@pytest.mark.parametrize(
    ("patience", "every", "rsums", "halved"),
    [
        # The rate is halved after this many epochs without a better rsum, and again after as many more.
        (3, 1, [10, 9, 10, 8, 7, 6, 5, 11, 0, 0], [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]),
        (1, 1, [10, 11, 11, 12, 12], [0, 0, 0, 1, 1]),
        # With a validation every other epoch, epochs count, not validations.
        (3, 2, [10, 9, 8, 7, 6], [0, 0, 0, 1, 1]),
        (4, 2, [10, 9, 8, 7, 6], [0, 0, 0, 1, 1]),
    ],
)
def test_patience_counts_epochs_without_a_better_rsum(
    store: Path,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patience: int,
    every: int,
    rsums: list[float],
    halved: list[int],
) -> None:
    script = iter(rsums)
    monkeypatch.setattr(hooks, "evaluate_split", lambda model, split: {"rsum": float(next(script))})
    plateau = ("train.schedule=plateau", f"train.patience={patience}", f"train.val_every={every}")
    epochs = every * len(rsums)
    # In two parts: the second continues the count of the first.
    train(store, manifest, tmp_path / "w", *plateau, f"train.epochs={epochs // 2 - epochs // 2 % every}")
    train(store, manifest, tmp_path / "w", *plateau, f"train.epochs={epochs}", resume=True)
    assert [line["lr"] for line in history(tmp_path / "w")] == [0.01 / 2**count for count in halved]


def test_mixed_precision_can_be_set_to_off() -> None:
    assert load_config("global", ["train.amp=off"]).train.amp == "off"  # YAML reads off as false


def test_a_remaining_pair_joins_the_last_batch() -> None:
    for pairs in range(2, 14):
        for size in (2, 3, 4):
            batches = PairBatches(range(pairs), size, drop_last=False)
            made = list(batches)
            assert [pair for batch in made for pair in batch] == list(range(pairs))
            assert len(made) == len(batches)
            assert min(map(len, made)) >= 2
            assert max(map(len, made)) <= size + 1


def test_every_epoch_has_each_pair_once_in_a_different_order(
    store: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    original = Split.__getitems__
    monkeypatch.setattr(Split, "__getitems__", lambda split, items: (read.extend(items), original(split, items))[1])
    train(store, manifest, tmp_path / "w", "train.epochs=2")
    orders = [[index for epoch, index in read if epoch == number] for number in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(9))] * 2
    assert orders[0] != orders[1]


@pytest.mark.parametrize("which", ["dual_encoding", "mcsan"])
def test_batch_normalisation_works_with_one_remaining_pair(
    store: Path, manifest: Path, tmp_path: Path, which: str
) -> None:
    small = {"dual_encoding": ("model.rnn_dim=4", "model.filters=4"), "mcsan": ("model.attributes=separate",)}
    assert amex("manifest", "parse", manifest).exit_code == 0
    train(store, manifest, tmp_path / "w", *small[which], "train.epochs=1", which=which)
    assert np.isfinite(history(tmp_path / "w")[0]["train"]["loss"])


def test_a_single_pair_is_an_error_in_one_line(store: Path, tmp_path: Path) -> None:
    subset = [line for line in lines() if line["split"] != "train" or line["clip_id"] == "train3"]
    manifest = write_lines(tmp_path / "m.jsonl", *subset)
    arguments = ("--store", store, "--manifest", manifest, "--work-dir", tmp_path / "w")
    result = amex("train", "global", *arguments, *(word for setting in TINY for word in ("--set", setting)))
    assert result.exit_code == 1
    assert f"split 'train' of {manifest} has 1 pair of a clip and a caption" in result.output
    assert len(result.output.splitlines()) == 1


@pytest.fixture(scope="module")
def begun(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest, its role graphs, and a run of MCSAN of one epoch."""
    folder = tmp_path_factory.mktemp("begun")
    manifest = write_lines(folder / "m.jsonl", *lines())
    assert amex("manifest", "parse", manifest).exit_code == 0
    train(store, manifest, folder / "w", "train.epochs=1", which="mcsan")
    return folder


@pytest.mark.parametrize(
    ("changed", "words", "not_words"),
    [
        ({"train2": ["a dog chases a dog"]}, ("clips of split train: '9 clips", "role graphs: "), ("split val",)),
        ({"train2": ["the bird sings"]}, ("vocabulary: '", "clips of split train"), ("split val",)),
        ({"train1": ["a cat sings"], "train6": ["a cat sings"]}, ("concepts: '", "role graphs"), ("split val",)),
        ({"val0": []}, ("clips of split val: '3 clips, 3 captions", "'3 clips, 2 captions"), ("vocabulary", "train:")),
    ],
)
def test_a_changed_manifest_is_noticed_on_resume(
    store: Path,
    begun: Path,
    tmp_path: Path,
    changed: dict[str, list[str]],
    words: tuple[str, ...],
    not_words: tuple[str, ...],
) -> None:
    manifest = write_lines(tmp_path / "m.jsonl", *lines(**changed))
    assert amex("manifest", "parse", manifest).exit_code == 0
    refused = resumed(store, manifest, begun / "w")
    assert "was trained with other data, so it cannot be resumed" in refused
    assert all(word in refused for word in words), refused
    assert not any(word in refused for word in not_words), refused


def test_role_graphs_of_another_parser_are_noticed_on_resume(store: Path, begun: Path, tmp_path: Path) -> None:
    manifest = write_lines(tmp_path / "m.jsonl", *lines())
    graphs = json.loads((begun / "m.rolegraphs.json").read_text())
    (tmp_path / "m.rolegraphs.json").write_text(json.dumps(graphs["graphs"]))  # the official program's form
    refused = resumed(store, manifest, begun / "w")
    assert "by rules" in refused
    assert "by official" in refused
    assert "clips of split" not in refused
    nodes, _ = graphs["graphs"]["a dog chases a cat"]
    nodes["1"]["role"] = "ARGM-LOC"
    (tmp_path / "m.rolegraphs.json").write_text(json.dumps(graphs))
    assert "role graphs: " in resumed(store, manifest, begun / "w")


def test_a_manifest_whose_test_clips_changed_does_not_stop_a_run(store: Path, begun: Path, tmp_path: Path) -> None:
    manifest = write_lines(tmp_path / "m.jsonl", *lines(test0=["a bird sings"]))
    assert amex("manifest", "parse", manifest).exit_code == 0
    assert resumed(store, manifest, begun / "w") == ""


def test_a_run_of_an_earlier_amex_is_refused_and_to_be_trained_again(store: Path, begun: Path, tmp_path: Path) -> None:
    record = read_checkpoint(begun / "w" / "last.pth")
    record["amex"] |= {"format": 1}
    (tmp_path / "w").mkdir()
    torch.save(record, tmp_path / "w" / "last.pth")
    message = "was written by an earlier amex (format 1) and cannot be read: train again"
    assert message in resumed(store, begun / "m.jsonl", tmp_path / "w")
    evaluated = amex("eval", tmp_path / "w" / "last.pth")
    assert evaluated.exit_code == 1
    assert message in evaluated.output


def resumed(store: Path, manifest: Path, work: Path) -> str:
    """The error line if resuming is refused, else an empty text."""
    arguments = ("--store", store, "--manifest", manifest, "--work-dir", work, "--resume")
    settings = (word for setting in (*TINY, "train.epochs=1") for word in ("--set", setting))
    result = amex("train", "mcsan", *arguments, *settings)
    if result.exit_code == 0:
        return ""
    assert len(result.output.splitlines()) == 1, result.output
    return result.output
