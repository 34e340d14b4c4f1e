"""[redis]: what all stores that are in a Redis share."""

from __future__ import annotations

import re
from dataclasses import dataclass

from security.errors import SettingsError
from security.stores.places import Reach

__all__ = ["RedisSettings", "check_redis"]

# Nothing that is special in a pattern of an access list, in a tag or in a URL.
_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class RedisSettings(Reach):
    """How the stores that are Redis URLs are reached; `Reach` lists it."""


def check_redis(redis: RedisSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    if not _PREFIX.fullmatch(redis.prefix):
        raise SettingsError("redis.prefix: 1 to 64 of letters, digits, '.', '_', '-'")
    if (redis.certificate is None) != (redis.key is None):
        raise SettingsError("redis.certificate, redis.key: both, or neither")
