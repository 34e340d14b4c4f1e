"""The demonstration: a page that seals its own requests, and who opens them.

    make demo

Serves what `make quickstart` built, and a page of this folder from another origin of
this machine, as a web developer would have it. The page's server sees no row and no
answer. It hands out a token for the model of the demonstration, so it listens on
127.0.0.1 alone, to pages of its own origin, and, where the kernel says whose a
connection is (Linux), to the account that started it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np

from models.data.datasets import TabularDataset
from sealgate import Client, Profile
from sealgate.errors import SealgateError
from sealgate.peers import is_ours
from security.training.config import load_config
from security.training.data import load_split

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(os.environ.get("SEALGATE_HOME", ROOT / ".sealgate"))
CLIENT = ROOT / "clients/js/dist/sealgate.min.js"
TRAINING = ROOT / "examples/breast_cancer.toml"
MODEL = "breast-cancer"
# What the page is made of; no other path is answered.
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/sealgate.js": (CLIENT, "text/javascript; charset=utf-8"),
}
START_TIMEOUT_S = 120


def main() -> int:
    """Serve until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(description="A page that seals its own requests.")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    args = parser.parse_args()
    for needed, how in ((HOME / "profile.json", "quickstart"), (CLIENT, "demo")):
        if not needed.exists():
            raise SystemExit(f"error: {needed} is missing; run 'make {how}' first")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with page_server(args.port) as server, gateway(server.origin) as url:
            server.context = context(url)
            print(f"open {server.origin}/ in a browser; Ctrl-C ends it", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        return 0
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def gateway(origin: str) -> Iterator[str]:
    """Sealgate on a free port, for pages of an origin; its URL once it answers."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    command = [sys.executable, "-m", "security", "serve", "sealgate:latest"]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env={**os.environ, "SEALGATE_SERVICE_ALLOWED_ORIGINS": origin},
        cwd=ROOT,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with Client(url, token=str) as client:  # health is asked without a token
        while not client.health():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("error: the server did not start")
            time.sleep(0.2)


def context(url: str) -> dict[str, Any]:
    """What the page needs to know: where the model is, whom to trust, what a row is."""
    profile = Profile.load(HOME / "profile.json")
    with Client.from_profile(replace(profile, url=url)) as client:
        metadata = client.metadata(MODEL)
    (tensor,) = metadata["inputs"]
    _, holdout = load_split(load_config(TRAINING))
    if not isinstance(holdout, TabularDataset):
        raise SystemExit("error: the recipe is not of a table")
    return {
        "url": url,
        "token": profile.token,
        "model": MODEL,
        "identityKeys": list(profile.identity_keys),
        "trustedKeys": list(profile.trusted_keys),
        "input": tensor["name"],
        "classes": list(holdout.classes),
        "columns": [
            {"name": column.name, "low": column.low, "high": column.high}
            for column in holdout.columns
        ],
        "examples": [_example(holdout, name) for name in ("benign", "malignant")],
    }


def _example(holdout: TabularDataset, name: str) -> list[float]:
    """The first held-out row of a class."""
    place = int(np.argmax(holdout.labels == holdout.classes.index(name)))
    return [float(value) for value in holdout.features[place]]


class PageServer(http.server.ThreadingHTTPServer):
    """Serves the page and its context, to itself alone.

    Attributes:
        context: of `context`; empty until the gateway answers.
    """

    daemon_threads = True
    context: Mapping[str, Any] = {}

    @property
    def origin(self) -> str:
        """As browsers write it."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PageServer
    timeout = 10

    def do_GET(self) -> None:
        """Answer one of the few paths."""
        if self.headers["host"] != self.server.origin.removeprefix("http://"):
            # Another name for this machine: a page elsewhere that rebinds its own.
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        elif self._is_of_others():
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/context.json":
            self._answer(json.dumps(self.server.context).encode(), "application/json")
        elif self.path in FILES:
            name, kind = FILES[self.path]
            self._answer((Path(__file__).parent / name).read_bytes(), kind)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _is_of_others(self) -> bool:
        """Whether a page of another origin asks, or another account of this machine."""
        site = self.headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin"):
            return True
        return sys.platform == "linux" and not is_ours(self.connection)

    def _answer(self, content: bytes, kind: str) -> None:
        allowed = f"'self' {self.server.context.get('url', '')}"
        policy = (
            "default-src 'none'; script-src 'self'; style-src 'self'; "
            f"connect-src {allowed}; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'; require-trusted-types-for 'script'"
        )
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: who asks is the only one here."""


@contextlib.contextmanager
def page_server(port: int) -> Iterator[PageServer]:
    """The page's server, listening.

    Raises:
        SystemExit: the port is taken, or none.
    """
    try:
        server = PageServer(("127.0.0.1", port), _Handler)
    except OSError as error:
        raise SystemExit(f"error: port {port}: {error.strerror}") from None
    except OverflowError:
        raise SystemExit(f"error: port {port}: not from 0 to 65535") from None
    with server:
        yield server


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SealgateError as error:
        sys.exit(f"error: {error}")
