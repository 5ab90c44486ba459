"""What a model answers, as files for other programs: scores, ranks, runs as TREC has them."""

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
from ..storage import replacing, write_whole
from .metrics import Scores, Ties, Truth, positions

HITS, RUN_DEPTH = 10, 1000


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores of a split's captions and clips, with what belongs together.

    Attributes:
        captions: the text of each query, (queries,).
        clips: the id of each clip, (clips,).
    """

    scores: Scores
    truth: Truth
    captions: Sequence[str]
    clips: Sequence[str]


Writer = Callable[[Judged], None]


def write_scores(path: Path, judged: Judged) -> None:
    """As npz: ``scores`` (captions, clips) float32, ``captions`` and ``clips`` as text, ``pairs`` (pairs, 2) int64.

    A pair is the number of a caption and that of a clip that it belongs to. Scores are written a block at a time.
    """
    pairs = [(caption, clip) for clip, own in enumerate(judged.truth.captions) for caption in own]
    arrays = {
        "captions": np.array(judged.captions),
        "clips": np.array(judged.clips),
        "pairs": np.array(pairs, np.int64),
    }
    header = {"descr": "<f4", "fortran_order": False, "shape": judged.scores.shape}
    try:
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            with file.open("scores.npy", "w", force_zip64=True) as handle:
                np.lib.format.write_array_header_1_0(handle, header)
                for _, block in judged.scores.rows():
                    handle.write(np.ascontiguousarray(block.numpy(), "<f4").data)
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as handle:
                    np.lib.format.write_array(handle, array, allow_pickle=False)
    except OSError as error:
        raise AmexError(f"cannot write {path}: {error.strerror or first_line(error)}") from error


def check_ranks(path: Path) -> None:
    """Raises AmexError if the ending of a file's name does not say how ranks are to be written."""
    if path.suffix not in (".csv", ".jsonl"):
        raise AmexError(f"--ranks {path}: the name must end in .csv or .jsonl, which is how it is written")


def write_ranks(path: Path, judged: Judged, *, ties: Ties = "mean", hits: int = HITS) -> None:
    """A line a caption: the clips it belongs to, the rank of the best of them, and the first ``hits`` of the ranking.

    As JSON lines, or as CSV where ``path`` ends in ``.csv``. A rank is a position as of ``metrics.positions``, so that
    it may end in .5; hits of equal scores stand in the order of the clips.

    Raises:
        AmexError: if ``path`` ends in neither, or cannot be written.
    """
    check_ranks(path)
    owners = judged.truth.videos
    ranks = positions(judged.scores, owners, ties, text_to_video=True)
    hits = min(hits, len(judged.clips))
    with write_whole(path, AmexError) as handle:
        if path.suffix == ".csv":
            numbers = range(1, hits + 1)
            handle.write(
                _csv_line(["caption", "clips", "rank", *(f"{kind} {n}" for n in numbers for kind in ("hit", "score"))])
            )
        for (query, found), rank in zip(best_first(judged.scores, hits), ranks, strict=True):
            record = {
                "caption": judged.captions[query],
                "clips": [judged.clips[clip] for clip in owners[query]],
                "rank": float(rank[0]),
                "hits": [{"clip": judged.clips[clip], "score": score} for clip, score in found],
            }
            if path.suffix == ".csv":
                cells = [cell for hit in record["hits"] for cell in (hit["clip"], hit["score"])]
                handle.write(_csv_line([record["caption"], ";".join(record["clips"]), record["rank"], *cells]))
            else:
                handle.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_run(path: Path, judged: Judged, *, tag: str, hits: int = RUN_DEPTH) -> None:
    """A run as TREC has it, ``query Q0 clip rank score tag``, with what belongs together as ``.qrels`` beside it.

    Queries are ``q0``, ``q1``, ...; their texts are beside it too, as ``.queries.tsv``. White space and ``%`` in ids of
    clips are written as in addresses, ``my%20video``: fields are separated by spaces.

    Raises:
        AmexError: if a file cannot be written.
    """
    names = [trec_name(clip) for clip in judged.clips]
    with write_whole(path, AmexError) as handle:
        for query, found in best_first(judged.scores, hits):
            for rank, (clip, score) in enumerate(found, start=1):
                handle.write(f"q{query} Q0 {names[clip]} {rank} {score!r} {trec_name(tag)}\n")
    with write_whole(path.with_suffix(".qrels"), AmexError) as handle:
        for query, owners in enumerate(judged.truth.videos):
            handle.writelines(f"q{query} 0 {names[clip]} 1\n" for clip in owners)
    with write_whole(path.with_suffix(".queries.tsv"), AmexError) as handle:
        handle.writelines(f"q{query}\t{' '.join(text.split())}\n" for query, text in enumerate(judged.captions))


def trec_name(name: str) -> str:
    """A name without white space; different names stay different."""
    return quote(name, safe="".join(set(string.punctuation) - {"%"}))


def best_first(scores: Scores, hits: int) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """For every caption in turn its number, and the ``hits`` best clips with their scores."""
    for begin, block in scores.rows():
        order = block.argsort(dim=1, descending=True, stable=True)[:, :hits]
        values = block.gather(1, order)
        for row, (places, found) in enumerate(zip(order.tolist(), values.tolist(), strict=True)):
            yield begin + row, list(zip(places, found, strict=True))


def _csv_line(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
