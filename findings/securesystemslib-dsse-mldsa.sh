#!/usr/bin/env bash
# securesystemslib 1.6.0: an ML-DSA signature on a DSSE envelope is not over the envelope.
#
# Guess: an ML-DSA-65 signature over DSSE's pre-authentication encoding, as its protocol
# has every algorithm sign, verifies in securesystemslib's Envelope; its ECDSA ones do.
# Seen: "not enough signatures". Its ML-DSA keys sign and verify a prefix and the SHA-512
# of the encoding (TUF's TAP 21), also in envelopes, and nothing in one says which.
# Who is hurt: whoever signs attestations with ML-DSA by one library, or in a key service,
# and has another verify them; each sees forgeries where the other sees good signatures.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  securesystemslib==1.6.0 cryptography==50.0.2
"$folder/venv/bin/python" - <<'PY'
import hashlib

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Signature, SSlibKey

payload, kind = b"{}", "application/vnd.in-toto+json"


def accepted(key, signature):
    name = SSlibKey.from_crypto(key.public_key())
    signed = Signature(name.keyid, signature.hex())
    envelope = Envelope(payload, kind, {name.keyid: signed})
    try:
        return bool(envelope.verify([name], 1))
    except VerificationError:
        return False


encoding = Envelope(payload, kind, {}).pae()
classical, quantum = ec.generate_private_key(ec.SECP256R1()), MLDSA65PrivateKey.generate()
seen = {
    "ECDSA over the encoding": accepted(
        classical, classical.sign(encoding, ec.ECDSA(SHA256()))
    ),
    "ML-DSA-65 over the encoding": accepted(quantum, quantum.sign(encoding)),
    "ML-DSA-65 over b'tuf\\x01' and its SHA-512": accepted(
        quantum, quantum.sign(b"tuf\x01" + hashlib.sha512(encoding).digest())
    ),
}
for what, verifies in seen.items():
    print(f"{what}: {'verifies' if verifies else 'refused'}")
if list(seen.values()) != [True, False, True]:
    raise SystemExit("changed")
PY
