"""A Redis that is away, slow, full, read-only or emptied: what each store does then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from security.access.quota_stores import (
    Grant,
    RedisQuotaStore,
    Want,
    check_quota_store,
)
from security.access.revocation_stores import RedisStore, Revocation
from security.errors import (
    MonitoringStoreError,
    QuotaStoreError,
    ReplayStoreError,
    RevocationStoreError,
)
from security.monitoring.keeping import Presence, RedisCountStore, Segment
from security.monitoring.labels import RedisLabelStore, Room, Spending
from security.monitoring.ledger import Budget, Entry, RedisLedger
from security.sealing.replay import RedisReplayStore
from security.stores.places import Reach
from security.stores.shared import AWAY_AFTER, AWAY_S
from tests.support.patience import in_time, once
from tests.support.redis_servers import (
    RedisServer,
    plain,
    redis_sentinels,
    redis_server,
    wait_until,
)
from tests.support.servers import free_port

KEY = b"k" * 32
SCOPE = "drift/toy/1.0.0/2026-W48"
OWNER = b"somebody"


class Stores:
    """One worker's stores, and what it asks of each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.since: dict[str, int] = {}
        reach = Reach()
        self.quotas = RedisQuotaStore(
            url, reach, key=KEY, report_since=self._note("quotas")
        )
        self.replays = RedisReplayStore(
            url,
            reach,
            ttls_s=(260, 3600),
            share=1000,
            report_since=self._note("replays"),
        )
        self.revocations = RedisStore(url, reach)
        self.ledger = RedisLedger(url, reach)
        self.counts = RedisCountStore(url, reach)
        self.labels = RedisLabelStore(url, reach)
        self.loop = asyncio.new_event_loop()

    def _note(self, name: str) -> Callable[[int], None]:
        return lambda since: self.since.update({name: since})

    def make(self) -> None:
        """What an operator makes once."""
        self.revocations.new_list()
        self.ledger.new_ledger()

    def count(self) -> int:
        """Charge a budget of 10; returns what is left."""
        want = Want(b"a" * 16 + b"rd", 1, int(time.time()) + 600, 10, 1, 1)
        (grant,) = self.loop.run_until_complete(self.quotas.take([want]))
        return grant.left

    def remember(self, made: float | None = None, entry: bytes = b"") -> bool:
        """Remember a request; returns whether it is new."""
        made = int(time.time()) + 2 if made is None else int(made)
        new = self.replays.insert(
            entry or secrets.token_bytes(16), slot=made // 10, owner=OWNER, made=made
        )
        return self.loop.run_until_complete(new)

    def revoke(self) -> None:
        self.revocations.add(Revocation("client", "app"))

    def book(self) -> None:
        entry = Entry(f"{SCOPE}/{secrets.token_hex(4)}", time.time(), 1e-9)
        self.ledger.book(entry, Budget(8.0, 1e-6))

    def put(self) -> None:
        self.counts.put(SCOPE, Presence("w", 1, 2), [Segment(0, b"sealed")])

    def label(self) -> None:
        item = Spending(secrets.token_bytes(16), b"o" * 8, b"sealed")
        assert self.labels.spend(SCOPE, time.time() + 60, Room(99, 99), [item])

    @property
    def writes(self) -> list[tuple[Callable[[], Any], type[Exception]]]:
        """All that is asked, and how each refuses."""
        return [
            (self.count, QuotaStoreError),
            (self.remember, ReplayStoreError),
            (self.revoke, RevocationStoreError),
            (self.book, MonitoringStoreError),
            (self.put, MonitoringStoreError),
            (self.label, MonitoringStoreError),
        ]

    def all_refuse(self, why: str, *, within_s: float = 30.0) -> None:
        """Each store refuses, soon."""
        for ask, refusal in self.writes:

            def scene() -> None:
                began = time.monotonic()
                with pytest.raises(refusal, match=why):  # noqa: B023
                    ask()  # noqa: B023
                in_time(began, within_s)

            once(scene)

    def all_answer(self) -> None:
        """Each store does what it is asked; one that was away may take a moment."""
        for ask, refusal in self.writes:
            wait_until(lambda: _answers(ask, refusal), timeout_s=10)  # noqa: B023

    def close(self) -> None:
        self.loop.run_until_complete(self.quotas.close())
        self.loop.run_until_complete(self.replays.close())
        for store in (self.revocations, self.ledger, self.counts, self.labels):
            store.close()
        self.loop.close()


def _answers(ask: Callable[[], Any], refusal: type[Exception]) -> bool:
    try:
        ask()
    except refusal:
        return False
    return True


@contextmanager
def stores(server: RedisServer) -> Iterator[Stores]:
    with closing(Stores(server.url)) as made:
        yield made


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def asked(redis: RedisServer) -> Iterator[Stores]:
    """Stores that have all been used, of a Redis with nothing else."""
    with closing(plain(redis.port)) as admin:
        admin.flushall()
    with stores(redis) as made:
        made.make()
        made.all_answer()
        yield made


@pytest.fixture
def admin(redis: RedisServer) -> Iterator[Any]:
    with closing(plain(redis.port)) as client:
        yield client


def test_away(tmp_path: Path) -> None:
    """It refuses at once, and knows everything again when it is back."""
    with redis_server(tmp_path) as server, stores(server) as asked:
        asked.make()
        asked.all_answer()
        entry = secrets.token_bytes(16)
        made = time.time() + 100
        assert asked.remember(made, entry)
        left, version = asked.count(), asked.revocations.version()
        server.process.kill()
        server.process.wait()
        for _ in range(AWAY_AFTER):
            asked.all_refuse("redis: (ConnectionError|away)", within_s=5)
        # Now one request in a tenth of a second tries, and the rest is told so.
        with pytest.raises(QuotaStoreError, match="redis: away"):
            for _ in range(100):
                _answers(asked.count, ReplayStoreError)
        with redis_server(tmp_path, port=server.port):
            asked.all_answer()
            assert not asked.remember(made, entry)
            assert asked.count() < left
            assert asked.revocations.version() > version
            assert len(asked.ledger.entries()) == 2


def test_slow(asked: Stores, admin: Any) -> None:
    """No request waits longer than twice the timeout; monitoring has threads."""
    for ask, refusal in asked.writes[:3]:

        def scene() -> None:
            admin.client_pause(2500, all=True)
            began, said = time.monotonic(), ""
            try:
                ask()  # noqa: B023
            except refusal as error:  # noqa: B023
                said = str(error)
            took_s = time.monotonic() - began
            wait_until(lambda: _answers(ask, refusal))  # noqa: B023
            in_time(0.0, 2.4, now=took_s)
            assert "redis: TimeoutError" in said

        once(scene)


@contextmanager
def silent(count: int) -> Iterator[list[int]]:
    """Ports of hosts that take connections, and say nothing."""
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
            for _ in range(count)
        ]
        yield [host.getsockname()[1] for host in hosts]


def places_of(ports: list[int]) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports)


def test_sentinels_that_say_nothing_hide_no_other(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as server,
        redis_sentinels(tmp_path, server) as there,
        silent(2) as gone,
        closing(Stores(f"redis+sentinel://{places_of(gone + there)}/main")) as asked,
    ):
        wait_until(lambda: _answers(asked.count, QuotaStoreError))


def test_who_waits_in_a_thread_is_told_at_once_later() -> None:
    """Labels are asked one after another: many that wait must not add up."""
    once(told_at_once_later)


def told_at_once_later() -> None:
    item = Spending(b"t" * 16, b"o" * 8, b"sealed")
    with (
        silent(3) as gone,
        closing(RedisLabelStore(f"redis+sentinel://{places_of(gone)}/m", Reach())) as s,
    ):
        s._redis._failures = AWAY_AFTER - 1  # two that took as long
        waited = []
        for why in ("redis: M", "redis: away"):
            began = time.monotonic()
            with pytest.raises(MonitoringStoreError, match=why):
                s.spend(SCOPE, time.time() + 60, Room(9, 9), [item])
            waited.append(time.monotonic() - began)
    in_time(0.0, 2 * 2.0 + 1.0, now=waited[0])
    in_time(0.0, 0.5, now=waited[1])


def test_a_late_clock_spends_nothing_twice(asked: Stores) -> None:
    """A worker's window that is long over, by the clock of the Redis, still counts."""
    want = Want(b"late" * 4 + b"rm", 1, int(time.time()) - 600, 1, 1, 1)
    for left in (Grant(1, 0), Grant(0, 0)):
        assert asked.loop.run_until_complete(asked.quotas.take([want])) == [left]


def test_a_request_that_ends_takes_no_turn_along(asked: Stores, admin: Any) -> None:
    """One that was to find out whether the server is back may be cancelled."""
    redis = asked.quotas._redis
    redis._failures, redis._again_at = AWAY_AFTER, 0.0
    admin.client_pause(2000, all=True)

    async def given_up() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await redis.run("return 1", [], [])

    asked.loop.run_until_complete(given_up())
    assert redis._failures == AWAY_AFTER
    assert redis._again_at - time.monotonic() <= AWAY_S
    asked.replays._begin_at.clear()
    admin.client_pause(2000, all=True)

    async def left() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await asked.replays.insert(b"e" * 16, slot=1, owner=OWNER)

    asked.loop.run_until_complete(left())
    assert asked.replays._begin_at == {"sealgate:replay": 0.0}


def test_full(asked: Stores, admin: Any) -> None:
    """Revocations are still known; nothing else is guessed."""
    entries = asked.revocations.entries()
    admin.config_set("maxmemory", 1)
    try:
        asked.all_refuse("redis: OutOfMemoryError")
        assert asked.revocations.entries() == entries
        # What gives room is possible: slots are given back, windows dropped.
        asked.counts.drop(SCOPE)
    finally:
        admin.config_set("maxmemory", 0)
    asked.all_answer()


@pytest.mark.parametrize("how", ["replica", "without replicas"])
def test_read_only(asked: Stores, admin: Any, how: str) -> None:
    """A master that has become a replica, or that must not write without one."""
    entries = asked.revocations.entries()
    if how == "replica":
        admin.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    else:
        admin.config_set("min-replicas-to-write", 1)
    try:
        asked.all_refuse("redis: (ReadOnlyError|ResponseError|ConnectionError)")
        assert asked.revocations.entries() == entries
    finally:
        admin.execute_command("REPLICAOF", "NO", "ONE")
        admin.config_set("min-replicas-to-write", 0)
    asked.all_answer()


def test_emptied(asked: Stores, admin: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Quotas count anew and say so; all others refuse what they cannot know."""
    entry, made, then = secrets.token_bytes(16), time.time() + 1, dict(asked.since)
    assert asked.remember(made, entry)
    time.sleep(1.1)
    asked.remember()
    admin.flushall()
    with pytest.raises(ReplayStoreError, match="was emptied, and begins anew"):
        asked.remember(made, entry)
    with pytest.raises(ReplayStoreError, match="began anew after this was made"):
        asked.remember(made, entry)
    assert "redis began anew" in caplog.text
    assert asked.remember(time.time() + 2)
    for ask in (asked.revocations.version, asked.revocations.entries, asked.revoke):
        with pytest.raises(RevocationStoreError, match="--new-list"):
            ask()
    for ask in (asked.book, asked.label, asked.ledger.entries, asked.ledger.start):
        with pytest.raises(MonitoringStoreError, match="--new-ledger"):
            ask()
    with pytest.raises(MonitoringStoreError, match="--new-ledger"):
        asked.ledger.publish(Entry(SCOPE, time.time(), 0.0, b"{}"))
    assert asked.counts.scopes() == []
    # Nothing of it made a ledger, or a list, by the way.
    asked.make()
    asked.quotas._claim_at = 0.0  # a minute later
    assert asked.count() == 9
    assert all(asked.since[name] > then[name] for name in ("quotas", "replays"))


def test_a_restart_may_have_lost_its_last_second(tmp_path: Path) -> None:
    """What is on disk comes back; requests from before do not pass, known or not."""
    with redis_server(tmp_path) as server, stores(server) as asked:
        asked.make()
        asked.all_answer()
        time.sleep(1.1)
        known, made = secrets.token_bytes(16), time.time()
        assert asked.remember(made, known)
        time.sleep(1.1)
        server.process.terminate()
        server.process.wait()
        with redis_server(tmp_path, port=server.port):
            wait_until(lambda: _answers(asked.remember, ReplayStoreError))
            assert not asked.remember(made, known)
            with pytest.raises(ReplayStoreError, match="began anew after"):
                asked.remember(made)


def test_a_snapshot_brings_no_old_list_back(tmp_path: Path) -> None:
    """Running workers refuse it, until somebody revokes again what is missing."""
    lost = Revocation("client", "lost")
    without = ("--appendonly", "no")
    with redis_server(tmp_path, *without) as server, stores(server) as asked:
        asked.revocations.new_list()
        asked.revoke()
        with closing(plain(server.port)) as admin:
            admin.save()
        asked.revocations.add(lost)
        assert lost in asked.revocations.entries()
        server.process.kill()
        server.process.wait()
        with redis_server(tmp_path, *without, port=server.port):
            for ask in (asked.revocations.version, asked.revocations.entries):
                with pytest.raises(RevocationStoreError, match="has gone back to"):
                    ask()
            with closing(RedisStore(server.url, Reach())) as command:
                command.add(lost)
            assert lost in asked.revocations.entries()


def test_what_a_restart_loses_is_said_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        redis_server(tmp_path, "--appendonly", "no") as server,
        caplog.at_level(logging.WARNING),
    ):
        check_quota_store(server.url, Reach())
    assert "quotas.store: a restart of its redis loses it; set append" in caplog.text


def test_what_an_earlier_release_left_is_known(asked: Stores, admin: Any) -> None:
    """Its names are those of today, where there is no cluster."""
    entry, made = secrets.token_bytes(16), int(time.time()) + 2
    admin.flushall()
    admin.incrby(f"sealgate:quota:{(b'a' * 16 + b'rd').hex()}:1", 7)
    admin.set(f"sealgate:replay:{made // 10}:{entry.hex()}", b"12345678", ex=60)
    admin.hset("sealgate:revocations", "version", 7)
    admin.hset("sealgate:monitoring:booked", SCOPE, f"{time.time()!r} 0.25")
    admin.sadd("sealgate:monitoring:scopes", SCOPE)
    assert asked.count() == 2
    asked.replays._begin_at.clear()  # a server that starts
    assert not asked.remember(made, entry)
    with closing(RedisStore(asked.url, Reach())) as started:
        assert started.version() == 7
    assert [item.rho for item in asked.ledger.entries()] == [0.25]
    asked.book()
    asked.label()
    assert asked.counts.scopes() == [SCOPE]
