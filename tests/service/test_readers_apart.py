"""Who asks for proofs, goes away and asks again takes one thread, and no other's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sealgate.errors import ReceiptError
from sealgate.protocol.bhttp import Request
from sealgate.protocol.offers import OFFERS_PATH, Tile
from sealgate.protocol.receipts import RECEIPT_PATH
from security.access.tokens import Principal
from security.audit.offers import Offers
from security.audit.receipts import ReceiptMaker, Recorded
from service.offering import Offering
from service.receipts import Receipts
from service.telemetry.recorder import Decision
from tests.security.audit.test_offers import settings_in
from tests.support.receipting import Deployment


class Slow:
    """Reads as long as the test wants, and counts how many do."""

    def __init__(self) -> None:
        self.working = self.most = 0
        self.done = threading.Event()

    def work(self) -> None:
        self.working += 1
        self.most = max(self.most, self.working)
        self.done.wait(20)
        self.working -= 1


class SlowMaker(ReceiptMaker):
    def __init__(self, slow: Slow, folder: Path) -> None:
        made = Deployment(folder)
        super().__init__(made.log, numbers=made.numbers, trust=made.trust)
        self._slow = slow

    def find(self, number: str) -> Recorded:
        self._slow.work()
        raise ReceiptError("none")


class SlowOffers(Offers):
    slow: Slow

    def tile(self, tile: Tile) -> bytes:
        self.slow.work()
        return super().tile(tile)


def receipts_in(folder: Path, slow: Slow) -> Callable[[], Awaitable[object]]:
    principal = Principal("s", "c", "t", "i", frozenset(), 0.0)
    receipts = Receipts(
        SlowMaker(slow, folder), quotas=None, pseudonym=lambda principal: ""
    )
    path = RECEIPT_PATH.encode() + b"A"
    return lambda: receipts.answer(_get(path), principal, Decision(False, 0.0))


def offers_in(folder: Path, slow: Slow) -> Callable[[], Awaitable[object]]:
    offers = SlowOffers(settings_in(folder))
    offers.slow = slow
    offering = Offering(offers, ring=None, admissions=tuple)
    return lambda: offering.answer(_get(OFFERS_PATH.encode() + b"tile/0/000"))


def _get(path: bytes) -> Request:
    return Request(b"GET", b"https", b"x", path, (), b"")


@pytest.mark.parametrize("kind", [receipts_in, offers_in])
def test_those_who_go_away(kind: object, tmp_path: Path) -> None:
    slow = Slow()
    answer = kind(tmp_path, slow)  # type: ignore[operator]

    async def go() -> None:
        for _ in range(8):
            task = asyncio.ensure_future(answer())
            await asyncio.sleep(0.03)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        # Nor is a thread missing where answers are made.
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 5) == 7
        slow.done.set()  # the loop's own threads are waited for at its end

    try:
        asyncio.run(go())
    finally:
        slow.done.set()
    assert slow.most == 1
