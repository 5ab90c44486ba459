"""A bound on the time of a part: a worker process that makes no progress is ended.

Encoders run in the worker, in native code that nothing interrupts; only the end of the process does. Dask starts the
worker again and gives it the part once more.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any

# Of a worker that was ended.
EXIT_STATUS = 70


class Watch:
    """Ends this process when nothing has progressed for ``limit`` seconds. A context manager.

    Time for which the process was suspended is not counted.

    Args:
        stalled: called before the end with the step that stands still and what it works on, as ``on`` was told.
        advanced: when something that makes no notes here was last known to progress, on the monotonic clock.
    """

    def __init__(
        self,
        limit: float,
        stalled: Callable[[str, Collection[Any]], None] = lambda step, work: None,
        advanced: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.limit = limit
        self._stalled = stalled
        self._advanced = advanced
        self._since = time.monotonic()
        self._steps: dict[str, Collection[Any] | None] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def on(self, step: str, work: Collection[Any] | None = ()) -> None:
        """Notes progress: ``step`` is now at ``work``; None: it waits for others, or for what has its own bound.

        Of several steps at work, the one that was noted first is the one that the others wait for.
        """
        self._steps[step] = work
        self._since = time.monotonic()

    def _look(self) -> None:
        interval = min(1.0, self.limit / 4)
        still, progressed, looked = 0.0, self._since, time.monotonic()
        while not self._over.wait(interval):
            now = time.monotonic()
            still += min(now - looked, 2 * interval)  # a look that comes later than that: the process was suspended
            looked = now
            if (latest := max(self._since, self._advanced())) != progressed:
                still, progressed = 0.0, latest
            at_work = [(step, work) for step, work in list(self._steps.items()) if work is not None]
            if at_work and still > self.limit:
                step, work = at_work[0]
                print(f"amex: no progress for {self.limit:g} s ({step}); this worker ends", file=sys.stderr, flush=True)
                try:
                    self._stalled(step, work)
                finally:
                    os._exit(EXIT_STATUS)
