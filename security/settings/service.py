"""[service]: what is served, and the bounds of a request."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from models.names import is_tag, names_that_clash
from security.errors import SettingsError
from security.settings.checks import check_positive

__all__ = ["ServiceSettings", "check_service", "is_path", "path_of"]

_PATH = "path:"
# An origin as browsers write it (the URL and HTML standards): lower case, other
# alphabets as punycode, no dot at the end, no port that goes without saying.
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_ORIGIN = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_LABEL}(\.{_LABEL})*|\[[0-9a-f:]+\])"
    r"(:(?P<port>[1-9][0-9]{0,4}))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_LOOPBACK = ("127.0.0.1", "[::1]", "localhost")

ENVIRONMENTS = ("development", "production")
# Bounds that at zero would bound nothing or let nothing through.
_POSITIVE = (
    "max_head_bytes",
    "head_timeout_s",
    "max_body_bytes",
    "body_timeout_s",
    "inference_timeout_s",
    "max_concurrency",
    "max_readers",
    "max_body_memory_bytes",
    "max_connections",
    "idle_timeout_s",
    "send_timeout_s",
    "shutdown_timeout_s",
)


@dataclass(frozen=True)
class ServiceSettings:
    """What is served, and the bounds of a request.

    Attributes:
        environment: "development" or "production"; the latter refuses the development
            issuer.
        models: full BentoML tags, ``name:version``; "latest" is refused. Or ``path:``
            and an absolute path, see `security.admission.sources`. Of several versions
            of a model the first one answers requests that name none.
        allowed_origins: of web pages that may use the gateway and fetch its keys from a
            browser, ``https://host[:port]`` as browsers send it; http only of this
            machine. None by default, and no other path is ever opened to pages.
        max_head_bytes: of a request's line and headers, counted while reading.
        head_timeout_s: to read them.
        max_body_bytes: of a request, counted while reading.
        body_timeout_s: to read one request's body.
        inference_timeout_s: until a running inference is stopped.
        max_concurrency: requests in work per worker; more are answered 503.
        max_readers: requests per worker whose bodies are being read; for more, the
            slowest of them is given up.
        max_body_memory_bytes: bodies per worker that are read or worked on; likewise.
        max_connections: per worker; for more, an idle one is closed, or the new one.
        idle_timeout_s: between two requests of a connection.
        send_timeout_s: a client takes nothing of its answer for so long.
        shutdown_timeout_s: to finish what is in work when the server is stopped.
        fork_workers: workers go on in the image of the parent that starts them; False
            starts each as a new interpreter, with a layout of memory of its own.
    """

    environment: str = "development"
    models: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_head_bytes: int = 32 << 10
    head_timeout_s: float = 10.0
    max_body_bytes: int = 16 << 20
    body_timeout_s: float = 30.0
    inference_timeout_s: float = 10.0
    max_concurrency: int = 256
    max_readers: int = 512
    max_body_memory_bytes: int = 256 << 20
    max_connections: int = 1024
    idle_timeout_s: float = 10.0
    send_timeout_s: float = 20.0
    shutdown_timeout_s: float = 30.0
    fork_workers: bool = True


def is_path(entry: str) -> bool:
    """Whether an entry of ``service.models`` names a folder.

    >>> is_path("path:/bundles/credit"), is_path("credit:1.0.0")
    (True, False)
    """
    return entry.startswith(_PATH)


def path_of(entry: str) -> Path:
    """The folder that such an entry names."""
    return Path(entry.removeprefix(_PATH))


def check_service(service: ServiceSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    if service.environment not in ENVIRONMENTS:
        raise SettingsError(f"service.environment: one of {', '.join(ENVIRONMENTS)}")
    for tag in service.models:
        if is_path(tag):
            if not path_of(tag).is_absolute():
                raise SettingsError(f"service.models: {tag!r}: expected path:/…")
        elif not is_tag(tag):  # nothing that a store could complete
            raise SettingsError(
                f"service.models: {tag!r} is not a full tag like name:1.0.0"
            )
        if service.models.count(tag) > 1:
            raise SettingsError(f"service.models: {tag!r} is named twice")
    tags = [entry for entry in service.models if not is_path(entry)]
    clash = names_that_clash(tag.partition(":")[0] for tag in tags)
    if clash is not None:
        raise SettingsError(f"service.models: {clash} are equal but for case")
    if service.max_body_memory_bytes < service.max_body_bytes:
        raise SettingsError(
            "service.max_body_memory_bytes: less than service.max_body_bytes"
        )
    for origin in service.allowed_origins:
        if not _is_origin(origin):
            raise SettingsError(
                f"service.allowed_origins: {origin!r} is not an origin as browsers send"
                " it: https://host or https://host:port, in lower case, without path,"
                " wildcard or the default port; http on this machine only"
            )
        if service.allowed_origins.count(origin) > 1:
            raise SettingsError(f"service.allowed_origins: {origin!r} is named twice")
    check_positive(service, "service", _POSITIVE)


def _is_origin(text: str) -> bool:
    """Whether a browser could send this as the origin of a page that can seal.

    Browsers have WebCrypto only in pages that came by https or from this machine.

    >>> _is_origin("https://app.example"), _is_origin("http://localhost:8080")
    (True, True)
    >>> _is_origin("https://App.example"), _is_origin("https://app.example:443")
    (False, False)
    """
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return False
    scheme, host, port = found["scheme"], found["host"], found["port"]
    if port is not None and (port == _DEFAULT_PORTS[scheme] or int(port) > 65535):
        return False
    if scheme == "http" and host not in _LOOPBACK:
        return False
    return len(host) <= 253 and _is_usual(host)


def _is_usual(host: str) -> bool:
    """Whether a name is none, or an address that is written as browsers write it."""
    address = host.strip("[]")
    if address == host and not host.rpartition(".")[2].isdigit():
        # A last label such as 0x7f would be read as an address.
        return not re.fullmatch("0x[0-9a-f]*", host.rpartition(".")[2])
    try:
        return str(ipaddress.ip_address(address)) == address
    except ValueError:
        return False
