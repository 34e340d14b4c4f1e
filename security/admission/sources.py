"""Where a served bundle's bytes come from: BentoML's model store, or a mounted folder.

``service.models`` names both: a full tag of the store, or ``path:`` and a folder,

- of a bundle,
- of bundles, each in a folder of its own below it: all of them are served, and of
  several versions of a model the newest answers requests that name none,
- or of an OCI layout with one image that holds the bundle under ``models/``.

Whoever writes there is a stranger, as whoever writes to the store is. A bundle is read
once, within bounds, and nothing of it may be a link: the bytes that are read pass the
gate, and the same bytes are loaded. A tag that was found before says only where to
read; what is read must have that tag.
"""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.bundle import (
    MANIFEST_FILE,
    MODEL_FILE,
    SEALED_FILE,
    Bundle,
    BundleLimits,
    read_bundle,
)
from models.errors import BundleError
from models.files import read_regular
from models.manifest import MAX_MANIFEST_BYTES, Manifest
from models.names import names_that_clash
from security.admission.store import read_stored
from security.errors import SettingsError
from security.settings.service import is_path, path_of

__all__ = ["read_mounted", "read_served", "served_tags"]

MAX_BUNDLES = 256
# Where an image holds its bundle: KServe mounts this folder as the model.
_IN_IMAGE = "models"
_LAYOUT = "oci-layout"


def served_tags(models: Sequence[str]) -> tuple[str, ...]:
    """The full tags that entries of ``service.models`` stand for, in their order.

    Raises:
        BundleError: a folder that is none, or has no readable manifest where it must.
        SettingsError: a tag twice, or names that are equal but for case.
    """
    tags: list[str] = []
    for entry in models:
        tags += _found(path_of(entry)) if is_path(entry) else [entry]
    for tag in tags:
        if tags.count(tag) > 1:
            raise SettingsError(f"service.models: {tag} is there twice")
    clash = names_that_clash(tag.partition(":")[0] for tag in tags)
    if clash is not None:
        raise SettingsError(f"service.models: {clash} are equal but for case")
    return tuple(tags)


def read_served(tag: str, models: Sequence[str]) -> Bundle:
    """Read a bundle, once, from where ``service.models`` has it, or from the store.

    Raises:
        BundleError: not there under exactly this tag, or not a bundle.
    """
    mounted = read_mounted(tag, models)
    return read_stored(tag) if mounted is None else mounted


def read_mounted(tag: str, models: Sequence[str]) -> Bundle | None:
    """Read a bundle, once, from a folder that ``service.models`` names.

    Returns:
        None if no folder has this tag.

    Raises:
        BundleError: not there under exactly this tag, or not a bundle.
    """
    for entry in models:
        found = _found(path_of(entry)) if is_path(entry) else {}
        if tag in found:
            folder = found[tag]
            bundle = _read_whole(folder)
            if bundle.manifest.tag != tag:
                raise BundleError(f"{tag} in {folder} is now {bundle.manifest.tag}")
            return bundle
    return None


def _read_whole(folder: Path) -> Bundle:
    try:
        return _read_image(folder) if _is_layout(folder) else read_bundle(folder)
    except OSError as error:  # it has gone since
        raise BundleError(f"{folder}: {error.strerror}") from None


def _found(folder: Path) -> dict[str, Path]:
    """The bundles at a path, by tag; of a model the newest version first.

    Raises:
        BundleError: none, one that cannot be read, or a tag twice.
    """
    try:
        return _tags_at(folder)
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}") from None


def _tags_at(folder: Path) -> dict[str, Path]:
    if _is_layout(folder):
        return {_image_tag(folder, _stamp(folder)): folder}
    folders = [folder] if _is_bundle(folder) else list(_below(folder))
    found: dict[str, Path] = {}
    for place in folders:
        tag = _manifest_tag(place)
        if tag in found:
            raise BundleError(f"{tag} is in {found[tag]} and in {place}")
        found[tag] = place
    newest_first = sorted(found, key=_numbers, reverse=True)
    return {tag: found[tag] for tag in sorted(newest_first, key=_name)}


def _below(folder: Path) -> Iterator[Path]:
    _refuse_links(folder)
    names = sorted(os.listdir(folder))
    # What a file system or Kubernetes keeps there for itself is hidden.
    names = [name for name in names if not name.startswith((".", "lost+found"))]
    if not names:
        raise BundleError(f"{folder}: no bundle is there")
    if len(names) > MAX_BUNDLES:
        raise BundleError(f"{folder}: more than {MAX_BUNDLES} files")
    yield from (folder / name for name in names)


def _is_layout(folder: Path) -> bool:
    return (folder / _LAYOUT).is_file()


def _is_bundle(folder: Path) -> bool:
    names = (MANIFEST_FILE, MODEL_FILE, SEALED_FILE)
    return any(os.path.lexists(folder / name) for name in names)


def _refuse_links(folder: Path) -> None:
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise BundleError(f"{folder}: not a folder, or a link to one")


def _manifest_tag(folder: Path) -> str:
    _refuse_links(folder)
    try:
        data = read_regular(folder / MANIFEST_FILE, max_bytes=MAX_MANIFEST_BYTES)
        return Manifest.from_json(data).tag
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from None


def _stamp(folder: Path) -> tuple[int, int, int]:
    status = os.stat(folder / "index.json")
    return status.st_ino, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=MAX_BUNDLES)
def _image_tag(folder: Path, stamp: tuple[int, int, int]) -> str:
    """Reading it means reading all layers: not again while the index is the same."""
    del stamp
    return _read_image(folder).manifest.tag


def _read_image(folder: Path) -> Bundle:
    """The bundle in the one image of an OCI layout."""
    try:
        from security.admission.outside.layers import (  # noqa: PLC0415  (not in Bentos)
            read_saved,
        )
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("security."):
            raise
        raise BundleError(f"{folder}: a Bento cannot read an OCI layout") from None
    _refuse_links(folder)
    saved = read_saved(folder)
    with tempfile.TemporaryDirectory(prefix="sealgate-image-") as name:
        folder, most = Path(name), 2 * BundleLimits().max_model_bytes
        saved.unpack(_IN_IMAGE, saved.entries(), folder, max_bytes=most)
        return read_bundle(folder)


def _name(tag: str) -> str:
    return tag.partition(":")[0]


def _numbers(tag: str) -> list[int]:
    """A version's numbers: 1.10 comes after 1.9."""
    return [int(part) for part in tag.partition(":")[2].split(".")]
