"""Training, evaluation and search from the command line, on a store made by the test."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ON_CPU, amex, write_lines
from torch.utils.data import DataLoader

from amex.errors import AmexError
from amex.features import open_store
from amex.manifests import Clip, read_manifest
from amex.train import data
from amex.train.captions import make_text
from amex.train.checkpoint import load_checkpoint, read_checkpoint
from amex.train.config import ConfigError, load_config
from amex.train.data import Split, keep_in_memory
from amex.train.evaluate import encode
from amex.train.fitting import lock_run
from amex.train.selection import of_split

# A model of a few thousand parameters; words are learned, so no text model is needed.
TINY = (
    "model.text=words", "model.word_dim=8", "model.dim=16", "model.graph_dim=8", "model.graphs=2", "model.key_dim=4",
    "objective.adversary=reversal", "objective.adversary_hidden=8", "data.batch_size=8", "train.epochs=3",
    "train.lr=3e-3", "train.schedule=cosine", "train.val_every=1", "train.keep=best",
)  # fmt: skip
NO_DROPOUT = ("model.dropout=0", "model.relation_dropout=0", "model.bag_dropout=0")
KINDS = ("dog", "cat", "horse", "car", "boat", "bird")


def settings(*more: str) -> list[str]:
    return [word for setting in (*TINY, *more) for word in ("--set", setting)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of clips and objects that encode their captions, and its manifest: 48 train, 12 val, 12 test."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    words = rng.standard_normal((len(KINDS), 16)).astype(np.float32)
    lines, clips, offsets, objects = [], [], [0], []
    for i in range(72):
        a, b = (int(x) for x in rng.choice(len(KINDS), 2, replace=False))
        split = "train" if i < 48 else "val" if i < 60 else "test"
        captions = [f"a {KINDS[a]} chases a {KINDS[b]}", f"the {KINDS[b]} is chased by a {KINDS[a]}"]
        lines.append({"clip_id": f"c{i}", "video": f"c{i}.mp4", "split": split, "captions": captions})
        clips.append((words[a] + words[b] + 0.1 * rng.standard_normal((3, 16))).astype(np.float16))
        rows = int(rng.integers(1, 5))
        offsets.append(offsets[-1] + rows)
        objects.append(np.stack([words[[a, b]] + 0.1 * rng.standard_normal((2, 16)) for _ in range(rows)]))
    rows = offsets[-1]
    np.savez(folder / "clips.npz", motion=np.array(clips))
    np.savez(
        folder / "objects.npz",
        clip_ids=np.array([line["clip_id"] for line in lines]),
        offsets=np.array(offsets),
        values=np.concatenate(objects).astype(np.float16),
        times=np.stack([np.arange(rows) / 5, np.arange(rows) / 5 + 0.04], axis=1),
        boxes=np.sort(rng.random((rows, 2, 2, 2)), axis=2).reshape(rows, 2, 4).astype(np.float32) * 160,
        scores=np.ones((rows, 2), np.float32),
        labels=np.zeros((rows, 2), np.int32),
        counts=np.full(rows, 2, np.int32),
        frame_size=np.full((rows, 2), 160, np.int32),
    )
    manifest = write_lines(folder / "m.jsonl", *lines)
    store = folder / "s.zarr"
    for source in ("clips.npz", "objects.npz"):
        result = amex("features", "import", folder / source, "--captions", manifest, "--store", store)
        assert result.exit_code == 0, result.output
    return store, manifest


def train(made: tuple[Path, Path], work: Path, *more: str, which: str = "amenet", flags: tuple[str, ...] = ()) -> str:
    store, manifest = made
    arguments = ("--store", store, "--manifest", manifest, "--work-dir", work)
    result = amex("train", which, *arguments, *settings(*more), *flags)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("trained") / "w"
    train(made, work, "train.epochs=40")
    return work


@pytest.fixture(scope="module")
def trained_thrice(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs with the settings of ``TINY``."""
    work = tmp_path_factory.mktemp("thrice") / "w"
    train(made, work)
    return work


def history(work: Path) -> list[dict[str, Any]]:
    """A run's history without durations."""
    lines = [json.loads(line) for line in (work / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: x for name, x in read_checkpoint(path)["state_dict"].items() if torch.is_tensor(x)}


def same_weights(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_learns_and_its_checkpoint_describes_it(trained: Path, made: tuple[Path, Path]) -> None:
    lines = history(trained)
    assert [line["epoch"] for line in lines] == list(range(1, 41))
    assert lines[-1]["train"]["loss_contrastive_relation"] < 0.5 * lines[0]["train"]["loss_contrastive_relation"]
    best = load_checkpoint(trained)
    assert best.val["rsum"] == max(line["val"]["rsum"] for line in lines)
    assert best.val["rsum"] > 350  # chance is near 200
    store = open_store(made[0])
    assert best.fingerprints == {name: store[name].fingerprint for name in ("objects", "motion")}
    assert best.config.model.objects == "objects"
    assert "chases" in best.vocabulary
    assert list((trained / "tensorboard").rglob("events.out.tfevents*"))
    assert not list(trained.glob(".*"))  # no incomplete file


def test_tensorboard_holds_the_losses_and_the_recalls(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (trained / "tensorboard").rglob("events.out.tfevents*")
    scalars = EventAccumulator(str(events))
    scalars.Reload()
    assert {"loss", "loss_contrastive_relation", "loss_contrastive_global", "loss_adversary", "rsum", "t2v R@1"} <= set(
        scalars.Tags()["scalars"]
    )


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(made: tuple[Path, Path], tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(made, tmp_path / name, f"train.seed={seed}")
    assert same_weights(tmp_path / "a" / "last.pth", tmp_path / "b" / "last.pth")
    assert history(tmp_path / "a") == history(tmp_path / "b") != history(tmp_path / "c")


@pytest.mark.parametrize(
    "more",
    [
        ("train.ema=0.9", "train.accumulate=4"),
        pytest.param(
            ("objective.adversary=alternating", "train.schedule=plateau", "train.patience=1"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(made: tuple[Path, Path], tmp_path: Path, more: tuple[str, ...]) -> None:
    more = ("train.epochs=8", *more)
    train(made, tmp_path / "whole", *more)
    store, manifest = made
    command = [
        sys.executable, "-m", "amex.cli", "train", "amenet", "--store", store, "--manifest", manifest,
        "--work-dir", tmp_path / "killed", *settings(*more),
    ]  # fmt: skip
    run = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "history.jsonl"
    while run.poll() is None and (not log.exists() or log.read_text().count("\n") < 3):
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert log.read_text().count("\n") >= 3
    train(made, tmp_path / "killed", *more, flags=("--resume",))
    assert same_weights(tmp_path / "whole" / "last.pth", tmp_path / "killed" / "last.pth")
    assert same_weights(tmp_path / "whole" / "best.pth", tmp_path / "killed" / "best.pth")
    assert history(tmp_path / "whole") == history(tmp_path / "killed")


def test_resuming_with_other_settings_is_refused_field_by_field(made: tuple[Path, Path], tmp_path: Path) -> None:
    train(made, tmp_path / "w")
    arguments = ("--store", made[0], "--manifest", made[1], "--work-dir", tmp_path / "w")
    other = amex("train", "amenet", *arguments, *settings("train.lr=1e-3", "objective.margin=0.3"), "--resume")
    assert other.exit_code == 1
    assert "train.lr: 0.003 then, 0.001 now" in other.output
    assert "objective.margin: 0.2 then, 0.3 now" in other.output
    again = amex("train", "amenet", *arguments, *settings())
    assert again.exit_code == 1
    assert "--resume" in again.output


def test_two_runs_in_one_folder_at_once_are_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ("--store", made[0], "--manifest", made[1], "--work-dir", tmp_path / "w")
    with lock_run(tmp_path / "w"):
        second = amex("train", "amenet", *arguments, *settings())
    assert second.exit_code == 1
    assert f"another run is active in {tmp_path / 'w'}" in second.output
    train(made, tmp_path / "w")


@pytest.mark.slow
def test_a_run_under_torchrun_equals_one_of_a_single_process(made: tuple[Path, Path], tmp_path: Path) -> None:
    store, manifest = made
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for name, launcher in (("one", ()), ("two", torchrun)):
        command = [
            sys.executable, *launcher, "-m", "amex.cli", "train", "amenet", "--store", store, "--manifest", manifest,
            "--work-dir", tmp_path / name, *settings(*NO_DROPOUT, "train.epochs=2"),
        ]  # fmt: skip
        environment = {**os.environ, **ON_CPU}
        run = subprocess.run([str(w) for w in command], capture_output=True, text=True, env=environment)
        assert run.returncode == 0, run.stderr[-3000:]
    for a, b in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert a["train"]["loss_contrastive_relation"] == pytest.approx(
            b["train"]["loss_contrastive_relation"], rel=0.02
        )
        assert a["val"]["t2v MeanR"] == pytest.approx(b["val"]["t2v MeanR"], abs=0.5)


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        (
            1,
            "2 processes on this machine, 1 GPU: start one process per GPU, or set CUDA_VISIBLE_DEVICES= to use "
            "the CPU",
        ),
        (0, None),
        (2, None),
    ],
)
def test_more_processes_than_gpus_are_refused_before_they_wait_for_each_other(
    gpus: int, words: str | None, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BegunError(AmexError):
        pass

    def begun(backend: str) -> None:
        raise BegunError(f"with {backend}")

    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", begun)
    arguments = ("--store", made[0], "--manifest", made[1], "--work-dir", tmp_path / "w")
    result = amex("train", "amenet", *arguments, *settings())
    assert result.exit_code == 1
    assert result.output == f"Error: {words or ('with nccl' if gpus else 'with gloo')}\n"
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_features_that_do_not_fit_into_memory_give_the_same_numbers(
    made: tuple[Path, Path], trained_thrice: Path, tmp_path: Path, workers: int
) -> None:
    train(made, tmp_path / "b", "data.memory_gb=0", f"data.workers={workers}")
    assert same_weights(trained_thrice / "last.pth", tmp_path / "b" / "last.pth")
    assert history(trained_thrice) == history(tmp_path / "b")


def test_splits_share_the_memory_and_validation_comes_first(made: tuple[Path, Path]) -> None:
    store, clips = open_store(made[0]), read_manifest(made[1])
    config = load_config("amenet", [*TINY, "model.objects=objects", "model.streams=[motion]"])
    text = make_text(store, config, clips, made[1])

    def kept(gigabytes: float) -> tuple[bool, bool]:
        val, train = (
            Split(store, of_split(clips, name, "m"), config.model, config.data, text) for name in ("val", "train")
        )
        keep_in_memory([val, train], gigabytes)
        return val.in_memory, train.in_memory

    val, train = (
        Split(store, of_split(clips, n, "m"), config.model, config.data, text).bytes for n in ("val", "train")
    )
    objects = sum(store["objects"].rows_of(clip.clip_id) for clip in of_split(clips, "val", "m"))
    # A row of motion is 16 halves; one of objects has twice as many, two boxes, scores, a count, a size and two times.
    assert val == 12 * 3 * 16 * 2 + objects * (2 * (16 * 2 + 4 * 4 + 4) + 4 + 2 * 4 + 2 * 8)
    assert kept((val + train) / 1e9) == (True, True)
    assert kept((val + train - 1) / 1e9) == (True, False)
    assert kept((val - 1) / 1e9) == (False, False)


def test_features_of_captions_count_towards_memory_and_are_read_like_clips(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    from test_evaluation import DIM, add_stream

    shutil.copytree(made[0], tmp_path / "s.zarr")
    clips = read_manifest(made[1])
    captions = {caption: len(caption.split()) for clip in clips for caption in clip.captions}
    add_stream(tmp_path / "s.zarr", "text", captions, of="captions")
    here = (tmp_path / "s.zarr", made[1])
    for name, gigabytes in (("a", 1), ("b", 0)):
        train(here, tmp_path / name, "model.text=text", f"data.memory_gb={gigabytes}")
    assert same_weights(tmp_path / "a" / "last.pth", tmp_path / "b" / "last.pth")
    assert history(tmp_path / "a") == history(tmp_path / "b")
    store = open_store(tmp_path / "s.zarr")
    config = load_config("amenet", [*TINY, "model.objects=objects", "model.streams=[motion]", "model.text=text"])
    split = Split(store, clips, config.model, config.data, make_text(store, config, clips, made[1]))
    assert split.texts.bytes == sum(captions.values()) * DIM * 4
    assert split.bytes == split.texts.bytes + sum(table.bytes for table in split.tables.values())


def test_spawned_workers_can_read_a_split(made: tuple[Path, Path]) -> None:
    store, clips = open_store(made[0]), read_manifest(made[1])
    config = load_config("amenet", [*TINY, "model.objects=objects", "model.streams=[motion]"])
    split = Split(store, clips, config.model, config.data, make_text(store, config, clips, made[1]))
    items = [[(0, index) for index in range(first, first + 12)] for first in (0, 30)]
    options = {"batch_sampler": items, "collate_fn": data.collate, "num_workers": 1}
    for batch, some in zip(DataLoader(split, **options, multiprocessing_context="spawn"), items, strict=True):
        here = split.__getitems__(some)
        for name in ("motion", "objects"):
            assert all(torch.equal(x, here["video"][name][key]) for key, x in batch["video"][name].items())
    assert batch["video"]["motion"]["values"].dtype == torch.float16


def test_an_evaluation_is_the_same_in_every_order_of_reading(
    made: tuple[Path, Path], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, clips = open_store(made[0]), read_manifest(made[1])
    checkpoint = load_checkpoint(trained)
    text, model, options = checkpoint.text(store, made[1]), checkpoint.model(), checkpoint.config

    def embeddings(clips: list[Clip], read_ahead: float, memory_gb: float) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(data, "READ_AHEAD", read_ahead)
        split = Split(store, clips, options.model, options.data, text)
        keep_in_memory([split], memory_gb)
        videos, texts = encode(model, split)
        return videos | {f"text {name}": x for name, x in texts.items()}

    first, *others = (embeddings(clips, ahead, gb) for ahead, gb in ((64e6, 1), (64e6, 0), (1, 0)))
    for other in others:
        assert all(torch.equal(x, other[name]) for name, x in first.items())
    back = embeddings(clips[::-1], 64e6, 0)
    assert all(torch.equal(x, back[name].flip(0)) for name, x in first.items() if not name.startswith("text"))


@pytest.mark.parametrize(
    "more",
    [
        ("model.name=global",),
        ("model.relation_branch=false", "objective.adversary=off"),
        ("model.graph=joint", "model.text_sequence=gru", "data.captions=all"),
        ("objective.adversary=alternating", "train.clip_grad=1.0", "train.optimizer=adamw", "train.warmup=4"),
    ],
)
def test_every_kind_of_model_trains_evaluates_and_searches(
    made: tuple[Path, Path], tmp_path: Path, more: tuple[str, ...]
) -> None:
    train(made, tmp_path / "w", *more)
    assert "text to video" in amex("eval", tmp_path / "w").output
    assert "c" in amex("search", tmp_path / "w", "a dog chases a cat", "-k", "2").output


def test_runs_are_evaluated_together_with_a_temperature_of_validation(trained: Path, trained_thrice: Path) -> None:
    result = amex("eval", trained, trained_thrice, "--dsl", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.output)
    assert record["checkpoints"] == [str(run / "best.pth") for run in (trained, trained_thrice)]
    assert record["dsl_chosen_on"] == "val"
    assert record["dsl_temperature"] > 0
    assert record["dsl_rsum"] > 0


def test_evaluation_prints_and_writes_its_figures(trained: Path) -> None:
    result = amex("eval", trained / "best.pth", "--dsl")
    assert result.exit_code == 0, result.output
    assert "amenet on split test, ties by mean" in result.output
    for line in ("text to video", "video to text", "video to text, groups", "text to video, dual softmax"):
        assert line in result.output
    record = json.loads((trained / "eval-test.json").read_text())
    assert record["text_to_video"]["queries"] == 24
    assert record["text_to_video"]["gallery"] == 12
    assert record["rsum"] == pytest.approx(
        sum(record[way][f"R@{k}"] for way in ("text_to_video", "video_to_text") for k in (1, 5, 10))
    )
    assert json.loads(amex("eval", trained, "--split", "val", "--json").stdout)["rsum"] == pytest.approx(
        load_checkpoint(trained).val["rsum"]
    )
    merged = json.loads(amex("eval", trained, "--merge", "--json").stdout)
    captions = {
        c
        for line in Path(load_checkpoint(trained).sources["manifest"]).read_text().splitlines()[60:]
        for c in json.loads(line)["captions"]
    }
    assert merged["text_to_video"]["queries"] == len(captions)


OTHERS = {
    "hgr": ("model.word_dim=8", "model.streams=[motion, objects]"),
    "mcsan": ("model.word_dim=8", "model.streams=[motion]"),
    "hcmi": ("model.text=words", "model.word_dim=8"),
    "dual_encoding": ("model.text=words", "model.word_dim=8", "model.rnn_dim=8", "model.filters=4"),
}


@pytest.mark.parametrize(
    "which", [pytest.param(which, marks=() if which == "mcsan" else pytest.mark.slow) for which in OTHERS]
)
def test_other_models_train_resume_evaluate_search_and_report(
    made: tuple[Path, Path], tmp_path: Path, which: str
) -> None:
    store, manifest = made
    amex("manifest", "parse", manifest)
    graph = ("model.graph_dim=8", "model.graphs=2", "model.key_dim=4") if which != "dual_encoding" else ()
    wanted = ("model.dim=16", "data.batch_size=8", "train.lr=3e-3", "train.schedule=constant", *graph, *OTHERS[which])
    arguments = [word for setting in wanted for word in ("--set", setting)]

    def run(work: Path, epochs: int, *flags: str) -> None:
        places = ("--store", store, "--manifest", manifest, "--work-dir", work)
        result = amex("train", which, *places, *arguments, "--set", f"train.epochs={epochs}", *flags)
        assert result.exit_code == 0, result.output

    run(tmp_path / "w", 6)
    run(tmp_path / "parts", 3)
    run(tmp_path / "parts", 6, "--resume")
    assert same_weights(tmp_path / "w" / "last.pth", tmp_path / "parts" / "last.pth")
    losses = [line["train"]["loss"] for line in history(tmp_path / "w")]
    assert losses[-1] < losses[0]
    evaluated = json.loads(amex("eval", tmp_path / "w", "--json").stdout)
    assert evaluated["model"] == which
    hits = json.loads(
        amex("search", tmp_path / "w", "a dog is near a boat", "-k", "12", "--split", "test", "--json").stdout
    )
    assert len(hits) == 12
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    captions = json.loads(amex("search", tmp_path / "w", "--video", "c70", "-k", "2", "--json").stdout)
    assert len(captions) == 2
    approximate = amex("search", tmp_path / "w", "a dog", "--index", "HNSW16")
    assert (approximate.exit_code == 0) == (which == "dual_encoding"), approximate.output
    assert amex("report", tmp_path / "w").exit_code == 0


def test_missing_role_graphs_are_an_error_with_a_command_and_other_parsers_are_refused(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    store, manifest = made[0], tmp_path / "m.jsonl"
    shutil.copy(made[1], manifest)
    arguments = ("--store", store, "--manifest", manifest, "--work-dir", tmp_path / "w")
    small = ("--set", "model.dim=8", "--set", "train.epochs=1", "--set", "data.batch_size=8")
    without = amex("train", "hgr", *arguments, *small)
    assert without.exit_code == 1
    assert f"make them with amex manifest parse {manifest}" in without.output
    amex("manifest", "parse", manifest)
    assert amex("train", "hgr", *arguments, *small).exit_code == 0
    kept = tmp_path / "m.rolegraphs.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"parser": "spacy:en_core_web_sm 3.8.0, spacy 3.8"}))
    refused = amex("eval", tmp_path / "w")
    assert refused.exit_code == 1
    assert "was trained with graphs of 'rules 1" in refused.output
    kept.write_text("{")
    assert f"{kept} is not JSON" in amex("eval", tmp_path / "w").output


def test_search_results_follow_the_scores(trained: Path, tmp_path: Path) -> None:
    hits = json.loads(amex("search", trained, "a dog chases a horse", "--json", "-k", "5").stdout)
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    assert hits[0]["score"] >= hits[-1]["score"]
    assert all("dog" in hit["caption"] or "horse" in hit["caption"] for hit in hits[:2])
    assert hits[0]["end"] > hits[0]["start"] >= 0
    kept = next((trained / "embeddings").iterdir())
    before = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    approximate = json.loads(
        amex("search", trained, "a dog chases a horse", "--json", "-k", "5", "--index", "HNSW16").stdout
    )
    assert [hit["clip"]["clip_id"] for hit in approximate][:2] == [hit["clip"]["clip_id"] for hit in hits][:2]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())  # nothing was encoded again
    own = hits[0]["clip"]
    backwards = json.loads(amex("search", trained, "--video", own["clip_id"], "--json", "-k", "3").stdout)
    words = set(" ".join(own["captions"]).split())
    assert len(words & set(backwards[0]["caption"].split()) & set(KINDS)) >= 1


def test_captions_without_features_do_not_shift_others_in_a_search(made: tuple[Path, Path], tmp_path: Path) -> None:
    clips = [json.loads(line) for line in made[1].read_text().splitlines()]
    captions = list(dict.fromkeys(caption for clip in clips for caption in clip["captions"]))
    vectors = {word: np.random.default_rng(i).standard_normal(8) for i, word in enumerate(KINDS)}
    tokens = [[vectors[word] for word in caption.split() if word in KINDS] for caption in captions]
    folder = tmp_path / "text"
    folder.mkdir()
    np.save(folder / "values.npy", np.concatenate(tokens).astype(np.float32))
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, tokens)]))
    (folder / "clip_ids.json").write_text(json.dumps(captions))
    spec = {"network": "ours", "source": {}, "output": {"of": "captions", "shape": [8], "dtype": "float32"}}
    (folder / "spec.json").write_text(json.dumps({"stream": "text", "spec": spec}))
    shutil.copytree(made[0], tmp_path / "s.zarr")
    done = amex("features", "import", folder, "--store", tmp_path / "s.zarr")
    assert done.exit_code == 0, done.output
    train((tmp_path / "s.zarr", made[1]), tmp_path / "w", "model.text=text")
    newer = ({**clip, "captions": ["never encoded", *clip["captions"]]} for clip in clips)
    manifest = write_lines(tmp_path / "newer.jsonl", *newer)
    actual = [
        json.loads(amex("search", tmp_path / "w", "--video", "c3", "--json", "--manifest", path).stdout)
        for path in (made[1], manifest)
    ]
    assert [hit["caption"] for hit in actual[0]] == [hit["caption"] for hit in actual[1]]


def test_the_test_split_cannot_select_a_checkpoint(made: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ("--store", made[0], "--manifest", made[1], "--work-dir", tmp_path / "w")
    refused = amex("train", "amenet", *arguments, *settings("data.val=test"))
    assert refused.exit_code == 1
    assert "data.select_on_test=true" in refused.output
    train(made, tmp_path / "w", "data.val=test", "data.select_on_test=true", "train.epochs=1")


def test_an_ablation_compares_variants_over_seeds_and_resumes(made: tuple[Path, Path], tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    config.write_text("model = {'name': 'amenet'}\nvariants = {'full': [], 'no graph': ['model.graph=none']}\n")
    arguments = (
        "--store",
        made[0],
        "--manifest",
        made[1],
        "--work-dir",
        tmp_path / "w",
        "--seeds",
        "0,1",
        *settings("train.epochs=1"),
    )
    first = amex("ablate", config, *arguments, "--json")
    assert first.exit_code == 0, first.output
    results = json.loads(first.stdout)
    runs = [results["no graph"]["runs"][seed]["figures"]["rsum"] for seed in ("0", "1")]
    assert results["no graph"]["mean"]["rsum"] == pytest.approx(np.mean(runs))
    assert results["no graph"]["std"]["rsum"] == pytest.approx(np.std(runs, ddof=1))
    assert results["full"]["runs"]["0"]["parameters"] > results["no graph"]["runs"]["0"]["parameters"]
    started = time.monotonic()
    again = amex("ablate", config, *arguments)
    assert time.monotonic() - started < 5
    assert "±" in again.output
    assert "no graph" in again.output
    assert json.loads((tmp_path / "w" / "ablation-test.json").read_text()).keys() == results.keys()


def test_all_errors_of_a_configuration_are_listed_together(tmp_path: Path) -> None:
    config = tmp_path / "c.py"
    config.write_text("model = {'dims': 5, 'graph': 'both'}\ntrain = {'lr': -1}\nnonsense = {}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(config), ["data.batch_size=one", "train.epoch=3", "what=1"])
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("6 errors")
    for words in ("'dim'", "train.lr", "nonsense", "data.batch_size", "'epochs'", "--set what=1"):
        assert any(words in line for line in lines[1:]), words


def test_every_configuration_that_comes_with_amex_is_valid() -> None:
    from amex.train.config import known_configs

    assert {"amenet_shapes", "amenet_youcook2", "amenet_msrvtt"} <= set(known_configs())
    for name in known_configs():
        load_config(name)
        assert name in amex("configs").output
        assert "model" in amex("configs", name).output
    assert "train.lr" in amex("configs", "amenet").output


def test_an_option_in_the_wrong_section_gets_a_suggestion() -> None:
    for setting, words in (
        ("model.margin=0.1", "model.margin: unknown key; did you mean 'objective.margin'?"),
        ("train.dropout=0.1", "train.dropout: unknown key; did you mean 'model.dropout'?"),
        ("model.ranking=hinge", "losses are in section objective"),
        ("train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config("amenet", [setting])
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("which", "more", "words"),
    [
        ("amenett", (), "did you mean 'amenet'"),
        ("none.py", (), "does not exist"),
        ("amenet", ("model.objects=boxes",), "no such stream"),
        ("amenet", ("model.objects=motion",), "is a stream of clips, not of objects"),
        ("amenet", ("model.streams=[objects]",), "is a stream of objects, not of clips"),
        ("amenet", ("model.text=text_bert",), "no such stream"),
        ("amenet", ("model.text=''",), "has no stream of text"),
        ("amenet", ("data.train=trian",), "no clip of split 'trian'; it has test, train, val"),
        ("amenet", ("data.val=all",), "data.val=all and the test split share 12 clips ('c60', ...)"),
        ("amenet", ("data.train=test",), "the test split shares 12 clips ('c60', ...); to allow"),
        ("amenet", ("data.train=all", "data.select_on_test=true"), "data.val=val shares 12 clips ('c48', ...)"),
        ("amenet", ("model.relation_branch=false", "model.global_branch=false"), "at least one of"),
        ("amenet", ("train.amp=fp16",), "needs a GPU"),
        ("global", ("train.epochs=0",), "greater than or equal to 1"),
    ],
)
def test_invalid_trainings_are_refused_before_the_first_step(
    which: str, more: tuple[str, ...], words: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    if "amp" in str(more) and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments = ("--store", made[0], "--manifest", made[1], "--work-dir", tmp_path / "w")
    result = amex("train", which, *arguments, *settings(*more))
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "w" / "history.jsonl").exists()


def test_a_clip_without_features_is_named_with_the_command_that_makes_them(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    lines = made[1].read_text().splitlines()
    late = {"clip_id": "late", "video": "late.mp4", "split": "train", "captions": ["a dog chases a cat"]}
    manifest = write_lines(tmp_path / "m.jsonl", *lines, late)
    arguments = ("--store", made[0], "--manifest", manifest, "--work-dir", tmp_path / "w")
    result = amex("train", "amenet", *arguments, *settings())
    assert result.exit_code == 1
    assert "'late'" in result.output
    assert f"amex extract --manifest M --videos V --store {made[0]} --stream objects --stream motion" in result.output


def test_a_split_without_captions_is_an_error_and_clips_without_any_stay_in_the_gallery(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    clips = [json.loads(line) for line in made[1].read_text().splitlines()]
    none = write_lines(tmp_path / "none.jsonl", *({**clip, "captions": []} for clip in clips))
    arguments = ("--store", made[0], "--work-dir", tmp_path / "w")
    result = amex("train", "amenet", *arguments, "--manifest", none, *settings())
    assert result.exit_code == 1
    assert "has a caption" in result.output
    subset = write_lines(
        tmp_path / "some.jsonl", *({**c, "captions": c["captions"] if i % 4 else []} for i, c in enumerate(clips))
    )
    result = amex("train", "amenet", *arguments, "--manifest", subset, *settings("train.epochs=1"))
    assert result.exit_code == 0, result.output
    record = json.loads(amex("eval", tmp_path / "w", "--json").stdout)
    assert record["text_to_video"]["gallery"] == 12  # clips without captions are still in the gallery
    assert record["video_to_text"]["queries"] == 9


@pytest.mark.parametrize("memory", [("data.memory_gb=1",), ("data.memory_gb=0", "data.workers=1")])
def test_nan_features_are_named(made: tuple[Path, Path], tmp_path: Path, memory: tuple[str, ...]) -> None:
    values = np.zeros((72, 4), np.float32)
    values[5, 1] = np.nan
    np.save(tmp_path / "bad.npy", values)
    shutil.copytree(made[0], tmp_path / "s.zarr")
    source = ("--captions", made[1], "--allow-nan")
    done = amex("features", "import", tmp_path / "bad.npy", *source, "--store", tmp_path / "s.zarr")
    assert done.exit_code == 0, done.output
    arguments = ("--store", tmp_path / "s.zarr", "--manifest", made[1], "--work-dir", tmp_path / "w")
    result = amex("train", "amenet", *arguments, *settings("model.streams=[bad]", *memory))
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert "NaN or infinity for 'c5'" in line
    assert "Traceback" not in result.output


def test_a_killed_worker_ends_the_run_in_one_line_and_resuming_works(
    made: tuple[Path, Path], trained_thrice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = os.getpid()
    read = Split.__getitems__

    def killed(self: Split, items: Any) -> Any:
        assert os.getpid() != main
        if items[0][0] == 2:  # the third epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, items)

    monkeypatch.setattr(Split, "__getitems__", killed)
    arguments = ("--store", made[0], "--manifest", made[1], "--work-dir", tmp_path / "w")
    result = amex("train", "amenet", *arguments, *settings("data.memory_gb=0", "data.workers=1"))
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith(
        "Error: a process that reads features ended early (DataLoader worker"
    )
    assert "--resume" in result.output
    assert "Traceback" not in result.output
    monkeypatch.undo()
    train(made, tmp_path / "w", "data.memory_gb=1", flags=("--resume",))
    assert same_weights(trained_thrice / "last.pth", tmp_path / "w" / "last.pth")
    assert history(trained_thrice) == history(tmp_path / "w")


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("command", ["eval", "search", "report", "train"])
@pytest.mark.parametrize("what", ["none", "text", "trap", "weights", "half", "later"])
def test_files_that_are_no_checkpoint_are_refused_without_executing_code(
    command: str, what: str, trained: Path, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "w"
    work.mkdir()
    for name in ("best.pth", "last.pth"):
        path = work / name
        match what:
            case "text":
                path.write_text("hello")
            case "trap":
                path.write_bytes(pickle.dumps({"amex": Trap(), "state_dict": {}}))
            case "weights":
                torch.save({"state_dict": {"a": torch.ones(2)}}, path)
            case "half":
                path.write_bytes((trained / "best.pth").read_bytes()[:5000])
            case "later":
                record = read_checkpoint(trained / "best.pth")
                record["amex"]["format"] = 99
                torch.save(record, path)
    if command == "train":
        if what == "none":
            pytest.skip("--resume begins a run where there is none")
        arguments = ("--store", made[0], "--manifest", made[1], "--work-dir", work, "--resume")
        result = amex("train", "amenet", *arguments, *settings())
    else:
        result = amex(command, work, *(["a dog"] if command == "search" else []))
    assert result.exit_code == 1
    assert "checkpoint" in result.output or "later amex" in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not Path("trapped").exists()


def test_features_of_another_fingerprint_are_refused(trained: Path, made: tuple[Path, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    np.savez(tmp_path / "o.npz", motion=rng.standard_normal((72, 3, 16)).astype(np.float16))
    for source, name in ((tmp_path / "o.npz", "motion"),):
        done = amex(
            "features", "import", source, "--captions", made[1], "--store", tmp_path / "s.zarr", "--stream", name
        )
        assert done.exit_code == 0, done.output
    lacking = amex("eval", trained, "--store", tmp_path / "s.zarr")
    assert lacking.exit_code == 1
    assert "'objects', which" in lacking.output
    assert "lacks" in lacking.output
    shutil.copytree(made[0] / "objects", tmp_path / "s.zarr" / "objects")
    other = amex("eval", trained, "--store", tmp_path / "s.zarr")
    assert other.exit_code == 1
    assert "stream 'motion' of fingerprint" in other.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "give either QUERY or --video"),
        (("  ",), 2, "QUERY has no words"),
        (("a dog", "--video", "c1"), 2, "give either QUERY or --video"),
        (("--video", "none.mp4"), 1, "'none.mp4' is not among the 72 clips"),
        (("a dog", "--split", "dev"), 1, "no clip of split 'dev'"),
        (("a dog", "--index", "Flatt"), 1, "--index Flatt"),
        (("a dog", "--index", "IVF4096"), 1, "--index IVF4096"),
        (("a dog", "--videos", "nowhere", "--html", "x.html"), 1, "is not a folder"),
        (("a dog", "--manifest", "none.jsonl"), 1, "there is no manifest none.jsonl"),
    ],
)
def test_invalid_searches_are_refused(
    arguments: tuple[str, ...], code: int, words: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = amex("search", trained, *arguments)
    assert result.exit_code == code, result.output
    assert words in result.output
    assert "Traceback" not in result.output
