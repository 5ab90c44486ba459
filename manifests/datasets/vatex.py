"""VATEX (Wang et al., ICCV 2019): clips of ten seconds with ten English captions each, under three splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..annotations import AnnotationFile, Annotations
from ..clip import Clip
from ..published import checked_layout, read_entries, read_names, texts
from .base import Dataset, Protocol, whole_video_clips

OFFICIAL = "https://eric-xw.github.io/vatex-website/data"
# CLIP2Video's repository has the ids of HGR's split; HGR itself released only a folder of arrays.
CLIP2VIDEO = (
    "https://raw.githubusercontent.com/CryhanFang/CLIP2Video/e94131800a3a1434f6d00b89b7301d741db8ba06/data/vatex_data"
)


def release_file(name: str) -> AnnotationFile:
    return AnnotationFile(name=name, url=f"{OFFICIAL}/{name}")


def list_file(name: str, sha256: str) -> AnnotationFile:
    return AnnotationFile(name=name, url=f"{CLIP2VIDEO}/{name}", sha256=sha256)


TRAIN = release_file("vatex_training_v1.0.json")
VALIDATION = release_file("vatex_validation_v1.0.json")
PUBLIC_TEST = release_file("vatex_public_test_english_v1.1.json")
TRAIN_LIST = list_file("train_list.txt", "4434a6863540f638cd5c62b7497f9ac13ea5ab84da72b7928e507ee0c5f46f22")
VAL_LIST = list_file("val_list.txt", "223d6d6b0b8c88f093ac1942e1165ae6d21a982362252ba574059e1a27083066")
TEST_LIST = list_file("test_list.txt", "652fd9bbfe53d53935b292b0e4127bc8e41cae6846b3c9faa4f502d96f160a42")
RANDOM_LIST = list_file("test1k5_sec_list.txt", "20f22ab90daa192f17c18672bf4afc36f6a62c8edf2e55d0dce7f57fb11111dc")
# Both protocols divide the official validation videos into halves. Neither uses the official test videos.
LISTS = {
    "hgr": {"train": TRAIN_LIST, "val": VAL_LIST, "test": TEST_LIST},
    "clip2video": {"train": TRAIN_LIST, "test": RANDOM_LIST},
}
FILES = {"train": TRAIN, "val": VALIDATION, "test": PUBLIC_TEST}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Yield a clip per video, because the available videos are clips. Extraction needs only the lists."""
    if protocol == "official":
        for split, file in FILES.items():
            path = annotations[file.name]
            captions = read_captions(path)
            yield from whole_video_clips(path, split, captions, captions)
        return
    captions = {}
    for file in (TRAIN, VALIDATION):
        if path := annotations.find(file.name):
            captions |= read_captions(path)
    for split, file in LISTS[protocol].items():
        path = annotations[file.name]
        yield from whole_video_clips(path, split, read_names(path), captions)


def read_captions(path: Path) -> dict[str, list[str]]:
    """Return the English captions of a file, by video id."""
    with checked_layout(path):
        return {entry["videoID"]: texts(entry["enCap"]) for entry in read_entries(path, list)}


DATASET = Dataset(
    name="vatex",
    title="VATEX (Wang et al., ICCV 2019): clips of 10 s, ten English captions each",
    takes="the folder with train_list.txt, val_list.txt, test_list.txt and, for captions, vatex_training_v1.0.json and "
    "vatex_validation_v1.0.json",
    build=build,
    protocols={
        "hgr": Protocol(
            help="HGR's split (Chen et al., CVPR 2020): the official validation videos, halved",
            clips={"train": 25_991, "val": 1_500, "test": 1_500},
            captions={"train": 259_910, "val": 15_000, "test": 15_000},
            files=tuple(LISTS["hgr"].values()),
            optional=(TRAIN, VALIDATION),
            known="counted",
            source="captions read: github.com/danieljf24/hybrid_space, dataset/README.md",
        ),
        "clip2video": Protocol(
            help="another half of the official validation videos as the test split, drawn by CLIP2Video's authors",
            clips={"train": 25_991, "test": 1_500},
            captions={"train": 259_910, "test": 15_000},
            files=tuple(LISTS["clip2video"].values()),
            optional=(TRAIN, VALIDATION),
            known="counted",
            source="captions read: github.com/danieljf24/hybrid_space, dataset/README.md",
        ),
        "official": Protocol(
            help="the splits as published, with the public test videos",
            clips={"train": 25_991, "val": 3_000, "test": 6_000},
            captions={"train": 259_910, "val": 30_000, "test": 60_000},
            files=tuple(FILES.values()),
        ),
    },
    videos="YouTube videos by id and time, cut and named as the annotations name them, ID_000010_000020.mp4. Many are "
    "offline: copies are those of Kinetics-600.",
)
