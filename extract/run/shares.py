"""What the time of a run went into, and so what would make it faster: more decoding, or a faster encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# What a worker does, one thing after another; ``wait`` is for windows from its feeders.
WORKER = {"encode": "encode", "write": "write", "wait": "idle"}
# What its feeders do beside it; ``blocked`` is the wait until the worker takes their windows.
FEEDERS = {"decode": "decode", "transform": "transform", "blocked": "blocked"}
# Above this share of a worker's time idle, decoding limits the run.
IDLE = 0.2
# Above this share of the feeders' time blocked, or of a worker's time spent on encoding, encoding does. Feeders that
# have decoded all their videos are no longer counted, so those of a short part may never be blocked.
BLOCKED = 0.5
ENCODE = 0.8
# Seconds of workers below which nothing is said of limits: models are loaded, feeders start.
TELLING = 10.0


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares from 0 to 1; each of the two groups adds up to 1, or is all 0 where there was no such time.

    Attributes:
        worker: of the wall clock of all workers while they had a part: ``encode``, ``write``, ``idle``.
        feeders: of the time that all feeders had a video: ``decode``, ``transform``, ``blocked``.
        limit: ``decoding``, ``encoding``, or nothing where neither stands out.
    """

    worker: dict[str, float]
    feeders: dict[str, float]
    limit: str = ""

    @property
    def hint(self) -> str:
        """What limits the run, and what to do about it; nothing where neither stands out."""
        return {"decoding": "decoding limits: more --feeders", "encoding": "encoding limits"}.get(self.limit, "")

    def __str__(self) -> str:
        groups = {"workers": self.worker, "feeders": self.feeders}
        texts = [
            f"{name} {', '.join(f'{share:.0%} {what}' for what, share in group.items())}"
            for name, group in groups.items()
            if any(group.values())
        ]
        return "; ".join([*texts, *([self.hint] if texts and self.hint else [])])


def shares_of(seconds: Mapping[str, float]) -> Shares:
    """The shares of ``Report.seconds``, of one part or summed over the parts of any number of workers."""
    worker, feeders = _fractions(seconds, WORKER), _fractions(seconds, FEEDERS)
    limit = ""
    if sum(seconds.get(key, 0.0) for key in WORKER) >= TELLING and any(feeders.values()):
        if worker["idle"] > IDLE:
            limit = "decoding"
        elif feeders["blocked"] > BLOCKED or worker["encode"] > ENCODE:
            limit = "encoding"
    return Shares(worker=worker, feeders=feeders, limit=limit)


def _fractions(seconds: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    total = sum(seconds.get(key, 0.0) for key in names)
    return {name: seconds.get(key, 0.0) / total if total > 0 else 0.0 for key, name in names.items()}
