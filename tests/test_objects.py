"""Boxes match the objects in the frames at their times, and features are pooled at these boxes."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torchvision
from conftest import amex, extract
from videos import rotate

from amex.errors import AmexError
from amex.extract.encoders.objects import (
    SHAPES_DETECTOR,
    SHAPES_DETECTOR_CONFIG,
    Detector,
    ObjectsPlan,
    last,
    plan_objects,
)
from amex.extract.sheet import read_frames
from amex.extract.video import Feeders
from amex.features import open_store
from amex.manifests import read_manifest
from amex.shapes.renderer import FPS, make_shapes

# MMDetection's packaged configurations: two-stage, cascade, one-stage, and with masks.
CONFIGS = (
    "faster-rcnn_r50_fpn_1x_coco",
    "cascade-rcnn_r50_fpn_1x_coco",
    "rtmdet_tiny_8xb32-300e_coco",
    "mask-rcnn_r50_fpn_1x_coco",
)
LOADER = "test_dataloader = dict(dataset=dict())"
DETECT = ("--stream", "o=shapes_detector", "--weights", "o=default", "--precision", "fp32")


def plan(config: str, weights: str = "random:1", **more: Any) -> ObjectsPlan:
    options = {"score": "0", "boxes": "12", **more.pop("options", {})}
    common = {"weights": weights, "precision": "fp32", "options": options, "batch_size": 2, **more}
    objects_plan = plan_objects("o", config=config, **common)
    # Small frames are faster.
    pipeline = [{**step, "scale": (224, 224)} if step["type"] == "Resize" else step for step in objects_plan.pipeline]
    return dataclasses.replace(objects_plan, pipeline=pipeline)


def picture(seed: int, height: int = 120, width: int = 160) -> torch.Tensor:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(20, 0).repeat(20, 1))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of Shapes."""
    return make_shapes(tmp_path_factory.mktemp("shapes"), clips=10, seed=7).parent


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_stored_features_are_pooled_at_the_stored_boxes(config: str) -> None:
    objects_plan = plan(config)
    detector = objects_plan.encoder("cpu")
    pictures = torch.stack([picture(seed) for seed in (1, 2)])
    frames = [detector.resize(image) for image in pictures.numpy()]
    arrays = {name: array.numpy() for name, array in detector(pictures[:, None]).items()}
    assert arrays["values"].shape == (2, 12, objects_plan.dim)
    assert np.isfinite(arrays["values"]).all()
    for row, frame in enumerate(frames):
        count = arrays["counts"][row]
        assert count == 12
        assert (np.diff(arrays["scores"][row]) <= 0).all()
        assert arrays["frame_size"][row].tolist() == [160, 120]
        boxes = torch.from_numpy(arrays["boxes"][row])
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([160, 120, 160, 120])).all()
        # Computed for each frame alone, by other code, from the stored boxes.
        with torch.inference_mode():
            features, _ = detector.features([frame])
            pooled = expected_features(detector, features, boxes * 1.4)  # frames are resized from 160 to 224 pixels
        values = torch.from_numpy(arrays["values"][row])
        torch.testing.assert_close(values, pooled, rtol=1e-3, atol=1e-3 * pooled.abs().max().item())


def expected_features(detector: Detector, features: tuple[torch.Tensor, ...], boxes: torch.Tensor) -> torch.Tensor:
    """Pool features level by level with torchvision, and apply the layers of the box head, if any."""
    strides = [4, 8, 16, 32] if detector.two_stage else [8, 16, 32]
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    levels = (sizes / 56).log2().floor().clamp(0, len(strides) - 1)
    rows = []
    for box, level in zip(boxes, levels.int().tolist(), strict=True):
        ratio = 0 if detector.two_stage else 2
        scale = 1 / strides[level]
        pooled = torchvision.ops.roi_align(features[level], [box[None]], (7, 7), scale, ratio, aligned=True)
        if not detector.two_stage:
            rows.append(pooled.mean((2, 3)))
            continue
        for layer in last(detector.model.roi_head.bbox_head).shared_fcs:
            pooled = layer(pooled.flatten(1)).relu()
        rows.append(pooled)
    return torch.cat(rows)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["faster-rcnn_r50_fpn_1x_coco", "rtmdet_tiny_8xb32-300e_coco"])
def test_folded_batch_norms_change_nothing_and_bf16_changes_little(config: str) -> None:
    from amex.extract.encoders.objects import build
    from amex.extract.encoders.weights import calibrate, draw, noise

    objects_plan = plan(config)
    plain = draw(lambda: build(objects_plan.model), objects_plan.weights)
    calibrate(plain, lambda: plain.extract_feat(noise(3, 224, 224)))
    for precision, least in (("fp32", 0.99999), ("bf16", 0.99)):
        detector = dataclasses.replace(objects_plan, precision=precision).encoder("cpu")
        frame = detector.resize(picture(3).numpy())
        with torch.inference_mode():
            inputs = plain.data_preprocessor({"inputs": [frame.pixels], "data_samples": [frame.sample]}, False)
            truth = plain.extract_feat(inputs["inputs"])
            ours, _ = detector.features([frame])
        for a, b in zip(ours, truth, strict=True):
            assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > least


def overlap(box: list[float], other: list[float]) -> float:
    """Intersection over union."""
    return float(torchvision.ops.box_iou(torch.tensor([box]).float(), torch.tensor([other]).float()))


def test_boxes_belong_to_the_frames_at_their_times(shapes: Path, tmp_path: Path, cluster: str) -> None:
    store = tmp_path / "s.zarr"
    extract(shapes / "videos", store, cluster, *DETECT, "--set", "o.fps=5", "--manifest", shapes / "manifest.jsonl")
    stream = open_store(store)["o"]
    names = stream.spec["output"]["labels"]
    here, later = [], []
    for clip in read_manifest(shapes / "manifest.jsonl"):
        rows = stream[clip.clip_id]
        assert len(rows) == 12
        for row in range(len(rows)):
            detected = {
                names[label]: box.tolist()
                for label, box in reversed(list(zip(rows["labels"][row], rows["boxes"][row], strict=True)))
                if label >= 0
            }
            frame = round(rows.times[row, 0] * FPS)
            for index, thing in enumerate(clip.extras["objects"]):
                truth = [clip.extras["boxes"][at][index] for at in (frame, min(frame + 10, 59))]
                if None not in truth and thing["label"] in detected and frame + 10 < 60:
                    here.append(overlap(detected[thing["label"]], truth[0]))
                    if overlap(*truth) < 0.2:  # it has moved away
                        later.append(overlap(detected[thing["label"]], truth[1]))
    assert len(here) > 150
    assert len(later) > 10
    assert np.mean(np.array(here) > 0.6) > 0.9
    assert np.mean(later) < 0.2


def test_stored_features_can_be_recomputed_from_the_frame_at_the_stored_time(
    shapes: Path, tmp_path: Path, cluster: str
) -> None:
    store = tmp_path / "s.zarr"
    options = (*DETECT, "--set", "o.count=3", "--manifest", shapes / "manifest.jsonl", "--limit", 1)
    extract(shapes / "videos", store, cluster, *options)
    stream = open_store(store)["o"]
    (clip_id,) = stream
    rows = stream[clip_id]
    detector = plan_objects(
        "o", config="shapes_detector", weights="default", precision="fp32", options={"count": "3"}, batch_size=1
    ).encoder("cpu")
    with closing(Feeders()) as feeders:
        images = read_frames(shapes / "videos" / stream.video(clip_id), rows.times[:, 0].tolist(), feeders)
    for row, image in enumerate(images):
        frame = detector.resize(image)
        boxes = torch.from_numpy(rows["boxes"][row, : rows["counts"][row]])
        assert len(boxes) >= 2
        with torch.inference_mode():
            (pooled,) = detector.pool(detector.features([frame])[0], [frame], [boxes])
        np.testing.assert_allclose(rows.values[row, : len(boxes)], pooled.numpy(), rtol=2e-3, atol=2e-3)


def stand_on_its_side(source: Path, target: Path) -> None:
    """Write the upper three quarters of the frames, rotated by 90 degrees."""
    with av.open(str(source)) as video, av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = 120, 160, "yuv420p"
        for frame in video.decode(video=0):
            upright = frame.to_ndarray(format="rgb24")[:120]  # 160 wide, 120 high
            turned = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(upright)), format="rgb24")
            out.mux(stream.encode(turned))
        out.mux(stream.encode(None))


def test_boxes_are_in_pixels_of_the_source_after_rotation_resize_and_letterbox(
    shapes: Path, tmp_path: Path, cluster: str
) -> None:
    clip = read_manifest(shapes / "manifest.jsonl")[0]
    (tmp_path / "videos").mkdir()
    stand_on_its_side(shapes / "videos" / clip.video, tmp_path / "videos" / "a.mp4")
    rotate(tmp_path / "videos" / "a.mp4", 90)
    config = tmp_path / "letterboxed.py"
    config.write_text(
        f"_base_ = {str(SHAPES_DETECTOR_CONFIG)!r}\n"
        "test_pipeline = [\n"
        "    dict(type='LoadImageFromFile'),\n"
        "    dict(type='Resize', scale=(144, 144), keep_ratio=True),\n"
        "    dict(type='Pad', size=(192, 192), pad_val=dict(img=(114, 114, 114))),\n"
        "    dict(type='PackDetInputs'),\n"
        "]\n"
        "test_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n"
    )
    store = tmp_path / "s.zarr"
    options = ("--stream", f"o=mmdet:{config}", "--weights", f"o={SHAPES_DETECTOR.path}", "--precision", "fp32")
    extract(tmp_path / "videos", store, cluster, *options, "--set", "o.fps=5", "--set", "o.score=0.3")
    stream = open_store(store)["o"]
    rows = stream["a.mp4"]
    assert (rows["frame_size"] == [160, 120]).all()
    right = []
    for row in range(len(rows)):
        truth = clip.extras["boxes"][round(rows.times[row, 0] * FPS)]
        for index, thing in enumerate(clip.extras["objects"]):
            if truth[index] is None or truth[index][3] > 118:  # cut off
                continue
            label = stream.spec["output"]["labels"].index(thing["label"])
            detected = rows["boxes"][row][rows["labels"][row] == label]
            right.append(max((overlap(box.tolist(), truth[index]) for box in detected), default=0.0) > 0.6)
    assert len(right) >= 8
    assert np.mean(right) > 0.8


def test_options_limit_classes_scores_and_number_of_boxes(shapes: Path) -> None:
    from amex.shapes.renderer import LABELS

    clip = read_manifest(shapes / "manifest.jsonl")[0]
    wanted_label = clip.extras["objects"][0]["label"]
    with closing(Feeders()) as feeders:
        image = torch.from_numpy(read_frames(shapes / "videos" / clip.video, [0.0], feeders)[0])

    def detect(**options: str) -> dict[str, np.ndarray]:
        detector = plan_objects(
            "o", config="shapes_detector", weights="default", precision="fp32", options=options, batch_size=1
        ).encoder("cpu")
        return {name: array.numpy() for name, array in detector(image[None, None]).items()}

    everything = detect()
    assert everything["counts"][0] >= 2
    assert everything["values"].shape[1] == 36
    assert (everything["labels"][0, everything["counts"][0] :] == -1).all()
    only = detect(classes=wanted_label)
    assert set(only["labels"][0, : only["counts"][0]]) == {LABELS.index(wanted_label)}
    assert detect(score="0.9")["scores"][0, : detect(score="0.9")["counts"][0]].min() >= 0.9
    single = detect(boxes="1")
    assert single["values"].shape == (1, 1, 128)
    np.testing.assert_array_equal(single["boxes"][0, 0], everything["boxes"][0, 0])
    nothing = detect(score="1.0")
    assert nothing["counts"].tolist() == [0]
    assert not nothing["values"].any()


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ("faster-rcnn_r50_fpn_1x_coc", {}, "did you mean 'faster-rcnn_r50_fpn_1x_coco'"),
        ("nowhere.py", {}, "the MMDetection configuration nowhere.py does not exist"),
        ("shapes_detector", {"boxes": "0"}, "boxes must be at least 1"),
        ("shapes_detector", {"boxes": "many"}, "not a number"),
        ("shapes_detector", {"box": "3"}, "did you mean 'boxes'"),
        ("shapes_detector", {"classes": "red circel"}, "did you mean 'red circle'"),
        ("shapes_detector", {"count": "3", "fps": "2"}, "set fps or count, not both"),
        ("detr_r50_8xb2-150e_coco", {}, "cannot pool features of a DETR"),
        ("faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco", {}, "deform_conv_forward of mmcv's compiled extension"),
        ("htc_r50_fpn_1x_coco", {}, "htc_r50_fpn_1x_coco cannot be used"),
    ],
)
def test_invalid_detectors_and_options_are_refused_by_name(config: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(AmexError, match=words):
        plan_objects("o", config=config, weights="random:0", precision="fp32", options=options, batch_size=1)


def test_files_that_are_not_configurations_are_refused(tmp_path: Path) -> None:
    for name, text, words in (
        ("a", "def", "SyntaxError"),
        ("b", "x = 1", "lacks model"),
        ("c", "model = dict(type='NoSuch')\ntest_pipeline = [dict(type='PackDetInputs')]\n" + LOADER, "NoSuch"),
    ):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        with pytest.raises(AmexError, match=words):
            plan_objects("o", config=str(path), weights="random:0", precision="fp32", options={}, batch_size=1)


def test_every_packaged_coco_configuration_has_a_default_with_a_digest() -> None:
    from amex.extract.encoders.objects import find_config, published

    for config in CONFIGS:
        weights = published(find_config(config))
        assert weights.url.endswith(f"-{weights.sha256}.pth")
        assert len(weights.sha256) == 8
        assert int(weights.sha256, 16)


def test_the_error_for_a_checkpoint_with_code_says_how_to_remove_it(tmp_path: Path) -> None:
    from mmengine.logging import HistoryBuffer

    state = torch.load(SHAPES_DETECTOR.path, weights_only=True)
    hub = {"loss": HistoryBuffer([1.0], [1])}
    path = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": state, "meta": {"epoch": 1}, "message_hub": hub}, path)

    def load(file: Path) -> Detector:
        common = {"precision": "fp32", "options": {}, "batch_size": 1}
        return plan_objects("o", config="shapes_detector", weights=str(file), **common).encoder("cpu")

    with pytest.raises(AmexError, match=r"publish_model\.py makes one"):
        load(path)
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, tmp_path / "weights.pth")
    load(tmp_path / "weights.pth")


@pytest.mark.slow
def test_a_contact_sheet_shows_frames_and_windows(shapes: Path, tmp_path: Path, cluster: str) -> None:
    from PIL import Image

    store = tmp_path / "s.zarr"
    options = (*DETECT, "--set", "o.fps=5", "--stream", "r2plus1d_tiny", "--manifest", shapes / "manifest.jsonl")
    extract(shapes / "videos", store, cluster, *options, "--limit", 1)
    (clip_id,) = open_store(store)["o"]
    output = amex("features", "show", store, clip_id, "--videos", shapes / "videos", "--out", tmp_path / "a.png").output
    assert "a.png: 12 frames" in output
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1000
        assert image.height > 700
        assert len(image.convert("RGB").getcolors(1 << 20)) > 1000
    again = ("features", "show", store, clip_id, "--videos", shapes / "videos", "--out", tmp_path / "b.png")
    assert "3 frames" in amex(*again, "--stream", "r2plus1d_tiny").output
    assert "is not in stream" in amex(*again[:3], "no", *again[4:]).output
    assert "no stream 'x'" in amex(*again, "--stream", "x").output
    other = sorted((shapes / "videos").iterdir())[0].read_bytes()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / clip_id).write_bytes(other[: len(other) // 2])
    assert amex(*again[:4], "--videos", tmp_path / "videos", "--out", tmp_path / "c.png").exit_code == 1
