"""What is written down about each request: one record for every decision.

A record says who asked for what, and what became of it; never a payload, a token or a
header. The answer waits for its record. What anyone could cause without end, refusals
of strangers and of callers beyond their quota, is recorded within bounds: `Tally`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sealgate.errors import SealgateError
from sealgate.protocol.bhttp import Headers
from sealgate.protocol.receipts import RECEIPT_HEADER, NumberSealer
from security.access.quotas import Ticket
from security.access.tokens import Principal
from security.admission.gate import Admission
from security.audit.group import GroupLog
from security.audit.journal import open_log, record_operation
from security.audit.records import Scalar, encode, token_hash
from security.audit.tally import Tally, TallyLimits
from security.errors import AdmissionRefused, AuditError
from security.key_files import pseudonym, read_secret
from security.settings.audit import AuditSettings
from security.settings.loading import load_settings
from service.telemetry.tracing import Trace

__all__ = [
    "SPENT",
    "Decision",
    "Outcome",
    "Recorder",
    "open_recorder",
    "record_refusal",
]

_log = logging.getLogger(__name__)

# What receipts are given for: a model answered.
RECEIPTED = ("infer", "explain")
# Reasons of refusals for what a caller has used up, which are counted.
SPENT = ("quota-exceeded", "extraction-budget")
MAX_CALLERS = 4096
_ID_BYTES, _IDS = 8, 512
_STRANGERS_KIND: tuple[str, ...] = ("action", "outcome", "reason", "sealed", "status")
_CALLERS_KIND = (*_STRANGERS_KIND, "subject", "client", "token", "model")


class _RequestIds:
    """Random names for requests, from the operating system many at a time."""

    def __init__(self) -> None:
        self._pool = b""
        self._left = 0

    def __call__(self) -> str:
        if not self._left:
            self._pool = secrets.token_bytes(_IDS * _ID_BYTES)
            self._left = _IDS
        self._left -= 1
        end = (self._left + 1) * _ID_BYTES
        return self._pool[end - _ID_BYTES : end].hex()


_next_id = _RequestIds()


@dataclass(slots=True)
class Decision:
    """What one request's audit record will say, as far as it is known.

    Attributes:
        sealed: whether the request came sealed.
        started: ``time.perf_counter()`` when it was there.
        request_id: also sent to the caller.
        principal: who asks, once that is verified.
        model: the name that is asked for.
        version: of the model that answers.
        digest: the root digest of the bundle that answers.
        action: what is asked for.
        rows: of the inputs; of an explanation, what it counts as.
        request_bytes: of the request's content, unsealed.
        trace: the caller's, from inside the seal if it came sealed. For logs only.
        outer_trace: of the request that held the sealed one. For logs only.
        ticket: what its quotas were charged with.
        diverted: a canary has it, and not the default version.
        method, scheme: of the request. For traces only.
    """

    sealed: bool
    started: float
    request_id: str = field(default_factory=_next_id)
    principal: Principal | None = None
    model: str | None = None
    version: str | None = None
    digest: str | None = None
    action: str | None = None
    rows: int | None = None
    request_bytes: int | None = None
    trace: Trace | None = None
    outer_trace: Trace | None = None
    ticket: Ticket | None = None
    diverted: bool = False
    method: bytes = b""
    scheme: bytes = b""

    async def charge_rows(self, rows: int) -> None:
        """Charge what is asked, whether or not its values can be read.

        Raises:
            QuotaError, QuotaStoreError: as `Ticket.charge_rows`.
        """
        self.rows = rows
        if self.ticket is not None:
            await self.ticket.charge_rows(rows)

    async def charge_bits(self, bits: Callable[[], float]) -> None:
        """Charge what an answer tells, where that is counted.

        Raises:
            ExtractionBudgetError, QuotaStoreError: as `Ticket.charge_bits`.
        """
        if self.ticket is not None and self.ticket.counts_bits:
            await self.ticket.charge_bits(bits())


# A request, its status, the reason of a refusal, the bytes of the answer.
Outcome = tuple[Decision, int, str | None, int | None]


class Recorder:
    """Turns decisions into audit records."""

    def __init__(
        self,
        log: GroupLog,
        *,
        key: bytes,
        numbers: NumberSealer | None = None,
        limits: TallyLimits = TallyLimits(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Wire a recorder.

        Args:
            log: where records go.
            key: of the pseudonyms.
            numbers: seals receipts' numbers; without it there are none.
            limits: on what anyone could cause.
            clock: Unix seconds.
        """
        self._log = log
        self._key = key
        self._numbers = numbers
        self._clock = clock
        # Hashing takes longer than looking up.
        self._described: dict[tuple[str, str, str], Mapping[str, str | None]] = {}
        self._strangers = Tally(limits)
        self._callers = Tally(limits)
        self._timer: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None
        self._draining: asyncio.Task[None] | None = None

    async def record(
        self,
        decision: Decision,
        *,
        status: int,
        reason: str | None,
        response_bytes: int | None = None,
    ) -> Headers:
        """Record a request; returns when that is durable, or counted.

        Returns:
            The number of its receipt, as a field of the answer; of an answer about a
            model, where there are receipts.

        Raises:
            AuditError: it could not be written; the answer must not be given.
        """
        fields = self._fields(decision, status, reason, response_bytes)
        if not self._is_single(decision.principal, reason, fields):
            return ()
        return self._receipt(decision, reason, await self._log.append(fields))

    def record_at_once(self, outcomes: Sequence[Outcome]) -> list[Headers] | None:
        """Record what became of the requests of one turn, together; as `record` does.

        Returns:
            As `record`, of each; None if they have to be recorded one by one, since
            the log is forced to disk.

        Raises:
            AuditError: as `record`; none of them was written.
        """
        if not self._log.writes_at_once:
            return None
        records, single = [], []
        for outcome in outcomes:
            decision, reason = outcome[0], outcome[2]
            fields = self._fields(*outcome)
            single.append(self._is_single(decision.principal, reason, fields))
            if single[-1]:
                records.append(encode(fields))
        places = iter(self._log.write(records))
        return [
            self._receipt(decision, reason, next(places)) if alone else ()
            for (decision, _, reason, _), alone in zip(outcomes, single)
        ]

    def pseudonym(self, principal: Principal | None) -> str:
        """Of a caller, as records say it; empty for a stranger."""
        return self._caller(principal).get("subject") or ""

    def close(self) -> None:
        """Write what was counted, and close the log."""
        self._log.close(self._counted())

    def _fields(
        self,
        decision: Decision,
        status: int,
        reason: str | None,
        response_bytes: int | None,
    ) -> dict[str, Scalar]:
        return {
            "time_us": int(self._clock() * 1e6),
            "request_id": decision.request_id,
            **self._caller(decision.principal),
            "action": decision.action,
            "model": decision.model,
            "model_sha256": decision.digest,
            "outcome": "allow" if reason is None else "refuse",
            "reason": reason,
            "status": status,
            "rows": decision.rows,
            "request_bytes": decision.request_bytes,
            "response_bytes": response_bytes,
            "sealed": decision.sealed,
            "latency_us": int((time.perf_counter() - decision.started) * 1e6),
        }

    def _receipt(self, decision: Decision, reason: str | None, place: int) -> Headers:
        if self._numbers and reason is None and decision.action in RECEIPTED:
            number = self._numbers.seal(self._log.log.writer, place)
            return ((RECEIPT_HEADER, number.encode()),)
        return ()

    def _is_single(
        self, principal: Principal | None, reason: str | None, fields: dict[str, Scalar]
    ) -> bool:
        if reason is None:
            return True
        if principal is None:
            tally, names = self._strangers, _STRANGERS_KIND
        elif reason in SPENT:
            tally, names = self._callers, _CALLERS_KIND
        else:
            return True
        if tally.take({name: fields.get(name) for name in names}):
            return True
        self._set_timer(tally)
        return False

    def _set_timer(self, tally: Tally) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer[0] is not loop:
            self._timer = loop, loop.call_later(tally.due_in_s, self._begin_drain)

    def _begin_drain(self) -> None:
        self._timer = None
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        for fields in self._counted():
            try:
                await self._log.append(fields)
            except AuditError as error:
                _log.warning("counted refusals were not recorded: %s", error)

    def _counted(self) -> list[dict[str, Scalar]]:
        time_us = int(self._clock() * 1e6)
        counted = [*self._strangers.drain(), *self._callers.drain()]
        return [{"time_us": time_us, "outcome": "refuse", **item} for item in counted]

    def _caller(self, principal: Principal | None) -> Mapping[str, str | None]:
        if principal is None:
            return {}
        name = principal.account, principal.client_id, principal.token_id
        described = self._described.get(name)
        if described is None:
            if len(self._described) >= MAX_CALLERS:
                self._described.clear()
            # A client may speak for itself (RFC 9068, section 2.2).
            own = principal.client_id == principal.subject
            subject = pseudonym(self._key, principal.account)
            described = self._described[name] = {
                "subject": subject,
                "client": subject if own else principal.client_id,
                "token": token_hash(principal.token_id),
            }
        return described


def open_recorder(settings: AuditSettings, admissions: Sequence[Admission]) -> Recorder:
    """This worker's audit log; its start and what it loaded are the first records.

    Raises:
        AuditError: the log cannot be written, or signed where that is demanded.
        KeyFileError: a key of it cannot be read.
    """
    start: dict[str, Scalar] = {"action": "start"}
    log = open_log(settings)
    log.write(
        [
            encode({"time_us": time.time_ns() // 1000, "outcome": "allow", **fields})
            for fields in [start, *map(_load_fields, admissions)]
        ]
    )
    # From here on the verifier expects a checkpoint of this writer.
    log.sign_checkpoint()
    if not log.is_signed and settings.on_failure == "refuse":
        raise AuditError("no checkpoint can be made of the audit log: see above why")
    key = read_secret(settings.pseudonym_key)
    held = settings.max_held_records if settings.on_failure == "serve" else 0
    return Recorder(
        GroupLog(log, max_held=held),
        key=key,
        numbers=NumberSealer(key) if settings.receipts else None,
        limits=TallyLimits(settings.refusal_interval_s, settings.refusal_records),
    )


def record_refusal(tag: str, error: SealgateError) -> None:
    """Record that a model was refused at a door."""
    refusal: dict[str, Scalar] = {
        "action": "load",
        "model": tag,
        "outcome": "refuse",
        "reason": _reason(error),
    }
    try:
        record_operation(load_settings().audit, [refusal])
    except SealgateError as failure:
        _log.warning("a refusal was not recorded: %s", failure)


def _reason(error: SealgateError) -> str:
    if isinstance(error, AdmissionRefused):
        return f"check-{error.check}"
    return type(error).__name__


def _load_fields(admission: Admission) -> dict[str, Scalar]:
    subject = admission.bundle.subject
    return {
        "action": "load",
        "model": admission.bundle.manifest.tag,
        "model_sha256": subject.root_sha256,
    }
