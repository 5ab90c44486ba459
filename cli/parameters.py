"""Types of arguments and options. They refuse wrong values before a command imports anything heavy.

A path that must exist is checked here: the libraries that would read it take seconds to import.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ..errors import AmexError


class StoragePath(click.ParamType):
    """A folder, or an address such as s3://BUCKET/NAME.

    Args:
        absent: the error for a local path that does not exist, with ``{path}`` and ``{option}``; empty accepts it.
            Addresses are not checked: a request takes long.
    """

    name = "path"

    def __init__(self, absent: str = "") -> None:
        self.absent = absent

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from ..storage import open_path

        path = open_path(value)
        if self.absent and isinstance(path, Path):
            try:
                exists = self.accepts(path)
            except OSError as error:
                raise AmexError(f"{path} cannot be read: {error.strerror}") from error
            if not exists:
                option = param.opts[0] if isinstance(param, click.Option) else ""
                raise AmexError(self.absent.format(path=path, option=option).strip())
        return path

    def accepts(self, path: Path) -> bool:
        """Return whether a local path is there, and of the right kind."""
        return path.exists()


class Folder(StoragePath):
    """A folder that must exist, or an address."""

    def __init__(self) -> None:
        super().__init__("{option} {path} is not a folder")

    def accepts(self, path: Path) -> bool:
        return path.is_dir()


class Checkpoint(StoragePath):
    """The work folder of a run with its best.pth, or a checkpoint file."""

    def __init__(self) -> None:
        super().__init__("there is no checkpoint {path}; amex train writes best.pth and last.pth to its --work-dir")

    def accepts(self, path: Path) -> bool:
        return path.is_file() or (path / "best.pth").is_file()


class Positive(click.FloatRange):
    """A number above zero, up to ``most``, and neither NaN nor infinite."""

    def __init__(self, most: float | None = None) -> None:
        super().__init__(min=0, min_open=True, max=most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class StreamValue(click.ParamType):
    """``STREAM=VALUE`` as (stream, value).

    Args:
        optional: whether ``STREAM`` alone may stand for ``STREAM=STREAM``.
    """

    name = "stream=value"

    def __init__(self, *, optional: bool = False) -> None:
        self.optional = optional

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        stream, equals, rest = value.partition("=")
        if not stream or (not rest and not (self.optional and not equals)):
            self.fail(f"expected STREAM=VALUE, as in r2plus1d_18=random:0, got {value!r}", param, ctx)
        return stream, rest or stream


class StreamSetting(click.ParamType):
    """``STREAM.KEY=VALUE`` as (stream, key, value)."""

    name = "stream.key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str, str]:
        path, equals, text = value.partition("=")
        stream, _, key = path.rpartition(".")
        if not (stream and key and equals):
            self.fail(f"expected NAME.KEY=VALUE, as in r2plus1d_18.stride=8, got {value!r}", param, ctx)
        return stream, key, text


class PartitionNumber(click.ParamType):
    """``K/N`` as (K, N), K from 0 to N-1."""

    name = "k/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        try:
            number, of = (int(word) for word in value.split("/"))
        except ValueError:
            number, of = 0, 0
        if not 0 <= number < of:
            self.fail(f"expected K/N with K from 0 to N-1, as in 3/64, got {value!r}", param, ctx)
        return number, of


FILE = click.Path(path_type=Path)
STORAGE_PATH = StoragePath()
STORE = StoragePath("there is no store {path}; make one with: amex extract FOLDER --store {path}")
MANIFEST = StoragePath("there is no manifest {path}; make one with: amex manifest build")
SOURCE = StoragePath("{path} does not exist")
FOLDER = Folder()
CHECKPOINT = Checkpoint()
POSITIVE = Positive()
