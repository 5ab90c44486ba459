"""What workers leave in a stream before the watch ends them, so that the next one knows over what.

``<stream>/stalled/<part>.json`` is there from the first such end of a part until the part is committed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...storage import NOT_THERE, storage_at, write_json

STAGES = {"decode": "decoding", "encode": "encoding", "write": "writing"}


@dataclass(frozen=True, kw_only=True)
class Stall:
    """The end of a worker that made no progress.

    Attributes:
        video: what it worked on, by its path below the folder of videos; None where no video is at fault.
        stage: ``decode``, ``encode`` or ``write``.
        limit: the seconds that it had.
        batch: whether it worked on other videos together with this one.
    """

    video: str | None
    stage: str
    limit: float
    batch: bool = False

    @property
    def reason(self) -> str:
        """As the ledger has it; of a stall of no video the end of a sentence that begins with the part."""
        if self.video is None:
            return f"no progress for {self.limit:g} s in {STAGES[self.stage]} it, again and again (--stall)"
        what = "a batch with this video" if self.batch else "this video"
        return f"no progress for {self.limit:g} s on {what}, so its worker was ended (--stall)"


def stall_file(store: Path, stream: str, part: str) -> Path:
    """Where the stalls of a part are noted."""
    return store / stream / "stalled" / f"{part}.json"


def read_stalls(store: Path, stream: str, part: str) -> list[Stall]:
    """The stalls of a part that is not committed, oldest first. A file that is damaged tells of none."""
    try:
        return [Stall(**record) for record in json.loads(stall_file(store, stream, part).read_bytes())]
    except (*NOT_THERE, ValueError, TypeError):
        return []


def note_stalls(store: Path, stream: str, part: str, stalls: Sequence[Stall]) -> None:
    """Writes the stalls of a part, unless the stream is gone."""
    if (store / stream / "spec.json").exists():
        write_json(stall_file(store, stream, part), [dataclasses.asdict(stall) for stall in stalls])


def forget_stalls(store: Path, stream: str, part: str) -> None:
    """Removes what ``note_stalls`` wrote, and the folder with the last of it."""
    path = stall_file(store, stream, part)
    storage_at(path).remove()
    storage_at(path.parent).remove_if_empty()  # other parts may have some


def begin_stalls(store: Path, stream: str, part: str) -> list[Stall]:
    """The stalls on videos of a part that begins. Stalls of no video are forgotten: the part is tried once more."""
    stalls = read_stalls(store, stream, part)
    known = [stall for stall in stalls if stall.video is not None]
    if known and len(known) < len(stalls):
        note_stalls(store, stream, part, known)
    elif stalls and not known:
        forget_stalls(store, stream, part)
    return known
