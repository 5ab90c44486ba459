"""A CLIP text tower trained with HCMI, and mean-pooled CLIP: from a folder of weights to ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import amex, write_lines
from models import tiny_clip

from amex.extract.encoders.registry import plan_stream
from amex.features import open_store
from amex.train.checkpoint import load_checkpoint
from amex.train.towers import build_tower, load_tower, tower_features, tower_settings, tower_vocabulary

WORDS = ("red", "blue", "green", "large", "small", "round")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def made(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Frames in the space of the CLIP's sentences, with noise around their captions; 30 train, 15 val, 15 test."""
    folder = tmp_path_factory.mktemp("made")
    splits = ["train"] * 30 + ["val"] * 15 + ["test"] * 15
    captions = [f"a {a} {b} circle" for a in WORDS for b in WORDS][: len(WORDS) ** 2]
    lines = [
        {"clip_id": f"c{i}", "video": f"c{i}", "split": split, "captions": [captions[i % len(captions)]]}
        for i, split in enumerate(splits)
    ]
    manifest = write_lines(folder / "m.jsonl", *lines)
    encoded, _ = plan_stream("t", f"text:{clip}", device="cpu", precision="fp32").encoder("cpu")(captions)
    rng = np.random.default_rng(0)
    sentences = [encoded[i % len(captions)]["sentence"] for i in range(len(lines))]
    frames = [s + 0.05 * np.linalg.norm(s) * rng.standard_normal((6, len(s))) for s in sentences]
    np.savez(folder / "frames.npz", clip_vit=np.array(frames, np.float32))
    store = folder / "s.zarr"
    assert amex("features", "import", folder / "frames.npz", "--captions", manifest, "--store", store).exit_code == 0
    return store, manifest


def given(made: tuple[Path, Path], work: Path, *settings: str) -> tuple[Any, ...]:
    words = [word for setting in settings for word in ("--set", setting)]
    return ("--store", made[0], "--manifest", made[1], "--work-dir", work, *words)


def test_a_tower_computes_the_features_of_extraction(clip: Path) -> None:
    captions = ["a red circle", "a large blue circle"]
    tower = build_tower(tower_settings(str(clip))).eval()
    load_tower(tower, str(clip))
    batch = tower_vocabulary(str(clip)).batch(captions, 32)
    with torch.inference_mode():
        actual = tower_features(tower, batch["ids"], batch["mask"])
    encoded, _ = plan_stream("t", f"text:{clip}", device="cpu", precision="fp32").encoder("cpu")(captions)
    for row, expected in enumerate(encoded):
        length = len(expected["values"])
        assert batch["mask"][row].sum() == length
        with torch.inference_mode():  # the store has tokens before CLIP's projection
            projected = tower.text_projection(torch.from_numpy(expected["values"]))
        np.testing.assert_allclose(actual["values"][row, :length], projected, atol=1e-5)
        np.testing.assert_allclose(actual["sentence"][row], expected["sentence"], atol=1e-5)


@pytest.mark.parametrize("share", ["1.0", "0.0"])
def test_hcmi_trains_the_tower_at_its_own_learning_rate(
    share: str, clip: Path, made: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(clip, tmp_path / "clip")
    small = ("model.dim=24", "model.project=false", "data.batch_size=10", "train.epochs=2", "train.lr=1e-3")
    options = given(made, tmp_path / "w", f"model.text=tower:{folder}", f"model.tower_lr={share}", *small)
    result = amex("train", "hcmi", *options)
    assert result.exit_code == 0, result.output
    before = build_tower(tower_settings(str(folder)))
    load_tower(before, str(folder))
    shutil.rmtree(folder)  # a checkpoint contains everything it needs
    after = load_checkpoint(tmp_path / "w").model().reader.tower.state_dict()
    same = all(torch.equal(after[name], value) for name, value in before.state_dict().items())
    assert same == (share == "0.0")
    assert json.loads(amex("eval", tmp_path / "w", "--json").stdout)["rsum"] > 0
    assert "c" in amex("search", tmp_path / "w", "a small red circle", "-k", "3").output


def test_mismatched_widths_without_projection_are_an_error_in_one_line(
    clip: Path, made: tuple[Path, Path], tmp_path: Path
) -> None:
    options = given(made, tmp_path / "w", f"model.text=tower:{clip}", "model.dim=16", "model.project=false")
    refused = amex("train", "hcmi", *options)
    assert refused.exit_code == 1
    assert "model.project=false needs model.dim=16 numbers in all streams" in refused.output
    assert "they have 24" in refused.output


def test_a_missing_clip_model_is_an_error_in_one_line(made: tuple[Path, Path], tmp_path: Path) -> None:
    refused = amex("train", "hcmi", *given(made, tmp_path / "w", f"model.text=tower:{tmp_path / 'none'}"))
    assert refused.exit_code == 1
    assert "transformers cannot load a text model from there" in refused.output
    assert "Traceback" not in refused.output


def test_mean_pooled_clip_ranks_what_extraction_made(
    clip: Path, made: tuple[Path, Path], tmp_path: Path, cluster: str
) -> None:
    store, manifest = shutil.copytree(made[0], tmp_path / "s.zarr"), made[1]
    cpu = ("--device", "cpu", "--precision", "fp32", "--cluster", cluster)
    run = amex("extract", "--manifest", manifest, "--store", store, "--stream", f"text=text:{clip}", *cpu)
    assert run.exit_code == 0, run.output
    options = given((store, manifest), tmp_path / "w", "train.epochs=1", "data.batch_size=10")
    trained = amex("train", "clip_mean", *options)
    assert trained.exit_code == 0, trained.output
    actual = json.loads(amex("eval", tmp_path / "w", "--merge", "--json").stdout)
    opened = open_store(store)
    clips = [json.loads(line) for line in manifest.read_text().splitlines()][45:]
    frames = np.stack([opened["clip_vit"][c["clip_id"]].values.astype(np.float64) for c in clips])
    frames /= np.linalg.norm(frames, axis=-1, keepdims=True)
    sentences = np.stack([opened["text"][c["captions"][0]]["sentence"].astype(np.float64) for c in clips])
    scores = sentences @ frames.mean(1).T / np.linalg.norm(frames.mean(1), axis=-1)
    first = [clips[i]["captions"] == clips[j]["captions"] for i, j in enumerate(scores.argmax(1))]
    assert actual["text_to_video"]["R@1"] == pytest.approx(100 * np.mean(first))
    assert actual["text_to_video"]["R@1"] > 50
