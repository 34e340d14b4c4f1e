"""security.access.dpop: section 4.3 of RFC 9449, one fault per check."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sealgate.errors import ProtocolError
from sealgate.protocol import dpop
from sealgate.protocol.dpop import make_proof, normalize_target, thumbprint, token_hash
from security.access.dpop import Nonces, Proofs
from security.errors import NonceError, ProofError
from security.sealing.replay import LocalReplayStore
from tests.support.issuers import ED_KEY, P384_KEY, jwk
from tests.support.mutations import DROP, changed

NOW = 1_800_000_000
KEY = ec.derive_private_key(11, ec.SECP256R1())
OTHER = ec.derive_private_key(12, ec.SECP256R1())
JKT = thumbprint(dpop.public_jwk(KEY.public_key()))
RESOURCE = "https://models.example"
PATH = "/v2/models/toy/infer"
TOKEN = "aaa.bbb.ccc"
HEADER: dict[str, Any] = {
    "typ": "dpop+jwt",
    "alg": "ES256",
    "jwk": dpop.public_jwk(KEY.public_key()),
}
CLAIMS: dict[str, Any] = {
    "jti": "one",
    "htm": "POST",
    "htu": RESOURCE + PATH,
    "iat": NOW,
    "ath": token_hash(TOKEN),
}


def make(folder: Path, *, nonces: Nonces | None = None) -> Proofs:
    store = LocalReplayStore(folder, max_entries=1 << 12, share=1 << 10)
    return Proofs(store, key=b"k" * 32, resource=RESOURCE, nonces=nonces, window_s=60)


@pytest.fixture
def proofs(tmp_path: Path) -> Proofs:
    return make(tmp_path)


def sign(header: Any, claims: Any, key: Any = KEY) -> str:
    """A proof with an honest signature over whatever it is given."""
    header = dict(header)
    alg = header.pop("alg", "ES256")
    return jwt.PyJWS().encode(json.dumps(claims).encode(), key, alg, header)


def check(proofs: Proofs, *values: str, **how: Any) -> None:
    given: dict[str, Any] = {
        "method": "POST",
        "path": PATH,
        "token": TOKEN,
        "account": "issuer\0alice",
        "confirmation": JKT,
        "now": NOW,
    }
    asyncio.run(proofs.check(list(values), **given | how))


def test_what_the_client_makes_is_accepted(proofs: Proofs) -> None:
    proof = make_proof(
        KEY,
        method="POST",
        url=f"{RESOURCE}{PATH}?x=1",
        token=TOKEN,
        identifier="made",
        now=NOW,
    )
    check(proofs, proof)
    assert json.loads(jwt.PyJWS().decode(proof, KEY.public_key(), ["ES256"])) == {
        "jti": "made",
        "htm": "POST",
        "htu": RESOURCE + PATH,
        "iat": NOW,
        "ath": token_hash(TOKEN),
    }


def test_the_hand_made_one_is_too(proofs: Proofs) -> None:
    check(proofs, sign(HEADER, CLAIMS))


@pytest.mark.parametrize(("key", "alg"), [(P384_KEY, "ES384"), (ED_KEY, "EdDSA")])
def test_other_algorithms(proofs: Proofs, key: Any, alg: str) -> None:
    public = jwk(key, "x")
    public.pop("kid")
    proof = sign({"typ": "dpop+jwt", "alg": alg, "jwk": public}, CLAIMS, key)
    check(proofs, proof, confirmation=thumbprint(public))


def test_one_field(proofs: Proofs) -> None:
    proof = sign(HEADER, CLAIMS)
    for values in ((), (proof, proof), (proof, "x")):
        with pytest.raises(ProofError, match="not one DPoP field"):
            check(proofs, *values)


@pytest.mark.parametrize(
    "text",
    ["", "x", "a.b", "{}", "....", "e30.e30.e30", "{proof}, {proof}", "{proof} ", "é"],
)
def test_one_well_formed_jwt(proofs: Proofs, text: str) -> None:
    text = text.replace("{proof}", sign(HEADER, CLAIMS))
    with pytest.raises(ProofError):
        check(proofs, text)


def test_a_long_proof(proofs: Proofs) -> None:
    with pytest.raises(ProofError, match="token is too long"):
        check(proofs, sign(HEADER, CLAIMS | {"x": "x" * 5000}))


CLAIM_FAULTS = [
    ("jti", DROP, "jti is missing"),
    ("jti", "", "jti or iat is out of bounds"),
    ("jti", "x" * 257, "jti or iat is out of bounds"),
    ("jti", 5, "jti is missing"),
    ("htm", DROP, "htm is missing"),
    ("htu", DROP, "htu is missing"),
    ("htu", [RESOURCE + PATH], "htu is missing"),
    ("iat", DROP, "iat is missing"),
    ("iat", str(NOW), "iat is missing"),
    ("iat", float(NOW), "iat is missing"),
    ("iat", True, "iat is missing"),
    ("iat", -1, "jti or iat is out of bounds"),
    ("iat", 1 << 50, "jti or iat is out of bounds"),
    ("iat", NOW - 61, "iat is outside the window"),
    ("iat", NOW + 61, "iat is outside the window"),
    ("htm", "GET", "htm is another method"),
    ("htm", "post", "htm is another method"),
    ("htu", f"{RESOURCE}/v2/models/other/infer", "htu is another URL"),
    ("htu", f"{RESOURCE}{PATH}/", "htu is another URL"),
    ("htu", f"https://evil.example{PATH}", "htu is another URL"),
    ("htu", f"http://models.example{PATH}", "htu is another URL"),
    ("htu", f"{RESOURCE}:8443{PATH}", "htu is another URL"),
    ("htu", f"{RESOURCE}.evil.example{PATH}", "htu is another URL"),
    ("htu", PATH, "htu is no URL"),
    ("htu", f"https://u@models.example{PATH}", "htu is no URL"),
    ("ath", DROP, "ath is another token"),
    ("ath", token_hash("other"), "ath is another token"),
    ("ath", 5, "ath is another token"),
]


@pytest.mark.parametrize(("name", "value", "message"), CLAIM_FAULTS)
def test_refuses_a_claim(
    proofs: Proofs, name: str, value: object, message: str
) -> None:
    with pytest.raises(ProofError, match=message):
        check(proofs, sign(HEADER, changed(CLAIMS, name, value)))


def test_the_url_in_another_spelling(proofs: Proofs) -> None:
    url = "HTTPS://MODELS.example:443/v2/%6dodels/toy/infer?q#f"
    check(proofs, sign(HEADER, CLAIMS | {"htu": url}))


PRIVATE = jwt.algorithms.ECAlgorithm.to_jwk(KEY, as_dict=True)
RSA_PUBLIC = jwt.algorithms.RSAAlgorithm.to_jwk(
    rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key(),
    as_dict=True,
)
RSA_PUBLIC.pop("key_ops", None)
PRIVATE.pop("key_ops", None)
HEADER_FAULTS = [
    ("typ", "JWT", "typ is not dpop"),
    ("typ", "at+jwt", "typ is not dpop"),
    ("typ", DROP, "typ is not dpop"),
    ("jwk", DROP, "there is no jwk"),
    ("jwk", "https://evil.example/key", "there is no jwk"),
    ("jwk", PRIVATE, "jwk is private"),
    ("jwk", {"kty": "oct", "k": "AAAA"}, "jwk is private"),
    ("jwk", {"kty": "oct"}, "jwk is not RSA"),
    ("jwk", RSA_PUBLIC, "none of the issuer's algorithms"),
    ("jwk", {}, "jwk is not RSA"),
    ("jwk.x", DROP, "jwk is malformed"),
    ("jwk.crv", "P-521", "jwk is not RSA"),
    ("jwk.use", "enc", "not for verifying"),
    ("jwk.alg", "EdDSA", "cannot be used with its alg"),
    ("crit", ["jku"], "crit and b64"),
]


@pytest.mark.parametrize(("path", "value", "message"), HEADER_FAULTS)
def test_refuses_a_header(
    proofs: Proofs, path: str, value: object, message: str
) -> None:
    with pytest.raises(ProofError, match=message):
        check(proofs, sign(changed(HEADER, path, value), CLAIMS))


def test_the_signature_is_the_jwks(proofs: Proofs) -> None:
    with pytest.raises(ProofError, match="signature does not verify"):
        check(proofs, sign(HEADER, CLAIMS, OTHER))


@pytest.mark.parametrize("alg", ["none", "HS256"])
def test_no_weaker_algorithm(proofs: Proofs, alg: str) -> None:
    key = None if alg == "none" else HEADER["jwk"]["x"].encode()
    with pytest.raises(ProofError):
        check(proofs, sign(HEADER | {"alg": alg}, CLAIMS, key))


def test_the_token_is_bound_to_this_key(proofs: Proofs) -> None:
    header = HEADER | {"jwk": dpop.public_jwk(OTHER.public_key())}
    with pytest.raises(ProofError, match="bound to another key"):
        check(proofs, sign(header, CLAIMS, OTHER))
    for confirmation in ("", JKT[:-1], JKT + "A", JKT.lower()):
        with pytest.raises(ProofError, match="bound to another key"):
            check(proofs, sign(HEADER, CLAIMS), confirmation=confirmation)


# Once only.


def test_a_proof_passes_once(proofs: Proofs) -> None:
    proof = sign(HEADER, CLAIMS)
    check(proofs, proof)
    with pytest.raises(ProofError, match="seen before"):
        check(proofs, proof)
    # Signed again it is the same one: what counts is its identifier.
    with pytest.raises(ProofError, match="seen before"):
        check(proofs, sign(HEADER, CLAIMS))
    check(proofs, sign(HEADER, CLAIMS | {"jti": "two"}))


def test_it_passes_once_at_all_workers(tmp_path: Path) -> None:
    one, two = make(tmp_path), make(tmp_path)
    proof = sign(HEADER, CLAIMS)
    check(one, proof)
    with pytest.raises(ProofError, match="seen before"):
        check(two, proof)


def test_it_is_remembered_for_as_long_as_it_is_fresh(proofs: Proofs) -> None:
    proof = sign(HEADER, CLAIMS | {"iat": NOW + 59})
    check(proofs, proof)
    for later in range(10, 120, 10):
        check(
            proofs,
            sign(HEADER, CLAIMS | {"jti": f"{later}", "iat": NOW + later}),
            now=NOW + later,
        )
        with pytest.raises(ProofError, match=r"seen before|outside the window"):
            check(proofs, proof, now=NOW + later)


def test_keys_may_share_identifiers(proofs: Proofs) -> None:
    check(proofs, sign(HEADER, CLAIMS))
    public = dpop.public_jwk(OTHER.public_key())
    proof = sign(HEADER | {"jwk": public}, CLAIMS, OTHER)
    check(proofs, proof, confirmation=thumbprint(public))


def test_what_is_refused_is_not_remembered(proofs: Proofs) -> None:
    with pytest.raises(ProofError):
        check(proofs, sign(HEADER, CLAIMS), token="other")
    check(proofs, sign(HEADER, CLAIMS))


# Nonces.


def test_a_nonce_is_asked_for(tmp_path: Path) -> None:
    nonces = Nonces(b"k" * 32)
    proofs = make(tmp_path, nonces=nonces)
    for wrong in (DROP, "", "x", 5, None, nonces.current(NOW)[:-1]):
        with pytest.raises(NonceError) as caught:
            check(proofs, sign(HEADER, changed(CLAIMS | {"nonce": 0}, "nonce", wrong)))
        assert caught.value.nonce == nonces.current(NOW)
    check(proofs, sign(HEADER, CLAIMS | {"nonce": nonces.current(NOW)}))


def test_a_nonce_ends(tmp_path: Path) -> None:
    nonces = Nonces(b"k" * 32)
    nonce = nonces.current(NOW)
    nonces.check(nonce, NOW)
    nonces.check(nonce, NOW + 300)
    with pytest.raises(NonceError):
        nonces.check(nonce, NOW + 600)
    with pytest.raises(NonceError):
        nonces.check(nonce, NOW - 300)
    with pytest.raises(NonceError):
        Nonces(b"l" * 32).check(nonce, NOW)
    assert "k" * 32 not in repr(nonces)


def test_a_stranger_is_given_no_nonce(tmp_path: Path) -> None:
    proofs = make(tmp_path, nonces=Nonces(b"k" * 32))
    with pytest.raises(ProofError) as caught:
        check(proofs, sign(HEADER, CLAIMS, OTHER))
    assert not isinstance(caught.value, NonceError)


# What both sides share.


def test_rfc_7638_example() -> None:
    """Section 3.1."""
    key = {
        "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aP"
        "FFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt"
        "7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQ"
        "vRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_"
        "xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        "e": "AQAB",
        "alg": "RS256",
        "kid": "2011-04-29",
    }
    assert thumbprint(key) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


@pytest.mark.parametrize(
    "value", [{}, {"kty": "EC"}, {"kty": "oct", "k": "x"}, {"kty": "OKP", "crv": 1}]
)
def test_no_thumbprint_of_no_key(value: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        thumbprint(value)


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://a", "https://a/"),
        ("HTTP://A:80/x", "http://a/x"),
        ("https://a:8443/x?y#z", "https://a:8443/x"),
        ("https://a/%7e%2f%c3", "https://a/~%2F%C3"),
        ("https://[::1]:443/", "https://[::1]/"),
    ],
)
def test_targets(url: str, normal: str) -> None:
    assert normalize_target(url) == normal


@pytest.mark.parametrize("url", ["", "/x", "a", "https:///x", "https://u@a/", "://a"])
def test_no_targets(url: str) -> None:
    with pytest.raises(ProtocolError):
        normalize_target(url)
