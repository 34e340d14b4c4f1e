"""Confidential models: sealed in the bundle, opened in memory.

Evidence and verdict are about the model in the clear, whose digest the sealed file
claims. Beside them a sealed bundle carries a statement, signed by a release key, that
binds the ciphertext to the same subjects. Every door demands (check 24):

a. the statement is there, signed by a key in the role release;
b. it is about this very bundle, and of the right type;
c. it names this ciphertext, by digest;
d. the ciphertext is not the plaintext between tags.

That what it opens to is what it claims only a deployment can check, which has the key:
`open_admission` does so before onnxruntime sees a byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from models.bundle import SEALED_ATTESTATION_FILE, SEALED_FILE, Bundle
from models.errors import BundleError
from sealgate.errors import DecryptionError, SealedFileError
from sealgate.protocol import sealedfile
from sealgate.protocol.statement import Resource, Statement
from sealgate.protocol.versions import unread
from security.admission.attest import Signers, signed_files, subjects
from security.admission.gate import Admission
from security.admission.model_keys import ModelKey, key_source
from security.admission.steps import Scene, Signed, demand, read_statement
from security.errors import AdmissionRefused, KeyFileError

__all__ = [
    "SEALED_CHECK",
    "SEALED_MODEL_TYPE",
    "check_sealed",
    "open_admission",
    "open_bundle",
    "seal_model",
]

SEALED_MODEL_TYPE = "https://sealgate.dev/sealed-model/v1"
SEALED_CHECK = 24
SIGNERS = ("release",)


def seal_model(
    bundle: Bundle, public_keys: Sequence[bytes], signers: Signers
) -> dict[str, bytes]:
    """Encrypt a bundle's model, and bind the ciphertext to it.

    Args:
        bundle: in the clear.
        public_keys: raw public keys of the deployments, all X25519 or all X-Wing.
        signers: keys of the role release.

    Returns:
        The sealed file and its signed statement, by path inside the bundle.

    Raises:
        BundleError: the bundle is sealed already.
        SealedFileError: no key, one twice, or keys of two kinds.
        KeyConfigError, DecryptionError: a public key that is none.
    """
    data = b"".join(sealedfile.seal_chunks(bundle.model, public_keys))
    statement = Statement(
        subjects(bundle.subject), SEALED_MODEL_TYPE, {"sealed": _resource(data)}
    )
    signed = signed_files(SEALED_ATTESTATION_FILE, statement.to_json(), signers)
    return {SEALED_FILE: data, **signed}


def check_sealed(scene: Scene) -> None:
    """Check 24, of a bundle whose model is sealed; no key is needed.

    Raises:
        AdmissionRefused: the first of the module's checks that failed.
    """
    bundle = scene.bundle
    if not bundle.sealed:
        return
    if SEALED_ATTESTATION_FILE not in bundle.files:
        raise _refused("the sealed model is not signed")
    read = demand(
        read_statement(
            Signed.of(bundle.files, SEALED_ATTESTATION_FILE),
            scene,
            signers=SIGNERS,
            mode=scene.policy.signatures,
            timestamps=False,  # when it was sealed, nothing depends on
            what="sealed model's attestation",
            checks=(SEALED_CHECK, SEALED_CHECK),
        )
    )
    kind = None if read is None else read.statement.predicate_type
    if read is None or kind != SEALED_MODEL_TYPE:
        text = unread(kind, SEALED_MODEL_TYPE)
        raise _refused(f"sealed model's attestation is of another type: {text}")
    data = bundle.files[SEALED_FILE]
    if read.statement.predicate != {"sealed": _resource(data)}:
        raise _refused("the sealed model was changed after it was signed")
    if sealedfile.is_plaintext(data):
        raise _refused("claims to be sealed, and its chunks are not encrypted")


def open_bundle(bundle: Bundle, key: ModelKey) -> Bundle:
    """Decrypt a sealed bundle's model into memory.

    The ciphertext and the plaintext are the only copies; the caller may drop the first.

    Raises:
        AdmissionRefused: not sealed to this key, changed, or another model than it
            claims.
    """
    # BytesIO hands out what was written into it without copying it once more.
    buffer = BytesIO()
    try:
        for chunk in sealedfile.open_chunks(bundle.files[SEALED_FILE], key):
            buffer.write(chunk)
        return bundle.opened(buffer.getvalue())
    except (SealedFileError, DecryptionError, BundleError) as error:
        raise _refused(f"{SEALED_FILE} cannot be opened: {error}") from None


def open_admission(admission: Admission, setting: Path | str) -> Admission:
    """An admission whose model can be loaded; as it is, if it was never sealed.

    Args:
        admission: passed the gate and `check_sealed`.
        setting: names the deployment's source of keys, `admission.model_key`. It is
            asked for a sealed model only.

    Raises:
        AdmissionRefused: as `open_bundle`, or the source gives no key.
    """
    if not admission.bundle.sealed:
        return admission
    try:
        key = key_source(setting).key(admission)
    except KeyFileError as error:
        raise _refused(f"the model is sealed, and no key opens it: {error}") from None
    return replace(admission, bundle=open_bundle(admission.bundle, key))


def _resource(data: bytes) -> dict[str, object]:
    return Resource(SEALED_FILE, hashlib.sha256(data).hexdigest()).to_object()


def _refused(message: str) -> AdmissionRefused:
    return AdmissionRefused(SEALED_CHECK, message)
