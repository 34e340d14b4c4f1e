"""security.access.jwks: the issuer's public keys, each bound to one algorithm."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings

from security.access.issuer import jwks_document
from security.access.jwks import load_jwks
from security.errors import KeyFileError
from tests.support.mutations import DROP, changed, encode, mutated

# RFC 8037, appendix A.2, and RFC 7517, appendix A.1.
ED25519 = {
    "kty": "OKP",
    "crv": "Ed25519",
    "kid": "ed",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
}
P256 = {
    "kty": "EC",
    "crv": "P-256",
    "kid": "ec",
    "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
    "use": "sig",
    "key_ops": ["verify"],
    "alg": "ES256",
}
DOCUMENT = {"keys": [P256, ED25519]}


def load(folder: Path, document: Any):
    path = folder / "jwks.json"
    path.write_bytes(document if isinstance(document, bytes) else encode(document))
    return load_jwks(path)


def test_each_key_knows_its_algorithm(tmp_path: Path) -> None:
    keys = load(tmp_path, DOCUMENT)
    assert set(keys) == {("ed", "EdDSA"), ("ed", "Ed25519"), ("ec", "ES256")}
    assert all(key.algorithm == algorithm for (_, algorithm), key in keys.items())


def test_the_development_issuers_document(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate().public_key()
    (loaded,) = load(tmp_path, jwks_document(key)).values()
    assert loaded.jwk.key == key


FAULTS = [
    ("keys", DROP, "expected an array of at most 64 keys"),
    ("keys", {}, "expected an array of at most 64 keys"),
    ("keys", [ED25519] * 65, "expected an array of at most 64 keys"),
    ("keys", [ED25519, ED25519 | {"use": "sig"}], "'ed' occurs twice"),
    ("keys.0", "key", "key 1 is no object"),
    ("keys.0.kid", DROP, "key 1 has no kid"),
    ("keys.0.kid", "", "key '' has no kid"),
    ("keys.0.kid", 1, "key 1 has no kid"),
    ("keys.0.kty", "RSA", "'ec' is not RSA, Ed25519"),
    ("keys.0.k", "AAAA", "'ec' is private"),
    ("keys.0.kty", "oct", "'ec' is not RSA, Ed25519"),
    ("keys.0.kty", ["EC"], "'ec' is not RSA, Ed25519"),
    ("keys.0.crv", "P-384", "'ec' cannot be used with its alg"),
    ("keys.0.crv", "P-521", "'ec' is not RSA, Ed25519"),
    ("keys.0.crv", "secp256k1", "'ec' is not RSA, Ed25519"),
    ("keys.0.kid", "k" * 257, "k' has no kid"),
    ("keys.0.crv", {"a": 1}, "'ec' is not RSA, Ed25519"),
    ("keys.1.crv", "X25519", "'ed' is not RSA, Ed25519"),
    ("keys.1.d", "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A", "'ed' is private"),
    ("keys.0.use", "enc", "'ec' is not for verifying"),
    ("keys.0.key_ops", ["sign"], "'ec' is not for verifying"),
    ("keys.0.key_ops", "verify", "'ec' is not for verifying"),
    ("keys.0.key_ops", 5, "'ec' is not for verifying"),
    ("keys.0.alg", "none", "'ec' cannot be used with its alg"),
    ("keys.0.alg", ["ES256"], "'ec' cannot be used with its alg"),
    ("keys.0.alg", "ES384", "'ec' cannot be used with its alg"),
    ("keys.1.alg", "ES256", "'ed' cannot be used with its alg"),
    ("keys.1.alg", "HS256", "'ed' cannot be used with its alg"),
    ("keys.0.y", P256["x"], "'ec' is malformed"),
    ("keys.0.x", "AA", "'ec' is malformed"),
    ("keys.0.x", 5, "'ec' is malformed"),
    ("keys.1.x", "!", "'ed' is malformed"),
    ("keys.1.x", DROP, "'ed' is malformed"),
]


@pytest.mark.parametrize(("path", "value", "message"), FAULTS)
def test_refuses_one_fault(
    tmp_path: Path, path: str, value: object, message: str
) -> None:
    document = changed(DOCUMENT, path, value)
    if path != "keys":
        # Beside a good one it may be left out; by itself it is the set's fault.
        document["keys"] = [document["keys"][int(path.split(".")[1])]]
    with pytest.raises(KeyFileError, match=message.replace("key 2", "key 1")):
        load(tmp_path, document)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "top level is not an object"),
        (b'{"keys":[],"keys":[]}', "repeats a key"),
        (b" " * 300_000, "at most 262144 allowed"),
    ],
)
def test_refuses_what_is_no_document(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(KeyFileError, match=message):
        load(tmp_path, data)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="no such file"):
        load_jwks(tmp_path / "none.json")


@settings(deadline=None, max_examples=200)
@given(document=mutated(DOCUMENT))
def test_any_change_is_read_or_refused(tmp_path_factory, document: object) -> None:
    try:
        keys = load(tmp_path_factory.mktemp("jwks"), document)
    except KeyFileError:
        return
    assert {key.algorithm for key in keys.values()} <= {
        "EdDSA",
        "Ed25519",
        "ES256",
        "ES384",
    }


def test_wycheproof_keys_for_encryption_are_refused(
    tmp_path: Path, shared_data: Path
) -> None:
    path = shared_data / "vectors-wycheproof" / "json_web_signature_test.json.gz"
    groups = json.loads(gzip.decompress(path.read_bytes()))["testGroups"]
    keys = [g["public"] for g in groups if g["comment"] == "ec_key_for_encryption"]
    assert len(keys) == 2
    for key in keys:
        with pytest.raises(KeyFileError, match="not for verifying signatures"):
            load(tmp_path, {"keys": [key]})
