"""What attackers send to a running server: tokens of every wrong kind, and raw bytes.

The development issuer's key is at hand, so that every token but the one fault in it is
honest: what is refused is refused for that fault.
"""

from __future__ import annotations

import ast
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from security.access.dpop import Nonces
from security.access.issuer import DEVELOPMENT_ISSUER, load_issuer_key
from security.errors import NonceError
from tests.conftest import toy_settings
from tests.support.issuers import ED_KEY, b64, jwk
from tests.support.rooms import INPUT
from tests.support.servers import ROOT, Server, environment, serve

INFER = "/v2/models/toy/infer"
BODY: dict[str, Any] = {"inputs": [INPUT]}
YEAR_9999 = 253_370_764_800


@pytest.fixture(scope="module")
def issuer(deployment: Path) -> Ed25519PrivateKey:
    return load_issuer_key(deployment)


@pytest.fixture(scope="module")
def kid(deployment: Path) -> str:
    document = json.loads((deployment / "jwks.json").read_text())
    return str(document["keys"][0]["kid"])


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": DEVELOPMENT_ISSUER,
        "aud": "urn:sealgate:local",
        "sub": "mallory",
        "client_id": "attack",
        "scope": "infer:toy",
        "iat": now,
        "exp": now + 300,
        "jti": f"attack-{time.time_ns()}",
        **changes,
    }


def forge(key: Any, body: bytes | dict[str, Any], **header: Any) -> str:
    """A JWS over anything, signed with Ed25519."""
    given = {"alg": "EdDSA", "typ": "at+jwt"} | header
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    start = f"{b64(json.dumps(given).encode())}.{b64(content)}"
    return f"{start}.{b64(key.sign(start.encode()))}"


def ask(server: Server, authorization: str | bytes, path: str = INFER) -> int:
    headers = {"authorization": authorization}
    answer = httpx.post(server.url + path, json=BODY, headers=headers, timeout=30)
    return answer.status_code


def refused(server: Server, text: str) -> None:
    answer = httpx.post(
        server.url + INFER,
        json=BODY,
        headers={"authorization": f"Bearer {text}"},
        timeout=30,
    )
    assert answer.status_code == 401, text
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    # Why is for the log only: every refusal is the same.
    assert sorted(answer.json()) == ["error", "status", "title", "type"]


# Tokens.


def test_the_honest_one_passes(
    open_server: Server, issuer: Ed25519PrivateKey, kid: str
) -> None:
    assert ask(open_server, f"Bearer {forge(issuer, claims(), kid=kid)}") == 200


@pytest.mark.parametrize(
    "change",
    [
        {"exp": "4102444800"},
        {"exp": time.time() + 300},
        {"exp": YEAR_9999},
        {"exp": None},
        {"iat": YEAR_9999 - 300, "exp": YEAR_9999},
        {"nbf": YEAR_9999},
        {"aud": "urn:sealgate:local/"},
        {"aud": ["urn:other"]},
        {"aud": [["urn:sealgate:local"]]},
        {"aud": "urn:another:resource"},
        {"iss": DEVELOPMENT_ISSUER + "/"},
        {"iss": [DEVELOPMENT_ISSUER]},
        {"iss": DEVELOPMENT_ISSUER.upper()},
        {"scope": "infer:toy\tmetrics"},
        {"scope": "infer:toy  metrics"},
        {"scope": "infer:toy\u00a0metrics"},
        {"scope": ["infer:toy"]},
        {"sub": ""},
        {"sub": {"a": 1}},
        {"cnf": {"jkt": "x"}},
        {"pad": "x" * 9000},
        {"deep": [[[[[[[[[[1]]]]]]]]]]},
    ],
    # By name: the workers of one run must agree on a test's id, whatever the time.
    ids=",".join,
)
def test_one_claim_is_wrong(
    open_server: Server, issuer: Ed25519PrivateKey, kid: str, change: dict[str, Any]
) -> None:
    refused(open_server, forge(issuer, claims(**change), kid=kid))


@pytest.mark.parametrize("scope", ["infer:to", "infer:toys", "infer:to*", "infertoy"])
def test_scopes_that_only_begin_alike_grant_nothing(
    open_server: Server, issuer: Ed25519PrivateKey, kid: str, scope: str
) -> None:
    text = forge(issuer, claims(scope=scope), kid=kid)
    assert ask(open_server, f"Bearer {text}") == 404


def test_a_claim_that_is_there_twice(
    open_server: Server, issuer: Ed25519PrivateKey, kid: str
) -> None:
    for extra in (b',"scope":"infer:*"}', b',"exp":4102444800}', b',"aud":"x"}'):
        body = json.dumps(claims()).encode()[:-1] + extra
        refused(open_server, forge(issuer, body, kid=kid))


@contextmanager
def listening() -> Iterator[tuple[str, socket.socket]]:
    """A host that must never be asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield f"127.0.0.1:{listener.getsockname()[1]}", listener


def test_no_key_is_fetched_because_a_token_says_so(
    open_server: Server, issuer: Ed25519PrivateKey, kid: str
) -> None:
    """jku, x5u and kid point at a listening host, for http and https."""
    with listening() as (host, listener):
        for scheme in ("http", "https"):
            url = f"{scheme}://{host}/keys"
            # The honest key and one of the attacker's, which that host would serve.
            for key, name in ((issuer, kid), (ED_KEY, kid), (ED_KEY, url)):
                for header in ({"jku": url}, {"x5u": url}, {"jku": url, "x5u": url}):
                    text = forge(key, claims(), kid=name, **header)
                    status = ask(open_server, f"Bearer {text}")
                    assert status == (200 if key is issuer else 401)
            refused(open_server, forge(ED_KEY, claims(iss=url), kid=kid))
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_key_inside_the_token_is_not_used(open_server: Server, kid: str) -> None:
    public = jwk(ED_KEY, kid)
    for header in ({"jwk": public}, {"jwk": public, "kid": kid}, {"x5c": ["AAAA"]}):
        refused(open_server, forge(ED_KEY, claims(), **header))


@pytest.mark.parametrize(
    "name",
    [
        "../../../../etc/passwd",
        "/dev/null",
        "file:///etc/passwd",
        "jwks.json",
        "keys/issuer.pem",
        "' OR '1'='1",
        "x' UNION SELECT 'key' --",
        "; DROP TABLE revoked",
        "$(id)",
        "{{7*7}}",
        "\x00",
        "*",
        "",
        "k" * 5000,
        None,
        0,
        True,
        ["a"],
        {"a": "b"},
    ],
    ids=str,
)
def test_kid_is_a_name_and_nothing_else(
    open_server: Server, issuer: Ed25519PrivateKey, name: object
) -> None:
    refused(open_server, forge(issuer, claims(), kid=name))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", "null"])
@pytest.mark.parametrize("end", ["", "AA", "signature"])
def test_none(open_server: Server, kid: str, alg: str, end: str) -> None:
    header = {"alg": alg, "typ": "at+jwt", "kid": kid}
    start = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims()).encode())}"
    refused(open_server, f"{start}.{end}")


def test_the_public_key_is_no_secret(
    open_server: Server, issuer: Ed25519PrivateKey, kid: str, deployment: Path
) -> None:
    """What everybody can read, in every form it has, as the key of an HMAC."""
    public = issuer.public_key()
    encoding, form = serialization.Encoding, serialization.PublicFormat
    pem = public.public_bytes(encoding.PEM, form.SubjectPublicKeyInfo)
    secrets = [
        pem,
        pem.strip(),
        public.public_bytes(encoding.DER, form.SubjectPublicKeyInfo),
        public.public_bytes_raw(),
        (deployment / "jwks.json").read_bytes(),
        json.dumps(jwk(issuer, kid)).encode(),
        b"",
    ]
    for alg in ("HS256", "HS384", "HS512"):
        for secret in secrets:
            header = {"alg": alg, "typ": "at+jwt", "kid": kid}
            parts = (json.dumps(part).encode() for part in (header, claims()))
            start = ".".join(map(b64, parts))
            mac = jwt.algorithms.HMACAlgorithm(_HASHES[alg]).sign(
                start.encode(), secret
            )
            refused(open_server, f"{start}.{b64(mac)}")


_HASHES = {
    "HS256": jwt.algorithms.HMACAlgorithm.SHA256,
    "HS384": jwt.algorithms.HMACAlgorithm.SHA384,
    "HS512": jwt.algorithms.HMACAlgorithm.SHA512,
}


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "ES256"},
        {"alg": "RS256"},
        {"alg": "Ed25519"},
        {"alg": "eddsa"},
        {"alg": ["EdDSA"]},
        {"typ": "JWT"},
        {"typ": "dpop+jwt"},
        {"typ": "at+jwt "},
        {"typ": None},
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": False},
        {"crit": []},
        {"b64": False},
        {"zip": "DEF", "crit": ["zip"]},
    ],
    ids=str,
)
def test_one_header_is_wrong(
    open_server: Server, issuer: Ed25519PrivateKey, kid: str, header: dict[str, Any]
) -> None:
    refused(open_server, forge(issuer, claims(), **{"kid": kid} | header))


@pytest.mark.parametrize(
    "shape",
    [
        "Bearer  {}",
        "Bearer\t{}",
        "Bearer {}, Bearer {}",
        "Bearer {},{}",
        "Bearer={}",
        "Bearer:{}",
        'Bearer "{}"',
        "Bearer token={}",
        "Token {}",
        "JWT {}",
        "{}",
        "Bearer Bearer {}",
        "DPoP {}",
        "Basic {}",
    ],
)
def test_the_scheme_in_other_spellings(
    open_server: Server, issuer: Ed25519PrivateKey, kid: str, shape: str
) -> None:
    text = forge(issuer, claims(), kid=kid)
    value = shape.replace("{}", text)
    status = ask(open_server, value)
    assert status == 401


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR"])
def test_the_scheme_has_no_case(
    open_server: Server, issuer: Ed25519PrivateKey, kid: str, scheme: str
) -> None:
    text = forge(issuer, claims(), kid=kid)
    assert ask(open_server, f"{scheme} {text}") == 200


def test_two_authorization_fields_are_none(
    open_server: Server, issuer: Ed25519PrivateKey, kid: str
) -> None:
    good = f"Bearer {forge(issuer, claims(), kid=kid)}"
    for pair in ((good, good), (good, "Bearer x"), ("Basic eDp5", good), ("", good)):
        headers = [("authorization", value) for value in pair]
        answer = httpx.post(open_server.url + INFER, json=BODY, headers=headers)
        assert answer.status_code == 400
        assert 'error="invalid_request"' in answer.headers["www-authenticate"]


def test_a_token_elsewhere_is_no_token(
    open_server: Server, issuer: Ed25519PrivateKey, kid: str
) -> None:
    text = forge(issuer, claims(), kid=kid)
    for path in (f"?access_token={text}", f"?authorization=Bearer%20{text}"):
        assert httpx.post(open_server.url + INFER + path, json=BODY).status_code == 401
    for headers in (
        {"cookie": f"access_token={text}"},
        {"x-authorization": f"Bearer {text}"},
        {"proxy-authorization": f"Bearer {text}"},
        {"x-forwarded-access-token": text},
    ):
        answer = httpx.post(open_server.url + INFER, json=BODY, headers=headers)
        assert answer.status_code == 401
    form = {"access_token": text}
    assert httpx.post(open_server.url + INFER, data=form).status_code == 401


# Routes.


def bentoml_routes(deployment: Path) -> set[str]:
    """The paths of the very application that runs inside the guard."""
    code = (
        "import json, service.app as a\n"
        "from _bentoml_impl.server.app import ServiceAppFactory\n"
        "from starlette.routing import Mount\n"
        "a.Sealgate.inject_config()\n"
        "app = ServiceAppFactory(a.Sealgate, is_main=True)()\n"
        "seen = set()\n"
        "def walk(routes, prefix=''):\n"
        "    for r in routes:\n"
        "        seen.add(prefix + getattr(r, 'path', ''))\n"
        "        inner = getattr(r, 'routes', None) or []\n"
        "        walk(inner, prefix + getattr(r, 'path', ''))\n"
        "walk(app.routes)\n"
        "print('ROUTES' + json.dumps(sorted(seen)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(deployment, toy_settings(deployment)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    found = re.search(r"^ROUTES(.*)$", result.stdout, re.MULTILINE)
    assert found is not None
    return set(json.loads(found[1]))


def test_every_route_of_bentoml_wants_a_token(
    open_server: Server, deployment: Path
) -> None:
    """Not a list that we keep, but what its application says it has."""
    routes = bentoml_routes(deployment)
    assert {"/livez", "/readyz", "/healthz", "/docs.json"} <= routes, routes
    ours = {"/livez", "/readyz"}
    with httpx.Client(base_url=open_server.url) as client:
        for route in sorted(routes):
            path = re.sub(r"\{[^}]*\}", "x", route) or "/"
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
                answer = client.request(method, path)
                if path in ours:
                    assert answer.status_code in (200, 405)
                else:
                    assert answer.status_code == 401, (method, path)


# Raw bytes.


def connect(server: Server) -> socket.socket:
    port = int(server.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def talk(server: Server, data: bytes) -> bytes:
    """Send, and read until the server closes, or says nothing more.

    The first answer has time; a second one would come at once.
    """
    received = b""
    with connect(server) as connection:
        try:
            connection.sendall(data)
            while chunk := connection.recv(65536):
                received += chunk
                connection.settimeout(2)
        except OSError:
            pass
    return received


def answers(received: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


SMUGGLED = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX-Smuggled: 1\r\n\r\n"
START = b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: identity, chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length: \r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"X: y\r\n Content-Length: 5\r\n",
        b"X: a\x00b\r\n",
        b"X\x00: b\r\n",
        b"Content-Length: 5\r\nX y: z\r\n",
    ],
)
def test_conflicting_lengths_end_the_connection(
    open_server: Server, head: bytes
) -> None:
    """Whoever reads it another way than we do must not find a second request in it."""
    received = talk(open_server, START + head + b"\r\n" + b"0\r\n\r\n" + SMUGGLED)
    found = answers(received)
    assert len(found) <= 1, received
    assert 200 not in found
    assert not found or found[0] in (400, 401, 413)


@pytest.mark.parametrize(
    "body",
    [
        b"5;x=y\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhelloworld\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"-1\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5 \nhello\n0\n\n",
        b"g\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_chunks_that_two_could_read_in_two_ways(
    open_server: Server, body: bytes
) -> None:
    """With a valid token even: the body is read, and what is odd about it refused."""
    received = talk(
        open_server, START + b"Transfer-Encoding: chunked\r\n\r\n" + body + SMUGGLED
    )
    found = answers(received)
    assert len(found) <= 1, received
    assert 200 not in found


@pytest.mark.parametrize(
    "start",
    [
        b"GET /v2 HTTP/1.1 \r\n",
        b"GET /v2\r\n",
        b"GET /v2 HTTP/2.0\r\n",
        b"GET /v2 HTTP/9.9\r\n",
        b"GET /v2 FTP/1.1\r\n",
        b"G\x00T /v2 HTTP/1.1\r\n",
        b"GET /v2\x00 HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_request_lines_that_are_none(open_server: Server, start: bytes) -> None:
    received = talk(open_server, start + b"Host: x\r\n\r\n" + SMUGGLED)
    found = answers(received)
    assert len(found) <= 1, received
    assert not found or found[0] in (400, 401, 404, 405, 505), received


@pytest.mark.parametrize(
    "target",
    [
        b"http://x/metrics",
        b"http://x/v2/health/live/../../../metrics",
        b"//v2/models/toy",
        b"/v2/models/toy/../toy",
        b"/v2/%6dodels/toy",
        b"/v2/models/toy%2finfer",
        b"/v2/models/toy;x",
        b"/v2/health/live%00/metrics",
        b"*",
        b"x:80",
    ],
)
def test_targets_in_other_spellings(open_server: Server, target: bytes) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    found = answers(talk(open_server, request))
    assert found in ([401], [400], [405])


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/models/toy", "/metrics", "/livez"])
@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0"])
def test_no_connection_is_upgraded(
    open_server: Server,
    issuer: Ed25519PrivateKey,
    kid: str,
    path: str,
    protocol: str,
) -> None:
    """Not even with a valid token."""
    text = forge(issuer, claims(scope="infer:* metrics"), kid=kid)
    request = (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        f"Upgrade: {protocol}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nHTTP2-Settings: AAMAAABk\r\n"
        f"Authorization: Bearer {text}\r\n\r\n"
    )
    received = talk(open_server, request.encode())
    assert 101 not in answers(received)
    assert b"sec-websocket-accept" not in received.lower()


@pytest.fixture(scope="module")
def hasty(deployment: Path) -> Iterator[Server]:
    """A server that waits one second for a head, and one for a body."""
    extra = toy_settings(deployment) | {
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
        "SEALGATE_SERVICE_HEAD_TIMEOUT_S": "1.0",
        "SEALGATE_SERVICE_BODY_TIMEOUT_S": "1.0",
    }
    with serve("service.app:Sealgate", deployment, extra=extra, alone=True) as found:
        yield found


def drip(server: Server, start: bytes) -> bytes:
    """Send a byte ten times a second until the server has had enough."""
    received = b""
    with connect(server) as connection:
        connection.sendall(start)
        connection.settimeout(0.1)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                chunk = connection.recv(65536)
                received += chunk
                if not chunk:
                    return received
            except TimeoutError:
                pass
            except OSError:
                return received
            try:
                connection.sendall(b"a")
            except OSError:
                return received
    raise AssertionError("it waited for ever")


def test_slow_heads_end(hasty: Server) -> None:
    for start in (b"GET /", b"GET /livez HTTP/1.1\r\n", START + b"X: "):
        assert answers(drip(hasty, start)) == []


def test_slow_bodies_end(hasty: Server, issuer: Ed25519PrivateKey, kid: str) -> None:
    text = forge(issuer, claims(), kid=kid)
    for head, expected in (
        (f"Authorization: Bearer {text}\r\nContent-Length: 100000\r\n", [408]),
        # Without a token nobody waits for a body.
        ("Content-Length: 100000\r\n", [401]),
    ):
        start = START + head.encode() + b"\r\n"
        # What was sent meanwhile can take the answer with it, when the server closes.
        assert answers(drip(hasty, start)) in (expected, [])
    sealed = (
        b"POST /.well-known/ohttp-gateway HTTP/1.1\r\nHost: x\r\n"
        b"Content-Type: message/ohttp-req\r\nContent-Length: 100000\r\n\r\n"
    )
    assert answers(drip(hasty, sealed)) in ([408], [])


# Comparing.

_SECRETS = {"mac", "nonce", "signature", "secret", "jkt", "confirmation", "ath"}


def test_secrets_are_compared_in_constant_time() -> None:
    """By construction: no module of access compares such a value with == or !=."""
    found = []
    for path in sorted((ROOT / "security" / "access").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Compare):
                continue
            if not any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                continue
            names = {
                getattr(part, "attr", getattr(part, "id", ""))
                for side in (node.left, *node.comparators)
                for part in ast.walk(side)
            }
            if names & _SECRETS:
                found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_what_is_compared_is_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each secret of a proof and of a shared key goes through compare_digest."""
    import hmac

    seen: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def noting(one: Any, other: Any) -> bool:
        seen.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noting)
    nonces = Nonces(b"k" * 32)
    nonce = nonces.current(1_800_000_000)
    # However much of it fits, both values of the period are compared, to their ends.
    for wrong in (nonce[:-1] + "!", "!" + nonce[1:], "!" * len(nonce)):
        with pytest.raises(NonceError):
            nonces.check(wrong, 1_800_000_000)
    assert seen == [(len(nonce), len(nonce))] * 6
    seen.clear()
    key = jwt.PyJWK({"kty": "oct", "k": b64(b"s" * 32)}, algorithm="HS256")
    for mac in (b"\0" * 32, b"\1" * 32):
        assert not key.Algorithm.verify(b"x", key.key, mac)
    assert seen == [(32, 32)] * 2
