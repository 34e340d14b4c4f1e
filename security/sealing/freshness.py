"""Whether a sealed request is new: its Date, then the replay store (RFC 9458, 6.5).

1. at most one Date, a valid one, in the window around our clock; without any, only if
   the deployment allows that;
2. the request was not seen before; asked once its token is verified, so that strangers
   fill nothing (a copy without a valid token is refused again, which harms nobody).

Within the window the store knows every request, so each is answered at most once. A
request without a Date is remembered for as long as its key opens anything.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache

from sealgate.errors import SealgateError
from sealgate.protocol.bhttp import Headers
from security.errors import DateError, ReplayError, ReplayStoreError
from security.sealing.replay import (
    SLOT_S,
    Insertion,
    ReplayStore,
    fingerprint,
    open_replay_store,
)
from security.settings.sealing import SealingSettings

__all__ = ["Freshness", "Remember", "Unseen", "http_date", "load_freshness"]

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip
# IMF-fixdate (RFC 9110, section 5.6.7): the one form that is sent.
_DATE = re.compile(
    rb"(?:%b), ([0-9]{2}) (%b) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
    % ("|".join(_DAYS).encode(), "|".join(_MONTHS).encode())
)


# Check 2 of a request: given the account of its verified token, passes it once.
Remember = Callable[[str], Awaitable[None]]


class Unseen:
    """Check 2 of one request, whose Date is in the window; awaited as a `Remember`."""

    __slots__ = ("_freshness", "date", "entry", "live_ids", "slot")

    def __init__(
        self, freshness: Freshness, *, enc: bytes, slot: int, date: int | None
    ) -> None:
        self._freshness = freshness
        self.entry, self.slot, self.date = fingerprint(enc), slot, date
        self.live_ids: Sequence[int] = ()

    async def __call__(self, account: str) -> None:
        """Pass it once, given the account of its verified token."""
        await self._freshness.remember(self, account)


class Freshness:
    """Lets each sealed request pass once."""

    def __init__(
        self,
        store: ReplayStore,
        *,
        key: bytes,
        window_s: int,
        require_date: bool,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire it.

        Args:
            store: shared by all who have the same keys.
            key: of the names that subjects have in the store.
            window_s: how far a Date may be from our clock, either way.
            require_date: refuse requests without one.
            clock: Unix seconds.
            monotonic: seconds.
        """
        self._monotonic = monotonic
        # What the clock shows beyond the monotonic one: constant, unless it is set.
        self._offset = clock() - monotonic()
        self._steady_at = 0.0
        self._store = store
        self._key = key
        self._window_s = window_s
        self._require_date = require_date
        self._clock = clock
        self._next_forget = 0.0
        self._last_live: dict[int, float] = {}
        self._owner = lru_cache(maxsize=1024)(self._name)

    def check(
        self, headers: Headers, enc: bytes, *, key_id: int, live_ids: Sequence[int]
    ) -> Unseen:
        """Check 1.

        Args:
            headers: of the inner request.
            enc: its encapsulated key.
            key_id: of the key that opened it.
            live_ids: of all keys that open requests now.

        Returns:
            Check 2, to be awaited with the account of its verified token, which bounds
            what one subject fills. Raises ReplayError: it was seen before; QuotaError:
            the subject's share of the store is used up; ReplayStoreError: it cannot be
            told, and must not pass.

        Raises:
            DateError: it is too old, too new, or does not say when it was made.
        """
        now = self._clock()
        date = self._date(headers, now)
        # Without a Date the key decides; its slots are the negative numbers.
        slot = -1 - key_id if date is None else date // SLOT_S
        unseen = Unseen(self, enc=enc, slot=slot, date=date)
        unseen.live_ids = live_ids
        return unseen

    async def remember(self, unseen: Unseen, account: str) -> None:
        """Check 2, as `check` says."""
        self._forget_in_time(unseen.live_ids)
        new = await self._store.insert(
            unseen.entry,
            slot=unseen.slot,
            owner=self._owner(account),
            made=unseen.date,
        )
        if not new:
            raise ReplayError("seen before")

    def remember_at_once(
        self, group: Sequence[tuple[Unseen, str]]
    ) -> list[SealgateError | None] | None:
        """Check 2 of the requests of one turn, each with its account.

        Returns:
            What `remember` raises of each, if anything; None if the store has to be
            waited for: nothing was done.
        """
        try:
            self._forget_in_time(group[0][0].live_ids)
            found = self._store.insert_at_once(
                [Insertion(u.entry, u.slot, self._owner(a)) for u, a in group]
            )
        except ReplayStoreError as error:
            return [ReplayStoreError(str(error)) for _ in group]
        if found is None:
            return None
        return [
            (None if result else ReplayError("seen before"))
            if isinstance(result, bool)
            else result
            for result in found
        ]

    def _name(self, account: str) -> bytes:
        """What a subject is called in the store."""
        return hmac.digest(self._key, b"replay\0" + account.encode(), "sha256")[:8]

    def _forget_in_time(self, live_ids: Sequence[int]) -> None:
        if self._monotonic() >= self._next_forget:
            self._next_forget = self._monotonic() + SLOT_S
            now = self._clock()
            if self._is_steady(now):
                self._forget(now, live_ids)

    def _is_steady(self, now: float) -> bool:
        """Whether the clock was not set for two windows.

        One that jumps ahead and back would have the requests of the time between
        forgotten, and their copies let in.
        """
        offset = now - self._monotonic()
        if abs(offset - self._offset) > SLOT_S:
            self._offset = offset
            self._steady_at = self._monotonic() + 2 * self._window_s
        return self._monotonic() >= self._steady_at

    def _forget(self, now: float, live_ids: Sequence[int]) -> None:
        self._last_live.update(dict.fromkeys(live_ids, now))
        # Other workers may notice later that a key is gone, and answer until then.
        gone = [i for i, last in self._last_live.items() if last < now - 2 * SLOT_S]
        oldest = int(now) - self._window_s
        self._store.forget(
            before_slot=oldest // SLOT_S - 1, drop=[-1 - key_id for key_id in gone]
        )
        for key_id in gone:
            del self._last_live[key_id]

    def _date(self, headers: Headers, now: float) -> int | None:
        dates = [value for name, value in headers if name == b"date"]
        if not dates and not self._require_date:
            return None
        # The length bounds what is remembered of strangers.
        date = _parse(dates[0]) if len(dates) == 1 and len(dates[0]) == 29 else None
        if date is None or abs(date - now) > self._window_s:
            raise DateError("outside the window")
        return date


def load_freshness(
    settings: SealingSettings,
    *,
    key: bytes,
    report_since: Callable[[int], None] = lambda since: None,
) -> Freshness:
    """What the settings ask for.

    Args:
        settings: of sealed transport.
        key: makes the names of subjects.
        report_since: as of `open_replay_store`.

    Raises:
        ReplayStoreError: the store's library is not installed, or its URL is none.
    """
    window_s = settings.date_window_s
    # Keys may outlive their schedule by as much again when a rotation is late.
    key_s = settings.key_lifetime_s + settings.key_overlap_s
    store = open_replay_store(
        settings.replay_store,
        settings.replay_directory,
        reach=settings.redis,
        report_since=report_since,
        max_entries=settings.max_replay_entries,
        share=settings.max_replay_entries_per_subject,
        ttls_s=(2 * window_s + 2 * SLOT_S, 2 * key_s),
    )
    return Freshness(
        store, key=key, window_s=window_s, require_date=settings.require_date
    )


def http_date(now: float) -> bytes:
    """A Date field's value.

    >>> http_date(784111777)
    b'Sun, 06 Nov 1994 08:49:37 GMT'
    """
    t = datetime.fromtimestamp(now, UTC)
    return (
        f"{_DAYS[t.weekday()]}, {t.day:02} {_MONTHS[t.month - 1]} {t.year:04} "
        f"{t.hour:02}:{t.minute:02}:{t.second:02} GMT"
    ).encode()


# Clients whose clocks agree send the same text within a second.
@lru_cache(maxsize=256)
def _parse(text: bytes) -> int | None:
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    day, year, hour, minute, second = (int(match[i]) for i in (1, 3, 4, 5, 6))
    month = _MONTHS.index(match[2].decode()) + 1
    try:
        date = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return int(date.timestamp())
