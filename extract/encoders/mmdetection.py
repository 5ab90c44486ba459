"""Use MMDetection without mmcv's compiled extension: torchvision's operators replace it.

mmcv's extension has no wheel and does not build with current torch. MMDetection imports it as ``mmcv._ext``, but most
detectors only use its NMS and RoIAlign, which torchvision also has. torchvision is imported only with the replacement,
because its import takes as long as torch's, and runs without detectors do not need it.
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

from ...errors import AmexError, MissingExtra, needs


def use_mmdetection() -> None:
    """Make ``mmdet`` importable and its registry the default scope, which training may have changed.

    Uses mmcv's compiled extension if it is installed.

    Raises:
        AmexError: if OpenCV, which mmcv imports, cannot be loaded.
    """
    try:
        import cv2  # noqa: F401 - checks that it loads
    except ModuleNotFoundError as error:
        raise MissingExtra("MMDetection is not installed: pip install 'amex[objects]'") from error
    except ImportError as error:
        raise AmexError(
            f"MMDetection needs OpenCV, which cannot be loaded ({error}). Install its libraries: apt-get install "
            "libgl1 libglib2.0-0 (Debian, Ubuntu), dnf install mesa-libGL glib2 (Fedora); or install the build that "
            "needs none: pip install --force-reinstall --no-deps opencv-python-headless"
        ) from error
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)  # called by MMDetection
    with needs("objects", "MMDetection"):  # other packages install OpenCV too
        if importlib.util.find_spec("mmcv._ext") is None:
            sys.modules["mmcv._ext"] = Extension("mmcv._ext")
        # mmdet prints messages and warnings that do not matter to the user.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            from mmdet.utils import register_all_modules

            register_all_modules(init_default_scope=True)


class Extension(types.ModuleType):
    """A replacement of ``mmcv._ext``. Functions that torchvision does not have raise an error when called."""

    def __init__(self, name: str) -> None:
        import torchvision  # noqa: F401 - registers its kernels with torch

        super().__init__(name, __doc__)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)  # mmengine's Runner reads it
        for function in (nms, roi_align_forward, roi_align_backward):
            setattr(self, function.__name__, function)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise NotImplementedError(
                f"this detector calls {name} of mmcv's compiled extension, which is not installed; amex only replaces "
                "nms and roi_align. Choose another detector, or build mmcv with MMCV_WITH_OPS=1"
            )

        return missing


def nms(bboxes: torch.Tensor, scores: torch.Tensor, *, iou_threshold: float, offset: int) -> torch.Tensor:
    """Return the indices of the boxes that NMS keeps, by descending score.

    Args:
        bboxes: (N, 4) xyxy.
        scores: (N,).
        offset: 1 if x2 and y2 are the last pixels inside a box, as in MMDetection 1; else 0.
    """
    if offset:  # if x2 is the last pixel inside, the edge is at x2 + 1
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
    """Write the RoIAlign of ``rois`` to ``output`` (K, channels, aligned_height, aligned_width).

    Args:
        rois: (K, 5): image index and xyxy.

    Raises:
        NotImplementedError: for max pooling in the bins (``pool_mode`` 0), which torchvision does not have.
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
    """Write the gradient with respect to the features of ``roi_align_forward`` to ``grad_input``."""
    bins = (spatial_scale, aligned_height, aligned_width)
    shape = tuple(grad_input.shape)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(grad_output, rois, *bins, *shape, sampling_ratio, aligned)
    )
