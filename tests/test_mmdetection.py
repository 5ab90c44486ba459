"""The replacement of mmcv's compiled extension computes the same, and MMDetection's detectors run with it."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from amex.extract.encoders.mmdetection import use_mmdetection

use_mmdetection()

import mmcv.ops  # noqa: E402


def boxes_and_scores(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    size = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corner, corner + size], 1), torch.randperm(count, generator=generator) / max(1, count)


def plain_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int) -> list[int]:
    """NMS as in textbooks: one pair of boxes at a time, in double precision."""
    expected: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        x0, y0, x1, y1 = boxes[index].astype(float)
        for other in expected:
            u0, v0, u1, v1 = boxes[other].astype(float)
            across = max(0.0, min(x1, u1) - max(x0, u0) + offset)
            down = max(0.0, min(y1, v1) - max(y0, v0) + offset)
            areas = (x1 - x0 + offset) * (y1 - y0 + offset) + (u1 - u0 + offset) * (v1 - v0 + offset)
            if across * down / (areas - across * down) > threshold:
                break
        else:
            expected.append(int(index))
    return expected


@settings(max_examples=60)
@given(
    count=st.integers(0, 40),
    seed=st.integers(0, 1000),
    threshold=st.sampled_from([0.1, 0.3, 0.5, 0.7]),
    offset=st.sampled_from([0, 1]),
    score_threshold=st.sampled_from([0.0, 0.3, 2.0]),
    most=st.sampled_from([-1, 0, 3]),
)
def test_nms_equals_the_textbooks_and_torchvisions(
    count: int, seed: int, threshold: float, offset: int, score_threshold: float, most: int
) -> None:
    boxes, scores = boxes_and_scores(count, seed)
    boxes_kept, indices = mmcv.ops.nms(boxes, scores, threshold, offset, score_threshold, most)
    able = [index for index in range(count) if scores[index] > score_threshold or score_threshold == 0]
    expected = [able[i] for i in plain_nms(boxes[able].numpy(), scores[able].numpy(), threshold, offset)]
    assert indices.tolist() == (expected[:most] if most > 0 else expected)
    assert torch.equal(boxes_kept, torch.cat([boxes[indices], scores[indices, None]], 1))
    if offset == 0 and score_threshold == 0 and most <= 0:
        assert torch.equal(indices, torchvision.ops.nms(boxes, scores, threshold))


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_batched_nms_keeps_classes_apart(class_agnostic: bool) -> None:
    boxes, scores = boxes_and_scores(30, 1)
    classes = torch.arange(30) % 3
    config = {"type": "nms", "iou_threshold": 0.5}
    _, indices = mmcv.ops.batched_nms(boxes, scores, classes, config, class_agnostic=class_agnostic)
    if class_agnostic:
        expected = torchvision.ops.nms(boxes, scores, 0.5)
    else:
        expected = torchvision.ops.batched_nms(boxes, scores, classes, 0.5)
    assert indices.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("size", "scale", "ratio", "aligned", "count"),
    list(itertools.product([(7, 7), (5, 5), (14, 3)], [1.0, 0.25, 1 / 32], [0, 2], [True, False], [0, 6])),
)
def test_roi_align_equals_torchvisions_forwards_and_backwards(
    size: tuple[int, int], scale: float, ratio: int, aligned: bool, count: int
) -> None:
    boxes, _ = boxes_and_scores(count, 2)
    rois = torch.cat([(torch.arange(count) % 2).float()[:, None], boxes / scale / 4], 1)
    gradients = []
    for align in (mmcv.ops.roi_align, torchvision.ops.roi_align):
        features = torch.randn(2, 3, 20, 25, generator=torch.Generator().manual_seed(0)).requires_grad_()
        if align is mmcv.ops.roi_align:
            pooled = align(features, rois, size, scale, ratio, "avg", aligned)
        else:
            expected, pooled = pooled, align(features, rois, size, scale, ratio, aligned)
            assert torch.equal(pooled, expected)
        (pooled * torch.arange(pooled.numel()).reshape(pooled.shape)).sum().backward()
        gradients.append(features.grad)
    assert gradients[0].shape == (2, 3, 20, 25)
    assert torch.equal(*gradients)


def test_a_function_that_torchvision_lacks_raises_an_error_when_called() -> None:
    boxes, scores = boxes_and_scores(4, 0)
    with pytest.raises(NotImplementedError, match="softnms of mmcv's compiled extension"):
        mmcv.ops.soft_nms(boxes, scores)
    with pytest.raises(NotImplementedError, match="pool_mode='avg'"):
        mmcv.ops.roi_align(torch.zeros(1, 1, 8, 8), torch.zeros(1, 5), (2, 2), 1.0, 0, "max", True)


def run(code: str, path: Path) -> str:
    env = {"PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_compiled_extension_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "_ext.py").write_text("def __getattr__(name):\n    return lambda *a, **k: 'compiled'\n")
    code = (
        f"import mmcv; mmcv.__path__.append({str(tmp_path)!r})\n"
        "from amex.extract.encoders.mmdetection import use_mmdetection; use_mmdetection()\n"
        "import sys; print(sys.modules['mmcv._ext'].nms())"
    )
    assert "compiled" in run(code, tmp_path)


def test_if_opencv_cannot_be_loaded_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')"
    )
    code = (
        "from amex.errors import AmexError\nfrom amex.extract.encoders.mmdetection import use_mmdetection\n"
        "try: use_mmdetection()\nexcept AmexError as error: print(error)"
    )
    output = run(code, tmp_path)
    assert "libGL.so.1" in output
    assert "apt-get install libgl1" in output
    assert "opencv-python-headless" in output


def test_importing_mmdetection_prints_nothing(tmp_path: Path) -> None:
    code = "from amex.extract.encoders.mmdetection import use_mmdetection; use_mmdetection()"
    assert run(code, tmp_path) == ""


def test_the_replacement_module_can_be_inspected() -> None:
    """mmengine's Runner inspects the module if a model is trained in the process of an extraction."""
    use_mmdetection()
    assert importlib.util.find_spec("mmcv._ext") is not None


def test_a_detector_can_be_built_after_training_changed_the_default_scope() -> None:
    from mmengine.registry import DefaultScope

    from amex.extract.encoders.objects import build
    from amex.shapes.shapes_detector import model

    DefaultScope.get_instance("a-training-run", scope_name="mmengine")
    assert type(build(model)).__name__ == model["type"].split(".")[-1]
