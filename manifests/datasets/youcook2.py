"""YouCook2 (Zhou et al., AAAI 2018): cooking videos cut into captioned steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..annotations import AnnotationFile, Annotations
from ..clip import Clip
from .base import Dataset, Protocol, read_csv, read_json

# The videos for testing have no public captions: every published figure is of the clips called validation.
SPLITS = {"training": "train", "validation": "test", "testing": "testing"}

OFFICIAL = AnnotationFile(
    name="youcookii_annotations_trainval.json",
    url="http://youcook2.eecs.umich.edu/static/YouCookII/youcookii_annotations_trainval.tar.gz",
    member="youcookii_annotations_trainval.json",
    sha256="6be6f3cdcf4448b4bdef27a869fadddfddeb9b20249d55558afabe354b246e80",
)
HOWTO100M = AnnotationFile(
    name="validation_youcook.csv",
    url="https://www.rocq.inria.fr/cluster-willow/amiech/howto100m/youcook.zip",
    member="validation_youcook.csv",
    sha256="57d6bdea77c70114cbfad5b057e9500173f14b1c3a0f9c51bd1a716cd504cac1",
)


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Clips of the official JSON, or of the HowTo100M protocol's CSV, a subset that was still online."""
    if protocol == "howto100m":
        yield from howto100m_clips(annotations[HOWTO100M.name])
        return
    for video, entry in read_json(annotations[OFFICIAL.name])["database"].items():
        for step in entry.get("annotations", ()):  # those for testing carry none
            start, end = step["segment"]
            yield Clip(
                clip_id=f"{video}_{step['id']}",
                video=video,
                start=float(start),
                end=float(end),
                split=SPLITS[entry["subset"]],
                captions=(step["sentence"],),
            )


def howto100m_clips(path: Path) -> Iterator[Clip]:
    seen: dict[str, int] = {}
    for row in read_csv(path, "video_id", "start", "end", "text"):
        clip_id = f"{row['video_id']}_{row['start']}_{row['end']}"
        # The list repeats some stretches with other captions: each is a query of its own in the protocol.
        seen[clip_id] = seen.get(clip_id, 0) + 1
        if seen[clip_id] > 1:
            clip_id += f"_{seen[clip_id]}"
        yield Clip(
            clip_id=clip_id,
            video=row["video_id"],
            start=float(row["start"]),
            end=float(row["end"]),
            split="test",
            captions=(row["text"],),
        )


DATASET = Dataset(
    name="youcook2",
    title="YouCook2 (Zhou et al., AAAI 2018): steps of cooking videos, one sentence each",
    takes="youcookii_annotations_trainval.json, or validation_youcook.csv for the HowTo100M protocol (3,350 clips)",
    build=build,
    protocols={
        "official": Protocol(
            help="the official JSON; its validation clips are the test split",
            clips={"train": 10_337, "test": 3_492},
            captions={"train": 10_337, "test": 3_492},
            files=(OFFICIAL,),
            known="counted",
        ),
        "howto100m": Protocol(
            help="the validation clips that HowTo100M's authors could still download (Miech et al., ICCV 2019)",
            clips={"test": 3_350},
            captions={"test": 3_350},
            files=(HOWTO100M,),
            known="counted",
        ),
    },
    videos="YouTube videos by id, named ID.mp4 or in any layout below the folder; yt-dlp downloads them.",
)
