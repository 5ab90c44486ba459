"""VideoMem (Cohendet et al., ICCV 2019): 10,000 stock clips of seven seconds with their titles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from ... import foreign
from ..annotations import AnnotationFile, Annotations
from ..clip import Clip, ManifestError
from ..published import read_rows
from .base import Dataset, Protocol

# Number of the 8,000 development videos in val: the first by the sha256 of their names.
VAL = 800

CAPTIONS = AnnotationFile(
    name="captions.tsv",
    url="https://www.interdigital.com/data_sets/video-memorability-dataset",
    note="whose titles it lists: tab-separated with a head: row (place in the arrays), video, split (dev or "
    "test) and caption_slug",
)


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Yield the clips in the order of the rows of their features."""
    path = annotations[CAPTIONS.name]
    rows = read_rows(path, "row", "video", "split", "caption_slug", delimiter="\t")
    with foreign.reading(path, ManifestError, "is not laid out as expected"):
        rows.sort(key=lambda row: int(row["row"]))
        if [int(row["row"]) for row in rows] != list(range(len(rows))):
            raise ManifestError(f"{path}: the rows are not 0 to {len(rows) - 1}, each once")
        development = {row["video"] for row in rows if row["split"] == "dev"}
        val = set(sorted(development, key=lambda video: hashlib.sha256(video.encode()).digest())[:VAL])
        for row in rows:
            if row["split"] not in ("dev", "test"):
                raise ValueError(f"the split of {row['video']} is {row['split']!r}, not dev or test")
            split = "test" if row["split"] == "test" else "val" if row["video"] in val else "train"
            caption = row["caption_slug"].replace("-", " ")
            yield Clip(clip_id=row["video"], video=row["video"], split=split, captions=(caption,))


DATASET = Dataset(
    name="videomem",
    title="VideoMem (Cohendet et al., ICCV 2019): stock clips of 7 s, one title each",
    takes="captions.tsv, which comes with the features",
    build=build,
    protocols={
        "titles": Protocol(
            help=f"the titles as captions; {VAL} of the 8,000 development clips are val, by a hash of their names",
            clips={"train": 7_200, "val": 800, "test": 2_000},
            captions={"train": 7_200, "val": 800, "test": 2_000},
            files=(CAPTIONS,),
            known="counted",
        ),
    },
    videos="InterDigital's video memorability page, after a form: files named videoNUMBER.webm.",
)
