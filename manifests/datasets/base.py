"""What a data set module provides, and the reading of files that they share."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import foreign
from ...storage import open_path
from ..clip import Clip, ManifestError, Problem

# Of the videos of train, where a published protocol names no clips to choose a checkpoint on.
VAL_SHARE = 0.05
VAL_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set: where its annotations come from and how they become clips.

    Attributes:
        help: one line for ``--help``: what --annotations must be.
        build: makes the clips from the annotations path and a protocol, and a Problem for what cannot be a clip.
        protocols: the published splits to choose from, the default first; empty where there is only one.
    """

    help: str
    build: Callable[[Path, str], Iterable[Clip | Problem]]
    protocols: tuple[str, ...] = ()

    def scan(
        self, annotations: str | Path, protocol: str | None = None, *, val: float = VAL_SHARE
    ) -> list[Clip | Problem]:
        """The clips of this data set, and then a Problem for each thing that cannot be one.

        Args:
            val: where the protocol has train and test alone, this share of train's videos becomes ``val``; 0: none.

        Raises:
            ManifestError: if a file is absent or is not what it should be, or the protocol is unknown.
        """
        path = open_path(annotations)
        with foreign.reading(path, ManifestError):
            if not path.exists():
                raise ManifestError(f"{path} does not exist; --annotations takes {self.help}")
        if protocol is not None and protocol not in self.protocols:
            choices = ", ".join(self.protocols) or "none: this data set has one split"
            raise ManifestError(f"unknown protocol {protocol!r}; choose from {choices}")
        chosen = protocol or (self.protocols[0] if self.protocols else "")
        with foreign.reading(path, ManifestError, f"is not laid out as expected, --annotations takes {self.help}"):
            items = list(self.build(path, chosen))
        clips = [item for item in items if isinstance(item, Clip)]
        return [*carve(clips, val), *(item for item in items if isinstance(item, Problem))]


def carve(clips: Sequence[Clip], share: float) -> list[Clip]:
    """The clips, with those of about ``share`` of train's videos moved to ``val``; unchanged where there is a val.

    A video's clips stay together. The draw is a hash of seed and video id, so that it depends on no other video; at
    least one is drawn. Extras say under ``carved`` that a clip was moved, and how many videos were.
    """
    draws = {clip.video: _draw(clip.video) for clip in clips if clip.split == "train"}
    if share == 0 or len(draws) < 2 or any(clip.split == "val" for clip in clips):
        return list(clips)
    chosen = {video for video, draw in draws.items() if draw < share} or {min(draws, key=draws.__getitem__)}
    carved = {"carved": f"{len(chosen):,} of {len(draws):,} videos of train, seed {VAL_SEED}"}
    return [
        replace(clip, split="val", extras={**clip.extras, **carved})
        if clip.split == "train" and clip.video in chosen
        else clip
        for clip in clips
    ]


def _draw(video: str) -> float:
    """A number in [0, 1) that only depends on the video and ``VAL_SEED``."""
    return int.from_bytes(hashlib.sha256(f"{VAL_SEED} {video}".encode()).digest()[:6]) / 2**48


def read_json(path: Path) -> Any:
    """A JSON file; raises ManifestError that names it."""
    return foreign.read_json(path, ManifestError)


def read_csv(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least ``columns``; raises ManifestError that names the file and the line."""
    rows = []
    with (
        foreign.reading(path, ManifestError, "is not a CSV file"),
        path.open(encoding="utf-8-sig", newline="") as handle,
    ):
        reader = csv.DictReader(handle, strict=True)
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            raise ManifestError(f"{path} has no column {missing[0]!r}; its columns are {reader.fieldnames}")
        for row in reader:
            if None in row or None in map(row.get, columns):
                raise ManifestError(
                    f"{path}:{reader.line_num}: not the {len(reader.fieldnames or [])} columns of the head"
                )
            rows.append(row)
    return rows
