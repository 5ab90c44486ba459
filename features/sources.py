"""What a store was made from: the manifest and the folder of videos, so that later commands need not be told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..foreign import read_json
from ..storage import open_path, reachable, write_json
from .schema import StoreError

FILE = "sources.json"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What the last extraction into a store was of. None where it is not known.

    A path below the folder of the store is kept relative to that folder, so that the whole can be moved.

    Attributes:
        written: sha256 of each manifest that amex wrote beside the store, one a protocol, as it is and without splits;
            with blanks in between. Empty where a user gave all.
    """

    manifest: Path | None = None
    videos: Path | None = None
    written: str = ""


def read_sources(store: Path) -> Sources:
    """The sources of a store, all None if it does not say any; raises StoreError for a file that is damaged."""
    path = store / FILE
    with reachable(store):
        if not path.exists():
            return Sources()
    record = read_json(path, StoreError)
    if not isinstance(record, dict) or not all(isinstance(text, str) for text in record.values()):
        raise StoreError(f"{path} is damaged: delete it, and name --manifest and --videos where they are asked for")
    paths = {name: _absolute(store, record[name]) for name in ("manifest", "videos") if name in record}
    return Sources(**paths, written=record.get("written", ""))


def write_sources(store: Path, *, manifest: Path | None = None, videos: Path | None = None, written: str = "") -> None:
    """Remembers what a store is made from; a path that is None stays as it was."""
    before = read_sources(store)
    given = {"manifest": manifest or before.manifest, "videos": videos or before.videos}
    record = {name: _kept(store, path) for name, path in given.items() if path is not None}
    if written:
        record["written"] = written
    with reachable(store):
        write_json(store / FILE, record)


def _kept(store: Path, path: Path) -> str:
    if "://" in str(path):
        return str(path)
    absolute, folder = os.path.abspath(path), os.path.abspath(store.parent) if "://" not in str(store) else ""
    inside = folder and os.path.commonpath([absolute, folder]) == folder
    return os.path.relpath(absolute, folder) if inside else absolute


def _absolute(store: Path, text: str) -> Path:
    return open_path(text) if "://" in text or os.path.isabs(text) else store.parent / text
