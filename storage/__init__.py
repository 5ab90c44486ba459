"""Where bytes are: folders, object stores and web servers; and temporary files that nobody leaves behind."""

from .fetch import Fetched, Fetcher, NoRoom, on_disk
from .places import StorageError

__all__ = ["Fetched", "Fetcher", "NoRoom", "StorageError", "on_disk"]
