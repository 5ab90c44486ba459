"""DiDeMo (Hendricks et al., ICCV 2017): Flickr videos; the sentences of a video are joined to one paragraph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from ..annotations import AnnotationFile, Annotations
from ..clip import Clip
from ..published import checked_layout, read_entries, read_names
from .base import Dataset, Protocol, whole_video_clips

AUTHORS = "https://raw.githubusercontent.com/LisaAnne/LocalizingMoments/b6a555c8134581305d0ed4716fbc192860e0b88c/data"
COLLABORATIVE = (
    "https://raw.githubusercontent.com/albanie/collaborative-experts/7eb3b9d362ee313a78cd0a2793c3b6470f8e78f3"
    "/misc/datasets/didemo"
)


def list_file(name: str, sha256: str) -> AnnotationFile:
    return AnnotationFile(name=name, url=f"{COLLABORATIVE}/{name}", sha256=sha256)


def sentence_file(name: str, sha256: str = "") -> AnnotationFile:
    return AnnotationFile(name=name, url=f"{AUTHORS}/{name}", sha256=sha256)


LISTS = {
    "train": list_file("train_list.txt", "ed8fb2e66ef4ff73caec80167836dc7965d5b1dc8982990952f47bb28f68e507"),
    "val": list_file("val_list.txt", "992923d0c9d0fcea8eb9b3ed5ba16a2f41b8c422872c92be824f1cd0a371b93e"),
    "test": list_file("test_list.txt", "371f608f2c4984caa794ccfa40276069e209c2a0ea26a78acdad0613f4f61a2c"),
}
SENTENCES = {
    "train": sentence_file("train_data.json"),
    "val": sentence_file("val_data.json", "b0364cc256553332feb19d46bcc4cd2b09774949fe6c0b25e7ed0ff3c6aefebb"),
    "test": sentence_file("test_data.json", "1891c04ec48b3d364c739594b2b6413806b74bd9027c092d896e7ebb930ff1cd"),
}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Yield a clip per video; its query is the paragraph of all its sentences."""
    for split, file in LISTS.items():
        path, sentences = annotations[file.name], annotations.find(SENTENCES[split].name)
        paragraphs = read_paragraphs(sentences) if sentences else {}
        yield from whole_video_clips(path, split, map(stem, read_names(path)), paragraphs)


def read_paragraphs(path: Path) -> dict[str, list[str]]:
    """Return the paragraph of each video: its sentences, sorted by the mean time of the annotators."""
    sentences: dict[str, list[tuple[float, float, str]]] = {}
    with checked_layout(path):
        for entry in read_entries(path, list):
            starts, ends = zip(*entry["times"], strict=True)
            timed = (mean(starts), mean(ends), entry["description"].strip())
            sentences.setdefault(stem(entry["video"]), []).append(timed)
    return {
        video: [" ".join(text for *_, text in sorted(timed, key=lambda sentence: sentence[:2]))]
        for video, timed in sentences.items()
    }


def stem(name: str) -> str:
    """Return the id of a video. Some names in the files have two extensions, others end with a dot."""
    return name.rpartition(".")[0] or name


DATASET = Dataset(
    name="didemo",
    title="DiDeMo (Hendricks et al., ICCV 2017): Flickr videos of half a minute, about four sentences each",
    takes="the folder with train_list.txt, val_list.txt, test_list.txt and, for captions, train_data.json, "
    "val_data.json, test_data.json",
    build=build,
    protocols={
        "paragraphs": Protocol(
            help="a video's sentences in time order are one query; the lists of Liu et al. (BMVC 2019), with "
            "8,392 of the 8,395 released train videos",
            clips={"train": 8_392, "val": 1_065, "test": 1_004},
            captions={"train": 8_392, "val": 1_065, "test": 1_004},
            files=tuple(LISTS.values()),
            optional=tuple(SENTENCES.values()),
            known="counted",
            source="8,395: github.com/albanie/collaborative-experts, misc/datasets/didemo/README.md",
        ),
    },
    videos="download_videos_AWS.py of github.com/LisaAnne/LocalizingMoments, or the Google Drive that it names. A file "
    "whose name ends with a dot, or with .null, needs an extension such as .mp4.",
)
