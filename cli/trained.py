"""What ``amex eval``, ``search`` and ``report`` share: a checkpoint with the store and the clips it is used on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..console import progress_bar
from ..errors import AmexError, printable
from .options import FILE, STORAGE_PATH
from .places import videos_of

store_option = click.option("--store", type=STORAGE_PATH, help="The features.  [default: as in training]")
manifest_option = click.option("--manifest", "manifest_path", type=FILE, help="The clips.  [default: as in training]")
videos_option = click.option(
    "--videos",
    type=FILE,
    help="The folder of the videos, for thumbnails.  [default: where the store says they were, if they still are]",
)
strict_option = click.option(
    "--strict",
    is_flag=True,
    help="Fail if any clip or caption has no features.  [default: what failed or is empty is left out, with a count]",
)


class Used(NamedTuple):
    """A checkpoint with what it is to be used on."""

    checkpoint: Any
    store: Any
    clips: list[Any]
    text: Any


def load(path: Path, store: Path | None, manifest: Path | None) -> Used:
    """A checkpoint with the store and the clips it is to be used on: given, or those it was trained with."""
    from ..features import open_store
    from ..manifests import read_manifest
    from ..storage import open_path
    from ..train.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    where = {name: open_path(text) for name, text in checkpoint.sources.items()}
    for name, given in (("store", store), ("manifest", manifest)):
        if given is None and not where[name].exists():
            raise AmexError(f"the {name} of the training run, {where[name]}, is gone: give one with --{name}")
    opened, manifest = open_store(store or where["store"]), manifest or where["manifest"]
    checkpoint.check_features(opened)
    return Used(checkpoint, opened, read_manifest(manifest), checkpoint.text(opened, manifest))


@contextlib.contextmanager
def encoding(clips: Sequence[Any]) -> Iterator[Callable[[int], None]]:
    """A bar while clips and their different captions are encoded, and what to call with how many more are."""
    with progress_bar() as bar:
        task = bar.add_task("encoding", total=len(clips) + len({text for clip in clips for text in clip.captions}))
        yield lambda count: bar.advance(task, count)


def thumbnails(store: Any, videos: Path | None) -> Callable[[Any], bytes | None]:
    """Pictures of clips, from their videos where there is a folder of them."""
    videos = videos_of(store.path, videos)
    if videos is None:
        return lambda clip: None
    if not videos.is_dir():
        raise AmexError(f"--videos {videos} is not a folder")
    from ..extract.sheet import thumbnail

    def made(clip: Any) -> bytes | None:
        try:
            return thumbnail(store, clip.clip_id, videos)
        except AmexError as error:
            click.echo(f"no thumbnail of {printable(clip.clip_id)}: {error}", err=True)
            return None

    return made
