"""Descriptors and manifests (OCI image-spec v1.1), and blobs that are their digest.

Whoever wrote them may be hostile: a document is bounded before it is read and is its
digest before it is parsed; a blob that is streamed is compared when it ends, and is
never longer than its descriptor says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.errors import BundleError
from sealgate.errors import JsonError
from sealgate.protocol import strict_json

__all__ = [
    "EMPTY",
    "INDEX_TYPE",
    "MANIFEST_TYPE",
    "MANIFEST_TYPES",
    "MAX_DOCUMENT_BYTES",
    "MAX_LAYERS",
    "REF_NAME",
    "Artifact",
    "Blob",
    "Descriptor",
    "Manifest",
    "Store",
    "blob_of",
    "checked",
    "document",
    "parse_descriptor",
    "parse_index",
    "parse_manifest",
    "sha256",
]

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
# Docker's own: an image that went through an older engine comes back as one.
MANIFEST_TYPES = (
    MANIFEST_TYPE,
    "application/vnd.docker.distribution.manifest.v2+json",
)
REF_NAME = "org.opencontainers.image.ref.name"
# Registries take at least 4 MiB of a manifest; a bundle's has a few kilobytes.
MAX_DOCUMENT_BYTES = 1 << 20
MAX_LAYERS = 256
_MAX_SIZE = 1 << 40
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Descriptor:
    """What names a blob (descriptor.md).

    Attributes:
        media_type: what its bytes are said to be.
        digest: ``sha256:`` and 64 hexadecimal digits.
        size: in bytes.
        annotations: notes about it.
        artifact_type: of a manifest in an index, if it has one.
    """

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        value: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return value


@dataclass(frozen=True)
class Manifest:
    """An image manifest (manifest.md), as far as a bundle's is looked at."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str
    annotations: Mapping[str, str]


@dataclass(frozen=True)
class Blob:
    """Bytes to be written somewhere, as often as is asked for.

    Attributes:
        descriptor: their digest and size.
        parts: gives them, from the beginning.
    """

    descriptor: Descriptor
    parts: Callable[[], Iterable[bytes]] = field(repr=False)


@dataclass(frozen=True)
class Artifact:
    """An image or artifact to be written: blobs, the manifest, what refers to it."""

    blobs: tuple[Blob, ...]
    manifest: bytes = field(repr=False)
    referrers: tuple[Artifact, ...] = ()


class Store(Protocol):
    """Where images are: `layout.Layout` and `client.Registry`."""

    def manifest(self) -> bytes:
        """The manifest that the reference names; its digest, if that was named."""

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob's bytes, unchecked: `checked` does."""

    def put_blob(self, blob: Blob) -> None:
        """Write a blob, unless it is there."""

    def put_manifest(self, data: bytes, tag: str) -> None:
        """Write a manifest, and let a tag name it."""

    def put_referrer(self, data: bytes, subject: str) -> None:
        """Write a manifest, and let it be found by the digest of its subject."""


EMPTY = Blob(
    Descriptor(
        "application/vnd.oci.empty.v1+json",
        "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        2,
    ),
    lambda: (b"{}",),
)


def sha256(data: bytes) -> str:
    """The digest of bytes.

    >>> sha256(b"{}") == EMPTY.descriptor.digest
    True
    """
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def blob_of(media_type: str, data: bytes, **annotations: str) -> Blob:
    """A blob of bytes that are there."""
    descriptor = Descriptor(media_type, sha256(data), len(data), annotations)
    return Blob(descriptor, lambda: (data,))


def checked(parts: Iterable[bytes], descriptor: Descriptor) -> Iterator[bytes]:
    """Pass bytes on; at their end they have been what the descriptor says.

    Raises:
        BundleError: more or fewer bytes, or another digest.
    """
    digest, left = hashlib.sha256(), descriptor.size
    for part in parts:
        left -= len(part)
        if left < 0:
            break
        digest.update(part)
        yield part
    if left or f"sha256:{digest.hexdigest()}" != descriptor.digest:
        raise BundleError(f"{descriptor.digest}: other bytes than its digest says")


def document(store: Store, descriptor: Descriptor) -> dict[str, Any]:
    """A JSON document among the blobs.

    Raises:
        BundleError: too large, other bytes than its digest says, or not JSON.
    """
    if descriptor.size > MAX_DOCUMENT_BYTES:
        raise BundleError(f"{descriptor.digest}: more than {MAX_DOCUMENT_BYTES} bytes")
    data = b"".join(checked(store.blob(descriptor), descriptor))
    return _object(data, descriptor.digest)


def parse_manifest(data: bytes) -> Manifest:
    """Parse an image manifest.

    Raises:
        BundleError: not one.
    """
    value = _object(data, "the manifest")
    if "manifests" in value:
        raise BundleError("an index of images: name one of them by its digest")
    if value.get("mediaType", MANIFEST_TYPE) not in MANIFEST_TYPES:
        raise BundleError("the manifest is of no image")
    layers = value.get("layers")
    if not isinstance(layers, list) or not 0 < len(layers) <= MAX_LAYERS:
        raise BundleError(f"the manifest names no layers, or more than {MAX_LAYERS}")
    artifact_type = value.get("artifactType", "")
    if not isinstance(artifact_type, str):
        raise BundleError("the manifest's artifactType is no text")
    return Manifest(
        config=parse_descriptor(value.get("config")),
        layers=tuple(map(parse_descriptor, layers)),
        artifact_type=artifact_type,
        annotations=_texts(value.get("annotations", {})),
    )


def parse_index(data: bytes) -> tuple[Descriptor, ...]:
    """The manifests that an index names.

    Raises:
        BundleError: not an index.
    """
    items = _object(data, "the index").get("manifests")
    if not isinstance(items, list):
        raise BundleError("the index has no list of manifests")
    return tuple(map(parse_descriptor, items))


def parse_descriptor(value: Any) -> Descriptor:
    """Parse a descriptor; digests are SHA-256.

    Raises:
        BundleError: not one.
    """
    if not isinstance(value, dict):
        raise BundleError("a descriptor is no object")
    digest, size = value.get("digest"), value.get("size")
    media_type, kind = value.get("mediaType"), value.get("artifactType", "")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise BundleError("a descriptor has no SHA-256 digest")
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise BundleError(f"{digest}: no size in bytes")
    if not isinstance(media_type, str) or not isinstance(kind, str):
        raise BundleError(f"{digest}: no media type")
    return Descriptor(
        media_type, digest, size, _texts(value.get("annotations", {})), kind
    )


def _texts(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for text in value.values()
    ):
        raise BundleError("annotations are no texts")
    return value


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        return strict_json.loads_object(data, max_bytes=MAX_DOCUMENT_BYTES)
    except JsonError as error:
        raise BundleError(f"{where}: {error}") from None
