"""Features of transformers models equal those of transformers' own processor and model; unusable models are errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import transformers as t
from conftest import extract
from models import save_model, tiny_bert, video_models, vision_models
from PIL import Image
from videos import encode

from amex.errors import AmexError
from amex.extract.encoders import hub
from amex.extract.encoders.hub import plan_hub
from amex.extract.encoders.registry import plan_stream
from amex.extract.encoders.weights import WeightsError
from amex.extract.encoders.windows import WindowPlan
from amex.extract.video.sampling import Sampling
from amex.extract.video.transform import Transform
from amex.features import open_store

KINDS = {"frames": vision_models(), "video": video_models()}
MODELS = [(kind, family) for kind, families in KINDS.items() for family in families]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the directory of a tiny model of a kind and family."""
    folder = tmp_path_factory.mktemp("hub")

    def directory_of(kind: str, family: str) -> Path:
        if not (folder / family).exists():
            save_model(*KINDS[kind][family], folder / family)
        return folder / family

    return directory_of


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Four decoded frames with odd proportions, so that the corner of a centre crop is rounded."""
    path = encode(tmp_path_factory.mktemp("video") / "v.mp4", frames=4, width=332, height=178)
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def amex_features(plan: WindowPlan, frames: list[np.ndarray]) -> np.ndarray:
    window = np.stack([plan.transform(frame) for frame in frames[: plan.sampling.frames]])
    return plan.encoder("cpu")(torch.from_numpy(window)[None])["values"].numpy()


@torch.inference_mode()
def transformers_output(kind: str, family: str, folder: Path, frames: list[np.ndarray]) -> Any:
    """Return the output of transformers' own processor and model for the frames.

    Uses the form of an image processor that resizes with Pillow, if any: torchvision differs by a grey level.
    """
    model = t.AutoModel.from_pretrained(folder).eval()
    if kind == "video":
        # These processors resize with torchvision, which differs by one grey level. They get frames resized by Pillow.
        size = plan_hub("x", kind=kind, model=str(folder), precision="fp32").transform.size(*frames[0].shape[:2])
        bilinear = Image.Resampling.BILINEAR
        resized = [np.asarray(Image.fromarray(frame).resize(size[::-1], bilinear)) for frame in frames]
        processor = t.AutoVideoProcessor.from_pretrained(folder)
        inputs = processor([resized], return_tensors="pt", do_resize=False)
        return model(**inputs, output_hidden_states=True)
    processor = t.AutoImageProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(frames[0], return_tensors="pt")
    if family in ("siglip", "clip"):
        return model.get_image_features(**inputs, output_hidden_states=True)
    return model(**inputs, output_hidden_states=True)


def vector(output: Any, pooling: str, layer: int | None, special: int) -> torch.Tensor:
    if pooling in ("pooler", "projection"):
        return output.pooler_output.flatten(1)
    tokens = output.last_hidden_state if layer is None else output.hidden_states[layer]
    if tokens.ndim == 4:
        return tokens.flatten(2).mean(2)
    return tokens[:, 0] if pooling == "cls" else tokens[:, special:].mean(1)


# Default pooling; number of class and register tokens.
DEFAULTS = {
    "siglip": ("projection", 0),
    "siglip_vision": ("pooler", 0),
    "clip": ("projection", 1),
    "clip_vision": ("pooler", 1),
    "dinov2": ("cls", 1),
    "dinov3": ("cls", 5),
    "vit": ("cls", 1),
    "convnext": ("pooler", 0),
    "resnet": ("pooler", 0),
    "videomae": ("mean", 0),
    "vivit": ("cls", 1),
    "timesformer": ("cls", 1),
    "vjepa2": ("mean", 0),
}


@pytest.mark.parametrize(("kind", "family"), MODELS)
def test_features_equal_those_of_the_librarys_own_pipeline(
    kind: str, family: str, directory: Any, frames: list[np.ndarray]
) -> None:
    folder = directory(kind, family)
    output = transformers_output(kind, family, folder, frames)
    default, special = DEFAULTS[family]
    for pooling, layer in ((None, None), ("mean", None), ("mean", 1), ("mean", -2)):
        options = {} if pooling is None else {"pooling": pooling}
        options |= {} if layer is None else {"layer": str(layer)}
        plan = plan_hub("x", kind=kind, model=str(folder), precision="fp32", options=options)
        chosen = (plan.spec["pooling"], plan.spec["layer"])
        last = len(output.hidden_states) - 1
        assert chosen == (pooling or default, last if layer is None else layer % (last + 1))
        expected = vector(output, pooling or default, layer, special).numpy()
        actual = amex_features(plan, frames)
        assert actual.shape == (1, *plan.spec["output"]["shape"])
        tolerance = 1e-4 if family != "dinov3" else 0.05  # dinov3 does not round pixels after the resize
        np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max())


def test_frames_are_prepared_as_by_the_models_own_processor(directory: Any) -> None:
    def transform(kind: str, family: str) -> Transform:
        return plan_hub("x", kind=kind, model=str(directory(kind, family)), precision="fp32").transform

    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "antialias": True, "corner": "down"}
    assert transform("frames", "siglip") == Transform(resize=(32, 32), interpolation="bicubic", crop=None, **half)
    # ConvNeXt crops the centre of small frames and squeezes large ones.
    assert transform("frames", "convnext") == Transform(resize=36, interpolation="bicubic", crop=(32, 32), **half)
    assert transform("frames", "resnet") == Transform(resize=(384, 384), interpolation="bicubic", crop=None, **half)
    # ViViT scales pixels to [-1, 1] before it normalises them.
    vivit = transform("video", "vivit")
    assert (vivit.mean, vivit.std) == ((0.75,) * 3, (0.25,) * 3)


def test_windows_of_video_models_are_those_of_their_training(directory: Any) -> None:
    def sampling(family: str, **options: str) -> Sampling:
        folder = str(directory("video", family))
        return plan_hub("x", kind="video", model=folder, precision="fp32", options=options).sampling

    assert hub.sampling_of("videomae", 16) == Sampling(frames=16, step=4, stride=64)
    assert hub.sampling_of("timesformer", 8) == Sampling(frames=8, step=32, stride=256)
    assert sampling("vjepa2") == Sampling(fps=4, frames=4, stride=4, at="shown")
    assert sampling("vjepa2", frames="8", fps="2") == Sampling(fps=2, frames=8, stride=4, at="shown")
    with pytest.raises(AmexError, match="stream x: videomae cannot take windows of 6 frames of 32x32"):
        sampling("videomae", frames="6")


def test_pooling_and_layer_are_in_the_spec_and_invalid_ones_are_refused(directory: Any) -> None:
    vit = str(directory("frames", "vit"))

    def plan(model: str = vit, **options: str) -> WindowPlan:
        return plan_hub("x", kind="frames", model=model, precision="fp32", options=options)

    assert plan(pooling="cls").spec == plan().spec == plan(layer="-1").spec
    specs = [json.dumps(plan(**options).spec) for options in ({}, {"pooling": "mean"}, {"layer": "1"})]
    assert len(set(specs)) == 3
    siglip = str(directory("frames", "siglip"))
    for options, model, message in (
        ({"pooling": "max"}, vit, "unknown pooling of layer 3 of vit: 'max'; choose from pooler, cls, mean"),
        ({"pooling": "pooler", "layer": "1"}, vit, "unknown pooling of layer 1 of vit: 'pooler'; .*cls, mean"),
        ({"pooling": "cls"}, siglip, "'cls'.* choose from projection, mean"),
        ({"layer": "4"}, vit, "layer must be 0 to 3 .*, got 4"),
        ({"layer": "-5"}, vit, "layer must be"),
        ({"layer": "x"}, vit, "layer='x' is not a number"),
        ({"frames": "2"}, vit, "vit takes single frames: --set x.frames=1"),
        ({"pool": "cls"}, vit, "unknown option of stream x: 'pool'; did you mean 'pooling'"),
    ):
        with pytest.raises(AmexError, match=message) as caught:
            plan(model, **options)
        assert "stream x" in str(caught.value)


def test_each_kind_of_unusable_model_has_its_own_error(directory: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def refused(message: str, model: Path | str, kind: str = "frames") -> None:
        with pytest.raises(AmexError, match=message) as caught:
            plan_hub("x", kind=kind, model=str(model), precision="fp32")
        assert str(caught.value).startswith("stream x: ")
        assert "\n" not in str(caught.value)

    vit, videomae = directory("frames", "vit"), directory("video", "videomae")
    refused("takes windows of frames; use video:", videomae)
    refused("takes single frames; use frames:", vit, "video")
    refused("is a bert, which does not take images; for captions, use text:", tiny_bert(tmp_path / "bert"))
    refused("has no config.json", tmp_path)
    impossible = tmp_path / "impossible"
    shutil.copytree(vit, impossible)
    (impossible / "config.json").write_text('{"model_type": "vit", "patch_size": 0}')
    refused("transformers cannot build the vit of .*: .*division", impossible)
    elsewhere = tmp_path / "elsewhere"  # transformers does not have the class of its code
    shutil.copytree(vit, elsewhere)
    config = json.loads((elsewhere / "config.json").read_text()) | {"architectures": ["MyVisionModelWithProjection"]}
    (elsewhere / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    refused("is a bert, which does not take images", elsewhere)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("cannot download the model 'google/vit-base-patch16-224' from the hub", "google/vit-base-patch16-224")
    refused("neither a directory nor a valid name on the model hub", "no/such/folder")

    broken = tmp_path / "broken"
    shutil.copytree(vit, broken)
    (broken / "preprocessor_config.json").unlink()
    refused("has no preprocessor_config.json, which describes how to prepare frames", broken)
    (broken / "model.safetensors").unlink()
    refused("has no weights", broken)
    (broken / "config.json").write_text("{")
    (broken / "model.safetensors").write_bytes(b"")
    refused("is not a model of transformers", broken)
    (broken / "config.json").write_text('{"model_type": "vit", "auto_map": {"AutoConfig": "evil.Config"}}')
    (broken / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(AmexError):
        plan_hub("x", kind="frames", model=str(broken), precision="fp32")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"shortest_edge": 32, "longest_edge": 48}}, "resizes to .*; amex only supports a height and width"),
        ({"size": {"max_height": 32, "max_width": 32}}, "resizes to .*; amex only supports a height and width"),
        ({"resample": 4}, "resamples with .*, which amex does not support"),
        ({"do_pad": True, "pad_size": {"height": 600, "width": 600}}, "does more than resize, centre crop"),
        ({"size": {"height": 30, "width": 32}}, "vit cannot take windows of 1 frame of 32x30"),
    ],
)
def test_a_processor_that_no_transform_can_replace_is_refused(
    changes: dict[str, Any], message: str, directory: Any, tmp_path: Path
) -> None:
    shutil.copytree(directory("frames", "vit"), tmp_path / "m")
    path = tmp_path / "m" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(AmexError, match=message):
        plan_hub("x", kind="frames", model=str(tmp_path / "m"), precision="fp32")


def test_incomplete_or_changed_weights_are_refused(directory: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    shutil.copytree(directory("frames", "vit"), folder)
    plan = plan_hub("x", kind="frames", model=str(folder), precision="fp32")
    state = load_file(folder / "model.safetensors")
    save_file({key: value + 1 for key, value in state.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="differ between this worker and the start of the run"):
        plan.encoder("cpu")
    without = {key: value for key, value in state.items() if "pooler" not in key}
    save_file(without, folder / "model.safetensors", {"format": "pt"})

    def load(**options: str) -> None:
        plan_hub("x", kind="frames", model=str(folder), precision="fp32", options=options).encoder("cpu")

    load()  # pooling cls does not need the pooler
    with pytest.raises(WeightsError, match=r"lacks pooler\.dense\.bias"):  # it would be drawn at random
        load(pooling="pooler")
    save_file(dict(list(without.items())[1:]), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="lacks"):
        load()


def test_a_run_extracts_several_kinds_of_streams_in_one_pass(
    directory: Any, clips: Path, tmp_path: Path, cluster: str
) -> None:
    frames, video = directory("frames", "dinov2"), directory("video", "videomae")
    options = ("--stream", f"dino=frames:{frames}", "--set", "dino.fps=2", "--weights", "own=default")
    options += (
        "--stream",
        f"mae=video:{video}",
        "--set",
        "mae.fps=native",
        "--set",
        "mae.step=2",
        "--set",
        "mae.stride=8",
    )
    options += ("--stream", "own=python:stand_in:brightness", "--precision", "fp32", "--limit", "1")
    extract(clips, tmp_path / "s.zarr", cluster, *options)
    store = open_store(tmp_path / "s.zarr")
    assert {name: store[name].spec["network"] for name in store} == {
        "dino": "frames:dinov2",
        "mae": "video:videomae",
        "own": "python:stand_in:brightness",
    }
    with av.open(str(clips / "a.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    plan = plan_hub("x", kind="video", model=str(video), precision="fp32")
    expected = np.concatenate([amex_features(plan, decoded[begin : begin + 8 : 2]) for begin in (0, 8, 16, 24, 32)])
    np.testing.assert_allclose(store["mae"]["a.mp4"].values, expected, atol=2e-3)
    # Two frames per second of 1.33 s; windows of two frames, one every eight frames.
    assert store["dino"]["a.mp4"].values.shape == (3, 32)
    assert store["own"]["a.mp4"].values.shape == (5, 3)
    assert store["mae"].provenance["weights"].endswith("/videomae")
    result = extract(clips, tmp_path / "s.zarr", cluster, *options)
    assert result["report"]["clips"] == 0
    changed = ("--set", "mae.pooling=mean", "--set", "mae.layer=1")
    refused = extract(clips, tmp_path / "s.zarr", cluster, *options, *changed, code=1)
    assert "layer" in refused["output"]


def test_estimates_need_no_model(tmp_path: Path) -> None:
    common = {"device": "cpu", "precision": "fp32", "random_weights": True}
    plan = plan_stream("x", "frames:nobody/nothing", **common)
    assert (plan.weights, plan.spec["network"], plan.sampling.frames) == ("random:0", "frames:vit", 1)
    plan = plan_stream("x", "video:nobody/nothing", **common)
    assert (plan.spec["network"], plan.sampling.frames) == ("video:videomae", 16)
