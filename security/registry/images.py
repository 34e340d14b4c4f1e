"""A bundle as a plain image: one uncompressed layer, all of it under ``models/``.

That is what KServe's ``oci+native://`` and Kubernetes' image volumes mount, with
``models`` as the path inside. Evidence and attestations are in the layer, so whatever
copies the image copies them. The same bundle gives the same bytes wherever it is
written: entries in the order of their names, owner 0, time 0, fixed modes, and no
configuration beyond what the specification demands (image-spec, layer.md, config.md).

What is read may be hostile. An archive's extensions (PAX, GNU) and every kind of entry
but files and folders are refused; so are names that a bundle does not have, twice the
same name, and files that are larger than a bundle's may be.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from models.bundle import Bundle, BundleLimits, max_file_bytes
from models.errors import BundleError
from sealgate.protocol import strict_json
from security.registry.documents import (
    MANIFEST_TYPE,
    Artifact,
    Blob,
    Descriptor,
    Manifest,
    Store,
    blob_of,
    checked,
    document,
)

__all__ = ["CONFIG_TYPES", "image_of", "layer", "unpack"]

CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_LAYER = "application/vnd.oci.image.layer.v1.tar"
# Registries' clients compress layers as they copy them.
_PACKED = (f"{_LAYER}+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip")
_PLACE = "models"
_BLOCK = 512
_END = bytes(_BLOCK)
_PART_BYTES = 1 << 20
_MAX_ENTRIES = 256
# What follows the archive's end: tar fills records of 10 KiB, some writers more.
_MAX_PADDING_BYTES = 64 << 10
_MAX_LAYER_BYTES = BundleLimits().max_model_bytes + (1 << 30)


def image_of(bundle: Bundle) -> Artifact:
    """The image of a bundle."""
    digest, size = hashlib.sha256(), 0
    for part in layer(bundle.files):
        digest.update(part)
        size += len(part)
    descriptor = Descriptor(_LAYER, f"sha256:{digest.hexdigest()}", size)
    config = {
        # A file system of nothing but data; runtimes demand that these be there.
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [descriptor.digest]},
    }
    configuration = blob_of(CONFIG_TYPES[0], strict_json.dumps(config))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": configuration.descriptor.to_json(),
        "layers": [descriptor.to_json()],
        "annotations": {
            "org.opencontainers.image.title": bundle.manifest.name,
            "org.opencontainers.image.version": bundle.manifest.version,
        },
    }
    blobs = (configuration, Blob(descriptor, lambda: layer(bundle.files)))
    return Artifact(blobs, strict_json.dumps(manifest))


def layer(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """The archive of a bundle's files, in parts of at most 1 MiB."""
    entries: dict[str, bytes | None] = {_PLACE: None}
    for name, data in files.items():
        path = f"{_PLACE}/{name}"
        entries |= {path.rpartition("/")[0]: None, path: data}
    for path, content in sorted(entries.items()):
        yield _header(path, content)
        if content is not None:
            for start in range(0, len(content), _PART_BYTES):
                yield content[start : start + _PART_BYTES]
            yield bytes(-len(content) % _BLOCK)
    yield _END + _END


def _header(path: str, data: bytes | None) -> bytes:
    info = tarfile.TarInfo(path)  # owner 0 and time 0 are its defaults
    if data is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.size, info.mode = len(data), 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def unpack(manifest: Manifest, store: Store, to: Path) -> None:
    """Write the bundle in an image into a folder.

    Raises:
        BundleError: the image holds something else, or other bytes than it says.
        RegistryError: a blob is not there.
    """
    if len(manifest.layers) != 1:
        raise BundleError(f"an image of {len(manifest.layers)} layers; a bundle is one")
    (described,) = manifest.layers
    if described.size > _MAX_LAYER_BYTES:
        raise BundleError(f"a layer of more than {_MAX_LAYER_BYTES} bytes")
    diff_ids = _diff_ids(document(store, manifest.config))
    parts: Iterator[bytes] = checked(store.blob(described), described)
    if described.media_type in _PACKED:
        # The layer is compared with both digests, as it came and as it was.
        unpacked = _Hashed(_gunzip(parts))
        _write(unpacked, to)
        found = f"sha256:{unpacked.digest.hexdigest()}"
    elif described.media_type == _LAYER:
        _write(parts, to)
        found = described.digest
    else:
        raise BundleError(f"a layer of type {described.media_type!r}")
    if diff_ids != [found]:
        raise BundleError("the image's configuration names another layer")


def _diff_ids(config: Mapping[str, object]) -> object:
    rootfs = config.get("rootfs")
    return rootfs.get("diff_ids") if isinstance(rootfs, dict) else None


class _Hashed:
    """Parts that are hashed as they pass."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts, self.digest = parts, hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            self.digest.update(part)
            yield part


def _gunzip(parts: Iterable[bytes]) -> Iterator[bytes]:
    """One gzip member, in parts: whoever reads no further unpacks no further."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        for packed in parts:
            left = packed
            while left:
                yield unpacker.decompress(left, _PART_BYTES)
                left = unpacker.unconsumed_tail
            if unpacker.unused_data:
                raise BundleError("something follows the compressed layer")
    except zlib.error:
        raise BundleError("the layer is not compressed as it says") from None
    if not unpacker.eof:
        raise BundleError("the compressed layer breaks off")


class _Reader:
    """As many bytes at a time as are asked for."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._held = memoryview(b"")

    def some(self, most: int) -> memoryview:
        """At least one byte and at most so many; none at the end."""
        while not self._held:
            part = next(self._parts, None)
            if part is None:
                return memoryview(b"")
            self._held = memoryview(part)
        found, self._held = self._held[:most], self._held[most:]
        return found

    def block(self) -> bytes:
        """The next 512 bytes.

        Raises:
            BundleError: the archive breaks off.
        """
        block = b""
        while len(block) < _BLOCK:
            found = self.some(_BLOCK - len(block))
            if not found:
                raise BundleError("the layer breaks off")
            block += found
        return block

    def copy(self, size: int, file: BinaryIO) -> None:
        """Write the next bytes to a file, and pass over what fills their block.

        Raises:
            BundleError: the archive breaks off.
        """
        left = size
        while left:
            found = self.some(left)
            if not found:
                raise BundleError("the layer breaks off")
            file.write(found)
            left -= len(found)
        filling = -size % _BLOCK
        while filling:
            found = self.some(filling)
            if not found:
                raise BundleError("the layer breaks off")
            filling -= len(found)


def _write(parts: Iterable[bytes], to: Path) -> None:
    reader = _Reader(parts)
    for _ in range(_MAX_ENTRIES):
        block = reader.block()
        if block == _END:
            break
        _write_entry(block, reader, to)
    else:
        raise BundleError(f"a layer of more than {_MAX_ENTRIES} entries")
    left = _MAX_PADDING_BYTES
    while found := reader.some(_BLOCK):
        left -= len(found)
        if left < 0 or any(found):
            raise BundleError("something follows the layer's archive")


def _write_entry(block: bytes, reader: _Reader, to: Path) -> None:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise BundleError(f"the layer is no archive: {error}") from None
    path = info.name
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        raise BundleError(f"{path!r}: a layer holds files and folders, nothing else")
    if path != _PLACE and not path.startswith(f"{_PLACE}/"):
        raise BundleError(f"{path!r}: outside of {_PLACE}/")
    if info.isdir():
        if path not in _FOLDERS or info.size:
            raise BundleError(f"{path!r}: not a bundle's folder")
        return
    name = path.removeprefix(f"{_PLACE}/")
    if not 0 <= info.size <= max_file_bytes(name):
        raise BundleError(f"{name}: {info.size} bytes, at most {max_file_bytes(name)}")
    target = to / name
    if target.exists():
        raise BundleError(f"{name}: twice in the layer")
    target.parent.mkdir(exist_ok=True)
    with target.open("xb") as file:
        reader.copy(info.size, file)


_FOLDERS = tuple(f"{_PLACE}{below}" for below in ("", "/evidence", "/attestations"))
