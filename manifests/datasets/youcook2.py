"""YouCook2 (Zhou et al., AAAI 2018): cooking videos cut into captioned steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..clip import Clip
from .base import Dataset, read_csv, read_json

# The videos for testing have no public captions: every published figure is of the clips called validation.
SPLITS = {"training": "train", "validation": "test", "testing": "testing"}


def build(annotations: Path, protocol: str) -> Iterator[Clip]:
    """Clips of the official JSON (10,337 train, 3,492 test), or of the HowTo100M protocol's CSV (3,350 test).

    The protocol follows from the file: a ``.csv`` is the HowTo100M evaluation list, whose clips are a subset of the
    official validation set (videos that were still online).
    """
    if annotations.suffix.lower() == ".csv":
        seen: dict[str, int] = {}
        for row in read_csv(annotations, "video_id", "start", "end", "text"):
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
        return
    for video, entry in read_json(annotations)["database"].items():
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


DATASET = Dataset(
    help="youcookii_annotations_trainval.json, or validation_youcook.csv for the HowTo100M protocol (3,350 clips)",
    build=build,
)
