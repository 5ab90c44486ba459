"""Options and pictures that ``amex eval``, ``search`` and ``report`` share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ..console import progress_bar
from ..errors import AmexError, printable
from .parameters import FOLDER, MANIFEST, STORE
from .places import videos_of

store_option = click.option("--store", type=STORE, help="The store.  [default: as in training]")
manifest_option = click.option(
    "--manifest", "manifest_path", type=MANIFEST, help="The manifest.  [default: as in training]"
)
videos_option = click.option(
    "--videos",
    type=FOLDER,
    help="The folder of the videos, for thumbnails.  [default: the folder that the store was made from]",
)
strict_option = click.option(
    "--strict",
    is_flag=True,
    help="Fail if a clip or caption has no features.  [default: leave them out, and print how many]",
)


@contextlib.contextmanager
def encoding(clips: Sequence[Any]) -> Iterator[Callable[[int], None]]:
    """Show a progress bar while clips and their distinct captions are encoded; yield a function that advances it."""
    with progress_bar() as bar:
        task = bar.add_task("encoding", total=len(clips) + len({text for clip in clips for text in clip.captions}))
        yield lambda count: bar.advance(task, count)


def thumbnails(store: Any, videos: Path | None) -> Callable[[Any], bytes | None]:
    """Return a function that makes the thumbnail of a clip; without a folder of videos it returns None."""
    if (folder := _folder_of(store, videos)) is None:
        return lambda clip: None
    from ..extract.sheet import thumbnail

    feeders = _feeders()

    def make(clip: Any) -> bytes | None:
        try:
            return thumbnail(store, clip.clip_id, folder, feeders)
        except AmexError as error:
            click.echo(f"no thumbnail of {printable(clip.clip_id)}: {error}", err=True)
            return None

    return make


def frames_at(store: Any, videos: Path | None) -> Callable[[Any, str, Sequence[float]], list[bytes]]:
    """Return a function that reads frames of a clip at given times; without a folder of videos it returns none."""
    if (folder := _folder_of(store, videos)) is None:
        return lambda clip, stream, seconds: []
    from ..extract.sheet import FRAME_HEIGHT, jpeg, read_frames

    feeders = _feeders()

    def read(clip: Any, stream: str, seconds: Sequence[float]) -> list[bytes]:
        path = folder / store[stream].video(clip.clip_id)
        try:
            return [jpeg(frame, FRAME_HEIGHT) for frame in read_frames(path, list(seconds), feeders)]
        except AmexError as error:
            click.echo(f"no frames of {printable(clip.clip_id)}: {error}", err=True)
            return []

    return read


def _folder_of(store: Any, videos: Path | None) -> Path | None:
    folder = videos_of(store.path, videos)
    if folder is not None and not folder.is_dir():
        raise AmexError(f"--videos {folder} is not a folder")
    return folder


def _feeders() -> Any:
    """Return decoding processes, which start with the first picture and end with the command."""
    from ..extract.video import Feeders

    feeders = Feeders()
    click.get_current_context().call_on_close(feeders.close)
    return feeders
