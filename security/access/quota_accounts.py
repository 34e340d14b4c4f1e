"""What one subject may still ask of one model, as one worker knows it.

A `Meter` is a budget in its present window; an `Account` has those of a subject and a
model, and its slots. What they mean says `security.access.quotas`.
"""

from __future__ import annotations

import math
import os

from security.access.quota_stores import Turns, Want
from security.access.quota_table import Limits

__all__ = ["WINDOWS", "Account", "Headers", "Meter"]

Headers = tuple[tuple[bytes, bytes], ...]

# By the names of limits: counters in stores have the first letter.
WINDOWS = {"minute": 60, "day": 86_400, "30_days": 30 * 86_400}
BLOCK_PART = 32  # of a budget is reserved at most, or of a day's share of it


class Meter:
    """One budget in its present window: what is left of this worker's block."""

    __slots__ = (
        "block",
        "counter",
        "elsewhere",
        "ends",
        "left",
        "limit",
        "name",
        "window_s",
    )

    def __init__(self, name: str, counter: bytes, *, window_s: int, limit: int) -> None:
        self.name = name
        self.counter = counter
        self.window_s = window_s
        self.limit = limit
        self.begin(0)

    def begin(self, now: float) -> None:
        """Another window: what was reserved in the one before is void."""
        self.ends = (int(now) // self.window_s + 1) * self.window_s
        self.left = 0
        self.elsewhere = self.limit  # as far as this worker knows
        self.block = 1

    def want(self, amount: int) -> Want:
        """What to ask the store for, to have an amount."""
        need = amount - self.left
        # Twice as much each time: whoever asks little holds little back.
        days = max(1, self.window_s // WINDOWS["day"])
        most = max(need, self.limit // (BLOCK_PART * days))
        block = min(max(need, self.block), most)
        self.block = min(block * 2, most)
        window = self.ends // self.window_s - 1
        return Want(self.counter, window, self.ends, self.limit, need, block)


class Account:
    """One subject at one model, in this worker."""

    def __init__(self, key: bytes, limits: Limits) -> None:
        self.key = key
        # Two accounts of one subject, through two clients, hold slots of their own.
        self.holder = os.urandom(8)
        self.slots = limits.concurrent_requests
        self.in_use = self.held = self.peak = 0
        self.held_until = self.used_at = 0.0
        self.lock = Turns()
        self.requests = _meters(key, b"r", "requests", limits)
        self.answers = _meters(key, b"a", "answers", limits)
        self.rows = (*_meters(key, b"n", "rows", limits), *self.answers)
        self.bits = _meters(key, b"b", "answer_bits", limits)
        self.meters = (*self.requests, *self.rows, *self.bits)
        self.policy = _policy(self)
        self.format = b", ".join(
            b'"%b";r=%%d;t=%%d' % meter.name.encode() for meter in self.meters
        )

    def fields(self, now: float) -> Headers:
        """The RateLimit fields (draft-ietf-httpapi-ratelimit-headers-11)."""
        if not self.policy:
            return ()
        policy = (b"ratelimit-policy", self.policy)
        if not self.meters:
            return (policy,)
        numbers: list[int] = []
        for meter in self.meters:
            if meter.ends <= now:
                meter.begin(now)
            numbers += (meter.left + meter.elsewhere, math.ceil(meter.ends - now))
        return policy, (b"ratelimit", self.format % tuple(numbers))


def _meters(key: bytes, tag: bytes, what: str, limits: Limits) -> tuple[Meter, ...]:
    meters = []
    for unit, window_s in WINDOWS.items():
        limit = getattr(limits, f"{what}_per_{unit}", None)
        if limit is not None:
            name = f"{what}_per_{unit}".replace("_", "-")
            counter = key + tag + unit[:1].encode()
            meters.append(Meter(name, counter, window_s=window_s, limit=limit))
    return tuple(meters)


def _policy(account: Account) -> bytes:
    """The RateLimit-Policy field; of these units the draft registers requests only."""
    units = {
        **dict.fromkeys(account.rows, "rows"),
        **dict.fromkeys(account.answers, "answers"),
        **dict.fromkeys(account.bits, "bits"),
    }
    items = [
        f'"{meter.name}";q={meter.limit};w={meter.window_s}'
        + (f';sealgate-unit="{units[meter]}"' if meter in units else "")
        for meter in account.meters
    ]
    if account.slots is not None:
        items.append(
            f'"concurrent-requests";q={account.slots};qu="concurrent-requests"'
        )
    return ", ".join(items).encode()
