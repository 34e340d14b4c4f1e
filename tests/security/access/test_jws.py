"""security.access.jws: published vectors, and every spelling that is not the one."""

from __future__ import annotations

import gzip
import hmac
import json
import math
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from security.access import jws
from security.access.jwks import (
    JwkSet,
    KeyRules,
    VerificationKey,
    load_secret,
    parse_jwks,
)
from security.access.tokens import Verifier
from security.errors import KeyFileError, TokenError
from security.settings.access import AccessSettings
from security.settings.issuers import ALGORITHMS
from tests.support.issuers import ED_KEY

MAX = 1 << 20


def groups(shared_data: Path) -> list[dict[str, Any]]:
    path = shared_data / "vectors-wycheproof" / "json_web_signature_test.json.gz"
    found: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))[
        "testGroups"
    ]
    return found


def keys_of(group: dict[str, Any], folder: Path) -> JwkSet | None:
    """The group's key as our server would hold it; None if it never would."""
    if "public" in group:
        document = json.dumps({"keys": [group["public"]]}).encode()
        try:
            return parse_jwks(document, source="group")
        except KeyFileError:
            return None
    secret = jwt.utils.base64url_decode(group["private"]["k"])
    path = folder / "secret"
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_bytes(secret)
    return load_secret(path)


def verifies(text: str, keys: JwkSet) -> bool:
    try:
        jws.verify(jws.parse(text, max_bytes=MAX), keys)
    except TokenError:
        return False
    return True


# These two are, byte for byte, vector 357, which is valid: the padding that should make
# them invalid is missing in the published file.
CONTRADICTED = {367: 357, 370: 357}
COUNTS = {"valid": 46, "invalid": 355, "accepted": 24}
# Valid there, refused here: a question mark inside base64url, a payload of no bytes,
# and PS384 under a key that says it is for PS256.
NOT_OURS = {
    "base64: InvalidCharacterInsertedInHeader",
    "base64: InvalidCharacterInsertedInPayload",
    "ps256: emptyPayload",
    "rfc7520: Figure20",
    "rfc7520WithKeyOps: Figure20",
    "rs256: emptyPayload",
}


def test_wycheproof(tmp_path: Path, shared_data: Path) -> None:
    """All 401 vectors through the verifier's signature step, with each group's own key.

    Every invalid one is refused. Every valid one is accepted whose key could be one of
    ours: an algorithm that we have, a key that is for verifying.
    """
    texts: dict[int, str] = {}
    counts = {"valid": 0, "invalid": 0, "accepted": 0}
    refused: set[str] = set()
    for group in groups(shared_data):
        keys = keys_of(group, tmp_path)
        for test in group["tests"]:
            texts[test["tcId"]] = test["jws"]
            counts[test["result"]] += 1
            accepted = keys is not None and verifies(test["jws"], keys)
            counts["accepted"] += accepted
            if test["result"] == "invalid" and test["tcId"] not in CONTRADICTED:
                assert not accepted, test
            if test["result"] == "valid" and keys is not None and not accepted:
                refused.add(f"{group['comment']}: {test['comment']}")
    assert len(texts) == 401
    assert all(texts[a] == texts[b] for a, b in CONTRADICTED.items())
    assert refused == NOT_OURS
    assert counts == COUNTS


def test_wycheproof_as_tokens(tmp_path: Path, shared_data: Path) -> None:
    """All 401 through the whole verifier: none of them is an access token."""
    for number, group in enumerate(groups(shared_data)):
        verifier = whole_verifier(tmp_path / str(number), group)
        if verifier is None:
            continue
        for test in group["tests"]:
            with pytest.raises(TokenError):
                verifier.verify(test["jws"], now=1_800_000_000)


def whole_verifier(folder: Path, group: dict[str, Any]) -> Verifier | None:
    """A server that trusts the group's key as its issuer's."""
    folder.mkdir()
    given: dict[str, Any] = {"issuer": "issuer", "audience": "us"}
    if "public" in group:
        given["jwks"] = folder / "jwks.json"
        given["jwks"].write_text(json.dumps({"keys": [group["public"]]}))
    else:
        given |= {"secret": folder / "secret", "algorithms": ("HS256",)}
        given["secret"].touch(0o600)
        octets = jwt.utils.base64url_decode(group["private"]["k"])
        given["secret"].write_bytes(octets)
    try:
        return Verifier(AccessSettings(**given, max_token_bytes=MAX))
    except KeyFileError:
        return None


# Spellings.

SECRET = b"0" * 32
HEADER = {"typ": "at+jwt", "alg": "HS256"}


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> JwkSet:
    path = tmp_path_factory.mktemp("jws") / "secret"
    path.touch(0o600)
    path.write_bytes(SECRET)
    return load_secret(path)


def signed(header: bytes, payload: bytes = b"{}") -> str:
    start = ".".join(jwt.utils.base64url_encode(x).decode() for x in (header, payload))
    mac = hmac.digest(SECRET, start.encode(), "sha256")
    return f"{start}.{jwt.utils.base64url_encode(mac).decode()}"


def test_a_shared_secret_verifies_what_it_signed(secret: JwkSet) -> None:
    text = signed(json.dumps(HEADER).encode())
    assert verifies(text, secret)
    # Whatever kid says: there is one key.
    assert verifies(signed(json.dumps(HEADER | {"kid": "../x"}).encode()), secret)
    assert not verifies(signed(json.dumps(HEADER | {"alg": "none"}).encode()), secret)
    assert not verifies(text[:-4] + "AAAA", secret)


def test_a_secret_has_32_bytes(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes(b"x" * 31)
    with pytest.raises(KeyFileError, match="at least 32 bytes"):
        load_secret(path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="let others in"):
        load_secret(path)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_one_content_has_one_spelling(secret: JwkSet, part: int) -> None:
    """The unused bits of a last character: another text, the same bytes."""
    # A length that is no multiple of three leaves some in each part.
    header = json.dumps(HEADER).encode()
    header += b" " * (-len(header) % 3 + 1)
    parts = signed(header, b"{ }").split(".") if part != 1 else signed(b"{}").split(".")
    last = parts[part][-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    parts[part] = parts[part][:-1] + alphabet[alphabet.index(last) + 1]
    with pytest.raises(TokenError, match="not base64url"):
        jws.parse(".".join(parts), max_bytes=MAX)


@pytest.mark.parametrize("length", [1, 5, 9])
def test_no_length_of_base64url_leaves_one_character(length: int) -> None:
    with pytest.raises(TokenError, match=r"not base64url|not a compact JWS"):
        jws.parse(f"e30.e30.{'A' * length}", max_bytes=MAX)


# What keys may be.

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()


def number(value: int) -> str:
    return jwt.utils.to_base64url_uint(value).decode()


def rsa_jwk(**changes: Any) -> dict[str, Any]:
    numbers = RSA.public_numbers()
    jwk = {"kty": "RSA", "kid": "rsa", "n": number(numbers.n), "e": number(numbers.e)}
    return jwk | changes


def parsed(*entries: dict[str, Any], **how: Any) -> JwkSet:
    return parse_jwks(json.dumps({"keys": entries}).encode(), source="set", **how)


def test_an_rsa_key_is_bound_to_one_algorithm() -> None:
    for name in ("RS256", "PS256"):
        assert parsed(rsa_jwk(alg=name))["rsa", name].algorithm == name
        assert parsed(rsa_jwk(), rules=KeyRules([name]))["rsa", name].algorithm == name
    with pytest.raises(KeyFileError, match=r"has no alg: .* RS256, PS256"):
        parsed(rsa_jwk())
    with pytest.raises(KeyFileError, match="none of the issuer's algorithms"):
        parsed(rsa_jwk(alg="PS256"), rules=KeyRules(["RS256"]))
    for name in ("HS256", "RS512", "ES256", "RSA-OAEP"):
        with pytest.raises(KeyFileError, match="cannot be used with its alg"):
            parsed(rsa_jwk(alg=name))


def test_rsa_keys_of_odd_sizes() -> None:
    modulus = RSA.public_numbers().n
    for changes, message in (
        ({"n": number(modulus >> 1024)}, "1024 bits, not 2048 to 4096"),
        ({"n": number((modulus << 4096) + 1)}, "6144 bits, not 2048 to 4096"),
        ({"e": number(3)}, "an odd exponent"),
        ({"e": number((1 << 33) + 1)}, "an odd exponent"),
        ({"e": number(1)}, "malformed"),
    ):
        with pytest.raises(KeyFileError, match=message):
            parsed(rsa_jwk(alg="RS256", **changes))


# What issuers publish that is not for us, each with the reason that is logged.
OTHERS = {
    "is not for verifying": rsa_jwk(kid="enc", use="enc", alg="RSA-OAEP"),
    "is not RSA": {"kty": "OKP", "kid": "x", "crv": "X448", "x": "AA"},
    "key 3 has no kid": {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
    "is not RSA, Ed25519": {"kty": "AKP", "alg": "ML-DSA-65", "kid": "m", "pub": "AA"},
    "is malformed": {"kty": "RSA", "kid": "cert", "alg": "RS256", "x5c": ["MIIB"]},
    "is not for verifying signatures": rsa_jwk(kid="svid", use="jwt-svid", alg="RS256"),
    "cannot be used with its alg": rsa_jwk(kid="512", alg="RS512"),
    "has no alg": rsa_jwk(kid="which"),
}


def test_a_published_set_may_hold_more_than_is_ours() -> None:
    left_out: list[str] = []
    ours = rsa_jwk(alg="RS256")
    found = parsed(*OTHERS.values(), ours, left_out=left_out)
    assert list(found) == [("rsa", "RS256")]
    assert len(left_out) == len(OTHERS)
    for line, reason in zip(left_out, OTHERS):
        assert reason in line
    # Of a set that is not empty something must remain.
    with pytest.raises(KeyFileError, match="key 'enc' is not for verifying"):
        parsed(*OTHERS.values())
    # One that is empty is the issuer's stop.
    assert parsed() == {}


@pytest.mark.parametrize(
    "private",
    [
        rsa_jwk(kid="lost", alg="RS256", d="AAAA"),
        {"kty": "oct", "kid": "lost", "k": "A" * 64, "alg": "HS256"},
        {"kty": "AKP", "alg": "ML-DSA-65", "kid": "lost", "pub": "AA", "priv": "AA"},
        {"kty": "OKP", "crv": "X25519", "kid": "lost", "use": "enc", "d": "AA"},
        {"kty": "of tomorrow", "kid": "lost", "d": "AA"},
    ],
)
def test_a_private_key_of_any_type_is_always_an_error(private: dict[str, Any]) -> None:
    """Whoever publishes it has lost it, whatever else is in the set."""
    with pytest.raises(KeyFileError, match="'lost' is private"):
        parsed(rsa_jwk(alg="RS256"), private)


@pytest.mark.parametrize("order", [1, -1])
def test_one_key_may_be_published_for_two_algorithms(order: int) -> None:
    entries = [rsa_jwk(alg="RS256"), rsa_jwk(alg="PS256")]
    found = parsed(*entries[::order])
    assert set(found) == {("rsa", "RS256"), ("rsa", "PS256")}
    # The very same entry twice says nothing new; another key of the name does.
    assert parsed(entries[0], entries[0]) == parsed(entries[0])
    other = rsa_jwk(alg="RS256", n=number(RSA.public_numbers().n + 2))
    with pytest.raises(KeyFileError, match="'rsa' occurs twice"):
        parsed(entries[0], other)


ED_JWK = {
    "kty": "OKP",
    "crv": "Ed25519",
    "kid": "ed",
    "x": jwt.utils.base64url_encode(ED_KEY.public_key().public_bytes_raw()).decode(),
}


def ed_token(alg: str) -> str:
    parts = [
        jwt.utils.base64url_encode(json.dumps(part).encode()).decode()
        for part in ({"alg": alg, "kid": "ed"}, {"sub": "alice"})
    ]
    signed = ".".join(parts)
    signature = jwt.utils.base64url_encode(ED_KEY.sign(signed.encode())).decode()
    return f"{signed}.{signature}"


@pytest.mark.parametrize(
    ("stated", "accepted"),
    [
        (None, {"EdDSA", "Ed25519"}),
        ("EdDSA", {"EdDSA"}),
        ("Ed25519", {"Ed25519"}),
    ],
)
def test_both_names_of_ed25519_and_no_mix_up(
    stated: str | None, accepted: set[str]
) -> None:
    """RFC 9864: a key that states one of its algorithm's names means that one."""
    keys = parsed(ED_JWK | ({} if stated is None else {"alg": stated}))
    for name in ("EdDSA", "Ed25519", "Ed448", "eddsa"):
        assert verifies(ed_token(name), keys) == (name in accepted)
    only = parsed(ED_JWK, rules=KeyRules(["Ed25519"]))
    assert verifies(ed_token("Ed25519"), only)
    assert not verifies(ed_token("EdDSA"), only)
    with pytest.raises(KeyFileError, match="cannot be used with its alg"):
        parsed(rsa_jwk(alg="Ed25519"))


def roca_prime(bits: int, exponent: int) -> int:
    """A prime of the form that the broken library made (its section 2.1)."""
    primes = [n for n in range(2, 350) if all(n % d for d in range(2, n))]
    product = math.prod(primes)
    value = pow(65537, exponent, product)
    value += product * ((3 << (bits - 2)) // product)
    while pow(2, value - 1, value) != 1:
        value += product
    return value


def test_rsa_keys_of_the_roca_form_are_refused() -> None:
    """CVE-2017-15361, with a key made as the broken library made them."""
    modulus = roca_prime(1024, 12_345) * roca_prime(1024, 67_890)
    assert modulus.bit_length() == 2048
    with pytest.raises(KeyFileError, match="ROCA"):
        parsed(rsa_jwk(alg="RS256", n=number(modulus)))
    # Beside a sound one it is left out.
    left_out: list[str] = []
    weak = rsa_jwk(kid="weak", alg="RS256", n=number(modulus))
    assert list(parsed(weak, rsa_jwk(alg="RS256"), left_out=left_out)) == [
        ("rsa", "RS256")
    ]
    assert len(left_out) == 1


def test_keys_are_equal_by_what_they_are() -> None:
    one, other = (parsed(rsa_jwk(alg="RS256")) for _ in range(2))
    assert one == other
    assert one != parsed(rsa_jwk(alg="PS256"))
    assert isinstance(one["rsa", "RS256"], VerificationKey)
    assert set(ALGORITHMS) == {"EdDSA", "Ed25519", "ES256", "ES384", "PS256", "RS256"}
