"""A bundle out of, and into, an OCI layout or a registry, in either form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from models.bundle import Bundle
from models.errors import BundleError
from security.registry import images, modelpack
from security.registry.client import Registry
from security.registry.documents import Artifact, Store, parse_manifest, sha256
from security.registry.layout import Layout
from security.registry.references import FORMS, LayoutReference, parse_reference

__all__ = ["open_store", "pull", "push"]

_MAKERS: Mapping[str, Callable[[Bundle], Artifact]] = dict(
    zip(FORMS, (images.image_of, modelpack.artifact_of), strict=True)
)


@contextmanager
def open_store(
    source: str,
    *,
    environ: Mapping[str, str],
    authorities: Path | None = None,
    plain_http: bool = False,
) -> Iterator[Store]:
    """The place that a reference names.

    Raises:
        SettingsError: no reference, or http to another machine.
        KeyFileError: no file of authorities.
    """
    reference = parse_reference(source)
    if isinstance(reference, LayoutReference):
        yield Layout(reference)
        return
    with Registry(
        reference, environ=environ, authorities=authorities, plain_http=plain_http
    ) as registry:
        yield registry


def push(bundle: Bundle, store: Store, *, form: str, tag: str) -> str:
    """Write a bundle, whose doors are the caller's, under a tag.

    Returns:
        The digest of its manifest: equal for equal bundles.

    Raises:
        RegistryError: it is not taken.
        KeyFileError: the registry does not answer, or asks for a login that is none.
    """
    artifact = _MAKERS[form](bundle)
    for blob in artifact.blobs:
        store.put_blob(blob)
    digest = sha256(artifact.manifest)
    # Before the tag: whoever finds it finds everything.
    for referrer in artifact.referrers:
        for blob in referrer.blobs:
            store.put_blob(blob)
        store.put_referrer(referrer.manifest, digest)
    store.put_manifest(artifact.manifest, tag)
    return digest


def pull(store: Store, to: Path) -> str:
    """Write the bundle that the store's reference names into an empty folder.

    What lies there then is what the manifest's digest stands for, and no more: whether
    it may be used, the gate says.

    Returns:
        The digest of the manifest.

    Raises:
        BundleError: it is no bundle, or other bytes than its digests say.
        RegistryError: it is not there, or not given.
        KeyFileError: as `push`.
    """
    data = store.manifest()
    manifest = parse_manifest(data)
    if manifest.artifact_type == modelpack.ARTIFACT_TYPE:
        modelpack.unpack(manifest, store, to)
    elif manifest.config.media_type in images.CONFIG_TYPES:
        images.unpack(manifest, store, to)
    else:
        kind = manifest.artifact_type or manifest.config.media_type
        raise BundleError(f"an artifact of type {kind!r}, which holds no bundle")
    return sha256(data)
