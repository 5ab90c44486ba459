"""MMDetection without a compiler: what of mmcv's compiled extension torchvision has, registered under its name.

mmcv's extension has no wheel and does not build against current torch. MMDetection needs a module ``mmcv._ext`` to be
there, and of it, for most detectors, only NMS and RoIAlign. torchvision is imported with the extension: that takes as
long as torch itself, and runs without detectors need none of it.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch

from ...errors import AmexError


def use_mmdetection() -> None:
    """Makes ``mmdet`` importable and its names those that are looked up, which training in between may have changed.

    Steps aside where mmcv's compiled extension is there.

    Raises:
        AmexError: where OpenCV, which mmcv imports, cannot load; it says what to install.
    """
    try:
        import cv2  # noqa: F401 - only whether it loads
    except ImportError as error:
        raise AmexError(
            f"MMDetection needs OpenCV, which cannot load here ({error}). It wants libraries that graphical systems "
            "have: apt-get install libgl1 libglib2.0-0 (Debian, Ubuntu), dnf install mesa-libGL glib2 (Fedora); or "
            "take the build without windows: pip install --force-reinstall --no-deps opencv-python-headless"
        ) from error
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)  # called by MMDetection
    if importlib.util.find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = Extension("mmcv._ext")
    # It prints and warns of packages that are none of the user's business.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=True)


class Extension(types.ModuleType):
    """A module that has every function one asks it for; those that torchvision has no kernel of raise when called."""

    def __init__(self, name: str) -> None:
        import torchvision  # noqa: F401 - registers its kernels with torch

        super().__init__(name, __doc__)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)  # mmengine's Runner looks for one
        for function in (nms, roi_align_forward, roi_align_backward):
            setattr(self, function.__name__, function)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*args: Any, **kwargs: Any) -> None:
            raise NotImplementedError(
                f"this detector calls {name} of mmcv's compiled extension, which is not installed; amex stands in for "
                "nms and roi_align alone. Choose another detector, or build mmcv with MMCV_WITH_OPS=1"
            )

        return absent


def nms(bboxes: torch.Tensor, scores: torch.Tensor, *, iou_threshold: float, offset: int) -> torch.Tensor:
    """Indices of the boxes that stay, by falling score.

    Args:
        bboxes: (N, 4) xyxy.
        offset: 1 where x2 and y2 are the last pixels inside, as in MMDetection 1; else 0.
    """
    if offset:  # a last pixel inside at x2 is an edge at x2 + 1
        bboxes = bboxes + bboxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(bboxes, scores, iou_threshold)


def roi_align_forward(
    features: torch.Tensor,
    rois: torch.Tensor,
    output: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills ``output`` (K, channels, aligned_height, aligned_width) from ``rois`` (K, 5): image index and xyxy.

    Raises:
        NotImplementedError: for max pooling inside the bins (``pool_mode`` 0), which torchvision does not have.
    """
    if pool_mode == 0:
        raise NotImplementedError("RoIAlign with pool_mode='max' needs mmcv's compiled extension; use pool_mode='avg'")
    bins = (spatial_scale, aligned_height, aligned_width)
    output.copy_(torch.ops.torchvision.roi_align(features, rois, *bins, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: torch.Tensor,
    rois: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    grad_input: torch.Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills ``grad_input``, the gradient with respect to the features of ``roi_align_forward``."""
    bins = (spatial_scale, aligned_height, aligned_width)
    shape = tuple(grad_input.shape)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(grad_output, rois, *bins, *shape, sampling_ratio, aligned)
    )
