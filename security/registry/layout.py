"""An OCI layout: a folder with an index and blobs (image-spec, image-layout.md)."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.errors import BundleError
from models.files import read_regular, write_atomic
from sealgate.protocol import strict_json
from security.errors import RegistryError
from security.registry.documents import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    MAX_DOCUMENT_BYTES,
    REF_NAME,
    Blob,
    Descriptor,
    checked,
    parse_index,
    parse_manifest,
    sha256,
)
from security.registry.references import LayoutReference

__all__ = ["Layout"]

_MARK, _INDEX = "oci-layout", "index.json"
_PART_BYTES = 1 << 20


class Layout:
    """A layout's image, or where one is to be. Whoever wrote it may be hostile."""

    def __init__(self, reference: LayoutReference) -> None:
        self._reference = reference
        self._folder = reference.folder

    def manifest(self) -> bytes:
        """The manifest that the reference names.

        Raises:
            BundleError: malformed, or other bytes than its digest says.
            RegistryError: there is no layout, or no such image in it, or several.
        """
        found = self._named(self._index())
        if found.size > MAX_DOCUMENT_BYTES:
            raise BundleError(f"a manifest of more than {MAX_DOCUMENT_BYTES} bytes")
        return b"".join(checked(self.blob(found), found))

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob's bytes, unchecked, within the descriptor's size and a part.

        Raises:
            RegistryError: it is not there.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            number = os.open(self._path(descriptor.digest), flags)
        except OSError as error:
            raise RegistryError(
                f"{self._reference}: {descriptor.digest}: {error.strerror}"
            ) from None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise BundleError(f"{descriptor.digest}: not a regular file")
        with open(number, "rb") as file:
            while part := file.read(_PART_BYTES):
                yield part

    def put_blob(self, blob: Blob) -> None:
        """Write a blob, unless it is there."""
        path = self._path(blob.descriptor.digest)
        try:
            there = path.stat().st_size == blob.descriptor.size
        except OSError:
            there = False
        if not there:
            write_atomic(path, blob.parts())

    def put_manifest(self, data: bytes, tag: str) -> None:
        """Write a manifest, and give it the tag, which whatever had it loses."""
        self._add(data, {REF_NAME: tag})

    def put_referrer(self, data: bytes, subject: str) -> None:
        """Write a manifest; the index names it with its type and notes."""
        del subject  # it is in the manifest: a layout has no other place for it
        self._add(data, {})

    def _add(self, data: bytes, names: dict[str, str]) -> None:
        manifest = parse_manifest(data)
        added = Descriptor(
            MANIFEST_TYPE,
            sha256(data),
            len(data),
            {**({} if names else manifest.annotations), **names},
            manifest.artifact_type,
        )
        write_atomic(self._path(added.digest), data)
        with self._locked():
            kept = [
                item
                for item in self._index(new=True)
                if (
                    _tag(item) != names[REF_NAME]
                    if names
                    else item.digest != added.digest
                )
            ]
            self._write_index([*kept, added])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among those that write to this layout."""
        mark = self._folder / _MARK
        if not mark.exists():
            write_atomic(mark, b'{"imageLayoutVersion":"1.0.0"}')
        with mark.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _index(self, *, new: bool = False) -> tuple[Descriptor, ...]:
        if not (self._folder / _MARK).is_file():
            raise RegistryError(f"{self._reference}: no OCI layout is there")
        if new and not (self._folder / _INDEX).exists():
            return ()
        return parse_index(
            read_regular(self._folder / _INDEX, max_bytes=MAX_DOCUMENT_BYTES)
        )

    def _write_index(self, items: list[Descriptor]) -> None:
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [item.to_json() for item in items],
        }
        write_atomic(self._folder / _INDEX, strict_json.dumps(document))

    def _named(self, items: tuple[Descriptor, ...]) -> Descriptor:
        """The one image that the reference names."""
        tag, digest = self._reference.tag, self._reference.digest
        if digest:
            found = [item for item in items if item.digest == digest]
        elif tag:
            found = [item for item in items if _tag(item) == tag]
        else:  # signatures, which have no tag, are no images
            tagged = [item for item in items if _tag(item)]
            found = tagged or list(items)
        same = {item.digest: replace(item, annotations={}) for item in found}
        if len(same) != 1:
            tags = ", ".join(sorted({_tag(item) for item in items} - {""})[:8])
            what = digest or tag or f"{len(same)} images"
            raise RegistryError(
                f"{self._reference}: {what}, where one image is to be named"
                + (f"; there are {tags}" if tags else "")
            )
        return next(iter(same.values()))

    def _path(self, digest: str) -> Path:
        return self._folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _tag(item: Descriptor) -> str:
    return item.annotations.get(REF_NAME, "")
