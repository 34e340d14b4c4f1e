"""security.access.issuer: the tokens of development, and the keys they verify with."""

from __future__ import annotations

import json
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from security.access.issuer import DEVELOPMENT_ISSUER, jwks_document, mint
from security.access.tokens import Verifier
from security.errors import TokenError
from security.settings.access import AccessSettings

NOW = 1_800_000_000
KEY = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)


def token(key: Ed25519PrivateKey = KEY, lifetime_s: int = 60) -> str:
    return mint(
        key,
        audience="urn:server",
        subject="alice",
        client_id="app",
        scopes=["infer:toy", "metrics"],
        lifetime_s=lifetime_s,
        now=NOW,
    )


def verifier(folder: Path, **changes: object) -> Verifier:
    (folder / "jwks.json").write_bytes(jwks_document(KEY.public_key()))
    given = {"issuer": DEVELOPMENT_ISSUER, "audience": "urn:server"} | changes
    return Verifier(AccessSettings(jwks=folder / "jwks.json", **given))


def test_the_server_takes_what_the_issuer_mints(tmp_path: Path) -> None:
    principal = verifier(tmp_path).verify(token(), now=NOW)
    assert principal.subject == "alice"
    assert principal.scopes == {"infer:toy", "metrics"}
    assert principal.expires_at == NOW + 60


def test_every_token_has_its_own_id(tmp_path: Path) -> None:
    ids = {verifier(tmp_path).verify(token(), now=NOW).token_id for _ in range(5)}
    assert len(ids) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"issuer": "https://issuer.example"}, "iss is not a configured issuer"),
        ({"audience": "urn:other"}, "aud does not contain this server"),
        ({"max_lifetime_s": 59}, "lifetime is too long"),
    ],
)
def test_another_server_refuses_it(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(TokenError, match=message):
        verifier(tmp_path, **changes).verify(token(), now=NOW)


def test_another_issuers_key_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="kid is not known"):
        verifier(tmp_path).verify(token(Ed25519PrivateKey.generate()), now=NOW)


def test_the_kid_is_the_thumbprint_of_rfc_8037() -> None:
    # RFC 8037, appendices A.1 and A.3.
    seed = bytes.fromhex(
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    )
    document = jwks_document(Ed25519PrivateKey.from_private_bytes(seed).public_key())
    (entry,) = json.loads(document)["keys"]
    assert entry["kid"] == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert entry["x"] == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert "d" not in entry


def test_the_header_is_typed() -> None:
    header = jwt.get_unverified_header(token())
    assert header["typ"] == "at+jwt"
    assert header["alg"] == "EdDSA"
