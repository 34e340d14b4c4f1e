"""Bundles in BentoML's model store.

The store is a convenience, never a boundary: whoever can write to it can put anything
there, so the doors verify what they read from it. Its lookups by "latest" or by a
prefix of a version are refused here: a full tag names one bundle.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLException

from models.bundle import Bundle, read_bundle
from models.errors import BundleError
from models.files import write_atomic
from security.admission.doors import verify_bundle
from security.admission.gate import Admission
from security.settings.admission import AdmissionSettings

__all__ = ["STORE_FILES", "read_stored", "store_bundle", "verify_stored"]

# BentoML's own description of a stored model: anyone may edit it, nobody here reads it.
STORE_FILES = frozenset({"model.yaml"})


def store_bundle(path: Path) -> tuple[str, bool]:
    """Copy a bundle into the model store under its manifest's name and version.

    Of several at once one stores: the others wait for it, and look again.

    Returns:
        The full tag, and whether it was stored now: not if it was there already, with
        the same contents.

    Raises:
        BundleError: the folder is not a bundle, or the tag is taken by other bytes.
    """
    bundle = read_bundle(path)
    tag = bundle.manifest.tag
    with _locked():
        if _find(tag) is not None:
            if read_stored(tag).files == bundle.files:
                return tag, False
            raise BundleError(
                f"{tag} is in the model store already, with other contents"
            )
        with bentoml.models.create(tag) as model:
            for name, data in bundle.files.items():
                write_atomic(Path(model.path) / name, data)
    return tag, True


def read_stored(tag: str) -> Bundle:
    """Read a bundle from the model store, once.

    Raises:
        BundleError: not there under exactly this tag, or not a bundle.
    """
    folder = _find(tag)
    if folder is None:
        raise BundleError(f"{tag} is not in the model store")
    bundle = read_bundle(folder, ignore=STORE_FILES)
    if bundle.manifest.tag != tag:
        raise BundleError(f"{tag} in the model store is really {bundle.manifest.tag}")
    return bundle


def verify_stored(tag: str, settings: AdmissionSettings) -> Admission:
    """Read a bundle from the model store and run the gate over those very bytes.

    Raises:
        BundleError: not there, or not a bundle.
        KeyFileError: the trust root cannot be used.
        SettingsError: the policy cannot be used.
        AdmissionRefused: a check of the gate failed.
    """
    return verify_bundle(read_stored(tag), settings)


@contextmanager
def _locked() -> Iterator[None]:
    """Alone among those that store, on this machine."""
    folder = Path(BentoMLContainer.bentoml_home.get())
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(folder / ".sealgate-store.lock", flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _find(tag: str) -> Path | None:
    try:
        stored = bentoml.models.get(tag)
    except (BentoMLException, ValueError):  # the latter: not even a tag
        return None
    return Path(stored.path) if str(stored.tag) == tag else None
