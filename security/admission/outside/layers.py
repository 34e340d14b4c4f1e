"""A saved image's layers, applied as a container's runtime would.

An OCI layout, or what `docker save` writes, unpacked. Both name one configuration,
which names the layers by digest; where a folder is both at once, both must name the
same. Nothing is unpacked but the folder that is asked for: of all else only the names
are kept (OCI image-spec, layer.md and image-layout.md).

Engines read the same bytes by other libraries, Go's. What those would read otherwise is
refused: keys of JSON in other letters, and headers of archives (`headers`).
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from models.errors import BundleError
from models.files import read_regular
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.admission.contents import refused
from security.admission.outside.headers import strict_headers

__all__ = ["SavedImage", "exact", "is_saved", "read_saved"]

MAX_DOCUMENT_BYTES = 4 << 20
MAX_LAYERS = 200
MAX_ENTRIES = 2_000_000
MAX_LAYER_BYTES = 32 << 30

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


class _Readable(Protocol):
    """What bytes can be read of."""

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes."""


@dataclass(frozen=True)
class SavedImage:
    """An image's configuration and layers; nothing of them is believed.

    Attributes:
        config: the image's configuration document.
        layers: their files, the lowest first.
    """

    config: Mapping[str, Any]
    layers: tuple[Path, ...]

    def entries(self) -> dict[str, int]:
        """Every path of the image: the layer it comes from; links and devices negative.

        Raises:
            AdmissionRefused: a layer that cannot be read, is not the one that the
                configuration names, climbs out, or writes through a link.
        """
        table: dict[str, int] = {}
        digests = _diff_ids(self.config)
        if len(digests) != len(self.layers):
            raise refused("the image's configuration names other layers")
        for number, (path, digest) in enumerate(zip(self.layers, digests), start=1):
            added: set[str] = set()
            for item in _members(path, digest):
                _apply(table, added, item, number)
                if len(table) > MAX_ENTRIES:
                    raise refused(f"more than {MAX_ENTRIES} files")
        return table

    def unpack(
        self,
        prefix: str,
        table: Mapping[str, int],
        to: Path,
        *,
        max_bytes: int = MAX_LAYER_BYTES,
    ) -> None:
        """Write one folder of the image; links become empty links, which are refused.

        Raises:
            AdmissionRefused: as `entries`, or its files are larger than that.
        """
        digests, left = _diff_ids(self.config), max_bytes
        needed = {abs(n) for name, n in table.items() if name.startswith(f"{prefix}/")}
        for number, (path, digest) in enumerate(zip(self.layers, digests), start=1):
            for item in _members(path, digest) if number in needed else ():
                name = _name(item.info.name)
                inside = name.removeprefix(f"{prefix}/")
                if inside == name or abs(table.get(name, 0)) != number:
                    continue
                left -= 0 if item.info.isdir() else item.info.size
                if left < 0:
                    raise refused(f"{prefix}: more than {max_bytes} bytes")
                try:
                    item.write(to / inside)
                except OSError as error:  # a file where a folder is, or the other way
                    raise refused(
                        f"{name}: cannot be unpacked: {error.strerror}"
                    ) from None


@dataclass(frozen=True)
class _Member:
    info: tarfile.TarInfo
    archive: tarfile.TarFile

    def write(self, target: Path) -> None:
        """Make a folder, a file with its bytes, or an empty link for all else."""
        if self.info.isdir():
            target.mkdir(parents=True, exist_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if not self.info.isreg():
            target.symlink_to("nowhere")
            return
        file = self.archive.extractfile(self.info)
        with target.open("wb") as to:
            if file is not None:
                shutil.copyfileobj(file, to, 1 << 20)


def is_saved(folder: Path) -> bool:
    """Whether a folder is a saved image, rather than a file system."""
    return (folder / "oci-layout").is_file() or (
        (folder / "manifest.json").is_file() and not (folder / "bento.yaml").exists()
    )


def read_saved(folder: Path) -> SavedImage:
    """The one image in a folder.

    Raises:
        AdmissionRefused: malformed, several images, or bytes that are not their digest.
    """
    found = []
    if (folder / "index.json").is_file():
        found.append(_from_index(folder))
    if (folder / "manifest.json").is_file():
        found.append(_from_docker(folder))
    if not found or any(image != found[0] for image in found):
        raise refused("index.json and manifest.json name different images")
    config, paths = found[0]
    data = _bytes(folder, config)
    return SavedImage(_object(data, config), tuple(folder / path for path in paths))


def _from_index(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Paths of configuration and layers, as an OCI layout has them."""
    names = ("manifests", "layers", "config")
    document = exact(_object(_bytes(folder, "index.json"), "index.json"), *names)
    while "manifests" in document:
        images = [
            item
            for item in document["manifests"]
            if isinstance(item, dict) and not _is_attestation(item)
        ]
        if len(images) != 1:
            raise refused(f"{len(images)} images, where there must be one")
        document = exact(_blob_document(folder, images[0]), *names)
    layers = document.get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise refused("the image has no list of layers")
    config = _blob(document.get("config"))
    return config, tuple(_blob(item) for item in layers)


def _is_attestation(item: dict[str, Any]) -> bool:
    """One of BuildKit's. The note alone says nothing: engines choose by platform."""
    exact(item, "digest", "annotations", "platform")
    notes, platform = item.get("annotations"), item.get("platform")
    marked = isinstance(notes, dict) and "vnd.docker.reference.type" in notes
    return marked and platform == {"architecture": "unknown", "os": "unknown"}


def exact(document: dict[str, Any], *names: str) -> dict[str, Any]:
    """The object, in which no key is one of these names in other letters.

    To Go's reader those are the same, and the last one counts.

    Raises:
        AdmissionRefused: one is.
    """
    spelled = {name.casefold(): name for name in names}
    for key in document:
        if spelled.get(key.casefold(), key) != key:
            raise refused(f"the image says {key!r}, which can be read in two ways")
    return document


def _from_docker(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The same, as `docker load` reads it."""
    data = _bytes(folder, "manifest.json")
    try:
        images = strict_json.loads(data, max_bytes=MAX_DOCUMENT_BYTES)
    except JsonError:
        raise refused("manifest.json: not JSON") from None
    if not isinstance(images, list) or len(images) != 1:
        raise refused("manifest.json: expected one image")
    image = images[0] if isinstance(images[0], dict) else {}
    exact(image, "Config", "Layers")
    config, layers = image.get("Config"), image.get("Layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise refused("the image has no list of layers")
    return _path(config), tuple(_path(item) for item in layers)


def _path(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)*", value):
        raise refused("the image names a file that is no path")
    if ".." in value.split("/"):
        raise refused("the image names a file outside of it")
    return value


def _blob(descriptor: Any) -> str:
    known = exact(descriptor, "digest") if isinstance(descriptor, dict) else {}
    digest = known.get("digest")
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise refused("the image names something by no SHA-256 digest")
    return f"blobs/sha256/{match[1]}"


def _blob_document(folder: Path, descriptor: Any) -> dict[str, Any]:
    path = _blob(descriptor)
    return _object(_bytes(folder, path), path)


def _bytes(folder: Path, path: str) -> bytes:
    """A document's bytes; one that is named by its digest has that digest."""
    try:
        data = read_regular(folder / path, max_bytes=MAX_DOCUMENT_BYTES)
    except BundleError as error:
        raise refused(str(error)) from None
    named = re.fullmatch(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?", path)
    if named is not None and hashlib.sha256(data).hexdigest() != named[1]:
        raise refused(f"{path}: other bytes than its name says")
    return data


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        return strict_json.loads_object(data, max_bytes=MAX_DOCUMENT_BYTES)
    except JsonError as error:
        raise refused(f"{where}: {error}") from None


def _diff_ids(config: Mapping[str, Any]) -> list[str]:
    filesystem = exact({**config}, "rootfs").get("rootfs")
    known = exact(filesystem, "diff_ids") if isinstance(filesystem, dict) else {}
    digests = known.get("diff_ids")
    if not isinstance(digests, list) or not all(
        isinstance(item, str) and _DIGEST.fullmatch(item) for item in digests
    ):
        raise refused("the image's configuration names no layers")
    return digests


class _Hashed:
    """A stream that hashes, and bounds, what is read of it."""

    def __init__(self, stream: _Readable) -> None:
        self._stream, self._left = stream, MAX_LAYER_BYTES
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        self._left -= len(data)
        if self._left < 0:
            raise refused(f"a layer of more than {MAX_LAYER_BYTES} bytes")
        return data


def _members(path: Path, digest: str) -> Iterator[_Member]:
    """What is in a layer; at its end its digest is compared."""
    if path.is_symlink() or not path.is_file():
        raise refused(f"{path.name}: a layer that is no regular file")
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = _Hashed(gzip.GzipFile(fileobj=raw) if packed else raw)
            # tarfile reads of a stream and does nothing else with it in this mode.
            with tarfile.open(
                fileobj=cast(IO[bytes], stream), mode="r|", tarinfo=strict_headers()
            ) as archive:
                for info in archive:
                    if any(name.startswith("GNU.sparse") for name in info.pax_headers):
                        raise refused(f"{path.name}: a sparse file")
                    yield _Member(info, archive)
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
        raise refused(f"{path.name}: a layer that cannot be read: {error}") from None
    if f"sha256:{stream.digest.hexdigest()}" != digest:
        raise refused(f"{path.name}: not the layer that the configuration names")


def _name(raw: str) -> str:
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise refused("a layer names a file outside of the image")
    return "/".join(parts)


def _apply(table: dict[str, int], added: set[str], item: _Member, number: int) -> None:
    """Add, replace or white out one path."""
    name = _name(item.info.name)
    if not name:
        return
    parent, _, base = name.rpartition("/")
    for above in _above(name):
        if table.get(above, 0) < 0:
            raise refused(f"a layer writes through the link {above}")
    if base == _OPAQUE:
        _remove(table, f"{parent}/", but=added)
    elif base.startswith(_WHITEOUT):
        hidden = f"{parent}/{base.removeprefix(_WHITEOUT)}".lstrip("/")
        _remove(table, f"{hidden}/", but=added)
        if hidden not in added:
            table.pop(hidden, None)
    else:
        if not item.info.isdir():
            _remove(table, f"{name}/", but=set())
        plain = item.info.isdir() or item.info.isreg()
        table[name] = number if plain else -number
        added.add(name)


def _above(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:end]) for end in range(1, len(parts)))


def _remove(table: dict[str, int], front: str, *, but: set[str]) -> None:
    for name in [item for item in table if item.startswith(front) and item not in but]:
        del table[name]
