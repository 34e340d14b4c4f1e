"""security.access.revocation: known to every worker, kept, and never guessed."""

from __future__ import annotations

import importlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from security.access.claims import Principal
from security.access.quota_stores import check_quota_store
from security.access.revocation import (
    Revocations,
    WatchedStore,
    open_watched,
    subject_name,
)
from security.access.revocation_stores import (
    LocalStore,
    RedisStore,
    Revocation,
    RevocationStore,
    open_store,
)
from security.errors import QuotaStoreError, RevocationStoreError, TokenError
from security.settings.access import AccessSettings
from security.stores.places import Reach
from tests.support.issuers import certify
from tests.support.redis_servers import RedisServer, losing_answers, redis_server
from tests.support.servers import free_port

KEY = b"k" * 32
ALICE = Principal("alice", "app", "t1", frozenset(), 2000, "https://a", issued_at=1000)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis: RedisServer) -> str:
    """An empty Redis, without a list."""
    raw(redis.url).flushall()
    return redis.url


def raw(url: str) -> Any:
    return importlib.import_module("redis").Redis.from_url(url)


@pytest.fixture(params=["local", "redis"])
def access(request, tmp_path: Path) -> AccessSettings:
    if request.param == "local":
        return AccessSettings(revocation_directory=tmp_path / "revocations")
    return AccessSettings(revocation_store=request.getfixturevalue("redis_url"))


def opened(access: AccessSettings) -> RevocationStore:
    """The store, with a list in it."""
    store = open_store(access)
    try:
        store.version()
    except RevocationStoreError:
        store.new_list()
    store.start()
    return store


@pytest.fixture
def store(access: AccessSettings) -> Iterator[RevocationStore]:
    with closing(opened(access)) as made:
        yield made


def worker(access: AccessSettings) -> WatchedStore:
    return open_watched(access, key=KEY)


def eventually(watched: WatchedStore, wanted: type[Exception] | None) -> None:
    """Wait until Alice passes, or is refused for a reason."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found: type[Exception] | None = None
        try:
            watched.check(ALICE)
        except (TokenError, RevocationStoreError) as error:
            found = type(error)
        if found is wanted:
            return
        time.sleep(0.02)
    raise AssertionError(f"never {wanted}")


def eventually_refused(watched: WatchedStore) -> None:
    eventually(watched, TokenError)


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
        Revocations([entry], key=KEY).check(ALICE)


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
    Revocations([entry], key=KEY).check(ALICE)


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
        eventually(one, None)
    # And who starts afterwards, of what is still there.
    store.add(Revocation("client", "app"))
    with closing(worker(access)) as late, pytest.raises(TokenError):
        late.check(ALICE)


def test_how_soon(tmp_path: Path) -> None:
    """Half a second after a look, the next one looks again, by its clock."""
    access = AccessSettings(revocation_directory=tmp_path)
    clock = Clock()
    with closing(opened(access)) as store:
        watched = WatchedStore(LocalStore(tmp_path), key=KEY, monotonic=clock)
        with closing(watched):
            watched.check(ALICE)
            store.add(Revocation("subject", "alice"))
            clock.now += 0.5
            with pytest.raises(TokenError):
                watched.check(ALICE)


def test_it_survives_everybody(access: AccessSettings) -> None:
    with closing(opened(access)) as store:
        store.add(Revocation("subject", "alice"))
    with closing(opened(access)) as store:
        assert [entry.value for entry in store.entries()] == ["alice"]


# What cannot be read is not empty.


def local(folder: Path, clock: Clock) -> WatchedStore:
    with closing(opened(AccessSettings(revocation_directory=folder))) as store:
        store.add(Revocation("subject", "bob"))
    return WatchedStore(LocalStore(folder), key=KEY, monotonic=clock)


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
    watched = WatchedStore(LocalStore(tmp_path), key=KEY)
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
    with closing(opened(access)) as store:
        store.add(Revocation("subject", "alice"))
        for path in (tmp_path / "new").iterdir():
            assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


# A list that is lost.


def test_nothing_but_its_own_command_makes_a_new_list(access: AccessSettings) -> None:
    """Neither a change nor a start makes one: it would revive everybody."""
    with closing(open_store(access)) as store:
        for change in (
            lambda: store.add(Revocation("subject", "alice")),
            lambda: store.remove(Revocation("subject", "alice")),
            store.entries,
            store.version,
        ):
            with pytest.raises(RevocationStoreError):
                change()
        store.new_list()
        assert store.entries() == []
        with pytest.raises(RevocationStoreError, match="there"):
            store.new_list()
        store.add(Revocation("client", "app"))
        assert len(store.entries()) == 1


def test_a_redis_that_forgot_refuses_everybody_until_somebody_says_so(
    redis_url: str,
) -> None:
    access = AccessSettings(revocation_store=redis_url)
    with closing(opened(access)) as store, closing(worker(access)) as watched:
        store.add(Revocation("subject", "bob"))
        watched.check(ALICE)
        raw(redis_url).flushall()
        eventually(watched, RevocationStoreError)
        with pytest.raises(RevocationStoreError, match="--new-list"):
            store.add(Revocation("subject", "mallory"))
        with pytest.raises(RevocationStoreError, match="--new-list"):
            store.start()
        assert raw(redis_url).keys("sealgate:revocations*") == []
        store.new_list()
        store.add(Revocation("subject", "alice"))
        eventually_refused(watched)


def test_a_list_of_the_release_before_is_read_and_taken_over(redis_url: str) -> None:
    plain = raw(redis_url)
    old = Revocation("subject", "alice", "https://a", revoked_at=5)
    plain.hset("sealgate:revocations", old.name, json.dumps(asdict(old)))
    plain.set("sealgate:revocations:version", 7)
    access = AccessSettings(revocation_store=redis_url)
    with closing(open_store(access)) as store, closing(worker(access)) as watched:
        store.start()
        assert store.entries() == [old]
        with pytest.raises(TokenError):
            watched.check(ALICE)
        new = Revocation("client", "app", revoked_at=6)
        store.add(new)
        assert store.entries() == [old, new]
        # One key from now on; servers of that release find no version, and refuse.
        assert plain.keys("sealgate:revocations*") == [b"sealgate:revocations"]
        assert abs(int(str(store.version())) - time.time()) < 60
        assert store.remove(old)


def test_a_local_list_of_the_release_before_is_read(tmp_path: Path) -> None:
    access = AccessSettings(revocation_directory=tmp_path)
    old = Revocation("subject", "alice", "https://a", revoked_at=5)
    with closing(sqlite3.connect(tmp_path / "revocations.sqlite")) as file:
        file.execute(
            "CREATE TABLE revoked (name TEXT PRIMARY KEY, kind TEXT, value TEXT,"
            " issuer TEXT, issued_until INTEGER, expires_at INTEGER,"
            " revoked_at INTEGER)"
        )
        values = (old.name, *asdict(old).values())
        file.execute("INSERT INTO revoked VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        file.commit()
    with closing(worker(access)) as watched, pytest.raises(TokenError):
        watched.check(ALICE)


def test_subjects_are_stored_as_pseudonyms(tmp_path: Path) -> None:
    for issuer, other in (("https://a", "https://b"), ("", None)):
        entry = Revocation("pseudonym", subject_name(KEY, "alice", issuer), issuer)
        listed = Revocations([entry], key=KEY)
        with pytest.raises(TokenError, match="subject is revoked"):
            listed.check(ALICE)
        listed.check(replace(ALICE, subject="bob"))
        Revocations([entry], key=b"another").check(ALICE)
        if other is not None:
            listed.check(replace(ALICE, issuer=other))


def test_a_repeated_change_gives_the_first_answer(
    redis: RedisServer, redis_url: str
) -> None:
    """A restore that was done when the wire broke did restore somebody."""
    entry = Revocation("client", "app")
    with closing(opened(AccessSettings(revocation_store=redis_url))) as store:
        store.add(entry)
    wire = losing_answers(redis.port, entry.name.encode())
    with wire as (url, lost), closing(RedisStore(url, Reach())) as store:
        assert store.remove(entry)
        assert not store.remove(entry)
    assert len(lost) == 1


# Redis that cannot be relied on.


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-ttl"])
def test_a_redis_that_evicts_is_refused(redis_url: str, policy: str) -> None:
    access = AccessSettings(revocation_store=redis_url)
    opened(access).close()
    server = raw(redis_url)
    server.config_set("maxmemory-policy", policy)
    try:
        with closing(open_store(access)) as store:
            for ask in (store.start, store.entries):
                with pytest.raises(RevocationStoreError, match=f"is {policy}, not"):
                    ask()
        with pytest.raises(QuotaStoreError, match="noeviction"):
            check_quota_store(redis_url, Reach())
    finally:
        server.config_set("maxmemory-policy", "noeviction")


def test_a_redis_that_a_restart_empties_is_refused_or_reported(redis_url: str) -> None:
    server = raw(redis_url)
    access = AccessSettings(revocation_store=redis_url)
    opened(access).close()
    server.config_set("appendonly", "no")
    reports: list[bool] = []
    try:
        refused = pytest.raises(RevocationStoreError, match="appendonly")
        with closing(open_store(access)) as store, refused:
            store.start()
        lax = replace(access, revocation_require_persistence=False)
        with closing(open_store(lax)) as store:
            store.start()
        with closing(open_watched(lax, key=KEY, report_kept=reports.append)):
            assert reports == [False]
    finally:
        server.config_set("appendonly", "yes")
    with closing(open_watched(lax, key=KEY, report_kept=reports.append)):
        assert reports == [False, True]


def test_a_redis_with_tls_and_acl_that_is_away_at_the_start(tmp_path: Path) -> None:
    """A server starts, refuses everybody, and recovers when the Redis is there."""
    public, private = certify(tmp_path)
    port = free_port()
    url = f"rediss://sealgate:hunter2@127.0.0.1:{port}/0?ssl_ca_certs={public}"
    access = AccessSettings(revocation_store=url)
    options = (
        *("--tls-cert-file", str(public), "--tls-key-file", str(private)),
        *("--tls-ca-cert-file", str(public), "--tls-auth-clients", "no"),
        *("--user", "sealgate", "on", ">hunter2", "~sealgate:*", "+@all", "-@admin"),
        *("--user", "default", "off"),
    )
    with closing(open_store(access)) as store, closing(worker(access)) as watched:
        store.start()
        with pytest.raises(RevocationStoreError) as caught:
            watched.check(ALICE)
        assert "hunter2" not in str(caught.value)
        with redis_server(tmp_path, *options, port=port, tls=True):
            store.new_list()
            store.start()
            eventually(watched, None)
            store.add(Revocation("subject", "alice"))
            eventually_refused(watched)
            # Who may never be let in is said at once, without a password.
            for wrong, reason in (
                (url.replace("hunter2", "hunter3"), "AuthenticationError"),
                (url.partition("?")[0], "TLS: CERTIFICATE_VERIFY_FAILED"),
            ):
                with closing(RedisStore(wrong, Reach())) as other:
                    with pytest.raises(RevocationStoreError, match=reason) as caught:
                        other.start()
                    assert "hunter" not in str(caught.value)


def test_a_thread_that_does_not_look_any_more(tmp_path: Path) -> None:
    """A list that nobody could look at for seconds is no list."""
    clock = Clock()
    opened(AccessSettings(revocation_directory=tmp_path)).close()
    store = LocalStore(tmp_path)
    watched = WatchedStore(store, key=KEY, in_thread=True, monotonic=clock)
    with closing(watched):
        watched._look()
        clock.now += 4
        watched.check(ALICE)
        clock.now += 2
        with pytest.raises(RevocationStoreError):
            watched.check(ALICE)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_local_list_that_is_gone_is_not_made_by_the_next_start(
    tmp_path: Path, what: str
) -> None:
    access = AccessSettings(revocation_directory=tmp_path / "list")
    with closing(open_store(access)) as store:
        store.start()
        store.add(Revocation("token", "t1", revoked_at=1))
        store.start()
    for path in (tmp_path / "list").iterdir():
        path.unlink()
    if what == "folder":
        (tmp_path / "list").rmdir()
    with closing(open_store(access)) as store:
        for attempt in (store.start, store.entries):
            with pytest.raises(RevocationStoreError, match="revoke --new-list"):
                attempt()
        store.new_list()
        store.start()
        assert store.entries() == []


def test_a_list_of_before_is_noted_too(tmp_path: Path) -> None:
    access = AccessSettings(revocation_directory=tmp_path / "list")
    with closing(open_store(access)) as store:
        store.start()
        (tmp_path / "list.made").unlink()
        store.start()
    assert (tmp_path / "list.made").exists()


def test_an_emptied_local_list_stays_lost_at_the_next_start(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.start()
    store.add(Revocation("token", "t1", revoked_at=1))
    store.close()
    (tmp_path / "revocations.sqlite").write_bytes(b"")
    for attempt in (store.start, store.entries, store.new_list):
        with pytest.raises(RevocationStoreError):
            attempt()
