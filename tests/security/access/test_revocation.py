"""security.access.revocation: known to every worker, kept, and never guessed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from security.access.claims import Principal
from security.access.revocation import (
    LocalStore,
    RedisStore,
    Revocation,
    Revocations,
    RevocationStore,
    WatchedStore,
    open_store,
    open_watched,
)
from security.errors import RevocationStoreError, TokenError
from security.settings.access import AccessSettings
from tests.support.servers import free_port

ALICE = Principal("alice", "app", "t1", frozenset(), 2000, "https://a", issued_at=1000)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    arguments = ("--port", str(port), "--bind", "127.0.0.1", "--save", "")
    process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(params=["local", "redis"])
def access(request, tmp_path: Path) -> AccessSettings:
    if request.param == "local":
        return AccessSettings(revocation_directory=tmp_path / "revocations")
    url = request.getfixturevalue("redis_url")
    with closing(RedisStore(url)) as store:
        store._client.flushall()
    return AccessSettings(revocation_store=url)


@pytest.fixture
def store(access: AccessSettings) -> Iterator[RevocationStore]:
    with closing(open_store(access)) as opened:
        yield opened


def worker(access: AccessSettings) -> WatchedStore:
    return open_watched(access)


def eventually_refused(watched: WatchedStore, who: Principal = ALICE) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            watched.check(who)
        except TokenError:
            return
        time.sleep(0.05)
    raise AssertionError("never refused")


# The list.


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Revocation("token", "t1"), "token is revoked"),
        (Revocation("subject", "alice"), "subject is revoked"),
        (Revocation("client", "app"), "client is revoked"),
        (Revocation("subject", "alice", "https://a"), "subject is revoked"),
        (Revocation("subject", "alice", issued_until=1000), "subject is revoked"),
    ],
)
def test_refuses_what_is_revoked(entry: Revocation, message: str) -> None:
    with pytest.raises(TokenError, match=message):
        Revocations([entry]).check(ALICE)


@pytest.mark.parametrize(
    "entry",
    [
        Revocation("token", "t2"),
        Revocation("token", "alice"),
        Revocation("subject", "app"),
        Revocation("subject", "alice", "https://b"),
        Revocation("subject", "alice", issued_until=999),
        Revocation("subject", "Alice"),
        Revocation("client", "ap"),
    ],
)
def test_lets_others_pass(entry: Revocation) -> None:
    Revocations([entry]).check(ALICE)


def test_names_cannot_be_made_to_meet() -> None:
    names = {
        Revocation("subject", "a", "b").name,
        Revocation("subject", "b", "a").name,
        Revocation("client", "a", "b").name,
        Revocation("subject", 'a","b').name,
        Revocation("subject", "a").name,
    }
    assert len(names) == 5


# The stores.


def test_a_line_is_kept_and_taken_back(store: RevocationStore) -> None:
    one = Revocation("subject", "alice", "https://a", revoked_at=5)
    two = Revocation("token", "t1", expires_at=100, revoked_at=6)
    store.add(one)
    store.add(two)
    assert store.entries() == [one, two]
    again = replace(one, issued_until=7, revoked_at=8)
    store.add(again)
    assert store.entries() == [two, again]
    # What is gone by itself goes with the next line.
    third = Revocation("client", "app", revoked_at=101)
    store.add(third)
    assert store.entries() == [again, third]
    assert store.remove(one)
    assert not store.remove(one)
    assert store.entries() == [third]


def test_every_worker_learns_of_it(
    access: AccessSettings, store: RevocationStore
) -> None:
    with closing(worker(access)) as one, closing(worker(access)) as two:
        one.check(ALICE)
        two.check(ALICE)
        store.add(Revocation("subject", "alice"))
        eventually_refused(one)
        eventually_refused(two)
        assert store.remove(Revocation("subject", "alice"))
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                one.check(ALICE)
                break
            except TokenError:
                time.sleep(0.05)
        one.check(ALICE)
    # And who starts afterwards, of what is still there.
    store.add(Revocation("client", "app"))
    with closing(worker(access)) as late, pytest.raises(TokenError):
        late.check(ALICE)


def test_how_soon(tmp_path: Path) -> None:
    """Half a second after a look, the next one looks again, by its clock."""
    access = AccessSettings(revocation_directory=tmp_path)
    clock = Clock()
    with closing(open_store(access)) as store:
        watched = WatchedStore(LocalStore(tmp_path), monotonic=clock)
        with closing(watched):
            watched.check(ALICE)
            store.add(Revocation("subject", "alice"))
            clock.now += 0.5
            with pytest.raises(TokenError):
                watched.check(ALICE)


def test_it_survives_everybody(access: AccessSettings) -> None:
    with closing(open_store(access)) as store:
        store.add(Revocation("subject", "alice"))
    with closing(open_store(access)) as store:
        assert [entry.value for entry in store.entries()] == ["alice"]


# What cannot be read is not empty.


def local(folder: Path, clock: Clock) -> WatchedStore:
    with closing(open_store(AccessSettings(revocation_directory=folder))) as store:
        store.add(Revocation("subject", "bob"))
    return WatchedStore(LocalStore(folder), monotonic=clock)


@pytest.mark.parametrize("how", ["missing", "garbage", "empty", "folder"])
def test_a_broken_file_refuses_everybody(tmp_path: Path, how: str) -> None:
    clock = Clock()
    path = tmp_path / "revocations.sqlite"
    with closing(local(tmp_path, clock)) as watched:
        watched.check(ALICE)
        for name in ("", "-wal", "-shm"):
            path.with_name(path.name + name).unlink(missing_ok=True)
        match how:
            case "garbage":
                path.write_bytes(b"nonsense" * 1000)
            case "empty":
                path.touch()
            case "folder":
                path.mkdir()
        for _ in range(3):
            clock.now += 1
            with pytest.raises(RevocationStoreError):
                watched.check(ALICE)
        assert how == "folder" or path.exists() == (how != "missing")


def test_a_file_that_was_never_there(tmp_path: Path) -> None:
    watched = WatchedStore(LocalStore(tmp_path))
    with closing(watched), pytest.raises(RevocationStoreError):
        watched.check(ALICE)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_comes_back(tmp_path: Path) -> None:
    clock = Clock()
    kept = tmp_path / "kept"
    folder = tmp_path / "live"
    with closing(local(folder, clock)) as watched:
        watched.check(ALICE)
        shutil.copytree(folder, kept)
        shutil.rmtree(folder)
        clock.now += 1
        with pytest.raises(RevocationStoreError):
            watched.check(ALICE)
        shutil.copytree(kept, folder)
        clock.now += 1
        watched.check(ALICE)
        with pytest.raises(TokenError):
            watched.check(replace(ALICE, subject="bob"))


def test_the_file_is_its_owners(tmp_path: Path) -> None:
    access = AccessSettings(revocation_directory=tmp_path / "new")
    with closing(open_store(access)) as store:
        store.add(Revocation("subject", "alice"))
        for path in (tmp_path / "new").iterdir():
            assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_no_redis_refuses_everybody() -> None:
    url = f"redis://user:hunter2@127.0.0.1:{free_port()}/0"
    access = AccessSettings(revocation_store=url)
    with pytest.raises(RevocationStoreError) as caught:
        open_store(access)
    assert "hunter2" not in str(caught.value)
    with closing(open_watched(access)) as watched, pytest.raises(RevocationStoreError):
        watched.check(ALICE)


def test_a_redis_that_forgot_refuses_everybody(redis_url: str) -> None:
    access = AccessSettings(revocation_store=redis_url)
    with closing(RedisStore(redis_url)) as store:
        store._client.flushall()
    with closing(open_store(access)), closing(open_watched(access)) as watched:
        watched.check(ALICE)
        with closing(RedisStore(redis_url)) as store:
            store._client.flushall()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                watched.check(ALICE)
            except RevocationStoreError:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("never refused")


def test_a_thread_that_does_not_look_any_more(tmp_path: Path) -> None:
    """A list that nobody could look at for seconds is no list."""
    clock = Clock()
    open_store(AccessSettings(revocation_directory=tmp_path)).close()
    store = LocalStore(tmp_path)
    watched = WatchedStore(store, in_thread=True, monotonic=clock)
    with closing(watched):
        watched._look()
        clock.now += 4
        watched.check(ALICE)
        clock.now += 2
        with pytest.raises(RevocationStoreError):
            watched.check(ALICE)
