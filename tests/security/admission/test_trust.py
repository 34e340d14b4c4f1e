"""security.admission.trust: who may vouch for what, and with which key."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.x509.oid import NameOID
from hypothesis import given, settings

from sealgate.protocol.dsse import ML_DSA_65, key_hint, public_pem
from security.admission.trust import (
    ROLES,
    TRUST_SCHEMA,
    TRUST_SCHEMA_2,
    trust_document,
)
from security.admission.trust_store import load_trust
from security.errors import KeyFileError
from tests.support.mutations import changed, encode, mutated

KEYS = {
    role: ec.derive_private_key(i + 2, ec.SECP256R1()) for i, role in enumerate(ROLES)
}
PEMS = {role: [public_pem(key.public_key())] for role, key in KEYS.items()}
DOCUMENT = json.loads(trust_document(PEMS))
REVOKED = {
    "hint": key_hint(KEYS["release"].public_key()),
    "time": "2026-01-02T03:04:05Z",
    "reason": "laptop lost",
}


def load(folder: Path, document: Any):
    path = folder / "trust.json"
    path.write_bytes(document if isinstance(document, bytes) else encode(document))
    return load_trust(path)


def pem_of(key: Any) -> str:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def test_a_role_has_its_keys_and_no_other(tmp_path: Path) -> None:
    trust = load(tmp_path, DOCUMENT)
    for role, key in KEYS.items():
        assert list(trust.keys((role,))) == [key_hint(key.public_key())]
    assert len(trust.keys(ROLES)) == len(ROLES)
    assert trust.keys(("nobody",)) == {}


def test_a_role_may_have_several_keys(tmp_path: Path) -> None:
    other = public_pem(ec.generate_private_key(ec.SECP256R1()).public_key())
    trust = load(
        tmp_path, changed(DOCUMENT, "roles.release", [*PEMS["release"], other])
    )
    assert len(trust.keys(("release",))) == 2


def test_a_revoked_key_is_known_and_not_trusted(tmp_path: Path) -> None:
    trust = load(tmp_path, {**DOCUMENT, "revoked": [REVOKED]})
    assert trust.keys(("release",)) == {}
    assert trust.revoked[REVOKED["hint"]].reason == "laptop lost"
    assert trust.role_of(REVOKED["hint"]) == "release"
    assert trust.role_of("0" * 64) is None


def test_a_revocation_wins_over_adding_the_key_again(tmp_path: Path) -> None:
    document = {**DOCUMENT, "revoked": [REVOKED]}
    assert (
        load(tmp_path, changed(document, "roles.release", PEMS["release"] * 2)).keys(
            ("release",)
        )
        == {}
    )


def test_a_revoked_key_still_holds_no_second_role(tmp_path: Path) -> None:
    document = {**DOCUMENT, "revoked": [REVOKED]}
    with pytest.raises(KeyFileError, match="a key holds two roles"):
        load(tmp_path, changed(document, "roles.trainer", PEMS["release"]))


@pytest.mark.parametrize("revoked", [[], [REVOKED]])
def test_round_trip(tmp_path: Path, revoked: list[dict[str, str]]) -> None:
    trust = load(tmp_path, {**DOCUMENT, "revoked": revoked})
    again = load(tmp_path, trust.to_json())
    assert again.to_json() == trust.to_json()
    assert again.revoked == trust.revoked


def test_the_trust_root_cannot_be_changed(tmp_path: Path) -> None:
    trust = load(tmp_path, DOCUMENT)
    with pytest.raises(TypeError):
        trust.roles["release"] = {}
    with pytest.raises(TypeError):
        trust.roles["release"]["x"] = KEYS["trainer"].public_key()


# A curve that no version of the library knows: 1.3.132.0.99 in place of its OID.
ODD_CURVE = """-----BEGIN PUBLIC KEY-----
MFYwEAYHKoZIzj0CAQYFK4EEAGMDQgAEMKBCTNIcKUSDii11ySs3526iDZ8AiTo7
Tu6KPAqv7D7gS2XpJFbZiItSs3m9+9Ue6GnvHw/GW2ZZaVtszggXIw==
-----END PUBLIC KEY-----
"""

FAULTS = [
    ("retired", [], "unknown field 'retired'"),
    ("revoked", {}, "revoked is not an array"),
    ("revoked", ["x"], "a revocation has hint, time and reason"),
    ("revoked", [{**REVOKED, "by": "me"}], "a revocation has hint, time and reason"),
    ("revoked", [{**REVOKED, "hint": "x"}], "hint is not a sha256 digest"),
    ("revoked", [{**REVOKED, "time": "yesterday"}], "a time is not RFC 3339"),
    ("revoked", [{**REVOKED, "time": 5}], "a time is not RFC 3339"),
    ("revoked", [{**REVOKED, "reason": ""}], "reason is not one line"),
    ("revoked", [{**REVOKED, "reason": "a\nb"}], "reason is not one line"),
    ("revoked", [{**REVOKED, "reason": "x" * 201}], "reason is not one line"),
    ("revoked", [REVOKED, REVOKED], "a key is revoked twice"),
    ("schema", "v2", "expected schema https://sealgate.dev/trust/v1"),
    ("roles", [], "expected schema"),
    ("roles.admin", [], "unknown role 'admin'"),
    ("roles.release", "pem", "unknown role 'release'"),
    ("roles.release", ["nonsense"], "not a PEM public key"),
    ("roles.release", [5], "not a PEM public key"),
    ("roles.release", [ODD_CURVE], "not a PEM public key"),
    ("roles.release", PEMS["trainer"], "a key holds two roles"),
    (
        "roles.release",
        [pem_of(ed25519.Ed25519PrivateKey.generate().public_key())],
        "a key is neither ECDSA P-256 nor ML-DSA-65",
    ),
    (
        "roles.release",
        [pem_of(ec.generate_private_key(ec.SECP384R1()).public_key())],
        "a key is neither ECDSA P-256 nor ML-DSA-65",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), FAULTS, ids=range(len(FAULTS)))
def test_refuses_one_fault(
    tmp_path: Path, path: str, value: object, message: str
) -> None:
    with pytest.raises(KeyFileError, match=message):
        load(tmp_path, changed(DOCUMENT, path, value))


def test_the_same_key_written_otherwise_is_the_same_key(tmp_path: Path) -> None:
    # Same key, other bytes: duties stay separated.
    disguised = "# trainer? never\n" + PEMS["trainer"][0]
    with pytest.raises(KeyFileError, match="a key holds two roles"):
        load(tmp_path, changed(DOCUMENT, "roles.release", [disguised]))


@settings(deadline=None)
@given(document=mutated(DOCUMENT))
def test_any_change_is_read_or_refused(tmp_path_factory, document: object) -> None:
    try:
        trust = load(tmp_path_factory.mktemp("trust"), document)
    except KeyFileError:
        return
    assert set(trust.roles) <= set(ROLES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "top level is not an object"),
        (b" " * 300_000, "at most 262144 allowed"),
    ],
)
def test_refuses_what_is_no_document(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(KeyFileError, match=message):
        load(tmp_path, data)


def test_follows_a_link_as_mounted_configuration_is(tmp_path: Path) -> None:
    trust = load(tmp_path, DOCUMENT)
    (tmp_path / "link.json").symlink_to(tmp_path / "trust.json")
    assert load_trust(tmp_path / "link.json").roles.keys() == trust.roles.keys()


# Version 2

SECOND = MLDSA65PrivateKey.generate()
SECOND_PEM = public_pem(SECOND.public_key())
SECOND_HINT = key_hint(SECOND.public_key())
ROOT_PEM = public_pem(ec.derive_private_key(99, ec.SECP256R1()).public_key())


def certificate(name: str = "tsa") -> str:
    key = ec.derive_private_key(7, ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2036, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def of_version_ten() -> str:
    """A certificate in PEM that states a version which no library knows."""
    found = x509.load_pem_x509_certificate(certificate().encode())
    der = found.public_bytes(serialization.Encoding.DER)
    der = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09", 1)
    return ssl.DER_cert_to_PEM_cert(der)


AUTHORITY = {"name": "ours", "certificates": [certificate(), certificate("leaf")]}
NEW = {
    **DOCUMENT,
    "schema": TRUST_SCHEMA_2,
    "roles": {**PEMS, "release": [*PEMS["release"], SECOND_PEM]},
    "revoked": [
        {
            "hint": key_hint(KEYS["trainer"].public_key()),
            "time": "2026-01-02T03:04:05Z",
            "reason": "laptop lost",
            "compromised": "2026-01-01T00:00:00Z",
        }
    ],
    "prehash": [SECOND_HINT],
    "timestamp_authorities": [AUTHORITY],
    "version": 3,
    "expires": "2027-01-01T00:00:00Z",
    "root": {"keys": [ROOT_PEM], "threshold": 1},
}


def test_version_2_has_all_of_it(tmp_path: Path) -> None:
    trust = load(tmp_path, NEW)
    assert trust.keys(("release",), algorithm=ML_DSA_65).keys() == {SECOND_HINT}
    assert len(trust.keys(("release",))) == 2
    assert (trust.has("release", ML_DSA_65), trust.has("trainer", ML_DSA_65)) == (
        True,
        False,
    )
    assert trust.prehash == {SECOND_HINT}
    (revocation,) = trust.revoked.values()
    assert revocation.compromised == "2026-01-01T00:00:00Z"
    (authority,) = trust.timestamp_authorities
    assert (authority.name, len(authority.certificates)) == ("ours", 2)
    assert trust.version == 3
    assert trust.expires == datetime(2027, 1, 1, tzinfo=UTC)
    assert trust.root is not None
    assert (len(trust.root.keys), trust.root.threshold) == (1, 1)
    again = load(tmp_path, trust.to_json())
    assert again.to_json() == trust.to_json()
    assert again == trust


def test_what_version_1_can_say_is_written_as_version_1(tmp_path: Path) -> None:
    plain = load(tmp_path, {**DOCUMENT, "schema": TRUST_SCHEMA_2})
    assert json.loads(plain.to_json())["schema"] == TRUST_SCHEMA
    for field in ("prehash", "timestamp_authorities", "version", "expires", "root"):
        path = "schema" if field == "prehash" else field
        document = {**DOCUMENT, "schema": TRUST_SCHEMA_2, path: NEW[path]}
        if field == "prehash":
            document |= {"roles": NEW["roles"], "prehash": NEW["prehash"]}
        written = load(tmp_path, document).to_json()
        assert json.loads(written)["schema"] == TRUST_SCHEMA_2
        assert json.loads(written)[field] == NEW[field]


def test_a_revoked_second_key_still_counts_as_one_the_role_has(tmp_path: Path) -> None:
    revoked = [{**REVOKED, "hint": SECOND_HINT}]
    trust = load(tmp_path, {**NEW, "revoked": revoked})
    assert trust.keys(("release",), algorithm=ML_DSA_65) == {}
    assert trust.has("release", ML_DSA_65)


NEW_FAULTS = [
    ("schema", TRUST_SCHEMA, "unknown field"),
    ("prehash", ["0" * 64], "prehash names no ML-DSA-65 key of a role"),
    ("prehash", [key_hint(KEYS["release"].public_key())], "names no ML-DSA-65 key"),
    ("prehash", "x", "prehash is not an array"),
    ("prehash", [5], "prehash is not an array"),
    ("revoked.0.compromised", "soon", "compromise: a time is not RFC 3339"),
    ("revoked.0.compromised", None, "compromise: a time is not RFC 3339"),
    ("timestamp_authorities", {}, "expected at most 8"),
    ("timestamp_authorities", [AUTHORITY] * 9, "expected at most 8"),
    ("timestamp_authorities", [AUTHORITY] * 2, "have one name"),
    ("timestamp_authorities.0", {"name": "x"}, "has name and certificates"),
    ("timestamp_authorities.0.name", "a\nb", "name is not one line"),
    ("timestamp_authorities.0.certificates", [], "needs 1 to 8 certificates"),
    ("timestamp_authorities.0.certificates", [SECOND_PEM], "not a PEM certificate"),
    ("timestamp_authorities.0.certificates", [5], "not a PEM certificate"),
    ("timestamp_authorities.0.certificates", [of_version_ten()], "not a PEM"),
    ("version", 0, "version is not a whole number"),
    ("version", True, "version is not a whole number"),
    ("version", None, "version is not a whole number"),
    ("version", 1 << 53, "version is not a whole number"),
    ("expires", "2027", "expires: a time is not RFC 3339"),
    ("expires", 5, "expires: a time is not RFC 3339"),
    ("root", [], "root has keys and threshold"),
    ("root", {"keys": [ROOT_PEM]}, "root has keys and threshold"),
    ("root.keys", [], "root needs 1 to 16 keys"),
    ("root.keys", [ROOT_PEM, ROOT_PEM], "root has a key twice"),
    ("root.keys", [SECOND_PEM], "a key of root holds a role"),
    ("root.keys", PEMS["trainer"], "a key of root holds a role"),
    ("root.threshold", 0, "threshold is not 1 to 1"),
    ("root.threshold", 2, "threshold is not 1 to 1"),
    ("root.threshold", True, "threshold is not 1 to 1"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), NEW_FAULTS, ids=range(len(NEW_FAULTS))
)
def test_refuses_one_fault_of_version_2(
    tmp_path: Path, path: str, value: object, message: str
) -> None:
    with pytest.raises(KeyFileError, match=message):
        load(tmp_path, changed(NEW, path, value))


def test_version_1_has_no_second_algorithm(tmp_path: Path) -> None:
    document = changed(DOCUMENT, "roles.release", [*PEMS["release"], SECOND_PEM])
    with pytest.raises(KeyFileError, match=r"an ML-DSA-65 key needs https://.*/v2"):
        load(tmp_path, document)
    early = {**DOCUMENT, "revoked": [{**REVOKED, "compromised": REVOKED["time"]}]}
    with pytest.raises(KeyFileError, match="a revocation has hint, time and reason"):
        load(tmp_path, early)


@settings(deadline=None, max_examples=50)
@given(document=mutated(NEW))
def test_any_change_of_version_2_is_read_or_refused(
    tmp_path_factory, document: object
) -> None:
    try:
        trust = load(tmp_path_factory.mktemp("trust"), document)
    except KeyFileError:
        return
    assert trust.prehash <= {*trust.keys(ROLES), *trust.revoked}
