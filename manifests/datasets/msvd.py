"""MSVD (Chen and Dolan, ACL 2011): 1,970 YouTube clips with about forty English captions each."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..annotations import AnnotationFile, Annotations
from ..clip import Clip
from ..published import checked_layout, read_entries, read_names, texts
from .base import Dataset, Protocol, whole_video_clips

# X-Pool's repository has the lists of Venugopalan et al. and the captions of all clips.
XPOOL = "https://raw.githubusercontent.com/layer6ai-labs/xpool/bc88718199007d395136adc99a3e69adbee874a0/data/MSVD"


def list_file(name: str, sha256: str) -> AnnotationFile:
    return AnnotationFile(name=name, url=f"{XPOOL}/{name}", sha256=sha256)


LISTS = {
    "train": list_file("train_list.txt", "abfb8ab5660b464cf547d63a37a369920ff92c5f547af80f07aedd709df335d3"),
    "val": list_file("val_list.txt", "9527cf1ef6c8fe2fb1ecfda0e1856acc563fecef5ff0a409b5d908b65c1e6ed4"),
    "test": list_file("test_list.txt", "95eacd1fddb1d88cd7144267913ef02d0ecb8cc94a88bc484035433a2d8f9c7a"),
}
CAPTIONS = list_file("captions_msvd.json", "11bc68e8441438121c1c7321526ef1d1fc6553d3b801baef1cca1d3429e306b1")
# The same captions in the format of CLIP4Clip and others: lists of words.
PICKLED = "raw-captions.pkl"


class PlainUnpickler(pickle.Unpickler):
    """Unpickles only numbers, texts and containers. Refuses everything that could execute code."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it contains more than texts: {module}.{name}")


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Yield a clip per video, because the videos are published as clips."""
    captions: dict[str, list[str]] = {}
    if path := annotations.find(CAPTIONS.name):
        with checked_layout(path):
            captions = {video: texts(sentences) for video, sentences in read_entries(path, dict).items()}
    elif path := annotations.find(PICKLED):
        captions = read_pickled(path)
    for split, file in LISTS.items():
        path = annotations[file.name]
        yield from whole_video_clips(path, split, read_names(path), captions)


def read_pickled(path: Path) -> dict[str, list[str]]:
    with checked_layout(path), path.open("rb") as handle:
        captions = PlainUnpickler(handle).load()
        return {video: [" ".join(words) for words in sentences] for video, sentences in captions.items()}


DATASET = Dataset(
    name="msvd",
    title="MSVD (Chen and Dolan, ACL 2011): YouTube clips of about 10 s, some 40 captions each",
    takes="the folder with train_list.txt, val_list.txt, test_list.txt and, for captions, captions_msvd.json or "
    "raw-captions.pkl",
    build=build,
    protocols={
        "standard": Protocol(
            help="the split of Venugopalan et al. (ICCV 2015); every caption is a query",
            clips={"train": 1_200, "val": 100, "test": 670},
            captions={"train": 48_774, "val": 4_290, "test": 27_763},
            files=tuple(LISTS.values()),
            optional=(CAPTIONS,),
            known="counted",
        ),
    },
    videos="YouTubeClips.tar of www.cs.utexas.edu/users/ml/clamp/videoDescription, cut clips named ID_START_END.avi.",
)
