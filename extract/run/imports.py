"""Prepares a Dask worker: it leaves Ctrl-C to the run, and imports what its tasks need while it waits for the first.

Workers preload this module. The import takes seconds; it runs in a thread, so that it does not delay the registration,
whose time is limited. A task that arrives meanwhile waits for the import that it would have begun.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import signal
import threading
from typing import Any


def dask_setup(worker: Any) -> None:
    """Called by Dask in a worker that starts, on its main thread."""
    # Ctrl-C on a terminal reaches every process. The run ends its workers; they would only print tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    atexit.register(
        gc.freeze
    )  # else Python looks for garbage among all that torch made as it ends, for most of a second
    threading.Thread(target=importlib.import_module, args=(f"{__package__}.job",), daemon=True).start()
