"""SVG charts for the pages; their text inherits the page's colour, so it is readable on light and dark backgrounds."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...errors import plural

BLUE, ORANGE, GREEN, GREY = "#2f6fb0", "#d9822b", "#3c8d5a", "#8a8f98"
# Placeholder for the page's text colour; replaced in the SVG.
INK = "#010203"
STYLE = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)


@rc_context(STYLE)
def loss_curve(history: Sequence[Mapping[str, Any]]) -> str:
    """Plot the mean training loss of each epoch and its terms."""
    names = [name for name in history[0]["train"] if name.startswith("loss")]
    if len(names) == 2:  # the total and its only term
        names = names[:1]
    columns = 4 if len(names) <= 4 else 2
    figure, axes = _figure(height=3.3 + 0.2 * (len(names) // columns))
    epochs = [entry["epoch"] for entry in history]
    for name, colour in zip(names, itertools.cycle(colormaps["tab10"].colors), strict=False):
        label = name.removeprefix("loss_").replace("loss", "all").replace("_", " ")
        values = [entry["train"][name] for entry in history]
        axes.plot(epochs, values, marker=_marker(epochs), label=label, color=colour)
    axes.set_xlabel("epoch")
    axes.set_title("Training loss", loc="left", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(frameon=False, fontsize=8, ncols=columns, loc="outside lower center")
    return _svg(figure)


@rc_context(STYLE)
def recall_curve(history: Sequence[Mapping[str, Any]], chosen: int) -> str:
    """Plot the validation recalls, and mark the chosen epoch."""
    figure, axes = _figure()
    epochs = [entry["epoch"] for entry in history]
    for name, colour in (("R@1", BLUE), ("R@5", ORANGE), ("R@10", GREEN)):
        for direction, style in (("t2v", "-"), ("v2t", "--")):
            values = [entry["val"][f"{direction} {name}"] for entry in history]
            label = f"{name}, {'text to video' if direction == 't2v' else 'video to text'}"
            axes.plot(epochs, values, style, marker=_marker(epochs), color=colour, label=label)
    axes.axvline(chosen, color=GREY, linewidth=0.9, linestyle=":")
    axes.set_ylim(0, 102)
    axes.set_xlabel(f"epoch; dotted: the chosen one, {chosen}")
    axes.set_title("Recall on the validation split, %", loc="left", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return _svg(figure)


@rc_context(STYLE)
def rank_histogram(positions: np.ndarray, gallery: int) -> str:
    """Plot how many captions have their clip at which position, in widening bins."""
    edges = [1, 2, 3, 6, 11, 21, 51, 101, 501, 1001, 10**4 + 1, 10**9]
    edges = [edge for edge in edges if edge <= gallery] + [gallery + 1]
    counts, _ = np.histogram(positions, bins=np.array(edges) - 1e-9)
    names = [f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in itertools.pairwise(edges)]
    figure, axes = _figure(width=11.4, height=2.6)
    bars = axes.bar(names, 100 * counts / len(positions), color=BLUE)
    axes.margins(y=0.15)  # room for the label of the highest bar
    axes.bar_label(bars, labels=[f"{count:,}" for count in counts], fontsize=8, padding=2)
    axes.set_xlabel("position of the right clip")
    axes.set_title(f"Text to video: share of {plural(len(positions), 'caption')}, %", loc="left", fontsize=10)
    return _svg(figure)


def _marker(epochs: Sequence[int]) -> str:
    """Return a marker if there is only one point, since a line would be invisible."""
    return "o" if len(epochs) == 1 else ""


def _figure(width: float = 5.6, height: float = 3.3) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")), transparent=True
    )
    svg = buffer.getvalue().split("?>", 1)[1].split(">", 1)[1]  # drop the XML declaration and the doctype
    return svg.replace(INK, "currentColor")
