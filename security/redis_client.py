"""A client of Redis, for the stores that several machines share.

The package is optional: a deployment of one machine has no use for it.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["make_client"]


def make_client(
    url: str,
    *,
    setting: str,
    refusal: type[Exception],
    timeout_s: float,
    module: str = "redis.asyncio",
    **options: Any,
) -> tuple[Any, tuple[type[Exception], ...]]:
    """A client that nothing is asked of yet, and what it raises when it cannot answer.

    Args:
        url: ``redis://`` or ``rediss://``; may hold a password, so no error repeats it.
        setting: where the URL comes from, for the error.
        refusal: raised where there can be no client.
        timeout_s: of connecting, and of each answer.
        module: "redis.asyncio", or "redis" for threads.
        options: further ones of the client.

    Raises:
        Exception: ``refusal``: the redis package is not installed, or not such a URL.
    """
    try:
        client = importlib.import_module(module).Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, **options
        )
        errors: Any = importlib.import_module("redis.exceptions")
    except ImportError:
        raise refusal("the package redis is not installed") from None
    except ValueError:
        raise refusal(f"{setting}: not a Redis URL") from None
    return client, (errors.RedisError, OSError)
