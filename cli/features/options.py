"""What the commands of ``amex features`` share."""

from __future__ import annotations

from typing import Any

import click

from ..options import STORAGE_PATH

store_argument = click.argument("store", type=STORAGE_PATH)
skip_damaged_option = click.option(
    "--skip-damaged", is_flag=True, help="Read on without the parts whose commit records are damaged."
)


def warn_skipped(stream: Any) -> None:
    """Says on standard error which parts of a stream are left out."""
    for part in stream.damaged:
        click.echo(f"{stream.name}: damaged part {part} is left out, its clips are absent", err=True)
