"""A bundle as a CNCF ModelPack artifact (modelpack/model-spec 0.0.7).

Each file but the attestations is a layer of its own, raw. The attestations refer to the
artifact as other tools' signatures do: a manifest each, whose subject it is and whose
type is Sigstore's. A note in the artifact's own manifest names them with their digests.
So the artifact's digest stands for them too, nobody who may write to the repository can
slip another one in, and a copy that left them behind is seen to have done so.
"""

from __future__ import annotations

import json
from pathlib import Path

from models.bundle import (
    MANIFEST_FILE,
    MODEL_FILE,
    SEALED_FILE,
    Bundle,
    max_file_bytes,
)
from models.errors import BundleError
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.registry.documents import (
    EMPTY,
    MANIFEST_TYPE,
    MAX_DOCUMENT_BYTES,
    MAX_LAYERS,
    Artifact,
    Blob,
    Descriptor,
    Manifest,
    Store,
    blob_of,
    checked,
    parse_descriptor,
    sha256,
)

__all__ = ["ARTIFACT_TYPE", "SIGSTORE_TYPE", "artifact_of", "unpack"]

ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
SIGSTORE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_CONFIG = "application/vnd.cncf.model.config.v1+json"
_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
_TYPES = {
    MODEL_FILE: _WEIGHT,
    SEALED_FILE: _WEIGHT,
    MANIFEST_FILE: "application/vnd.cncf.model.weight.config.v1.raw",
}
_DOCUMENT = "application/vnd.cncf.model.doc.v1.raw"
_FILE_PATH = "org.cncf.model.filepath"
_FILE_METADATA = "org.cncf.model.file.metadata+json"
_ATTESTATIONS = "attestations/"
# The note in the manifest: descriptors of the attestations.
_NOTE = "dev.sealgate.attestations"


def artifact_of(bundle: Bundle) -> Artifact:
    """The artifact of a bundle, and the referrers of its attestations."""
    blobs = {name: _blob(name, data) for name, data in sorted(bundle.files.items())}
    attestations = [blob for name, blob in blobs.items() if _attests(name)]
    layers = [blob for name, blob in blobs.items() if not _attests(name)]
    config = blob_of(_CONFIG, _config(bundle, layers))
    note = strict_json.dumps([blob.descriptor.to_json() for blob in attestations])
    manifest = strict_json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": config.descriptor.to_json(),
            "layers": [blob.descriptor.to_json() for blob in layers],
            "annotations": {_NOTE: note.decode()},
        }
    )
    subject = Descriptor(MANIFEST_TYPE, sha256(manifest), len(manifest))
    referrers = tuple(_referrer(blob, subject) for blob in attestations)
    return Artifact((config, *layers), manifest, referrers)


def _attests(name: str) -> bool:
    return name.startswith(_ATTESTATIONS)


def _blob(name: str, data: bytes) -> Blob:
    kind = SIGSTORE_TYPE if _attests(name) else _TYPES.get(name, _DOCUMENT)
    # What the specification wants of a file: no more than can be said of a bundle's.
    about = {
        "name": name.rpartition("/")[2],
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": len(data),
        "mtime": "1970-01-01T00:00:00Z",
        "typeflag": ord("0"),
    }
    metadata = json.dumps(about, separators=(",", ":"))
    return blob_of(kind, data, **{_FILE_PATH: name, _FILE_METADATA: metadata})


def _config(bundle: Bundle, layers: list[Blob]) -> bytes:
    manifest = bundle.manifest
    digests = [blob.descriptor.digest for blob in layers]
    return strict_json.dumps(
        {
            "descriptor": {"name": manifest.name, "version": manifest.version},
            "config": {"format": "onnx"},
            "modelfs": {"type": "layers", "diffIds": digests},
        }
    )


def _referrer(attestation: Blob, subject: Descriptor) -> Artifact:
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": SIGSTORE_TYPE,
        "config": EMPTY.descriptor.to_json(),
        "layers": [attestation.descriptor.to_json()],
        "subject": subject.to_json(),
        "annotations": {
            "dev.sigstore.bundle.content": "dsse-envelope",
            _FILE_PATH: attestation.descriptor.annotations[_FILE_PATH],
        },
    }
    return Artifact((EMPTY, attestation), strict_json.dumps(manifest))


def unpack(manifest: Manifest, store: Store, to: Path) -> None:
    """Write the bundle in an artifact into a folder, attestations included.

    Raises:
        BundleError: it holds something else, or other bytes than it says.
        RegistryError: a blob is not there.
    """
    attestations = _attestations(manifest)
    for descriptor in (*manifest.layers, *attestations):
        name = descriptor.annotations.get(_FILE_PATH, "")
        if _attests(name) != (descriptor in attestations):
            raise BundleError(f"{name!r}: attestations are referrers, all else layers")
        if descriptor.size > max_file_bytes(name):
            raise BundleError(
                f"{name}: {descriptor.size} bytes, at most {max_file_bytes(name)}"
            )
        target = to / name
        if target.exists():
            raise BundleError(f"{name}: twice in the artifact")
        target.parent.mkdir(exist_ok=True)
        with target.open("xb") as file:
            file.writelines(checked(store.blob(descriptor), descriptor))


def _attestations(manifest: Manifest) -> tuple[Descriptor, ...]:
    note = manifest.annotations.get(_NOTE, "[]").encode()
    try:
        items = strict_json.loads(note, max_bytes=MAX_DOCUMENT_BYTES)
    except JsonError:
        items = None
    if not isinstance(items, list) or len(items) > MAX_LAYERS:
        raise BundleError(f"{_NOTE}: not a list of attestations")
    return tuple(map(parse_descriptor, items))
