"""A contact sheet: frames of a clip with the boxes that were found on them, and every stream's windows on a time axis.

People look before they trust. What is drawn is read from the store; only the pixels come from the video.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ..errors import AmexError
from ..features import ClipNotThere, Rows, Store, Stream
from .video import Failed, Feeders, Sampling, SamplingRequest, Window

COLUMNS = 4
# Pixels of single frames, at most.
FRAME_HEIGHT = 360
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#e377c2")
# Presentation times are stored as they were decoded; this only bridges the rounding of arithmetic on them.
SAME_TIME = 1e-6


def contact_sheet(
    store: Store, clip_id: str, videos: Path, out: Path, *, stream: str | None, frames: int, boxes: int
) -> int:
    """Writes the PNG ``out`` and returns how many frames it shows.

    Args:
        stream: whose frames and boxes to show; None for a stream of objects, else of anything that has times.
        frames: at most so many, evenly spread over those of the stream.
        boxes: at most so many a frame, those with the highest scores.

    Raises:
        AmexError: if the clip is in no stream of frames, or its video is not there or has changed.
    """
    timed = {name: opened for name, opened in store.items() if "sampling" in opened.spec}
    rows = {name: opened[clip_id] for name, opened in timed.items() if clip_id in opened and len(opened[clip_id])}
    if stream is not None:
        rows = {stream: store[stream][clip_id], **rows}
        if "times" not in rows[stream].arrays:
            raise AmexError(f"stream {stream!r} is of text, which has no frames to show")
        if not len(rows[stream]):
            raise AmexError(f"clip {clip_id!r} is empty in {stream}: there is nothing to show")
    if not rows:
        for opened in timed.values():
            opened[clip_id]  # tells which failed, and why, or which ids are near
        raise ClipNotThere(f"clip {clip_id!r} has no frames in {store.path}")
    chosen = stream or next((name for name, opened in rows.items() if "boxes" in opened.arrays), next(iter(rows)))
    shown = rows[chosen]
    picked = np.unique(np.linspace(0, len(shown) - 1, min(frames, len(shown))).round().astype(int))
    with contextlib.closing(Feeders()) as feeders:
        times = [float(shown.times[row, 0]) for row in picked]
        images = read_frames(videos / timed[chosen].video(clip_id), times, feeders)

    height = 2.6 * math.ceil(len(picked) / COLUMNS)
    figure = Figure(figsize=(13, height + 0.8 + 0.45 * len(rows)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{clip_id}: {chosen}, {len(picked)} of {len(shown)} rows", fontsize=11)
    top, bottom = figure.subfigures(2, 1, height_ratios=[height, 0.4 + 0.45 * len(rows)])
    grid = list(top.subplots(math.ceil(len(picked) / COLUMNS), COLUMNS, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    for axes, row, image in zip(grid, picked, images, strict=False):
        axes.imshow(image, interpolation="antialiased")
        title = f"{shown.times[row, 0]:.3f} s"
        if "probabilities" in shown.arrays:
            likely = int(shown["probabilities"][row].argmax())
            title += f"  {timed[chosen].labels[likely]} {shown['probabilities'][row, likely]:.2f}"
        axes.set_title(title, fontsize=8, loc="left")
        if "boxes" in shown.arrays:
            draw_boxes(axes, shown, row, timed[chosen], boxes)
    draw_windows(bottom.subplots(), rows, shown.times[picked, 0])
    figure.savefig(out)
    return len(picked)


def thumbnail(store: Store, clip_id: str, videos: Path, feeders: Feeders, height: int = 160) -> bytes:
    """A JPEG of the frame in the middle of a clip, that is where its middle row begins. Raises AmexError."""
    for stream in store.values():
        if "sampling" in stream.spec and clip_id in stream and len(rows := stream[clip_id]):
            path = videos / stream.video(clip_id)
            if not path.is_file():
                raise AmexError(f"{path} does not exist")
            return jpeg(read_frames(path, [float(rows.times[len(rows) // 2, 0])], feeders)[0], height)
    raise ClipNotThere(f"clip {clip_id!r} has no frames in {store.path}")


def jpeg(frame: np.ndarray, height: int) -> bytes:
    """A frame, made smaller where it is higher than ``height``."""
    picture = Image.fromarray(frame)
    picture.thumbnail((4 * height, height))
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=85)
    return written.getvalue()


def read_frames(path: Path, times: list[float], feeders: Feeders) -> list[np.ndarray]:
    """The frames of a video that are shown from exactly ``times`` on; AmexError if one of them cannot be had."""
    single = Sampling(frames=1, stride=1)
    requests = [SamplingRequest(time - SAME_TIME, time + SAME_TIME, single) for time in times]
    images: dict[int, np.ndarray] = {}
    begins: dict[int, float] = {}
    for event in feeders.read(path, requests):
        if isinstance(event, Failed):
            raise AmexError(f"{path}: {event.reason}")
        if isinstance(event, Window):
            images[event.request] = event.pixels[0].copy()
            begins[event.request] = event.start
    for index, time in enumerate(times):
        if abs(begins.get(index, math.inf) - time) > SAME_TIME:
            raise AmexError(f"{path} has no frame at {time:.3f} s: it is not the video that the features were made of")
    return [images[index] for index in range(len(times))]


def draw_boxes(axes: Axes, rows: Rows, row: int, stream: Stream, boxes: int) -> None:
    """The boxes of a row, in the pixels of its frame."""
    names = stream.labels
    for index in range(min(boxes, int(rows["counts"][row]))):
        x0, y0, x1, y1 = rows["boxes"][row, index]
        label = int(rows["labels"][row, index])
        colour = COLOURS[label % len(COLOURS)]
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.2))
        inside = y0 < 0.08 * rows["frame_size"][row, 1]
        text = f"{names[label]} {rows['scores'][row, index]:.2f}"
        style = {"facecolor": colour, "alpha": 0.75, "pad": 0.8, "edgecolor": "none"}
        axes.text(x0, y0, text, fontsize=6, color="white", va="top" if inside else "bottom", bbox=style, clip_on=True)


def draw_windows(axes: Axes, rows: Mapping[str, Rows], marks: np.ndarray) -> None:
    """A lane a stream, a bar a row, beside one another where they overlap. ``marks`` are when the frames above are."""
    times = np.concatenate([windows.times for windows in rows.values()])
    span = np.ptp(times)
    for lane, windows in enumerate(rows.values()):
        starts, ends = windows.times[:, 0], windows.times[:, 1]
        beside = max(1, int((np.arange(len(windows)) - np.searchsorted(ends, starts + SAME_TIME) + 1).max()))
        for index, (start, end) in enumerate(windows.times):
            at = (start, lane - 0.4 + 0.8 * (index % beside) / beside)
            colour = COLOURS[lane % len(COLOURS)]
            edge = "white" if end - start > span / 100 else colour  # what is narrow would be nothing but edge
            axes.add_patch(Rectangle(at, end - start, 0.7 / beside, facecolor=colour, alpha=0.6, edgecolor=edge))
    for mark in marks:
        axes.axvline(mark, color="black", linewidth=0.6, linestyle=":")
    axes.set_xlim(times.min() - 0.02 * span, times.max() + 0.02 * span)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [f"{name} ({len(windows)})" for name, windows in rows.items()], fontsize=8)
    axes.set_xlabel("seconds", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
