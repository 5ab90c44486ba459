"""YouCook2 (Zhou et al., AAAI 2018): cooking videos cut into captioned steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..annotations import AnnotationFile, Annotations
from ..clip import Clip, ManifestError
from ..published import checked_layout, read_json, read_names, read_rows
from .base import Dataset, Protocol

# The test videos have no public captions, so all published results are on the validation clips.
SPLITS = {"training": "train", "validation": "test", "testing": "testing"}

OFFICIAL = AnnotationFile(
    name="youcookii_annotations_trainval.json",
    url="http://youcook2.eecs.umich.edu/static/YouCookII/youcookii_annotations_trainval.tar.gz",
    member="youcookii_annotations_trainval.json",
    sha256="6be6f3cdcf4448b4bdef27a869fadddfddeb9b20249d55558afabe354b246e80",
)
HOWTO100M = AnnotationFile(
    name="validation_youcook.csv",
    url="https://raw.githubusercontent.com/antoine77340/MIL-NCE_HowTo100M/b282b1534324b3ac9960eebf89312c9a8a912eec/csv"
    "/validation_youcook.csv",
    sha256="57d6bdea77c70114cbfad5b057e9500173f14b1c3a0f9c51bd1a716cd504cac1",
)


def list_file(name: str, url: str, gallery: str) -> AnnotationFile:
    note = f"{gallery}; write the ids of its clips one a line, as GLd3aX16zBg_0 (video, number of the step)"
    return AnnotationFile(name=f"youcook2_{name}.txt", url=url, note=note)


# protocol -> the list of its clips among the official validation clips
GALLERIES = {
    "reruns": list_file(
        "reruns",
        "https://github.com/LuoweiZhou/YouCook2-Leaderboard/pull/1",
        "which speaks of 3,369 clips without a list",
    ),
    "pentathlon": list_file(
        "pentathlon",
        "https://github.com/albanie/collaborative-experts/tree/master/misc/cvpr2020_challenge",
        "whose archive for YouCook2 has the 3,310 as public_server_test.txt",
    ),
    "mteb": list_file(
        "mteb", "https://huggingface.co/datasets/mteb/YouCook2_val", "which has the 3,104 of MTEB's task"
    ),
}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Yield the clips of the official JSON, or the clips in the gallery of a protocol."""
    clips = official_clips(annotations[OFFICIAL.name])
    if protocol == "official":
        yield from clips
        return
    test = [clip for clip in clips if clip.split == "test"]
    if protocol == "howto100m":
        yield from howto100m_clips(annotations[HOWTO100M.name], test)
        return
    path, by_id = annotations[GALLERIES[protocol].name], {clip.clip_id: clip for clip in test}
    for clip_id in dict.fromkeys(read_names(path)):
        if clip_id not in by_id:
            raise ManifestError(
                f"{path}: {clip_id!r} is not a validation clip; ids look like {next(iter(by_id), '?')!r}"
            )
        yield by_id[clip_id]


def official_clips(path: Path) -> Iterator[Clip]:
    with checked_layout(path):
        for video, entry in read_json(path)["database"].items():
            for step in entry.get("annotations", ()):  # test videos have none
                start, end = step["segment"]
                yield Clip(
                    clip_id=f"{video}_{step['id']}",
                    video=video,
                    start=float(start),
                    end=float(end),
                    split=SPLITS[entry["subset"]],
                    captions=(step["sentence"],),
                )


def howto100m_clips(path: Path, official: list[Clip]) -> Iterator[Clip]:
    """Yield the rows of the list. A row with the times of an official clip gets its id, so that they share features.

    A row with other times, or a second row with the same times, gets an id from its times.
    """
    by_times: dict[tuple, list[Clip]] = {}
    for clip in official:
        by_times.setdefault((clip.video, clip.start, clip.end), []).append(clip)
    counts: dict[str, int] = {}
    for row in read_rows(path, "video_id", "start", "end", "text"):
        with checked_layout(path):
            times = (row["video_id"], float(row["start"]), float(row["end"]))
            if same := by_times.get(times):
                clip_id = same.pop(0).clip_id
            else:
                clip_id = f"{row['video_id']}_{row['start']}_{row['end']}"
                counts[clip_id] = counts.get(clip_id, 0) + 1
                if counts[clip_id] > 1:
                    clip_id += f"_{counts[clip_id]}"
            video, start, end = times
            yield Clip(clip_id=clip_id, video=video, start=start, end=end, split="test", captions=(row["text"],))


def gallery(name: str, about: str, clips: int, source: str) -> Protocol:
    files = (OFFICIAL, GALLERIES[name])
    return Protocol(
        help=about, clips={"test": clips}, captions={"test": clips}, files=files, known="read", source=source
    )


DATASET = Dataset(
    name="youcook2",
    title="YouCook2 (Zhou et al., AAAI 2018): steps of cooking videos, one sentence each",
    takes="youcookii_annotations_trainval.json, or the folder with it and validation_youcook.csv or another list",
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
            files=(HOWTO100M, OFFICIAL),
            known="counted",
        ),
        "reruns": gallery(
            "reruns",
            "the validation clips that later authors could still download",
            3_369,
            "github.com/LuoweiZhou/YouCook2-Leaderboard, pull request 1",
        ),
        "pentathlon": gallery(
            "pentathlon",
            "the public test of the video pentathlon (CVPR 2020)",
            3_310,
            "github.com/albanie/collaborative-experts, misc/cvpr2020_challenge/prepare_submission.py",
        ),
        "mteb": gallery(
            "mteb",
            "MTEB's gallery",
            3_104,
            "github.com/embeddings-benchmark/mteb, descriptive statistics of YouCook2T2VRetrieval",
        ),
    },
    videos="YouTube videos by id, named ID.mp4 or in any layout below the folder; yt-dlp downloads them.",
)
