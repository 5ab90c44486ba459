"""MSR-VTT (Xu et al., CVPR 2016): 10,000 web clips with 20 captions each, under its four published splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..clip import Clip, ManifestError
from .base import Dataset, read_csv, read_json

# protocol -> split -> the list file that defines it. 1k-A is JSFusion's test set, whose fixed captions are in its file;
# 1k-B is Miech's, whose queries are the first caption of each video.
LISTS: dict[str, dict[str, str]] = {
    "1k-A": {"train": "MSRVTT_train.9k.csv", "test": "MSRVTT_JSFUSION_test.csv"},
    "7k": {"train": "MSRVTT_train.7k.csv", "test": "MSRVTT_JSFUSION_test.csv"},
    "full": {"train": "MSRVTT_train.full.csv", "val": "MSRVTT_val.full.csv", "test": "MSRVTT_test.full.csv"},
    "1k-B": {"train": "train_list_miech.txt", "test": "test_list_miech.txt"},
}
# The same captions travel as one file (CLIP4Clip and others) or as the two official ones.
CAPTION_FILES = ("MSRVTT_data.json", "train_val_videodatainfo.json", "test_videodatainfo.json")


def build(annotations: Path, protocol: str) -> Iterator[Clip]:
    """Whole-video clips. Captions are there where a caption file is; extraction needs none.

    Only ``full`` has a list for validation.
    """
    if not annotations.is_dir():
        raise ManifestError(f"{annotations} is not a folder; --annotations takes {DATASET.help}")
    captions: dict[str, list[str]] = {}
    for name in CAPTION_FILES:
        if (annotations / name).exists():
            for entry in read_json(annotations / name)["sentences"]:
                captions.setdefault(entry["video_id"], []).append(entry["caption"])
    for split, name in LISTS[protocol].items():
        path = annotations / name
        if not path.exists():
            raise ManifestError(f"{path} is missing: it defines the {split} split of the {protocol} protocol")
        if name == "MSRVTT_JSFUSION_test.csv":
            listed = {row["video_id"]: [row["sentence"]] for row in read_csv(path, "video_id", "sentence")}
        elif name.endswith(".csv"):
            listed = {row["video_id"]: captions.get(row["video_id"], []) for row in read_csv(path, "video_id")}
        else:
            listed = {video: captions.get(video, []) for video in path.read_text(encoding="utf-8").split()}
            if split == "test":
                listed = {video: texts[:1] for video, texts in listed.items()}
        for video, texts in listed.items():
            yield Clip(clip_id=video, video=video, split=split, captions=tuple(texts))


DATASET = Dataset(
    help="the folder with the split lists (MSRVTT_train.9k.csv, ...) and, for captions, MSRVTT_data.json",
    build=build,
    protocols=tuple(LISTS),
)
