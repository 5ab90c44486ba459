"""Numeric settings of torch: precision, and the kernels of GPUs."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def use_float32() -> None:
    """Disable TF32 on all GPUs of this process.

    torch by default rounds the inputs of convolutions to TF32. Every encoder calls this when it is built, so that the
    numbers of a stream do not depend on the other streams of its process. Lower precisions need it too, because parts
    of their networks stay in float32.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def choose_kernels(*, deterministic: bool) -> None:
    """Use deterministic convolution kernels on GPUs, or else benchmark and use the fastest for each shape."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
