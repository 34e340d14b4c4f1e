"""security.admission.keys: who may vouch for what, and with which key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings

from sealgate.protocol.dsse import key_hint, public_pem
from security.admission.keys import generate_signing_key, load_signing_key
from security.admission.trust import ROLES, load_trust, trust_document
from security.errors import KeyFileError
from security.key_files import write_private
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


def test_a_signing_key_is_written_for_its_owner_only(tmp_path: Path) -> None:
    key = generate_signing_key(tmp_path / "release.pem")
    loaded = load_signing_key(tmp_path / "release.pem")
    assert loaded.private_numbers() == key.private_numbers()
    assert (tmp_path / "release.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "key",
    [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())],
)
def test_refuses_another_signing_key(tmp_path: Path, key: Any) -> None:
    write_private(tmp_path / "a.pem", key)
    with pytest.raises(KeyFileError, match="not an ECDSA P-256 key"):
        load_signing_key(tmp_path / "a.pem")
