"""security.access.tokens: a JWT becomes a principal, or is refused at a known check."""

from __future__ import annotations

import base64
import gzip
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st

from security.access.jwks import load_jwks
from security.access.tokens import Principal, Verifier
from security.errors import TokenError
from security.settings import AccessSettings
from tests.mutations import DROP, changed, mutated

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://issuer.example", "https://models.example"
ED25519 = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
P256 = ec.derive_private_key(7, ec.SECP256R1())
HEADER = {"typ": "at+jwt", "alg": "EdDSA", "kid": "ed"}
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "alice",
    "client_id": "app",
    "scope": "infer:toy metrics",
    "iat": NOW,
    "exp": NOW + 600,
    "jti": "token-1",
}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def document() -> dict[str, Any]:
    point = P256.public_key().public_numbers()
    x, y = (b64(n.to_bytes(32, "big")) for n in (point.x, point.y))
    ed = b64(ED25519.public_key().public_bytes_raw())
    return {
        "keys": [
            {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": ed},
            {"kty": "EC", "crv": "P-256", "kid": "ec", "x": x, "y": y},
        ]
    }


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    return make_verifier(tmp_path_factory.mktemp("tokens"), document())


def make_verifier(folder: Path, jwks: dict[str, Any], **changes: Any) -> Verifier:
    (folder / "jwks.json").write_text(json.dumps(jwks))
    access = AccessSettings(issuer=ISSUER, audience=AUDIENCE, **changes)
    return Verifier(access, load_jwks(folder / "jwks.json"))


def sign(header: Any, payload: bytes | dict[str, Any]) -> str:
    """A JWS with an honest Ed25519 or ECDSA signature over whatever it is given."""
    if isinstance(payload, dict):
        payload = json.dumps(payload).encode()
    signed = f"{b64(json.dumps(header).encode())}.{b64(payload)}"
    if isinstance(header, dict) and header.get("alg") == "ES256":
        r, s = decode_dss_signature(P256.sign(signed.encode(), ec.ECDSA(SHA256())))
        return f"{signed}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
    return f"{signed}.{b64(ED25519.sign(signed.encode()))}"


def test_a_valid_token_is_a_principal(verifier: Verifier) -> None:
    expected = Principal(
        "alice", "app", "token-1", frozenset({"infer:toy", "metrics"}), NOW + 600
    )
    assert verifier.verify(sign(HEADER, CLAIMS), now=NOW) == expected
    es256 = HEADER | {"alg": "ES256", "kid": "ec"}
    assert verifier.verify(sign(es256, CLAIMS), now=NOW) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("aud", ["other", AUDIENCE]),
        ("scope", ""),
        ("scope", DROP),
        ("nbf", NOW + 5),
        ("iat", NOW + 5),
        ("exp", NOW + 3600),
    ],
)
def test_accepts(verifier: Verifier, name: str, value: object) -> None:
    verifier.verify(sign(HEADER, changed(CLAIMS, name, value)), now=NOW)


HEADER_FAULTS = [
    ("typ", DROP, "typ is not at\\+jwt"),
    ("typ", "JWT", "typ is not at\\+jwt"),
    ("typ", ["at+jwt"], "typ is not at\\+jwt"),
    ("crit", ["b64"], "crit is not supported"),
    ("crit", [], "crit is not supported"),
    ("kid", DROP, "kid is not known"),
    ("kid", "other", "kid is not known"),
    ("kid", ["ed"], "kid is not known"),
    ("alg", DROP, "alg is not the key's"),
    ("alg", "none", "alg is not the key's"),
    ("alg", "HS256", "alg is not the key's"),
    ("alg", "ES256", "alg is not the key's"),
    ("alg", "eddsa", "alg is not the key's"),
    ("kid", "ec", "alg is not the key's"),
    ("b64", False, "signature does not verify"),
]


@pytest.mark.parametrize(("name", "value", "message"), HEADER_FAULTS)
def test_refuses_a_header(
    verifier: Verifier, name: str, value: object, message: str
) -> None:
    token = sign(changed(HEADER, name, value), CLAIMS)
    with pytest.raises(TokenError, match=message):
        verifier.verify(token, now=NOW)


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
def test_a_key_in_the_header_is_never_used(verifier: Verifier, name: str) -> None:
    own = Ed25519PrivateKey.generate()
    jwk = {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": b64(own.public_key().public_bytes_raw()),
    }
    header = HEADER | {name: jwk if name == "jwk" else "https://evil.example"}
    signed = ".".join(b64(json.dumps(part).encode()) for part in (header, CLAIMS))
    with pytest.raises(TokenError, match="signature does not verify"):
        verifier.verify(f"{signed}.{b64(own.sign(signed.encode()))}", now=NOW)


CLAIM_FAULTS = [
    ("iss", DROP, "iss is not the configured issuer"),
    ("iss", ISSUER + "/", "iss is not the configured issuer"),
    ("iss", [ISSUER], "iss is not the configured issuer"),
    ("aud", DROP, "aud does not contain this server"),
    ("aud", AUDIENCE + ".evil", "aud does not contain this server"),
    ("aud", [], "aud does not contain this server"),
    ("aud", {AUDIENCE: 1}, "aud does not contain this server"),
    ("exp", DROP, "exp is missing or not an integer"),
    ("exp", str(NOW + 600), "exp is missing or not an integer"),
    ("exp", NOW + 600.5, "exp is missing or not an integer"),
    ("exp", True, "exp is missing or not an integer"),
    ("exp", 10**30, "exp is missing or not an integer"),
    ("exp", NOW - 5, "token has expired"),
    ("exp", NOW + 3601, "lifetime is too long"),
    ("iat", DROP, "iat is missing or not an integer"),
    ("iat", NOW + 6, "iat is in the future"),
    ("iat", NOW - 3001, "lifetime is too long"),
    ("nbf", NOW + 6, "nbf is in the future"),
    ("nbf", "now", "nbf is missing or not an integer"),
    ("nbf", None, "nbf is missing or not an integer"),
    ("sub", DROP, "sub is missing or not text"),
    ("sub", "", "sub is missing or not text"),
    ("sub", "a" * 513, "sub is missing or not text"),
    ("client_id", 7, "client_id is missing or not text"),
    ("jti", DROP, "jti is missing or not text"),
    ("scope", ["infer:toy"], "scope is malformed"),
    ("scope", "infer:toy  metrics", "scope is malformed"),
    ("scope", " infer:toy", "scope is malformed"),
    ("scope", 'infer:"toy"', "scope is malformed"),
    ("scope", "infer:tóy", "scope is malformed"),
    ("scope", "infer:toy\n", "scope is malformed"),
    ("sub", "\ud800", "not a strict JSON object"),
]


@pytest.mark.parametrize(("name", "value", "message"), CLAIM_FAULTS)
def test_refuses_a_claim(
    verifier: Verifier, name: str, value: object, message: str
) -> None:
    token = sign(HEADER, changed(CLAIMS, name, value))
    with pytest.raises(TokenError, match=message):
        verifier.verify(token, now=NOW)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'"text"',
        json.dumps(CLAIMS).encode()[:-1] + b',"scope":"infer:*"}',
        json.dumps(CLAIMS).encode()[:-1] + b',"x":NaN}',
        json.dumps(CLAIMS).encode()[:-1] + b',"x":' + b"[" * 9 + b"]" * 9 + b"}",
        b"\xff",
    ],
    ids=["empty", "array", "string", "twice", "nan", "deep", "latin"],
)
def test_refuses_a_payload(verifier: Verifier, payload: bytes) -> None:
    with pytest.raises(TokenError, match=r"not a strict JSON object|not a compact JWS"):
        verifier.verify(sign(HEADER, payload), now=NOW)


def test_refuses_a_header_that_names_its_key_twice(verifier: Verifier) -> None:
    header = b64(b'{"typ":"at+jwt","alg":"EdDSA","kid":"other","kid":"ed"}')
    with pytest.raises(TokenError, match="not a strict JSON object"):
        verifier.verify(f"{header}.e30.AAAA", now=NOW)


def test_the_leeway_ends(verifier: Verifier) -> None:
    token = sign(HEADER, CLAIMS)
    verifier.verify(token, now=NOW + 604)
    with pytest.raises(TokenError, match="token has expired"):
        verifier.verify(token, now=NOW + 605)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_refuses_a_changed_part(verifier: Verifier, part: int) -> None:
    parts = sign(HEADER, CLAIMS).split(".")
    middle = len(parts[part]) // 2
    swapped = "A" if parts[part][middle] != "A" else "B"
    parts[part] = parts[part][:middle] + swapped + parts[part][middle + 1 :]
    with pytest.raises(TokenError):
        verifier.verify(".".join(parts), now=NOW)


def test_refuses_the_public_key_as_a_shared_secret(verifier: Verifier) -> None:
    # The classic confusion of algorithms: HMAC under bytes that everybody knows.
    public = ED25519.public_key().public_bytes_raw()
    headers = {"typ": "at+jwt", "kid": "ed"}
    token = jwt.PyJWS().encode(json.dumps(CLAIMS).encode(), public, "HS256", headers)
    with pytest.raises(TokenError, match="alg is not the key's"):
        verifier.verify(token, now=NOW)


@pytest.mark.parametrize(
    "shape",
    ["{}=", "{} ", " {}", "{}\n", "{}.", ".{}", "Bearer {}", "{}.AAAA", "é{}", "{}+"],
)
def test_refuses_another_shape(verifier: Verifier, shape: str) -> None:
    with pytest.raises(TokenError, match="not a compact JWS"):
        verifier.verify(shape.format(sign(HEADER, CLAIMS)), now=NOW)


def test_refuses_half_a_megabyte_before_decoding(verifier: Verifier) -> None:
    token = sign(HEADER, CLAIMS | {"pad": "x" * (384 << 10)})
    assert len(token) > 512 << 10
    started = time.perf_counter()
    for _ in range(1000):
        with pytest.raises(TokenError, match="token is too long"):
            verifier.verify(token, now=NOW)
    # Decoding one takes 30 ms: a thousand refusals take less than a few of those.
    assert time.perf_counter() - started < 1


def test_the_bound_is_a_setting(tmp_path: Path) -> None:
    token = sign(HEADER, CLAIMS)
    exact = make_verifier(tmp_path, document(), max_token_bytes=len(token))
    exact.verify(token, now=NOW)
    below = make_verifier(tmp_path, document(), max_token_bytes=len(token) - 1)
    with pytest.raises(TokenError, match="token is too long"):
        below.verify(token, now=NOW)


@settings(deadline=None)
@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_.-]{0,80}"))
def test_no_text_is_a_token(verifier: Verifier, token: str) -> None:
    with pytest.raises(TokenError):
        verifier.verify(token, now=NOW)


@settings(deadline=None)
@given(header=mutated(HEADER), claims=mutated(CLAIMS))
def test_signed_nonsense_is_read_or_refused(
    verifier: Verifier, header: Any, claims: Any
) -> None:
    token = sign(header, json.dumps(claims).encode())
    try:
        principal = verifier.verify(token, now=NOW)
    except TokenError:
        return
    assert principal.scopes <= set(str(claims.get("scope", "")).split(" "))
    principal.subject.encode()


def test_wycheproof(tmp_path: Path, shared_data: Path) -> None:
    """The published ES256 vectors: the signature step agrees with every one of them.

    They are no access tokens, so `verify` refuses even the valid ones, by their typ;
    for those the signature is checked with the verifier's own parts. Vectors of other
    algorithms are refused because no such key is ever loaded.
    """
    path = shared_data / "vectors-wycheproof" / "json_web_signature_test.json.gz"
    seen = {"valid": 0, "invalid": 0}
    for group in json.loads(gzip.decompress(path.read_bytes()))["testGroups"]:
        public = group.get("public") or {}
        ours = public.get("alg") == "ES256"
        keys = {"keys": [public]} if ours else document()
        verifier = make_verifier(tmp_path, keys)
        for test in group["tests"]:
            with pytest.raises(TokenError):
                verifier.verify(test["jws"], now=NOW)
            if ours:
                accepted = _signature_verifies(verifier, test["jws"])
                assert accepted == (test["result"] == "valid"), test
                seen[test["result"]] += 1
    assert seen == {"valid": 2, "invalid": 37}


def _signature_verifies(verifier: Verifier, token: str) -> bool:
    """What `verify` does with a token's signature, whatever its header says it is."""
    (key,) = verifier._keys.values()
    parts = token.split(".")
    try:
        header = json.loads(base64.urlsafe_b64decode(parts[0] + "=="))
        if len(parts) != 3 or header.get("alg") != key.algorithm_name:
            return False
        verifier._jws.decode_complete(token, key, algorithms=[key.algorithm_name])
    except (jwt.PyJWTError, ValueError):
        return False
    return True
