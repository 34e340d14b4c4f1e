"""Certificates of 127.0.0.1 for servers and clients, and thumbprints of them."""

from __future__ import annotations

import hashlib
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from security.key_files import write_private
from tests.support.issuers import b64

_keys: dict[Path, ec.EllipticCurvePrivateKey] = {}


def certificate(
    folder: Path, name: str, *, issuer: str | None = None, authority: bool = False
) -> None:
    """Write NAME.pem and NAME.key, signed by ISSUER or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, issuer_name = key, subject
    if issuer is not None:
        loaded = x509.load_pem_x509_certificate((folder / f"{issuer}.pem").read_bytes())
        issuer_name = loaded.subject
        signer = _keys[folder / issuer]
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
            False,
        )
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            False,
        )
    )
    if authority:
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(
            x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True
        )
    _keys[folder / name] = key
    made = builder.sign(signer, hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / f"{name}.key").unlink(missing_ok=True)
    write_private(folder / f"{name}.key", key)


def thumbprint(path: Path) -> str:
    """``x5t#S256`` (RFC 8705, section 3.1), of a PEM file."""
    der = ssl.PEM_cert_to_DER_cert(path.read_text())
    return b64(hashlib.sha256(der).digest())
