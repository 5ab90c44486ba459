"""Features of timm models equal those of timm's own transform and model."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from videos import encode

from amex.errors import AmexError
from amex.extract.encoders.registry import plan_stream
from amex.extract.encoders.weights import WeightsError
from amex.extract.encoders.windows import WindowPlan

timm = pytest.importorskip("timm", reason="pip install 'amex[timm]'")

# Small models of timm's own tests: one with batch-norms, one with a class token.
MODELS = ("test_resnet", "test_vit", "test_convnext")


def plan(model: str, weights: Path | str = "random:0", **options: str) -> WindowPlan:
    common = {"device": "cpu", "precision": "fp32", "weights": str(weights)}
    return plan_stream("x", f"timm:{model}", options=options, **common)


def saved(model: str, path: Path, **more: Any) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(1)
    network = timm.create_model(model, **more).eval()
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.parametrize("model", MODELS)
def test_features_equal_those_of_the_librarys_own_pipeline(model: str, tmp_path: Path) -> None:
    with av.open(str(encode(tmp_path / "v.mp4", frames=1, width=332, height=178))) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    network, path = saved(model, tmp_path / "w.pth")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(network.pretrained_cfg), is_training=False)
    with torch.inference_mode():
        image = transform(Image.fromarray(frame))[None]
        features = network.forward_features(image)
        expected = {
            (None, None): network.forward_head(features, pre_logits=True),
            ("mean", None): features[:, 1:].mean(1) if features.ndim == 3 else features.mean((2, 3)),
            ("mean", 1): network.forward_intermediates(image, indices=[1], intermediates_only=True)[0].mean((2, 3)),
        }
        if model == "test_vit":
            expected["cls", None] = features[:, 0]
            options = {"indices": [-2], "intermediates_only": True, "return_prefix_tokens": True}
            expected["cls", -2] = network.forward_intermediates(image, **options)[0][1][:, 0]
    for (pooling, layer), values in expected.items():
        options = ({"pooling": pooling} if pooling else {}) | ({"layer": str(layer)} if layer is not None else {})
        chosen = plan(model, path, **options)
        window = torch.from_numpy(np.array(chosen.transform(frame)))[None, None]
        ours = chosen.encoder("cpu")(window)["values"]
        assert list(ours.shape[1:]) == chosen.spec["output"]["shape"]
        torch.testing.assert_close(ours, values, atol=1e-4, rtol=1e-4)


def test_pooling_and_layer_are_in_the_spec_and_invalid_ones_are_refused() -> None:
    specs = [plan("test_vit", **more).spec for more in ({}, {"pooling": "cls"}, {"layer": "1"}, {"layer": "-2"})]
    assert len({json.dumps(spec) for spec in specs}) == 4
    assert plan("test_vit", layer="-6").spec == plan("test_vit", layer="0").spec
    for model, options, message in (
        ("test_resnet", {"pooling": "cls"}, "unknown pooling of timm's test_resnet: 'cls'; choose from pooler, mean"),
        ("test_vit", {"pooling": "pooler", "layer": "1"}, "'pooler'.* choose from cls, mean"),
        ("test_vit", {"layer": "6"}, "layer must be 0 to 5 .*, got 6"),
        ("test_vit", {"frames": "8"}, "models of timm take single frames: --set x.frames=1"),
        ("test_vitt", {}, "unknown model of timm: 'test_vitt'; did you mean 'test_vit'"),
        ("test_vit.nobody", {}, r"unknown weights of timm's test_vit: 'test_vit.nobody'; .*test_vit\.r160_in1k"),
    ):
        with pytest.raises(AmexError, match=message):
            plan(model, **options)


@pytest.mark.parametrize("classes", [0, 7])
def test_weights_trained_for_other_classes_are_loaded(classes: int, tmp_path: Path) -> None:
    network, path = saved("test_vit", tmp_path / "w.pth", num_classes=classes)
    loaded = plan("test_vit", path).model.load().model.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded[name], tensor)
    state = network.state_dict()
    state.pop("blocks.0.attn.qkv.weight")  # timm would initialise it at random
    torch.save(state, path)
    with pytest.raises(WeightsError, match="is not a checkpoint of timm's test_vit"):
        plan("test_vit", path).encoder("cpu")


def test_weights_of_another_model_or_with_code_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    _, path = saved("test_resnet", tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="is not a checkpoint of timm's test_vit"):
        plan("test_vit", path).encoder("cpu")
    torch.save({"x": Evil()}, path)
    with pytest.raises(WeightsError, match="is not a checkpoint of timm's test_vit"):
        plan("test_vit", path).encoder("cpu")
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(WeightsError, match="is not a checkpoint of timm's test_vit"):
        plan("test_vit", path).encoder("cpu")
    assert not (tmp_path / "ran").exists()
    _, path = saved("test_vit", path)
    planned = plan("test_vit", path)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(WeightsError, match="differ between this worker and the start of the run"):
        planned.encoder("cpu")


def test_without_a_network_the_error_for_published_weights_says_what_to_do(monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        WeightsError, match=r"cannot download model\.safetensors of timm/test_vit.* --weights STREAM=FILE"
    ):
        plan("test_vit", "default")
    assert plan_stream("x", "timm:test_vit", device="cpu", precision="fp32", random_weights=True).weights == "random:0"
