"""What every store asks of a Redis, whatever kind of place that is."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from contextlib import closing

from security.access.quota_stores import Grant, RedisQuotaStore, Want
from security.access.revocation_stores import RedisStore, Revocation
from security.errors import QuotaStoreError, ReplayStoreError
from security.monitoring.keeping import Presence, RedisCountStore, Segment
from security.monitoring.labels import RedisLabelStore, Room, Spending
from security.monitoring.ledger import Budget, Entry, RedisLedger
from security.sealing.replay import RedisReplayStore
from security.stores.places import Reach
from tests.support.redis_servers import wait_until
from tests.support.servers import ROOT

KEY = b"k" * 32
PASSWORD = "hunter2"
BUDGET = Budget(8.0, 1e-6)
# Refusals that pass: the server is busy, or another one becomes the master.
PASSING = {
    f"redis: {why}" for why in ("TimeoutError", "ConnectionError", "ReadOnlyError")
}
SCOPE = "drift/toy/1.0.0/2026-W48"


def documented(*, cluster: bool = False) -> list[str]:
    """The rules of the user that docs/operations.md has operators set."""
    page = (ROOT / "docs" / "operations.md").read_text()
    lines = re.findall(r"^> ACL SETUSER sealgate (.+)$", page, re.MULTILINE)
    own, more = (line.split() for line in lines)
    assert own[:2] == ["on", ">PASSWORD"]
    return own[2:] + (more if cluster else [])


def as_user(rules: list[str]) -> tuple[str, ...]:
    """Options of a server with this user."""
    return ("--user", "sealgate", "on", f">{PASSWORD}", *rules)


def exercise(url: str, reach: Reach) -> None:
    """Everything once, with several keys at a time; the Redis was empty."""
    wait_until(lambda: are_answered(url, reach))
    revocations(url, reach)
    monitoring(url, reach)


def are_answered(url: str, reach: Reach, *, subjects: int = 8) -> bool:
    """Ask for other subjects; False where a busy machine, or a failover, took too long.

    Raises:
        SealgateError: another refusal.
    """
    try:
        asyncio.run(requests(url, reach, subjects=subjects))
    except (QuotaStoreError, ReplayStoreError) as error:
        if str(error) not in PASSING:
            raise
        return False
    return True


async def requests(url: str, reach: Reach, *, subjects: int) -> None:
    """What requests ask for, of several subjects."""
    quotas = RedisQuotaStore(url, reach, key=KEY)
    replays = RedisReplayStore(url, reach, ttls_s=(260, 3600), share=2)
    try:
        for _ in range(subjects):
            await _take(quotas, secrets.token_bytes(16))
            await _remember(replays, secrets.token_bytes(8))
    finally:
        await quotas.close()
        await replays.close()


async def _take(store: RedisQuotaStore, account: bytes) -> None:
    ends = int(time.time()) + 60
    minute, day = (Want(account + name, 1, ends, 10, 3, 5) for name in (b"rm", b"rd"))
    assert await store.take([minute, day]) == [Grant(5, 5), Grant(5, 5)]
    assert await store.take([minute]) == [Grant(5, 0)]
    assert await store.take([day, minute]) == [Grant(0, 5), Grant(0, 0)]
    assert await store.hold(account + b"s", b"me", slots=3, limit=2, ttl_s=30) == 2


async def _remember(store: RedisReplayStore, owner: bytes) -> None:
    now = int(time.time()) + 100  # a client whose clock is ahead
    entries = [secrets.token_bytes(16) for _ in range(2)]
    for is_new in (True, False):
        for entry in entries:
            assert is_new is await store.insert(
                entry, slot=now // 10, owner=owner, made=now
            )


def revocations(url: str, reach: Reach) -> None:
    """A list is made, changed and read."""
    entry = Revocation("client", "app", revoked_at=5)
    with closing(RedisStore(url, reach)) as store:
        store.new_list()
        store.start()
        store.add(entry)
        assert store.entries() == [entry]
        assert store.is_kept()
        assert store.remove(entry)
        assert store.entries() == []


def monitoring(url: str, reach: Reach) -> None:
    """Counts, labels and a release."""
    ledger = RedisLedger(url, reach)
    counts, labels = RedisCountStore(url, reach), RedisLabelStore(url, reach)
    with closing(ledger), closing(counts), closing(labels):
        ledger.new_ledger()
        ledger.start()
        entry = Entry(SCOPE, time.time(), 0.25)
        ledger.book(entry, BUDGET)
        ledger.publish(Entry(SCOPE, entry.time, 0.25, b"{}"))
        assert [item.record for item in ledger.entries()] == [b"{}"]
        presence = Presence("w", 1, 2)
        counts.put(SCOPE, presence, [Segment(0, b"a"), Segment(1, b"b")])
        counts.put(SCOPE, presence, [Segment(2, b"ab")], replaces=[0, 1])
        assert counts.read(SCOPE) == [(presence, [Segment(2, b"ab")])]
        assert counts.scopes() == [SCOPE]
        counts.drop(SCOPE)
        assert counts.scopes() == []
        room, label = Room(8, 4), Spending(b"t" * 16, b"o" * 8, b"sealed")
        until = time.time() + 100
        assert labels.spend(SCOPE, until, room, [label, label]) == ["accepted", "spent"]
        assert labels.read(SCOPE) == {label.id: b"sealed"}
        labels.drop(SCOPE, time.time())
        assert labels.read(SCOPE) == {}
