"""Record for later commands which clips, and which folder of videos, a store was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import extracting
from .options import ExtractOptions
from .places import default_manifest, known

if TYPE_CHECKING:
    from ..manifests import Clip


def remember(options: ExtractOptions, clips: Sequence[Clip]) -> None:
    """Record in the store where its videos and its manifest are; write that manifest if the user gave none."""
    extracting.remember(
        options.store,
        clips,
        manifest=options.manifest_path,
        videos=options.videos,
        beside=_beside(options, clips),
        say=lambda line: click.echo(line, err=True),
    )


def _beside(options: ExtractOptions, clips: Sequence[Clip]) -> Path | None:
    """Return the path of the manifest that amex writes for the store."""
    if "://" not in str(options.store) and options.dataset not in (None, "folder"):
        which = known(options.dataset, options.root, options.protocol)
        if options.store == which.home.store:
            return default_manifest(which, clips)
    return extracting.manifest_beside(options.store)
