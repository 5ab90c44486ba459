"""Prepare a Dask worker: ignore Ctrl-C, and import the libraries of its tasks in advance.

Workers preload this module. The import takes seconds. It runs in a thread, because the registration of a worker has a
time limit. A task that arrives earlier waits for the import.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import signal
import threading
from typing import Any


def dask_setup(worker: Any) -> None:
    """Prepare the worker. Dask calls this on the main thread of a new worker."""
    # Ctrl-C on a terminal reaches every process. The run ends its workers; without this they would print tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    atexit.register(gc.freeze)  # skips a garbage collection of torch's objects at exit, which takes most of a second
    threading.Thread(target=importlib.import_module, args=(f"{__package__}.job",), daemon=True).start()
