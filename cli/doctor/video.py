"""Checks of the decoders: they decode files of each codec, which are encoded here, and all frames are compared."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from ...errors import first_line
from ...storage import temporary_folder
from .findings import Finding, Subject, tried

# Codecs, with the encoder and the container of their test files.
CODECS = {
    "H.264": ("libx264", "mp4"),
    "HEVC": ("libx265", "mp4"),
    "VP9": ("libvpx-vp9", "webm"),
    "AV1": ("libsvtav1", "mkv"),
    "MPEG-4": ("mpeg4", "avi"),
}
FRAMES, WIDTH, HEIGHT = 8, 128, 96
# Tolerance of a frame's mean grey, of 255: codecs are lossy.
NEAR = 8.0


def video(subject: Subject) -> Iterator[Finding]:
    """Check PyAV and, with a GPU, its decoder."""
    remedy = "pip install --force-reinstall --only-binary av av"
    loads = tried("decoding by PyAV", lambda: import_module("av").__name__, remedy=remedy, essential=True)
    if loads.state != "ok":
        yield loads
        return
    from ...extract.video.nvdec import nvdec_missing

    with _files() as (files, unmade):
        yield _finding("decoding by PyAV", "pyav", files, unmade, remedy=remedy, essential=True)
        if lacking := nvdec_missing():
            remedy = "nothing, unless videos are to be decoded on a GPU (--decoder nvdec): install what is missing"
            yield Finding(what="decoding on the GPU", state="missing", found=f"there is no {lacking}", remedy=remedy)
        else:
            yield _finding("decoding on the GPU", "nvdec", files, unmade, remedy="decode without --decoder nvdec")


def decord(subject: Subject) -> Iterator[Finding]:
    """Check decord, the first choice for most videos."""
    remedy = "pip install --force-reinstall decord2; until then, amex extract --decoder pyav"
    loads = tried("decoding by decord", lambda: import_module("decord").__name__, remedy=remedy)
    if loads.state != "ok":
        yield loads
        return
    with _files() as (files, unmade):
        yield _finding("decoding by decord", "decord", files, unmade, remedy=remedy)


def _finding(
    what: str, decoder: str, files: dict[str, Path], unmade: dict[str, str], *, remedy: str, essential: bool = False
) -> Finding:
    """Decode the files with one decoder; return the finding."""
    package = {"pyav": "av", "nvdec": "av", "decord": "decord2"}[decoder]
    good, others, wrong = [], [], []
    for codec, path in files.items():
        try:
            others_take = _decode(decoder, path)
        except Exception as error:  # whatever a decoder may raise
            wrong.append(f"{codec}: {first_line(error)}")
        else:
            (others if others_take else good).append(codec)
    details = f"{package} {version(package)}: {', '.join(good) or 'nothing'}"
    details += f"; {', '.join(others)} {'goes' if len(others) == 1 else 'go'} to PyAV" if others else ""
    details += f"; not tried: {', '.join(unmade)}, which cannot be made here" if unmade else ""
    if not files:
        details, remedy = "no file to try it on, since PyAV can make none", "see the remedy for PyAV"
    if wrong or not good:
        details = f"{'; '.join(wrong)} ({details})" if wrong else details
        return Finding(what=what, state="broken", found=details, remedy=remedy, essential=essential)
    return Finding(what=what, state="ok", found=details, essential=essential)


def _decode(decoder: str, path: Path) -> bool:
    """Decode a file as ``amex extract --decoder`` does; return whether another decoder is used for it.

    Raises:
        ValueError: if frames are missing or wrong. Also any error of the decoder.
    """
    from ...extract.video import Sampling, SamplingRequest
    from ...extract.video.decoders import DecodingRequest, choose_decoder

    request = DecodingRequest(
        path=str(path),
        requests=[SamplingRequest(None, None, Sampling(fps=None, frames=1, stride=1))],
        longest_frame=Fraction(600),
        decoder=decoder,
        threads=1,
    )
    choice = choose_decoder(request, {}, lambda: [], lambda reached: None)
    if choice.decoder.split()[0] != decoder:
        return True
    means = [shown.image().mean() for shown in choice.frames() if shown.image is not None]
    if len(means) != FRAMES:
        raise ValueError(f"{len(means)} of {FRAMES} frames")
    if any(abs(mean - _grey(number)) > NEAR for number, mean in enumerate(means)):
        raise ValueError("the decoded frames differ from the encoded ones")
    return False


@contextlib.contextmanager
def _files() -> Iterator[tuple[dict[str, Path], dict[str, str]]]:
    """Yield a file of each codec, and the errors of codecs that cannot be encoded here."""
    files, unmade = {}, {}
    with temporary_folder() as folder:
        for codec, (encoder, container) in CODECS.items():
            path = folder / f"{encoder}.{container}"
            try:
                _encode(path, encoder)
            except Exception as error:  # an encoder that is not there, or does not work
                unmade[codec] = first_line(error)
            else:
                files[codec] = path
        yield files, unmade


def _grey(number: int) -> int:
    """Return the grey value of a frame."""
    return 40 + 24 * number


def _encode(path: Path, encoder: str) -> None:
    """Encode frames of one grey each."""
    import av
    import numpy as np

    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(encoder, rate=8)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for number in range(FRAMES):
                image = np.full((HEIGHT, WIDTH, 3), _grey(number), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    finally:  # SVT-AV1 makes the thread of a root user a real-time one
        os.sched_setscheduler(0, policy, priority)
