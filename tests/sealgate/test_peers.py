"""Whose connection it is: the kernel's word, for TCP over loopback and Unix sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from sealgate.peers import _owners, is_our_end, is_ours, peer_uid

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's tables")
SOMEBODY = 54_321


def accepted(host: str, family: socket.AddressFamily):
    with socket.create_server((host, 0), family=family) as listening:
        client = socket.create_connection(listening.getsockname()[:2])
        return client, listening.accept()[0]


@pytest.mark.usefixtures("_asking")
@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)]
)
def test_our_own_connection_over_loopback(host, family):
    client, server = accepted(host, family)
    with client, server:
        assert peer_uid(server) == os.geteuid()
        assert is_ours(server)


@pytest.fixture(params=[True, False], ids=["asked", "table"])
def _asking(request, monkeypatch):
    """With the kernel asked, and where it may not be."""
    if not request.param:
        monkeypatch.delattr(socket, "AF_NETLINK")


@pytest.mark.usefixtures("_asking")
def test_ipv4_by_a_socket_of_ipv6():
    """gRPC's clients and Java's connect so."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket(socket.AF_INET6) as client,
    ):
        client.connect(("::ffff:127.0.0.1", listening.getsockname()[1]))
        with listening.accept()[0] as server:
            ends = server.getpeername(), server.getsockname()
            assert peer_uid(server) == os.geteuid()
            assert is_our_end(socket.AF_INET, *ends)
            assert not is_our_end(socket.AF_INET, ends[0], ("127.0.0.1", 1))


def test_our_own_unix_socket():
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peer_uid(one) == os.geteuid()
        assert is_ours(other)


@pytest.mark.usefixtures("_asking")
def test_who_has_left_is_nobody():
    """The kernel gives what is left of a closed connection to root."""
    client, server = accepted("127.0.0.1", socket.AF_INET)
    with server:
        client.close()
        assert peer_uid(server) is None
        assert not is_ours(server)


def test_a_connection_that_is_only_being_made_is_not_this_one():
    """Its port was that of an account that has left."""
    ours, theirs = "0100007F:1F90", "0100007F:C350"
    rest, end = "00000000:00000000 00:00000000 00000000", "1 x 20 4 30 10 -1"

    def line(state: str, uid: int, inode: int) -> str:
        return f"   1: {theirs} {ours} {state} {rest} {uid:5} 0 {inode} {end}\n"

    being_made, there = line("02", 1000, 777), line("01", 1000, 777)
    half_closed, left = line("05", 1001, 778), line("04", 0, 0)
    assert list(_owners(iter([being_made, left]), theirs, ours)) == []
    assert list(_owners(iter([left, there]), theirs, ours)) == [1000]
    assert list(_owners(iter([half_closed]), theirs, ours)) == [1001]


def test_another_system_knows_nobody(monkeypatch):
    monkeypatch.delattr(socket, "SO_PEERCRED")
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peer_uid(one) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_account():
    code = (
        "import socket, sys\n"
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "s.recv(1)"
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        other = subprocess.Popen(
            ["/usr/bin/python3", "-c", code, str(port)], user=SOMEBODY, group=SOMEBODY
        )
        try:
            listening.settimeout(30)
            with listening.accept()[0] as connection:
                assert peer_uid(connection) == SOMEBODY
                assert not is_ours(connection)
        finally:
            other.wait(10)
