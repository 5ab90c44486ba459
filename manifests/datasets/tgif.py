"""TGIF (Li et al., CVPR 2016): animated GIFs of Tumblr with one sentence each, or three in the test split."""

from __future__ import annotations

from collections.abc import Iterator

from ..annotations import AnnotationFile, Annotations
from ..clip import Clip
from ..published import read_names, read_table
from .base import Dataset, Protocol, whole_video_clips

RELEASE = "https://raw.githubusercontent.com/raingo/TGIF-Release/3e54d2f71418d8a2e9f5f61aa5be0edb9c0ac2b8/data"
HYBRID = "https://github.com/danieljf24/hybrid_space/tree/master/dataset"
SENTENCES = AnnotationFile(name="tgif-v1.0.tsv", url=f"{RELEASE}/tgif-v1.0.tsv")


def official_list(split: str, sha256: str = "") -> AnnotationFile:
    return AnnotationFile(name=f"{split}.txt", url=f"{RELEASE}/splits/{split}.txt", sha256=sha256)


def list_file(whose: str, split: str) -> AnnotationFile:
    return AnnotationFile(
        name=f"{whose}_{split}.txt",
        url=HYBRID,
        note=f"whose caption archive for TGIF-{whose.capitalize()} has the GIFs of {split}: one a line, by name or by "
        "address, or its lines of captions as they are",
    )


LISTS = {
    "official": {
        "train": official_list("train"),
        "val": official_list("val", "c535500e8d2b4ad5555c7c947652f5920045f601b8dd3f1e52b33703bf5c7d0a"),
        "test": official_list("test", "1aaa17768fd8d1e21433d4e36cb2f2a0e8b4d170da4b697e27340904fc77c1f7"),
    },
    "chen": {split: list_file("chen", split) for split in ("train", "val", "test")},
    "li": {split: list_file("li", split) for split in ("train", "val", "test")},
}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Yield a clip per GIF; its id is its file name, the same in all protocols."""
    captions: dict[str, list[str]] = {}
    if path := annotations.find(SENTENCES.name):
        for address, sentence in read_table(path, 2):
            captions.setdefault(gif_name(address), []).append(sentence)
    for split, file in LISTS[protocol].items():
        path = annotations[file.name]
        yield from whole_video_clips(path, split, map(gif_name, read_names(path)), captions)


def gif_name(line: str) -> str:
    """Return the name of a GIF without extension, from its address, its name, or a line ``NAME#NUMBER SENTENCE``."""
    return line.split()[0].partition("#")[0].rpartition("/")[2].removesuffix(".gif")


COUNTED = "github.com/danieljf24/hybrid_space, dataset/README.md"

DATASET = Dataset(
    name="tgif",
    title="TGIF (Li et al., CVPR 2016): animated GIFs of about 3 s, one sentence each, three in test",
    takes="the folder with train.txt, val.txt, test.txt (or the lists chen_train.txt ...) and, for captions, "
    "tgif-v1.0.tsv",
    build=build,
    protocols={
        "official": Protocol(
            help="the split of the release, including GIFs that are offline now",
            clips={"train": 80_000, "val": 10_708, "test": 11_360},
            files=tuple(LISTS["official"].values()),
            optional=(SENTENCES,),
            known="read",
            source="github.com/raingo/TGIF-Release, data/README.md and data/splits: 102,068 GIFs, val and test counted",
        ),
        "chen": Protocol(
            help="HGR's split (Chen et al., CVPR 2020): the GIFs that its authors could download",
            clips={"train": 79_451, "val": 10_651, "test": 11_310},
            captions={"train": 80_295, "val": 10_774, "test": 33_951},
            files=tuple(LISTS["chen"].values()),
            optional=(SENTENCES,),
            known="read",
            source=COUNTED,
        ),
        "li": Protocol(
            help="the split of SEA (Li et al., TMM 2020): the GIFs that its authors could download",
            clips={"train": 78_799, "val": 10_705, "test": 11_351},
            captions={"train": 79_632, "val": 10_828, "test": 34_074},
            files=tuple(LISTS["li"].values()),
            optional=(SENTENCES,),
            known="read",
            source=COUNTED,
        ),
    },
    videos="GIFs by the addresses in tgif-v1.0.tsv, named as there (tumblr_..._400.gif); some are gone.",
)
