"""Has a Dask worker import what its tasks need while it waits for the first of them: torch alone takes a second.

Workers preload this module. The import runs in a thread, so that it does not delay the registration, whose time is
limited. A task that arrives meanwhile waits for the import that it would have begun.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import threading
from typing import Any


def dask_setup(worker: Any) -> None:
    """Called by Dask in a worker that starts."""
    atexit.register(
        gc.freeze
    )  # else Python looks for garbage among all that torch made as it ends, for most of a second
    threading.Thread(target=importlib.import_module, args=(f"{__package__}.job",), daemon=True).start()
