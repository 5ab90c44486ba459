"""How torch computes: precisions, and the kernels of GPUs."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def use_float32() -> None:
    """Makes float32 mean float32 on every GPU of this process.

    Each encoder calls this when it is built: what a stream computes must not depend on which streams share its process.
    torch would round the inputs of convolutions to TF32. At every precision parts of a network stay in float32, so
    there is no precision that wants TF32.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def choose_kernels(*, deterministic: bool) -> None:
    """How GPUs choose the kernels of convolutions: by their repeatability, or the fastest for each shape, by trial."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
