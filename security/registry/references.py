"""What names a bundle in an OCI layout or a registry, as people write it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from security.errors import SettingsError

__all__ = [
    "FORMS",
    "LayoutReference",
    "RegistryReference",
    "is_reference",
    "parse_reference",
]

# What a bundle is pushed as.
FORMS = ("image", "modelpack")

_SCHEME = "oci:"
_TAG = r"\w[\w.-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
# As Docker's: a host has a dot or a port, or is this machine.
_HOST = (
    rf"(?:localhost|{_LABEL}(?:\.{_LABEL})+|{_LABEL}(?=:)|\[[0-9a-fA-F:]+\])"
    r"(?::\d{1,5})?"
)
# distribution-spec, "Pulling manifests".
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = re.compile(
    rf"(?P<host>{_HOST})/(?P<name>{_PART}(?:/{_PART})*)"
    rf"(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?",
    re.ASCII,
)
_LAYOUT = re.compile(
    rf"(?P<folder>.+?)(?::(?P<tag>{_TAG})|@(?P<digest>{_DIGEST}))?",
    re.ASCII | re.DOTALL,
)
_MAX_NAME = 255


@dataclass(frozen=True)
class LayoutReference:
    """An image in an OCI layout.

    Attributes:
        folder: the layout.
        tag: its name there; empty for the only one.
        digest: or its digest.
    """

    folder: Path
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return f"{_SCHEME}{self.folder}"


@dataclass(frozen=True)
class RegistryReference:
    """An image in a registry.

    Attributes:
        host: with its port, if one is named.
        name: of the repository.
        tag: empty, if a digest stands alone.
        digest: beside a tag it alone counts.
    """

    host: str
    name: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.host}/{self.name}"


def is_reference(text: str) -> bool:
    """Whether this names an image, rather than a folder or a tag of the model store.

    >>> is_reference("oci:layout"), is_reference("ghcr.io/org/credit:1.0.0")
    (True, True)
    >>> is_reference("bundles/credit"), is_reference("credit:1.0.0")
    (False, False)
    """
    found = _REGISTRY.fullmatch(text)
    return text.startswith(_SCHEME) or bool(found and (found["tag"] or found["digest"]))


def parse_reference(text: str) -> LayoutReference | RegistryReference:
    """Parse ``oci:FOLDER[:TAG|@DIGEST]`` or ``REGISTRY/REPOSITORY:TAG|@DIGEST``.

    Raises:
        SettingsError: neither.

    >>> parse_reference("oci:/models/layout:1.0.0").tag
    '1.0.0'
    >>> str(parse_reference("127.0.0.1:5000/credit:1.0.0"))
    '127.0.0.1:5000/credit'
    """
    if text.startswith(_SCHEME):
        found = _LAYOUT.fullmatch(text.removeprefix(_SCHEME))
        if found is None:
            raise SettingsError(f"{text!r}: expected oci:FOLDER or oci:FOLDER:TAG")
        return LayoutReference(
            Path(found["folder"]), found["tag"] or "", found["digest"] or ""
        )
    found = _REGISTRY.fullmatch(text)
    if found is None or len(found["name"]) > _MAX_NAME:
        raise SettingsError(
            f"{text!r}: expected oci:FOLDER[:TAG], REGISTRY/REPOSITORY:TAG or "
            "REGISTRY/REPOSITORY@sha256:…"
        )
    if not found["tag"] and not found["digest"]:
        raise SettingsError(f"{text!r}: name a tag or a digest")
    return RegistryReference(
        found["host"], found["name"], found["tag"] or "", found["digest"] or ""
    )
