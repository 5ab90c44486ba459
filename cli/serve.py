"""``amex serve``: a local page that searches a run or a store, and plays the clips."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import AmexError, needs
from .parameters import FOLDER, STORAGE_PATH
from .trained import manifest_option, store_option

if TYPE_CHECKING:
    from ..searching import Searching

LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Seconds that unfinished answers get after Ctrl-C.
LAST_ANSWERS = 1
# A query for a warm-up: the first search computes what later ones need.
TRIAL = "a person"


@click.command()
@click.argument("path", metavar="RUN|STORE", type=STORAGE_PATH)
@store_option
@manifest_option
@click.option("--split", default="all", show_default=True, help="The split to search; all for all clips.")
@click.option(
    "--text-encoder", metavar="MODEL", help="The model that encodes queries.  [default: the model of the text stream]"
)
@click.option(
    "--videos",
    type=FOLDER,
    help="The folder of the videos.  [default: that of the last extraction into the store]",
)
@click.option("--host", default=LOOPBACK[0], show_default=True, help="The address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="The port; 0 for any free one."
)
@click.option("--open", "opened", is_flag=True, help="Open the page in a browser.")
def serve(
    path: Path,
    store: Path | None,
    manifest_path: Path | None,
    split: str,
    text_encoder: str | None,
    videos: Path | None,
    host: str,
    port: int,
    opened: bool,
) -> None:
    """Search in a browser: a local page that plays the clips.

    Only this machine can open the page, unless --host says otherwise. Ctrl-C ends it.

    \b
    amex serve run --open
    amex serve features.zarr --videos my_videos --port 0
    """
    with needs("serve", "the search page"):
        import uvicorn  # noqa: F401 - only whether it is installed
    listener = listen(host, port)
    with contextlib.closing(listener):
        from ..searching import open_searcher

        searcher = open_searcher(path, store=store, manifest=manifest_path, split=split, text_encoder=text_encoder)
        run(searcher, listener, host, videos, opened=opened)


def run(searcher: Searching, listener: socket.socket, host: str, videos: Path | None, *, opened: bool) -> None:
    """Serve the page until it is interrupted."""
    import uvicorn

    from .page import Library, VideoFiles, clip_streams, make_app, open_pictures

    root, reason = shown_videos(searcher, videos)
    if reason:
        click.echo(reason, err=True)
    try:
        searcher.clips_for(TRIAL, 1)
    except AmexError as error:  # the page can still be looked through
        click.echo(f"queries fail: {error}", err=True)
    streams = clip_streams(searcher.store)
    files = None if root is None else VideoFiles(root, streams)
    url = address(host, listener.getsockname()[1])
    with open_pictures() as pictures:
        app = make_app(Library(searcher, streams, reason), files, pictures, names_of(host))
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="critical",  # the page shows errors; at the end, answers are cut off
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LAST_ANSWERS,
        )
        click.echo(f"{searcher.description}: {searcher.coverage.clip_line}; Ctrl-C ends it", err=True)
        if host not in LOOPBACK:
            click.echo(f"warning: anyone who can reach {host} can view these clips and videos", err=True)
        click.echo(url)
        if opened:
            click.launch(url)  # the socket listens: the browser waits for the rest
        # uvicorn ends its answers on SIGTERM and raises it again: by default the process would end and leave copies.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise an AmexError that suggests another port if that fails."""
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((host, port), family=family)
        # Connections inherit it. Without it, the end of an answer waits some 40 ms until its beginning is acknowledged.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise AmexError(
            f"cannot listen on {address(host, port)}: {error.strerror or error}; choose another port with --port, or "
            "any free one with --port 0"
        ) from error


def shown_videos(searcher: Searching, videos: Path | None) -> tuple[Path | None, str]:
    """Return the folder of videos, given or recorded in the store; or None and a line that says why there is none."""
    from ..features import read_sources
    from ..storage import storage_at

    root = videos or read_sources(searcher.store.path).videos
    if root is None:
        return None, "no pictures: the store does not say where its videos are; name their folder with --videos"
    if storage_at(root).must_fetch:
        return None, f"no pictures: only videos of this machine are shown; copy {root} to a folder for --videos"
    if not root.is_dir():
        if videos:
            raise AmexError(f"--videos {videos} is not a folder")
        return None, f"no pictures: the videos folder {root} is gone; name the folder with --videos"
    return root, ""


def names_of(host: str) -> Sequence[str]:
    """Return the host names by which a browser may call a server that listens on ``host``."""
    return ("localhost", host, *(() if host in LOOPBACK else (socket.gethostname(),)))


def address(host: str, port: int) -> str:
    """Return the URL of the page; if the server listens on all addresses, with the name of this machine."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"
