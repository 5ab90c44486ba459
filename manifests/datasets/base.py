"""What a data set module provides, and the reading of files that they share."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...places import locate
from ..clip import Clip, ManifestError


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set: where its annotations come from and how they become clips.

    Attributes:
        help: one line for ``--help``: what --annotations must be.
        build: makes the clips from the annotations path and a protocol.
        protocols: the published splits to choose from, the default first; empty where there is only one.
    """

    help: str
    build: Callable[[Path, str], Iterable[Clip]]
    protocols: tuple[str, ...] = ()

    def clips(self, annotations: str | Path, protocol: str | None = None) -> list[Clip]:
        """The clips of this data set.

        Raises:
            ManifestError: if a file is absent or is not what it should be, or the protocol is unknown.
        """
        path = locate(annotations)
        if not path.exists():
            raise ManifestError(f"{path} does not exist; --annotations takes {self.help}")
        if protocol is not None and protocol not in self.protocols:
            choices = ", ".join(self.protocols) or "none: this data set has one split"
            raise ManifestError(f"unknown protocol {protocol!r}; choose from {choices}")
        chosen = protocol or (self.protocols[0] if self.protocols else "")
        try:
            return list(self.build(path, chosen))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ManifestError(
                f"{path} is not laid out as expected ({type(error).__name__}: {error}); --annotations takes {self.help}"
            ) from error


def read_json(path: Path) -> Any:
    """A JSON file; raises ManifestError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ManifestError(f"{path} is not JSON: {error}") from error


def read_csv(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least ``columns``; raises ManifestError that names the file and the column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            missing = [name for name in columns if name not in (reader.fieldnames or [])]
            if missing:
                raise ManifestError(f"{path} has no column {missing[0]!r}; its columns are {reader.fieldnames}")
            return list(reader)
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path} is not a CSV file: {error}") from error
