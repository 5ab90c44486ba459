"""Where bytes are: folders, object stores and web servers behind one protocol; and temporary files.

``open_path`` makes a path of what a user gives: one of pathlib, or of universal_pathlib, which has the same methods.
Where backends differ, ``storage_at(path)`` has a method or says what it can do, see ``Storage``:

    store = open_path("s3://bucket/x.zarr")
    write_json(store / "a.json", {"a": 1})  # exists whole or not at all
    storage_at(store).sizes()               # {"a.json": 12}
    with storage_at(store / "v.mp4").on_disk() as file:
        ...                                 # a file on this machine, fetched if it must be

A ``Fetcher`` does the last for many files, the next ones ahead of their use. Knows nothing of what files mean.
"""

from .base import NOT_THERE, NoRoom, Storage, StorageError
from .fetch import Fetched, Fetcher
from .paths import open_path, reachable, storage_at
from .scratch import semaphores, sweep_folder, temporary_folder
from .writing import replacing, write_json, write_text, write_whole

__all__ = [
    "NOT_THERE",
    "Fetched",
    "Fetcher",
    "NoRoom",
    "Storage",
    "StorageError",
    "open_path",
    "reachable",
    "replacing",
    "semaphores",
    "storage_at",
    "sweep_folder",
    "temporary_folder",
    "write_json",
    "write_text",
    "write_whole",
]
