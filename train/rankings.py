"""Write rankings for other programs: scores, ranks, TREC runs."""

from __future__ import annotations

import csv
import io
import json
import string
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ..errors import AmexError, first_line
from ..storage import atomic_path, write_atomic
from .metrics import Scores, Ties, Truth, positions

HITS, RUN_DEPTH = 10, 1000


@dataclass(frozen=True, kw_only=True)
class ScoredSplit:
    """The scores of a split's queries and clips, with the ground truth.

    Attributes:
        scores: (queries, clips).
        truth: which queries belong to which clips.
        captions: text of each query.
        clips: id of each clip.
    """

    scores: Scores
    truth: Truth
    captions: Sequence[str]
    clips: Sequence[str]


Writer = Callable[[ScoredSplit], None]


def write_scores(path: Path, scored: ScoredSplit) -> None:
    """Write an npz file with ``scores`` (captions, clips) float32, ``captions``, ``clips``, ``pairs`` (pairs, 2) int64.

    A pair is a caption number and the number of a clip it belongs to. Scores are written a block at a time.
    """
    pairs = [(caption, clip) for clip, own in enumerate(scored.truth.captions) for caption in own]
    arrays = {
        "captions": np.array(scored.captions),
        "clips": np.array(scored.clips),
        "pairs": np.array(pairs, np.int64),
    }
    header = {"descr": "<f4", "fortran_order": False, "shape": scored.scores.shape}
    try:
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            with file.open("scores.npy", "w", force_zip64=True) as handle:
                np.lib.format.write_array_header_1_0(handle, header)
                for _, block in scored.scores.rows():
                    handle.write(np.ascontiguousarray(block.numpy(), "<f4").data)
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as handle:
                    np.lib.format.write_array(handle, array, allow_pickle=False)
    except OSError as error:
        raise AmexError(f"cannot write {path}: {error.strerror or first_line(error)}") from error


def check_ranks(path: Path) -> None:
    """Raise an AmexError unless the file name ends in .csv or .jsonl, which selects the format."""
    if path.suffix not in (".csv", ".jsonl"):
        raise AmexError(f"--ranks {path}: the name must end in .csv or .jsonl, which selects the format")


def write_ranks(path: Path, scored: ScoredSplit, *, ties: Ties = "mean", hits: int = HITS) -> None:
    """Write one line per caption: its clips, the rank of the best of them, and the first ``hits`` of the ranking.

    The format is JSON lines, or CSV if ``path`` ends in ``.csv``. A rank is a position as in ``metrics.positions``, so
    it may end in .5. Hits with equal scores are in the order of the clips.

    Raises:
        AmexError: if ``path`` has another ending or cannot be written.
    """
    check_ranks(path)
    owners = scored.truth.videos
    ranks = positions(scored.scores, owners, ties, text_to_video=True)
    hits = min(hits, len(scored.clips))
    with write_atomic(path, AmexError) as handle:
        if path.suffix == ".csv":
            numbers = range(1, hits + 1)
            handle.write(
                _csv_line(["caption", "clips", "rank", *(f"{kind} {n}" for n in numbers for kind in ("hit", "score"))])
            )
        for (query, top), rank in zip(best_first(scored.scores, hits), ranks, strict=True):
            record = {
                "caption": scored.captions[query],
                "clips": [scored.clips[clip] for clip in owners[query]],
                "rank": float(rank[0]),
                "hits": [{"clip": scored.clips[clip], "score": score} for clip, score in top],
            }
            if path.suffix == ".csv":
                cells = [cell for hit in record["hits"] for cell in (hit["clip"], hit["score"])]
                handle.write(_csv_line([record["caption"], ";".join(record["clips"]), record["rank"], *cells]))
            else:
                handle.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_run(path: Path, scored: ScoredSplit, *, tag: str, hits: int = RUN_DEPTH) -> None:
    """Write a TREC run, ``query Q0 clip rank score tag``, and its ground truth as ``.qrels`` beside it.

    Queries are ``q0``, ``q1``, ...; ``.queries.tsv`` holds their texts. Since spaces separate fields, white space and
    ``%`` in clip ids are percent-encoded: ``my%20video``.

    Raises:
        AmexError: if a file cannot be written.
    """
    names = [trec_name(clip) for clip in scored.clips]
    with write_atomic(path, AmexError) as handle:
        for query, top in best_first(scored.scores, hits):
            for rank, (clip, score) in enumerate(top, start=1):
                handle.write(f"q{query} Q0 {names[clip]} {rank} {score!r} {trec_name(tag)}\n")
    with write_atomic(path.with_suffix(".qrels"), AmexError) as handle:
        for query, owners in enumerate(scored.truth.videos):
            handle.writelines(f"q{query} 0 {names[clip]} 1\n" for clip in owners)
    with write_atomic(path.with_suffix(".queries.tsv"), AmexError) as handle:
        handle.writelines(f"q{query}\t{' '.join(text.split())}\n" for query, text in enumerate(scored.captions))


def trec_name(name: str) -> str:
    """Percent-encode white space in a name; different names stay different."""
    return quote(name, safe="".join(set(string.punctuation) - {"%"}))


def best_first(scores: Scores, hits: int) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """Yield every caption number with its ``hits`` best clips and their scores, in order."""
    for begin, block in scores.rows():
        order = block.argsort(dim=1, descending=True, stable=True)[:, :hits]
        values = block.gather(1, order)
        for row, (places, scores_of_row) in enumerate(zip(order.tolist(), values.tolist(), strict=True)):
            yield begin + row, list(zip(places, scores_of_row, strict=True))


def _csv_line(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
