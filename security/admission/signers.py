"""Signing keys, wherever they are: a file, or what securesystemslib's signers reach.

A URI names a key outside: ``awskms:…``, ``gcpkms:…``, ``azurekms:…``, ``hv:…`` (Vault),
``hsm:…`` (PKCS#11), ``file2:…``. Anything else is the path of a PEM file. The library
is not in the serving image, and each kind of key asks for more of it: docs/keys.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.protocol.dsse import KeySigner, Signer, key_hint
from security.admission.keys import load_signing_key, public_pem
from security.errors import KeyFileError
from security.key_files import is_uri, passphrase_file, read_passphrase

__all__ = ["LibrarySigner", "load_signer"]

_ECDSA = ec.ECDSA(hashes.SHA256())
_SCHEME = "ecdsa-sha2-nistp256"


@dataclass(frozen=True)
class LibrarySigner:
    """A `Signer` over one of securesystemslib's.

    Attributes:
        public_key: what its signatures must verify under.
        signer: the library's, which holds or reaches the key.
    """

    public_key: ec.EllipticCurvePublicKey
    signer: Any = field(repr=False)

    @property
    def hint(self) -> str:
        """`key_hint` of the public key."""
        return key_hint(self.public_key)

    def sign(self, data: bytes) -> bytes:
        """An ECDSA signature with SHA-256 over the data, in DER.

        Raises:
            KeyFileError: the key cannot be reached, or is not the public key's.
        """
        try:
            signature = bytes.fromhex(self.signer.sign(data).signature)
        except Exception as error:  # noqa: BLE001  (each provider raises its own)
            raise KeyFileError(f"signing failed: {_line(error)}") from None
        try:
            # A key service can hold several versions of a key under one name.
            self.public_key.verify(signature, data, _ECDSA)
        except InvalidSignature:
            raise KeyFileError(
                "the key signs, but not as the public key that was named"
            ) from None
        return signature


def load_signer(
    key: str,
    *,
    public_key: Callable[[], ec.EllipticCurvePublicKey],
    passphrase: Path | None = None,
) -> Signer:
    """The signer that a path or URI names.

    Args:
        key: path of a PEM file, or a URI of securesystemslib's.
        public_key: gives the public half of a key named by URI; not asked for a path.
        passphrase: file of a key file's passphrase, or of a token's PIN; the
            environment's if absent.

    Raises:
        KeyFileError: the key cannot be used, or the library is not installed.
    """
    if is_uri(key):
        return _library_signer(key, public_key(), passphrase)
    return KeySigner(load_signing_key(Path(key), passphrase=passphrase))


def _library_signer(
    uri: str, public_key: ec.EllipticCurvePublicKey, passphrase: Path | None
) -> LibrarySigner:
    library: Any = importlib.import_module("securesystemslib.signer")
    keyval = {"public": public_pem(public_key)}
    wanted = library.SSlibKey(key_hint(public_key), "ecdsa", _SCHEME, keyval)
    try:
        signer = library.Signer.from_priv_key_uri(
            uri, wanted, lambda _: _secret(passphrase)
        )
    except KeyFileError:
        raise
    except Exception as error:  # noqa: BLE001  (each provider raises its own)
        raise KeyFileError(f"{_scheme(uri)} key: {_line(error)}") from None
    return LibrarySigner(public_key, signer)


def _secret(passphrase: Path | None) -> str:
    """What a provider asks for, a PIN for instance."""
    source = passphrase or passphrase_file()
    if source is None:
        raise KeyFileError("the key needs a PIN; give --passphrase-file")
    return read_passphrase(source).decode("utf-8", "strict")


def _scheme(uri: str) -> str:
    # Not the rest: a URI can hold a PIN.
    return uri.partition(":")[0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
