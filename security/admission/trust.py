"""The trust root: which public keys may vouch for what, and what else is believed.

A role says what a key may vouch for. The trust root is the deployer's: it comes from
outside the Bento, since whoever can change a Bento could change a key inside it.

A revoked key stays in the file, beside the record of its revocation: so it is known
whose signatures lost their worth, and the key cannot come back by being added again.

Two schemas are read. Version 1 knows ECDSA P-256 keys, and revocations without a time
of compromise. Version 2 may have all of `TrustRoot`. What version 1 can say is written
as version 1, for the readers that know no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import serialization

from models.errors import ReportError
from models.report import format_time, parse_time
from sealgate.errors import JsonError, StatementError
from sealgate.protocol import dsse, strict_json
from sealgate.protocol.dsse import PublicKey, key_hint, public_pem
from sealgate.protocol.versions import unread
from security.admission.timestamps import Timed, read_stamps
from security.errors import KeyFileError, TimestampError

if TYPE_CHECKING:
    from cryptography import x509

__all__ = [
    "MAX_REASON_CHARACTERS",
    "ROLES",
    "TRUST_SCHEMA",
    "TRUST_SCHEMA_2",
    "PublicKeys",
    "Revocation",
    "RootKeys",
    "TimestampAuthority",
    "TrustRoot",
    "parse_public",
    "parse_trust",
    "trust_document",
]

ROLES = ("trainer", "assessor", "privacy-officer", "release", "monitor")
TRUST_SCHEMA = "https://sealgate.dev/trust/v1"
TRUST_SCHEMA_2 = "https://sealgate.dev/trust/v2"
MAX_TRUST_BYTES = 256 << 10
MAX_REASON_CHARACTERS = 200
MAX_NAME_CHARACTERS = 200
MAX_AUTHORITIES = 8
MAX_CERTIFICATES = 8
MAX_ROOT_KEYS = 16
MAX_VERSION = (1 << 53) - 1

_V1 = frozenset({"schema", "roles", "revoked"})
_V2 = _V1 | {"prehash", "timestamp_authorities", "version", "expires", "root"}
_HINT = re.compile(r"[0-9a-f]{64}")

PublicKeys = Mapping[str, PublicKey]


@dataclass(frozen=True)
class Revocation:
    """A key that is believed no more.

    Attributes:
        hint: `key_hint` of the key.
        time: when it was revoked, RFC 3339.
        reason: one line.
        compromised: since when others may have had the key, RFC 3339; None where that
            is not known.
    """

    hint: str
    time: str
    reason: str
    compromised: str | None = None

    def to_object(self) -> dict[str, str]:
        """What the trust root's file says of it."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class TimestampAuthority:
    """An authority of time (RFC 3161) whose stamps are believed.

    Attributes:
        name: one line, unique in a trust root.
        certificates: its root first, then what leads to the one that signs.
    """

    name: str
    certificates: tuple[x509.Certificate, ...]


@dataclass(frozen=True)
class RootKeys:
    """The keys that sign the next trust root.

    Attributes:
        keys: by `key_hint`; none of them holds a role.
        threshold: how many of them must, 1 to their number.
    """

    keys: PublicKeys
    threshold: int


@dataclass(frozen=True)
class TrustRoot:
    """Public keys by role, and what else a verdict may rest on.

    Attributes:
        roles: for each role, its keys by `key_hint`; none of them is revoked.
        revoked: revocations by `key_hint`.
        retired: for each role, its revoked keys: to name their role, not to verify.
        prehash: hints of the ML-DSA-65 keys, of a key service for instance, that sign
            `dsse.prehashed` encodings; all others sign the encoding itself.
        timestamp_authorities: whose time stamps count.
        version: number of this trust root, 1 or more; None where it has none.
        expires: until when it holds; None for always.
        root: who signs the next one; None where nobody does.
    """

    roles: Mapping[str, PublicKeys]
    revoked: Mapping[str, Revocation] = field(default_factory=dict)
    retired: Mapping[str, PublicKeys] = field(default_factory=dict)
    prehash: frozenset[str] = frozenset()
    timestamp_authorities: tuple[TimestampAuthority, ...] = ()
    version: int | None = None
    expires: datetime | None = None
    root: RootKeys | None = None

    def keys(
        self, roles: tuple[str, ...], *, algorithm: str | None = None
    ) -> PublicKeys:
        """The keys that hold any of some roles, by hint; of one algorithm or all."""
        return {
            hint: key
            for role in roles
            for hint, key in self.roles.get(role, {}).items()
            if algorithm in (None, dsse.algorithm_of(key))
        }

    def verify(
        self, bundle: bytes, roles: tuple[str, ...], *, algorithm: str = dsse.ECDSA_P256
    ) -> Timed:
        """`dsse.verify` against the keys of some roles, each in its form; and its time.

        A revoked key is believed for what it signed before others may have had it: its
        revocation must state when that was, and a time stamp of a trusted authority
        must lie before.

        Raises:
            StatementError: as `dsse.verify`; a stamp is malformed, or of another
                signature; the key is revoked, and no stamp lies before the compromise.
        """
        keys = {**self.keys(roles), **self._once_good(roles)}
        verified = dsse.verify(bundle, keys, algorithm=algorithm, prehash=self.prehash)
        try:
            signed = read_stamps(verified, self.timestamp_authorities)
        except TimestampError as error:
            raise StatementError(str(error)) from None
        revocation = self.revoked.get(signed.hint)
        if revocation is not None:
            _check_before(signed, revocation)
        return signed

    def _once_good(self, roles: tuple[str, ...]) -> PublicKeys:
        """The revoked keys of some roles of which it is known since when."""
        return {
            hint: key
            for role in roles
            for hint, key in self.retired.get(role, {}).items()
            if self.revoked[hint].compromised is not None
        }

    def has(self, role: str, algorithm: str) -> bool:
        """Whether a role holds a key of an algorithm, or held one that was revoked.

        A revoked key counts: otherwise to revoke a role's only ML-DSA-65 key would be
        to ask for less than before.
        """
        return any(
            dsse.algorithm_of(key) == algorithm
            for known in (self.roles, self.retired)
            for key in known.get(role, {}).values()
        )

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
        return trust_document(
            roles, tuple(self.revoked.values()), others=self._others()
        )

    def _others(self) -> dict[str, Any]:
        """The fields that only version 2 has."""
        root, expires = self.root, self.expires
        others = {
            "prehash": sorted(self.prehash),
            "timestamp_authorities": [
                {
                    "name": item.name,
                    "certificates": [_pem(c) for c in item.certificates],
                }
                for item in self.timestamp_authorities
            ],
            "version": self.version,
            "expires": None if expires is None else format_time(expires),
            "root": None
            if root is None
            else {
                "keys": [public_pem(key) for key in root.keys.values()],
                "threshold": root.threshold,
            },
        }
        return {name: value for name, value in others.items() if value}


def _check_before(signed: Timed, revocation: Revocation) -> None:
    """Whether a revoked key's signature existed before others may have had the key."""
    if signed.stamp is None:
        raise StatementError(f"signed by a revoked key, and {signed.unstamped}")
    if signed.stamp.time >= parse_time(revocation.compromised or ""):
        raise StatementError(
            "signed by a revoked key, and stamped after it was compromised"
        )


def parse_public(pem: Any, where: str) -> PublicKey:
    """The signing key whose public half this is.

    Raises:
        KeyFileError: not PEM, or neither ECDSA P-256 nor ML-DSA-65.
    """
    try:
        return dsse.parse_public(str(pem))
    except StatementError as error:
        raise KeyFileError(f"{where}: a key is {error}") from None


def trust_document(
    roles: Mapping[str, list[str]],
    revoked: Sequence[Revocation] = (),
    *,
    others: Mapping[str, Any] | None = None,
) -> bytes:
    """The trust root's file, of version 1 where that can say it.

    Args:
        roles: PEM public keys by role.
        revoked: which of them are revoked.
        others: further fields, which only version 2 has.
    """
    document: dict[str, Any] = {"roles": dict(roles), **(others or {})}
    if revoked:
        document["revoked"] = [item.to_object() for item in revoked]
    new = (
        bool(others)
        or any(item.compromised for item in revoked)
        or any(_is_new(pem) for pems in roles.values() for pem in pems)
    )
    document["schema"] = TRUST_SCHEMA_2 if new else TRUST_SCHEMA
    return strict_json.dumps(document)


def parse_trust(data: bytes, where: str) -> TrustRoot:
    """Parse a trust root's bytes, of either version.

    Raises:
        KeyFileError: malformed, an unknown field or role, a key of an algorithm that
            its version does not know, a key that is revoked twice, or one key in two
            roles: duties would not be separated.
    """
    try:
        document = strict_json.loads_object(data, max_bytes=MAX_TRUST_BYTES)
    except JsonError as error:
        raise KeyFileError(f"{where}: {error}") from None
    schema, roles = document.get("schema"), document.get("roles")
    if schema not in (TRUST_SCHEMA, TRUST_SCHEMA_2) or not isinstance(roles, dict):
        text = unread(schema, TRUST_SCHEMA, TRUST_SCHEMA_2, what="schema ")
        raise KeyFileError(f"{where}: {text}")
    unknown = document.keys() - (_V1 if schema == TRUST_SCHEMA else _V2)
    if unknown:
        raise KeyFileError(f"{where}: unknown field {min(unknown)!r}")
    keys = _roles(roles, where, new=schema == TRUST_SCHEMA_2)
    revoked = _revocations(
        document.get("revoked", []), where, new=schema == TRUST_SCHEMA_2
    )
    expires = document.get("expires")
    root = _root(document.get("root"), keys, where)
    signing = keys if root is None else {**keys, "root": root.keys}
    return TrustRoot(
        roles=_select(keys, lambda hint: hint not in revoked),
        revoked=MappingProxyType(revoked),
        retired=_select(keys, lambda hint: hint in revoked),
        prehash=_prehash(document.get("prehash", []), signing, where),
        timestamp_authorities=_authorities(
            document.get("timestamp_authorities", []), where
        ),
        version=_version(document, where),
        expires=None if expires is None else _time(expires, "expires", where),
        root=root,
    )


def _roles(roles: Mapping[str, Any], where: str, *, new: bool) -> dict[str, PublicKeys]:
    parsed: dict[str, PublicKeys] = {}
    seen: set[str] = set()
    for role, pems in roles.items():
        if role not in ROLES or not isinstance(pems, list):
            raise KeyFileError(f"{where}: unknown role {role!r}")
        keys = {
            key_hint(key): key for key in (parse_public(pem, where) for pem in pems)
        }
        if not new and any(map(_post_quantum, keys.values())):
            raise KeyFileError(f"{where}: an ML-DSA-65 key needs {TRUST_SCHEMA_2}")
        if seen & keys.keys():
            raise KeyFileError(f"{where}: a key holds two roles")
        seen |= keys.keys()
        parsed[role] = keys
    return parsed


def _post_quantum(key: PublicKey) -> bool:
    return dsse.algorithm_of(key) == dsse.ML_DSA_65


def _is_new(pem: str) -> bool:
    return _post_quantum(parse_public(pem, "trust root"))


def _revocations(value: Any, where: str, *, new: bool) -> dict[str, Revocation]:
    if not isinstance(value, list):
        raise KeyFileError(f"{where}: revoked is not an array")
    revoked: dict[str, Revocation] = {}
    for item in value:
        revocation = _revocation(item, where, new=new)
        if revocation.hint in revoked:
            raise KeyFileError(f"{where}: a key is revoked twice")
        revoked[revocation.hint] = revocation
    return revoked


def _revocation(item: Any, where: str, *, new: bool) -> Revocation:
    fields = {"hint", "time", "reason"}
    given = item.keys() - ({"compromised"} if new else set()) if _is_map(item) else None
    if given != fields:
        raise KeyFileError(f"{where}: a revocation has hint, time and reason")
    hint, time, reason = item["hint"], item["time"], item["reason"]
    if not isinstance(hint, str) or not _HINT.fullmatch(hint):
        raise KeyFileError(f"{where}: a revocation's hint is not a sha256 digest")
    if not _is_line(reason, MAX_REASON_CHARACTERS):
        raise KeyFileError(f"{where}: a revocation's reason is not one line")
    _time(time, "a revocation", where)
    if "compromised" in item:
        _time(item["compromised"], "a revocation's compromise", where)
    return Revocation(hint, time, reason, item.get("compromised"))


def _prehash(value: Any, keys: Mapping[str, PublicKeys], where: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(it, str) for it in value):
        raise KeyFileError(f"{where}: prehash is not an array of hints")
    known = {hint: key for of in keys.values() for hint, key in of.items()}
    for hint in value:
        if hint not in known or not _post_quantum(known[hint]):
            raise KeyFileError(
                f"{where}: prehash names no ML-DSA-65 key of a role or root"
            )
    return frozenset(value)


def _authorities(value: Any, where: str) -> tuple[TimestampAuthority, ...]:
    if not isinstance(value, list) or len(value) > MAX_AUTHORITIES:
        raise KeyFileError(
            f"{where}: timestamp_authorities: expected at most {MAX_AUTHORITIES}"
        )
    found = tuple(_authority(item, where) for item in value)
    if len({item.name for item in found}) != len(found):
        raise KeyFileError(f"{where}: two timestamp authorities have one name")
    return found


def _authority(item: Any, where: str) -> TimestampAuthority:
    if not _is_map(item) or item.keys() != {"name", "certificates"}:
        raise KeyFileError(f"{where}: a timestamp authority has name and certificates")
    name, pems = item["name"], item["certificates"]
    if not _is_line(name, MAX_NAME_CHARACTERS):
        raise KeyFileError(f"{where}: a timestamp authority's name is not one line")
    if not isinstance(pems, list) or not 1 <= len(pems) <= MAX_CERTIFICATES:
        raise KeyFileError(
            f"{where}: {name} needs 1 to {MAX_CERTIFICATES} certificates, root first"
        )
    from cryptography import x509  # noqa: PLC0415  (only where there are authorities)

    try:
        found = tuple(x509.load_pem_x509_certificate(str(pem).encode()) for pem in pems)
    except (ValueError, x509.InvalidVersion):
        raise KeyFileError(f"{where}: {name}: not a PEM certificate") from None
    return TimestampAuthority(name, found)


def _version(document: Mapping[str, Any], where: str) -> int | None:
    if "version" not in document:
        return None
    version = document["version"]
    if type(version) is not int or not 1 <= version <= MAX_VERSION:
        raise KeyFileError(f"{where}: version is not a whole number from 1")
    return version


def _root(value: Any, roles: Mapping[str, PublicKeys], where: str) -> RootKeys | None:
    if value is None:
        return None
    if not _is_map(value) or value.keys() != {"keys", "threshold"}:
        raise KeyFileError(f"{where}: root has keys and threshold")
    pems, threshold = value["keys"], value["threshold"]
    if not isinstance(pems, list) or not 1 <= len(pems) <= MAX_ROOT_KEYS:
        raise KeyFileError(f"{where}: root needs 1 to {MAX_ROOT_KEYS} keys")
    keys = {key_hint(key): key for key in (parse_public(pem, where) for pem in pems)}
    if len(keys) != len(pems):
        raise KeyFileError(f"{where}: root has a key twice")
    if any(keys.keys() & of.keys() for of in roles.values()):
        raise KeyFileError(f"{where}: a key of root holds a role")
    if type(threshold) is not int or not 1 <= threshold <= len(keys):
        raise KeyFileError(f"{where}: root's threshold is not 1 to {len(keys)}")
    return RootKeys(MappingProxyType(keys), threshold)


def _time(value: Any, what: str, where: str) -> datetime:
    try:
        return parse_time(value if isinstance(value, str) else "")
    except ReportError as error:
        raise KeyFileError(f"{where}: {what}: {error}") from None


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _is_line(value: Any, most: int) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= most and value.isprintable()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


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
