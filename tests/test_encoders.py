"""The networks equal the published ones: the same parameters, the same features."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import extract, write_lines
from parity_weights import fill, fill_calibrated

from amex.errors import AmexError
from amex.extract.encoders.devices import choose_device
from amex.extract.encoders.i3d import InceptionI3D
from amex.extract.encoders.networks import NETWORKS, load_network
from amex.extract.encoders.resnext3d import ResNeXt101
from amex.extract.encoders.s3dg import MilNceS3D
from amex.extract.encoders.slowfast import SlowFast
from amex.extract.encoders.weights import load
from amex.extract.encoders.windows import LoadedNetwork, normalise
from amex.extract.video.transform import Transform
from amex.features import open_store

DATA = Path(__file__).parent / "data"


def relative_error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max())


def test_i3d_equals_the_official_network() -> None:
    network = InceptionI3D().eval()
    shapes = json.loads((DATA / "i3d_state_dict_shapes.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == shapes
    network.load_state_dict(fill(network.state_dict()), strict=True)
    generator = np.random.RandomState(0)
    x = torch.from_numpy(generator.rand(2, 3, 16, 224, 224).astype(np.float32) * 2 - 1)
    y = torch.from_numpy(generator.rand(1, 3, 33, 225, 256).astype(np.float32) * 2 - 1)
    with np.load(DATA / "i3d_reference.npz") as reference, torch.inference_mode():
        assert relative_error(network.features(x), reference["features"]) < 1e-4
        assert relative_error(network.classify(x).mean(2), reference["logits"].reshape(2, 400)) < 1e-4
        assert relative_error(network.features(y), reference["features_odd"]) < 1e-4


@pytest.mark.parametrize(
    ("name", "build", "size"),
    [
        ("s3d_milnce", MilNceS3D, (16, 96, 64)),
        ("resnext101_3d", ResNeXt101, (16, 64, 64)),
        ("slowfast_r50", SlowFast, (16, 64, 64)),
    ],
)
def test_networks_of_published_features_equal_the_official_ones(name: str, build: type, size: tuple[int, ...]) -> None:
    # The reference weights depend on the names of the official parameters: another name gives other numbers.
    network = build().eval()
    network.load_state_dict(fill(network.state_dict()), strict=True)
    generator = np.random.RandomState(0)
    x = torch.from_numpy(generator.rand(1, 3, *size).astype(np.float32) * 2 - 1)
    with np.load(DATA / "video_networks_reference.npz") as reference, torch.inference_mode():
        assert relative_error(network(x), reference[f"{name}_logits"]) < 1e-4
        if hasattr(network, "features"):
            assert relative_error(network.features(x), reference[f"{name}_features"]) < 1e-4


def test_the_text_module_of_a_video_network_has_the_shapes_of_its_checkpoint() -> None:
    with torch.device("meta"):
        state = MilNceS3D().text_module.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "word_embd.weight": (66250, 300),
        "fc1.weight": (2048, 300),
        "fc1.bias": (2048,),
        "fc2.weight": (512, 2048),
        "fc2.bias": (512,),
    }


@functools.cache
def plain_arrays(name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return a window for a network, and the published network's features of it."""
    kind = NETWORKS[name]
    plain = kind.headless(load(kind.build, "random:3", kind.example, kind.contrast).eval())
    channels, *frames, height, width = kind.example
    x = torch.randn(1, channels, *(frames or [1]), height, width, generator=torch.Generator().manual_seed(0))
    x *= kind.contrast
    with torch.inference_mode():
        outputs = plain(x[:, :, 0] if kind.of_images else x)
        return x, outputs if isinstance(outputs, dict) else {"values": outputs}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_fast_form_of_a_network_gives_its_features(name: str, precision: str) -> None:
    x, truth = plain_arrays(name)
    arrays = LoadedNetwork(load_network(name, "random:3"), device="cpu", precision=precision)(x)
    labels = NETWORKS[name].classes()
    shapes = {"values": (1, NETWORKS[name].dim), **({"probabilities": (1, len(labels))} if labels else {})}
    assert {array: tuple(values.shape) for array, values in arrays.items()} == shapes
    for array, values in arrays.items():
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
        cosine = torch.nn.functional.cosine_similarity(values, truth[array]).item()
        # With random weights, bfloat16 loses most precision in networks with gates, which multiply activations.
        rounded = 0.9 if name.startswith("s3d_milnce") else 0.99
        assert cosine > (0.99999 if precision == "fp32" else rounded)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_r2plus1d_gives_the_reference_extractors_features_on_real_clips(
    precision: str, tmp_path: Path, real_data: Path, parity: Path, cluster: str
) -> None:
    network = torchvision.models.video.r2plus1d_18()
    checkpoint = tmp_path / "weights.pt"
    torch.save(fill_calibrated(network.state_dict(), str(parity / "r2plus1d_18_batchnorm.npz")), checkpoint)
    with np.load(parity / "r2plus1d_18_reference.npz") as reference:
        manifest = write_lines(tmp_path / "m.jsonl", *({"clip_id": name, "video": name} for name in reference.files))
        options = ("--manifest", manifest, "--precision", precision, "--weights", f"r2plus1d_18={checkpoint}")
        # The reference drops its tail.
        extract(real_data / "videos", tmp_path / "s.zarr", cluster, *options, "--set", "r2plus1d_18.tail=drop")
        stream = open_store(tmp_path / "s.zarr")["r2plus1d_18"]
        for name in reference.files:
            ours, theirs = stream[name].values.astype(np.float32), reference[name]
            assert ours.shape == theirs.shape
            cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
            spread = np.linalg.norm(theirs - theirs.mean(0), axis=1).mean()
            error = np.linalg.norm(ours - theirs, axis=1).max() / spread
            if precision == "fp32":
                assert cosine.min() > 0.9999
                assert error < 0.01
            else:
                assert cosine.min() > 0.998


@pytest.mark.slow
def test_one_pixel_of_crop_would_fail_the_comparison(tmp_path: Path, real_data: Path, parity: Path) -> None:
    import av

    from amex.extract.encoders.presets import PRESETS

    name = "Daft__sample_video"
    torch.save(
        fill_calibrated(torchvision.models.video.r2plus1d_18().state_dict(), str(parity / "r2plus1d_18_batchnorm.npz")),
        tmp_path / "weights.pt",
    )
    encoder = LoadedNetwork(load_network("r2plus1d_18", str(tmp_path / "weights.pt")), device="cpu", precision="fp32")
    with av.open(str(real_data / "videos" / f"{name}.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(16), strict=False)]
    preset_transform = PRESETS["r2plus1d_18"].transform
    wide = Transform(
        resize=preset_transform.resize, crop=(112, 116), mean=preset_transform.mean, std=preset_transform.std
    )  # left edge 28, not 30
    theirs = np.load(parity / "r2plus1d_18_reference.npz")[name]
    spread = np.linalg.norm(theirs - theirs.mean(0), axis=1).mean()
    errors = []
    for left in (1, 2, 3):
        window = torch.from_numpy(np.stack([wide(frame)[:, left : left + 112] for frame in frames]))
        values = encoder(normalise(window[None], wide))["values"]
        errors.append(np.linalg.norm(values[0].numpy() - theirs[0]) / spread)
    assert errors[1] < 0.01
    assert min(errors[0], errors[2]) > 0.02


def test_transforms_equal_those_of_torchvision_and_pillow() -> None:
    from PIL import Image
    from torchvision.transforms import v2

    image = np.random.default_rng(0).integers(0, 256, (90, 161, 3), dtype=np.uint8)
    mean, std = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
    transform = Transform(resize=(64, 85), crop=(56, 56), mean=mean, std=std)
    ours = normalise(torch.from_numpy(transform(image))[None, None], transform)[0, :, 0]
    chain = v2.Compose([v2.Resize((64, 85), antialias=False), v2.CenterCrop(56), v2.Normalize(mean, std)])
    torch.testing.assert_close(ours, chain(torch.from_numpy(image).permute(2, 0, 1).float() / 255), atol=1e-4, rtol=0)
    half = (0.5, 0.5, 0.5)
    ours = Transform(resize=64, antialias=True, crop=(56, 56), mean=half, std=half)(image)
    pillow = Image.fromarray(image).resize((114, 64), Image.Resampling.BILINEAR)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, np.array(pillow)[4:60, 29:85])


def test_the_corner_of_a_crop_is_rounded_like_torchvision_or_transformers() -> None:
    from torchvision.transforms import v2
    from transformers.image_transforms import center_crop

    image = np.random.default_rng(0).integers(0, 256, (47, 61, 3), dtype=np.uint8)
    for crop in ((40, 40), (42, 42), (45, 44), (47, 61)):
        fields = {"resize": None, "crop": crop, "mean": (0.0,) * 3, "std": (1.0,) * 3}
        even, down = (Transform(**fields, corner=corner) for corner in ("even", "down"))
        np.testing.assert_array_equal(
            even(image), v2.CenterCrop(crop)(torch.from_numpy(image).movedim(2, 0)).movedim(0, 2)
        )
        np.testing.assert_array_equal(down(image), center_crop(image, crop, input_data_format="channels_last"))
        assert even.spec == {name: value for name, value in down.spec.items() if name != "corner"}
    with pytest.raises(AmexError, match="unknown corner 'up': use one of even, down"):
        Transform(**fields, corner="up")


def test_missing_devices_are_refused() -> None:
    assert choose_device("cpu") == "cpu"
    for name in ("gpu", "cuda:x", "cpu:1", "mps"):
        with pytest.raises(AmexError, match="use auto, cpu, cuda"):
            choose_device(name)
    with pytest.raises(AmexError, match="torch sees"):
        choose_device("cuda:99")
