"""Issuers of tokens as tests need them: keys, tokens of any shape, keys over https."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NOW = 1_800_000_000
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P256_KEY = ec.derive_private_key(7, ec.SECP256R1())
P384_KEY = ec.derive_private_key(7, ec.SECP384R1())
ED_KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    """The public JWK of a private key."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        numbers = jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        numbers = jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        numbers = jwt.algorithms.OKPAlgorithm.to_jwk(public, as_dict=True)
    numbers.pop("key_ops", None)
    return {**numbers, "kid": kid, **more}


def token(
    key: Any,
    claims: Mapping[str, Any],
    *,
    alg: str,
    kid: str | None = "key",
    typ: str = "at+jwt",
    **header: Any,
) -> str:
    named = {"kid": kid} if kid is not None else {}
    headers = {"typ": typ, **named, **header}
    return jwt.encode(dict(claims), key, algorithm=alg, headers=headers)


# Certificates, for a host that serves keys.


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    public, private = folder / "host.crt", folder / "host.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return public, private


@dataclass
class Host:
    """A real https server.

    Attributes:
        answer: gives status, headers and body; may be replaced at any time.
        asked: the paths that were asked for.
        tokens: what is said of which token; of any other, that it is not active.
        questions: the tokens that were asked about, and who asked.
        authority: file of the certificate to trust.
    """

    answer: Callable[[], tuple[int, Mapping[str, str], bytes]]
    authority: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)
    questions: list[tuple[str, str]] = field(default_factory=list)

    def asked_about(self, token: str) -> int:
        return [text for text, _ in self.questions].count(token)

    def introspect(self, token: str) -> tuple[int, Mapping[str, str], bytes]:
        """As RFC 7662 has it; may be replaced."""
        body = json.dumps(self.tokens.get(token, {"active": False})).encode()
        return 200, {"content-type": "application/json"}, body

    def serve(self, *entries: Mapping[str, Any]) -> None:
        """Answer with a set of keys from now on."""
        body = json.dumps({"keys": entries}).encode()
        self.answer = lambda: (200, {"content-type": "application/json"}, body)


@contextmanager
def https_host(folder: Path, *entries: Mapping[str, Any]) -> Iterator[Host]:
    public, private = certify(folder)
    host = Host(lambda: (500, {}, b""), public)
    host.serve(*entries)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host.asked.append(self.path)
            self.say(*host.answer())

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            form = parse_qs(self.rfile.read(length).decode())
            (token,) = form["token"]
            host.questions.append((token, self.headers["authorization"]))
            self.say(*host.introspect(token))

        def say(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    server = _Quiet(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    host.url = f"https://127.0.0.1:{server.server_port}/keys"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no news."""
