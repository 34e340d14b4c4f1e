"""Signing keys by role, and the trust root that names their public halves.

A role says what a key may vouch for. The trust root is the deployer's: it comes from
outside the Bento, since whoever can change a Bento could change a key inside it.

A revoked key stays in the file, beside the record of its revocation: so it is known
whose signatures lost their worth, and the key cannot come back by being added again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from models.errors import BundleError, ReportError
from models.files import read_regular
from models.report import parse_time
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from sealgate.protocol.dsse import key_hint
from security.errors import KeyFileError
from security.key_files import read_private, write_private

__all__ = [
    "MAX_REASON_CHARACTERS",
    "ROLES",
    "PublicKeys",
    "Revocation",
    "TrustRoot",
    "generate_signing_key",
    "load_signing_key",
    "load_trust",
    "parse_public",
    "parse_trust",
    "public_pem",
    "trust_document",
]

ROLES = ("trainer", "assessor", "privacy-officer", "release", "monitor")
TRUST_SCHEMA = "https://sealgate.dev/trust/v1"
MAX_TRUST_BYTES = 256 << 10
MAX_REASON_CHARACTERS = 200

_HINT = re.compile(r"[0-9a-f]{64}")

PublicKeys = Mapping[str, ec.EllipticCurvePublicKey]


@dataclass(frozen=True)
class Revocation:
    """A key that nothing is believed from any more, however old its signature.

    Attributes:
        hint: `key_hint` of the key.
        time: when it was revoked, RFC 3339.
        reason: one line.
    """

    hint: str
    time: str
    reason: str


@dataclass(frozen=True)
class TrustRoot:
    """Public keys by role.

    Attributes:
        roles: for each role, its keys by `key_hint`; none of them is revoked.
        revoked: revocations by `key_hint`.
        retired: for each role, its revoked keys: to name their role, not to verify.
    """

    roles: Mapping[str, PublicKeys]
    revoked: Mapping[str, Revocation] = field(default_factory=dict)
    retired: Mapping[str, PublicKeys] = field(default_factory=dict)

    def keys(self, roles: tuple[str, ...]) -> PublicKeys:
        """The keys that hold any of some roles, by hint."""
        return {
            hint: key
            for role in roles
            for hint, key in self.roles.get(role, {}).items()
        }

    def role_of(self, hint: str) -> str | None:
        """The role that a key holds, or held until it was revoked."""
        for known in (self.roles, self.retired):
            for role, keys in known.items():
                if hint in keys:
                    return role
        return None

    def to_json(self) -> bytes:
        """The trust root's file; `parse_trust` gives it back."""
        roles = {
            role: [
                public_pem(key)
                for known in (self.roles, self.retired)
                for key in known.get(role, {}).values()
            ]
            for role in ROLES
        }
        return trust_document(roles, tuple(self.revoked.values()))


def generate_signing_key(
    path: Path, *, passphrase: bytes | None = None
) -> ec.EllipticCurvePrivateKey:
    """Write a fresh ECDSA P-256 key, 0600, encrypted if a passphrase is given.

    Raises:
        KeyFileError: the file exists.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(path, key, passphrase=passphrase)
    return key


def load_signing_key(
    path: Path, *, passphrase: Path | None = None
) -> ec.EllipticCurvePrivateKey:
    """Read a signing key.

    Args:
        path: the key's file.
        passphrase: file of its passphrase; the environment's if absent.

    Raises:
        KeyFileError: not an ECDSA P-256 key that only this user can read.
    """
    key = read_private(path, passphrase=passphrase)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(
        key.curve, ec.SECP256R1
    ):
        return key
    raise KeyFileError(f"{path}: not an ECDSA P-256 key")


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """SubjectPublicKeyInfo in PEM: what a `key_hint` is the digest of."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def parse_public(pem: Any, where: str) -> ec.EllipticCurvePublicKey:
    """The signing key whose public half this is.

    Raises:
        KeyFileError: not PEM, or not ECDSA P-256.
    """
    try:
        key = serialization.load_pem_public_key(str(pem).encode())
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"{where}: not a PEM public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, ec.SECP256R1
    ):
        raise KeyFileError(f"{where}: a key is not ECDSA P-256")
    return key


def trust_document(
    roles: Mapping[str, list[str]], revoked: Sequence[Revocation] = ()
) -> bytes:
    """The trust root's file: PEM public keys by role, and which of them are revoked."""
    document: dict[str, Any] = {"schema": TRUST_SCHEMA, "roles": dict(roles)}
    if revoked:
        document["revoked"] = [vars(item) for item in revoked]
    return strict_json.dumps(document)


def load_trust(path: Path) -> TrustRoot:
    """Read a trust root.

    Raises:
        KeyFileError: unreadable, or as `parse_trust`.
    """
    try:
        data = read_regular(path, max_bytes=MAX_TRUST_BYTES, follow_links=True)
    except BundleError as error:
        raise KeyFileError(f"trust root {path}: {error}") from None
    return parse_trust(data, f"trust root {path}")


def parse_trust(data: bytes, where: str) -> TrustRoot:
    """Parse a trust root's bytes.

    Raises:
        KeyFileError: malformed, an unknown field or role, a key that is not ECDSA
            P-256, a key that is revoked twice, or one key in two roles: duties would
            not be separated.
    """
    try:
        document = strict_json.loads_object(data, max_bytes=MAX_TRUST_BYTES)
    except JsonError as error:
        raise KeyFileError(f"{where}: {error}") from None
    roles = document.get("roles")
    if document.get("schema") != TRUST_SCHEMA or not isinstance(roles, dict):
        raise KeyFileError(f"{where}: expected schema {TRUST_SCHEMA}")
    unknown = document.keys() - {"schema", "roles", "revoked"}
    if unknown:
        raise KeyFileError(f"{where}: unknown field {min(unknown)!r}")
    keys = _roles(roles, where)
    revoked = _revocations(document.get("revoked", []), where)
    return TrustRoot(
        roles=_select(keys, lambda hint: hint not in revoked),
        revoked=MappingProxyType(revoked),
        retired=_select(keys, lambda hint: hint in revoked),
    )


def _roles(roles: Mapping[str, Any], where: str) -> dict[str, PublicKeys]:
    parsed: dict[str, PublicKeys] = {}
    seen: set[str] = set()
    for role, pems in roles.items():
        if role not in ROLES or not isinstance(pems, list):
            raise KeyFileError(f"{where}: unknown role {role!r}")
        keys = {
            key_hint(key): key for key in (parse_public(pem, where) for pem in pems)
        }
        if seen & keys.keys():
            raise KeyFileError(f"{where}: a key holds two roles")
        seen |= keys.keys()
        parsed[role] = keys
    return parsed


def _revocations(value: Any, where: str) -> dict[str, Revocation]:
    if not isinstance(value, list):
        raise KeyFileError(f"{where}: revoked is not an array")
    revoked: dict[str, Revocation] = {}
    for item in value:
        revocation = _revocation(item, where)
        if revocation.hint in revoked:
            raise KeyFileError(f"{where}: a key is revoked twice")
        revoked[revocation.hint] = revocation
    return revoked


def _revocation(item: Any, where: str) -> Revocation:
    fields = {"hint", "time", "reason"}
    if not isinstance(item, dict) or item.keys() != fields:
        raise KeyFileError(f"{where}: a revocation has hint, time and reason")
    hint, time, reason = item["hint"], item["time"], item["reason"]
    if not isinstance(hint, str) or not _HINT.fullmatch(hint):
        raise KeyFileError(f"{where}: a revocation's hint is not a sha256 digest")
    if not isinstance(reason, str) or not 1 <= len(reason) <= MAX_REASON_CHARACTERS:
        raise KeyFileError(f"{where}: a revocation's reason is not one line")
    if not reason.isprintable():
        raise KeyFileError(f"{where}: a revocation's reason is not one line")
    try:
        parse_time(time if isinstance(time, str) else "")
    except ReportError as error:
        raise KeyFileError(f"{where}: a revocation: {error}") from None
    return Revocation(hint, time, reason)


def _select(
    keys: Mapping[str, PublicKeys], wanted: Callable[[str], bool]
) -> Mapping[str, PublicKeys]:
    return MappingProxyType(
        {
            role: MappingProxyType(
                {hint: key for hint, key in of.items() if wanted(hint)}
            )
            for role, of in keys.items()
        }
    )
