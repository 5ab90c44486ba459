"""``amex manifest``: which clips, of which videos, with which captions and splits."""

from __future__ import annotations

import click

from .build import manifest_build, manifest_import, manifest_shapes
from .change import manifest_filter, manifest_merge, manifest_split
from .look import manifest_check, manifest_show, manifest_stats
from .parse import manifest_parse


@click.group()
def manifest() -> None:
    """Create, inspect and change manifests of clips."""


for command in (
    manifest_build,
    manifest_import,
    manifest_shapes,
    manifest_show,
    manifest_stats,
    manifest_check,
    manifest_split,
    manifest_filter,
    manifest_merge,
    manifest_parse,
):
    manifest.add_command(command)
