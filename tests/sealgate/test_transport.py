"""What stands in clear on a sealed request: a closed list, whatever is installed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from sealgate import AsyncClient, Client, Options
from sealgate.errors import ProfileError, TransportError
from sealgate.transport import Pools, sent_fields
from tests.support.issuers import https_host
from tests.support.servers import ROOT

CLEAR = {
    "host", "content-length", "content-type", "transfer-encoding", "incremental",
    "accept-encoding", "user-agent",
}  # fmt: skip

# An application with OpenTelemetry's instrumentation of httpx, inside a span with
# baggage; and a server that answers nothing but keeps the fields it was sent.
APPLICATION = """
import asyncio, http.server, json, sys, threading, urllib.request
import httpx
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from sealgate import AsyncClient, Client
from sealgate.errors import SealgateError
from tests.sealgate.test_client import KEYS

seen = []

class Gateway(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        seen.append([name.lower() for name in self.headers])
        keys = self.path == "/.well-known/ohttp-gateway"
        self.send_response(200 if keys else 404)
        self.send_header("content-type", "application/ohttp-keys")
        self.send_header("content-length", str(len(KEYS) if keys else 0))
        self.end_headers()
        self.wfile.write(KEYS if keys else b"")

    do_POST = do_GET

    def log_message(self, *arguments):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Gateway)
url = f"http://127.0.0.1:{server.server_port}"
threading.Thread(target=server.serve_forever, daemon=True).start()
trace.set_tracer_provider(TracerProvider())
HTTPXClientInstrumentor().instrument()

async def asynchronous():
    async with AsyncClient(url, token="t") as client:
        for attempt in (client.metadata("m"), stream(client)):
            try:
                await attempt
            except SealgateError:
                pass

async def stream(client):
    async with client.stream("POST", "/v2/models/m/infer", body=b"x" * 100):
        pass

context.attach(baggage.set_baggage("customer", "42"))
with trace.get_tracer("t").start_as_current_span("work"):
    httpx.get(url + "/plain")
    plain = seen.pop()
    with Client(url, token="t") as client:
        client.health()
        try:
            client.metadata("m")
        except SealgateError:
            pass
    asyncio.run(asynchronous())
server.shutdown()
print(json.dumps({"plain": plain, "ours": seen}))
"""


def test_instrumentation_adds_nothing_to_a_sealed_request():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", APPLICATION],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert {"traceparent", "baggage"} <= set(seen["plain"])  # the hook is there
    assert len(seen["ours"]) >= 6
    for fields in seen["ours"]:
        assert set(fields) <= CLEAR


def test_no_other_field_can_be_sent():
    with pytest.raises(TransportError, match="traceparent is no field"):
        sent_fields({"traceparent": "00-1"})


def kept(**options):
    return options


@pytest.mark.parametrize(
    ("environment", "url", "proxied"),
    [
        ({}, "https://models.example", False),
        ({"https_proxy": "http://u:p%40@127.0.0.1:8"}, "https://models.example", True),
        ({"all_proxy": "127.0.0.1:8"}, "https://models.example", True),
        ({"http_proxy": "http://127.0.0.1:8"}, "https://models.example", False),
        # Whoever is in between could answer with keys of their own.
        ({"http_proxy": "http://proxy.example:8"}, "http://127.0.0.1:3000", False),
        ({"all_proxy": "http://proxy.example:8"}, "http://localhost:3000", False),
        (
            {"https_proxy": "http://127.0.0.1:8", "no_proxy": "models.example"},
            "https://models.example",
            False,
        ),
    ],
)
def test_proxies_of_the_environment(monkeypatch, environment, url, proxied):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chosen = Pools(kept, 1.0).to(url)["proxy"]
    assert (chosen is not None) is proxied
    if "u:p" in str(environment):
        assert chosen.auth == (b"u", b"p@")
        assert b"p" not in chosen.url.host


def test_a_proxy_that_is_none_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "ftp://u:hush@127.0.0.1:8")
    with pytest.raises(ProfileError) as caught:
        Pools(kept, 1.0).to("https://models.example")
    assert "hush" not in str(caught.value)


def test_a_connection_that_fails_says_why():
    async def ask():
        async with AsyncClient("http://127.0.0.1:9", token="t") as client:
            await client.metadata("m")

    with pytest.raises(
        TransportError, match="the connection was refused; does it run there"
    ):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://no-such-host.invalid", "its name is not known to DNS"),
        ("http://127.0.0.1:9", "the connection was refused"),
    ],
)
def test_both_clients_say_why(url, why):
    with Client(url, token="t") as client, pytest.raises(TransportError, match=why):
        client.metadata("m")


@pytest.fixture
def tls_server(tmp_path):
    """An https server whose certificate is its own authority, which it gives too."""
    with https_host(tmp_path) as host:
        yield host.url.removesuffix("/keys"), host.authority


def test_a_certificate_that_nobody_knows_is_named(tls_server):
    url, _ = tls_server
    with (
        Client(url, token="t") as client,
        pytest.raises(TransportError, match="TLS: self-signed certificate"),
    ):
        client.metadata("m")


def test_an_authority_of_ones_own(tls_server, tmp_path):
    url, public = tls_server
    with Client(url, token="t", options=Options(authorities=public)) as client:
        assert client.health()
    (tmp_path / "none.pem").write_text("none")
    for path in (tmp_path / "none.pem", tmp_path / "missing.pem"):
        with (
            Client(url, token="t", options=Options(authorities=path)) as client,
            pytest.raises(ProfileError, match="authorities"),
        ):
            client.metadata("m")


@pytest.mark.parametrize(
    ("setting", "why"),
    [("http://127.0.0.1:9", "the connection was refused"), ("", None)],
)
def test_a_proxy_of_ones_own_counts_before_the_environments(
    tls_server, monkeypatch, setting, why
):
    url, public = tls_server
    if not setting:  # none at all, whatever the environment says
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    options = Options(authorities=public, proxy=setting)
    with Client(url, token="t", options=options) as client:
        if why is None:
            assert client.health()
        else:
            with pytest.raises(TransportError, match=why):
                client.metadata("m")


def test_a_proxy_setting_that_is_none():
    with (
        Client("https://x.example", token="t", options=Options(proxy="ftp://p")) as c,
        pytest.raises(ProfileError, match="proxy: its scheme must be one of"),
    ):
        c.metadata("m")
