"""Captions of real data sets, from their own annotation files, by data set and video."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path


def real_captions(annotations: Path) -> dict[str, dict[str, list[str]]]:
    """Data set -> video -> its captions, in the order of the file."""
    found: dict[str, dict[str, list[str]]] = {}
    for data_set, video, caption in _all(annotations):
        found.setdefault(data_set, {}).setdefault(video, []).append(caption)
    return found


def _all(root: Path) -> Iterator[tuple[str, str, str]]:
    with (root / "msrvtt" / "MSRVTT_JSFUSION_test.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            yield "msrvtt", row["video_id"], row["sentence"]
    for video, captions in json.loads((root / "msvd" / "captions_msvd.json").read_text()).items():
        yield from (("msvd", video, caption) for caption in captions)
    youcook2 = json.loads((root / "youcook2" / "youcookii_annotations_trainval.json").read_text())["database"]
    for video, entry in youcook2.items():
        yield from (("youcook2", video, segment["sentence"]) for segment in entry["annotations"])
    for video, entry in json.loads((root / "activitynet" / "val_1.json").read_text()).items():
        yield from (("activitynet", video, sentence) for sentence in entry["sentences"])
    for entry in json.loads((root / "didemo" / "val_data.json").read_text()):
        yield "didemo", entry["video"], entry["description"]
    for line in (root / "charades_sta" / "charades_sta_test.txt").read_text().splitlines():
        where, sentence = line.split("##")
        yield "charades_sta", where.split()[0], sentence
