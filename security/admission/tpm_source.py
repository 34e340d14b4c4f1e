"""A model key that a TPM gives only while the machine is what it was.

``python -m security tpm seal-key`` encrypts the key's PEM under a fresh passphrase, and
has the TPM seal that to the values of some registers. What it writes is a JSON object::

    {"schema": "https://sealgate.dev/tpm-sealed-key/v1", "pcrs": [15],
     "public": base64, "private": base64, "key": the encrypted PEM}

It is no secret: without the TPM, in that state, it opens nothing.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import BundleError
from models.files import read_regular
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from sealgate.protocol.hpke import KemPrivateKey
from sealgate.protocol.tpm2 import MAX_PCR
from sealgate.protocol.versions import unread
from security.admission.gate import Admission
from security.attestation.sealed import SealedSecret, seal_secret, unseal_secret
from security.errors import KeyFileError, TpmError
from security.hpke_keys import encode_hpke_key, parse_hpke_key

__all__ = ["TPM_KEY_SCHEMA", "TpmSource", "seal_model_key"]

TPM_KEY_SCHEMA = "https://sealgate.dev/tpm-sealed-key/v1"
MAX_FILE_BYTES = 32 << 10
_MAX_BLOB_BYTES = 1 << 10
_ENCRYPTED = "-----BEGIN ENCRYPTED PRIVATE KEY-----"


@dataclass(frozen=True)
class TpmSource:
    """A `KeySource`: a file whose key this machine's TPM opens, in one state only.

    Attributes:
        path: of the file; read anew for each model.
    """

    path: Path

    @classmethod
    def parse(cls, text: str) -> TpmSource:
        """The source behind ``tpm:``.

        Args:
            text: an absolute path.

        Raises:
            KeyFileError: not one.
        """
        if not text.startswith("/"):
            raise KeyFileError("tpm: name the sealed key's file by its absolute path")
        return cls(Path(text))

    def key(self, admission: Admission) -> KemPrivateKey:
        """Have the TPM unseal the passphrase, and open the key.

        Raises:
            KeyFileError: the file is malformed, this is another TPM, its registers hold
                something else than when the key was sealed, or it cannot be asked.
        """
        del admission  # its verdict has verified; the machine's state is the TPM's part
        sealed, pem = _read(self.path)
        try:
            passphrase = unseal_secret(sealed)
        except TpmError as error:
            raise KeyFileError(f"tpm: {self.path}: {error}") from None
        return parse_hpke_key(pem, f"tpm: {self.path}", passphrase=passphrase)


def seal_model_key(key: KemPrivateKey, pcrs: Sequence[int]) -> bytes:
    """Seal a model key to what registers hold now; returns the file's content.

    Args:
        key: of the deployment. Keep a copy where no server is: after the machine
            changes, it has to be sealed again.
        pcrs: registers of the SHA-256 bank, 0 to 23.

    Raises:
        TpmError: the TPM cannot be asked, or refuses.
    """
    # As text: it is what a passphrase's file holds, too.
    passphrase = secrets.token_hex(32).encode()
    sealed = seal_secret(passphrase, pcrs)
    return strict_json.dumps(
        {
            "schema": TPM_KEY_SCHEMA,
            "pcrs": list(sealed.pcrs),
            "public": base64.b64encode(sealed.public).decode(),
            "private": base64.b64encode(sealed.private).decode(),
            "key": encode_hpke_key(key, passphrase=passphrase).decode(),
        }
    )


def _read(path: Path) -> tuple[SealedSecret, bytes]:
    """The sealed passphrase, and the PEM that it opens."""
    where = f"tpm: {path}"
    try:
        data = read_regular(path, max_bytes=MAX_FILE_BYTES, follow_links=True)
        value = strict_json.loads_object(data, max_bytes=MAX_FILE_BYTES)
    except (BundleError, JsonError) as error:
        raise KeyFileError(f"{where}: {error}") from None
    schema = value.get("schema")
    if schema != TPM_KEY_SCHEMA:
        raise KeyFileError(f"{where}: {unread(schema, TPM_KEY_SCHEMA, what='schema ')}")
    if value.keys() != {"schema", "pcrs", "public", "private", "key"}:
        raise KeyFileError(f"{where}: not a key that was sealed to a TPM")
    pcrs, pem = value["pcrs"], value["key"]
    if not _are_registers(pcrs) or not isinstance(pem, str):
        raise KeyFileError(f"{where}: registers or key are malformed")
    if _ENCRYPTED not in pem:
        raise KeyFileError(f"{where}: its key is not encrypted: no TPM keeps it")
    public, private = (_blob(value[name], where) for name in ("public", "private"))
    return SealedSecret(tuple(pcrs), public, private), pem.encode()


def _are_registers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(item) is int and 0 <= item <= MAX_PCR for item in value)
        and value == sorted(set(value))
    )


def _blob(text: Any, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    if not 1 <= len(data) <= _MAX_BLOB_BYTES:
        raise KeyFileError(f"{where}: what the TPM made is malformed")
    return data
