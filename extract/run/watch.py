"""A watchdog that ends a worker process that makes no progress.

Encoders run native code in the worker. Only the end of the process interrupts it. Dask then restarts the worker and
submits the part again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any

# Exit status of a worker that the watchdog ends.
EXIT_STATUS = 70


class Watchdog:
    """Ends this process after ``limit`` seconds without progress. A context manager.

    Time for which the process is suspended does not count.

    Args:
        limit: seconds.
        stalled: called before the process ends, with the step that made no progress and its work.
        advanced: returns when something other than the reported steps last made progress, on the monotonic clock.
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

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def step(self, step: str, work: Collection[Any] | None = ()) -> None:
        """Report progress: ``step`` now works on ``work``, or waits if ``work`` is None.

        If several steps work at the same time, the one reported first is blamed, because the others wait for it.
        """
        self._steps[step] = work
        self._since = time.monotonic()

    def _look(self) -> None:
        interval = min(1.0, self.limit / 4)
        idle, last_progress, last_check = 0.0, self._since, time.monotonic()
        while not self._over.wait(interval):
            now = time.monotonic()
            idle += min(now - last_check, 2 * interval)  # a longer interval means that the process was suspended
            last_check = now
            if (latest := max(self._since, self._advanced())) != last_progress:
                idle, last_progress = 0.0, latest
            working = [(step, work) for step, work in list(self._steps.items()) if work is not None]
            if working and idle > self.limit:
                step, work = working[0]
                print(f"amex: no progress for {self.limit:g} s ({step}); this worker ends", file=sys.stderr, flush=True)
                try:
                    self._stalled(step, work)
                finally:
                    os._exit(EXIT_STATUS)
