"""Draw the statistics of a manifest: durations of clips, captions per clip, words per caption."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import plural
from ..storage import write_atomic
from .clip import ManifestError
from .statistics import Statistics

FORMS = (".png", ".svg", ".pdf", ".html")
BLUE = "#2f6fb0"
BARS = 40


def check_name(out: Path) -> None:
    """Raise ManifestError unless the file name has the extension of a supported picture format."""
    if out.suffix.lower() not in FORMS:
        raise ManifestError(f"{out}: the extension of a picture must be one of {', '.join(FORMS)}")


def draw(statistics: Statistics, title: str, out: Path) -> None:
    """Write histograms of durations, words and captions. A .html file is a page without scripts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    durations, words, captions = figure.subplots(1, 3)
    _histogram(durations, statistics.durations, "seconds of a clip", "clips")
    _histogram(words, statistics.words, "words of a caption", "captions")
    _histogram(captions, statistics.captions_a_clip, "captions of a clip", "clips")
    heading = f"{title}: {plural(statistics.clips, 'clip')}, {statistics.hours:,.1f} hours"
    if out.suffix.lower() == ".html":
        picture = io.StringIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
        svg = picture.getvalue()
        with write_atomic(out, ManifestError) as handle:
            handle.write(
                f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
                f"<h1>{html.escape(heading)}</h1>\n{svg[svg.index('<svg') :]}"
            )
        return
    figure.suptitle(heading.replace("$", r"\$"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise ManifestError(f"cannot write {out}: {error.strerror}") from error


def _histogram(axes: object, values: Sequence[float], what: str, of: str) -> None:
    """Draw a histogram of the values below the 99.5th percentile. Outliers would compress the others."""
    axes.set_xlabel(what)
    axes.set_ylabel(of)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if not len(values):
        axes.text(0.5, 0.5, "not known", ha="center", transform=axes.transAxes)
        return
    limit = float(np.quantile(values, 0.995))
    shown = np.asarray(values)[np.asarray(values) <= limit]
    bar_per_integer = shown.dtype.kind == "i" and limit - shown.min() <= BARS
    bins = np.arange(shown.min(), limit + 2) - 0.5 if bar_per_integer else BARS
    axes.hist(shown, bins=bins, color=BLUE)
    if outliers := len(values) - len(shown):
        axes.set_title(f"and {outliers:,} above {limit:.4g}", fontsize="small")
