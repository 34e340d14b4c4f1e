"""Each sealed request once: the stores, and the window of dates."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from security.errors import (
    DateError,
    QuotaError,
    ReplayError,
    ReplayStoreError,
)
from security.sealing.freshness import Freshness, http_date, load_freshness
from security.sealing.replay import LocalReplayStore, RedisReplayStore, fingerprint
from security.settings.sealing import SealingSettings
from security.stores.places import Reach
from tests.support.patience import in_time, once
from tests.support.redis_servers import RedisServer, losing_answers, redis_server
from tests.support.servers import free_port

NOW = 1_800_000_000.0
KEY = b"k" * 32
OWNER = b"somebody"


def insert(store: LocalReplayStore | RedisReplayStore, *entries: bytes, slot: int = 7):
    async def all_of_them() -> list[bool]:
        try:
            return [
                await store.insert(entry, slot=slot, owner=OWNER) for entry in entries
            ]
        finally:
            if isinstance(store, RedisReplayStore):
                await store.close()

    return asyncio.run(all_of_them())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalReplayStore]:
    local = LocalReplayStore(tmp_path / "replay", max_entries=1 << 16, share=1 << 14)
    yield local
    local.close()


def test_an_entry_is_new_once(store: LocalReplayStore) -> None:
    a, b = fingerprint(b"a"), fingerprint(b"b")
    assert insert(store, a, b, a, b) == [True, True, False, False]
    assert insert(store, a, slot=8) == [True]
    store.close()
    assert insert(store, a) == [False]


def together(store: LocalReplayStore, *entries: bytes) -> list[object]:
    """Insert in one turn of an event loop."""

    async def all_of_them() -> list[object]:
        inserts = (store.insert(entry, slot=7, owner=OWNER) for entry in entries)
        return await asyncio.gather(*inserts, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_of_copies_in_one_turn_one_is_new(store: LocalReplayStore) -> None:
    assert together(store, b"a", b"b", b"a", b"c", b"b") == [
        *(True, True, False, True, False)
    ]
    store.close()
    assert together(store, b"d", b"c", b"a") == [True, False, False]


def test_a_turn_that_cannot_be_stored_is_refused_whole(
    store: LocalReplayStore,
) -> None:
    insert(store, b"x")
    other = LocalReplayStore(store._folder, max_entries=1 << 16, share=1 << 14)
    other._file.execute("BEGIN IMMEDIATE")
    refused = together(store, b"a", b"b", b"c")
    assert [type(error) for error in refused] == [ReplayStoreError] * 3
    assert len({id(error) for error in refused}) == 3
    other._file.execute("ROLLBACK")
    other.close()
    assert together(store, b"a", b"b", b"x") == [True, True, False]


def test_a_full_store_remembers_nothing_of_a_turn_that_it_refuses(
    tmp_path: Path,
) -> None:
    small = LocalReplayStore(tmp_path, max_entries=100, share=1 << 14)
    answers: list[object] = []
    while not any(isinstance(answer, ReplayStoreError) for answer in answers):
        turn = [os.urandom(16) for _ in range(50)]
        answers = together(small, *turn)
    assert all(isinstance(answer, ReplayStoreError) for answer in answers)
    small.forget(before_slot=8, drop=[])
    assert together(small, *turn[:8]) == [True] * 8
    small.close()


def test_who_gives_up_takes_nobody_with_it(store: LocalReplayStore) -> None:
    async def three() -> list[object]:
        tasks = [
            asyncio.create_task(store.insert(entry, slot=7, owner=OWNER))
            for entry in (b"a", b"b", b"c")
        ]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, given_up, last = asyncio.run(three())
    assert (first, last) == (True, True)
    assert isinstance(given_up, asyncio.CancelledError)


def test_forgetting(store: LocalReplayStore) -> None:
    for slot in (-2, -1, 0, 5, 6, 7):
        insert(store, b"x", slot=slot)
    store.forget(before_slot=6, drop=[-1])
    kept = {slot: not insert(store, b"x", slot=slot)[0] for slot in (-2, -1, 0, 5, 6)}
    assert kept == {-2: True, -1: False, 0: False, 5: False, 6: True}
    store.forget(before_slot=0, drop=[-2])
    assert insert(store, b"x", slot=-2) == [True]


def test_the_file_is_its_owners(store: LocalReplayStore) -> None:
    insert(store, b"x")
    (path,) = store._folder.glob("*.sqlite")
    assert path.stat().st_mode & 0o777 == 0o600
    assert store._folder.stat().st_mode & 0o777 == 0o700


def test_files_of_other_boots_go(store: LocalReplayStore) -> None:
    store._folder.mkdir()
    old = store._folder / "replay-0ld.sqlite"
    old.write_text("torn")
    insert(store, b"x")
    assert not old.exists()


def test_full_means_unknown(tmp_path: Path) -> None:
    small = LocalReplayStore(tmp_path, max_entries=100, share=1 << 14)

    async def fill() -> int:
        for count in range(10_000):
            try:
                await small.insert(os.urandom(16), slot=1, owner=OWNER)
            except ReplayStoreError as error:
                assert "full" in str(error)  # noqa: PT017
                return count
        return -1

    assert 100 <= asyncio.run(fill()) < 4000
    # Forgetting makes room again.
    small.forget(before_slot=2, drop=[])
    assert insert(small, b"x") == [True]
    small.close()


@pytest.mark.parametrize("together", [False, True])
def test_a_subject_has_its_share_and_no_more(tmp_path: Path, *, together: bool) -> None:
    """Two workers: one subject fills its share of both, and nobody else's."""
    workers = [
        LocalReplayStore(tmp_path, max_entries=1 << 16, share=2000) for _ in range(2)
    ]

    async def attempt(number: int, owner: bytes) -> bool:
        store = workers[number % 2]
        try:
            return await store.insert(os.urandom(16), slot=number % 26, owner=owner)
        except QuotaError:
            return False

    async def fill(owner: bytes) -> int:
        tasks = (attempt(number, owner) for number in range(4000))
        if together:
            return sum(await asyncio.gather(*tasks))
        return sum([await task for task in tasks])

    async def main() -> None:
        # What two workers reserve of 26 slots, seven at a time, may stay unused.
        assert 2000 - 2 * 26 * 7 <= await fill(b"greedy") <= 2000
        assert await attempt(0, b"modest")
        for worker in workers:
            worker.forget(before_slot=20, drop=())
        assert 0 < await fill(b"greedy") <= 2000 * 20 // 26 + 2 * 26 * 7

    asyncio.run(main())
    for worker in workers:
        worker.close()


def test_a_replay_takes_nothing_of_a_share(tmp_path: Path) -> None:
    store = LocalReplayStore(tmp_path, max_entries=1 << 16, share=2)
    assert insert(store, *[b"x"] * 5, b"y") == [True, *[False] * 4, True]
    with pytest.raises(QuotaError):
        insert(store, b"z")
    store.close()


def test_a_store_that_cannot_be_opened_or_is_torn(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = LocalReplayStore(tmp_path / "file", max_entries=100, share=1 << 14)
    with pytest.raises(ReplayStoreError):
        insert(blocked, b"x")
    torn = LocalReplayStore(tmp_path, max_entries=100, share=1 << 14)
    torn._file.path.write_bytes(b"this is not a database" * 500)
    with pytest.raises(ReplayStoreError, match="not a database"):
        insert(torn, b"x")


def test_a_store_that_is_locked_is_not_waited_for_long(
    store: LocalReplayStore,
) -> None:
    insert(store, b"x")
    other = LocalReplayStore(store._folder, max_entries=1 << 16, share=1 << 14)
    other._file.execute("BEGIN IMMEDIATE")

    def scene() -> None:
        started = time.monotonic()
        with pytest.raises(ReplayStoreError, match="locked"):
            insert(store, b"y")
        in_time(started, 2)

    once(scene)
    other._file.execute("ROLLBACK")
    other.close()
    assert insert(store, b"y") == [True]


def _race(folder: Path, entries: list[bytes]) -> list[bool]:
    return insert(
        LocalReplayStore(folder, max_entries=1 << 16, share=1 << 14), *entries
    )


def test_of_copies_at_several_workers_one_is_new(tmp_path: Path) -> None:
    entries = [fingerprint(bytes([i])) for i in range(200)]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        answers = pool.starmap(_race, [(tmp_path, entries)] * 3)
    assert [sum(new) for new in zip(*answers)] == [1] * 200


def test_inserting_is_cheap(store: LocalReplayStore) -> None:
    def scene() -> None:
        entries = [os.urandom(16) for _ in range(5000)]
        started = time.process_time()
        insert(store, *entries)
        # 12 µs where it was measured; the bound is for a loaded machine.
        in_time(started, 5000 * 100e-6, now=time.process_time())

    once(scene)


# Redis.


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis: RedisServer) -> str:
    return redis.url


def redis_store(url: str, *, share: int = 1000) -> RedisReplayStore:
    return RedisReplayStore(url, Reach(), ttls_s=(260, 3600), share=share)


def test_redis_remembers_for_all(redis_url: str) -> None:
    assert insert(redis_store(redis_url), b"a", b"b", b"a") == [True, True, False]
    assert insert(redis_store(redis_url), b"a", slot=-1) == [True]
    assert insert(redis_store(redis_url), b"b") == [False]


def test_redis_entries_expire(redis_url: str) -> None:
    async def ttl(slot: int) -> int:
        store = redis_store(redis_url)
        await store.insert(b"ttl", slot=slot, owner=OWNER)
        (key,) = await store._redis.client.keys(
            f"sealgate:replay:{slot}:{b'ttl'.hex()}"
        )
        seconds = await store._redis.client.ttl(key)
        await store.close()
        return seconds

    assert 250 <= asyncio.run(ttl(9)) <= 260
    assert 3590 <= asyncio.run(ttl(-9)) <= 3600


def test_a_repetition_is_no_replay(redis: RedisServer) -> None:
    """The client sends again what was done when the wire broke."""
    with losing_answers(redis.port, b"once".hex().encode()) as (url, lost):
        assert insert(redis_store(url), b"once", b"once") == [True, False]
    assert len(lost) == 1


def test_a_subject_has_its_share_of_redis(redis_url: str) -> None:
    store = redis_store(redis_url, share=3)

    async def fill() -> list[bool]:
        async def new(owner: bytes) -> bool:
            return await store.insert(os.urandom(16), slot=7, owner=owner)

        try:
            assert all([await new(b"greedy") for _ in range(3)])
            with pytest.raises(QuotaError):
                await new(b"greedy")
            return [await new(b"modest") for _ in range(3)]
        finally:
            await store.close()

    assert asyncio.run(fill()) == [True] * 3


def test_a_redis_that_is_away_fails_closed() -> None:
    pytest.importorskip("redis", reason="the redis package is not installed")
    with pytest.raises(ReplayStoreError, match="redis: ConnectionError"):
        insert(redis_store(f"redis://127.0.0.1:{free_port()}/0"), b"x")


# Dates.


def fresh(store: LocalReplayStore, *, require: bool = True) -> Freshness:
    return Freshness(
        store, key=KEY, window_s=120, require_date=require, clock=lambda: NOW
    )


def check(
    freshness: Freshness, *dates: bytes, enc: bytes = b"enc", key_id: int = 1
) -> None:
    headers = tuple((b"date", date) for date in dates)
    unseen = freshness.check(headers, enc, key_id=key_id, live_ids=(1, 2))
    asyncio.run(unseen("issuer\0alice"))


@pytest.mark.parametrize("offset", [-120, -119, 0, 120])
def test_dates_in_the_window_pass_once(store: LocalReplayStore, offset: int) -> None:
    date = http_date(NOW + offset)
    check(fresh(store), date)
    with pytest.raises(ReplayError):
        check(fresh(store), date)


OUTSIDE = {
    "stale": [http_date(NOW - 121)],
    "future": [http_date(NOW + 121)],
    "long ago": [b"Sun, 06 Nov 1994 08:49:37 GMT"],
    "none": [],
    "empty": [b""],
    "twice": [http_date(NOW)] * 2,
    "seconds": [b"%d" % NOW],
    "RFC 850": [b"Sunday, 06-Nov-94 08:49:37 GMT"],
    "asctime": [b"Sun Nov  6 08:49:37 1994"],
    "another zone": [http_date(NOW).replace(b"GMT", b"UTC")],
    "a day that is none": [b"Sun, 31 Feb 2027 08:49:37 GMT"],
    "an hour that is none": [b"Sun, 06 Nov 2026 24:00:00 GMT"],
    "year 0": [b"Sun, 06 Nov 0000 08:49:37 GMT"],
    "a space behind": [http_date(NOW) + b" "],
    "huge": [b"9" * 10_000],
}


@pytest.mark.parametrize("dates", OUTSIDE.values(), ids=OUTSIDE)
def test_dates_outside(store: LocalReplayStore, dates: list[bytes]) -> None:
    with pytest.raises(DateError):
        check(fresh(store), *dates)
    if dates:
        with pytest.raises(DateError):
            check(fresh(store, require=False), *dates)


def test_without_a_date_where_that_is_allowed(store: LocalReplayStore) -> None:
    freshness = fresh(store, require=False)
    check(freshness)
    check(freshness, key_id=2)
    with pytest.raises(ReplayError):
        check(freshness)


def test_entries_live_as_long_as_their_copies_could_pass(
    store: LocalReplayStore,
) -> None:
    times = [NOW]
    freshness = Freshness(
        store,
        key=KEY,
        window_s=120,
        require_date=False,
        clock=lambda: times[0],
        monotonic=lambda: times[0],
    )
    date = http_date(NOW + 120)
    check(freshness, date)
    check(freshness, enc=b"undated")
    for _ in range(24):
        times[0] += 10
        with pytest.raises(ReplayError):
            check(freshness, date)
    times[0] += 1
    with pytest.raises(DateError):
        check(freshness, date)
    times[0] += 100_000
    with pytest.raises(ReplayError):
        check(freshness, enc=b"undated")
    count = store._file.execute("SELECT count(*) FROM seen").fetchone()
    assert count == (1,)


def test_undated_entries_go_some_time_after_their_key(
    store: LocalReplayStore,
) -> None:
    times = [NOW]
    freshness = Freshness(
        store,
        key=KEY,
        window_s=120,
        require_date=False,
        clock=lambda: times[0],
        monotonic=lambda: times[0],
    )

    def undated(enc: bytes, *live: int) -> None:
        unseen = freshness.check((), enc, key_id=live[0], live_ids=live)
        asyncio.run(unseen("issuer\0alice"))

    undated(b"a", 1)
    for offset, kept in ((10, True), (20, True), (40, False)):
        times[0] = NOW + offset
        undated(b"%d" % offset, 2)
        count = store._file.execute(
            "SELECT count(*) FROM seen WHERE slot = -2"
        ).fetchone()
        assert count == (int(kept),)


def test_a_refused_date_is_not_remembered(store: LocalReplayStore) -> None:
    with pytest.raises(DateError):
        check(fresh(store), http_date(NOW - 500))
    check(fresh(store), http_date(NOW))


def test_the_settings_choose_the_store(tmp_path: Path) -> None:
    local = SealingSettings(replay_directory=tmp_path)
    assert isinstance(load_freshness(local, key=KEY)._store, LocalReplayStore)
    make: Callable[[str], SealingSettings] = lambda u: SealingSettings(replay_store=u)  # noqa: E731
    pytest.importorskip("redis", reason="the redis package is not installed")
    stored = load_freshness(make("redis://user:secret@127.0.0.1:1/0"), key=KEY)._store
    assert isinstance(stored, RedisReplayStore)
    assert "secret" not in repr(stored)
    with pytest.raises(ReplayStoreError, match="not a Redis URL"):
        load_freshness(make("redis://127.0.0.1:port/0"), key=KEY)
