"""Logins for registries, as `docker login` and `podman login` leave them.

One file is read: the one that ``REGISTRY_AUTH_FILE`` names, or else ``config.json`` in
``DOCKER_CONFIG`` or ``~/.docker``. Of it only ``auths`` counts. Programs that it names
(``credsStore``, ``credHelpers``) are not run: what a file says is not executed here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import BundleError
from models.files import read_regular
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.errors import KeyFileError

__all__ = ["Login", "find_login", "login_file"]

_MAX_BYTES = 1 << 20
_DOCKER_HUB = "docker.io"


@dataclass(frozen=True)
class Login:
    """A user's name and password, as HTTP's Basic scheme has them.

    Attributes:
        authorization: content of that header field.
    """

    authorization: bytes = field(repr=False)


def login_file(environ: Mapping[str, str]) -> Path | None:
    """The file of logins that there is.

    Raises:
        KeyFileError: one is named, and there is none.
    """
    if named := environ.get("REGISTRY_AUTH_FILE"):
        if not Path(named).is_file():
            raise KeyFileError(f"REGISTRY_AUTH_FILE: {named}: no such file")
        return Path(named)
    folder = environ.get("DOCKER_CONFIG")
    home = environ.get("HOME")
    if not folder and not home:
        return None
    path = Path(folder or f"{home}/.docker") / "config.json"
    return path if path.is_file() else None


def find_login(file: Path, host: str, name: str) -> Login | None:
    """The login for a repository; None if the file has none for it.

    Args:
        file: of `login_file`.
        host: of the registry.
        name: of the repository: podman keeps logins of parts of a registry.

    Raises:
        KeyFileError: the file cannot be read, or only a program knows the login.
    """
    document = _read(file)
    auths = document.get("auths", {})
    for key in _keys(host, name):
        entry = auths.get(key) if isinstance(auths, dict) else None
        if isinstance(entry, dict) and entry.get("auth"):
            return Login(_basic(entry["auth"], f"{file}: {key}"))
    helpers = document.get("credHelpers")
    asked = isinstance(helpers, dict) and host in helpers
    if asked or document.get("credsStore"):
        raise KeyFileError(
            f"{file}: the login of {host} is kept by another program, which is not "
            "run; a file with `auths` will do (REGISTRY_AUTH_FILE)"
        )
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        data = read_regular(file, max_bytes=_MAX_BYTES, follow_links=True)
        return strict_json.loads_object(data, max_bytes=_MAX_BYTES)
    except BundleError as error:
        raise KeyFileError(f"{file}: {error}") from None
    except JsonError:  # whose message could quote what is secret
        raise KeyFileError(f"{file}: not a file of logins") from None


def _keys(host: str, name: str) -> Iterator[str]:
    """What a login may be kept under, the closest first (containers-auth.json(5))."""
    parts = name.split("/")
    for end in range(len(parts), 0, -1):
        yield "/".join([host, *parts[:end]])
    yield host
    yield from (f"https://{host}{path}" for path in ("", "/", "/v1/", "/v2/"))
    if host == _DOCKER_HUB:
        yield "https://index.docker.io/v1/"


def _basic(value: Any, where: str) -> bytes:
    try:
        text = base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise KeyFileError(f"{where}: no login") from None
    if b":" not in text:
        raise KeyFileError(f"{where}: no login")
    return b"Basic " + base64.b64encode(text)
