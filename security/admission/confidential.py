"""Confidential models: sealed in the bundle, opened in memory.

Evidence and verdict are about the model in the clear, whose digest the sealed file
claims. Beside them a sealed bundle carries a statement, signed by a release key, that
binds the ciphertext to the same subjects. Every door demands (check 24):

a. the statement is there, signed by a key in the role release;
b. it is about this very bundle, and of the right type;
c. it names this ciphertext, by digest;
d. the ciphertext is not the plaintext between tags.

That what it opens to is what it claims only a deployment can check, which has the key:
`open_admission` does so before onnxruntime sees a byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)

from models.bundle import SEALED_ATTESTATION_FILE, SEALED_FILE, Bundle
from models.errors import BundleError
from models.files import read_regular
from sealgate.errors import DecryptionError, SealedFileError, StatementError
from sealgate.protocol import dsse, hpke, sealedfile
from sealgate.protocol.statement import Resource, Statement
from security.admission.attest import subjects
from security.admission.gate import Admission
from security.admission.trust import TrustRoot
from security.errors import AdmissionRefused, KeyFileError
from security.key_files import read_private, write_private

__all__ = [
    "SEALED_CHECK",
    "SEALED_MODEL_TYPE",
    "check_sealed",
    "generate_model_key",
    "load_model_key",
    "load_model_public",
    "model_public_pem",
    "open_admission",
    "open_bundle",
    "seal_model",
]

SEALED_MODEL_TYPE = "https://sealgate.dev/sealed-model/v1"
SEALED_CHECK = 24
SIGNERS = ("release",)
MAX_PUBLIC_BYTES = 4 << 10


def generate_model_key(path: Path) -> None:
    """Write a fresh X25519 key that models can be sealed to, 0600.

    Raises:
        KeyFileError: the file exists.
    """
    write_private(path, X25519PrivateKey.generate())


def load_model_key(path: Path) -> hpke.PrivateKey:
    """Read a deployment's model key.

    Raises:
        KeyFileError: not an X25519 key that only this user can read.
    """
    key = read_private(path)
    if not isinstance(key, X25519PrivateKey):
        raise KeyFileError(f"{path}: not an X25519 key")
    return hpke.PrivateKey(key)


def load_model_public(path: Path) -> bytes:
    """Read the public half of a deployment's model key; returns its 32 raw bytes.

    Raises:
        KeyFileError: not an X25519 public key in PEM.
    """
    try:
        data = read_regular(path, max_bytes=MAX_PUBLIC_BYTES)
        key = serialization.load_pem_public_key(data)
    except (BundleError, ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: not a PEM public key: {error}") from None
    if not isinstance(key, X25519PublicKey):
        raise KeyFileError(f"{path}: not an X25519 public key")
    return key.public_bytes_raw()


def model_public_pem(key: hpke.PrivateKey) -> str:
    """The public half in PEM: what `seal --to` takes."""
    return (
        X25519PublicKey.from_public_bytes(key.public_bytes)
        .public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        .decode()
    )


def seal_model(
    bundle: Bundle, public_keys: Sequence[bytes], signer: dsse.SigningKey
) -> dict[str, bytes]:
    """Encrypt a bundle's model, and bind the ciphertext to it.

    Args:
        bundle: in the clear.
        public_keys: raw X25519 public keys of the deployments.
        signer: holds the role release.

    Returns:
        The sealed file and its statement, by path inside the bundle.

    Raises:
        BundleError: the bundle is sealed already.
        SealedFileError: no key, or one twice.
        DecryptionError: a public key that is none.
    """
    data = b"".join(sealedfile.seal_chunks(bundle.model, public_keys))
    statement = Statement(
        subjects(bundle.subject), SEALED_MODEL_TYPE, {"sealed": _resource(data)}
    )
    return {
        SEALED_FILE: data,
        SEALED_ATTESTATION_FILE: dsse.sign(statement.to_json(), signer),
    }


def check_sealed(bundle: Bundle, trust: TrustRoot) -> None:
    """Check 24, of a bundle whose model is sealed; no key is needed.

    Raises:
        AdmissionRefused: the first of the module's checks that failed.
    """
    if not bundle.sealed:
        return
    attestation = bundle.files.get(SEALED_ATTESTATION_FILE)
    if attestation is None:
        raise _refused("the sealed model is not signed")
    try:
        verified = trust.verify(attestation, SIGNERS)
        statement = Statement.from_json(verified.payload)
    except StatementError as error:
        raise _refused(f"sealed model's attestation: {error}") from None
    if statement.predicate_type != SEALED_MODEL_TYPE:
        raise _refused("sealed model's attestation is of another type")
    if statement.subjects != subjects(bundle.subject):
        raise _refused("sealed model's attestation is about another model")
    data = bundle.files[SEALED_FILE]
    if statement.predicate != {"sealed": _resource(data)}:
        raise _refused("the sealed model was changed after it was signed")
    if sealedfile.is_plaintext(data):
        raise _refused("claims to be sealed, and its chunks are not encrypted")


def open_bundle(bundle: Bundle, key: hpke.PrivateKey) -> Bundle:
    """Decrypt a sealed bundle's model into memory.

    The ciphertext and the plaintext are the only copies; the caller may drop the first.

    Raises:
        AdmissionRefused: not sealed to this key, changed, or another model than it
            claims.
    """
    # BytesIO hands out what was written into it without copying it once more.
    buffer = BytesIO()
    try:
        for chunk in sealedfile.open_chunks(bundle.files[SEALED_FILE], key):
            buffer.write(chunk)
        return bundle.opened(buffer.getvalue())
    except (SealedFileError, DecryptionError, BundleError) as error:
        raise _refused(f"{SEALED_FILE} cannot be opened: {error}") from None


def open_admission(admission: Admission, key_path: Path) -> Admission:
    """An admission whose model can be loaded; as it is, if it was never sealed.

    Args:
        admission: passed the gate and `check_sealed`.
        key_path: file of the deployment's model key; not read unless needed.

    Raises:
        AdmissionRefused: as `open_bundle`, or the key cannot be used.
    """
    if not admission.bundle.sealed:
        return admission
    try:
        key = load_model_key(key_path)
    except KeyFileError as error:
        raise _refused(f"the model is sealed, and no key opens it: {error}") from None
    return replace(admission, bundle=open_bundle(admission.bundle, key))


def _resource(data: bytes) -> dict[str, object]:
    return Resource(SEALED_FILE, hashlib.sha256(data).hexdigest()).to_object()


def _refused(message: str) -> AdmissionRefused:
    return AdmissionRefused(SEALED_CHECK, message)
