"""TVR (Lei et al., ECCV 2020): sentences with one moment each in clips of TV series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...foreign import read_json_lines, reading
from ..annotations import AnnotationFile, Annotations
from ..clip import Clip, ManifestError, Problem
from ..moments import Query, clips_of_queries
from .base import Dataset, Protocol

REPOSITORY = "https://raw.githubusercontent.com/jayleicn/TVRetrieval/d99a9ea7e724249047d6357f2a607c7ae256f8c6/data/"
# The queries of tvr_test_public_release.jsonl have no videos and no moments, so they cannot be scored. The published
# validation split is therefore the test split.
FILES = {
    "test": AnnotationFile(
        name="tvr_val_release.jsonl",
        url=f"{REPOSITORY}tvr_val_release.jsonl",
        sha256="033d358632c5333cc5492ff308d4dd2c85f714f352bc92cd35fbae5797c5fbec",
    ),
    "train": AnnotationFile(name="tvr_train_release.jsonl", url=f"{REPOSITORY}tvr_train_release.jsonl"),
}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip | Problem]:
    """Yield a clip per video, with the ids of its queries in ``query_ids``."""
    for split, file in FILES.items():
        yield from clips_of_queries(read_queries(annotations[file.name]), split)


def read_queries(path: Path) -> Iterator[Query]:
    for number, (where, record) in enumerate(read_json_lines(path, ManifestError), start=1):
        with reading(where, ManifestError, "is not a query of TVR"):
            query = Query(
                video=record["vid_name"],
                text=record["desc"],
                windows=[record["ts"]],
                file=path.name,
                line=number,
                duration=float(record["duration"]),
                extras={"query_ids": record["desc_id"]},
            )
        yield query


DATASET = Dataset(
    name="tvr",
    title="TVR (Lei et al., ECCV 2020): moments of clips of TV series, 76 s long on average",
    takes="the folder with tvr_train_release.jsonl and tvr_val_release.jsonl",
    build=build,
    protocols={
        "official": Protocol(
            help="a clip is a whole video, its captions are the queries, each with one moment; val is the test split",
            clips={"train": 17_435, "test": 2_179},
            captions={"train": 87_175, "test": 10_895},
            files=tuple(FILES.values()),
            known="read",
            source="val is counted; train's videos are those of tvr_video2dur_idx.json, with five queries each",
        )
    },
    videos="The clips of TVQA (tvqa.cs.unc.edu), published as frames after a form; amex reads video files alone.",
)
