"""Where a known data set is on this disk: one folder below the data root, whatever command asks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Moves the data root from ./data.
ROOT_VARIABLE = "AMEX_ROOT"


def data_root(given: Path | None = None) -> Path:
    """The folder that holds data sets by name: what is given, else ``$AMEX_ROOT``, else ``./data``."""
    return given or Path(os.environ.get(ROOT_VARIABLE) or "data")


@dataclass(frozen=True)
class Home:
    """The folder of one data set.

    Attributes:
        folder: ``ROOT/NAME``.
    """

    folder: Path

    @property
    def annotations(self) -> Path:
        """The published files, as they were downloaded."""
        return self.folder / "annotations"

    @property
    def videos(self) -> Path:
        """The videos, in any layout."""
        return self.folder / "videos"

    @property
    def store(self) -> Path:
        """The features of all protocols: they share clips."""
        return self.folder / "features.zarr"

    def manifest(self, protocol: str) -> Path:
        """The manifest of one protocol, beside the store."""
        return self.folder / f"{protocol}.jsonl"
