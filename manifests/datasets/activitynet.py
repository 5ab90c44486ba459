"""ActivityNet Captions (Krishna et al., ICCV 2017): videos of two minutes with sentences for parts of them."""

from __future__ import annotations

from collections.abc import Iterator

from ..annotations import AnnotationFile, Annotations
from ..clip import Clip, Problem
from ..published import checked_layout, read_entries
from .base import Dataset, Protocol

# Copies of the files of the published archive.
TAN = "https://raw.githubusercontent.com/microsoft/2D-TAN/2f7410f0de5e764ac7d84817f173732ef34e1545/data/ActivityNet"
PDVC = "https://raw.githubusercontent.com/ttengwang/PDVC/0b025c84f42fe27da51c312e8871c4b19628a04c/data/anet/captiondata"
TRAIN = AnnotationFile(
    name="train.json",
    url=f"{TAN}/train.json",
    sha256="704536b2779011c1a729c927ae30e39ea9c90c38557836bbe969499917243d69",
)
TESTS = {
    "val_1": AnnotationFile(
        name="val_1.json",
        url=f"{PDVC}/val_1.json",
        sha256="466aaccb9ebe45c6db4c98488a4ddbeb5b22faffe62e1bbce81222c14fc29e1c",
    ),
    "val_2": AnnotationFile(
        name="val_2.json",
        url=f"{PDVC}/val_2.json",
        sha256="08fe56568bc92dd02a6150fe1094457a5f2ac72975b8778a922bc9a65aa7f0e9",
    ),
}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip | Problem]:
    """Yield a clip per video with all sentences as one query, or a clip per sentence.

    The id of a clip per sentence has the times, so val_1 and val_2 share features of the same seconds.
    """
    test, kind = protocol.split("-")
    for split, file in (("train", TRAIN), ("test", TESTS[test])):
        path = annotations[file.name]
        with checked_layout(path):
            for video, entry in read_entries(path, dict).items():
                sentences = list(zip(entry["timestamps"], entry["sentences"], strict=True))
                if kind == "clips":
                    yield from sentence_clips(path.name, video, split, sentences)
                    continue
                paragraph = " ".join(sentence.strip() for _, sentence in sorted(sentences, key=lambda timed: timed[0]))
                yield Clip(clip_id=video, video=video, split=split, captions=(paragraph,))


def sentence_clips(file: str, video: str, split: str, sentences: list) -> Iterator[Clip | Problem]:
    """Yield a clip for each sentence of a video: ``[((start, end), text), ...]``."""
    counts: dict[str, int] = {}
    for (start, end), sentence in sentences:
        if end <= start:
            yield Problem(
                file=file, reason=f"{video}: a sentence of [{start}, {end}), which does not end after it starts"
            )
            continue
        clip_id = f"{video}_{float(start)}_{float(end)}"
        counts[clip_id] = counts.get(clip_id, 0) + 1
        if counts[clip_id] > 1:  # two sentences of the same seconds are two queries
            clip_id += f"_{counts[clip_id]}"
        yield Clip(clip_id=clip_id, video=video, start=start, end=end, split=split, captions=(sentence.strip(),))


def protocol(test: str, about: str, train: int, size: int) -> Protocol:
    counts = {"train": train, "test": size}
    return Protocol(help=about, clips=counts, captions=counts, files=(TRAIN, TESTS[test]), known="counted")


PARAGRAPHS = "a video's sentences in time order are one query for the whole video"
CLIPS = "every sentence is a query for its seconds; 4 of train's 37,421 do not end after they start and are left out"

DATASET = Dataset(
    name="activitynet",
    title="ActivityNet Captions (Krishna et al., ICCV 2017): videos of 2 min, about four sentences each",
    takes="the folder with train.json, val_1.json and val_2.json",
    build=build,
    protocols={
        "val_1-paragraphs": protocol("val_1", f"{PARAGRAPHS}; as CE and CLIP4Clip", 10_009, 4_917),
        "val_2-paragraphs": protocol("val_2", f"{PARAGRAPHS}; the second annotators'", 10_009, 4_885),
        "val_1-clips": protocol("val_1", CLIPS, 37_417, 17_505),
        "val_2-clips": protocol("val_2", f"{CLIPS}; the second annotators'", 37_417, 17_031),
    },
    videos="YouTube videos named v_ID.mp4; activity-net.org/download.html has all of them after a form.",
)
