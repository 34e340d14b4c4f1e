"""Authorities of time (RFC 3161): openssl's own, on loopback, and one that can lie.

`TimeAuthority.stamp` signs any TSTInfo as `openssl cms` does, so that a test can choose
the time, the hash, the nonce, the certificate. `serving` is `openssl ts` behind HTTP,
which stamps with the time of the clock.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

STAMPING = (ExtendedKeyUsageOID.TIME_STAMPING,)
SHA256 = "608648016503040201"
SHA1 = "2b0e03021a"


@dataclass(frozen=True)
class TimeAuthority:
    """A root, and a certificate under it that signs stamps.

    Attributes:
        folder: has ca.pem, tsa.pem, tsa.key and what openssl keeps.
        name: of the authority.
        root, own: the two certificates.
    """

    folder: Path
    name: str
    root: x509.Certificate
    own: x509.Certificate = field(repr=False)

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """What a trust root pins: the root alone."""
        return (self.root,)

    def stamp(
        self,
        signature: bytes,
        time: datetime,
        *,
        status: int = 0,
        algorithm: str = SHA256,
        digest: bytes | None = None,
        nonce: int | None = None,
        accuracy_s: int | None = None,
    ) -> bytes:
        """A TimeStampResp in DER that says what a test wants it to say."""
        imprint = hashlib.sha256(signature).digest() if digest is None else digest
        hashed = tlv(0x30, tlv(0x06, bytes.fromhex(algorithm)) + tlv(0x05, b""))
        info = tlv(
            0x30,
            integer(1)
            + tlv(0x06, bytes.fromhex("2a030401"))  # 1.2.3.4.1
            + tlv(0x30, hashed + tlv(0x04, imprint))
            + integer(1)
            + tlv(0x18, time.strftime("%Y%m%d%H%M%SZ").encode())
            + (b"" if accuracy_s is None else tlv(0x30, integer(accuracy_s)))
            + (b"" if nonce is None else integer(nonce)),
        )
        token = self._openssl(
            *("cms", "-sign", "-binary", "-nodetach", "-cades", "-md", "sha256"),
            *("-econtent_type", "1.2.840.113549.1.9.16.1.4", "-outform", "DER"),
            *("-signer", "tsa.pem", "-inkey", "tsa.key"),
            data=info,
        )
        return tlv(0x30, tlv(0x30, integer(status)) + token)

    def answer(self, request: bytes) -> bytes:
        """What `openssl ts` answers to a TimeStampReq."""
        (self.folder / "request.tsq").write_bytes(request)
        self._openssl(
            *("ts", "-reply", "-config", "tsa.cnf", "-section", "tsa"),
            *("-queryfile", "request.tsq", "-out", "answer.tsr"),
        )
        return (self.folder / "answer.tsr").read_bytes()

    def _openssl(self, *arguments: str, data: bytes = b"") -> bytes:
        return subprocess.run(
            ["openssl", *arguments],
            input=data,
            cwd=self.folder,
            check=True,
            capture_output=True,
        ).stdout


def nonce_of(request: bytes) -> int:
    """The nonce of a TimeStampReq that names no policy (RFC 3161, 2.4.1)."""
    after = request[2 + 3 + 2 + request[6] :]  # SEQUENCE, version, message imprint
    assert after[0] == 0x02
    return int.from_bytes(after[2 : 2 + after[1]], "big")


def tlv(tag: int, value: bytes) -> bytes:
    """A value in DER (X.690, 8.1)."""
    size = len(value)
    if size < 0x80:
        return bytes([tag, size]) + value
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + value


def integer(value: int) -> bytes:
    """A non-negative INTEGER in DER."""
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def time_authority(
    folder: Path,
    name: str = "Test TSA",
    *,
    usages: Sequence[x509.ObjectIdentifier] = STAMPING,
    critical: bool = True,
    valid: tuple[datetime, datetime] | None = None,
    certificates_of_chain: bool = False,
) -> TimeAuthority:
    """Make an authority in a folder of its own.

    Args:
        folder: to be made.
        name: of the authority.
        usages: extended key usages of the certificate that signs.
        critical: whether that extension is.
        valid: from when to when that certificate is; a year around today by default.
        certificates_of_chain: whether openssl's answers hold the root too.
    """
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder.mkdir()
    now = datetime.now(UTC)
    around = (now - timedelta(days=3650), now + timedelta(days=3650))
    root_key = ec.generate_private_key(ec.SECP256R1())
    root_name = f"{name} root"
    root = (
        _builder(root_name, root_name, root_key, around)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(root_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    year = (now - timedelta(days=365), now + timedelta(days=365))
    builder = _builder(name, root_name, key, valid or year).add_extension(
        x509.BasicConstraints(ca=False, path_length=None), True
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical)
    own = builder.sign(root_key, hashes.SHA256())
    (folder / "ca.pem").write_bytes(root.public_bytes(Encoding.PEM))
    (folder / "tsa.pem").write_bytes(own.public_bytes(Encoding.PEM))
    (folder / "tsa.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    chain = "certs = ca.pem\n" if certificates_of_chain else ""
    (folder / "tsa.cnf").write_text(_CONFIGURATION + chain)
    (folder / "serial").write_text("01\n")
    return TimeAuthority(folder, name, root, own)


@contextmanager
def serving(
    authority: TimeAuthority,
    *,
    answers: Sequence[bytes | Callable[[bytes], bytes]] = (),
) -> Iterator[tuple[str, list[bytes]]]:
    """An authority at a URL of loopback; yields it, and the requests that came.

    Args:
        authority: whose `answer` is given.
        answers: given instead, in turn, if there are any; or made of the request.
    """
    requests: list[bytes] = []
    given = iter(answers)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with lock:
                requests.append(body)
                wrong = self.headers["content-type"] != "application/timestamp-query"
                made = next(given, authority.answer)
                answer = made if isinstance(made, bytes) else made(body)
            self.send_response(415 if wrong else 200)
            self.send_header("content-type", "application/timestamp-reply")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/tsa", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _builder(
    name: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
    )


_CONFIGURATION = """
[tsa]
serial = serial
crypto_device = builtin
signer_cert = tsa.pem
signer_key = tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:1
ess_cert_id_alg = sha256
"""
