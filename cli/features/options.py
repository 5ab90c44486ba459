"""Arguments, options and helpers of the commands of ``amex features``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from ..parameters import STORE

store_argument = click.argument("store", type=STORE)
skip_damaged_option = click.option(
    "--skip-damaged", is_flag=True, help="Leave out parts whose commit records are damaged."
)


def ids_of(clips: Iterable[Any], stream: Any) -> dict[str, None]:
    """Return the distinct ids of a manifest's clips in a stream; in a stream of text, their captions."""
    from ...features import is_caption_stream

    if is_caption_stream(stream.spec):
        return dict.fromkeys(caption for clip in clips for caption in clip.captions)
    return dict.fromkeys(clip.clip_id for clip in clips)


def warn_skipped(stream: Any) -> None:
    """Print on standard error which damaged parts of a stream are left out."""
    for part in stream.damaged:
        click.echo(f"{stream.name}: damaged part {part} is left out, its clips are absent", err=True)
