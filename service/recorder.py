"""What is written down about each request: one record for every decision.

A record says who asked for what, and what became of it; never a payload, a token or a
header. The answer waits for its record.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from security.access.tokens import Principal
from security.audit.log import AuditLog, pseudonym

__all__ = ["Decision", "Recorder"]


@dataclass
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
        rows: of the inputs.
    """

    sealed: bool
    started: float
    request_id: str = field(default_factory=lambda: secrets.token_hex(8))
    principal: Principal | None = None
    model: str | None = None
    version: str | None = None
    digest: str | None = None
    action: str | None = None
    rows: int | None = None


class Recorder:
    """Turns decisions into audit records."""

    def __init__(
        self, log: AuditLog, *, key: bytes, clock: Callable[[], float] = time.time
    ) -> None:
        self._log = log
        self._key = key
        self._clock = clock

    async def record(
        self, decision: Decision, *, status: int, reason: str | None
    ) -> None:
        """Append the record of a request.

        Raises:
            AuditError: it could not be written; the answer must not be given.
        """
        self._log.append(
            {
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
                "sealed": decision.sealed,
                "latency_us": int((time.perf_counter() - decision.started) * 1e6),
            }
        )

    def _caller(self, principal: Principal | None) -> dict[str, str | None]:
        if principal is None:
            return {"subject": None, "client": None, "token": None}
        # A client that speaks for itself (RFC 9068, section 2.2) is its own subject.
        subject, client = principal.subject, principal.client_id
        return {
            "subject": pseudonym(self._key, subject),
            "client": pseudonym(self._key, client) if client == subject else client,
            "token": _short_hash(principal.token_id),
        }


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
