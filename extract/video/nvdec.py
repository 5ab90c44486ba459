"""Decoding with NVDEC, the video decoder of NVIDIA GPUs, through PyAV. Containers, times and rotation as on the CPU.

PyAV's wheels contain FFmpeg's NVDEC decoders, which load the driver's libraries on use. Only codecs whose standard
defines the decoded pixels bit by bit are used. The planes are copied to the CPU and converted to RGB there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from .container import WITHOUT_PTS
from .frames import DecoderFailed, TimedFrame, Unreadable
from .pyav_decoder import forward_pass

# Codecs whose standard defines every bit of a decoded frame. AV1 is missing, because PyAV decodes it only with dav1d.
NVDEC_CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
# Pixel formats that NVDEC decodes and whose conversion to RGB is unambiguous.
NVDEC_FORMATS = frozenset({"yuv420p", "yuvj420p"})
# Libraries of the driver -> what is missing if they cannot be loaded.
LIBRARIES = {
    "libcuda.so.1": "an NVIDIA driver",
    "libnvcuvid.so.1": "the driver's video decoder (in a container: NVIDIA_DRIVER_CAPABILITIES=video)",
}


def nvdec_missing() -> str:
    """Return what this machine lacks to decode on a GPU; empty if it lacks nothing."""
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


def nvdec_rejection(container: Any, stream: Any) -> str:
    """Return from the header why an open video cannot be decoded on a GPU; empty if it can."""
    codec, pixels = stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt
    if codec not in NVDEC_CODECS:
        return f"codec {codec}"
    if container.format.name in WITHOUT_PTS:
        return "no presentation times in the container"
    if pixels not in NVDEC_FORMATS:
        return f"pixels {pixels}"
    return ""


def nvdec_frames(path: str, longest_frame: Fraction, read_log: Callable[[], list[str]]) -> Iterator[TimedFrame]:
    """Yield frames decoded on the first GPU that this process sees.

    Args:
        longest_frame: maximum seconds that a frame may be shown.
        read_log: returns the lines that FFmpeg logged since the last call.

    Raises:
        DecoderFailed: if the GPU fails or the video is damaged.
    """
    from av.codec.hwaccel import HWAccel

    hwaccel = HWAccel("cuda", allow_software_fallback=False)
    try:
        yield from forward_pass(path, 1, longest_frame, read_log, hwaccel)
    except Unreadable as error:  # the CPU decoder finds out whether the GPU or the video is at fault
        raise DecoderFailed(str(error)) from error
