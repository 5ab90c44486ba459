"""How every command writes: one rich console, and whole lines where there is no terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


def console(stderr: bool = False) -> Console:
    """A console on standard output or error; wide where that is no terminal, so that lines in logs are whole.

    Square brackets and colons are printed as they are: names of clips and files may contain them.
    """
    plain = not (sys.stderr if stderr else sys.stdout).isatty()
    width = 200 if plain else None
    no_color = bool(os.environ.get("NO_COLOR"))
    return Console(stderr=stderr, width=width, soft_wrap=plain, no_color=no_color, markup=False, emoji=False)


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar on standard error that leaves nothing behind; where that is no terminal nothing is written at all."""
    from rich.progress import Progress

    errors = console(stderr=True)
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_interactive)
