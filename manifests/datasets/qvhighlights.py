"""QVHighlights (Lei et al., NeurIPS 2021): queries with several moments, and saliency scores for clips of 2 s."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import plural
from ...foreign import read_json_lines, reading
from ..annotations import AnnotationFile, Annotations
from ..clip import Clip, ManifestError, Problem
from ..moments import Query, clips_of_queries
from .base import Dataset, Protocol

REPOSITORY = "https://raw.githubusercontent.com/jayleicn/moment_detr/b7e553ac3b0c898ee6b85e03ee507c064eab89ca/data/"
ANNOTATORS, MOST = 3, 4
GRID = 2.0  # seconds


def release_file(name: str, sha256: str) -> AnnotationFile:
    return AnnotationFile(name=name, url=f"{REPOSITORY}{name}", sha256=sha256)


FILES = {
    "train": release_file(
        "highlight_train_release.jsonl", "fd28404187468f57cf99242be2963127dc9b4aef26c7de3cb9469569801f2625"
    ),
    "val": release_file(
        "highlight_val_release.jsonl", "f668a1eaea156ec5315e14718999cea043a8cf948d3cafbd8e8d655318c3cd02"
    ),
    "test": release_file(
        "highlight_test_with_gt.jsonl", "bd50ec6bb5dd3f72571126ba5fdc7418efdd9219a9487984e483a02e2ce5d493"
    ),
}
# The queries of test without moments: the public file while the moments were on a server.
QUERIES = "highlight_test_release.jsonl"


def build(annotations: Annotations, protocol: str) -> Iterator[Clip | Problem]:
    """Yield a clip per video; the videos are parts of at most 150 s of longer videos.

    Extras: ``query_ids``, and ``saliency`` if it is published: for every query the numbers of 2-s ``clips`` and the
    three ``scores`` of each, from 0 (very bad) to 4 (very good). If only the public file of test exists, its queries
    have no moments.
    """
    for split, file in FILES.items():
        path = annotations.find(file.name)
        if path is None and split == "test":
            path = annotations.find(QUERIES)
        yield from clips_of_queries(read_queries(path or annotations[file.name]), split)


def read_queries(path: Path) -> Iterator[Query]:
    for number, (where, record) in enumerate(read_json_lines(path, ManifestError), start=1):
        with reading(where, ManifestError, "is not a query of QVHighlights"):
            answered = "relevant_windows" in record
            query = Query(
                video=record["vid"],
                text=record["query"],
                windows=list(record["relevant_windows"]) if answered else (),
                file=path.name,
                line=number,
                duration=float(record["duration"]),
                extras={"query_ids": record["qid"], "saliency": saliency(record) if answered else None},
            )
        yield query


def saliency(record: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of the 2-s clips with scores, and their scores. Raises ValueError if they are invalid."""
    clips, scores = record["relevant_clip_ids"], record["saliency_scores"]
    last = int(record["duration"] / GRID) - 1
    if len(clips) != len(scores):
        raise ValueError(f"{plural(len(clips), 'clip')} for {len(scores)} saliency scores")
    if outside := [clip for clip in clips if clip not in range(last + 1)]:
        raise ValueError(f"clip {outside[0]!r} has saliency scores, but the last clip of the video is {last}")
    for score in scores:
        if len(score) != ANNOTATORS or not all(each in range(MOST + 1) for each in score):
            raise ValueError(f"saliency scores must be {ANNOTATORS} of 0 to {MOST}, got {score!r}")
    return {"clips": list(map(int, clips)), "scores": scores}


DATASET = Dataset(
    name="qvhighlights",
    title="QVHighlights (Lei et al., NeurIPS 2021): moments and highlights of YouTube videos cut to 150 s",
    takes="the folder with highlight_train_release.jsonl, highlight_val_release.jsonl and highlight_test_with_gt.jsonl",
    build=build,
    protocols={
        "official": Protocol(
            help="a clip is a whole video, its captions are the queries, with one moment or several, and saliency",
            clips={"train": 7_100, "val": 1_519, "test": 1_529},
            captions={"train": 7_218, "val": 1_550, "test": 1_542},
            files=tuple(FILES.values()),
            known="counted",
        )
    },
    videos="nlp.cs.unc.edu/data/jielei/qvh/qvhilights_videos.tar.gz has all of them, named YOUTUBEID_START_END.mp4.",
)
