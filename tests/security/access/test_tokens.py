"""security.access.tokens: a JWT becomes a principal, or is refused at a known check."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st

from security.access.tokens import Principal, Verifier
from security.errors import TokenError
from security.settings.access import AccessSettings
from security.settings.issuers import IssuerSettings
from tests.support import issuers as issuers_of_tests
from tests.support.issuers import RSA_KEY
from tests.support.mutations import DROP, changed, mutated
from tests.support.patience import in_time, once

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://issuer.example", "https://models.example"
ED25519 = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
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
    given = {"issuer": ISSUER, "audience": AUDIENCE} | changes
    return Verifier(AccessSettings(jwks=folder / "jwks.json", **given))


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
        "alice",
        "app",
        "token-1",
        frozenset({"infer:toy", "metrics"}),
        NOW + 600,
        ISSUER,
        issued_at=NOW,
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
    ("typ", DROP, "typ is not the issuer's"),
    ("typ", "JWT", "typ is not the issuer's"),
    ("typ", ["at+jwt"], "typ is not the issuer's"),
    ("crit", ["b64"], "crit and b64 are not supported"),
    ("crit", [], "crit and b64 are not supported"),
    ("kid", DROP, "kid is not known"),
    ("kid", "other", "kid is not known"),
    ("kid", ["ed"], "kid is not known"),
    ("alg", DROP, "alg is not the key's"),
    ("alg", "none", "alg is not the key's"),
    ("alg", "HS256", "alg is not the key's"),
    ("alg", "ES256", "alg is not the key's"),
    ("alg", "eddsa", "alg is not the key's"),
    ("kid", "ec", "alg is not the key's"),
    ("b64", False, "crit and b64 are not supported"),
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
    ("iss", DROP, "iss is not a configured issuer"),
    ("iss", ISSUER + "/", "iss is not a configured issuer"),
    ("iss", [ISSUER], "iss is not a configured issuer"),
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

    def scene() -> None:
        started = time.monotonic()
        for _ in range(1000):
            with pytest.raises(TokenError, match="token is too long"):
                verifier.verify(token, now=NOW)
        # Decoding one takes 30 ms: a thousand refusals take less than a few of those.
        in_time(started, 1)

    once(scene)


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


# Several issuers, of several kinds.

KEYCLOAK = {
    "exp": NOW + 300,
    "iat": NOW,
    "jti": "onrtac:7c2f9b3e-9b0a-4f0c-9d0e-1b1f5ad2a001",
    "iss": "https://sso.example.org/realms/research",
    "aud": ["sealgate", "account"],
    "sub": "f3b0e5ce-5d9f-4b1e-8b1c-0a4f6c1f2e77",
    "typ": "Bearer",
    "azp": "notebook",
    "sid": "6d2b",
    "acr": "1",
    "allowed-origins": ["https://lab.example.org"],
    "realm_access": {"roles": ["offline_access", "researcher"]},
    "resource_access": {
        "sealgate": {"roles": ["infer:toy"]},
        "account": {"roles": ["manage-account"]},
    },
    "scope": "openid profile email",
    "groups": ["/radiology/readers"],
    "preferred_username": "alice",
}
ENTRA = {
    "aud": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
    "iss": "https://login.microsoftonline.com/72f988bf-86f1/v2.0",
    "iat": NOW,
    "nbf": NOW,
    "exp": NOW + 4500,
    "aio": "AXQAi/8IAAAA",
    "azp": "04f0c124-f2bc-4f59-8241-bf6df9866bbd",
    "azpacr": "0",
    "name": "Alice",
    "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474",
    "roles": ["Model.Reader"],
    "scp": "Models.Infer Models.Read",
    "sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
    "tid": "72f988bf-86f1-41af-91ab-2d7cd011db47",
    "uti": "fqiBqXLPj0eQa82S-IYFAA",
    "ver": "2.0",
}
SEVERAL = (
    IssuerSettings(
        issuer=KEYCLOAK["iss"],
        audience="sealgate",
        algorithms=("RS256",),
        token_types=("JWT",),
        required_claims=("typ=Bearer",),
        client_claim="azp",
        scope_claims=("scope", "/resource_access/sealgate/roles"),
        group_claims=("groups", "/realm_access/roles"),
    ),
    IssuerSettings(
        issuer=ENTRA["iss"],
        audience=ENTRA["aud"],
        algorithms=("RS256",),
        token_types=("JWT",),
        max_lifetime_s=5400,
        required_claims=("ver=2.0",),
        subject_claim="oid",
        client_claim="azp",
        token_id_claim="uti",
        tenant_claim="tid",
        scope_claims=("scp",),
        group_claims=("roles",),
    ),
    IssuerSettings(
        issuer="shared", audience=AUDIENCE, algorithms=("HS256",), secret=Path("x")
    ),
)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    """One server, four issuers; two of them use the very same kid."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "secret").touch(0o600)
    (folder / "secret").write_bytes(b"s" * 32)
    issuers = []
    for number, (settings_, key) in enumerate(zip(SEVERAL, (RSA_KEY, OTHER_RSA, None))):
        if key is None:
            issuers.append(replace(settings_, secret=folder / "secret"))
            continue
        path = folder / f"{number}.json"
        entry = issuers_of_tests.jwk(key, "key", use="sig", x5t="abc", x5c=["MIIB"])
        path.write_text(json.dumps({"keys": [entry]}))
        issuers.append(replace(settings_, jwks=path))
    return make_verifier(folder, document(), issuers=tuple(issuers))


def keycloak(claims: dict[str, Any] = KEYCLOAK, **header: Any) -> str:
    given = {"alg": "RS256", "typ": "JWT"} | header
    return issuers_of_tests.token(RSA_KEY, claims, **given)


def entra(claims: dict[str, Any] = ENTRA, **header: Any) -> str:
    given = {"alg": "RS256", "typ": "JWT"} | header
    return issuers_of_tests.token(OTHER_RSA, claims, **given)


def test_a_token_of_keycloaks_shape(several: Verifier) -> None:
    principal = several.verify(keycloak(), now=NOW)
    assert principal.subject == KEYCLOAK["sub"]
    assert principal.client_id == "notebook"
    assert principal.scopes == {"openid", "profile", "email", "infer:toy"}
    assert principal.groups == {"offline_access", "researcher", "/radiology/readers"}
    assert principal.tenant is None


def test_a_token_of_entras_shape(several: Verifier) -> None:
    principal = several.verify(entra(), now=NOW)
    assert (principal.subject, principal.client_id) == (ENTRA["oid"], ENTRA["azp"])
    assert (principal.token_id, principal.tenant) == (ENTRA["uti"], ENTRA["tid"])
    assert principal.scopes == {"Models.Infer", "Models.Read"}
    assert principal.groups == {"Model.Reader"}


def test_a_token_under_a_shared_secret(several: Verifier) -> None:
    claims = CLAIMS | {"iss": "shared"}
    text = issuers_of_tests.token(b"s" * 32, claims, alg="HS256", kid=None)
    assert several.verify(text, now=NOW).subject == "alice"
    for secret in (b"t" * 32, b"s" * 33):
        text = issuers_of_tests.token(secret, claims, alg="HS256", kid=None)
        with pytest.raises(TokenError, match="signature does not verify"):
            several.verify(text, now=NOW)


def test_subjects_of_two_issuers_are_two(several: Verifier) -> None:
    one = several.verify(keycloak(KEYCLOAK | {"sub": "x"}), now=NOW)
    other = several.verify(entra(ENTRA | {"oid": "x"}), now=NOW)
    assert one.subject == other.subject
    assert one.account != other.account


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # Each key is its issuer's: the same kid elsewhere does not help.
        (lambda: keycloak(ENTRA), "signature does not verify"),
        (lambda: entra(KEYCLOAK), "signature does not verify"),
        (lambda: keycloak(KEYCLOAK | {"iss": ISSUER}), "typ is not the issuer's"),
        (
            lambda: keycloak(KEYCLOAK | {"iss": ISSUER}, typ="at+jwt"),
            "kid is not known",
        ),
        (lambda: keycloak(typ="at+jwt"), "typ is not the issuer's"),
        (lambda: keycloak(alg="PS256"), "alg is not the key's"),
        (lambda: keycloak(KEYCLOAK | {"iss": KEYCLOAK["iss"] + "/"}), "iss is not"),
        (lambda: keycloak(KEYCLOAK | {"iss": KEYCLOAK["iss"].upper()}), "iss is not"),
        # An ID token of the same issuer, for the same audience.
        (lambda: keycloak(KEYCLOAK | {"typ": "ID"}), "typ is not Bearer"),
        (lambda: keycloak(changed(KEYCLOAK, "typ", DROP)), "typ is not Bearer"),
        (lambda: entra(ENTRA | {"ver": "1.0"}), "ver is not 2.0"),
        (lambda: entra(ENTRA | {"ver": 2.0}), "ver is not 2.0"),
        (lambda: entra(changed(ENTRA, "tid", DROP)), "tid is missing"),
        (lambda: entra(changed(ENTRA, "uti", DROP)), "uti is missing"),
        (lambda: entra(ENTRA | {"exp": NOW + 5401}), "lifetime is too long"),
        (lambda: entra(ENTRA | {"aud": "sealgate"}), "aud does not contain"),
        (lambda: entra(ENTRA | {"roles": [1]}), "roles is not text"),
        (lambda: entra(ENTRA | {"roles": [""]}), "roles is not text"),
        (lambda: entra(ENTRA | {"roles": {"a": 1}}), "roles is not text"),
        (lambda: entra(ENTRA | {"roles": [f"{i}" for i in range(600)]}), "more than"),
        (
            lambda: keycloak(
                changed(KEYCLOAK, "resource_access.sealgate.roles", ["a infer:*"])
            ),
            "scope is malformed",
        ),
        (
            lambda: keycloak(changed(KEYCLOAK, "resource_access.sealgate.roles", {})),
            "scope is malformed",
        ),
        (lambda: keycloak(KEYCLOAK | {"scope": ["infer:toy"]}), "scope is malformed"),
    ],
)
def test_one_issuers_token_is_no_others(several: Verifier, text, message) -> None:
    with pytest.raises(TokenError, match=message):
        several.verify(text(), now=NOW)


@pytest.mark.parametrize(
    "value", [None, "x", [], ["sealgate"], {"sealgate": []}, {"sealgate": {}}, DROP]
)
def test_nested_claims_of_another_shape_grant_nothing(
    several: Verifier, value: object
) -> None:
    text = keycloak(changed(KEYCLOAK, "resource_access", value))
    assert "infer:toy" not in several.verify(text, now=NOW).scopes


@pytest.mark.parametrize("bits", ["at+jwt", "AT+JWT", "application/at+jwt"])
def test_a_type_in_its_spellings(verifier: Verifier, bits: str) -> None:
    verifier.verify(sign(HEADER | {"typ": bits}, CLAIMS), now=NOW)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"jkt": 1},
        {"jkt": ""},
        {"jkt": "a", "jwk": {}},
        {"x5t": "a"},
        {"x5t#S256": None},
        {"x5t#S256": ""},
        {"x5t#S256": "a", "kid": "b"},
    ],
)
def test_a_binding_that_is_not_understood(verifier: Verifier, value: object) -> None:
    with pytest.raises(TokenError, match="cnf is not understood"):
        verifier.verify(sign(HEADER, CLAIMS | {"cnf": value}), now=NOW)


@pytest.mark.parametrize(
    ("alg", "key", "name"),
    [
        ("ES384", issuers_of_tests.P384_KEY, "ES384"),
        ("PS256", RSA_KEY, "PS256"),
        ("RS256", RSA_KEY, "RS256"),
    ],
)
def test_each_algorithm(tmp_path: Path, alg: str, key: Any, name: str) -> None:
    entry = issuers_of_tests.jwk(key, "key", alg=alg)
    verifier = make_verifier(tmp_path, {"keys": [entry]})
    text = issuers_of_tests.token(key, CLAIMS, alg=alg)
    assert verifier.verify(text, now=NOW).subject == "alice"


# Remembered tokens.


class Counting:
    """A source of keys that says how often it was asked; keys can be replaced."""

    def __init__(self, keys: Any) -> None:
        self.keys = keys
        self.unknowns = 0

    def current(self) -> Any:
        return self.keys

    def unknown(self) -> None:
        self.unknowns += 1


@pytest.fixture
def remembering(tmp_path: Path) -> Verifier:
    return make_verifier(tmp_path, document(), token_cache_entries=3)


def with_source(verifier: Verifier) -> Counting:
    """Put a source in the verifier's issuer that the test can turn."""
    issuer = verifier._issuers[ISSUER]
    source = Counting(issuer.source.current())
    verifier._issuers[ISSUER] = replace(issuer, source=source)
    return source


def test_a_remembered_token_is_not_verified_again(
    remembering: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = sign(HEADER, CLAIMS)
    first = remembering.verify(text, now=NOW)

    def never(*args: object) -> None:
        raise AssertionError("verified again")

    monkeypatch.setattr("security.access.jws.verify", never)
    assert remembering.verify(text, now=NOW) is first
    # Any other text is another token, however much of it is the same.
    place = text.rindex(".") + 9
    other = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
    with pytest.raises(AssertionError, match="verified again"):
        remembering.verify(other, now=NOW)


def test_a_remembered_token_expires(remembering: Verifier) -> None:
    text = sign(HEADER, CLAIMS | {"nbf": NOW - 10})
    remembering.verify(text, now=NOW)
    remembering.verify(text, now=NOW + 604)
    with pytest.raises(TokenError, match="token has expired"):
        remembering.verify(text, now=NOW + 605)
    # A clock that was set back: not yet valid is not valid.
    with pytest.raises(TokenError, match="iat is in the future"):
        remembering.verify(text, now=NOW - 100)


def test_a_remembered_token_needs_its_key(remembering: Verifier) -> None:
    source = with_source(remembering)
    text = sign(HEADER, CLAIMS)
    remembering.verify(text, now=NOW)
    source.keys = {name: key for name, key in source.keys.items() if name[0] != "ed"}
    with pytest.raises(TokenError, match="kid is not known"):
        remembering.verify(text, now=NOW)
    assert source.unknowns == 1


def test_memory_is_bounded_and_the_oldest_goes(remembering: Verifier) -> None:
    texts = [sign(HEADER, CLAIMS | {"jti": str(number)}) for number in range(4)]
    principals = [remembering.verify(text, now=NOW) for text in texts[:3]]
    assert remembering.verify(texts[0], now=NOW) is principals[0]
    remembering.verify(texts[3], now=NOW)
    assert remembering.verify(texts[0], now=NOW) is principals[0]
    assert remembering.verify(texts[1], now=NOW) is not principals[1]
    assert len(remembering._cache) == 3


def test_refusals_are_not_remembered(remembering: Verifier) -> None:
    for number in range(50):
        with pytest.raises(TokenError):
            remembering.verify(f"e30.e30.{number:04}", now=NOW)
    assert len(remembering._cache) == 0


def test_nothing_is_remembered_where_the_settings_say_so(tmp_path: Path) -> None:
    verifier = make_verifier(tmp_path, document(), token_cache_entries=0)
    text = sign(HEADER, CLAIMS)
    assert verifier.verify(text, now=NOW) is not verifier.verify(text, now=NOW)
