"""LSMDC (Rohrbach et al., 2016): clips of films with one sentence of audio description each."""

from __future__ import annotations

from collections.abc import Iterator

from ..annotations import AnnotationFile, Annotations
from ..clip import Clip
from ..published import read_table
from .base import Dataset, Protocol, whole_video_clips


def protected_file(name: str) -> AnnotationFile:
    return AnnotationFile(
        name=name,
        url="https://sites.google.com/site/describingmovies/download",
        note="with the password that MPI sends on request",
    )


FILES = {
    "train": protected_file("LSMDC16_annos_training.csv"),
    "val": protected_file("LSMDC16_annos_val.csv"),
    "test": protected_file("LSMDC16_challenge_1000_publictect.csv"),
}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Yield a clip per video, because the films are published as clips. A clip with several rows has several captions.

    The files are tab-separated, without header: clip, aligned start and end, extracted start and end, sentence.
    """
    for split, file in FILES.items():
        captions: dict[str, list[str]] = {}
        path = annotations[file.name]
        for name, *_, sentence in read_table(path, 6):
            captions.setdefault(name, []).append(sentence)
        yield from whole_video_clips(path, split, captions, captions)


DATASET = Dataset(
    name="lsmdc",
    title="LSMDC (Rohrbach et al., 2016): film clips of about 4 s, one sentence each",
    takes="the folder with LSMDC16_annos_training.csv, LSMDC16_annos_val.csv, LSMDC16_challenge_1000_publictect.csv",
    build=build,
    protocols={
        "public-1000": Protocol(
            help="the 1,000 public test clips of the 2016 challenge",
            clips={"train": 101_079, "val": 7_408, "test": 1_000},
            files=tuple(FILES.values()),
            known="read",
            source="github.com/albanie/collaborative-experts, misc/datasets/lsmdc/README.md (train, test) and "
            "misc/cvpr2020_challenge/prepare_submission.py (val)",
        ),
    },
    videos="AVI files by clip name in a folder a film, from MPI after a request "
    "(sites.google.com/site/describingmovies).",
)
