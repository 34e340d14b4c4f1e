"""Where a small server listens: an address of this machine, or a Unix socket."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from sealgate.errors import ProfileError

__all__ = ["address", "answers_to", "listening"]

_OWNER_ONLY = 0o177  # umask: mode 0600


def address(text: str) -> tuple[str, int]:
    """Parse ``host:port``.

    >>> address("[::1]:8080")
    ('::1', 8080)
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(text)
    return host.removeprefix("[").removesuffix("]"), int(port)


@contextlib.contextmanager
def listening(host: str, port: int, path: Path | None) -> Iterator[socket.socket]:
    """A bound socket, closed at the end of the block.

    Args:
        host: address, or name of one.
        port: 0 takes a free one.
        path: of a Unix socket that only its owner can open, instead of an address. What
            a process that has ended left there is replaced, and nothing else.

    Raises:
        ProfileError: it cannot be bound.
    """
    where = f"{host}:{port}" if path is None else str(path)
    try:
        endpoint = _tcp(host, port) if path is None else _unix(path)
    except OSError as error:
        raise ProfileError(f"{where}: {error.strerror or error}") from None
    try:
        with endpoint:
            yield endpoint
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def answers_to(endpoint: socket.socket, host: str) -> tuple[str, set[bytes] | None]:
    """What to call an endpoint, and the values of Host that mean it.

    A browser can open no Unix socket, so there any Host will do.
    """
    if endpoint.family == socket.AF_UNIX:
        return f"unix:{endpoint.getsockname()}", None
    port = endpoint.getsockname()[1]
    host = f"[{host}]" if ":" in host else host.lower()
    names = {"127.0.0.1", "localhost", "[::1]", host}
    return f"http://{host}:{port}", {f"{name}:{port}".encode() for name in names}


def _tcp(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, *_, address = min(found, key=lambda item: item[0] != socket.AF_INET)
    return socket.create_server(address[:2], family=family)


def _unix(path: Path) -> socket.socket:
    _remove_stale(path)
    endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(_OWNER_ONLY)
    try:
        endpoint.bind(str(path))
    except OSError:
        endpoint.close()
        raise
    finally:
        os.umask(mask)
    return endpoint


def _remove_stale(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(0, "there is something else")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
