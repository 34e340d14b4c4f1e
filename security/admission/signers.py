"""Signing keys, wherever they are: a file, or what securesystemslib's signers reach.

A URI names a key outside: ``awskms:…``, ``gcpkms:…``, ``azurekms:…``, ``hv:…`` (Vault),
``hsm:…`` (PKCS#11), ``file2:…``. Anything else is the path of a PEM file. The library
is not in the serving image, and each kind of key asks for more of it: docs/keys.md.

With ML-DSA-65 the library's signers sign a pre-hash (`dsse.prehashed`): the trust root
has to say so of their key.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.bundle import mldsa_file
from models.files import write_atomic
from sealgate.errors import StatementError
from sealgate.protocol.dsse import (
    ECDSA_P256,
    ML_DSA_65,
    KeySigner,
    PublicKey,
    Signer,
    algorithm_of,
    check_signature,
    key_hint,
    public_pem,
)
from security.admission.keys import load_mldsa_key, load_signing_key
from security.errors import KeyFileError
from security.key_files import is_uri, passphrase_file, read_passphrase

__all__ = ["LibrarySigner", "load_signer", "write_signed"]

# securesystemslib.signer: key type and scheme.
_SCHEMES = {
    ECDSA_P256: ("ecdsa", "ecdsa-sha2-nistp256"),
    ML_DSA_65: ("ml-dsa", "ml-dsa-65/1"),
}


@dataclass(frozen=True)
class LibrarySigner:
    """A `Signer` over one of securesystemslib's.

    Attributes:
        public_key: what its signatures must verify under.
        signer: the library's, which holds or reaches the key.
    """

    public_key: PublicKey
    signer: Any = field(repr=False)

    @property
    def hint(self) -> str:
        """`key_hint` of the public key."""
        return key_hint(self.public_key)

    @property
    def signs_prehash(self) -> bool:
        """Whether its signatures are over `dsse.prehashed` data."""
        return algorithm_of(self.public_key) == ML_DSA_65

    def sign(self, data: bytes) -> bytes:
        """A signature over the data: ECDSA in DER, or ML-DSA-65 over its pre-hash.

        Raises:
            KeyFileError: the key cannot be reached, or is not the public key's.
        """
        try:
            signature = bytes.fromhex(self.signer.sign(data).signature)
        except Exception as error:  # noqa: BLE001  (each provider raises its own)
            raise KeyFileError(f"signing failed: {_line(error)}") from None
        try:
            # A key service can hold several versions of a key under one name.
            check_signature(
                signature, data, self.public_key, prehash=self.signs_prehash
            )
        except StatementError:
            raise KeyFileError(
                "the key signs, but not as the public key that was named"
            ) from None
        return signature


def load_signer(
    key: str,
    *,
    public_key: Callable[[], PublicKey],
    passphrase: Path | None = None,
    algorithm: str = ECDSA_P256,
) -> Signer:
    """The signer that a path or URI names.

    Args:
        key: path of a PEM file, or a URI of securesystemslib's.
        public_key: gives the public half of a key named by URI; not asked for a path.
        passphrase: file of a key file's passphrase, or of a token's PIN; the
            environment's if absent.
        algorithm: that the key must be of.

    Raises:
        KeyFileError: the key cannot be used, or the library is not installed.
    """
    if is_uri(key):
        public = public_key()
        if algorithm_of(public) != algorithm:
            raise KeyFileError(f"the public key is not of {algorithm}")
        return _library_signer(key, public, passphrase)
    load = load_mldsa_key if algorithm == ML_DSA_65 else load_signing_key
    return KeySigner(load(Path(key), passphrase=passphrase))


def write_signed(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write statements that were signed.

    No ML-DSA-65 signature of an earlier payload stays beside a new P-256 file, which
    comes last: whoever waits for that one to change finds both. What stops half way
    leaves two payloads, and where both signatures are needed, that is refused.

    Args:
        folder: where they belong.
        files: by path inside, as `attest.signed_files` gives them.

    Raises:
        OSError: a file cannot be written.
    """
    for name in files:
        if mldsa_file(name) not in files:
            (folder / mldsa_file(name)).unlink(missing_ok=True)
    seconds = {mldsa_file(name) for name in files}
    for name in sorted(files, key=lambda name: name not in seconds):
        write_atomic(folder / name, files[name])


def _library_signer(
    uri: str, public_key: PublicKey, passphrase: Path | None
) -> LibrarySigner:
    library: Any = importlib.import_module("securesystemslib.signer")
    keyval = {"public": public_pem(public_key)}
    kind, scheme = _SCHEMES[algorithm_of(public_key)]
    wanted = library.SSlibKey(key_hint(public_key), kind, scheme, keyval)
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
