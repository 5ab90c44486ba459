"""Training on typical first stores: missing streams are skipped with a message, and errors name the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import amex, write_lines
from models import tiny_clip
from tiny import FRAMES, drawn_store, lines

from amex.errors import AmexError
from amex.extract.encoders import plan_stream
from amex.features import open_store
from amex.train.checkpoint import load_checkpoint
from amex.train.config import load_config
from amex.train.options import ModelOptions
from amex.train.streams import choose_streams

OBJECTS = {
    "network": "mmdet:x",
    "output": {
        "shape": [2, 8],
        "dtype": "float32",
        "arrays": {
            "boxes": {"shape": [2, 4], "dtype": "float32"},
            "scores": {"shape": [2], "dtype": "float32"},
            "labels": {"shape": [2], "dtype": "int32"},
            "counts": {"shape": [], "dtype": "int32"},
            "frame_size": {"shape": [2], "dtype": "int32"},
        },
    },
}
SMALL = ("model.dim=8", "model.graph_dim=4", "model.graphs=2", "model.key_dim=4", "train.epochs=2")


def text(weights: str) -> dict[str, Any]:
    sentence = {"sentence": {"shape": [8], "dtype": "float32"}}
    output = {"of": "captions", "shape": [6], "dtype": "float32", "clip_arrays": sentence}
    return {"network": "text:x", "weights_sha256": weights, "output": output}


def chosen(store: Path, which: str, *settings: str) -> tuple[ModelOptions, list[str]]:
    """The resulting options of a training, and its messages about them."""
    said: list[str] = []
    return choose_streams(load_config(which, settings).model, open_store(store), said.append), said


def train(store: Path, *settings: str, which: str = "amenet", code: int = 0) -> str:
    arguments = ("--store", store, "--manifest", store.parent / "m.jsonl", "--work-dir", store.parent / "w")
    result = amex("train", which, *arguments, *(word for setting in (*SMALL, *settings) for word in ("--set", setting)))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_without_objects_the_global_branch_is_trained_alone(tmp_path: Path) -> None:
    store = drawn_store(tmp_path, {"frames": FRAMES, "text_bert": text("other")})
    assert f"no stream of objects in {store}: the relation branch is disabled\n" in train(store)
    model = load_checkpoint(tmp_path / "w").config.model
    assert (model.relation_branch, model.streams, model.text) == (False, ["frames"], "text_bert")


def test_without_clips_the_relation_branch_is_trained_alone_and_without_text_words_are_learned(tmp_path: Path) -> None:
    store = drawn_store(tmp_path, {"boxes": OBJECTS})
    output = train(store)
    assert f"no stream of clips in {store}: the global branch is disabled\n" in output
    assert f"no stream of text in {store}: words are learned from the training captions\n" in output
    model = load_checkpoint(tmp_path / "w").config.model
    assert (model.global_branch, model.objects, model.text) == (False, "boxes", "words")
    assert chosen(store, "hcmi")[0].streams == ["boxes"]


def test_the_text_stream_of_the_frames_model_is_chosen(tmp_path: Path) -> None:
    store = drawn_store(tmp_path / "a", {"clip": FRAMES, "text_bert": text("other"), "text_clip": text("one")})
    options, said = chosen(store, "global")
    assert options.text == "text_clip"
    assert said == [
        "text stream text_clip, by the model of clip, is read, not text_bert; to choose: --set model.text=NAME"
    ]
    assert chosen(store, "global", "model.text=text_bert")[0].text == "text_bert"
    other = drawn_store(tmp_path / "b", {"frames": FRAMES, "text_bert": text("a"), "text_clip": text("b")})
    with pytest.raises(AmexError, match=r"several streams of text: choose one with --set model\.text=NAME"):
        chosen(other, "global")


def test_the_two_towers_of_a_clip_are_known_to_be_of_one_model(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "clip")
    frames, captions = (
        plan_stream("x", f"{kind}:{folder}", device="cpu", precision="fp32") for kind in ("clip", "text")
    )
    assert frames.spec["weights_sha256"] == captions.spec["weights_sha256"]


@pytest.mark.parametrize(
    ("which", "settings", "words"),
    [
        ("amenet", ("model.relation_branch=true",), "has no stream of objects: make one with amex extract"),
        ("amenet", ("model.objects=boxes",), "no such stream"),
        ("amenet", ("model.streams=[frame]",), "it has frames; did you mean 'frames'?"),
        ("amenet", ("model.text=text_bert",), "no such stream"),
        ("amenet", ("model.text_bag=true",), "has no stream of text"),
        ("clip_mean", (), "--stream text_clip"),
    ],
)
def test_missing_streams_that_the_user_or_the_model_requires_are_an_error(
    which: str, settings: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(AmexError) as caught:
        chosen(drawn_store(tmp_path, {"frames": FRAMES}), which, *settings)
    assert words in str(caught.value)


def test_a_batch_size_above_the_number_of_clips_uses_all_clips(tmp_path: Path) -> None:
    assert "9 clips with captions are too few to train on" in train(drawn_store(tmp_path, {"frames": FRAMES}))


def test_on_one_validation_clip_the_last_checkpoint_is_kept(tmp_path: Path) -> None:
    clips = [{**line, "split": "train" if i else "val"} for i, line in enumerate(lines())]
    output = train(drawn_store(tmp_path, {"frames": FRAMES}, clips), "train.epochs=3")
    assert (
        "a gallery of 1 clip, which every model ranks first, cannot choose a checkpoint: the last one is kept" in output
    )
    assert "amex manifest split MANIFEST --val .1" in output
    assert "on split val, of 1 clip, which is too few to judge the model: " in output
    assert "which chose it" not in output
    assert load_checkpoint(tmp_path / "w").epoch == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": ""}, "no clip of split 'train'; it has clips of no split: draw splits with amex manifest split"),
        ({"split": "train"}, "no clip of split 'val'; it has train: draw splits with amex manifest split"),
        ({"captions": []}, "no clip of split 'train' has a caption, so there is nothing to train on. Put captions"),
    ],
)
def test_a_manifest_that_cannot_be_trained_on_names_the_command_that_helps(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    clips = [line | change for line in lines()]
    assert words in train(drawn_store(tmp_path, {"frames": FRAMES}, clips), code=1)


@pytest.mark.slow
def test_ten_real_clips_with_captions_train_with_default_settings(real_data: Path, tmp_path: Path) -> None:
    captions: dict[str, list[str]] = {}
    with (real_data / "video_captions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["file"].startswith("videos/"):
                captions.setdefault(Path(row["file"]).name, []).append(row["caption"])
    splits = ["val", "test", *["train"] * 8]
    clips = [
        {"clip_id": name, "video": name, "split": split, "captions": captions[name]}
        for name, split in zip(sorted(captions)[:10], splits, strict=True)
    ]
    manifest, store = write_lines(tmp_path / "m.jsonl", *clips), tmp_path / "s.zarr"
    streams = ("--stream", "efficientnet_lite2", "--stream", "text_bert", "--text-encoder", "minilm")
    done = amex("extract", "--manifest", manifest, "--videos", real_data / "videos", "--store", store, *streams)
    assert done.exit_code == 0, done.output
    run = ("--store", store, "--manifest", manifest, "--work-dir", tmp_path / "w")
    trained = amex("train", "amenet", *run, "--json")
    assert trained.exit_code == 0, trained.output
    evaluated = json.loads(amex("eval", tmp_path / "w", "--split", "train", "--json").stdout)
    assert evaluated["text_to_video"]["R@1"] > 80  # overfitted to them


def test_a_missing_store_is_named_by_training(tmp_path: Path) -> None:
    refused = amex("train", "amenet", "--store", tmp_path / "none.zarr")
    assert "none.zarr; make one with: amex extract" in refused.output
    assert "--manifest" not in refused.output
