"""Which account of this machine a connection comes from (Linux).

A Unix socket says it itself; of a TCP connection over loopback the kernel's table of
connections does. Where nothing can be read the answer is None: nobody is known.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = ["is_ours", "peer_uid"]

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred
_TABLES = {socket.AF_INET: "tcp", socket.AF_INET6: "tcp6"}
# TCP_SYN_SENT in the kernel's tables.
_SYN_SENT = "02"
_OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")


def is_ours(connection: socket.socket) -> bool:
    """Whether the other end belongs to the account that this process runs as.

    An account that the kernel cannot name in our user namespace is nobody's, though it
    may have our number.
    """
    uid = peer_uid(connection)
    return uid is not None and uid == os.geteuid() and uid != _overflow_uid()


def peer_uid(connection: socket.socket) -> int | None:
    """The account that the other end of a connection belongs to.

    Args:
        connection: accepted, of a Unix socket or of TCP over loopback.

    Returns:
        Its number, or None: another machine, another system, or already gone.
    """
    try:
        if connection.family == socket.AF_UNIX:
            size = _CREDENTIALS.size
            data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            return int(_CREDENTIALS.unpack(data)[1])
        table = Path("/proc/self/net") / _TABLES[connection.family]
        theirs = _spelt(*connection.getpeername()[:2])
        ours = _spelt(*connection.getsockname()[:2])
        with table.open(encoding="ascii") as lines:
            return next(_owners(lines, theirs, ours), None)
    except (AttributeError, KeyError, OSError, ValueError):
        return None  # AttributeError: this system has no SO_PEERCRED


def _owners(lines: Iterator[str], local: str, remote: str) -> Iterator[int]:
    """Owners of the connection with these ends, seen from their side.

    Without an inode no process has it any more, and its owner is given as 0. One that
    is only being made is not ours, which was accepted: it took the port of one that has
    left.
    """
    for line in lines:
        fields = line.split(maxsplit=10)
        ends, state, uid, inode = fields[1:3], fields[3], fields[7], fields[9]
        if ends == [local, remote] and state != _SYN_SENT and inode != "0":
            yield int(uid)


def _spelt(host: str, port: int) -> str:
    """An address as the kernel's table spells it: words of 32 bits, as in memory."""
    packed = ipaddress.ip_address(host.partition("%")[0]).packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def _overflow_uid() -> int:
    try:
        return int(_OVERFLOW_UID.read_text())
    except (OSError, ValueError):
        return 65534
