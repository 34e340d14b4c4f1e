"""Where a Redis is: the URLs that settings hold, and what all stores of them share.

======================================  ===============================================
``redis://HOST:PORT/DB``                one server
``redis+sentinel://HOST,HOST/NAME/DB``  the master that Sentinels name, at each connect
``redis+cluster://HOST,HOST``           the servers of a cluster, found from these
======================================  ===============================================

``rediss`` in place of ``redis`` is TLS, to Sentinels too. ``USER:PASSWORD@`` may stand
in front of the hosts, percent-encoded. Nothing here opens a connection, and no error
repeats a part of a URL: what is mistyped may be a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlencode

__all__ = ["Place", "Reach", "parse_place"]

KINDS = ("server", "sentinel", "cluster")
_PORTS = {"server": 6379, "sentinel": 26379, "cluster": 6379}
MAX_URL_CHARS = 4096
MAX_HOSTS = 64
_SCHEME = re.compile(r"(rediss?)(?:\+(sentinel|cluster))?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+)(?::([0-9]{1,5}))?")
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Of the library's options: none that turns off what TLS proves.
_OPTIONS = frozenset(
    ("client_name", "health_check_interval", "password", "protocol", "username")
)
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True)
class Reach:
    """What every store of a deployment reaches its Redis with.

    Attributes:
        prefix: what the deployment's keys begin with, before a colon.
        ca: certificates of the authorities that a server's is verified with, PEM; the
            system's if None.
        certificate, key: the client's own certificate and its private key, PEM.
    """

    prefix: str = "sealgate"
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Place:
    """A URL, read.

    Attributes:
        kind: of `KINDS`.
        hosts: names or addresses, with ports.
        service: what Sentinels call the master; empty for other kinds.
        url: the same place as the library spells it, of the first host.
        sentinel: user and password of the Sentinels, by the library's names.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    service: str = ""
    url: str = field(default="", repr=False)
    sentinel: dict[str, str] = field(default_factory=dict, repr=False)


def parse_place(url: str) -> Place:
    """Read a URL.

    Raises:
        ValueError: says which part is wrong, without it.

    >>> parse_place("redis+sentinel://a,b:1/main/2").hosts
    (('a', 26379), ('b', 1))
    """
    scheme, mark, rest = url.partition("://")
    match = _SCHEME.fullmatch(scheme)
    if match is None or not mark:
        raise ValueError("local, or a redis:// URL")
    if len(url) > MAX_URL_CHARS:
        raise ValueError(f"not a Redis URL: more than {MAX_URL_CHARS} characters")
    kind = match[2] or "server"
    if "#" in rest:
        raise ValueError("not a Redis URL: '#' is percent-encoded in a password: %23")
    rest, _, query = rest.partition("?")
    login, _, rest = rest.rpartition("@")
    names, _, path = rest.partition("/")
    hosts = _hosts(names, kind)
    service, database = _path(path, kind)
    options, sentinel = _options(query, kind, tls=match[1] == "rediss")
    host, port = hosts[0]
    user = f"{_quoted(login)}@" if login else ""
    shown = f"[{host}]" if ":" in host else host
    plain = f"{match[1]}://{user}{shown}:{port}/{database}?{options}"
    return Place(kind, hosts, service, plain.rstrip("?"), sentinel)


def _quoted(login: str) -> str:
    """User and password, whatever they hold, as the library finds them again."""
    parts = login.split(":", 1)
    return ":".join(quote(unquote(part), safe="") for part in parts)


def _hosts(names: str, kind: str) -> tuple[tuple[str, int], ...]:
    found = []
    for name in names.split(","):
        match = _HOST.fullmatch(name)
        port = int(match[2] or _PORTS[kind]) if match else 0
        if match is None or not 0 < port < 1 << 16:
            raise ValueError("not a Redis URL: HOST or HOST:PORT, a port of 1 to 65535")
        found.append((unquote(match[1]).strip("[]"), port))
    if kind == "server" and len(found) > 1:
        raise ValueError("not a Redis URL: several hosts need +sentinel or +cluster")
    if len(found) > MAX_HOSTS:
        raise ValueError(f"not a Redis URL: more than {MAX_HOSTS} hosts")
    return tuple(found)


def _path(path: str, kind: str) -> tuple[str, str]:
    """The Sentinels' name for the master, and the database."""
    service, database = "", path
    if kind == "sentinel":
        service, _, database = path.partition("/")
        if not _SERVICE.fullmatch(service):
            raise ValueError("not a Redis URL: Sentinels need /NAME of the master")
    if kind == "cluster" and path:
        raise ValueError("not a Redis URL: a cluster has no databases")
    if database and not (database.isascii() and database.isdecimal()):
        raise ValueError("not a Redis URL: a database is a number")
    return service, database or "0"


def _options(query: str, kind: str, *, tls: bool) -> tuple[str, dict[str, str]]:
    given = parse_qs(query, keep_blank_values=True)
    known = _OPTIONS | set(_SENTINEL_OPTIONS if kind == "sentinel" else ())
    known |= set(_TLS_OPTIONS if tls else ())
    for name, values in given.items():
        if name not in known:
            raise ValueError(f"not a Redis URL: options: {', '.join(sorted(known))}")
        if len(values) > 1:
            raise ValueError("not a Redis URL: an option is there twice")
    flat = {name: values[0] for name, values in given.items()}
    sentinel = {
        name.removeprefix("sentinel_"): flat.pop(name)
        for name in _SENTINEL_OPTIONS
        if name in flat
    }
    return urlencode(flat, quote_via=quote), sentinel
