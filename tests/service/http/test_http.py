"""Bounds of HTTP over real sockets: slow clients, full servers, TLS, the end."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from cryptography import x509

from sealgate.client import Client
from security.errors import SettingsError
from security.settings.tls import TlsSettings
from service.http.tls import server_context
from tests.conftest import mint, toy_settings
from tests.support.bundles import NAME
from tests.support.certificates import certificate
from tests.support.live import wait_for
from tests.support.servers import Server, serve

READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
WAIT_S = 30


def post(size: int) -> bytes:
    return (
        b"POST /.well-known/ohttp-gateway HTTP/1.1\r\nHost: x\r\n"
        b"Content-Type: message/ohttp-req\r\nContent-Length: %d\r\n\r\n" % size
    )


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=WAIT_S)


def answer(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


@pytest.fixture(scope="module")
def narrow(deployment: Path) -> Iterator[Server]:
    """A server with little of everything."""
    extra = toy_settings(deployment) | {
        "SEALGATE_SERVICE_MAX_CONCURRENCY": "4",
        "SEALGATE_SERVICE_MAX_READERS": "8",
        "SEALGATE_SERVICE_MAX_CONNECTIONS": "24",
        "SEALGATE_SERVICE_MAX_BODY_BYTES": "1000000",
        "SEALGATE_SERVICE_MAX_BODY_MEMORY_BYTES": "4000000",
        "SEALGATE_SERVICE_BODY_TIMEOUT_S": "60",
        "SEALGATE_SERVICE_HEAD_TIMEOUT_S": "60",
        "SEALGATE_SERVICE_IDLE_TIMEOUT_S": "2",
        "SEALGATE_SERVICE_SEND_TIMEOUT_S": "1",
    }
    with serve("service.app:Sealgate", deployment, extra=extra, alone=True) as server:
        yield server


def infer(server: Server, token: str) -> None:
    with Client(server.url, token=token) as client:
        rows = np.ones((1, 3), np.float32)
        assert client.infer(NAME, {"features": rows})["label"].shape == (1,)


def test_slow_bodies_do_not_keep_others_out(narrow: Server, token: str) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(narrow)) for _ in range(8)]
        for connection in slow:
            connection.sendall(post(100_000) + b"x" * 10)
        time.sleep(1.2)  # beyond the grace of those that have only just begun
        # What comes whole needs no place among those that are read.
        for _ in range(3):
            infer(narrow, token)
        # For a ninth that comes in parts one of them has to go, with an answer that
        # says why, and the ninth is answered.
        ninth = stack.enter_context(connect(narrow))
        message = post(1000) + b"x" * 1000
        ninth.sendall(message[:-1])
        gone, _, _ = select.select(slow, [], [], WAIT_S)
        assert gone
        assert all(one.recv(65536).startswith(b"HTTP/1.1 408 ") for one in gone)
        ninth.sendall(message[-1:])
        # It is read to its end, and opened with a key that is none.
        assert ninth.recv(65536).startswith(b"HTTP/1.1 422 ")


def test_the_memory_of_bodies_is_bounded(
    narrow: Server, token: str, deployment: Path
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(connect(narrow))
            with contextlib.suppress(ConnectionError):
                connection.sendall(post(990_000) + b"x" * 900_000)
        # Four of them fit, if that: the newcomers are refused, or the slowest are.
        assert 0 <= gauge(narrow, deployment, "sealgate_body_bytes") <= 4_000_000
        assert gauge(narrow, deployment, "sealgate_bodies_being_read") <= 4
        time.sleep(1.2)
        infer(narrow, token)


@functools.cache
def metrics_token(deployment: Path) -> str:
    return mint(deployment, "metrics")


def gauge(server: Server, deployment: Path, name: str) -> float:
    headers = {"authorization": f"Bearer {metrics_token(deployment)}"}
    text = httpx.get(server.url + "/metrics", headers=headers, timeout=WAIT_S).text
    (line,) = [x for x in text.splitlines() if x.startswith(f"{name} ")]
    return float(line.split()[1])


def test_a_connection_too_many_closes_the_one_that_waited_longest(
    narrow: Server,
) -> None:
    # What other tests left is idle for too long, in two seconds.
    process = psutil.Process(narrow.pid)
    wait_for(lambda: not [one for one in process.net_connections() if one.raddr])
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(narrow)) for _ in range(24)]
        for connection in idle:
            connection.sendall(READY[:10])
        first = idle[0]
        newcomer = stack.enter_context(connect(narrow))
        newcomer.sendall(READY)
        assert newcomer.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert answer(first) == b""


def test_an_idle_connection_is_closed(narrow: Server) -> None:
    with connect(narrow) as connection:
        connection.sendall(READY)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert answer(connection) == b""


def test_who_takes_no_answer_is_cut_off(narrow: Server, deployment: Path) -> None:
    token = metrics_token(deployment)
    asked = (
        f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.2)
        parts = urlsplit(narrow.url)
        connection.connect((parts.hostname, parts.port))
        deadline = time.monotonic() + WAIT_S
        # Answers to pipelined requests pile up, and nobody takes them.
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    connection.sendall(asked * 50)
    assert httpx.get(f"{narrow.url}/v2/health/ready").status_code == 200


def test_nothing_tells_which_server_it_is(narrow: Server) -> None:
    response = httpx.get(f"{narrow.url}/v2/health/ready")
    assert "server" not in response.headers
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "strict-transport-security" not in response.headers


@pytest.mark.parametrize("path", ["/", "/docs", "/docs.json", "/schema.json"])
def test_no_page_and_no_schema(narrow: Server, token: str, path: str) -> None:
    headers = {"authorization": f"Bearer {token}"}
    assert httpx.get(narrow.url + path).status_code == 401
    assert httpx.get(narrow.url + path, headers=headers).status_code in (403, 404)


def test_what_is_in_work_is_finished(deployment: Path) -> None:
    metrics_token(deployment)  # takes long, and a body is waiting below
    extra = toy_settings(deployment) | {"SEALGATE_SERVICE_SHUTDOWN_TIMEOUT_S": "20"}
    with serve("service.app:Sealgate", deployment, extra=extra) as server:
        with connect(server) as connection, connect(server) as idle:
            connection.sendall(post(1000) + b"x" * 500)
            wait_for_reader(server, deployment)
            os.kill(server.pid, signal.SIGTERM)
            # Who waits for nothing is let go at once.
            assert answer(idle) == b""
            connection.sendall(b"x" * 500)
            received = answer(connection)
        assert received.startswith(b"HTTP/1.1 422 ")
        assert b"connection: close" in received.lower()


def wait_for_reader(server: Server, deployment: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if gauge(server, deployment, "sealgate_bodies_being_read") == 1:
            return
    raise AssertionError("the body is not being read")


def test_the_end_does_not_wait_for_ever(deployment: Path) -> None:
    metrics_token(deployment)
    extra = toy_settings(deployment) | {
        "SEALGATE_SERVICE_SHUTDOWN_TIMEOUT_S": "1",
        "SEALGATE_SERVICE_BODY_TIMEOUT_S": "600",
    }
    with (
        serve("service.app:Sealgate", deployment, extra=extra) as server,
        connect(server) as connection,
    ):
        connection.sendall(post(1000) + b"x")
        wait_for_reader(server, deployment)
        parent = psutil.Process(server.pid)
        (worker,) = [p for p in parent.children(True) if p.net_connections("tcp")][-1:]
        parent.terminate()
        # Without a bound of its own the worker would wait for this body.
        worker.wait(WAIT_S)
        answer(connection)


# TLS


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    certificate(folder, "authority", authority=True)
    for name in ("server", "client"):
        certificate(folder, name, issuer="authority")
    certificate(folder, "stranger")
    return folder


@pytest.fixture(scope="module")
def secure(deployment: Path, pki: Path) -> Iterator[Server]:
    extra = toy_settings(deployment) | {
        "SEALGATE_TLS_ENABLED": "true",
        "SEALGATE_TLS_CERTIFICATE": str(pki / "server.pem"),
        "SEALGATE_TLS_KEY": str(pki / "server.key"),
        "SEALGATE_TLS_CLIENT_CA": str(pki / "authority.pem"),
        "SEALGATE_TLS_CLIENT_CERTIFICATES": "required",
    }
    ready = client_context(pki)
    with serve("", deployment, extra=extra, tls=ready, alone=True) as server:
        yield server


def client_context(pki: Path, *, name: str | None = "client") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki / "authority.pem"))
    if name is not None:
        context.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
    return context


def shake(server: Server, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(connect(server), server_hostname="127.0.0.1")


def test_https_with_both_certificates(secure: Server, pki: Path) -> None:
    response = httpx.get(
        f"{secure.url}/v2/health/ready", verify=client_context(pki), timeout=WAIT_S
    )
    assert response.status_code == 200
    assert response.headers["strict-transport-security"].startswith("max-age=")


@pytest.mark.parametrize(
    ("version", "suites"),
    [
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-GCM-SHA384"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-CHACHA20-POLY1305"),
        (ssl.TLSVersion.TLSv1_3, None),
    ],
)
def test_what_is_modern(secure: Server, pki: Path, version, suites) -> None:
    context = client_context(pki)
    context.minimum_version = context.maximum_version = version
    if suites:
        context.set_ciphers(suites)
    with shake(secure, context) as connection:
        connection.sendall(READY)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("version", "suites"),
    [
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"),
    ],
    ids=["TLS 1.1", "CBC", "CBC and SHA-1"],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_what_is_not(secure: Server, pki: Path, version, suites) -> None:
    context = client_context(pki)
    context.set_ciphers(suites)
    context.minimum_version = context.maximum_version = version
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake(secure, context).close()


@pytest.mark.parametrize("name", [None, "stranger"])
def test_clients_without_a_certificate_of_ours(secure: Server, pki: Path, name) -> None:
    with (
        pytest.raises((ssl.SSLError, ConnectionError)),
        shake(secure, client_context(pki, name=name)) as connection,
    ):
        connection.sendall(READY)
        if not connection.recv(65536):  # TLS 1.3 tells after the handshake
            raise ConnectionError


def test_plaintext_on_that_port(secure: Server) -> None:
    with connect(secure) as connection:
        connection.sendall(READY)
        assert not answer(connection).startswith(b"HTTP/")


def test_a_new_certificate_without_a_restart(secure: Server, pki: Path) -> None:
    def serial() -> int:
        with shake(secure, client_context(pki)) as connection:
            der = connection.getpeercert(binary_form=True)
            return x509.load_der_x509_certificate(der or b"").serial_number

    before = serial()
    (pki / "server.pem").write_bytes(b"half a certificate")
    time.sleep(1.1)
    assert {serial(), serial()} == {before}
    certificate(pki, "server", issuer="authority")
    deadline = time.monotonic() + WAIT_S
    while serial() == before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert serial() != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"certificate": "absent.pem"}, "tls.certificate, tls.key: No such file"),
        ({"key": "client.key"}, "tls.certificate, tls.key: "),
        ({"client_ca": "absent.pem"}, "tls.client_ca: No such file"),
        ({"client_ca": "server.key"}, "tls.client_ca: "),
    ],
)
def test_files_that_do_not_fit(pki: Path, changes: dict, message: str) -> None:
    names = {"certificate": "server.pem", "key": "server.key"}
    names |= {"client_ca": "authority.pem"} | changes
    paths = {key: pki / name for key, name in names.items()}
    settings = TlsSettings(enabled=True, client_certificates="required", **paths)
    with pytest.raises(SettingsError, match=message):
        server_context(settings)


def test_an_open_key_is_refused_at_start(deployment: Path, pki: Path) -> None:
    (pki / "open.key").write_bytes((pki / "server.key").read_bytes())
    (pki / "open.key").chmod(0o644)
    extra = toy_settings(deployment) | {
        "SEALGATE_TLS_ENABLED": "true",
        "SEALGATE_TLS_CERTIFICATE": str(pki / "server.pem"),
        "SEALGATE_TLS_KEY": str(pki / "open.key"),
    }
    with (
        pytest.raises(AssertionError, match="permissions 0644 let others in"),
        serve("", deployment, extra=extra, alone=True),
    ):
        pass
