"""One interface to local folders, object stores and web servers; temporary files.

``open_path`` turns a user's text into a path of pathlib or of universal_pathlib, which has the same methods.
``storage_at(path)`` returns the backend, which has the methods that differ between backends, see ``Storage``:

    store = open_path("s3://bucket/x.zarr")
    write_json(store / "a.json", {"a": 1})  # atomic: readers see the complete file or none
    storage_at(store).sizes()               # {"a.json": 12}
    with storage_at(store / "v.mp4").local_copy() as file:
        ...                                 # a file on this machine, downloaded if necessary

A ``Fetcher`` downloads many files and prefetches the next ones. This package does not interpret the content of files.
"""

from .base import MISSING_ERRORS, DiskFull, Storage, StorageError
from .fetch import FetchedFile, Fetcher
from .paths import open_path, reachable, storage_at
from .scratch import remove_stale_files, semaphores, temporary_folder
from .writing import atomic_path, write_atomic, write_json, write_text

__all__ = [
    "MISSING_ERRORS",
    "DiskFull",
    "FetchedFile",
    "Fetcher",
    "Storage",
    "StorageError",
    "atomic_path",
    "open_path",
    "reachable",
    "remove_stale_files",
    "semaphores",
    "storage_at",
    "temporary_folder",
    "write_atomic",
    "write_json",
    "write_text",
]
