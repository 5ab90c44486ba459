"""The one-line summary of a manifest, and the arguments that the commands share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from ...errors import plural, printable
from ..parameters import MANIFEST

manifest_argument = click.argument("path", metavar="MANIFEST", type=MANIFEST)
out_option = click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The manifest to write, JSON lines."
)


def summarise(clips: Iterable[Any]) -> str:
    """Summarise clips: their number, videos, splits and captions, and which split was carved from another."""
    splits, videos, captions = Counter[str](), set(), 0
    carved: dict[str, str] = {}
    for clip in clips:
        splits[clip.split] += 1
        videos.add(clip.video)
        captions += len(clip.captions)
        if "carved" in clip.extras:
            carved[clip.split] = str(clip.extras["carved"])
    return in_one_line(splits, len(videos), captions, carved)


def in_one_line(splits: Mapping[str, int], videos: int, captions: int, carved: Mapping[str, str]) -> str:
    """Format a summary: clips by split, videos, captions."""
    counts = ", ".join(f"{count:,} {printable(name) or 'no split'}" for name, count in splits.items())
    carving = "".join(f"; {split} is carved from train: {how}" for split, how in carved.items())
    clips = plural(sum(splits.values()), "clip")
    return f"{clips} of {plural(videos, 'video')} ({counts}), {plural(captions, 'caption')}{carving}"
