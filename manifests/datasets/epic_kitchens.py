"""EPIC-Kitchens-100 (Damen et al., IJCV 2022), multi-instance retrieval: narrated actions in kitchens."""

from __future__ import annotations

from collections.abc import Iterator

from ... import foreign
from ..annotations import AnnotationFile, Annotations
from ..clip import Clip, ManifestError
from ..published import read_rows
from .base import Dataset, Protocol

RETRIEVAL = (
    "https://raw.githubusercontent.com/epic-kitchens/epic-kitchens-100-annotations"
    "/ea8b40457a400c3fffa1c7f406ef3dc169cc2522/retrieval_annotations"
)


def release_file(name: str, sha256: str = "") -> AnnotationFile:
    return AnnotationFile(name=name, url=f"{RETRIEVAL}/{name}", sha256=sha256)


FILES = {
    "train": release_file("EPIC_100_retrieval_train.csv"),
    "test": release_file(
        "EPIC_100_retrieval_test.csv", "35f7932ba0a1127a96cac215a98d35398946f343e3cea9ad6688ed17eee9d75d"
    ),
}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Yield a clip per action. The extras ``verb_class`` and ``noun_classes`` define the graded relevance."""
    for split, file in FILES.items():
        path = annotations[file.name]
        names = ("narration_id", "video_id", "start_timestamp", "stop_timestamp", "narration", "verb_class")
        for number, row in enumerate(read_rows(path, *names, "all_noun_classes"), start=2):
            with foreign.reading(f"{path}:{number}", ManifestError, "is not laid out as expected"):
                extras = {"verb_class": int(row["verb_class"]), "noun_classes": classes(row["all_noun_classes"])}
                yield Clip(
                    clip_id=row["narration_id"],
                    video=row["video_id"],
                    start=seconds(row["start_timestamp"]),
                    end=seconds(row["stop_timestamp"]),
                    split=split,
                    captions=(row["narration"],),
                    extras=extras,
                )


def seconds(timestamp: str) -> float:
    """Return the seconds of a time such as ``00:01:02.50``."""
    hours, minutes, rest = timestamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def classes(text: str) -> list[int]:
    """Return the classes of a list such as ``[2, 114]``."""
    return [int(number) for number in text.strip("[]").split(",") if number.strip()]


DATASET = Dataset(
    name="epic_kitchens",
    title="EPIC-Kitchens-100 (Damen et al., IJCV 2022): narrated actions of first-person videos in kitchens",
    takes="the folder with EPIC_100_retrieval_train.csv and EPIC_100_retrieval_test.csv",
    build=build,
    protocols={
        "mir": Protocol(
            help="the multi-instance retrieval challenge; relevance is graded by verb and noun classes, in extras; "
            "of test's texts 3,835 are distinct",
            clips={"train": 67_217, "test": 9_668},
            captions={"train": 67_217, "test": 9_668},
            files=tuple(FILES.values()),
            known="read",
            source="github.com/epic-kitchens/C5-Multi-Instance-Retrieval, README.md; test counted",
        ),
    },
    videos="epic_downloader.py --videos --action-retrieval of github.com/epic-kitchens/download-scripts-100; files "
    "named P01_11.MP4, an hour long and less.",
)
