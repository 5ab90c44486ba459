"""Write the HTML pages: a folder for a run, a single file for a search. Texts of users are escaped in both."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from ...errors import AmexError
from ...features import Store
from ...manifests import Clip
from ..captions import Text
from ..checkpoint import Checkpoint
from ..coverage import Coverage, gallery_lines, split_lines
from ..data import Split
from ..evaluate import count_parameters, encode, evaluate_scores, score_embeddings
from ..models import Embeddings, RetrievalModel
from ..search import Hit
from ..selection import refused_states
from .breakdown import FEW_QUERIES, by_length, by_level, by_word, hubness
from .charts import loss_curve, rank_histogram, recall_curve
from .comparison import RankedRun, compare_runs
from .predictions import predictions
from .queries import DEPTH, Ranking, rank
from .relations import Pair, relation_pairs

# Returns a clip's picture as JPEG; None if there is none.
Thumbnail = Callable[[Clip], bytes | None]
# Returns JPEGs of a clip's frames at some seconds, as read for a stream; empty if there are none.
Frames = Callable[[Clip, str, Sequence[float]], list[bytes]]
# Starts a progress bar from a name and a total; returns a function that takes the number of newly finished items.
Progress = Callable[[str, int], Callable[[int], None]]

DIRECTION_NAMES = {
    "text_to_video": "Text to video",
    "video_to_text": "Video to text, best caption",
    "video_to_text_groups": "Video to text, groups of captions",
}
COLUMNS = ("R@1", "R@5", "R@10", "R@50", "MedR", "MeanR", "mAP")
# Number of queries in a data file. A page loads only the files that its reader opens.
CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model, and the clips of a split to report on, with their features.

    Attributes:
        name: name of the run's folder.
        checkpoint: the trained model.
        store: the features.
        text: sources of caption batches, as from ``checkpoint.text``.
        clips: clips of the split; clips without features are left out.
    """

    name: str
    checkpoint: Checkpoint
    store: Store
    text: Text
    clips: Sequence[Clip]


def write_report(
    work_dir: Path,
    out: Path,
    run: Run,
    *,
    other: Run | None = None,
    split_name: str,
    thumbnail: Thumbnail,
    frames: Frames,
    progress: Progress = lambda name, total: lambda done: None,
    shown: int = 6,
    pictures: int = 500,
    strict: bool = False,
) -> list[str]:
    """Write ``out/index.html`` about a run, with its data and pictures beside it.

    Args:
        other: a run to compare_runs with.
        shown: number of best and worst queries, of pairs of clips, and of concept examples.
        pictures: maximum number of clips with pictures; clips that are retrieved most often have priority.
        strict: treat failed and empty clips and captions as errors.

    Returns:
        Lines about the gallery: coverage and warnings.
    """
    history = read_history(work_dir)
    checkpoint, config = run.checkpoint, run.checkpoint.config
    ranked, model, videos, texts = _rank_run(run, progress, strict)
    comparison = compare_runs(ranked, _rank_run(other, progress, strict)[0]) if other is not None else None
    split, ranking = ranked.split, ranked.ranking
    result = evaluate_scores(ranked.scores, split)
    order = np.argsort(ranking.positions, kind="stable")
    best, worst = (_one_a_clip(chosen, ranking.own, shown) for chosen in (order, order[::-1]))
    pairs = relation_pairs(model, split, videos, texts, ranking, shown)
    hubs = hubness(ranking, len(split.clips))
    example_clips = [int(ranking.own[query]) for query in (best + worst)[:: max(1, 2 * len(best) // shown)]]
    concepts = run.text.concepts
    levels = []
    if concepts is not None:
        levels = list(predictions(model, split, videos, texts, concepts, example_clips))
    album = Album(out / "pictures", split.clips, thumbnail)
    priority = [*ranking.own[best + worst], *ranking.best[best + worst, 0], *example_clips]
    priority += [clip for clip, _ in hubs.hubs] if hubs is not None else []
    album.make(_with_pictures(priority, ranking, len(split.clips), pictures), progress)
    _frame_pictures(out / "pictures", pairs, split, frames, progress)
    write_data(out / "data", split, ranking, album, comparison)
    data_file = work_dir / "data.json"
    page = {
        "checkpoint": checkpoint,
        "split": split_name,
        "coverage": split.coverage,
        "captions": split.captions,
        "clips": split.clips,
        "ranking": ranking,
        "trained_on": split_lines(json.loads(data_file.read_text())) if data_file.is_file() else [],
        "result": result,
        "directions": DIRECTION_NAMES,
        "columns": COLUMNS,
        "curves": [loss_curve(history), recall_curve(history, checkpoint.epoch)],
        "histogram": rank_histogram(ranking.positions, len(split.clips)),
        "best": best,
        "worst": worst,
        "pairs": pairs,
        "words": by_word(split.captions, ranking, progress("captions", len(split.captions))),
        "lengths": by_length(split.captions, ranking),
        "levels": by_level(ranking),
        "weights": ", ".join(f"{level} {weight:.2g}" for level, weight in model.level_weights.items()),
        "weak": weak_shares(ranking),
        "hubness": hubs,
        "depth": DEPTH,
        "few_queries": FEW_QUERIES,
        "predictions": levels,
        "examples": example_clips,
        "comparison": comparison,
        "moved": _moved(comparison, shown) if comparison is not None else {},
        "picture": album.url,
        "pictures": len(album.made),
        "config": yaml.safe_dump(config.to_json(), sort_keys=False),
        "epochs": history[-1]["epoch"],
        "seconds": sum(entry["seconds"] for entry in history),
        "parameters": count_parameters(model),
    }
    _page(out / "index.html", "report.html.j2", title=f"{config.model.name}: {run.name}", page=page)
    return gallery_lines(result)


def write_results(
    out: Path,
    *,
    title: str,
    results: Mapping[str, Sequence[Hit]],
    coverage: Coverage,
    description: str,
    thumbnail: Thumbnail,
) -> None:
    """Write a page of one or several searches, with embedded pictures.

    Args:
        results: hits by heading, such as the query.
        description: a line that names the model.
    """
    urls: dict[str, str] = {}

    def picture(clip: Clip) -> str:
        if clip.clip_id not in urls:
            jpeg = thumbnail(clip)
            urls[clip.clip_id] = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if jpeg else ""
        return urls[clip.clip_id]

    values = {"results": results, "coverage": coverage, "description": description, "picture": picture}
    _page(out, "search.html.j2", title=title, **values)


def read_history(work_dir: Path) -> list[dict[str, Any]]:
    """Read history.jsonl of a run, one entry for each validated epoch."""
    path = work_dir / "history.jsonl"
    if not path.is_file():
        raise AmexError(f"{work_dir} is not the --work-dir of an amex train run: it has no history.jsonl")
    history = [json.loads(line) for line in path.read_text().splitlines()]
    if not history:
        raise AmexError(f"{path} is empty: no epoch of this run is finished")
    return history


def weak_shares(ranking: Ranking) -> dict[str, float]:
    """Return the share of weak first hits in percent, for right and for wrong hits."""
    right = ranking.best[:, 0] == ranking.own
    chosen = {"right": right, "wrong": ~right}
    return {name: 100 * float(ranking.weak[rows, 0].mean()) for name, rows in chosen.items() if rows.any()}


def _rank_run(run: Run, progress: Progress, strict: bool) -> tuple[RankedRun, RetrievalModel, Embeddings, Embeddings]:
    model, config = run.checkpoint.model(), run.checkpoint.config
    split = Split(run.store, run.clips, config.model, config.data, run.text, refuse=refused_states(strict))
    videos, texts = encode(model, split, progress(f"encoding, {run.name}", len(split.clips) + len(split.captions)))
    scores = score_embeddings(model, videos, texts)
    ranking = rank(model, split, videos, texts, scores, progress(f"ranking, {run.name}", sum(map(len, split.queries))))
    return RankedRun(name=run.name, split=split, scores=scores, ranking=ranking), model, videos, texts


def _one_a_clip(order: np.ndarray, own: np.ndarray, shown: int) -> list[int]:
    """Return the first queries of an order, at most one per clip."""
    query_of: dict[int, int] = {}
    for query in order.tolist():
        query_of.setdefault(int(own[query]), query)
        if len(query_of) == shown:
            break
    return list(query_of.values())


def _moved(comparison: Any, shown: int) -> dict[str, list[int]]:
    """Return the queries with the largest gain and the largest loss in position, as the comparison numbers them.

    Positions are compared by their ratio: from 1 to 10 is as far as from 10 to 100.
    """
    by = np.log(comparison.other / comparison.run)
    order = np.argsort(-by, kind="stable")
    gains, losses = order[by[order] > 0], order[::-1][by[order[::-1]] < 0]
    return {"gained": gains[:shown].tolist(), "lost": losses[:shown].tolist()}


# --- files beside the page -----------------------------------------------------------------------------------------


class Album:
    """Pictures of clips, one file each, named by the number of the clip."""

    def __init__(self, folder: Path, clips: Sequence[Clip], thumbnail: Thumbnail) -> None:
        self.folder, self.clips, self.thumbnail = folder, clips, thumbnail
        self.made: set[int] = set()

    def make(self, clips: Sequence[int], progress: Progress) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        done = progress("pictures", len(clips))
        for clip in clips:
            if jpeg := self.thumbnail(self.clips[clip]):
                (self.folder / f"{clip}.jpg").write_bytes(jpeg)
                self.made.add(clip)
            done(1)

    def url(self, clip: int) -> str:
        """Return the address of a clip's picture relative to the page; empty if there is none."""
        return f"pictures/{clip}.jpg" if clip in self.made else ""


def _with_pictures(priority: Sequence[int], ranking: Ranking, clips: int, most: int) -> list[int]:
    """Select the clips to picture: those that the page itself shows, then those that are retrieved most often."""
    counts = np.bincount(ranking.best.ravel(), minlength=clips)
    by_count = np.argsort(-counts, kind="stable").tolist()
    return list(dict.fromkeys([*map(int, priority), *by_count]))[:most]


def _frame_pictures(folder: Path, pairs: Sequence[Pair], split: Split, frames: Frames, progress: Progress) -> None:
    """Write the frames of pairs beside the page; a clip without frames is drawn without."""
    done = progress("frames", 2 * len(pairs))
    for drawing in (drawing for pair in pairs for drawing in (pair.own, pair.wrong)):
        seconds = [frame.seconds for frame in drawing.frames if frame.seconds is not None]
        jpegs = frames(split.clips[drawing.clip], drawing.stream, seconds) if seconds else []
        for number, (frame, jpeg) in enumerate(zip(drawing.frames, jpegs, strict=False)):
            name = f"{drawing.clip}-{number}.jpg"
            (folder / name).write_bytes(jpeg)
            frame.picture = f"pictures/{name}"
        done(1)


def write_data(folder: Path, split: Split, ranking: Ranking, album: Album, comparison: Any = None) -> None:
    """Write the data of the page's list of queries: ``queries.js``, and ``top-N.js`` for each ``CHUNK`` queries.

    The files are scripts that call a function of the page with JSON, because a page opened from disk can load no other
    data. The JSON is ASCII, so no caption can end a string.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others: list[float | None] | None = None
    if comparison is not None:
        others = [None] * len(ranking)
        for query, position in zip(comparison.chosen.tolist(), comparison.other.tolist(), strict=True):
            others[query] = position
    index = {
        "chunk": CHUNK,
        "clips": [clip.clip_id for clip in split.clips],
        "pictures": sorted(album.made),
        "captions": split.captions,
        "caption": ranking.captions.tolist(),
        "own": ranking.own.tolist(),
        "position": _short(ranking.positions),
        "score": _short(ranking.own_scores),
        "first": ranking.best[:, 0].tolist(),
        "weak": ranking.weak[:, 0].astype(int).tolist(),
        "other": others,
    }
    _script(folder / "queries.js", "amexQueries", index)
    for begin in range(0, len(ranking), CHUNK):
        part = slice(begin, begin + CHUNK)
        top = {
            "number": begin // CHUNK,
            "clips": ranking.best[part].tolist(),
            "scores": [_short(row) for row in ranking.scores[part]],
            "weak": ranking.weak[part].astype(int).tolist(),
        }
        _script(folder / f"top-{begin // CHUNK}.js", "amexTop", top)


def _short(values: np.ndarray) -> list[float]:
    """Round numbers to five significant digits."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def _script(path: Path, function: str, value: Any) -> None:
    path.write_text(f"{function}({json.dumps(value, separators=(',', ':'), allow_nan=False)});\n", encoding="ascii")


def _page(out: Path, template: str, **values: Any) -> None:
    """Fills in a template; everything but the charts is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent.parent / "pages")
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters["seconds"] = lambda value: "" if value is None else f"{value:.1f} s"
    out.parent.mkdir(parents=True, exist_ok=True)
    # A caption may hold half of a surrogate pair, which UTF-8 cannot.
    out.write_text(pages.get_template(template).render(**values), encoding="utf-8", errors="replace")
