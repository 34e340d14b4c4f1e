"""Chromium as a person uses it: a page is opened, clicked, read and looked at.

By the Chrome DevTools Protocol over one websocket; what is used of it is in its stable
version 1.3.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from httpx_ws import WebSocketSession, connect_ws

__all__ = ["CHROMIUM", "Page", "chromium", "opened"]

_PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _PROGRAMS)), None)
_TIMEOUT_S = 60.0


class Page:
    """An open page.

    Attributes:
        told: what it wrote to the console, and errors that nobody caught.
    """

    def __init__(self, session: WebSocketSession) -> None:
        self._session = session
        self._sent = 0
        self.told: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return what it gives."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        self._session.send_text(json.dumps(message))
        while True:
            found = json.loads(self._session.receive_text(timeout=_TIMEOUT_S))
            if found.get("id") == self._sent:
                assert "error" not in found, found
                return dict(found["result"])
            if found.get("method") in (
                "Runtime.consoleAPICalled",
                "Runtime.exceptionThrown",
                "Log.entryAdded",
            ):
                self.told.append(json.dumps(found["params"]))

    def value(self, expression: str) -> Any:
        """What an expression gives in the page, awaited."""
        result = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Until an expression holds; fails after a minute."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not self.value(expression):
            assert time.monotonic() < deadline, (expression, self.told)
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a key, as on a keyboard: "Tab", "Enter", "Space"."""
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        code = {"Tab": 9, "Enter": 13, "Space": 32}[key]
        name = " " if key == "Space" else key
        keys = {"key": name, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **keys)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def picture(self, path: Path, *, dark: bool = False, width: int = 1280) -> None:
        """Write a screenshot of the whole page as PNG."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=False, **size)
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def chromium(profile: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Chromium with a profile of its own, until the block ends."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--hide-scrollbars", f"--user-data-dir={profile}", *arguments),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # Where it is started by a script, that is not all of it.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def opened(url: str, folder: Path) -> Iterator[Page]:
    """A page in a new Chromium with a profile of its own, until the block ends."""
    profile = folder / "profile"
    with chromium(profile, "--remote-debugging-port=0", "about:blank") as process:
        port = _port(profile / "DevToolsActivePort", process)
        (target,) = [
            one
            for one in httpx.get(
                f"http://127.0.0.1:{port}/json", trust_env=False
            ).json()
            if one["type"] == "page"
        ]
        # Frames hold screenshots.
        with connect_ws(
            target["webSocketDebuggerUrl"], max_message_size_bytes=1 << 26
        ) as session:
            page = Page(session)
            for domain in ("Runtime", "Log", "Page"):
                page.call(f"{domain}.enable")
            page.call("Page.navigate", url=url)
            page.wait_for("document.readyState === 'complete'")
            yield page


def _port(path: Path, process: subprocess.Popen[bytes]) -> int:
    """The port that it listens on, which it writes to its profile."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not path.exists() or not path.read_text().strip():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(path.read_text().split()[0])
