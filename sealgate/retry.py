"""When a refused request may be sent again. Everywhere else, it is the caller's to say.

A request is repeated only where the server says that nothing ran:

1. the key it was sealed to is gone (422 ``#ohttp-key``): once, with fresh keys;
2. its Date is off (400 ``#date``): once, with the server's Date;
3. no valid token (401), and the token's source now gives another one: once;
4. too much work (429, 503) with a Retry-After, which is only sent when nothing ran: as
   often and as long as `RetryPolicy` allows.

Whoever is in between can forge the unsealed answers of 1 and 4, and so have a request
run again, as often as these bounds allow. The Date is only believed when sealed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from secrets import SystemRandom

from sealgate.errors import (
    AuthenticationError,
    ClientError,
    ClockError,
    KeyRefusedError,
    OverloadedError,
)

__all__ = ["Attempts", "RetryPolicy"]


@dataclass(frozen=True)
class RetryPolicy:
    """Bounds on repeating a request to an overloaded server.

    Attributes:
        max_retries: after the first attempt; 0 never repeats.
        max_wait_s: longest wait before one attempt; a server that asks for more is
            believed, and the error raised.
        jitter: from 0 to 1: the part of each wait that is added at random, so that
            callers refused together do not come back together.
    """

    max_retries: int = 2
    max_wait_s: float = 10.0
    jitter: float = 0.5


class Attempts:
    """The attempts of one request. Each kind of recovery is tried within its bounds."""

    def __init__(
        self, policy: RetryPolicy, random: Callable[[], float] = SystemRandom().random
    ) -> None:
        self._policy = policy
        self._random = random
        self._waits = 0
        self._tried: set[type[ClientError]] = set()

    def recover_once(self, error: ClientError) -> bool:
        """Whether this kind of error has not been recovered from yet; now it has."""
        kind = type(error)
        fresh = kind not in self._tried
        self._tried.add(kind)
        return fresh and isinstance(
            error, KeyRefusedError | ClockError | AuthenticationError
        )

    def wait_s(self, error: OverloadedError) -> float | None:
        """How long to wait before the next attempt; None not to make one."""
        asked = error.retry_after_s
        self._waits += 1
        if asked is None or self._waits > self._policy.max_retries:
            return None
        wait = asked * (1 + self._policy.jitter * self._random())
        return wait if wait <= self._policy.max_wait_s else None
