"""The JavaScript client in Chromium, in a page of another origin: not in CI, for size.

``make interop-browser`` runs these: Chromium takes 300 MB.
"""

from __future__ import annotations

import json
import os
import queue
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support.browser import CHROMIUM, chromium
from tests.support.js_client import build, context, serving
from tests.support.nginx import relay
from tests.support.servers import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("INTEROP") != "browser", reason="run by make interop-browser"
    ),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

PAGE = (
    b'<!doctype html><title>page</title><script type="module" src="/page.js"></script>'
)
TYPES = {".js": "text/javascript", ".json": "application/json"}


class Site(ThreadingHTTPServer):
    """Serves a page under a strict policy, and takes what it reports."""

    def __init__(self, port: int, files: Mapping[str, bytes], connects: str) -> None:
        super().__init__(("127.0.0.1", port), Visit)
        self.files = files
        self.policy = (
            f"default-src 'none'; script-src 'self'; connect-src 'self' {connects}"
        )
        self.results: queue.Queue[dict[str, Any]] = queue.Queue()


class Visit(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        suffix = Path(self.path).suffix
        self.send_header("Content-Type", TYPES.get(suffix, "text/html"))
        self.send_header("Content-Security-Policy", self.server.policy)
        self.end_headers()
        self.wfile.write(content or b"")

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        self.server.results.put(json.loads(self.rfile.read(size)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def results(
    pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What the page reports, by the host under which it was loaded."""
    folder = tmp_path_factory.mktemp("browser")
    package, port = build(folder), free_port()
    found = {}
    with (
        serving(pristine, folder, f"http://localhost:{port}") as server,
        relay(folder, server.url) as relay_url,
    ):
        origin = relay_url.removesuffix("/relay")
        files = {
            "/": PAGE,
            "/page.js": (Path(__file__).parent / "page.js").read_bytes(),
            "/sealgate.min.js": (package / "dist" / "sealgate.min.js").read_bytes(),
            "/context.json": context(server, relay=relay_url)["SERVER"].encode(),
        }
        with Site(port, files, f"{server.url} {origin}") as site:
            Thread(target=site.serve_forever, daemon=True).start()
            try:
                for host in ("localhost", "127.0.0.1"):
                    profile = folder / f"profile-{host}"
                    with chromium(profile, f"http://{host}:{port}/"):
                        found[host] = site.results.get(timeout=120)
            finally:
                site.shutdown()
    return found


@pytest.mark.parametrize(
    "name",
    [
        *("inference", "x25519", "chunked", "relay", "relay, chunked"),
        *("pinned", "pinned twice"),
        "a clock that is hours off",
    ],
)
def test_a_page_seals_its_own_requests(results, name: str) -> None:
    assert results["localhost"][name] == [1, 0]


def test_a_page_verifies_a_passport(results) -> None:
    assert results["localhost"]["passport"] == "toy:1.0.0"


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("a key that was replaced", "TransportError", "no signature by a trusted key"),
        ("an expired token", "AuthenticationError", "the token expired "),
        ("a wrong shape", "InvalidInputError", 'input "features": expected FP32[-1,3]'),
        ("a key that is gone", "KeyRefusedError", "422 The key of this request"),
        ("plaintext is closed", "TypeError", "Failed to fetch"),
        ("health is closed", "TypeError", "Failed to fetch"),
    ],
)
def test_a_page_reads_why(results, name: str, error: str, text: str) -> None:
    told = results["localhost"][name]
    assert told.startswith(f"{error}: ")
    assert text in told


def test_a_page_of_another_origin_reads_nothing(results) -> None:
    told = results["127.0.0.1"]
    for name in ("inference", "chunked", "relay", "pinned", "passport"):
        assert told[name].startswith("TransportError: the server cannot be reached"), (
            name
        )
        assert "does not allow pages of this origin" in told[name]
    assert told["plaintext is closed"] == "TypeError: Failed to fetch"
