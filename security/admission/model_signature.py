"""model.sig: the same files, signed as the OpenSSF's model signing has them.

Predicate ``https://model_signing/signature/v1.0`` (ossf/model-signing-spec): the one
subject is the root digest, the resources are the covered files in the order of their
names, everything else in the folder is ignored. `model_signing verify key` takes it.

It is for other people's tools; no policy asks for it. Yet a signature that lies about
the files beside it would mislead them, so every door demands of a model.sig (check 25)
that a trusted key made it, and that it is about this bundle. Those tools know no
ML-DSA-65: it has no second signature.
"""

from __future__ import annotations

import hashlib
from typing import Any

from models.bundle import (
    MANIFEST_FILE,
    MODEL_FILE,
    MODEL_SIGNATURE_FILE,
    SEALED_FILE,
    Bundle,
)
from sealgate.errors import StatementError
from sealgate.protocol import dsse
from sealgate.protocol.statement import Resource, Statement
from sealgate.protocol.versions import unread
from security.admission.steps import Scene
from security.admission.trust import ROLES
from security.errors import AdmissionRefused

__all__ = ["MODEL_SIGNATURE_TYPE", "check_signature", "sign_model"]

MODEL_SIGNATURE_TYPE = "https://model_signing/signature/v1.0"
SIGNATURE_CHECK = 25

# Beside the covered files, in a bundle or in BentoML's store.
_IGNORED = (
    MODEL_SIGNATURE_FILE,
    SEALED_FILE,
    "evidence",
    "attestations",
    "MODEL_CARD.md",
    "bom.cdx.json",
    "model.yaml",
)


def sign_model(bundle: Bundle, signer: dsse.SigningKey) -> bytes:
    """The Sigstore bundle for ``model.sig``."""
    return dsse.sign(_statement(bundle).to_json(), signer)


def check_signature(scene: Scene) -> None:
    """Check 25, of a bundle that carries a model.sig.

    Raises:
        AdmissionRefused: not signed by a trusted key, or about other files.
    """
    bundle = scene.bundle
    data = bundle.files.get(MODEL_SIGNATURE_FILE)
    if data is None:
        return
    try:
        verified = scene.trust.verify(data, ROLES)
        statement = Statement.from_json(verified.payload)
    except StatementError as error:
        raise _refused(f"{MODEL_SIGNATURE_FILE}: {error}") from None
    if statement.predicate_type != MODEL_SIGNATURE_TYPE:
        text = unread(statement.predicate_type, MODEL_SIGNATURE_TYPE)
        raise _refused(f"{MODEL_SIGNATURE_FILE} is about other files: {text}")
    wanted = _statement(bundle)
    digests = tuple(subject.sha256 for subject in statement.subjects)
    if (
        digests != (bundle.subject.root_sha256,)
        or statement.predicate.get("resources") != wanted.predicate["resources"]
    ):
        raise _refused(f"{MODEL_SIGNATURE_FILE} is about other files")


def _statement(bundle: Bundle) -> Statement:
    subject = bundle.subject
    manifest = hashlib.sha256(bundle.files[MANIFEST_FILE]).hexdigest()
    serialization = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        "ignore_paths": list(_IGNORED),
    }
    resources = [
        _resource(MANIFEST_FILE, manifest),
        _resource(MODEL_FILE, subject.onnx_sha256),
    ]
    return Statement(
        (Resource(f"{subject.name}:{subject.version}", subject.root_sha256),),
        MODEL_SIGNATURE_TYPE,
        {"serialization": serialization, "resources": resources},
    )


def _resource(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "algorithm": "sha256", "digest": digest}


def _refused(message: str) -> AdmissionRefused:
    return AdmissionRefused(SIGNATURE_CHECK, message)
