"""A server of S3's API for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

# Returns the bytes to send instead of a body, and the announced length.
Harm = Callable[[bytes], tuple[bytes, int]]


class Server:
    """A local server with S3's API, which can simulate failures.

    Attributes:
        trouble: given a request, the status of the error that answers it; None for the right answer.
        harm: given a request, what happens to the right answer on its way; None for nothing.
        seen: method and path of each request.
    """

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.trouble: Callable[[dict[str, Any]], int | None] = lambda request: None
        self.harm: Callable[[dict[str, Any]], Harm | None] = lambda request: None
        self.seen: list[tuple[str, str]] = []
        self.http = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self.http.port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if status := self.trouble(environ):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} Trouble", [("Content-Length", "0")])
            return [b""]
        if harm := self.harm(environ):
            answer: list[Any] = []
            body, length = harm(b"".join(self.app(environ, lambda *given: answer.extend(given[:2]))))
            headers = [pair for pair in answer[1] if pair[0].lower() != "content-length"]
            start_response(answer[0], [*headers, ("Content-Length", str(length))])
            return [body]
        return self.app(environ, start_response)
