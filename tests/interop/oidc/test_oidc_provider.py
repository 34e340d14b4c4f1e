"""Tokens of a real provider, npm's oidc-provider, at a real server.

JWTs (RFC 9068), opaque ones (RFC 7662), bound to a key (RFC 9449) or to a certificate
(RFC 8705). The provider answers on the loopback, certified by an authority of its own.

Needs node and npm with a package registry; skipped without.
"""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealgate import (
    AuthenticationError,
    Client,
    Options,
    OverloadedError,
    PermissionDeniedError,
    ProofKey,
    RetryPolicy,
)
from tests.conftest import toy_settings
from tests.support.certificates import certificate
from tests.support.in_process import security_code
from tests.support.issuers import P256_KEY, b64, jwk
from tests.support.npm import install
from tests.support.servers import Server, free_port, serve

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "provider"
ROWS = {"features": [[1, 2, 3]]}
INFER = "/v2/models/toy/infer"
# As RFC 6749, section 2.3.1, would have them encoded.
SECRET = "a secret: of/words + 100%"
CACHE_S = 1


@dataclass
class Provider:
    """A running provider.

    Attributes:
        url: the issuer.
        folder: with certificates, and the provider's program.
        refresh: a refresh token of the notebook's.
        process: that can be ended and begun again.
    """

    url: str
    folder: Path
    refresh: str = ""
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["node", "provider.mjs", "settings.json"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("refresh "):
                self.refresh = line.split()[1]
            if line.startswith("ready"):
                return
        raise AssertionError(self.process.communicate()[1])

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def context(self, name: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.folder / "authority.pem")
        if name is not None:
            pair = (self.folder / f"{name}.pem", self.folder / f"{name}.key")
            context.load_cert_chain(*pair)
        return context

    def token(
        self,
        kind: str,
        *,
        client: str = "notebook",
        audience: str = "us",
        scope: str = "infer:toy metadata:toy",
        certificate: str | None = None,
        proof: str | None = None,
    ) -> str:
        """An access token of the client's own (RFC 6749, section 4.4; RFC 8707)."""
        form = {
            "grant_type": "client_credentials",
            "scope": scope,
            "resource": f"https://models.example/{audience}/{kind}",
        }
        auth = None if certificate else (client, "notebook-secret")
        answer = httpx.post(
            f"{self.url}/token",
            data=form | ({"client_id": client} if certificate else {}),
            auth=auth,
            headers={} if proof is None else {"dpop": proof},
            verify=self.context(certificate),
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def revoke(self, token: str) -> None:
        answer = httpx.post(
            f"{self.url}/token/revocation",
            data={"token": token},
            auth=("notebook", "notebook-secret"),
            verify=self.context(),
        )
        assert answer.status_code == 200, answer.text


def public_jwk(path: Path) -> dict[str, Any]:
    """A client's certificate as it is registered (RFC 8705, section 2.2.2)."""
    found = x509.load_pem_x509_certificate(path.read_bytes())
    key: Any = found.public_key()
    numbers = key.public_numbers()
    return {
        "kty": "EC",
        "crv": "P-256",
        "x": b64(numbers.x.to_bytes(32, "big")),
        "y": b64(numbers.y.to_bytes(32, "big")),
        "x5c": [base64.b64encode(found.public_bytes(Encoding.DER)).decode()],
    }


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    folder = install(HERE, tmp_path_factory.mktemp("oidc"))
    certificate(folder, "authority", authority=True)
    for name in ("provider", "server"):
        certificate(folder, name, issuer="authority")
    for name in ("robot", "thief"):
        certificate(folder, name)
    clients = (folder / name for name in ("robot.pem", "thief.pem"))
    (folder / "clients.pem").write_text("".join(one.read_text() for one in clients))
    private = P256_KEY.private_numbers().private_value.to_bytes(32, "big")
    port = free_port()
    settings = {
        "port": port,
        "certificate": str(folder / "provider.pem"),
        "key": str(folder / "provider.key"),
        "jwks": {"keys": [jwk(P256_KEY, "one", use="sig") | {"d": b64(private)}]},
        "lifetime": 300,
        "clients": [
            {"client_id": "notebook", "client_secret": "notebook-secret"},
            {"client_id": "sealgate", "client_secret": SECRET},
            {
                "client_id": "robot",
                "token_endpoint_auth_method": "self_signed_tls_client_auth",
                "tls_client_certificate_bound_access_tokens": True,
                "jwks": {"keys": [public_jwk(folder / "robot.pem")]},
            },
        ],
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    running = Provider(f"https://127.0.0.1:{port}", folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@dataclass(frozen=True)
class Place:
    """A server that takes the provider's tokens of one kind."""

    server: Server
    settings: dict[str, str]
    provider: Provider

    def client(
        self,
        token: str,
        *,
        certificate: str | None = None,
        proof_key: ProofKey | None = None,
    ) -> Client:
        folder = self.provider.folder
        named = certificate is not None
        options = Options(
            proof_key=proof_key,
            client_certificate=folder / f"{certificate}.pem" if named else None,
            client_key=folder / f"{certificate}.key" if named else None,
            retry=RetryPolicy(max_retries=0),
        )
        return Client(self.server.url, token=token, options=options)

    def infer(self, token: str, **given: Any) -> list[int]:
        with self.client(token, **given) as client:
            return list(client.infer("toy", ROWS)["label"])


@contextmanager
def serving(home: Path, provider: Provider, issuer: dict[str, Any]) -> Iterator[Place]:
    folder, port = provider.folder, free_port()
    table = {
        "issuer": provider.url,
        "audience": "us",
        "jwks_ca": str(folder / "authority.pem"),
        "dpop": "optional",
        **issuer,
    }
    text = ", ".join(f"{name} = {json.dumps(value)}" for name, value in table.items())
    settings = toy_settings(home) | {
        "SEALGATE_ACCESS_RESOURCE": f"https://127.0.0.1:{port}",
        "SEALGATE_ACCESS_ISSUERS": f"[{{{text}}}]",
        "SEALGATE_TLS_ENABLED": "true",
        "SEALGATE_TLS_CERTIFICATE": str(folder / "server.pem"),
        "SEALGATE_TLS_KEY": str(folder / "server.key"),
        "SEALGATE_TLS_CLIENT_CA": str(folder / "clients.pem"),
        "SEALGATE_TLS_CLIENT_CERTIFICATES": "optional",
    }
    tls = provider.context()
    with serve(
        "service.app:Sealgate", home, extra=settings, tls=tls, port=port
    ) as server:
        yield Place(server, settings, provider)


@pytest.fixture(scope="module")
def jwts(pristine: Path, provider: Provider, tmp_path_factory) -> Iterator[Place]:
    """The provider's JWTs, by its keys."""
    home = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("jwts") / "home"))
    with serving(home, provider, {"jwks": f"{provider.url}/jwks"}) as place:
        yield place


@pytest.fixture(scope="module")
def opaque(pristine: Path, provider: Provider, tmp_path_factory) -> Iterator[Place]:
    """Its opaque tokens, by asking it. Of its clients' own it names no subject."""
    home = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("opaque") / "home"))
    path = home / "keys" / "introspection.secret"
    path.touch(0o600)
    path.write_text(SECRET + "\n")
    issuer = {
        "introspection": f"{provider.url}/token/introspection",
        "introspection_client": "sealgate",
        "introspection_secret": str(path),
        "introspection_cache_s": CACHE_S,
        "subject_claim": "client_id",
        "relax": ["jti-absent"],
    }
    with serving(home, provider, issuer) as place:
        yield place


@pytest.fixture(params=["jwt", "opaque"])
def either(request: pytest.FixtureRequest) -> tuple[Place, str]:
    name = {"jwt": "jwts", "opaque": "opaque"}[request.param]
    return request.getfixturevalue(name), request.param


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch, provider: Provider) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(provider.folder / "authority.pem"))


def test_a_token_of_either_kind(either: tuple[Place, str]) -> None:
    place, kind = either
    text = place.provider.token(kind)
    assert (text.count(".") == 2) == (kind == "jwt")
    for _ in range(3):
        assert place.infer(text) == [1]


def test_only_what_it_grants(either: tuple[Place, str]) -> None:
    place, kind = either
    text = place.provider.token(kind, scope="metadata:toy")
    with (
        place.client(text) as client,
        pytest.raises(PermissionDeniedError, match="does not grant"),
    ):
        client.infer("toy", ROWS)


def test_a_token_for_somebody_else(either: tuple[Place, str]) -> None:
    place, kind = either
    text = place.provider.token(kind, audience="them")
    with pytest.raises(AuthenticationError):
        place.infer(text)


def test_the_other_kind_of_token(opaque: Place, jwts: Place) -> None:
    with pytest.raises(AuthenticationError):
        jwts.infer(jwts.provider.token("opaque"))
    # The provider answers 400 to a JWT: it keeps no list of them.
    with pytest.raises(AuthenticationError):
        opaque.infer(opaque.provider.token("jwt"))
    # Who was let in before still is.
    assert opaque.infer(opaque.provider.token("opaque")) == [1]


def test_a_refresh_token_is_no_access_token(opaque: Place) -> None:
    """The provider says that it is active; it says no type."""
    for text in (opaque.provider.refresh, "invented"):
        with pytest.raises(AuthenticationError):
            opaque.infer(text)


# Bound to a key.


def test_a_token_bound_to_a_key(either: tuple[Place, str]) -> None:
    """The SDK's key proves itself to the provider, and then to the server."""
    place, kind = either
    key = ProofKey.generate()
    target = f"{place.provider.url}/token"
    proof = key.prove("POST", target, token=None, now=time.time())
    text = place.provider.token(kind, proof=proof)
    assert place.infer(text, proof_key=key) == [1]
    for other in (None, ProofKey.generate()):
        with pytest.raises(AuthenticationError):
            place.infer(text, proof_key=other)


# Bound to a certificate.


def test_a_token_bound_to_a_certificate(either: tuple[Place, str]) -> None:
    """A certificate that signs itself, registered with the provider."""
    place, kind = either
    text = place.provider.token(kind, client="robot", certificate="robot")
    assert place.infer(text, certificate="robot") == [1]
    for other in (None, "thief"):
        with pytest.raises(AuthenticationError):
            place.infer(text, certificate=other)


# What the provider and we take back.


def test_the_provider_revokes(opaque: Place) -> None:
    text = opaque.provider.token("opaque")
    assert opaque.infer(text) == [1]
    opaque.provider.revoke(text)
    time.sleep(CACHE_S + 0.2)
    with pytest.raises(AuthenticationError):
        opaque.infer(text)


def command(
    place: Place, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    code = security_code(place.server.home, *arguments, extra=place.settings)
    return code, "".join(capsys.readouterr())


def test_explain_and_revoke(
    either: tuple[Place, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, kind = either
    text = place.provider.token(kind)
    path = tmp_path / "token"
    path.write_text(text)
    question = ("access", "explain", "--token", f"@{path}", "--model", "toy")
    code, said = command(place, capsys, *question)
    assert (code, "introspection: " in said) == (0, kind == "opaque"), said
    assert text not in said
    assert place.infer(text) == [1]
    code, said = command(place, capsys, "access", "revoke", "--token", f"@{path}")
    assert code == 0, said
    assert text not in said
    deadline = time.monotonic() + 30
    with pytest.raises(AuthenticationError):
        while time.monotonic() < deadline:
            place.infer(text)
    code, said = command(place, capsys, *question)
    assert (code, "token is revoked" in said) == (1, True)
    # Another one of the same client is not.
    assert place.infer(place.provider.token(kind)) == [1]


def test_a_provider_that_is_away(
    opaque: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = opaque.provider.token("opaque")
    assert opaque.infer(text) == [1]
    opaque.provider.stop()
    try:
        time.sleep(CACHE_S + 0.2)
        with pytest.raises(OverloadedError) as caught:
            opaque.infer(text)
        assert caught.value.type.endswith("/issuer-unavailable")
        path = tmp_path / "token"
        path.write_text(text)
        arguments = ("access", "explain", "--token", f"@{path}", "--model", "toy")
        code, said = command(opaque, capsys, *arguments)
        assert (code, "the issuer could not be asked" in said) == (1, True), said
        log = opaque.server.log.read_text()
        assert "cannot be asked about tokens" in log
        assert text not in log
    finally:
        opaque.provider.start()
    time.sleep(1.1)
    # It has forgotten what it knew; a new token of it passes.
    with pytest.raises(AuthenticationError):
        opaque.infer(text)
    assert opaque.infer(opaque.provider.token("opaque")) == [1]
