"""security.access.key_sources: keys change while a server runs, and failures do not."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from security.access.key_sources import FileKeys, KeySource, UrlKeys, open_source
from security.errors import KeyFileError, KeysUnavailableError
from security.settings.issuers import IssuerSettings
from tests.support.issuers import (
    ED_KEY,
    P256_KEY,
    RSA_KEY,
    Host,
    certify,
    https_host,
    jwk,
)

ONE, TWO = jwk(ED_KEY, "one"), jwk(P256_KEY, "two")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, *entries: Any) -> None:
    path.write_text(json.dumps({"keys": entries}))


def kids(source: KeySource) -> set[str | None]:
    return {kid for kid, _ in source.current()}


def file_keys(path: Path, clock: Clock, reports: list[bool] | None = None) -> FileKeys:
    return FileKeys(
        path,
        IssuerSettings(jwks_max_stale_s=600),
        report_stale=[].append if reports is None else reports.append,
        clock=time.time,
        monotonic=clock,
    )


def test_a_file_that_changes(tmp_path: Path) -> None:
    path, clock = tmp_path / "jwks.json", Clock()
    write(path, ONE)
    source = file_keys(path, clock)
    first = source.current()
    write(path, ONE, TWO)
    assert source.current() is first  # within the second, nothing is looked at
    clock.now += 1
    assert kids(source) == {"one", "two"}
    write(path, TWO)
    clock.now += 1
    assert kids(source) == {"two"}


def test_a_file_that_says_the_same_gives_the_same_object(tmp_path: Path) -> None:
    path, clock = tmp_path / "jwks.json", Clock()
    write(path, ONE)
    source = file_keys(path, clock)
    first = source.current()
    path.write_text(json.dumps({"keys": [ONE]}, indent=4))
    clock.now += 1
    assert source.current() is first
    os.utime(path, (1, 1))
    clock.now += 1
    assert source.current() is first


@pytest.mark.parametrize("broken", ["missing", "garbage", "unusable", "private"])
def test_a_file_that_breaks_keeps_the_last_good_set_for_a_stated_time(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock, reports = tmp_path / "jwks.json", Clock(), list[bool]()
    write(path, ONE)
    source = file_keys(path, clock, reports)
    first = source.current()
    match broken:
        case "missing":
            path.unlink()
        case "garbage":
            path.write_text("{")
        case "unusable":
            write(path, ONE | {"use": "enc"})
        case "private":
            write(path, ONE | {"d": "AAAA"})
    for _ in range(600):
        clock.now += 1
        assert source.current() is first
    assert len(caplog.records) == 1
    assert set(reports) == {True}
    clock.now += 1
    with pytest.raises(KeysUnavailableError, match="too old"):
        source.current()
    write(path, TWO)
    clock.now += 1
    assert kids(source) == {"two"}
    assert reports[-1] is False


def test_an_empty_set_is_the_issuers_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Taken at once, and at a start: no key of before verifies anything."""
    path, clock, reports = tmp_path / "jwks.json", Clock(), list[bool]()
    write(path, ONE)
    source = file_keys(path, clock, reports)
    source.current()
    write(path)
    clock.now += 1
    assert source.current() == {}
    assert "its tokens are refused" in caplog.text
    assert file_keys(path, clock).current() == {}
    write(path, ONE)
    clock.now += 1
    assert kids(source) == {"one"}
    assert reports == []


def test_what_is_left_out_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "jwks.json", Clock()
    write(path, ONE, jwk(RSA_KEY, "enc", use="enc"))
    source = file_keys(path, clock)
    for entry in (TWO, ONE, TWO):
        write(path, entry, jwk(RSA_KEY, "enc", use="enc"))
        clock.now += 1
        source.current()
    (record,) = caplog.records
    assert "'enc' is not for verifying signatures" in record.getMessage()


# URLs.


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with https_host(tmp_path / "host", ONE) as running:
        yield running


def url_keys(host: Host, clock: Clock | None = None, **changes: Any) -> UrlKeys:
    given: dict[str, Any] = {"jwks": host.url, "jwks_ca": host.authority} | changes
    issuer = IssuerSettings(**given)
    return UrlKeys(str(issuer.jwks), issuer, monotonic=clock or Clock())


def eventually(source: KeySource, wanted: set[str]) -> None:
    deadline = time.monotonic() + 30
    while kids(source) != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_url_is_fetched(host: Host) -> None:
    source = url_keys(host)
    source.refresh()
    assert kids(source) == {"one"}
    assert host.asked == ["/keys"]
    first = source.current()
    source.refresh()
    assert source.current() is first


def test_rotation_without_a_restart(host: Host) -> None:
    issuer = IssuerSettings(jwks=host.url, jwks_ca=host.authority, jwks_refresh_s=1)
    source = open_source(issuer)
    assert isinstance(source, UrlKeys)
    with closing(source):
        assert kids(source) == {"one"}
        host.serve(ONE, TWO)
        eventually(source, {"one", "two"})
        host.serve(TWO)
        eventually(source, {"two"})


def test_an_unknown_key_is_asked_for_early_and_once(host: Host) -> None:
    issuer = IssuerSettings(
        jwks=host.url, jwks_ca=host.authority, jwks_refresh_s=3600, jwks_retry_s=1
    )
    clock = Clock()
    source = UrlKeys(host.url, issuer, monotonic=clock)
    source.start()
    host.serve(ONE, TWO)
    for _ in range(10_000):
        assert source.unknown() is None
    assert len(host.asked) == 1  # within the interval, nobody asks
    clock.now += 1
    fetch = source.unknown()
    assert fetch is not None
    for _ in range(10_000):
        source.unknown()
    fetch.result(timeout=30)  # who waits for it has the keys
    assert kids(source) == {"one", "two"}
    for _ in range(10_000):
        source.unknown()
    source.close()
    assert len(host.asked) == 2


BIG = json.dumps({"keys": [ONE], "x": "x" * (300 << 10)}).encode()
FAILURES = {
    "404": (404, {}, b"{}"),
    "500": (500, {}, b""),
    "redirect": (302, {"location": "https://127.0.0.1:1/"}, b""),
    "too large": (200, {}, BIG),
    "no json": (200, {}, b"<html>"),
    "nothing usable": (200, {}, json.dumps({"keys": [jwk(RSA_KEY, "r")]}).encode()),
    "private": (200, {}, json.dumps({"keys": [ONE | {"d": "AAAA"}]}).encode()),
    "compressed": (200, {"content-encoding": "gzip"}, b"\x1f\x8b"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_the_last_good_set_is_kept(host: Host, kind: str) -> None:
    source = url_keys(host)
    source.refresh()
    first = source.current()
    host.answer = lambda: FAILURES[kind]
    source.refresh()
    assert source.current() is first
    fresh = url_keys(host)
    fresh.refresh()
    with pytest.raises(KeysUnavailableError):
        fresh.current()
    assert host.asked == ["/keys"] * 3


def test_a_url_that_fails_keeps_the_last_good_set_for_a_stated_time(host: Host) -> None:
    clock, reports = Clock(), list[bool]()
    issuer = IssuerSettings(
        jwks=host.url, jwks_ca=host.authority, jwks_max_stale_s=3600
    )
    source = UrlKeys(host.url, issuer, report_stale=reports.append, monotonic=clock)
    source.refresh()
    first = source.current()
    host.answer = lambda: (500, {}, b"")
    clock.now += 3600
    source.refresh()
    assert source.current() is first
    assert reports == [True]
    clock.now += 1
    with pytest.raises(KeysUnavailableError):
        source.current()
    # Its stop needs no time, and its return neither.
    host.serve()
    source.refresh()
    assert source.current() == {}
    host.serve(TWO)
    source.refresh()
    assert kids(source) == {"two"}
    assert reports == [True, False]


def test_a_host_that_nobody_certified(host: Host) -> None:
    source = url_keys(host, jwks_ca=None)
    source.refresh()
    with pytest.raises(KeysUnavailableError):
        source.current()
    assert host.asked == []


def test_no_proxy_of_the_environment_is_used(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    source = url_keys(host)
    source.refresh()
    assert kids(source) == {"one"}


@pytest.mark.parametrize("kind", ["silent", "dripping head", "dripping body"])
def test_a_host_that_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is given up after the whole time, not after the time of one read."""
    monkeypatch.setattr("security.access.key_sources.FETCH_TIMEOUT_S", 1.0)
    public, private = certify(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    start = b"HTTP/1.1 200 OK\r\n" + b"\r\n" * (kind == "dripping body")
    ended = threading.Event()

    def hold(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            if kind == "silent":
                ended.wait(30)
                return
            with context.wrap_socket(connection, server_side=True) as client:
                client.sendall(start)
                while not ended.wait(0.05):
                    client.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hold, args=(listener,), daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        source = UrlKeys(url, IssuerSettings(jwks=url, jwks_ca=public))
        source.refresh()
        ended.set()
        thread.join()
    with pytest.raises(KeysUnavailableError):
        source.current()


def test_authorities_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    for name in ("none.pem", "ca.pem"):
        issuer = IssuerSettings(jwks="https://x/", jwks_ca=tmp_path / name)
        with pytest.raises(KeyFileError, match="no file of certificates"):
            open_source(issuer)
