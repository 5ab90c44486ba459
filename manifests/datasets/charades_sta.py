"""Charades-STA (Gao et al., ICCV 2017): sentences with one moment each in videos of people at home."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...foreign import read_lines, reading
from ..annotations import AnnotationFile, Annotations
from ..clip import Clip, ManifestError, Problem
from ..moments import Query, clips_of_queries
from .base import Dataset, Protocol

# The authors' links lead to pages of a file host; 2D-TAN has a copy of the files.
COPY = (
    "https://raw.githubusercontent.com/microsoft/VideoX/1744b2159c3d11694f94dab4fcde8660c685e79a/2D-TAN/data/"
    "Charades-STA/"
)
FILES = {
    "train": AnnotationFile(
        name="charades_sta_train.txt",
        url=f"{COPY}charades_sta_train.txt",
        sha256="47ec9b6b488fca753373d9cc29b07a959f7237a922cb29463cd088cd6198e805",
    ),
    "test": AnnotationFile(
        name="charades_sta_test.txt",
        url=f"{COPY}charades_sta_test.txt",
        sha256="fab341679c20b0917173dcffffde367a71113fe63f3a645558cef2ebfbfefb55",
    ),
}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip | Problem]:
    """Yield a clip per video. The files have no durations, so a moment may end after its video."""
    for split, file in FILES.items():
        yield from clips_of_queries(read_queries(annotations[file.name]), split)


def read_queries(path: Path) -> Iterator[Query]:
    """Yield queries from lines such as ``3MSZA 24.3 30.4##person turn a light on.``. Raises ManifestError."""
    for number, (where, line) in enumerate(read_lines(path, ManifestError), start=1):
        if not line.strip():
            continue
        with reading(where, ManifestError, "is not VIDEO START END##SENTENCE"):
            place, _, sentence = line.decode().strip().partition("##")
            video, start, end = place.split()
            windows = [[float(start), float(end)]]
        yield Query(video=video, text=sentence, windows=windows, file=path.name, line=number)


DATASET = Dataset(
    name="charades_sta",
    title="Charades-STA (Gao et al., ICCV 2017): moments of videos of 30 s of people at home",
    takes="the folder with charades_sta_train.txt and charades_sta_test.txt",
    build=build,
    protocols={
        "official": Protocol(
            help="a clip is a whole video, its captions are the queries, each with one moment",
            clips={"train": 5_338, "test": 1_334},
            captions={"train": 12_408, "test": 3_720},
            files=tuple(FILES.values()),
            known="counted",
            source="2D-TAN's copy of train has 4 lines that end before they begin; another copy has them corrected",
        )
    },
    videos="The videos of Charades, named ID.mp4: Charades_v1_480.zip of prior.allenai.org/projects/charades.",
)
