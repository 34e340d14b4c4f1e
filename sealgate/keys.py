"""Which key to seal to: parsed, preferred, and for how long it is good."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sealgate.errors import (
    KeyConfigError,
    ProfileError,
    ProtocolError,
    StatementError,
    TransportError,
)
from sealgate.protocol import keyconfig, signedkeys
from sealgate.protocol.dsse import (
    ECDSA_P256,
    PublicKey,
    algorithm_of,
    key_hint,
    parse_public,
)
from sealgate.protocol.hpke import KEM_XWING
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.signedkeys import SignedKeys

__all__ = [
    "IdentityKeys",
    "KeyChoice",
    "choose_config",
    "fingerprint",
    "is_classical",
    "load_identity_keys",
    "max_age_s",
    "parse_configs",
    "verify_signed",
]

IdentityKeys = Mapping[str, PublicKey]
# Key encapsulation that also resists a quantum computer comes first, where offered:
# MLKEM768-X25519 (draft-ietf-hpke-pq).
_PREFERRED_KEMS = (KEM_XWING,)
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=([0-9]{1,9})(?:$|[,\s])")
_MAX_AGE_S = 86_400
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True)
class KeyChoice:
    """A configuration to seal to.

    Attributes:
        config: the configuration.
        good_until: when to ask for another, in seconds since 1970.
    """

    config: KeyConfig
    good_until: float = float("inf")


def parse_configs(document: bytes) -> list[KeyConfig]:
    """The usable key configurations of a document, the one to seal to first.

    Raises:
        TransportError: the document is malformed or offers nothing usable.
    """
    try:
        configs = keyconfig.decode_list(document)
    except ProtocolError as error:
        raise TransportError(f"the server's key configuration: {error}") from None
    usable = [config for config in configs if _usable(config)]
    if not usable:
        raise TransportError("the server's key configuration: no supported algorithm")
    # The sort is stable: within one kind, as the server prefers.
    return sorted(usable, key=lambda config: config.kem_id not in _PREFERRED_KEMS)


def choose_config(document: bytes) -> KeyConfig:
    """The configuration to seal to.

    Raises:
        TransportError: as `parse_configs`.
    """
    return parse_configs(document)[0]


def load_identity_keys(pems: Iterable[str]) -> IdentityKeys:
    """Identity keys by hint.

    Args:
        pems: texts, each with one key or several, one after the other.

    Raises:
        ProfileError: one is not a PEM public key, ECDSA P-256 or ML-DSA-65.
    """
    keys: dict[str, PublicKey] = {}
    blocks = [block for text in pems for block in _PEM.findall(text) or (text,)]
    for pem in blocks:
        try:
            key = parse_public(pem)
        except StatementError:
            raise ProfileError(
                "an identity key is not a PEM public key, ECDSA P-256 or ML-DSA-65"
            ) from None
        keys[key_hint(key)] = key
    return keys


def is_classical(keys: IdentityKeys) -> bool:
    """Whether the first version of signed key configurations is enough for these."""
    return all(algorithm_of(key) == ECDSA_P256 for key in keys.values())


def verify_signed(
    envelope: bytes, keys: IdentityKeys, *, now: float, version: int = 1
) -> SignedKeys:
    """The key configurations that identity keys vouch for.

    Args:
        envelope: as it was fetched.
        keys: that are trusted.
        now: Unix seconds.
        version: the one that was asked for, 1 or 2.

    Raises:
        TransportError: they do not, or not now.
    """
    verify = signedkeys.verify_keys if version == 1 else signedkeys.verify_keys_v2
    try:
        return verify(envelope, keys, now=now)
    except ProtocolError as error:
        raise TransportError(f"the server's signed keys: {error}") from None


def fingerprint(config: KeyConfig) -> str:
    """SHA-256 of one configuration's bytes, to compare by eye or by script."""
    return f"sha256:{hashlib.sha256(config.encode()).hexdigest()}"


def max_age_s(cache_control: str) -> float:
    """How long a fetched document may be used, from its Cache-Control; a day at most.

    >>> max_age_s("public, max-age=3600")
    3600.0
    """
    match = _MAX_AGE.search(cache_control.lower())
    return float(min(int(match[1]), _MAX_AGE_S)) if match else float(_MAX_AGE_S)


def _usable(config: KeyConfig) -> bool:
    with contextlib.suppress(KeyConfigError):
        config.choose()
        return True
    return False
