"""``GET /v2/receipts/{number}``: proof that an answer's record is in the audit log.

Each answer of a model has a number in its head, `Sealgate-Receipt`, inside the seal.
Once a checkpoint covers its record, who asked may fetch the receipt by it: the same
subject, by whichever token. Anybody else, and whoever makes a number up, gets the
answer of a number that never was. A receipt is charged like a model's metadata.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sealgate.errors import ReceiptError
from sealgate.protocol.bhttp import Request, Response
from sealgate.protocol.receipts import (
    RECEIPT_MEDIA_TYPE,
    RECEIPT_PATH,
    NumberSealer,
)
from security.access.quotas import Quotas
from security.access.tokens import Principal
from security.audit.journal import load_log
from security.audit.receipts import ReceiptMaker, load_trust
from security.key_files import read_secret
from security.settings.audit import AuditSettings
from service.problems import Problem, expect_method
from service.telemetry.recorder import Decision

__all__ = ["RECEIPTS_PATH", "Receipts", "open_receipts"]

RECEIPTS_PATH = RECEIPT_PATH.encode()

_T = TypeVar("_T")


class Receipts:
    """Answers requests for receipts."""

    def __init__(
        self,
        maker: ReceiptMaker,
        *,
        quotas: Quotas,
        pseudonym: Callable[[Principal | None], str],
        retry_s: int = 5,
    ) -> None:
        """Wire it.

        Args:
            maker: of receipts.
            quotas: counts what each caller asks.
            pseudonym: of a caller, as records say it.
            retry_s: when to come back for what no checkpoint covers yet.
        """
        self._maker = maker
        self._quotas = quotas
        self._pseudonym = pseudonym
        self._retry = b"%d" % retry_s
        # One thread of its own reads the log: none is taken from anybody's content,
        # not by those either who ask, go away, and ask again.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="receipts")

    async def _apart(self, work: Callable[..., _T], what: object) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, work, what)

    async def answer(
        self, request: Request, principal: Principal, decision: Decision
    ) -> Response:
        """The receipt that a path names.

        Raises:
            Problem: not a receipt of this caller; or not yet.
            AuditError: the log cannot be read.
            SealgateError: as `Quotas.enter`.
        """
        decision.action = "receipt"
        expect_method(request, b"GET", b"HEAD")
        path = request.path.partition(b"?")[0].decode("latin-1")
        try:
            number = path.removeprefix(RECEIPT_PATH)
            found = await self._apart(self._maker.find, number)
        except ReceiptError:
            raise _none() from None
        fields = found.record.fields
        if fields.get("subject") != self._pseudonym(principal):
            raise _none()
        decision.model = str(fields.get("model"))
        decision.digest = fields.get("model_sha256")
        decision.ticket = await self._quotas.enter(principal, decision.model)
        receipt = await self._apart(self._maker.make, found)
        if receipt is None:
            raise Problem("receipt-pending", headers=((b"retry-after", self._retry),))
        kind = (b"content-type", RECEIPT_MEDIA_TYPE.encode())
        return Response(200, (kind,), receipt)


def open_receipts(
    settings: AuditSettings,
    *,
    quotas: Quotas,
    pseudonym: Callable[[Principal | None], str],
) -> Receipts | None:
    """What answers for receipts, if this deployment gives any.

    Raises:
        KeyFileError, AuditError: a key of the log cannot be read.
    """
    if not settings.receipts:
        return None
    maker = ReceiptMaker(
        load_log(settings),
        numbers=NumberSealer(read_secret(settings.pseudonym_key)),
        trust=load_trust(settings),
    )
    retry_s = max(1, round(settings.checkpoint_interval_s / 2))
    return Receipts(maker, quotas=quotas, pseudonym=pseudonym, retry_s=retry_s)


def _none() -> Problem:
    return Problem("not-found", "no such receipt")
