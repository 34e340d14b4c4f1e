"""Quotas: the table, the stores, what is charged, and that nothing is ever exceeded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.access.quota_stores import (
    Grant,
    LocalQuotaStore,
    QuotaStore,
    RedisQuotaStore,
    Want,
)
from security.access.quota_table import Limits, QuotaTable, load_quotas, parse_quotas
from security.access.quotas import SLOTS_TTL_S, Quotas, load_quota_counters
from security.access.tokens import Principal
from security.errors import (
    ExtractionBudgetError,
    QuotaError,
    QuotaStoreError,
    SettingsError,
)
from security.settings.quotas import QuotaSettings
from security.stores.places import Reach
from tests.support.redis_servers import RedisServer, losing_answers, redis_server
from tests.support.servers import ROOT, free_port

NOW = 1_800_000_000.0  # the first second of a minute
NONE = Limits(None, None, None, None, None)
KEY = b"k" * 32


def principal(subject: str = "alice", **changes: Any) -> Principal:
    known = Principal(subject, "app", "id", frozenset(), 2_000_000_000, "https://iss")
    return replace(known, **changes)


# The table.


def table(text: str) -> QuotaTable:
    return parse_quotas(text.encode(), where="quotas.toml")


def test_the_table_that_is_delivered() -> None:
    limits = load_quotas(ROOT / "deploy" / "quotas.toml").limits(principal(), "m")
    # Tables that were written before there was an extraction budget have none.
    assert limits == replace(Limits(), answers_per_30_days=2_000_000)


RULES = """
[default]
requests_per_minute = 5

[[rule]]
clients = ["nightly-*", "batch"]
models = ["toy"]
rows_per_day = "unlimited"

[[rule]]
subjects = ["mallory"]
requests_per_minute = 0

[[rule]]
groups = ["staff"]
tenants = ["acme"]
concurrent_requests = 1
"""


@pytest.mark.parametrize(
    ("changes", "model", "expected"),
    [
        ({}, "toy", {}),
        ({"client_id": "nightly-7"}, "toy", {"rows_per_day": None}),
        ({"client_id": "batch"}, "toy", {"rows_per_day": None}),
        ({"client_id": "batch"}, "other", {}),
        ({"client_id": "batch-2"}, "toy", {}),
        ({"subject": "mallory"}, "toy", {"requests_per_minute": 0}),
        ({"subject": "mallory2"}, "toy", {}),
        # The first rule that fits decides.
        ({"subject": "mallory", "client_id": "batch"}, "toy", {"rows_per_day": None}),
        ({"groups": frozenset({"a", "staff"})}, "toy", {}),
        (
            {"groups": frozenset({"a", "staff"}), "tenant": "acme"},
            "toy",
            {"concurrent_requests": 1},
        ),
    ],
)
def test_the_first_rule_that_fits(
    changes: dict[str, Any], model: str, expected: dict[str, Any]
) -> None:
    default = replace(Limits(), requests_per_minute=5)
    found = table(RULES).limits(principal(**changes), model)
    assert found == replace(default, **expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[default]\nrequest_per_minute = 1", "did you mean 'requests_per_minute'?"),
        ("[defaults]", "did you mean 'default'?"),
        ("[default]\nrows_per_day = -1", "[default] rows_per_day: a number of 0"),
        ("[default]\nrows_per_day = 1.5", "[default] rows_per_day: a number of 0"),
        ("[default]\nrows_per_day = true", "[default] rows_per_day: a number of 0"),
        ('[default]\nrows_per_day = "none"', "[default] rows_per_day: a number of 0"),
        ("[default]\nrows_per_day = 10000000000000", "rows_per_day: a number of 0"),
        ("[[rule]]\nmodel = ['x']", "rule 1: unknown key 'model'; did you mean"),
        ("[[rule]]\nmodels = 'x'", "rule 1 models: a list of names"),
        ("[[rule]]\nmodels = []", "rule 1 models: a list of names"),
        ("[[rule]]\nmodels = ['']", "rule 1 models: a list of names"),
        ("[[rule]]\n[[rule]]\nmodels = [1]", "rule 2 models: a list of names"),
        ("rule = 1", "expected [default] and [[rule]]"),
        ("rule = [1]", "rule 1: expected a table"),
        ("[default", "quotas.toml: "),
        ("a = " + "[" * 100_000, "quotas.toml: "),
    ],
)
def test_a_table_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        table(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: no such file"):
        load_quotas(tmp_path / "none.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(SettingsError, match="at most 1048576 allowed"):
        load_quotas(tmp_path / "large.toml")


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_text_is_a_table_or_refused(data: bytes) -> None:
    try:
        parse_quotas(data, where="x")
    except SettingsError:
        return


# What is counted, on one worker.


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> LocalQuotaStore:
    return LocalQuotaStore(tmp_path / "quotas", max_entries=1 << 16, clock=clock)


def quotas(store: QuotaStore, clock: Clock, **limits: int) -> Quotas:
    return Quotas(QuotaTable(replace(NONE, **limits)), store, key=KEY, clock=clock)


async def ask(
    counted: Quotas, rows: int = 0, subject: str = "alice", model: str = "toy"
) -> tuple[tuple[bytes, bytes], ...]:
    """One request, from its start to its answer."""
    ticket = await counted.enter(principal(subject), model)
    try:
        if rows:
            await ticket.charge_rows(rows)
    finally:
        headers = ticket.leave()
    return headers


async def allowed(counted: Quotas, attempts: int, rows: int = 0, **who: str) -> int:
    """How many of some requests, one after the other, were let in."""
    count = 0
    for _ in range(attempts):
        try:
            await ask(counted, rows, **who)
            count += 1
        except QuotaError:
            pass
    return count


@pytest.mark.parametrize("limit", [0, 1, 7, 100])
def test_requests_per_minute(store: QuotaStore, clock: Clock, limit: int) -> None:
    async def main() -> None:
        counted = quotas(store, clock, requests_per_minute=limit)
        assert await allowed(counted, limit + 20) == limit
        with pytest.raises(QuotaError) as caught:
            await ask(counted)
        assert caught.value.policies == ("requests-per-minute",)
        if limit:
            assert caught.value.retry_after_s == 60
        # Others, and other models, have budgets of their own.
        assert await allowed(counted, 3, subject="bob") == min(3, limit)
        assert await allowed(counted, 3, model="other") == min(3, limit)
        clock.now += 59.9
        assert await allowed(counted, 3) == 0
        clock.now += 0.1
        assert await allowed(counted, limit + 20) == limit

    asyncio.run(main())


def test_an_extraction_budget_holds_over_versions_of_what_is_asked(
    store: QuotaStore, clock: Clock
) -> None:
    """Answers and bits: days do not renew it, a spent one has an error of its own."""

    async def main() -> None:
        limits = {"answers_per_30_days": 10, "answer_bits_per_30_days": 100}
        counted = quotas(store, clock, rows_per_day=6, **limits)
        assert await allowed(counted, 9) == 9  # without an input nothing is answered
        assert [await allowed(counted, 9, rows=1)] == [6]
        clock.now += 86_400
        assert [await allowed(counted, 9, rows=1)] == [4]
        with pytest.raises(ExtractionBudgetError) as caught:
            await ask(counted, 1)
        assert caught.value.policies == ("answers-per-30-days",)
        end = (clock.now // (30 * 86_400) + 1) * 30 * 86_400
        assert caught.value.retry_after_s == end - clock.now
        ticket = await counted.enter(principal(), "toy")
        assert ticket.counts_bits
        await ticket.charge_bits(98.2)
        with pytest.raises(ExtractionBudgetError) as caught:
            await ticket.charge_bits(1.5)
        assert caught.value.policies == ("answer-bits-per-30-days",)
        await ticket.charge_bits(1)
        (policy, stands) = (value.decode() for _, value in ticket.leave())
        assert (
            '"answer-bits-per-30-days";q=100;w=2592000;sealgate-unit="bits"' in policy
        )
        assert '"answer-bits-per-30-days";r=0;' in stands
        clock.now = end
        assert await allowed(counted, 9, rows=1) == 6

    asyncio.run(main())


def test_a_worker_that_dies_loses_little_of_a_long_budget(
    store: QuotaStore, clock: Clock
) -> None:
    async def main() -> None:
        budget = {"answers_per_30_days": 96_000}
        for _ in range(3):
            lost = quotas(store, clock, **budget)
            assert await allowed(lost, 40, rows=25) == 40
        stands = dict(await ask(quotas(store, clock, **budget), 1))[b"ratelimit"]
        left = int(stands.decode().split("r=")[1].split(";")[0])
        assert 96_000 - 3 * (1000 + 100) <= left + 1 <= 96_000 - 3 * 1000

    asyncio.run(main())


def test_days_outlast_minutes(store: QuotaStore, clock: Clock) -> None:
    async def main() -> None:
        counted = quotas(store, clock, requests_per_minute=4, requests_per_day=10)
        passed = []
        for _ in range(5):
            passed.append(await allowed(counted, 6))
            clock.now += 60
        assert passed == [4, 4, 2, 0, 0]
        with pytest.raises(QuotaError) as caught:
            await ask(counted)
        assert caught.value.policies == ("requests-per-day",)
        day_end = (clock.now // 86400 + 1) * 86400
        assert caught.value.retry_after_s == day_end - clock.now
        clock.now = day_end
        assert await allowed(counted, 6) == 4

    asyncio.run(main())


def test_rows_are_charged_before_they_are_run(store: QuotaStore, clock: Clock) -> None:
    async def main() -> None:
        counted = quotas(store, clock, rows_per_minute=100, requests_per_minute=1000)
        assert await allowed(counted, 10, rows=30) == 3
        # A smaller request still fits; what was refused cost no rows.
        assert await allowed(counted, 1, rows=10) == 1
        with pytest.raises(QuotaError) as caught:
            await ask(counted, rows=1)
        assert caught.value.policies == ("rows-per-minute",)
        with pytest.raises(QuotaError) as caught:
            await ask(counted, rows=101)
        # It never will: who waited would wait for nothing.
        assert caught.value.retry_after_s is None

    asyncio.run(main())


def test_the_fields_say_where_one_stands(store: QuotaStore, clock: Clock) -> None:
    async def main() -> None:
        counted = quotas(
            store,
            clock,
            requests_per_minute=10,
            rows_per_day=1000,
            concurrent_requests=4,
        )
        clock.now += 15.5
        policy, limit = await ask(counted, rows=5)
        assert policy == (
            b"ratelimit-policy",
            b'"requests-per-minute";q=10;w=60, '
            b'"rows-per-day";q=1000;w=86400;sealgate-unit="rows", '
            b'"concurrent-requests";q=4;qu="concurrent-requests"',
        )
        left = 86400 - int(clock.now) % 86400
        assert limit == (
            b"ratelimit",
            b'"requests-per-minute";r=9;t=45, "rows-per-day";r=995;t=%d' % left,
        )
        assert await allowed(counted, 20) == 9
        with pytest.raises(QuotaError) as caught:
            await ask(counted)
        assert b'"requests-per-minute";r=0;t=45' in caught.value.fields[1][1]
        assert caught.value.retry_after_s == 45
        assert await ask(quotas(store, clock)) == ()

    asyncio.run(main())


def test_requests_in_work(store: QuotaStore, clock: Clock) -> None:
    async def main() -> None:
        counted = quotas(store, clock, concurrent_requests=3)
        tickets = [await counted.enter(principal(), "toy") for _ in range(3)]
        with pytest.raises(QuotaError) as caught:
            await counted.enter(principal(), "toy")
        assert caught.value.policies == ("concurrent-requests",)
        assert caught.value.retry_after_s == 1
        bob = await counted.enter(principal("bob"), "toy")
        tickets.pop().leave()
        tickets.append(await counted.enter(principal(), "toy"))
        for ticket in (*tickets, bob):
            ticket.leave()
        await counted.close()

    asyncio.run(main())


def test_a_refused_request_holds_no_slot(store: QuotaStore, clock: Clock) -> None:
    async def main() -> None:
        counted = quotas(store, clock, concurrent_requests=1, requests_per_minute=2)
        assert await allowed(counted, 10) == 2
        clock.now += 60
        assert await allowed(counted, 10) == 2

    asyncio.run(main())


def test_slots_go_back_to_the_others(store: QuotaStore) -> None:
    """Two workers, real time: what one does not use any more, the other gets."""

    async def main() -> None:
        first, second = (
            quotas(store, time.time, concurrent_requests=8)  # type: ignore[arg-type]
            for _ in range(2)
        )
        held = [await first.enter(principal(), "toy") for _ in range(8)]
        with pytest.raises(QuotaError):
            await second.enter(principal(), "toy")
        for ticket in held:
            ticket.leave()
        deadline = time.monotonic() + 30
        taken = 0
        while taken < 8 and time.monotonic() < deadline:
            try:
                await second.enter(principal(), "toy")
                taken += 1
            except QuotaError:
                await asyncio.sleep(0.05)
        assert taken == 8
        await first.close()

    store._clock = time.time  # type: ignore[attr-defined]
    asyncio.run(main())


def test_slots_of_a_dead_worker_expire(store: QuotaStore, clock: Clock) -> None:
    async def main() -> None:
        dead, alive = (quotas(store, clock, concurrent_requests=2) for _ in range(2))
        for _ in range(2):
            await dead.enter(principal(), "toy")
        with pytest.raises(QuotaError):
            await alive.enter(principal(), "toy")
        clock.now += SLOTS_TTL_S - 0.1
        with pytest.raises(QuotaError):
            await alive.enter(principal(), "toy")
        clock.now += 0.2
        for _ in range(2):
            await alive.enter(principal(), "toy")
        # It was only slow: its slots are gone, and it knows.
        with pytest.raises(QuotaError):
            await dead.enter(principal(), "toy")

    asyncio.run(main())


def test_slots_of_a_long_request_are_renewed(store: QuotaStore, clock: Clock) -> None:
    async def main() -> None:
        first, second = (quotas(store, clock, concurrent_requests=1) for _ in range(2))
        ticket = await first.enter(principal(), "toy")
        account = next(iter(first._accounts.values()))
        for _ in range(3):
            clock.now += SLOTS_TTL_S * 0.6
            until = account.held_until
            for _ in range(600):
                if account.held_until > until:
                    break
                await asyncio.sleep(0.05)
            with pytest.raises(QuotaError):
                await second.enter(principal(), "toy")
        ticket.leave()
        await first.close()

    asyncio.run(main())


# Several workers.

LIMIT = 500


def _worker(folder: Path, number: int) -> tuple[int, int]:
    """Requests and rows that one process was let in with, until all are refused."""
    # All begin together, however long it takes to start them.
    (folder / f"ready-{number}").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.glob("ready-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)

    async def main() -> tuple[int, int]:
        store = LocalQuotaStore(folder, max_entries=1 << 16, clock=lambda: NOW)
        limits = replace(NONE, requests_per_minute=LIMIT, rows_per_day=10 * LIMIT)
        counted = Quotas(QuotaTable(limits), store, key=KEY, clock=lambda: NOW)
        requests = rows = refused = 0
        while refused < 50 and time.monotonic() < deadline:
            try:
                ticket = await counted.enter(principal(), "toy")
            except QuotaError:
                refused += 1
                continue
            except QuotaStoreError:  # busy for too long: a refusal that costs nothing
                continue
            requests += 1
            try:
                await ticket.charge_rows(13)
                rows += 13
            except QuotaError:
                refused += 1
            except QuotaStoreError:
                pass
            finally:
                ticket.leave()
            await asyncio.sleep(0.0005)
        return requests, rows

    return asyncio.run(main())


def test_workers_together_never_exceed_a_budget(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        answers = pool.starmap(_worker, [(tmp_path, number) for number in range(3)])
    requests, rows = (sum(column) for column in zip(*answers))
    # What is missing is what workers reserved and did not use: at most a block each.
    assert LIMIT - 3 * (LIMIT // 32) <= requests <= LIMIT
    assert rows <= 10 * LIMIT


def test_a_restart_forgets_nothing(tmp_path: Path, clock: Clock) -> None:
    async def main(attempts: int) -> int:
        store = LocalQuotaStore(tmp_path, max_entries=1 << 16)
        counted = quotas(store, clock, requests_per_day=64)
        return await allowed(counted, attempts)

    # Without a word of farewell: at most a block of 2 is lost each time.
    passed = [asyncio.run(main(20)) for _ in range(5)]
    assert passed[:2] == [20, 20]
    assert 64 - 2 * 5 <= sum(passed) <= 64


# What a turn of the event loop charges without waiting.


def test_a_file_is_asked_at_once(store: QuotaStore, clock: Clock) -> None:
    """Slots and budgets that were not reserved are, within the limits."""

    async def main() -> None:
        limits = {"concurrent_requests": 5, "requests_per_minute": 7}
        counted = quotas(store, clock, rows_per_minute=100, **limits)
        given = [counted.enter_at_once(principal(), "toy") for _ in range(6)]
        tickets = [ticket for ticket in given if ticket is not None]
        assert len(tickets) == 5
        assert given[-1] is None  # and `enter` says why
        with pytest.raises(QuotaError, match="concurrent-requests"):
            await counted.enter(principal(), "toy")
        assert tickets[0].charge_at_once(99)
        assert not tickets[1].charge_at_once(2)
        assert tickets[1].charge_at_once(1)
        for ticket in tickets:
            ticket.leave()
        # Nobody who was refused has paid: two of seven are left.
        left = [counted.enter_at_once(principal(), "toy") for _ in range(3)]
        assert [ticket is not None for ticket in left] == [True, True, False]
        with pytest.raises(QuotaError, match="requests-per-minute"):
            await counted.enter(principal(), "toy")
        await counted.close()

    asyncio.run(main())


def test_nobody_overtakes_who_asks_the_store(tmp_path: Path, clock: Clock) -> None:
    async def main() -> None:
        store = LocalQuotaStore(tmp_path, max_entries=1 << 16, clock=clock)
        counted = quotas(store, clock, concurrent_requests=8)
        account = counted._account(principal(), "toy")
        async with account.lock:
            assert counted.enter_at_once(principal(), "toy") is None
        assert counted.enter_at_once(principal(), "toy") is not None

    asyncio.run(main())


def test_a_broken_file_is_left_to_who_may_wait(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    broken = LocalQuotaStore(tmp_path / "file", max_entries=100)

    async def main() -> None:
        counted = quotas(broken, clock, concurrent_requests=8)
        assert counted.enter_at_once(principal(), "toy") is None
        with pytest.raises(QuotaStoreError):
            await counted.enter(principal(), "toy")

    asyncio.run(main())


def test_a_locked_file_is_waited_for_once(tmp_path: Path, clock: Clock) -> None:
    """Each wait holds up the event loop, so a turn does not add one to each request."""
    store = LocalQuotaStore(tmp_path, max_entries=100, clock=clock)

    async def main() -> None:
        counted = quotas(store, clock, concurrent_requests=8)
        ticket = await counted.enter(principal(), "other")
        with contextlib.closing(sqlite3.connect(tmp_path / "quotas.sqlite")) as other:
            other.execute("BEGIN IMMEDIATE")
            assert counted.enter_at_once(principal(), "toy") is None
            began = time.monotonic()
            for _ in range(100):
                assert counted.enter_at_once(principal(), "toy") is None
            assert time.monotonic() - began < 10  # and not 25: no file was asked
            with pytest.raises(QuotaStoreError):
                await counted.enter(principal(), "toy")
        clock.now += 2
        found = counted.enter_at_once(principal(), "toy")
        assert found is not None
        for one in (found, ticket):
            one.leave()
        await counted.close()

    asyncio.run(main())


def test_slots_that_a_turn_lacks_are_held_soon(tmp_path: Path, clock: Clock) -> None:
    """Where the store has to be waited for: four at once, and one slot is held."""

    async def main() -> None:
        slow = Slow(tmp_path, max_entries=1 << 16, clock=clock)
        counted = quotas(slow, clock, concurrent_requests=64)
        (await counted.enter(principal(), "toy")).leave()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            given = [counted.enter_at_once(principal(), "toy") for _ in range(4)]
            for ticket in given:
                if ticket is not None:
                    ticket.leave()
            if None not in given:
                break
            await asyncio.sleep(0.02)
        assert None not in given
        await counted.close()

    asyncio.run(main())


class Slow(LocalQuotaStore):
    """A store that takes its time, as one at the end of a network does."""

    answers_at_once = False

    async def take(self, wants: Any) -> list[Grant]:
        await asyncio.sleep(0.001)
        return await super().take(wants)

    async def hold(self, *values: Any, **more: Any) -> int:
        await asyncio.sleep(0.001)
        return await super().hold(*values, **more)


def test_tasks_together_never_exceed_a_budget(tmp_path: Path, clock: Clock) -> None:
    slow = Slow(tmp_path, max_entries=1 << 16, clock=clock)
    working = most = 0

    async def one(counted: Quotas) -> int:
        nonlocal working, most
        try:
            ticket = await counted.enter(principal(), "toy")
        except QuotaError as error:
            return -1 if error.policies == ("concurrent-requests",) else 0
        working += 1
        most = max(most, working)
        await asyncio.sleep(0.001)
        working -= 1
        ticket.leave()
        return 1

    async def main() -> list[int]:
        counted = quotas(slow, clock, requests_per_minute=90, concurrent_requests=10)
        results: list[int] = []
        for _ in range(40):
            results += await asyncio.gather(*(one(counted) for _ in range(12)))
        return results

    results = asyncio.run(main())
    assert results.count(1) == 90
    assert 1 <= most <= 10
    assert results.count(-1) > 0


# Failures.


def test_a_store_that_cannot_be_asked(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("")
    broken = LocalQuotaStore(tmp_path / "file", max_entries=100)
    limits = QuotaTable(replace(NONE, requests_per_minute=5, concurrent_requests=2))

    async def main() -> None:
        with pytest.raises(QuotaStoreError):
            await ask(Quotas(limits, broken, key=KEY, clock=clock))
        lax = Quotas(limits, broken, key=KEY, clock=clock, serve_uncounted=True)
        for _ in range(10):
            assert await ask(lax, rows=3) == ()

    asyncio.run(main())


class Late(LocalQuotaStore):
    """Cannot be asked, and says so after a while."""

    asked = 0

    async def take(self, wants: Any) -> list[Grant]:
        self.asked += 1
        await asyncio.sleep(0.2)
        raise QuotaStoreError("away")


def test_who_waits_is_refused_with_who_asks(tmp_path: Path, clock: Clock) -> None:
    """One subject's requests ask in turn: their waiting must not add up."""
    store = Late(tmp_path, max_entries=100, clock=clock)
    counted = quotas(store, clock, requests_per_minute=90)

    async def main() -> None:
        entered = [counted.enter(principal(), "m") for _ in range(10)]
        outcomes = await asyncio.gather(*entered, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {QuotaStoreError}
        assert store.asked == 1
        with pytest.raises(QuotaStoreError, match="away"):
            await counted.enter(principal(), "m")
        assert store.asked == 2

    asyncio.run(main())


def test_a_store_that_comes_back(tmp_path: Path, clock: Clock) -> None:
    store = LocalQuotaStore(tmp_path, max_entries=1 << 16, clock=clock)
    counted = quotas(store, clock, requests_per_minute=5, concurrent_requests=2)
    other = LocalQuotaStore(tmp_path, max_entries=1 << 16)

    async def main() -> None:
        await ask(counted)
        with other._file.transaction(), pytest.raises(QuotaStoreError, match="locked"):
            await ask(counted, model="other")
        await ask(counted, model="other")

    asyncio.run(main())


def test_the_store_is_its_owners_and_bounded(tmp_path: Path) -> None:
    small = LocalQuotaStore(tmp_path / "q", max_entries=100)

    async def fill() -> int:
        for count in range(20_000):
            want = Want(os.urandom(16) + b"rd", 1, 0, 10, 1, 1)
            try:
                await small.take([want])
            except QuotaStoreError as error:
                assert "full" in str(error)  # noqa: PT017
                return count
        return -1

    assert 100 <= asyncio.run(fill()) < 5000
    (path,) = (tmp_path / "q").glob("*.sqlite")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    # What is over makes room again.
    small.forget(now=1000)
    want = Want(b"x" * 18, 1, 0, 10, 1, 1)
    assert asyncio.run(small.take([want])) == [Grant(1, 9)]


def test_no_name_is_in_the_store(tmp_path: Path, clock: Clock) -> None:
    store = LocalQuotaStore(tmp_path, max_entries=1 << 16)
    counted = quotas(store, clock, requests_per_minute=5)
    asyncio.run(ask(counted, subject="alice@example.org", model="breast-cancer"))
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for name in (b"alice", b"breast-cancer", b"https://iss"):
        assert name not in content


def test_accounts_are_bounded(
    store: QuotaStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from security.access import quotas as module

    monkeypatch.setattr(module, "MAX_ACCOUNTS", 10)

    async def main() -> None:
        counted = quotas(store, clock, requests_per_minute=2)
        for number in range(50):
            await ask(counted, subject=str(number))
        assert len(counted._accounts) <= 10
        # Nobody gets more by being forgotten.
        assert await allowed(counted, 5, subject="0") == 1

    asyncio.run(main())


# Redis.


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis: RedisServer) -> str:
    return redis.url


@pytest.mark.parametrize("limit", [1, 100])
def test_hosts_share_a_redis(redis_url: str, limit: int) -> None:
    clock = Clock(time.time())

    async def main() -> None:
        stores = [RedisQuotaStore(redis_url, Reach(), key=KEY) for _ in range(2)]
        hosts = [
            quotas(store, clock, requests_per_minute=limit, rows_per_day=1000)
            for store in stores
        ]
        who = {"subject": f"shared-{limit}"}
        passed = await asyncio.gather(
            *(allowed(host, limit + 50, rows=1, **who) for host in hosts)
        )
        assert limit * (1 - 2 / 32) <= sum(passed) <= limit
        clock.now += 60
        assert await allowed(hosts[0], 1, **who) == 1
        for store in stores:
            await store.close()

    asyncio.run(main())


def test_redis_refuses_all_or_nothing(redis_url: str) -> None:
    async def main() -> None:
        store = RedisQuotaStore(redis_url, Reach(), key=KEY)
        ends = int(time.time()) + 60
        small, large = (
            Want(b"a" * 16 + name, 1, ends, limit, 3, 5)
            for name, limit in ((b"s", 4), (b"l", 100))
        )
        assert await store.take([small, large]) == [Grant(4, 0), Grant(5, 95)]
        assert await store.take([large, small]) == [Grant(0, 95), Grant(0, 0)]
        assert await store.take([large]) == [Grant(5, 90)]
        (key,) = await store._redis.client.keys(
            f"sealgate:quota:{(b'a' * 16 + b'l').hex()}*"
        )
        assert 60 <= await store._redis.client.ttl(key) <= 125
        await store.close()

    asyncio.run(main())


def test_redis_holds_slots_for_a_time(redis_url: str) -> None:
    async def main() -> None:
        store = RedisQuotaStore(redis_url, Reach(), key=KEY)

        async def hold(holder: bytes, slots: int, ttl_s: float = 30) -> int:
            return await store.hold(b"slots", holder, slots=slots, limit=4, ttl_s=ttl_s)

        assert await hold(b"a", 3) == 3
        assert await hold(b"b", 3) == 1
        assert await hold(b"a", 1) == 1
        assert await hold(b"b", 3, ttl_s=0.05) == 3
        for _ in range(600):
            if await hold(b"a", 4) == 4:
                break
            await asyncio.sleep(0.05)
        assert await hold(b"a", 4) == 4
        assert await hold(b"a", 0) == 0
        await store.close()

    asyncio.run(main())


def test_a_repetition_is_charged_once(redis: RedisServer) -> None:
    """The client sends again what was done when the wire broke."""

    async def main(url: str) -> list[Grant]:
        store = RedisQuotaStore(url, Reach(), key=KEY)
        ends = int(time.time()) + 60
        try:
            first = await store.take([Want(b"repeated", 1, ends, 10, 3, 3)])
            return first + await store.take([Want(b"repeated", 1, ends, 10, 3, 3)])
        finally:
            await store.close()

    with losing_answers(redis.port, b"repeated".hex().encode()) as (url, lost):
        assert asyncio.run(main(url)) == [Grant(3, 7), Grant(3, 4)]
    assert len(lost) == 1


def test_machines_with_other_keys_would_count_apart(redis_url: str) -> None:
    async def main() -> None:
        first = RedisQuotaStore(redis_url, Reach(), key=KEY)
        want = Want(b"x", 1, int(time.time()) + 60, 1, 1, 1)
        await first.take([want])
        await first.close()
        other = RedisQuotaStore(redis_url, Reach(), key=b"another")
        with pytest.raises(QuotaStoreError, match="counts with another key"):
            await other.take([want])
        await other.close()

    asyncio.run(main())


def test_a_redis_that_is_away() -> None:
    pytest.importorskip("redis", reason="the redis package is not installed")
    url = f"redis://user:secret@127.0.0.1:{free_port()}/0"
    away = RedisQuotaStore(url, Reach(), key=KEY)
    assert "secret" not in repr(away)

    async def main() -> None:
        counted = quotas(away, Clock(), requests_per_minute=1)
        with pytest.raises(QuotaStoreError, match=r"^redis: ConnectionError$"):
            await ask(counted)
        await away.close()

    asyncio.run(main())


# Settings.


def test_the_settings_choose_the_store(tmp_path: Path) -> None:
    chosen = QuotaSettings(
        table=ROOT / "deploy" / "quotas.toml", directory=tmp_path / "q"
    )
    local = load_quota_counters(chosen, key=KEY)
    assert isinstance(local._store, LocalQuotaStore)
    pytest.importorskip("redis", reason="the redis package is not installed")
    remote = load_quota_counters(
        replace(chosen, store="redis://127.0.0.1:1/0"), key=KEY
    )
    assert isinstance(remote._store, RedisQuotaStore)
    with pytest.raises(QuotaStoreError, match="not a Redis URL"):
        load_quota_counters(replace(chosen, store="redis://host:port/0"), key=KEY)


def test_every_limit_is_documented() -> None:
    page = (ROOT / "docs" / "quotas.md").read_text()
    delivered = (ROOT / "deploy" / "quotas.toml").read_text()
    for item in fields(Limits):
        assert f"`{item.name}`" in page
        assert item.name in delivered
    assert json.dumps("unlimited") in page
