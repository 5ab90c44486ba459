"""Frames from the video decoder of an NVIDIA GPU, through PyAV: same containers, times and rotation as on the CPU.

PyAV's wheels carry FFmpeg's NVDEC decoders; the driver's libraries are loaded when one is used. Only codecs whose
decoded pixels are defined to the bit are asked of it. Frames come down as planes and are converted as the CPU's are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from .container import WITHOUT_PTS
from .frames import DecoderFailed, Shown, Unreadable
from .pyav_decoder import forward_pass

# Codecs whose standard defines every bit of a decoded frame. PyAV decodes AV1 with dav1d, which no GPU stands in for.
NVDEC_CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
# The layouts of pixels that NVDEC decodes and that have one way to RGB.
NVDEC_FORMATS = frozenset({"yuv420p", "yuvj420p"})
# Parts of the driver, and what a machine lacks where they are absent.
LIBRARIES = {
    "libcuda.so.1": "an NVIDIA driver",
    "libnvcuvid.so.1": "the driver's video decoder (in a container: NVIDIA_DRIVER_CAPABILITIES=video)",
}


def nvdec_missing() -> str:
    """What this machine lacks to decode on a GPU, in words; empty if it lacks nothing."""
    try:
        from av.codec.hwaccel import hwdevices_available
    except ImportError:
        return "a PyAV that decodes on GPUs (pip install -U av)"
    if "cuda" not in hwdevices_available():
        return "a PyAV that was built with CUDA (the wheels of PyPI are)"
    for library, what in LIBRARIES.items():
        try:
            loaded = ctypes.CDLL(library)
        except OSError:
            return f"{library}, {what}"
        count = ctypes.c_int(0)
        if library == "libcuda.so.1" and (
            loaded.cuInit(0) or loaded.cuDeviceGetCount(ctypes.byref(count)) or not count.value
        ):
            return "a GPU that CUDA can use"
    return ""


def nvdec_objection(container: Any, stream: Any) -> str:
    """Why an open video cannot be decoded on a GPU, as far as its header tells; empty if it can."""
    codec, pixels = stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt
    if codec not in NVDEC_CODECS:
        return f"codec {codec}"
    if container.format.name in WITHOUT_PTS:
        return "no presentation times in the container"
    if pixels not in NVDEC_FORMATS:
        return f"pixels {pixels}"
    return ""


def nvdec_frames(path: str, longest: Fraction, complaints: Callable[[], list[str]]) -> Iterator[Shown]:
    """Frames decoded on the first GPU that this process sees; raises DecoderFailed where it cannot, and at damage.

    Args:
        longest: for so many seconds at most a frame may be shown.
    """
    from av.codec.hwaccel import HWAccel

    hwaccel = HWAccel("cuda", allow_software_fallback=False)
    try:
        yield from forward_pass(path, 1, longest, complaints, hwaccel)
    except Unreadable as error:  # of the GPU or of the video: the CPU tells
        raise DecoderFailed(str(error)) from error
