"""MSR-VTT (Xu et al., CVPR 2016): 10,000 web clips with 20 captions each, under its published splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ...errors import plural
from ..annotations import AnnotationFile, Annotations
from ..clip import Clip, ManifestError
from ..published import checked_layout, read_json, read_names, read_rows, texts
from .base import Dataset, Protocol, whole_video_clips

# CLIP4Clip's release has the captions of all clips in one file. Other repositories have the split lists.
CLIP4CLIP = "https://github.com/ArrowLuo/CLIP4Clip/releases/download/v0.0/msrvtt_data.zip"
CLIP2VIDEO = (
    "https://raw.githubusercontent.com/CryhanFang/CLIP2Video/e94131800a3a1434f6d00b89b7301d741db8ba06/data/msrvtt_data"
)
COLLABORATIVE = (
    "https://raw.githubusercontent.com/albanie/collaborative-experts/7eb3b9d362ee313a78cd0a2793c3b6470f8e78f3"
    "/misc/datasets/msrvtt"
)
CAPTIONS = AnnotationFile(name="MSRVTT_data.json", url=CLIP4CLIP, member="msrvtt_data/MSRVTT_data.json")
# The same captions exist as one file (CLIP4Clip and others) or as the two official files.
CAPTION_FILES = (CAPTIONS.name, "train_val_videodatainfo.json", "test_videodatainfo.json")


def list_file(where: str, name: str, sha256: str) -> AnnotationFile:
    return AnnotationFile(name=name, url=f"{where}/{name}", sha256=sha256)


JSFUSION = list_file(
    CLIP2VIDEO, "MSRVTT_JSFUSION_test.csv", "e61144b312c8a2fc2126f96504c981f8c23c05b3ba9655a56e2af50ac8a4b16a"
)
TRAIN_9K = list_file(
    CLIP2VIDEO, "MSRVTT_train.9k.csv", "0a7ece2418e1f7ac5680555a04ddfef8950293ac3c4bdd6584fb0fa6cc0ff7d3"
)
TRAIN_7K = list_file(
    CLIP2VIDEO, "MSRVTT_train.7k.csv", "ca0d04c34310168b620c90c67eaec702b37398943965f5e1f9f44af8f193da7d"
)
MTEB = AnnotationFile(
    name="MSRVTT_mteb_test.csv",
    url="https://huggingface.co/datasets/mteb/MSR-VTT",
    note="whose 879 test pairs it must hold as the columns video_id (video7020) and sentence",
)
HYBRID_VAL = AnnotationFile(
    name="msrvtt10kyuval.caption.txt",
    url="https://github.com/danieljf24/hybrid_space/tree/master/dataset",
    note="in the caption archive of the partition Yu: a line 'video123#0 SENTENCE' for each clip",
)
# protocol -> split -> the file that defines it. 1k-A is JSFusion's test set; its file has the captions. 1k-B is Miech's
# test set; its queries are the first caption of each video.
LISTS: dict[str, dict[str, AnnotationFile]] = {
    "1k-A": {"train": TRAIN_9K, "test": JSFUSION},
    "7k": {"train": TRAIN_7K, "test": JSFUSION},
    "full": {
        "train": list_file(
            CLIP2VIDEO,
            "MSRVTT_train.full.csv",
            "17f7ccf211d3d679d42425454ae12e9479abf681beb3865d561a2875ef2c2578",
        ),
        "val": list_file(
            CLIP2VIDEO, "MSRVTT_val.full.csv", "0a6be33e09bacaca199b87fd1f68170bfc10aa55036518d54e113bdde4bb0044"
        ),
        "test": list_file(
            CLIP2VIDEO, "MSRVTT_test.full.csv", "2cfa5acaabad7319f7e8c3639e0986b8f8c432399b545a97cb7531608a976b42"
        ),
    },
    "1k-B": {
        "train": list_file(
            COLLABORATIVE,
            "train_list_miech.txt",
            "bd1b91cc6e07ace29fd12c2be74b69031f647567bb647c73b8dd8a28e1455b80",
        ),
        "test": list_file(
            COLLABORATIVE,
            "test_list_miech.txt",
            "e2b489732475874bb32dd2689bd3a1e13a8473a9bf69a6b97efb8f39a1c12d1e",
        ),
    },
    "1k-A-mmt": {"train": TRAIN_9K, "test": JSFUSION},
    "7k-hybrid": {"train": TRAIN_7K, "val": HYBRID_VAL, "test": JSFUSION},
    "mteb": {"test": MTEB},
}
HYBRID_SPACE = "github.com/danieljf24/hybrid_space, dataset/README.md"
CAPTIONS_READ = f"captions read: {HYBRID_SPACE}"
# Number of clips that MMT takes from train for validation, as many as for testing.
MMT_VAL = 1_000


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Yield a clip per video, with captions if a captions file exists. Extraction needs no captions."""
    captions: dict[str, list[str]] = {}
    for name in CAPTION_FILES:
        if path := annotations.find(name):
            with checked_layout(path):
                for entry in read_json(path)["sentences"]:
                    captions.setdefault(entry["video_id"], []).extend(texts([entry["caption"]]))
    for split, file in LISTS[protocol].items():
        path = annotations[file.name]
        chosen = read_list(path, file, split, captions)
        if protocol == "1k-A-mmt" and split == "train":
            val = mmt_val_videos(chosen)
            yield from whole_video_clips(path, "val", val, chosen)
            chosen = {video: texts for video, texts in chosen.items() if video not in val}
        yield from whole_video_clips(path, split, chosen, chosen)


def read_list(
    path: Path, file: AnnotationFile, split: str, captions: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Return the videos of a list and their captions; captions in the list itself take precedence."""
    if file in (JSFUSION, MTEB):
        return {row["video_id"]: [row["sentence"]] for row in read_rows(path, "video_id", "sentence")}
    if file is HYBRID_VAL:
        sentences: dict[str, list[str]] = {}
        for line in read_names(path):
            name, _, sentence = line.partition(" ")
            sentences.setdefault(name.partition("#")[0], []).append(sentence)
        return sentences
    if file.name.endswith(".csv"):
        return {row["video_id"]: captions.get(row["video_id"], ()) for row in read_rows(path, "video_id")}
    queries = 1 if split == "test" else None
    return {video: captions.get(video, ())[:queries] for video in read_names(path)}


def mmt_val_videos(train: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the videos that MMT selects: the first of train's 9,000 after NumPy's shuffle with seed 0 (cross_seed)."""
    import numpy as np

    if len(train) <= MMT_VAL:
        raise ManifestError(f"{TRAIN_9K.name} has {plural(len(train), 'video')}, so none would be left for training")
    videos = list(train)
    np.random.RandomState(0).shuffle(videos)
    return videos[:MMT_VAL]


def protocol(
    name: str,
    about: str,
    clips: dict[str, int],
    captions: dict[str, int],
    known: Literal["counted", "read"] = "counted",
    source: str = CAPTIONS_READ,
) -> Protocol:
    return Protocol(
        help=about,
        clips=clips,
        captions=captions,
        files=tuple(LISTS[name].values()),
        optional=() if name == "mteb" else (CAPTIONS,),
        known=known,
        source=source,
    )


PROTOCOLS = (
    protocol(
        "1k-A",
        "JSFusion's 1,000 test clips with one fixed caption each (Yu et al., ECCV 2018); trained on 9,000",
        {"train": 9_000, "test": 1_000},
        {"train": 180_000, "test": 1_000},
        source="20 captions a clip",
    ),
    protocol(
        "7k",
        "the test clips of 1k-A, trained on the 7,010 of the first papers",
        {"train": 7_010, "test": 1_000},
        {"train": 140_200, "test": 1_000},
    ),
    protocol(
        "full",
        "the official split; every caption is a query",
        {"train": 6_513, "val": 497, "test": 2_990},
        {"train": 130_260, "val": 9_940, "test": 59_800},
    ),
    protocol(
        "1k-B",
        "Miech's 1,000 test clips with their first caption",
        {"train": 6_656, "test": 1_000},
        {"train": 133_120, "test": 1_000},
    ),
    protocol(
        "1k-A-mmt",
        "1k-A with MMT's 1,000 clips of train for validation (Gabeur et al., ECCV 2020), drawn as its program does",
        {"train": 8_000, "val": 1_000, "test": 1_000},
        {"train": 160_000, "val": 20_000, "test": 1_000},
        source="20 captions a clip",
    ),
    protocol(
        "7k-hybrid",
        "7k with 1,000 other clips for validation, one sentence each (Dong et al., TPAMI 2021)",
        {"train": 7_010, "val": 1_000, "test": 1_000},
        {"train": 140_200, "val": 1_000, "test": 1_000},
        "read",
        HYBRID_SPACE,
    ),
    protocol(
        "mteb",
        "MTEB's gallery, the 879 of the 1,000 test clips of 1k-A that its authors have",
        {"test": 879},
        {"test": 879},
        "read",
        "github.com/embeddings-benchmark/mteb, mteb/tasks/retrieval/eng/msr_vtt.py",
    ),
)

DATASET = Dataset(
    name="msrvtt",
    title="MSR-VTT (Xu et al., CVPR 2016): 10,000 web clips of 10 to 30 s, 20 captions each",
    takes="the folder with the split lists (MSRVTT_train.9k.csv, ...) and, for captions, MSRVTT_data.json",
    build=build,
    protocols=dict(zip(LISTS, PROTOCOLS, strict=True)),
    videos="The official archives are offline; MSRVTT.zip of the frozen-in-time project has all 10,000 clips.",
)
