"""MSR-VTT (Xu et al., CVPR 2016): 10,000 web clips with 20 captions each, under its four published splits."""

from __future__ import annotations

from collections.abc import Iterator

from ..annotations import AnnotationFile, Annotations
from ..clip import Clip, ManifestError
from .base import Dataset, Protocol, read_csv, read_json

# CLIP4Clip's release has the lists of 1k-A and the captions of all clips in one file.
CLIP4CLIP = "https://github.com/ArrowLuo/CLIP4Clip/releases/download/v0.0/msrvtt_data.zip"
COLLABORATIVE = "https://github.com/albanie/collaborative-experts/tree/master/misc/datasets/msrvtt"
CAPTIONS = AnnotationFile(name="MSRVTT_data.json", url=CLIP4CLIP, member="msrvtt_data/MSRVTT_data.json")
# The same captions travel as one file (CLIP4Clip and others) or as the two official ones.
CAPTION_FILES = (CAPTIONS.name, "train_val_videodatainfo.json", "test_videodatainfo.json")


def released(name: str, sha256: str) -> AnnotationFile:
    return AnnotationFile(name=name, url=CLIP4CLIP, member=f"msrvtt_data/{name}", sha256=sha256)


def listed(name: str) -> AnnotationFile:
    return AnnotationFile(name=name, url=COLLABORATIVE)


JSFUSION = released("MSRVTT_JSFUSION_test.csv", "e61144b312c8a2fc2126f96504c981f8c23c05b3ba9655a56e2af50ac8a4b16a")
TRAIN_9K = released("MSRVTT_train.9k.csv", "0a7ece2418e1f7ac5680555a04ddfef8950293ac3c4bdd6584fb0fa6cc0ff7d3")
TRAIN_7K = released("MSRVTT_train.7k.csv", "ca0d04c34310168b620c90c67eaec702b37398943965f5e1f9f44af8f193da7d")
# protocol -> split -> the list file that defines it. 1k-A is JSFusion's test set, whose fixed captions are in its file;
# 1k-B is Miech's, whose queries are the first caption of each video.
LISTS: dict[str, dict[str, AnnotationFile]] = {
    "1k-A": {"train": TRAIN_9K, "test": JSFUSION},
    "7k": {"train": TRAIN_7K, "test": JSFUSION},
    "full": {split: listed(f"MSRVTT_{split}.full.csv") for split in ("train", "val", "test")},
    "1k-B": {split: listed(f"{split}_list_miech.txt") for split in ("train", "test")},
}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Whole-video clips. Captions are there where a caption file is; extraction needs none.

    Only ``full`` has a list for validation.
    """
    if not annotations.path.is_dir():
        raise ManifestError(f"{annotations.path} is not a folder; --annotations takes {DATASET.takes}")
    captions: dict[str, list[str]] = {}
    for name in CAPTION_FILES:
        if path := annotations.find(name):
            for entry in read_json(path)["sentences"]:
                captions.setdefault(entry["video_id"], []).append(entry["caption"])
    for split, file in LISTS[protocol].items():
        path = annotations[file.name]
        if file is JSFUSION:
            chosen = {row["video_id"]: [row["sentence"]] for row in read_csv(path, "video_id", "sentence")}
        elif file.name.endswith(".csv"):
            chosen = {row["video_id"]: captions.get(row["video_id"], []) for row in read_csv(path, "video_id")}
        else:
            chosen = {video: captions.get(video, []) for video in path.read_text(encoding="utf-8").split()}
            if split == "test":
                chosen = {video: texts[:1] for video, texts in chosen.items()}
        for video, texts in chosen.items():
            yield Clip(clip_id=video, video=video, split=split, captions=tuple(texts))


def split_by_lists(name: str, about: str, clips: dict[str, int], captions: dict[str, int]) -> Protocol:
    files = tuple(LISTS[name].values())
    return Protocol(help=about, clips=clips, captions=captions, files=files, optional=(CAPTIONS,), known="counted")


PROTOCOLS = {
    "1k-A": (
        "JSFusion's 1,000 test clips with one fixed caption each (Yu et al., ECCV 2018); trained on 9,000",
        {"train": 9_000, "test": 1_000},
        {"train": 180_000, "test": 1_000},
    ),
    "7k": (
        "the test clips of 1k-A, trained on the 7,010 of the first papers",
        {"train": 7_010, "test": 1_000},
        {"train": 140_200, "test": 1_000},
    ),
    "full": (
        "the official split; every caption is a query",
        {"train": 6_513, "val": 497, "test": 2_990},
        {"train": 130_260, "val": 9_940, "test": 59_800},
    ),
    "1k-B": (
        "Miech's 1,000 test clips with their first caption",
        {"train": 6_656, "test": 1_000},
        {"train": 133_120, "test": 1_000},
    ),
}

DATASET = Dataset(
    name="msrvtt",
    title="MSR-VTT (Xu et al., CVPR 2016): 10,000 web clips of 10 to 30 s, 20 captions each",
    takes="the folder with the split lists (MSRVTT_train.9k.csv, ...) and, for captions, MSRVTT_data.json",
    build=build,
    protocols={name: split_by_lists(name, *published) for name, published in PROTOCOLS.items()},
    videos="The official archives are offline; MSRVTT.zip of the frozen-in-time project has all 10,000 clips.",
)
