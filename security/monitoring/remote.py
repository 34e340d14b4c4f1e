"""The Redis that counts, labels and ledger of several hosts share.

A key says that there is a ledger. Where it is not, the ledger is lost, or never was:
nothing is booked then, published or spent: what was forgotten would be spent twice.
"""

from __future__ import annotations

from security.errors import MonitoringStoreError
from security.stores.places import Reach
from security.stores.shared import Redis

__all__ = [
    "HAS_LEDGER",
    "NO_LEDGER",
    "ledger_keys",
    "names",
    "open_redis",
    "pairs",
    "request_key",
]

# All of it may be taken together: in a cluster it lies on one server.
_TAG = "monitoring"
NO_LEDGER = (
    "redis: there is no ledger of releases; `monitor --new-ledger` makes one where "
    "there never was one. One that was lost took along what was spent: bring it back, "
    "or turn monitoring off until a year has passed"
)

# In front of a script, whose first KEYS are those of `ledger_keys`. A ledger of an
# earlier release, which has bookings and no such key, is one.
HAS_LEDGER = """
local ledger, booked = table.remove(KEYS, 1), table.remove(KEYS, 1)
if redis.call('EXISTS', ledger, booked) == 0 then return 'lost' end
"""


def open_redis(url: str, reach: Reach, *, timeout_s: float) -> Redis:
    """The client of a part of monitoring; nothing connects yet.

    Raises:
        MonitoringStoreError: the redis package is not installed, or not such a URL.
    """
    return Redis(
        url,
        reach,
        setting="monitoring.store",
        refusal=MonitoringStoreError,
        timeout_s=timeout_s,
    )


def names(redis: Redis, *parts: str) -> tuple[str, ...]:
    """The keys that parts of monitoring are called in a Redis."""
    return tuple(redis.key("monitoring", part, tag=_TAG) for part in parts)


def ledger_keys(redis: Redis) -> tuple[str, ...]:
    """The key that says that there is a ledger, and the one of what was booked."""
    return names(redis, "ledger", "booked")


def request_key(redis: Redis) -> str:
    """As `Redis.request_key`."""
    return redis.request_key(tag=_TAG)


def pairs(items: list[bytes]) -> dict[bytes, bytes]:
    """A hash, of the list that a script makes of it."""
    return dict(zip(items[::2], items[1::2]))
