"""What ``amex eval``, ``search`` and ``report`` share: a checkpoint with the store and the clips it is used on."""

from __future__ import annotations

import contextlib
import dataclasses
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
    manifest: Path


def load(path: Path, store: Path | None, manifest: Path | None, *, same_features: bool = False) -> Used:
    """A checkpoint with the store and the clips it is to be used on: given, or those it was trained with.

    Args:
        same_features: imported streams need no fingerprint of the training run's.
    """
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
    checkpoint.check_features(opened, imported=same_features)
    if same_features:
        found = {name: opened[name].fingerprint for name in checkpoint.fingerprints}
        checkpoint = dataclasses.replace(checkpoint, fingerprints=found)
    return Used(checkpoint, opened, read_manifest(manifest), checkpoint.text(opened, manifest), manifest)


@contextlib.contextmanager
def encoding(clips: Sequence[Any]) -> Iterator[Callable[[int], None]]:
    """A bar while clips and their different captions are encoded, and what to call with how many more are."""
    with progress_bar() as bar:
        task = bar.add_task("encoding", total=len(clips) + len({text for clip in clips for text in clip.captions}))
        yield lambda count: bar.advance(task, count)


def thumbnails(store: Any, videos: Path | None) -> Callable[[Any], bytes | None]:
    """Pictures of clips, from their videos where there is a folder of them."""
    if (folder := _folder_of(store, videos)) is None:
        return lambda clip: None
    from ..extract.sheet import thumbnail

    feeders = _feeders()

    def made(clip: Any) -> bytes | None:
        try:
            return thumbnail(store, clip.clip_id, folder, feeders)
        except AmexError as error:
            click.echo(f"no thumbnail of {printable(clip.clip_id)}: {error}", err=True)
            return None

    return made


def frames_at(store: Any, videos: Path | None) -> Callable[[Any, str, Sequence[float]], list[bytes]]:
    """Frames of clips where rows of a stream begin, from their videos where there is a folder of them."""
    if (folder := _folder_of(store, videos)) is None:
        return lambda clip, stream, seconds: []
    from ..extract.sheet import FRAME_HEIGHT, jpeg, read_frames

    feeders = _feeders()

    def made(clip: Any, stream: str, seconds: Sequence[float]) -> list[bytes]:
        path = folder / store[stream].video(clip.clip_id)
        try:
            return [jpeg(frame, FRAME_HEIGHT) for frame in read_frames(path, list(seconds), feeders)]
        except AmexError as error:
            click.echo(f"no frames of {printable(clip.clip_id)}: {error}", err=True)
            return []

    return made


def _folder_of(store: Any, videos: Path | None) -> Path | None:
    folder = videos_of(store.path, videos)
    if folder is not None and not folder.is_dir():
        raise AmexError(f"--videos {folder} is not a folder")
    return folder


def _feeders() -> Any:
    """What decodes, in a process that starts with the first picture and ends with the command."""
    from ..extract.video import Feeders

    feeders = Feeders()
    click.get_current_context().call_on_close(feeders.close)
    return feeders
