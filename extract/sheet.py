"""A contact sheet: frames of a clip with its detected boxes, and the windows of every stream on a time axis.

The sheet lets a user check stored features by eye. Times, boxes and labels come from the store, pixels from the video.
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
from matplotlib.text import Text
from PIL import Image

from ..errors import AmexError, plural
from ..features import MissingClip, Rows, Store, Stream
from .video import Failed, Feeders, Sampling, SamplingRequest, Window

COLUMNS = 4
# Maximum height of a single frame, in pixels.
FRAME_HEIGHT = 360
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#e377c2")
# Tolerance for rounding in arithmetic on presentation times, in seconds. The stored times themselves are exact.
SAME_TIME = 1e-6


def contact_sheet(
    store: Store,
    clip_id: str,
    videos: Path,
    out: Path,
    *,
    stream: str | None,
    frames: int,
    boxes: int,
    score: float = 0.0,
) -> int:
    """Write the contact sheet of a clip as a PNG; return the number of frames shown.

    Args:
        videos: folder of the video files.
        out: path of the PNG.
        stream: the stream whose frames and boxes to show. None prefers a stream of objects, then any other with times.
        frames: maximum number of frames, evenly spread over the rows of the stream.
        boxes: maximum number of boxes per frame; the highest scores are shown.
        score: boxes with lower scores are not shown.

    Raises:
        AmexError: if the clip has no rows with times, or its video is missing or has changed.
    """
    timed = {name: opened for name, opened in store.items() if "sampling" in opened.spec}
    rows = {name: opened[clip_id] for name, opened in timed.items() if clip_id in opened and len(opened[clip_id])}
    if stream is not None:
        rows = {stream: store[stream][clip_id], **rows}
        if "times" not in rows[stream].arrays:
            raise AmexError(f"stream {stream!r} is a text stream and has no frames to show; choose another stream")
        if not len(rows[stream]):
            raise AmexError(f"clip {clip_id!r} has no rows in {stream}: choose another clip or stream")
    if not rows:
        for opened in timed.values():
            opened[clip_id]  # raises an error with the reason of a failed clip, or with similar ids
        raise MissingClip(f"clip {clip_id!r} has no frames in {store.path}")
    chosen = stream or next((name for name, opened in rows.items() if "boxes" in opened.arrays), next(iter(rows)))
    chosen_rows = rows[chosen]
    count = min(frames, len(chosen_rows))
    indices = np.unique(np.linspace(0, len(chosen_rows) - 1, count).round().astype(int))
    with contextlib.closing(Feeders()) as feeders:
        times = [float(chosen_rows.times[row, 0]) for row in indices]
        images = read_frames(videos / timed[chosen].video(clip_id), times, feeders)

    height = 2.6 * math.ceil(len(indices) / COLUMNS)
    figure = Figure(figsize=(13, height + 0.8 + 0.45 * len(rows)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{clip_id}: {chosen}, {len(indices):,} of {plural(len(chosen_rows), 'row')}", fontsize=11)
    top, bottom = figure.subfigures(2, 1, height_ratios=[height, 0.4 + 0.45 * len(rows)])
    grid = list(top.subplots(math.ceil(len(indices) / COLUMNS), COLUMNS, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    labels: list[Text] = []
    for axes, row, image in zip(grid, indices, images, strict=False):
        axes.imshow(image, interpolation="antialiased")
        title = clock(chosen_rows.times[row, 0])
        if "probabilities" in chosen_rows.arrays:
            likely = int(chosen_rows["probabilities"][row].argmax())
            title += f"  {timed[chosen].labels[likely]} {chosen_rows['probabilities'][row, likely]:.2f}"
        axes.set_title(title, fontsize=8, loc="left")
        if "boxes" in chosen_rows.arrays:
            labels += draw_boxes(axes, chosen_rows, row, timed[chosen], boxes, score)
    draw_windows(bottom.subplots(), rows, chosen_rows.times[indices, 0])
    figure.draw_without_rendering()  # lays the frames out
    for label in labels:
        move_into_frame(label)
    figure.savefig(out)
    return len(indices)


def thumbnail(store: Store, clip_id: str, videos: Path, feeders: Feeders, height: int = 160) -> bytes:
    """Return a JPEG of the first frame of a clip's middle row.

    Args:
        height: maximum height in pixels.

    Raises:
        AmexError: if the clip has no rows with times, or its video is missing or has changed.
    """
    for stream in store.values():
        if "sampling" in stream.spec and clip_id in stream and len(rows := stream[clip_id]):
            path = videos / stream.video(clip_id)
            if not path.is_file():
                raise AmexError(f"the video {path} does not exist; check the folder of videos")
            return jpeg(read_frames(path, [float(rows.times[len(rows) // 2, 0])], feeders)[0], height)
    raise MissingClip(f"clip {clip_id!r} has no frames in {store.path}")


def jpeg(frame: np.ndarray, height: int) -> bytes:
    """Encode a frame as JPEG, reduced to at most ``height`` pixels."""
    picture = Image.fromarray(frame)
    picture.thumbnail((4 * height, height))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def read_frames(path: Path, times: list[float], feeders: Feeders) -> list[np.ndarray]:
    """Return the frames of a video whose presentation times are ``times``, as (height, width, 3) uint8 RGB.

    Raises:
        AmexError: if the video cannot be decoded, or has no frame at one of the times.
    """
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
            raise AmexError(f"{path} has no frame at {time:.3f} s: the features were extracted from another video")
    return [images[index] for index in range(len(times))]


def clock(seconds: float) -> str:
    """Format a time: ``12.5 s``, or ``2:05.25`` from one minute on."""
    minutes, rest = divmod(round(float(seconds), 3), 60)
    text = f"{rest:06.3f}".rstrip("0").rstrip(".")
    return f"{minutes:.0f}:{text}" if minutes else f"{rest:.3f}".rstrip("0").rstrip(".") + " s"


def draw_boxes(axes: Axes, rows: Rows, row: int, stream: Stream, boxes: int, score: float) -> list[Text]:
    """Draw the boxes of a row on its frame, the best last; return their labels."""
    names, labels = stream.labels, []
    count = int((rows["scores"][row, : rows["counts"][row]] >= score).sum())
    for index in reversed(range(min(boxes, count))):
        x0, y0, x1, y1 = rows["boxes"][row, index]
        label = int(rows["labels"][row, index])
        colour = COLOURS[label % len(COLOURS)]
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.2))
        inside = y0 < 0.08 * rows["frame_size"][row, 1]
        text = f"{names[label]} {rows['scores'][row, index]:.2f}"
        style = {"facecolor": colour, "alpha": 0.75, "pad": 0.8, "edgecolor": "none"}
        place = {"va": "top" if inside else "bottom", "clip_on": True}
        labels.append(axes.text(x0, y0, text, fontsize=6, color="white", bbox=style, **place))
    return labels


def move_into_frame(label: Text) -> None:
    """Move a label that leaves its frame back into it. The figure must be laid out."""
    axes = label.axes
    frame, extent = axes.get_window_extent(), label.get_window_extent()
    shift_x = max(0.0, frame.x0 - extent.x0) + min(0.0, frame.x1 - extent.x1)
    shift_y = max(0.0, frame.y0 - extent.y0) + min(0.0, frame.y1 - extent.y1)
    x, y = axes.transData.transform(label.get_position())
    label.set_position(axes.transData.inverted().transform((x + shift_x, y + shift_y)))


def draw_windows(axes: Axes, rows: Mapping[str, Rows], marks: np.ndarray) -> None:
    """Draw one lane per stream and one bar per row; overlapping bars are stacked.

    Args:
        marks: times of the frames shown above, in seconds.
    """
    times = np.concatenate([windows.times for windows in rows.values()])
    span = np.ptp(times)
    for lane, windows in enumerate(rows.values()):
        starts, ends = windows.times[:, 0], windows.times[:, 1]
        stacked = max(1, int((np.arange(len(windows)) - np.searchsorted(ends, starts + SAME_TIME) + 1).max()))
        for index, (start, end) in enumerate(windows.times):
            corner = (start, lane - 0.4 + 0.8 * (index % stacked) / stacked)
            colour = COLOURS[lane % len(COLOURS)]
            edge = "white" if end - start > span / 100 else colour  # a white edge would hide a narrow bar
            axes.add_patch(Rectangle(corner, end - start, 0.7 / stacked, facecolor=colour, alpha=0.6, edgecolor=edge))
    for mark in marks:
        axes.axvline(mark, color="black", linewidth=0.6, linestyle=":")
    axes.set_xlim(times.min() - 0.02 * span, times.max() + 0.02 * span)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [f"{name} ({len(windows)})" for name, windows in rows.items()], fontsize=8)
    if times.max() < 60:
        axes.set_xlabel("seconds", fontsize=8)
    else:
        axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds // 60:.0f}:{seconds % 60:02.0f}")
        axes.set_xlabel("minutes:seconds", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
