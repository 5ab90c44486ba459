"""A server of S3's API for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Server:
    """S3's API on the loopback, which can be told to fail."""

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.trouble: Callable[[dict[str, Any]], int | None] = lambda request: None
        self.seen: list[tuple[str, str]] = []
        self.http = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self.http.port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if status := self.trouble(environ):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} Trouble", [("Content-Length", "0")])
            return [b""]
        return self.app(environ, start_response)
