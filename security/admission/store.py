"""Bundles in BentoML's model store.

The store is a convenience, never a boundary: whoever can write to it can put anything
there, so the doors verify what they read from it. Its lookups by "latest" or by a
prefix of a version are refused here: a full tag names one bundle.

BentoML is imported where the store is asked, and not before: who verifies a folder
needs none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.bundle import MANIFEST_FILE, Bundle, mldsa_file, read_bundle
from models.errors import BundleError
from models.files import read_regular, write_atomic
from models.manifest import MAX_MANIFEST_BYTES, Manifest
from models.names import names_that_clash, store_tag
from security.admission.attest import signature_files
from security.deferring import deferring

__all__ = [
    "STORE_FILES",
    "read_stored",
    "refuse_stored",
    "store_bundle",
    "stored_tags",
]

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
            if other := _other(read_stored(tag), bundle):
                raise _taken(tag, other)
            return tag, False
        _refuse_clash(bundle.manifest)
        with _models().create(store_tag(tag)) as model:
            for name, data in bundle.files.items():
                write_atomic(Path(model.path) / name, data)
        # BentoML makes this folder for its maker alone, and copies it into images,
        # which run as somebody else: it is as open as the store that holds it.
        if (stored := _find(tag)) is not None:
            shutil.copymode(stored.parent.parent, stored)
    return tag, True


def refuse_stored(bundle: Bundle) -> None:
    """Refuse a bundle that is about to get another verdict, and could not be stored.

    A stored version is never replaced: what was built with it would start no more.

    Raises:
        BundleError: its tag is taken. The message says what to do.
    """
    tag = bundle.manifest.tag
    if _find(tag) is not None:
        raise _taken(tag, _other(read_stored(tag), bundle) or "a verdict of its own")


def _other(stored: Bundle, bundle: Bundle) -> str:
    """What differs, in a word; empty if nothing does."""
    names = {
        name
        for name in {*stored.files, *bundle.files}
        if stored.files.get(name) != bundle.files.get(name)
    }
    signed = {*signature_files(names, "verdict")}
    signed |= {mldsa_file(name) for name in signed}
    if names and names <= signed:
        return "another verdict"
    return "other contents" if names else ""


def _taken(tag: str, other: str) -> BundleError:
    return BundleError(
        f"{tag} is in the model store already, with {other}, and is never replaced: "
        "give this one another version, or take that one out first (`bentoml delete` "
        f"its Bentos, `bentoml models delete {store_tag(tag)}`), and build anew"
    )


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


@contextmanager
def _locked() -> Iterator[None]:
    """Alone among those that store, on this machine."""
    from bentoml._internal.configuration.containers import (  # noqa: PLC0415  (slow)
        BentoMLContainer,
    )

    folder = Path(BentoMLContainer.bentoml_home.get())
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(folder / ".sealgate-store.lock", flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def stored_tags() -> list[str]:
    """What the store holds, under the names of the bundles' own manifests."""
    return [_own_tag(model) for model in _models().list()]


def _own_tag(model: Any) -> str:
    """The manifest's tag where it can be read; otherwise the store's."""
    try:
        path = Path(model.path) / MANIFEST_FILE
        data = read_regular(path, max_bytes=MAX_MANIFEST_BYTES)
        return Manifest.from_json(data).tag
    except BundleError:
        return str(model.tag)


def _refuse_clash(manifest: Manifest) -> None:
    """The store would put both names into one folder."""
    names = [tag.partition(":")[0] for tag in stored_tags()]
    clash = names_that_clash([*names, manifest.name])
    if clash is not None and manifest.name in clash:
        other = clash[clash[0] == manifest.name]
        raise BundleError(
            f"{manifest.name}: the model store has {other}, equal but for case"
        )


def _find(tag: str) -> Path | None:
    from bentoml.exceptions import BentoMLException  # noqa: PLC0415  (slow)

    tag = store_tag(tag)
    try:
        stored = _models().get(tag)
    except (BentoMLException, ValueError):  # the latter: not even a tag
        return None
    return Path(stored.path) if str(stored.tag) == tag else None


def _models() -> Any:
    with deferring():
        import bentoml.models  # noqa: PLC0415  (slow, and not everywhere)

    return bentoml.models
