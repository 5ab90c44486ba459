"""A Chromium that tests drive through its own pipe: pages, scripts, keys, and what went wrong in them."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = "no Chromium; Debian has it as a package"
# Seconds that a page has for what a test waits for.
PATIENCE = 20
# Keys that are no letters: code, and the number that Windows gave them.
CODES = {"Enter": 13, " ": 32, "Escape": 27, "ArrowDown": 40}


class Page:
    """One tab.

    Attributes:
        errors: what scripts threw and the console said, without the requests that were answered with an error.
    """

    def __init__(self, pipe: Pipe, width: int = 1200, height: int = 900) -> None:
        self._pipe = pipe
        target = pipe.call("Target.createTarget", url="about:blank", newWindow=True, width=width, height=height)[
            "targetId"
        ]
        self._target = target
        self._session = pipe.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        answer = self._pipe.call(method, session=self._session, **parameters)
        for event in self._pipe.events:
            if event["method"] == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(event["params"]["exceptionDetails"]))
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["source"] != "network":
                self.errors.append(event["params"]["entry"]["text"])
            if event["method"] == "Page.javascriptDialogOpening":
                self.errors.append(f"dialog: {event['params']['message']}")
        self._pipe.events.clear()
        return answer

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def close(self) -> None:
        self._pipe.call("Target.closeTarget", targetId=self._target)

    def back(self, steps: int = -1) -> None:
        self.run(f"history.go({steps})")

    def media(self, **features: str) -> None:
        """As of ``prefers-color-scheme``."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._call("Emulation.setEmulatedMedia", features=named)

    def size(self, width: int, height: int) -> None:
        parameters = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self._call("Emulation.setDeviceMetricsOverride", **parameters)

    def screenshot(self) -> bytes:
        """Return the visible part of the page as a PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def run(self, script: str) -> Any:
        """The value of an expression."""
        parameters = {"expression": script, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self._call("Runtime.evaluate", **parameters)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression once that is true; of an element, true."""
        until = time.monotonic() + PATIENCE
        while not (value := self.run(f"((value) => value instanceof Node || value)({script})")):
            assert time.monotonic() < until, (script, self.run("document.body.innerText"), self.errors)
            time.sleep(0.02)
        return value

    def press(self, key: str) -> None:
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = CODES.get(key, ord(key.upper()) if len(key) == 1 else 0)
        parameters = {"key": key, "windowsVirtualKeyCode": code, "text": text}
        self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **parameters)
        self._call("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def type(self, text: str) -> None:
        self._call("Input.insertText", text=text)


class Pipe:
    """Messages to and from Chromium: JSON, a NUL after each."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, of: int) -> None:
        self.process, self._to, self._of = process, to, of
        self._number, self._unread = 0, b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            data = os.read(self._of, 1 << 16)
            assert data, f"Chromium ended with status {self.process.wait()}"
            self._unread += data
        first, _, self._unread = self._unread.partition(b"\0")
        return json.loads(first)


@contextmanager
def chromium(profile: Path) -> Iterator[Pipe]:
    """A browser of its own."""
    assert CHROMIUM, NO_CHROMIUM
    (their_in, to), (of, their_out) = os.pipe(), os.pipe()
    options = (
        "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        "--no-first-run", "--disable-extensions", "--mute-audio",
    )  # fmt: skip
    # It reads from descriptor 3 and writes to 4.
    command = ("bash", "-c", f'exec "$0" "$@" 3<&{their_in} 4>&{their_out}', CHROMIUM, *options, "about:blank")
    process = subprocess.Popen(
        command, pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(their_in)
    os.close(their_out)
    pipe = Pipe(process, to, of)
    try:
        yield pipe
        pipe.call("Browser.close")
    finally:
        os.close(to)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(of)
