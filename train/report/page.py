"""Fills in the pages: a folder for a run, a single file for a search. What people wrote is escaped in both."""

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
from ..evaluate import encode, evaluate_scores, parameters, scores_of
from ..models import Embeddings, RetrievalModel
from ..search import Hit
from ..selection import refused_states
from .breakdown import FEW_QUERIES, by_length, by_level, by_word, hubness
from .charts import loss_curve, rank_histogram, recall_curve
from .comparison import Ranked, compare
from .predictions import predictions
from .queries import DEPTH, Ranking, rank
from .relations import Pair, relation_pairs

# A clip's picture as JPEG, or None where there is none to be had.
Thumbnail = Callable[[Clip], bytes | None]
# JPEGs of a clip's frames at seconds of its video, made for a stream of the store; empty where there are none.
Frames = Callable[[Clip, str, Sequence[float]], list[bytes]]
# Begins a bar, of a name and of how many; returns what is called with how many more are done.
Progress = Callable[[str, int], Callable[[int], None]]

WAYS = {
    "text_to_video": "Text to video",
    "video_to_text": "Video to text, best caption",
    "video_to_text_groups": "Video to text, groups of captions",
}
COLUMNS = ("R@1", "R@5", "R@10", "R@50", "MedR", "MeanR", "mAP")
# Queries a file of data: a page loads those that its reader looks at.
CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model, and the clips of a split that its report is of, with their features.

    Attributes:
        name: that of its folder.
        text: what batches of captions are made from, as ``checkpoint.text`` gives it.
        clips: those of the split; without features they are left out.
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
    """Writes ``out/index.html`` about a run, with its data and pictures beside it.

    Args:
        other: a run that it is compared with.
        shown: best and worst queries, pairs of clips, and examples of concepts: of each so many.
        pictures: of so many clips at most; those that are found most often have one.
        strict: clips and captions that failed or are empty are an error.

    Returns:
        The lines that the page says of its gallery: what it lacks, what makes it doubtful.
    """
    history = read_history(work_dir)
    checkpoint, config = run.checkpoint, run.checkpoint.config
    ranked, model, videos, texts = _ranked(run, progress, strict)
    comparison = compare(ranked, _ranked(other, progress, strict)[0]) if other is not None else None
    split, ranking = ranked.split, ranked.ranking
    result = evaluate_scores(ranked.scores, split)
    order = np.argsort(ranking.positions, kind="stable")
    best, worst = (_one_a_clip(chosen, ranking.own, shown) for chosen in (order, order[::-1]))
    pairs = relation_pairs(model, split, videos, texts, ranking, shown)
    hubs = hubness(ranking, len(split.clips))
    examples = [int(ranking.own[query]) for query in (best + worst)[:: max(1, 2 * len(best) // shown)]]
    concepts = run.text.concepts
    levels = []
    if concepts is not None:
        levels = list(predictions(model, split, videos, texts, concepts, examples))
    album = Album(out / "pictures", split.clips, thumbnail)
    wanted = [*ranking.own[best + worst], *ranking.best[best + worst, 0], *examples]
    wanted += [clip for clip, _ in hubs.hubs] if hubs is not None else []
    album.make(_first(wanted, ranking, len(split.clips), pictures), progress)
    _frame_pictures(out / "pictures", pairs, split, frames, progress)
    write_data(out / "data", split, ranking, album, comparison)
    recorded = work_dir / "data.json"
    page = {
        "checkpoint": checkpoint,
        "split": split_name,
        "coverage": split.coverage,
        "captions": split.captions,
        "clips": split.clips,
        "ranking": ranking,
        "trained_on": split_lines(json.loads(recorded.read_text())) if recorded.is_file() else [],
        "result": result,
        "ways": WAYS,
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
        "examples": examples,
        "comparison": comparison,
        "moved": _moved(comparison, shown) if comparison is not None else {},
        "picture": album.url,
        "pictures": len(album.made),
        "config": yaml.safe_dump(config.plain(), sort_keys=False),
        "epochs": history[-1]["epoch"],
        "seconds": sum(entry["seconds"] for entry in history),
        "parameters": parameters(model),
    }
    _page(out / "index.html", "report.html.j2", title=f"{config.model.name}: {run.name}", page=page)
    return gallery_lines(result)


def write_results(
    out: Path, *, title: str, results: Mapping[str, Sequence[Hit]], coverage: Coverage, says: str, thumbnail: Thumbnail
) -> None:
    """Writes the page of one search or of several, with its pictures in itself.

    Args:
        results: by what stands above them, such as the query.
        says: what was searched with.
    """
    made: dict[str, str] = {}

    def picture(clip: Clip) -> str:
        if clip.clip_id not in made:
            jpeg = thumbnail(clip)
            made[clip.clip_id] = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if jpeg else ""
        return made[clip.clip_id]

    values = {"results": results, "coverage": coverage, "says": says, "picture": picture}
    _page(out, "search.html.j2", title=title, **values)


def read_history(work_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's history.jsonl, an epoch that was validated each."""
    path = work_dir / "history.jsonl"
    if not path.is_file():
        raise AmexError(f"{work_dir} is not the --work-dir of an amex train run: it has no history.jsonl")
    history = [json.loads(line) for line in path.read_text().splitlines()]
    if not history:
        raise AmexError(f"{path} is empty: no epoch of this run is finished yet")
    return history


def weak_shares(ranking: Ranking) -> dict[str, float]:
    """How many of the first clips are weak, in percent: where the first is the right one, and where it is not."""
    right = ranking.best[:, 0] == ranking.own
    chosen = {"right": right, "wrong": ~right}
    return {name: 100 * float(ranking.weak[rows, 0].mean()) for name, rows in chosen.items() if rows.any()}


def _ranked(run: Run, progress: Progress, strict: bool) -> tuple[Ranked, RetrievalModel, Embeddings, Embeddings]:
    model, config = run.checkpoint.model(), run.checkpoint.config
    split = Split(run.store, run.clips, config.model, config.data, run.text, refuse=refused_states(strict))
    videos, texts = encode(model, split, progress(f"encoding, {run.name}", len(split.clips) + len(split.captions)))
    scores = scores_of(model, videos, texts)
    ranking = rank(model, split, videos, texts, scores, progress(f"ranking, {run.name}", sum(map(len, split.queries))))
    return Ranked(name=run.name, split=split, scores=scores, ranking=ranking), model, videos, texts


def _one_a_clip(order: np.ndarray, own: np.ndarray, shown: int) -> list[int]:
    """The first queries of an order, no clip twice."""
    found: dict[int, int] = {}
    for query in order.tolist():
        found.setdefault(int(own[query]), query)
        if len(found) == shown:
            break
    return list(found.values())


def _moved(comparison: Any, shown: int) -> dict[str, list[int]]:
    """The queries of which the run's position is furthest before that of the other run, and furthest behind.

    They are numbered as the comparison has them. Ranks count by their ratio: from 1 to 10 is as far as from 10 to 100.
    """
    by = np.log(comparison.other / comparison.run)
    order = np.argsort(-by, kind="stable")
    gains, losses = order[by[order] > 0], order[::-1][by[order[::-1]] < 0]
    return {"gained": gains[:shown].tolist(), "lost": losses[:shown].tolist()}


# --- what lies beside the page ----------------------------------------------------------------------------------------


class Album:
    """Pictures of clips, a file each, called after the number of the clip."""

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
        """As the page names it; empty where there is no picture."""
        return f"pictures/{clip}.jpg" if clip in self.made else ""


def _first(wanted: Sequence[int], ranking: Ranking, clips: int, most: int) -> list[int]:
    """So many clips: those that the page shows at once, then those that are found most often."""
    counts = np.bincount(ranking.best.ravel(), minlength=clips)
    by_count = np.argsort(-counts, kind="stable").tolist()
    return list(dict.fromkeys([*map(int, wanted), *by_count]))[:most]


def _frame_pictures(folder: Path, pairs: Sequence[Pair], split: Split, frames: Frames, progress: Progress) -> None:
    """Puts the frames of pairs beside the page; a clip whose frames cannot be had is drawn without."""
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
    """Writes what the page's list of queries loads: ``queries.js``, and ``top-N.js`` of ``CHUNK`` queries each.

    They are scripts that call a function of the page with JSON: a page that was opened from a disk may load no other
    data. JSON is ASCII, so no caption can end a string.
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
        some = slice(begin, begin + CHUNK)
        top = {
            "number": begin // CHUNK,
            "clips": ranking.best[some].tolist(),
            "scores": [_short(row) for row in ranking.scores[some]],
            "weak": ranking.weak[some].astype(int).tolist(),
        }
        _script(folder / f"top-{begin // CHUNK}.js", "amexTop", top)


def _short(values: np.ndarray) -> list[float]:
    """Numbers with the digits that a reader needs."""
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
