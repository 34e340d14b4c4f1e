"""An Oblivious HTTP client of npm packages against the real server, and through nginx.

Needs node and npm with a package registry, and nginx for the relay; skipped without.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealgate.exchange import GATEWAY_PATH
from tests.support.bundles import NAME
from tests.support.nginx import relay
from tests.support.npm import install

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "node"
BODY = {
    "inputs": [
        {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    ]
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client and its packages."""
    return install(HERE, tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module", name="relay")
def _relay(server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nginx as an Oblivious Relay in front of the server."""
    with relay(tmp_path_factory.mktemp("nginx"), server.url) as url:
        yield url


@pytest.fixture
def peer(node, server, token):
    return node, server, token


def ask(node, server, token, *, kem, aead, gateway=None, path=None, body=BODY):
    keys = server.url + GATEWAY_PATH
    path = path or f"/v2/models/{NAME}/infer"
    arguments = [keys, gateway or keys, token, kem, aead, path]
    result = subprocess.run(
        ["node", "client.mjs", *arguments],
        cwd=node,
        input="" if body is None else json.dumps(body),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    return answer["status"], json.loads(answer["text"])


@pytest.mark.parametrize("through", ["direct", "relay"])
@pytest.mark.parametrize("kem", ["x25519", "xwing"])
@pytest.mark.parametrize("aead", ["aes128gcm", "chacha20poly1305"])
def test_inference(request, peer, through, kem, aead):
    node, server, token = peer
    gateway = request.getfixturevalue("relay") if through == "relay" else None
    status, document = ask(node, server, token, kem=kem, aead=aead, gateway=gateway)
    assert status == 200, document
    assert document["outputs"][1]["data"] == [1]


def test_refusals_come_sealed(node, server):
    status, document = ask(
        node, server, "a.b.c", kem="x25519", aead="aes128gcm", path="/v2", body=None
    )
    assert status == 401
    assert document["title"] == "A valid access token is needed"


def test_our_client_through_the_relay(server, token, relay):
    from sealgate import Client, Options

    for chunked_above in (None, 1):
        options = Options(relay_url=relay, chunked_above_bytes=chunked_above)
        with Client(server.url, token=token, options=options) as client:
            assert client.infer(NAME, {"features": [[1, 2, 3]]})["label"] == [1]
