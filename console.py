"""How every command writes: one rich console, whole lines where there is no terminal, and one JSON option."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from rich.console import Console

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


class StoragePath(click.ParamType):
    """A folder, or an address such as s3://BUCKET/NAME."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from .storage import open_path

        return open_path(value)


STORAGE_PATH = StoragePath()


def console(stderr: bool = False) -> Console:
    """A console on standard output or error; wide where that is no terminal, so that lines in logs are whole.

    Square brackets and colons are printed as they are: names of clips and files may contain them.
    """
    plain = not (sys.stderr if stderr else sys.stdout).isatty()
    width = 200 if plain else None
    no_color = bool(os.environ.get("NO_COLOR"))
    return Console(stderr=stderr, width=width, soft_wrap=plain, no_color=no_color, markup=False, emoji=False)
