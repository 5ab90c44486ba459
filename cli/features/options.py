"""What the commands of ``amex features`` share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from ..options import STORAGE_PATH

store_argument = click.argument("store", type=STORAGE_PATH)
skip_damaged_option = click.option(
    "--skip-damaged", is_flag=True, help="Read on without the parts whose commit records are damaged."
)


def ids_of(clips: Iterable[Any], stream: Any) -> dict[str, None]:
    """The ids that the clips of a manifest have in a stream, each once; in a stream of text their captions."""
    from ...features import is_of_captions

    if is_of_captions(stream.spec):
        return dict.fromkeys(caption for clip in clips for caption in clip.captions)
    return dict.fromkeys(clip.clip_id for clip in clips)


def warn_skipped(stream: Any) -> None:
    """Says on standard error which parts of a stream are left out."""
    for part in stream.damaged:
        click.echo(f"{stream.name}: damaged part {part} is left out, its clips are absent", err=True)
