"""The demonstration's page server: it has a token, so it answers its page alone."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.support.servers import ROOT

FOLDER = ROOT / "examples/demo"
_spec = importlib.util.spec_from_file_location("demo", FOLDER / "demo.py")
assert _spec is not None
demo: Any = importlib.util.module_from_spec(_spec)
assert _spec.loader is not None
_spec.loader.exec_module(demo)

GATEWAY = "http://127.0.0.1:4321"


@pytest.fixture(scope="module")
def page() -> Iterator[httpx.Client]:
    with demo.page_server(0) as server:
        server.context = {"url": GATEWAY, "token": "secret"}
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            with httpx.Client(base_url=server.origin, trust_env=False) as client:
                yield client
        finally:
            server.shutdown()
            thread.join()


def test_the_page_may_reach_itself_and_the_gateway(page: httpx.Client) -> None:
    answer = page.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == "'self'"
    assert rules["connect-src"] == f"'self' {GATEWAY}"
    assert rules["frame-ancestors"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"host": "rebound.example"}, 421),
        ({"host": "localhost:1"}, 421),
    ],
)
def test_its_token_is_for_the_page_alone(
    page: httpx.Client, headers: dict[str, str], status: int
) -> None:
    answer = page.get("/context.json", headers=headers)
    assert answer.status_code == status
    assert ("secret" in answer.text) == (status == 200)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_its_token_is_for_its_own_account_alone(page: httpx.Client) -> None:
    code = (
        "import sys, urllib.error, urllib.request\n"
        "try: print(urllib.request.urlopen(sys.argv[1]).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)"
    )
    result = subprocess.run(
        ["/usr/bin/python3", "-c", code, f"{page.base_url}/context.json"],
        user=54_321, group=54_321,
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert int(result.stdout) == 403


@pytest.mark.parametrize(
    "path", ["/demo.py", "/../demo.py", "/%2e%2e/demo.py", "/page.js?x", "/..", "*"]
)
def test_no_other_file_is_served(page: httpx.Client, path: str) -> None:
    raw = http.client.HTTPConnection("127.0.0.1", page.base_url.port)
    with contextlib.closing(raw):
        raw.request("GET", path)  # as it is: nothing is normalised
        assert raw.getresponse().status == 404


def test_a_taken_port_is_said(page: httpx.Client) -> None:
    port = page.base_url.port
    with pytest.raises(SystemExit, match=f"port {port}"), demo.page_server(port):
        pass


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none(port: int) -> None:
    with pytest.raises(SystemExit, match=f"port {port}"), demo.page_server(port):
        pass


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_fits_its_policy_and_a_screen_reader() -> None:
    """Nothing inline, nothing from elsewhere; what is named is there."""
    page = Elements()
    page.feed((FOLDER / "index.html").read_text())
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.found:
        assert not [name for name in attrs if name == "style" or name.startswith("on")]
        for name in ("for", "aria-labelledby", "aria-describedby"):
            assert attrs.get(name) in (None, *ids)
        for name in ("src", "href"):
            assert f"/{attrs.get(name)}" in {"/None", *demo.FILES}
        if tag in ("section", "form"):
            assert "aria-labelledby" in attrs
    script = (FOLDER / "page.js").read_text()
    assert set(re.findall(r'at\("([\w-]+)"\)', script)) <= set(ids)
    assert "innerHTML" not in script
