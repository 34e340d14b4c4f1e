"""Records quotes of a software TPM: what tests/vectors/tpm2/quotes.json holds.

    python -m tests.interop.tpm.record > tests/vectors/tpm2/quotes.json

Each run has another TPM, so other keys; the file is made once, and again only if it
should hold more.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from sealgate.protocol.dsse import public_pem
from sealgate.protocol.hpke import KEM_X25519, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig, encode_list
from sealgate.protocol.signedkeys import attestation_nonce, sign_keys_v2
from security.attestation.quotes import TpmAttester, create_attestation_key
from tests.support.tpms import SoftTpm, soft_tpm

NONCE = hashlib.sha256(b"the keys and their window").digest()
OTHER = hashlib.sha256(b"the keys of yesterday").digest()
MEASURED = [hashlib.sha256(text).hexdigest() for text in (b"a Bento", b"its policy")]
WINDOW = {"not_before": 1_800_000_000, "not_after": 1_800_007_200}


def main() -> None:
    with tempfile.TemporaryDirectory() as name, soft_tpm(Path(name) / "state") as tpm:
        os.environ.update(tpm.environ)
        json.dump(record(tpm, Path(name)), sys.stdout, indent=1)
        print()


def record(tpm: SoftTpm, folder: Path) -> dict[str, Any]:
    key = create_attestation_key("0x81010002", folder / "key.pem")
    other = create_attestation_key("0x81010003", folder / "other.pem")
    for digest in MEASURED:
        tpm.extend(15, bytes.fromhex(digest))
    attester = TpmAttester(key, "0x81010002", (15, 16))
    found: dict[str, Any] = {
        "nonce": NONCE.hex(),
        "other_nonce": OTHER.hex(),
        "measured": MEASURED,
        "key": public_pem(key),
        "other_key": public_pem(other),
        "evidence": dict(attester.attest(NONCE)),
        "of_another_nonce": dict(attester.attest(OTHER)),
        "by_another_key": dict(
            TpmAttester(other, "0x81010003", (15, 16)).attest(NONCE)
        ),
        "signed_keys": signed_keys(attester),
        "raw": raw(tpm, folder),
    }
    tpm.extend(15, hashlib.sha256(b"something else").digest())
    return {**found, "after_an_extend": dict(attester.attest(NONCE))}


def signed_keys(attester: TpmAttester) -> dict[str, Any]:
    """Key configurations of the second version, with a quote, as a server has them."""
    key = PrivateKey.generate().public_bytes
    document = encode_list([KeyConfig(1, KEM_X25519, key)])
    identities = (ec.generate_private_key(ec.SECP256R1()), MLDSA65PrivateKey.generate())
    evidence = attester.attest(attestation_nonce(document, **WINDOW))
    envelope = sign_keys_v2(document, identities, attestation=evidence, **WINDOW)
    return {
        "envelope": envelope.decode(),
        "identity_keys": [public_pem(key.public_key()) for key in identities],
        **WINDOW,
    }


def raw(tpm: SoftTpm, folder: Path) -> dict[str, list[str]]:
    """What the attestation key signs that is no quote as we take it: by tpm2-tools."""
    quote = ("quote", "-c", "0x81010002", "-q", NONCE.hex(), "-f", "tss")
    files = ("-m", "quoted", "-s", "signature")
    rsa = ("createak", "-C", "ek", "-c", "ak", "-G", "rsa", "-g", "sha256")
    tpm.run("createek", "-c", "ek", "-G", "ecc", cwd=folder)
    tpm.run(*rsa, "-s", "rsassa", "-u", "rsa.pem", "-f", "pem", cwd=folder)
    tpm.run("createprimary", "-C", "o", "-G", "ecc", "-c", "primary", cwd=folder)
    made = {
        "sha384_bank": (*quote, "-l", "sha384:15", "-g", "sha256", *files),
        "two_banks": (*quote, "-l", "sha1:15+sha256:15", "-g", "sha256", *files),
        "rsa": ("quote", "-c", "ak", *quote[3:], "-l", "sha256:15", *files),
        "certified": (
            *("certify", "-C", "0x81010002", "-c", "primary", "-g", "sha256"),
            *("-f", "tss", "-o", "quoted", "-s", "signature"),
        ),
        "time": (
            *("gettime", "-c", "0x81010002", "-q", NONCE.hex(), "-g", "sha256"),
            *("-f", "tss", "--attestation", "quoted", "-o", "signature"),
        ),
    }
    found = {}
    for name, arguments in made.items():
        tpm.run(*arguments, cwd=folder)
        parts = [(folder / part).read_bytes() for part in ("quoted", "signature")]
        found[name] = [base64.b64encode(part).decode() for part in parts]
    return found


if __name__ == "__main__":
    main()
