"""How a run's time divides between decoding, encoding and waiting, and which of them limits its speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Activities of a worker -> their names in a report. A worker is idle while it waits for windows from its feeders.
WORKER = {"encode": "encode", "write": "write", "wait": "idle"}
# Activities of the feeders. A feeder is blocked until the worker reads its windows.
FEEDERS = {"decode": "decode", "transform": "transform", "blocked": "blocked"}
# Decoding limits the run if the workers' idle share is larger than this.
IDLE = 0.2
# Encoding limits the run if the feeders' blocked share or the workers' encoding share is larger than this. Both are
# needed: the feeders of a short part may finish before they are ever blocked.
BLOCKED = 0.5
ENCODE = 0.8
# No limit is reported in the first seconds of work, when models are loaded and feeders start.
MIN_WORKER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of time from 0 to 1. The shares of each group add up to 1, or are all 0 if no time was measured.

    Attributes:
        worker: shares of the time that all workers had a part: ``encode``, ``write``, ``idle``.
        feeders: shares of the time that all feeders had a video: ``decode``, ``transform``, ``blocked``.
        limit: the bottleneck, ``decoding`` or ``encoding``; empty if there is no clear one.
    """

    worker: dict[str, float]
    feeders: dict[str, float]
    limit: str = ""

    @property
    def hint(self) -> str:
        """The bottleneck and its remedy; empty if there is no clear one."""
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
    """Return the shares of ``Report.seconds``, of one part or summed over parts and workers."""
    worker, feeders = _fractions(seconds, WORKER), _fractions(seconds, FEEDERS)
    limit = ""
    if sum(seconds.get(key, 0.0) for key in WORKER) >= MIN_WORKER_SECONDS and any(feeders.values()):
        if worker["idle"] > IDLE:
            limit = "decoding"
        elif feeders["blocked"] > BLOCKED or worker["encode"] > ENCODE:
            limit = "encoding"
    return Shares(worker=worker, feeders=feeders, limit=limit)


def _fractions(seconds: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    total = sum(seconds.get(key, 0.0) for key in names)
    return {name: seconds.get(key, 0.0) / total if total > 0 else 0.0 for key, name in names.items()}
