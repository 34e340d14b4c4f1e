"""A built Bento, or the image that holds it, checked from outside.

What runs inside a Bento can be changed by whoever can change the Bento. This runs
elsewhere, with a trust root and policy of its own, and trusts nothing in the folder:

1. an image holds one Bento, and its own configuration runs that one (`image`);
2. the folder is a Bento of this service, and holds nothing else (`description`);
3. its sources are on the allow-list, and none is a link;
4. it is what a release gives, byte for byte, if one is given (`release`);
5. bytecode is beside sources in an image only, and what those give (`bytecode`);
6. its lock is there, and names the models that bento.yaml names; none, if it was built
   to serve what is mounted;
7. its models folder holds no model that is not in the lock;
8. every locked model passes the doors, from that folder, or, unless the Bento is in an
   image, from the model store;
9. its bytes are those the lock names.

What the image holds beside the Bento is not looked at: sign images, and demand their
signature where they are deployed (docs/confidential.md, deploy/kubernetes).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

from models.bundle import Bundle, read_bundle
from models.errors import BundleError
from models.files import read_regular
from models.names import is_tag, names_that_clash, store_tag
from security.admission.contents import (
    LOCK_CHECK,
    LOCK_FILE,
    MAX_SOURCE_BYTES,
    check_sources,
    list_files,
    lock_entry,
    read_lock,
    refused,
)
from security.admission.doors import verify_bundle
from security.admission.gate import Admission
from security.admission.outside.bytecode import bytecode, cached_name
from security.admission.outside.description import Description, parse_description
from security.admission.outside.image import OWN_PATH, open_image
from security.admission.store import STORE_FILES, read_stored
from security.errors import AdmissionRefused
from security.settings.admission import AdmissionSettings

__all__ = ["verify_bento"]

_INSIDE = re.compile(
    r"bento\.yaml|README\.md|env/.*|apis/(?:openapi\.yaml|schema\.json)|(?:src|models)/.*",
    re.DOTALL,
)


def verify_bento(
    folder: Path,
    settings: AdmissionSettings,
    *,
    release: Path | None = None,
    image_config: Path | None = None,
) -> list[Admission]:
    """Check a Bento from outside.

    Args:
        folder: of the Bento, of its unpacked image, or of its saved image (an OCI
            layout, or what `docker save` wrote, unpacked); possibly hostile.
        settings: whose trust root and policy count; nothing is read from the Bento.
        release: source tree that the Bento must have been built from.
        image_config: of an unpacked image, which has none of its own.

    Returns:
        What was admitted, in the lock's order. Sealed models stay sealed.

    Raises:
        AdmissionRefused: the first check that failed.
        BundleError: a model is not a bundle, or is nowhere to be found.
        KeyFileError: the trust root cannot be used.
        SettingsError: the policy cannot be used.
    """
    with open_image(folder, image_config) as (bento, in_image):
        tags = _check_tree(bento, release, in_image=in_image)
        lock = read_lock(bento / "src")
        _check_tags(lock)
        _check_models(bento / "models", lock)
        if tags != frozenset(map(store_tag, lock)):
            raise refused("bento.yaml: services: names other models than the lock")
        return [
            _admit(bento, tag, entry, settings, in_image=in_image)
            for tag, entry in lock.items()
        ]


def _check_tree(bento: Path, release: Path | None, *, in_image: bool) -> frozenset[str]:
    """Checks 2 to 5; returns the tags of the models that bento.yaml names."""
    try:
        data = read_regular(bento / "bento.yaml", max_bytes=MAX_SOURCE_BYTES)
    except BundleError as error:
        raise refused(str(error)) from None
    description = parse_description(data)
    source = bento / "src"
    if source.is_symlink() or not source.is_dir():
        raise refused("the Bento has no src folder")
    compiled = _compiled(source) if in_image else {}
    check_sources(source, beside=(LOCK_FILE, *compiled))
    if (bento / "models").is_symlink():
        raise refused("models is not a folder")
    for name in list_files(bento):
        if not _INSIDE.fullmatch(name):
            raise refused(f"{name} does not belong in a Bento")
    if release is not None:
        _compare(bento, description, release)
    _check_bytecode(source, compiled)
    return description.tags


def _compare(bento: Path, description: Description, release: Path) -> None:
    """Check 4: BentoML makes the release's files, so it must be installed for this."""
    from security.admission.outside.release import (  # noqa: PLC0415  (bentoml)
        build_release,
        check_release,
    )

    check_release(bento, description, build_release(release, description.about))


def _compiled(source: Path) -> dict[str, str]:
    """Where bytecode may lie, and of which source."""
    names = (name for name in list_files(source) if name.endswith(".py"))
    return {cached_name(name): name for name in names}


def _check_bytecode(source: Path, compiled: Mapping[str, str]) -> None:
    """It runs in place of the sources: it is compared, and never loaded (`bytecode`).

    The release is compared before, so that hostile sources are compiled only where no
    release is given.
    """
    for name, of in compiled.items():
        if not os.path.lexists(source / name):
            continue
        data = read_regular(source / name, max_bytes=MAX_SOURCE_BYTES)
        if data[: len(MAGIC_NUMBER)] != MAGIC_NUMBER:
            raise refused(f"{name}: of another version of Python than this one")
        text = read_regular(source / of, max_bytes=MAX_SOURCE_BYTES)
        try:
            expected = bytecode(text, f"{OWN_PATH}/src/{of}")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise refused(f"{of}: cannot be compiled") from None
        if data != expected:
            raise refused(f"{name} is not the bytecode of {of}")


def _check_tags(lock: Mapping[str, Any]) -> None:
    """A tag becomes a path: no separators, no dots to climb with."""
    if not all(map(is_tag, lock)):
        raise AdmissionRefused(LOCK_CHECK, "the Bento's lock file names no full tags")
    if names_that_clash(tag.partition(":")[0] for tag in lock):
        raise AdmissionRefused(LOCK_CHECK, "the lock's tags are equal but for case")


def _check_models(models: Path, lock: Mapping[str, Any]) -> None:
    """No model may lie in wait beside those that were admitted."""
    if not models.exists() and not models.is_symlink():
        return
    admitted = set(map(store_tag, lock))
    for name in _folders(models):
        for version in _folders(models / name):
            if f"{name}:{version}" not in admitted:
                raise refused(f"model {name}:{version} is not in the lock")


def _folders(folder: Path) -> list[str]:
    """Names of what is inside, but BentoML's own file that names the latest."""
    if folder.is_symlink() or not folder.is_dir():
        raise refused(f"{folder.name} is not a folder")
    return sorted(name for name in os.listdir(folder) if name != "latest")


def _admit(
    bento: Path, tag: str, entry: Any, settings: AdmissionSettings, *, in_image: bool
) -> Admission:
    try:
        admission = verify_bundle(_read(bento, tag, in_image=in_image), settings)
    except AdmissionRefused as error:
        raise AdmissionRefused(error.check, f"{tag}: {error.reason}") from None
    except BundleError as error:
        raise BundleError(f"{tag}: {error}") from None
    if entry != lock_entry(admission):
        raise AdmissionRefused(LOCK_CHECK, f"{tag}: other bytes than were packaged")
    return admission


def _read(bento: Path, tag: str, *, in_image: bool) -> Bundle:
    name, _, version = store_tag(tag).partition(":")
    own = bento / "models" / name / version
    if not own.exists() and not in_image:
        return read_stored(tag)
    bundle = read_bundle(own, ignore=STORE_FILES)
    if bundle.manifest.tag != tag:
        raise BundleError(f"is really {bundle.manifest.tag}")
    return bundle
