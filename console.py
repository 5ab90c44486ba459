"""The terminal: one rich console for all commands, tables, progress bars."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

# Columns of a log, in which lines are not wrapped, and of a page of reference, which is read.
LOG_WIDTH, PAGE_WIDTH = 200, 100


def console(stderr: bool = False) -> Console:
    """Return a console on standard output or error. Without a terminal it is wide, so that a log has whole lines.

    Square brackets and colons are printed as they are: names of clips and files may contain them.
    """
    from rich.console import Console

    plain = not (sys.stderr if stderr else sys.stdout).isatty()
    width = LOG_WIDTH if plain else None
    no_color = bool(os.environ.get("NO_COLOR"))
    return Console(stderr=stderr, width=width, soft_wrap=plain, no_color=no_color, markup=False, emoji=False)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, narrow: int | None = None) -> None:
    """Print a table whose last column is prose, at most PAGE_WIDTH columns wide. The other columns are not wrapped.

    Args:
        narrow: the index of a column that is wrapped too, to leave room for the last one.
    """
    from rich.table import Column, Table

    last = len(header) - 1
    columns = [Column(name, no_wrap=index not in (last, narrow)) for index, name in enumerate(header)]
    if narrow is not None:
        columns[narrow].max_width = 16
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    screen = console()
    screen.print(table, width=min(screen.width, PAGE_WIDTH), soft_wrap=False)


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Return a progress bar on standard error, which is removed at its end. Without a terminal nothing is written."""
    from rich.progress import Progress

    errors = console(stderr=True)
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_interactive)
