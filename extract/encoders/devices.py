"""On which device, and in which precision, a machine computes. torch is imported only where there may be a GPU."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

from ...errors import AmexError


def choose_device(choice: str) -> str:
    """``cpu``, ``cuda`` (every GPU, workers take turns) or ``cuda:INDEX``, for the same or ``auto``.

    Raises:
        AmexError: where there is no such device.
    """
    if choice == "cpu" or (choice == "auto" and not has_driver()):
        return "cpu"
    kind, _, index = choice.partition(":")
    if choice != "auto" and (kind != "cuda" or (index and not index.isdecimal())):
        raise AmexError(f"unknown device {choice!r}: use auto, cpu, cuda or cuda:INDEX")
    import torch

    if choice == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if int(index or 0) >= torch.cuda.device_count():
        raise AmexError(f"no device {choice}: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return choice


def has_driver() -> bool:
    """Whether a driver for GPUs is installed here, without which torch sees none: NVIDIA's, or AMD's for ROCm."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
        return True
    return Path("/dev/kfd").exists()


def choose_precision(choice: str, device: str) -> str:
    """``fp32``, ``bf16`` or ``fp16``; ``auto`` is bf16 where the device computes in it, else fp32."""
    if choice == "fp16" and device == "cpu":
        raise AmexError("fp16 is for GPUs; on a CPU use --precision fp32, or bf16 where it has it")
    if choice != "auto":
        return choice
    import torch

    if device != "cpu":
        if not torch.cuda.is_available():
            raise AmexError("no GPU here tells what those elsewhere can do: say --precision bf16, fp16 or fp32")
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
