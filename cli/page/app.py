"""The addresses of the page, and the checks of their requests.

    /            the page; what it shows is in its query string, which the page's script reads
    /static/...  its script and style
    /api/...     JSON: about, clips, captions, boxes, copy
    /still, /video, /copy   a thumbnail, the file, and the copy of a clip (?clip=ID)

All are read-only. An error is JSON with ``error``, a line; for a person who typed an unknown address, a page.
"""

from __future__ import annotations

import ipaddress
import traceback
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import AmexError, first_line, printable
from ...manifests import Clip
from .files import VideoFiles, media_type
from .library import Library, UnknownClip
from .pictures import Pictures

STATIC = Path(__file__).parent / "static"
# Maximum number of results per page, and of characters per query.
MOST_RESULTS, MOST_CHARACTERS = 500, 2000
# Threads for thumbnails and files, besides those for search. Another thread makes copies, which take long.
PICTURE_THREADS = 4

# Only the page's own script runs, whatever captions and ids contain, and no other site can embed or read anything.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def make_app(library: Library, files: VideoFiles | None, pictures: Pictures, hosts: Collection[str]) -> ASGIApp:
    """Return the page as an ASGI application.

    Args:
        files: None if there are no videos.
        hosts: host names, besides IP addresses, by which a browser may call this server.
    """
    answers = Answers(library, files, pictures)
    app = Starlette(
        routes=[
            Route("/", page),
            Mount("/static", StaticFiles(directory=STATIC)),
            *(Route(f"/api/{name}", getattr(answers, name)) for name in ("about", "clips", "captions", "boxes")),
            Route("/api/copy", answers.make_copy),
            *(Route(f"/{name}", getattr(answers, name)) for name in ("still", "video", "copy")),
        ],
        exception_handlers={HTTPException: refused, AmexError: failed, Exception: failed},
    )
    return Guard(app, hosts)


class Answers:
    """The answers of each address. The serving thread neither decodes nor searches."""

    def __init__(self, library: Library, files: VideoFiles | None, pictures: Pictures) -> None:
        self._library, self._files, self._pictures = library, files, pictures

    # Made on first use: they belong to the serving event loop, which starts after this object is made.
    @cached_property
    def _threads(self) -> CapacityLimiter:
        return CapacityLimiter(PICTURE_THREADS)

    @cached_property
    def _copy_thread(self) -> CapacityLimiter:
        return CapacityLimiter(1)

    def about(self, request: Request) -> Response:
        return JSONResponse(self._library.about())

    def clips(self, request: Request) -> Response:
        parameters = request.query_params
        query = parameters.get("q", "").strip()
        if len(query) > MOST_CHARACTERS:
            raise AmexError(f"the query is longer than {MOST_CHARACTERS:,} characters")
        answer = self._library.clips(
            query,
            number(parameters.get("k", "20")),
            split=parameters.get("split", ""),
            stream=parameters.get("stream", ""),
        )
        return JSONResponse(answer)

    def captions(self, request: Request) -> Response:
        return JSONResponse(self._library.captions(clip_id(request), number(request.query_params.get("k", "5"))))

    def boxes(self, request: Request) -> Response:
        return JSONResponse(self._library.boxes(clip_id(request), request.query_params.get("stream", "")))

    async def still(self, request: Request) -> Response:
        picture = await self._decoded(request, self._pictures.still, self._threads)
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})

    async def video(self, request: Request) -> Response:
        clip = self._library.clip(clip_id(request))
        return await sent(request, await to_thread.run_sync(self._path, clip, limiter=self._threads))

    async def make_copy(self, request: Request) -> Response:
        copy = await self._decoded(request, self._pictures.copy, self._copy_thread)
        return JSONResponse({"begin": copy.begin, "end": copy.end, "cut": copy.cut})

    async def copy(self, request: Request) -> Response:
        return await sent(request, (await self._decoded(request, self._pictures.copy, self._copy_thread)).path)

    async def _decoded(self, request: Request, decode: Callable[..., Any], threads: CapacityLimiter) -> Any:
        """Run ``decode`` on the seconds of a clip in one of a few threads, so that searches are not delayed."""
        clip = self._library.clip(clip_id(request))
        return await to_thread.run_sync(lambda: decode(self._path(clip), clip.start, clip.end), limiter=threads)

    def _path(self, clip: Clip) -> Path:
        if self._files is None:
            raise AmexError("there are no videos here: name their folder with --videos")
        return self._files.path(clip)


async def page(request: Request) -> Response:
    return FileResponse(STATIC / "page.html")


async def sent(request: Request, path: Path) -> Response:
    """Return a file: as a whole, a range of it, or the status that the browser's copy is valid."""
    status = await to_thread.run_sync(path.stat)
    response = StaticFiles(directory=path.parent).file_response(path, status, request.scope)
    if isinstance(response, FileResponse):
        response.headers["Content-Type"] = media_type(path)
    response.headers["Cache-Control"] = "private, no-cache"  # the browser revalidates its copy each time
    return response


def clip_id(request: Request) -> str:
    return request.query_params.get("clip", "")


def number(text: str) -> int:
    """Parse the number of results, and limit it."""
    try:
        return min(max(1, int(text)), MOST_RESULTS)
    except ValueError:
        raise AmexError("k must be a whole number") from None


def refused(request: Request, error: Exception) -> Response:
    """Answer a request for an unknown address or method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and not request.url.path.startswith("/api/"):
        return FileResponse(STATIC / "missing.html", status_code=404)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def failed(request: Request, error: Exception) -> Response:
    """Answer with the error of a searcher, a store or a video."""
    if isinstance(error, AmexError):
        return JSONResponse({"error": str(error)}, 404 if isinstance(error, UnknownClip) else 422)
    traceback.print_exception(error)  # a bug: show where to the person who started amex
    return JSONResponse({"error": f"{type(error).__name__}: {printable(first_line(error))}"}, 500)


class Guard:
    """Answers only requests that call this server by its own name, and adds security headers.

    In a DNS rebinding attack, another site's name points to this machine, and that site could read the answers. The
    browser then sends that site's name as the host.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        accepted = scope["type"] != "http" or self._knows(Headers(scope=scope).getlist("host"))
        answer = self._app if accepted else PlainTextResponse("this server has another name\n", 421)
        await answer(scope, receive, guarded)

    def _knows(self, hosts: list[str]) -> bool:
        if len(hosts) != 1:
            return False
        try:
            name = urlsplit(f"//{hosts[0]}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or is_address(name)


def is_address(host: str) -> bool:
    """Return whether a host is an IP address, which no other site can claim."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
