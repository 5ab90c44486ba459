"""Records of stalls: which video or stage a worker was on when the watchdog ended it. The next worker reads them.

The records of a part are in ``<stream>/stalled/<part>.json``, from its first stall until it is committed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...storage import MISSING_ERRORS, storage_at, write_json

STAGES = {"decode": "decoding", "encode": "encoding", "write": "writing"}


@dataclass(frozen=True, kw_only=True)
class Stall:
    """One worker that was ended because it made no progress.

    Attributes:
        video: path, relative to the folder of videos, of the video that it worked on; None if no video is at fault.
        stage: ``decode``, ``encode`` or ``write``.
        limit: the time limit in seconds.
        batch: whether its batch also held windows of other videos.
    """

    video: str | None
    stage: str
    limit: float
    batch: bool = False

    @property
    def reason(self) -> str:
        """The reason for the ledger, or for the error of a part if no video is at fault."""
        if self.video is None:
            return f"repeatedly no progress for {self.limit:g} s in {STAGES[self.stage]} it (--stall)"
        target = "a batch with this video" if self.batch else "this video"
        return f"no progress for {self.limit:g} s on {target}, so its worker was ended (--stall)"


def stall_file(store: Path, stream: str, part: str) -> Path:
    """Return the path of the records of a part."""
    return store / stream / "stalled" / f"{part}.json"


def read_stalls(store: Path, stream: str, part: str) -> list[Stall]:
    """Return the stalls of an uncommitted part, oldest first. A damaged file counts as empty."""
    try:
        return [Stall(**record) for record in json.loads(stall_file(store, stream, part).read_bytes())]
    except (*MISSING_ERRORS, ValueError, TypeError):
        return []


def write_stalls(store: Path, stream: str, part: str, stalls: Sequence[Stall]) -> None:
    """Write the stalls of a part, unless the stream was deleted."""
    if (store / stream / "spec.json").exists():
        write_json(stall_file(store, stream, part), [dataclasses.asdict(stall) for stall in stalls])


def delete_stalls(store: Path, stream: str, part: str) -> None:
    """Delete the stalls of a part, and the folder if it is empty then."""
    path = stall_file(store, stream, part)
    storage_at(path).remove()
    storage_at(path.parent).remove_if_empty()


def take_video_stalls(store: Path, stream: str, part: str) -> list[Stall]:
    """Return the stalls on videos of a part that starts. Delete its other stalls, so that the part is tried again."""
    stalls = read_stalls(store, stream, part)
    video_stalls = [stall for stall in stalls if stall.video is not None]
    if video_stalls and len(video_stalls) < len(stalls):
        write_stalls(store, stream, part, video_stalls)
    elif stalls and not video_stalls:
        delete_stalls(store, stream, part)
    return video_stalls
