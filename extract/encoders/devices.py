"""Choose the device and precision of this machine. torch is imported only if a GPU driver is installed."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

from ...errors import AmexError


def choose_device(choice: str) -> str:
    """Return ``cpu``, ``cuda`` (all GPUs, divided among the workers) or ``cuda:INDEX``.

    Args:
        choice: one of these, or ``auto``.

    Raises:
        AmexError: if this machine has no such device.
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
    """Return whether a GPU driver is installed (NVIDIA's, or AMD's for ROCm). torch sees no GPU without one."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
        return True
    return Path("/dev/kfd").exists()


def choose_precision(choice: str, device: str) -> str:
    """Return ``fp32``, ``bf16`` or ``fp16``. ``auto`` is bf16 if the device supports it natively, else fp32."""
    if choice == "fp16" and device == "cpu":
        raise AmexError("fp16 needs a GPU; on a CPU use --precision fp32 or bf16")
    if choice != "auto":
        return choice
    import torch

    if device != "cpu":
        if not torch.cuda.is_available():
            raise AmexError(
                "cannot choose a precision, because this machine has no GPU: set --precision to bf16, fp16 or fp32"
            )
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
