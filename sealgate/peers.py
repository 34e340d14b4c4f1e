"""Which account of this machine a connection comes from (Linux).

A Unix socket says it itself; of a TCP connection over loopback the kernel does: asked
for the one connection (sock_diag(7)), or where that is not allowed, in its table of
all. Where nothing can be read the answer is None: nobody is known.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = ["End", "is_our_end", "is_ours", "peer_uid"]

# Address and port.
End = tuple[str, int]

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred
_TABLES: dict[int, str] = {socket.AF_INET: "tcp", socket.AF_INET6: "tcp6"}
# TCP_SYN_SENT in the kernel's tables.
_SYN_SENT = "02"
# linux/sock_diag.h and linux/inet_diag.h: the header of a message; what asks for one
# connection by its ends; and what answers, from its state on.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_HEADER = struct.Struct("=IHHII")
_ASKED = struct.Struct("=BBBxI2s2s16s16sI8s")
_FOUND = struct.Struct("=BBBB2s2s16s16sI8sIIIII")
_ANY_COOKIE = b"\xff" * 8
_ANSWER_S = 1.0
_MAPPED = b"\0" * 10 + b"\xff" * 2
_OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")


def is_ours(connection: socket.socket) -> bool:
    """Whether the other end belongs to the account that this process runs as.

    An account that the kernel cannot name in our user namespace is nobody's, though it
    may have our number.
    """
    return _is_us(peer_uid(connection))


def is_our_end(family: int, theirs: End, ours: End) -> bool:
    """As `is_ours`, of the connection that has these two ends.

    For whoever has no socket. Ask at once: ends are used again when a connection has
    ended, perhaps by another account.
    """
    return _is_us(_owner(family, theirs, ours))


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
        theirs, ours = connection.getpeername()[:2], connection.getsockname()[:2]
    except (AttributeError, OSError):
        return None  # AttributeError: this system has no SO_PEERCRED
    return _owner(connection.family, theirs, ours)


def _is_us(uid: int | None) -> bool:
    return uid is not None and uid == os.geteuid() and uid != _overflow_uid()


def _owner(family: int, theirs: End, ours: End) -> int | None:
    try:
        return _asked(family, theirs, ours)
    except (AttributeError, OSError):
        pass  # a system without sock_diag, or one that does not let us ask
    except (ValueError, struct.error):
        return None
    mapped = [(f"::ffff:{host}", port) for host, port in (theirs, ours)]
    for kind, ends in ((family, (theirs, ours)), (socket.AF_INET6, mapped)):
        try:
            table = Path("/proc/self/net") / _TABLES[kind]
            with table.open(encoding="ascii") as lines:
                for uid in _owners(lines, *(_spelt(*end) for end in ends)):
                    return uid
        except (KeyError, OSError, ValueError):
            return None
    return None


def _asked(family: int, theirs: End, ours: End) -> int | None:
    """The owner of the connection with these ends, as `_owners`.

    Raises:
        OSError: the kernel cannot be asked.
    """
    (source, source_port), (target, target_port) = _packed(theirs), _packed(ours)
    ends = (source_port, target_port, source, target)
    asked = _ASKED.pack(family, socket.IPPROTO_TCP, 0, 2**32 - 1, *ends, 0, _ANY_COOKIE)
    kind = _SOCK_DIAG_BY_FAMILY
    header = _HEADER.pack(_HEADER.size + len(asked), kind, _NLM_F_REQUEST, 1, 0)
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)
    with kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.sendto(header + asked, (0, 0))
        answer = kernel.recv(4096)
    if _HEADER.unpack_from(answer)[1] != kind:
        return None  # an error: there is no such connection
    _, state, _, _, *found = _FOUND.unpack_from(answer, _HEADER.size)
    uid, inode = found[-2:]
    there = (*found[:2], *map(_unmapped, found[2:4]))
    # A connection that is not there gives the socket that listens for it.
    if there != ends or state == int(_SYN_SENT, 16) or not inode:
        return None
    return int(uid)


def _unmapped(address: bytes) -> bytes:
    """As `_packed` has it: a client may reach IPv4 by a socket of IPv6."""
    return address[12:].ljust(16, b"\0") if address.startswith(_MAPPED) else address


def _packed(end: End) -> tuple[bytes, bytes]:
    address = ipaddress.ip_address(end[0].partition("%")[0]).packed
    return address.ljust(16, b"\0"), end[1].to_bytes(2, "big")


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
