"""The manifest and the videos folder of a store, recorded so that later commands find them."""

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
    """The inputs of the last extraction into a store. None means unknown.

    A path inside the folder that contains the store is stored relative to it, so the folder can be moved.

    Attributes:
        manifest: the manifest file.
        videos: the folder of videos.
        written: the sha256 of each manifest that amex wrote beside the store, with and without splits, separated by
            spaces. Empty if the user provided all manifests.
    """

    manifest: Path | None = None
    videos: Path | None = None
    written: str = ""


def read_sources(store: Path) -> Sources:
    """Read the sources of a store; all None if none are recorded. Raises StoreError if the file is damaged."""
    path = store / FILE
    with reachable(store):
        if not path.exists():
            return Sources()
    record = read_json(path, StoreError)
    if not isinstance(record, dict) or not all(isinstance(text, str) for text in record.values()):
        raise StoreError(f"{path} is damaged: delete it, and give --manifest and --videos to commands that need them")
    paths = {name: _absolute(store, record[name]) for name in ("manifest", "videos") if name in record}
    return Sources(**paths, written=record.get("written", ""))


def write_sources(store: Path, *, manifest: Path | None = None, videos: Path | None = None, written: str = "") -> None:
    """Record the sources of a store. A path that is None keeps its recorded value."""
    previous = read_sources(store)
    paths = {"manifest": manifest or previous.manifest, "videos": videos or previous.videos}
    record = {name: _as_text(store, path) for name, path in paths.items() if path is not None}
    if written:
        record["written"] = written
    with reachable(store):
        write_json(store / FILE, record)


def _as_text(store: Path, path: Path) -> str:
    if "://" in str(path):
        return str(path)
    absolute, folder = os.path.abspath(path), os.path.abspath(store.parent) if "://" not in str(store) else ""
    inside = folder and os.path.commonpath([absolute, folder]) == folder
    return os.path.relpath(absolute, folder) if inside else absolute


def _absolute(store: Path, text: str) -> Path:
    return open_path(text) if "://" in text or os.path.isabs(text) else store.parent / text
