"""Quotas: what each subject may ask of each model, so that extraction has a price.

Per subject and model there are up to seven budgets: requests and rows, each in a minute
and in a day (UTC, by the clock), requests in work, and the extraction budget: answers
and their bits in 30 days. Charged is, in this order:

1. one slot of the requests in work, until the request is answered;
2. one request of the minute and of the day, before anything else is done for it: a
   request that is refused later, for bad input say, has cost it;
3. the rows of its input, all of them, before they are run, as rows and as answers;
4. the bits of its answer, all of them, before any leaves.

A request that is refused for a quota costs nothing of that step.

What a worker takes from the store it has reserved: budgets are never exceeded, over all
workers and hosts. The price is slack. A worker may hold back a block, at most a 32nd of
a budget, or of a day's share of it, that others could have used, until the window ends;
if it dies, its block is spent. Slots that it needed within the last tenth of a second
it still holds, and a quarter of all for a second; those of a dead worker are free after
`SLOTS_TTL_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from security.access.quota_accounts import Account, Headers, Meter
from security.access.quota_stores import (
    LocalQuotaStore,
    QuotaStore,
    RedisQuotaStore,
)
from security.access.quota_table import QuotaTable, load_quotas
from security.access.tokens import Principal
from security.errors import (
    ExtractionBudgetError,
    QuotaError,
    QuotaStoreError,
    SettingsError,
)
from security.settings.quotas import QuotaSettings

__all__ = ["Quotas", "Ticket", "load_quota_counters"]

_log = logging.getLogger(__name__)

IDLE_PART = 4  # of the slots is held idle at most
IDLE_S = 1.0
SWEEP_S = 0.1
SLOTS_TTL_S = 30.0
SLOTS_RETRY_S = 1
STORE_RETRY_S = 1.0
FORGET_S = 60.0
COMPLAIN_S = 60.0
MAX_ACCOUNTS = 1 << 14

_T = TypeVar("_T")


class Ticket:
    """A request that was let in; give it back when it is answered."""

    __slots__ = ("_account", "_quotas")

    def __init__(self, quotas: Quotas, account: Account | None) -> None:
        self._quotas = quotas
        self._account = account

    async def charge_rows(self, rows: int) -> None:
        """Charge rows, before they are run: each will be an answer.

        Raises:
            QuotaError: too many; none is charged.
            QuotaStoreError: the store cannot be asked.
        """
        if self._account is not None:
            await self._quotas.charge(self._account, self._account.rows, rows)

    def charge_at_once(self, rows: int) -> bool:
        """As `charge_rows`; False if that has to be waited for, or is refused.

        Or if the answer's bits will be charged, too. Then nothing is charged.
        """
        account = self._account
        return (
            account is not None
            and not account.bits
            and self._quotas.charge_at_once(account, account.rows, rows)
        )

    @property
    def counts_bits(self) -> bool:
        """Whether the bits of answers are counted."""
        return self._account is not None and bool(self._account.bits)

    async def charge_bits(self, bits: float) -> None:
        """Charge what an answer tells, before it leaves.

        Raises:
            ExtractionBudgetError: too much; none is charged, and nothing may leave.
            QuotaStoreError: the store cannot be asked.
        """
        if self._account is not None:
            amount = math.ceil(bits)
            await self._quotas.charge(self._account, self._account.bits, amount)

    def leave(self) -> Headers:
        """Free the slot; returns the fields to send with the answer."""
        account, self._account = self._account, None
        return () if account is None else self._quotas.leave(account)


class Quotas:
    """Counts requests against a table, through a store that others share."""

    def __init__(
        self,
        table: QuotaTable,
        store: QuotaStore,
        *,
        key: bytes,
        serve_uncounted: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Wire it; nothing is asked yet.

        Args:
            table: the limits.
            store: shared by all who count the same.
            key: of the names that subjects have in the store.
            serve_uncounted: let requests pass while the store cannot be asked.
            clock: Unix seconds.
        """
        self._table = table
        self._store = store
        self._key = key
        self._serve_uncounted = serve_uncounted
        self._clock = clock
        self._accounts: dict[tuple[object, ...], Account] = {}
        self._holding: set[Account] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._releases: set[asyncio.Task[None]] = set()
        self._forget_at = 0.0
        self._complain_at = 0.0
        # When a turn may ask the store again.
        self._ask_at = 0.0

    async def enter(self, principal: Principal, model: str) -> Ticket:
        """Let a request in: give it a slot, and charge it.

        Raises:
            QuotaError: a budget is spent, or there is no slot.
            QuotaStoreError: the store cannot be asked.
        """
        account = self._account(principal, model)
        try:
            if account.slots is not None:
                await self._take_slot(account, account.slots)
            try:
                await self._charge(account, account.requests, 1)
            except BaseException:
                self.leave(account)
                raise
        except QuotaStoreError as error:
            self._let_pass(error)
            return Ticket(self, None)
        return Ticket(self, account)

    def enter_at_once(self, principal: Principal, model: str) -> Ticket | None:
        """As `enter`; None if a store has to be waited for, or it is refused.

        Then nothing is charged: `enter` waits, or says why not.
        """
        account = self._account(principal, model)
        if account.slots is None or (
            account.in_use < account.held and self._clock() < account.held_until
        ):
            if self._charge_reserved(account.requests, 1):
                if account.slots is not None:
                    account.in_use += 1
                    account.peak = max(account.peak, account.in_use)
                return Ticket(self, account)
        else:
            # One more was needed than is held: the next look holds it.
            account.peak = max(account.peak, account.held + 1)
        if not self._can_ask_at_once(account):
            return None
        with self._asking_at_once():
            return _at_once(self.enter(principal, model))
        return None

    def charge_at_once(
        self, account: Account, meters: tuple[Meter, ...], amount: int
    ) -> bool:
        """As `charge`; False, and nothing is charged, where `enter_at_once` is None."""
        if self._charge_reserved(meters, amount):
            return True
        if not self._can_ask_at_once(account):
            return False
        with self._asking_at_once():
            _at_once(self._charge(account, meters, amount))
            return True
        return False

    def _can_ask_at_once(self, account: Account) -> bool:
        """Whether the store answers without waiting, and nobody is asking it."""
        return (
            self._store.answers_at_once
            and not account.lock.locked()
            and self._clock() >= self._ask_at
        )

    @contextlib.contextmanager
    def _asking_at_once(self) -> Iterator[None]:
        """Whoever is refused asks once more, the ordinary way, which says why.

        Of a file that another process has locked that would be waited for twice, by
        everybody: for a second after that the ordinary way is the only one.
        """
        try:
            yield
        except QuotaError:
            return
        except QuotaStoreError:
            self._ask_at = self._clock() + STORE_RETRY_S

    def _charge_reserved(self, meters: tuple[Meter, ...], amount: int) -> bool:
        """Charge all of some budgets with what is reserved of each, or none."""
        now = self._clock()
        for meter in meters:
            if meter.left < amount or meter.ends <= now:
                return False
        for meter in meters:
            meter.left -= amount
        return True

    async def charge(
        self, account: Account, meters: tuple[Meter, ...], amount: int
    ) -> None:
        """As `Ticket.charge_rows` and `Ticket.charge_bits`."""
        try:
            await self._charge(account, meters, amount)
        except QuotaStoreError as error:
            self._let_pass(error)

    def leave(self, account: Account) -> Headers:
        """As `Ticket.leave`."""
        if account.slots is not None:
            account.in_use -= 1
            if account.slots < IDLE_PART:
                # Where each slot counts, none is kept for the next request.
                task = asyncio.ensure_future(self._resize(account))
                self._releases.add(task)
                task.add_done_callback(self._releases.discard)
        return account.fields(self._clock())

    async def close(self) -> None:
        """Give back the slots."""
        for account in list(self._holding):
            account.used_at = 0.0
            account.peak = account.in_use
            await self._resize(account)
        await self._store.close()

    def _account(self, principal: Principal, model: str) -> Account:
        name = (
            principal.account,
            principal.client_id,
            principal.groups,
            principal.tenant,
            model,
        )
        account = self._accounts.get(name)
        if account is None:
            if len(self._accounts) >= MAX_ACCOUNTS:
                self._evict()
            text = f"quota\0{principal.account}\0{model}".encode()
            key = hmac.digest(self._key, text, "sha256")[:16]
            account = Account(key, self._table.limits(principal, model))
            self._accounts[name] = account
        return account

    def _evict(self) -> None:
        """Forget the oldest that is not in use; what it had reserved is spent."""
        for name, account in self._accounts.items():
            if not account.in_use and not account.held:
                del self._accounts[name]
                return

    # Budgets.

    async def _charge(
        self, account: Account, meters: tuple[Meter, ...], amount: int
    ) -> None:
        """Charge an amount to all of some budgets, or to none."""
        if self._charge_reserved(meters, amount):
            return
        async with account.lock.asking():
            await self._refill(account, meters, amount)
        # No other task has run since there was enough.
        for meter in meters:
            meter.left -= amount

    async def _refill(
        self, account: Account, meters: tuple[Meter, ...], amount: int
    ) -> None:
        """Reserve until there is enough, or raise."""
        while True:
            now = self._clock()
            for meter in meters:
                if meter.ends <= now:
                    meter.begin(now)
            short = [meter for meter in meters if meter.left < amount]
            if not short:
                return
            _refuse_spent(account, short, amount, now)
            self._forget(now)
            wants = [meter.want(amount) for meter in short]
            for meter, want, grant in zip(short, wants, await self._store.take(wants)):
                # A window may have ended meanwhile: what is left of it is void.
                if meter.ends == want.ends:
                    meter.left += grant.amount
                    meter.elsewhere = grant.left

    def _forget(self, now: float) -> None:
        if now >= self._forget_at:
            self._forget_at = now + FORGET_S
            self._store.forget(now=now)

    def _let_pass(self, error: QuotaStoreError) -> None:
        """Raise, unless requests may pass uncounted."""
        if not self._serve_uncounted:
            raise error
        if self._clock() >= self._complain_at:
            self._complain_at = self._clock() + COMPLAIN_S
            _log.warning("requests are not counted: %s", error)

    # Slots.

    async def _take_slot(self, account: Account, limit: int) -> None:
        if account.in_use >= account.held or self._clock() >= account.held_until:
            async with account.lock.asking():
                while (
                    account.in_use >= account.held
                    or self._clock() >= account.held_until
                ):
                    wanted = min(limit, max(account.held, account.in_use + 1))
                    if wanted <= account.in_use or not await self._hold(
                        account, wanted
                    ):
                        now = self._clock()
                        raise QuotaError(
                            ("concurrent-requests",), SLOTS_RETRY_S, account.fields(now)
                        )
        account.in_use += 1
        account.peak = max(account.peak, account.in_use)

    async def _hold(self, account: Account, slots: int) -> bool:
        """Hold so many slots; whether one of them is free."""
        now = self._clock()
        account.held = await self._store.hold(
            account.key + b"s",
            account.holder,
            slots=slots,
            limit=account.slots or 0,
            ttl_s=SLOTS_TTL_S,
        )
        account.held_until = now + SLOTS_TTL_S
        if account.held:
            self._holding.add(account)
            if self._sweeping is None or self._sweeping.done():
                self._sweeping = asyncio.ensure_future(self._sweep())
        else:
            self._holding.discard(account)
        return account.held > account.in_use

    async def _sweep(self) -> None:
        """Give back slots that are not needed and renew the others."""
        while self._holding:
            await asyncio.sleep(SWEEP_S)
            for account in list(self._holding):
                await self._resize(account)

    async def _resize(self, account: Account) -> None:
        """Hold what was needed since the last look, and a few for a second longer.

        Of those who found no slot in a turn of the event loop (`enter_at_once`) most
        find one later in it, given back by another one: here one more is held for them.
        """
        now = self._clock()
        needed, account.peak = account.peak, account.in_use
        if account.in_use or needed > account.in_use:
            account.used_at = now
        limit = account.slots or 0
        idle = limit // IDLE_PART if now - account.used_at < IDLE_S else 0
        if limit < IDLE_PART:
            needed = account.in_use
        async with account.lock:
            kept = min(account.held, max(account.in_use, idle))
            target = min(limit, max(needed, kept))
            renew = target and account.held_until - now < SLOTS_TTL_S / 2
            if target != account.held or renew:
                # First here, so that nobody takes a slot that is being given back.
                account.held = min(account.held, target)
                with contextlib.suppress(QuotaStoreError):
                    await self._hold(account, target)


def load_quota_counters(
    settings: QuotaSettings,
    *,
    key: bytes,
    batch: bool = False,
    report_since: Callable[[int], None] = lambda since: None,
) -> Quotas:
    """What the settings ask for.

    Args:
        settings: the table, and where is counted.
        key: of the names that subjects have in the store.
        batch: of batch jobs. They never run uncounted.
        report_since: as of `RedisQuotaStore`.

    Raises:
        SettingsError: the table is missing or malformed, or has nothing for jobs.
        QuotaStoreError: the store's URL cannot be used.
    """
    served = load_quotas(settings.table)
    table = served.batch if batch else served
    if table is None:
        raise SettingsError(
            f"{settings.table}: no job may run: [batch.default] says how much one may"
        )
    store: QuotaStore = (
        LocalQuotaStore(settings.directory, max_entries=settings.max_entries)
        if settings.store == "local"
        else RedisQuotaStore(
            settings.store, settings.redis, key=key, report_since=report_since
        )
    )
    return Quotas(
        table,
        store,
        key=key,
        serve_uncounted=settings.on_failure == "serve" and not batch,
    )


def _at_once(work: Coroutine[Any, Any, _T]) -> _T:
    """What comes of work that asks a store which answers at once."""
    try:
        work.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    work.close()
    raise RuntimeError("the store lets its callers wait")


def _refuse_spent(
    account: Account, short: list[Meter], amount: int, now: float
) -> None:
    """Raise if the store can have nothing for a budget: it only ever gets less."""
    spent = [meter for meter in short if meter.left + meter.elsewhere < amount]
    if not spent:
        return
    never = any(amount > meter.limit for meter in spent)
    wait_s = math.ceil(max(meter.ends for meter in spent) - now)
    extraction = {*account.answers, *account.bits} & {*spent}
    raise (ExtractionBudgetError if extraction else QuotaError)(
        tuple(meter.name for meter in spent),
        None if never else max(1, wait_s),
        account.fields(now),
    )
