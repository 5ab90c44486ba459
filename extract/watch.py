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

# Seconds without progress after which a worker is ended: more than the slowest batch takes, or the write of a part.
STALL = 600.0
# Of a worker that was ended.
EXIT_STATUS = 70


class Watch:
    """Ends this process when nothing has progressed for ``limit`` seconds. A context manager.

    Args:
        stalled: called before the end with the step that stands still and the videos (by number) that it works on.
        advanced: when something that makes no notes here was last known to progress, on the monotonic clock.
    """

    def __init__(
        self,
        limit: float,
        stalled: Callable[[str, Collection[int]], None] = lambda step, videos: None,
        advanced: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.limit = limit
        self._stalled = stalled
        self._advanced = advanced
        self._since = time.monotonic()
        self._steps: dict[str, Collection[int] | None] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def on(self, step: str, videos: Collection[int] | None = ()) -> None:
        """Notes progress: ``step`` now works on these videos; None: it waits for others, or for what has its own bound.

        Of several steps at work, the one that was noted first is the one that the others wait for.
        """
        self._steps[step] = videos
        self._since = time.monotonic()

    def _look(self) -> None:
        while not self._over.wait(min(1.0, self.limit / 4)):
            at_work = [(step, videos) for step, videos in list(self._steps.items()) if videos is not None]
            if at_work and time.monotonic() - max(self._since, self._advanced()) > self.limit:
                step, videos = at_work[0]
                print(f"amex: no progress for {self.limit:g} s ({step}); this worker ends", file=sys.stderr, flush=True)
                try:
                    self._stalled(step, videos)
                finally:
                    os._exit(EXIT_STATUS)
