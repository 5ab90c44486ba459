"""The folder of a data set below the data root. All commands use it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# The environment variable for another data root than ./data.
ROOT_VARIABLE = "AMEX_ROOT"


def data_root(given: Path | None = None) -> Path:
    """Return the data root, the folder of all data sets: ``given``, else ``$AMEX_ROOT``, else ``./data``."""
    return given or Path(os.environ.get(ROOT_VARIABLE) or "data")


@dataclass(frozen=True)
class DatasetFolder:
    """The folder of one data set.

    Attributes:
        folder: ``ROOT/NAME``.
    """

    folder: Path

    @property
    def annotations(self) -> Path:
        """The folder of the downloaded annotation files."""
        return self.folder / "annotations"

    @property
    def videos(self) -> Path:
        """The folder of the videos, in any layout."""
        return self.folder / "videos"

    @property
    def store(self) -> Path:
        """The store with the features of all protocols, because protocols share clips."""
        return self.folder / "features.zarr"

    def manifest(self, protocol: str) -> Path:
        """Return the path of the manifest of a protocol, beside the store."""
        return self.folder / f"{protocol}.jsonl"
