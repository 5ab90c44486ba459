"""One self-contained HTML page a run, and one a search: curves, figures, thumbnails. No script, no network."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import yaml
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import AmexError
from ..features import Store
from ..manifests import Clip
from .checkpoint import Checkpoint
from .coverage import Coverage, gallery_lines, split_lines
from .data import Split, Text, refused_states
from .evaluate import encode, evaluate_encoded, parameters, scores_of, truth_of
from .metrics import Scores, positions
from .models import Embeddings, RetrievalModel
from .search import Hit

# A clip's picture as JPEG, or None where there is none to be had.
Thumbnail = Callable[[Clip], bytes | None]

BLUE, ORANGE, GREEN, GREY = "#2f6fb0", "#d9822b", "#3c8d5a", "#8a8f98"


@dataclass(frozen=True, kw_only=True)
class Query:
    """One caption of the split and what was found for it."""

    caption: str
    own: Clip
    position: float
    score: float
    first: Clip
    first_score: float


def write_report(
    work_dir: Path,
    out: Path,
    *,
    checkpoint: Checkpoint,
    store: Store,
    text: Text,
    clips: Sequence[Clip],
    split_name: str,
    thumbnail: Thumbnail,
    progress: Callable[[int], None] = lambda done: None,
    shown: int = 6,
    strict: bool = False,
) -> list[str]:
    """Writes the page of a run. Returns the lines that it says of its gallery: what it lacks, what makes it doubtful.

    Args:
        clips: those of the split; without features they are left out.
        progress: called with how many more clips or captions are encoded.
        shown: best and worst queries to show, of each so many.
        strict: clips and captions that failed or are empty are an error.
    """
    history = read_history(work_dir)
    model = checkpoint.model()
    config = checkpoint.config
    split = Split(store, clips, config.model, config.data, text, refuse=refused_states(strict))
    videos, texts = encode(model, split, progress)
    ranked, queries = rank_queries(model, split, videos, texts)
    order = np.argsort(ranked, kind="stable")
    result = evaluate_encoded(model, split, videos, texts)
    recorded = work_dir / "data.json"
    best, worst = (_queries(queries, chosen, shown) for chosen in (order, order[::-1]))
    _page(
        out,
        "report.html.j2",
        title=f"{config.model.name}: {work_dir.name}",
        checkpoint=checkpoint,
        split=split_name,
        coverage=split.coverage,
        trained_on=split_lines(json.loads(recorded.read_text())) if recorded.is_file() else [],
        result=result,
        ways=WAYS,
        columns=COLUMNS,
        curves=[loss_curve(history), recall_curve(history, checkpoint.epoch)],
        histogram=rank_histogram(ranked, len(split.clips)),
        best=best,
        worst=worst,
        picture=_pictures(thumbnail),
        config=yaml.safe_dump(config.plain(), sort_keys=False),
        epochs=history[-1]["epoch"],
        seconds=sum(entry["seconds"] for entry in history),
        parameters=parameters(model),
    )
    return gallery_lines(result)


def write_results(
    out: Path, *, title: str, results: Mapping[str, Sequence[Hit]], coverage: Coverage, says: str, thumbnail: Thumbnail
) -> None:
    """Writes the page of one search or of several.

    Args:
        results: by what stands above them, such as the query.
        says: what was searched with.
    """
    values = {"results": results, "coverage": coverage, "says": says, "picture": _pictures(thumbnail)}
    _page(out, "search.html.j2", title=title, **values)


WAYS = {
    "text_to_video": "Text to video",
    "video_to_text": "Video to text, best caption",
    "video_to_text_groups": "Video to text, groups of captions",
}
COLUMNS = ("R@1", "R@5", "R@10", "R@50", "MedR", "MeanR", "mAP")


def read_history(work_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's history.jsonl, an epoch that was validated each."""
    path = work_dir / "history.jsonl"
    if not path.is_file():
        raise AmexError(f"{work_dir} is not the --work-dir of an amex train run: it has no history.jsonl")
    history = [json.loads(line) for line in path.read_text().splitlines()]
    if not history:
        raise AmexError(f"{path} is empty: no epoch of this run is finished yet")
    return history


def rank_queries(
    model: RetrievalModel, split: Split, videos: Embeddings, texts: Embeddings
) -> tuple[np.ndarray, Callable[[int], Query]]:
    """The position of every caption's own clip, and a function that tells of one of them what was found."""
    truth, asked = truth_of(split)
    scores = scores_of(model, videos, {name: x[asked] for name, x in texts.items()})
    places = np.array([found[0] for found in positions(scores, truth.videos, "mean", text_to_video=True)])

    def query(number: int) -> Query:
        row = _row(scores, number)
        own, first = truth.videos[number][0], int(row.argmax())
        return Query(
            caption=split.captions[asked[number]],
            own=split.clips[own],
            position=float(places[number]),
            score=float(row[own]),
            first=split.clips[first],
            first_score=float(row[first]),
        )

    return places, query


def _row(scores: Scores, number: int) -> torch.Tensor:
    return scores.block(slice(number, number + 1), slice(None))[0]


def _queries(query: Callable[[int], Query], order: np.ndarray, shown: int) -> list[Query]:
    """The first queries of an order, no clip twice."""
    found: dict[str, Query] = {}
    for number in order:
        candidate = query(int(number))
        found.setdefault(candidate.own.clip_id, candidate)
        if len(found) == shown:
            break
    return list(found.values())


# --- pictures ---------------------------------------------------------------------------------------------------------


def _pictures(thumbnail: Thumbnail) -> Callable[[Clip], str]:
    """Data URLs of clips' pictures, each made once; empty where there is none."""
    made: dict[str, str] = {}

    def picture(clip: Clip) -> str:
        if clip.clip_id not in made:
            jpeg = thumbnail(clip)
            made[clip.clip_id] = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if jpeg else ""
        return made[clip.clip_id]

    return picture


def _figure(width: float = 5.6, height: float = 3.3) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> str:
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None}, transparent=True)
    return (
        written.getvalue().split("?>", 1)[1].split(">", 1)[1]
    )  # no XML declaration, no doctype: it is put into a page


def loss_curve(history: Sequence[Mapping[str, Any]]) -> str:
    """The mean training loss of each epoch and its parts."""
    figure, axes = _figure()
    epochs = [entry["epoch"] for entry in history]
    names = [name for name in history[0]["train"] if name.startswith("loss")]
    if len(names) == 2:  # the loss and its only part
        names = names[:1]
    colours = dict(zip(names, (BLUE, ORANGE, GREEN, GREY), strict=False))
    for name in names:
        label = name.removeprefix("loss_").replace("loss", "all")
        axes.plot(epochs, [entry["train"][name] for entry in history], label=label, color=colours.get(name, GREY))
    axes.set_xlabel("epoch")
    axes.set_title("Training loss", loc="left", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    return _svg(figure)


def recall_curve(history: Sequence[Mapping[str, Any]], chosen: int) -> str:
    """Recalls on the validation split, and the epoch that was chosen."""
    figure, axes = _figure()
    epochs = [entry["epoch"] for entry in history]
    for name, colour in (("R@1", BLUE), ("R@5", ORANGE), ("R@10", GREEN)):
        for way, style in (("t2v", "-"), ("v2t", "--")):
            values = [entry["val"][f"{way} {name}"] for entry in history]
            axes.plot(
                epochs,
                values,
                style,
                color=colour,
                label=f"{name}, {'text to video' if way == 't2v' else 'video to text'}",
            )
    axes.axvline(chosen, color=GREY, linewidth=0.9, linestyle=":")
    axes.set_ylim(0, 102)
    axes.set_xlabel(f"epoch; dotted: the one chosen, {chosen}")
    axes.set_title("Recall on the validation split, %", loc="left", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return _svg(figure)


def rank_histogram(places: np.ndarray, gallery: int) -> str:
    """How many captions have their own clip at which position, in bins that widen."""
    edges = [1, 2, 3, 6, 11, 21, 51, 101, 501, 1001, 10**4 + 1, 10**9]
    edges = [edge for edge in edges if edge <= gallery] + [gallery + 1]
    counts, _ = np.histogram(places, bins=np.array(edges) - 1e-9)
    names = [f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in itertools.pairwise(edges)]
    figure, axes = _figure(width=11.4, height=2.6)
    bars = axes.bar(names, 100 * counts / len(places), color=BLUE)
    axes.bar_label(bars, labels=[f"{count:,}" for count in counts], fontsize=8, padding=2)
    axes.set_xlabel("position of the right clip")
    axes.set_title(f"Text to video: share of {len(places):,} captions, %", loc="left", fontsize=10)
    return _svg(figure)


def _page(out: Path, template: str, **values: Any) -> None:
    """Fills in a template; everything but the charts is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "pages")
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters["seconds"] = lambda value: "" if value is None else f"{value:.1f} s"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(pages.get_template(template).render(**values), encoding="utf-8")
