"""A built Bento, or the unpacked folder of its image, checked from outside.

What runs inside a Bento can be changed by whoever can change the Bento. This runs
elsewhere, with a trust root and policy of its own, and trusts nothing in the folder:

1. the folder holds a Bento of this service;
2. its sources are on the allow-list, and none is a link;
3. its sources are those of a release, byte for byte, if one is given;
4. its lock is there, and names at least one model;
5. its models folder holds no model that is not in the lock;
6. every locked model passes the doors, from that folder or else from the model store;
7. its bytes are those the lock names.

What the image holds beside the Bento is not looked at: sign images, and demand their
signature where they are deployed (docs/confidential.md, deploy/kubernetes).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bentoml.exceptions import BentoMLException

from models.bundle import Bundle, read_bundle
from models.errors import BundleError
from models.files import read_regular
from models.manifest import is_tag, names_that_clash, store_tag
from security.admission.doors import verify_bundle
from security.admission.gate import Admission
from security.admission.hooks import LOCK_FILE, check_sources, lock_entry, read_lock
from security.admission.store import STORE_FILES, read_stored
from security.errors import AdmissionRefused
from security.settings.loading import Settings

__all__ = ["find_bento", "verify_bento"]

OUTSIDE_CHECK = 26
LOCK_CHECK = 16
MAX_SOURCE_BYTES = 4 << 20

# Where BentoML's containers keep the Bento.
_IN_IMAGE = Path("home/bentoml/bento")
_SERVICE = re.compile(r"^service: *[\"']?service\.app:Sealgate[\"']? *$", re.MULTILINE)


def find_bento(folder: Path) -> Path | None:
    """The Bento in a folder: the folder itself, or where an image keeps it."""
    for candidate in (folder, folder / _IN_IMAGE):
        if (candidate / "bento.yaml").is_file():
            return candidate
    return None


def verify_bento(
    folder: Path, settings: Settings, *, release: Path | None = None
) -> list[Admission]:
    """Check a Bento from outside.

    Args:
        folder: of the Bento, or of its unpacked image; possibly hostile.
        settings: whose trust root and policy count; nothing is read from the Bento.
        release: source tree that the Bento's sources must equal.

    Returns:
        What was admitted, in the lock's order. Sealed models stay sealed.

    Raises:
        AdmissionRefused: the first check that failed.
        BundleError: a model is not a bundle, or is nowhere to be found.
        KeyFileError: the trust root cannot be used.
        SettingsError: the policy cannot be used.
    """
    bento = find_bento(folder)
    if bento is None:
        raise _refused(f"{folder} holds no Bento")
    _check_description(bento)
    _check_sources(bento / "src", release)
    lock = read_lock(bento / "src")
    if not lock or not all(map(is_tag, lock)):
        raise AdmissionRefused(LOCK_CHECK, "the Bento's lock file names no full tags")
    if names_that_clash(tag.partition(":")[0] for tag in lock):
        raise AdmissionRefused(LOCK_CHECK, "the lock's tags are equal but for case")
    _check_models(bento / "models", lock)
    return [_admit(bento, tag, entry, settings) for tag, entry in lock.items()]


def _check_description(bento: Path) -> None:
    try:
        text = read_regular(bento / "bento.yaml", max_bytes=MAX_SOURCE_BYTES).decode()
    except (BundleError, UnicodeDecodeError) as error:
        raise _refused(f"bento.yaml: {error}") from None
    if len(_SERVICE.findall(text)) != 1:
        raise _refused("bento.yaml: this is not the service service.app:Sealgate")


def _check_sources(source: Path, release: Path | None) -> None:
    if source.is_symlink() or not source.is_dir():
        raise _refused("the Bento has no src folder")
    try:
        check_sources(source, beside=(LOCK_FILE,))
    except BentoMLException as error:
        raise _refused(str(error).removeprefix("refused: ")) from None
    if release is None:
        return
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source)
        if _source(path) != _source(release / name):
            raise _refused(f"{name.as_posix()} is not the release's")


def _source(path: Path) -> bytes:
    try:
        return read_regular(path, max_bytes=MAX_SOURCE_BYTES)
    except BundleError as error:
        raise _refused(str(error)) from None


def _check_models(models: Path, lock: Mapping[str, Any]) -> None:
    """No model may lie in wait beside those that were admitted."""
    if not models.exists() and not models.is_symlink():
        return
    for name in _folders(models):
        for version in _folders(models / name):
            if f"{name}:{version}" not in map(store_tag, lock):
                raise _refused(f"model {name}:{version} is not in the lock")


def _folders(folder: Path) -> list[str]:
    """Names of what is inside, but BentoML's own file that names the latest."""
    if folder.is_symlink() or not folder.is_dir():
        raise _refused(f"{folder.name} is not a folder")
    return sorted(name for name in os.listdir(folder) if name != "latest")


def _admit(bento: Path, tag: str, entry: Any, settings: Settings) -> Admission:
    try:
        admission = verify_bundle(_read(bento, tag), settings.admission)
    except AdmissionRefused as error:
        raise AdmissionRefused(error.check, f"{tag}: {error.reason}") from None
    except BundleError as error:
        raise BundleError(f"{tag}: {error}") from None
    if entry != lock_entry(admission):
        raise AdmissionRefused(LOCK_CHECK, f"{tag}: other bytes than were packaged")
    return admission


def _read(bento: Path, tag: str) -> Bundle:
    name, _, version = store_tag(tag).partition(":")
    own = bento / "models" / name / version
    if not own.exists():
        return read_stored(tag)
    bundle = read_bundle(own, ignore=STORE_FILES)
    if bundle.manifest.tag != tag:
        raise BundleError(f"is really {bundle.manifest.tag}")
    return bundle


def _refused(message: str) -> AdmissionRefused:
    return AdmissionRefused(OUTSIDE_CHECK, message)
