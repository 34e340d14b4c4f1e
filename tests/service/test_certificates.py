"""Tokens that are bound to a client's certificate (RFC 8705), at the real server.

The certificate is what the client has shown in TLS to the server itself. Wherever else
one is said to be, in a header or by whoever ends TLS in between, it counts for nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from sealgate import (
    AsyncClient,
    AuthenticationError,
    Client,
    Options,
    ProfileError,
    ProofKey,
    TransportError,
)
from sealgate.cli import main
from tests.conftest import mint, toy_settings
from tests.support.certificates import certificate, thumbprint
from tests.support.in_process import security_code
from tests.support.issuers import ED_KEY, jwk, token
from tests.support.proxies import proxy
from tests.support.rooms import INPUT
from tests.support.servers import Server, free_port, serve

ISSUER, STRICT = "https://issuer.example", "https://strict.example"
INFER = "/v2/models/toy/infer"
BODY: dict[str, Any] = {"inputs": [INPUT]}
ROWS = {"features": [[1, 2, 3]]}
JSON = ((b"content-type", b"application/json"),)
# Whatever is not whole with its head.
LONG = b" " * 500_000 + json.dumps(BODY).encode()


@dataclass(frozen=True)
class Place:
    """A server that asks clients for certificates, and the folder of these."""

    server: Server
    pki: Path
    settings: dict[str, str]

    @property
    def url(self) -> str:
        return self.server.url

    def context(self, name: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.pki / "authority.pem"))
        if name is not None:
            context.load_cert_chain(self.pki / f"{name}.pem", self.pki / f"{name}.key")
        return context

    def infer(self, name: str | None, headers: dict[str, str]) -> httpx.Response:
        url = self.url + INFER
        with httpx.Client(verify=self.context(name), timeout=30) as client:
            return client.post(url, json=BODY, headers=headers)

    def options(self, name: str | None, **more: Any) -> Options:
        if name is None:
            return Options(**more)
        certificate, key = self.pki / f"{name}.pem", self.pki / f"{name}.key"
        return Options(client_certificate=certificate, client_key=key, **more)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    certificate(folder, "authority", authority=True)
    for name in ("server", "alice", "bob"):
        certificate(folder, name, issuer="authority")
    for name in ("self-signed", "stranger"):
        certificate(folder, name)
    both = (folder / "authority.pem").read_text() + (
        folder / "self-signed.pem"
    ).read_text()
    (folder / "clients.pem").write_text(both)
    return folder


@pytest.fixture(scope="module")
def place(
    pristine: Path, pki: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("certificates") / "home"
    shutil.copytree(pristine, home)
    keys = home / "issuer.json"
    keys.write_text(json.dumps({"keys": [jwk(ED_KEY, "ed")]}))
    port = free_port()
    common = f'audience = "us", jwks = "{keys}"'
    issuers = (
        f'[{{issuer = "{ISSUER}", dpop = "optional", {common}}},'
        f'{{issuer = "{STRICT}", certificate_bound = true, {common}}}]'
    )
    settings = toy_settings(home) | {
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
        "SEALGATE_ACCESS_RESOURCE": f"https://127.0.0.1:{port}",
        "SEALGATE_ACCESS_ISSUERS": issuers,
        "SEALGATE_TLS_ENABLED": "true",
        "SEALGATE_TLS_CERTIFICATE": str(pki / "server.pem"),
        "SEALGATE_TLS_KEY": str(pki / "server.key"),
        "SEALGATE_TLS_CLIENT_CA": str(pki / "clients.pem"),
        "SEALGATE_TLS_CLIENT_CERTIFICATES": "optional",
    }
    trusting = ssl.create_default_context(cafile=str(pki / "authority.pem"))
    with serve(
        "service.app:Sealgate", home, extra=settings, tls=trusting, port=port
    ) as server:
        yield Place(server, pki, settings)


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch, pki: Path) -> None:
    """The SDK takes its authorities from the environment, if they are named there."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pki / "authority.pem"))


def bound(pki: Path, name: str, *, issuer: str = ISSUER, **changes: Any) -> str:
    """A token that is bound to somebody's certificate."""
    now = int(time.time())
    claims = {
        "iss": issuer,
        "aud": "us",
        "sub": name,
        "client_id": "app",
        "scope": "infer:toy",
        "jti": f"j-{time.time_ns()}",
        "iat": now,
        "exp": now + 300,
        "cnf": {"x5t#S256": thumbprint(pki / f"{name}.pem")},
        **changes,
    }
    kept = {name: value for name, value in claims.items() if value is not None}
    return token(ED_KEY, kept, alg="EdDSA", kid="ed")


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


@pytest.mark.parametrize("name", ["alice", "self-signed"])
def test_whose_certificate_it_is(place: Place, name: str) -> None:
    text = bound(place.pki, name)
    assert place.infer(name, bearer(text)).status_code == 200
    for other in (None, "bob"):
        answer = place.infer(other, bearer(text))
        assert answer.status_code == 401
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_many_requests_of_one_connection(place: Place) -> None:
    text, other = bound(place.pki, "alice"), bound(place.pki, "bob")
    with httpx.Client(verify=place.context("alice"), timeout=30) as client:
        statuses = [
            client.post(place.url + INFER, json=BODY, headers=bearer(one)).status_code
            for one in (text, other, text, other, text)
        ]
    assert statuses == [200, 401, 200, 401, 200]


def test_a_certificate_in_a_header_is_none(place: Place) -> None:
    """As proxies write it (RFC 9440, and older customs); so may anybody."""
    pem = (place.pki / "alice.pem").read_text()
    der = ssl.PEM_cert_to_DER_cert(pem)
    encoded = base64.b64encode(der).decode()
    claimed = {
        "client-cert": f":{encoded}:",
        "x-client-cert": encoded,
        "x-ssl-cert": quote(pem),
        "ssl-client-cert": quote(pem),
        "x-ssl-client-verify": "SUCCESS",
        "x-amzn-mtls-clientcert": quote(pem),
        "x-forwarded-client-cert": f'Cert="{quote(pem)}"',
        "x-forwarded-tls-client-cert": encoded,
    }
    text = bound(place.pki, "alice")
    for name in (None, "bob"):
        assert place.infer(name, bearer(text) | claimed).status_code == 401


def test_a_certificate_that_nobody_vouches_for(place: Place) -> None:
    text = bound(place.pki, "stranger")
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, ssl.SSLError)):
        place.infer("stranger", bearer(text))


def test_who_has_no_certificate_is_served_as_before(place: Place) -> None:
    unbound = bound(place.pki, "alice", cnf=None)
    assert place.infer(None, bearer(unbound)).status_code == 200
    assert place.infer("bob", bearer(unbound)).status_code == 200


def test_an_issuer_whose_tokens_must_be_bound(place: Place) -> None:
    text = bound(place.pki, "alice", issuer=STRICT)
    assert place.infer("alice", bearer(text)).status_code == 200
    loose = bound(place.pki, "alice", issuer=STRICT, cnf=None)
    assert place.infer("alice", bearer(loose)).status_code == 401
    jkt = bound(place.pki, "alice", issuer=STRICT, cnf={"jkt": "x"})
    assert place.infer("alice", bearer(jkt)).status_code == 401


def test_a_token_of_two_bindings_needs_both(place: Place) -> None:
    key = ProofKey.generate()
    cnf = {
        "x5t#S256": thumbprint(place.pki / "alice.pem"),
        "jkt": key.thumbprint,
    }
    text = bound(place.pki, "alice", cnf=cnf)
    for name, proof, right in (
        ("alice", key, True),
        ("bob", key, False),
        (None, key, False),
        ("alice", None, False),
        ("alice", ProofKey.generate(), False),
    ):
        options = place.options(name, proof_key=proof)
        with Client(place.url, token=text, options=options) as client:
            if right:
                assert client.ready("toy")
            else:
                with pytest.raises(AuthenticationError):
                    client.ready("toy")


def test_sealed_requests_and_both_clients(place: Place) -> None:
    """The certificate is that of the connection that the sealed request came by."""
    text = bound(place.pki, "alice")
    for above in (1, None):  # in chunks, and whole
        options = place.options("alice", chunked_above_bytes=above)
        with Client(place.url, token=text, options=options) as client:
            assert list(client.infer("toy", ROWS)["label"]) == [1]
        options = place.options("bob", chunked_above_bytes=above)
        with (
            Client(place.url, token=text, options=options) as client,
            pytest.raises(AuthenticationError),
        ):
            client.infer("toy", ROWS)

    async def run() -> None:
        options = place.options("alice")
        async with AsyncClient(place.url, token=text, options=options) as client:
            assert await client.ready("toy")
            async with client.stream("POST", INFER, headers=JSON, body=LONG) as answer:
                assert answer.status == 200

    asyncio.run(run())


def test_a_large_sealed_request(place: Place) -> None:
    """It takes another way through the server, as its body comes in parts."""
    text = bound(place.pki, "alice")
    for name, status in (("alice", 200), ("bob", 401)):
        options = place.options(name)
        with Client(place.url, token=text, options=options) as client:
            for body in (LONG, LONG.ljust(3 << 20)):
                answer = client.forward("POST", INFER, headers=JSON, body=body)
                assert answer.status == status


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_that_is_resumed(place: Place, version: ssl.TLSVersion) -> None:
    """It is the one whose client proved to have the key, or none."""
    text = bound(place.pki, "alice")
    context = place.context("alice")
    context.minimum_version = context.maximum_version = version
    first = ask(place, context, text, session=None)
    assert first[0] == 200
    assert ask(place, context, text, session=first[1])[0] == 200
    # Without the certificate, and without a session of it.
    without = place.context(None)
    without.minimum_version = without.maximum_version = version
    assert ask(place, without, text, session=None)[0] == 401


def ask(
    place: Place, context: ssl.SSLContext, text: str, session: ssl.SSLSession | None
) -> tuple[int, ssl.SSLSession | None]:
    parts = urlsplit(place.url)
    body = json.dumps(BODY).encode()
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {text}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    with (
        socket.create_connection((parts.hostname, parts.port), timeout=30) as plain,
        context.wrap_socket(
            plain, server_hostname="127.0.0.1", session=session
        ) as connection,
    ):
        connection.sendall(head.encode() + body)
        received = b""
        while part := connection.recv(65536):
            received += part
        assert session is None or connection.session_reused
        return int(received.split(b" ", 2)[1]), connection.session


# What speaks for its user, and what must not.


def test_the_proxy_lends_its_certificate_to_whom_it_lends_its_token(
    place: Place,
) -> None:
    """A token of its owner that somebody stole is worth nothing at the proxy either."""
    text = bound(place.pki, "alice")
    options = place.options("alice")
    for lends in (True, False):
        with proxy(
            place.url, token=text, lend=lambda peer, lends=lends: lends, options=options
        ) as port:
            url = f"http://127.0.0.1:{port}{INFER}"
            own = httpx.post(url, json=BODY, timeout=30)
            stolen = httpx.post(url, json=BODY, headers=bearer(text), timeout=30)
            headers = bearer(text) | {"content-type": "application/json"}
            late = httpx.post(
                url, content=b" " * (1 << 20) + LONG, headers=headers, timeout=30
            )
        expected = 200 if lends else 401
        answers = (own, stolen, late)
        assert [answer.status_code for answer in answers] == [expected] * 3


def test_nothing_is_shown_to_a_relay(place: Place) -> None:
    with pytest.raises(ProfileError, match="through a relay"):
        place.options("alice", relay_url="https://relay.example/")
    with pytest.raises(ProfileError, match="only an https server"):
        Client("http://127.0.0.1:1", token="x", options=place.options("alice"))


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("absent.pem", "alice.key", "No such file"),
        ("alice.pem", "bob.key", "KEY_VALUES_MISMATCH"),
        ("alice.pem", None, ""),
        ("alice.key", "alice.key", ""),
    ],
)
def test_files_that_do_not_fit(
    place: Place, certificate: str, key: str | None, message: str
) -> None:
    options = Options(
        client_certificate=place.pki / certificate,
        client_key=None if key is None else place.pki / key,
    )
    with pytest.raises(
        ProfileError, match=f"client_certificate, client_key: {message}"
    ):
        Client(place.url, token="x", options=options)
    with pytest.raises(ProfileError, match="needs client_certificate"):
        Options(client_key=place.pki / "alice.key")


def test_the_command_and_a_profile(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("pem", "key"):
        shutil.copy(place.pki / f"alice.{suffix}", tmp_path)
    path = tmp_path / "profile.json"
    profile = {"url": place.url, "token": bound(place.pki, "alice"), "model": "toy"}
    path.touch(0o600)
    path.write_text(json.dumps(profile))
    command = ["metadata", "--profile", str(path)]
    assert main(command) == 1
    assert "refused: toy: 401" in capsys.readouterr().err
    flags = [
        "--client-certificate", str(tmp_path / "alice.pem"),
        "--client-key", str(tmp_path / "alice.key"),
    ]  # fmt: skip
    assert main([*command, *flags]) == 0
    # In the profile: beside it.
    named = {"client_certificate": "alice.pem", "client_key": "alice.key"}
    path.write_text(json.dumps(profile | named))
    assert main(command) == 0
    assert main([*command, "--client-key", str(tmp_path / "alice.key")]) == 2
    (tmp_path / "alice.key").write_text("nothing")
    assert main(command) == 2
    assert "error: client_certificate, client_key: " in capsys.readouterr().err


# What is said of it.


def test_the_metadata_says_so(place: Place) -> None:
    url = place.url + "/.well-known/oauth-protected-resource"
    document = httpx.get(url, verify=place.context(None)).json()
    assert document["tls_client_certificate_bound_access_tokens"] is True


def explained(
    place: Place, text: str, capsys: pytest.CaptureFixture[str], **changes: str
) -> tuple[int, str]:
    path = place.server.home / "token"
    path.write_text(text)
    code = security_code(
        place.server.home, "access", "explain", "--token", f"@{path}", "--model", "toy",
        extra=place.settings | changes,
    )  # fmt: skip
    return code, capsys.readouterr().out


def test_explain(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    text = bound(place.pki, "alice")
    code, said = explained(place, text, capsys)
    assert (code, "ok    binding: each connection needs" in said) == (0, True)
    strict = bound(place.pki, "alice", issuer=STRICT, cnf=None)
    code, said = explained(place, strict, capsys)
    assert (code, "no    binding: the issuer's tokens must be" in said) == (1, True)
    issuers = place.settings["SEALGATE_ACCESS_ISSUERS"]
    loose = issuers.replace("certificate_bound = true", "certificate_bound = false")
    off = {
        "SEALGATE_TLS_CLIENT_CERTIFICATES": "off",
        "SEALGATE_ACCESS_ISSUERS": loose,
    }
    code, said = explained(place, text, capsys, **off)
    assert (code, "tls.client_certificates is off" in said) == (1, True)


def test_without_certificates_no_token_must_be_bound(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = place.settings | {"SEALGATE_TLS_CLIENT_CERTIFICATES": "off"}
    assert security_code(place.server.home, "config", extra=extra) == 2
    assert "certificate_bound needs tls.client_cert" in capsys.readouterr().err
    extra["SEALGATE_TLS_CLIENT_CERTIFICATES"] = "sometimes"
    assert security_code(place.server.home, "config", extra=extra) == 2
    assert "one of off, optional, required" in capsys.readouterr().err


@pytest.mark.slow
def test_behind_what_ends_tls(pristine: Path, pki: Path, tmp_path: Path) -> None:
    """A server that speaks no TLS knows of no certificate, whatever it is told."""
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    keys = home / "issuer.json"
    keys.write_text(json.dumps({"keys": [jwk(ED_KEY, "ed")]}))
    extra = toy_settings(home) | {
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
        "SEALGATE_ACCESS_ISSUERS": f'[{{issuer = "{ISSUER}", audience = "us", '
        f'jwks = "{keys}"}}]',
    }
    pem = quote((pki / "alice.pem").read_text())
    claimed = {"x-forwarded-proto": "https", "x-ssl-client-cert": pem}
    with serve("service.app:Sealgate", home, extra=extra, alone=True) as server:
        headers = bearer(bound(pki, "alice")) | claimed
        answer = httpx.post(server.url + INFER, json=BODY, headers=headers)
        assert answer.status_code == 401
        headers = bearer(mint(home, "infer:toy")) | claimed
        answer = httpx.post(server.url + INFER, json=BODY, headers=headers)
        assert answer.status_code == 200


def test_a_server_that_shows_nothing_to_who_asks_for_it(place: Place) -> None:
    """A client with a certificate speaks TLS 1.3 alone: 1.2 shows it to the network."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(place.pki / "server.pem", place.pki / "server.key")
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def shake() -> None:
            plain, _ = listening.accept()
            with plain, contextlib.suppress(OSError):
                server.wrap_socket(plain, server_side=True).close()

        thread = threading.Thread(target=shake)
        thread.start()
        url = f"https://127.0.0.1:{port}"
        with (
            Client(url, token="x", options=place.options("alice")) as client,
            pytest.raises(TransportError, match="does not answer"),
        ):
            client.keys()
        thread.join()
