"""A headless Chromium by the DevTools protocol over two pipes, one JSON message behind another with a zero between."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from select import select
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--hide-scrollbars", "--force-color-profile=srgb"),
)
# It reads from descriptor 3 and writes to 4; what starts it puts the pipes there.
_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_PATIENCE = 60.0
Message = dict[str, Any]


def find_browser() -> str | None:
    """The program, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A running browser with one tab.

    Attributes:
        events: all that it told since the last page was opened.
    """

    def __init__(self, program: str, folder: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()
        child = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours[0], theirs[1])]
        words = [sys.executable, "-c", _START, *map(str, child), program, *_FLAGS, f"--user-data-dir={folder}"]
        with (folder / "browser.log").open("wb") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, pass_fds=child)  # noqa: S603
        for end in (ours[0], theirs[1], *child):
            os.close(end)
        self._to, self._from = ours[1], theirs[0]
        self._sent, self._rest, self._session = 0, b"", ""
        self.events: list[Message] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(_PATIENCE)
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: object) -> Message:
        """What the browser answers; raises what it says is wrong."""
        self._sent += 1
        message: Message = {"id": self._sent, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._sent:
                assert "error" not in found, found
                return dict(found["result"])
            self.events.append(found)

    def open(self, page: Path) -> float:
        """Load a page; the seconds until it is there."""
        self.events.clear()
        start = time.monotonic()
        self.call("Page.navigate", url=page.as_uri())
        while not self.told("Page.loadEventFired"):
            self.events.append(self._next())
        return time.monotonic() - start

    def told(self, method: str) -> list[Message]:
        """What events of a name said."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def ask(self, script: str) -> Any:
        """The value of an expression on the page; one that fails fails the test."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def show(self, width: int, *, dark: bool = False, media: str = "") -> None:
        """The width of the window in pixels, and what it asks pages to look like."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def press(self, key: str) -> None:
        """A key, where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def _next(self) -> Message:
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select([self._from], [], [], max(until - time.monotonic(), 0))
            assert ready, f"nothing heard from the browser for {_PATIENCE:g} s"
            more = os.read(self._from, 1 << 20)
            assert more, "the browser ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))
