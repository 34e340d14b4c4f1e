"""A Redis that all machines of a deployment share.

The package is optional: a deployment of one machine has no use for it.

What a store asks for may be sent twice: a connection that broke may have broken before
the request arrived or after it was done. So every script takes a request's id, and the
second time gives the answer of the first; and the client says how often it repeats,
whatever its library's default is.

A Redis that forgets what it must know under pressure (``allkeys-*``, ``volatile-*``) is
refused, at the start and while it is used.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["AsyncRedis", "Redis", "check_redis", "once", "request_key"]

RETRIES = 1
CHECK_INTERVAL_S = 60.0
# Longer than a repetition can come after its original.
_ANSWER_MS = 60_000

_log = logging.getLogger(__name__)

# The last of KEYS is where the answer to a request is kept for its repetition.
_ONCE = """
local place = table.remove(KEYS)
local known = redis.call('GET', place)
if known then return cjson.decode(known) end
local function work()
%s
end
local answer = work()
redis.call('SET', place, cjson.encode(answer), 'PX', %d)
return answer
"""


def once(script: str) -> str:
    """A script that answers a request's repetition without doing anything again."""
    return _ONCE % (script, _ANSWER_MS)


class _Client:
    """What both kinds of client share."""

    _module = "redis"

    def __init__(
        self, url: str, *, setting: str, refusal: type[Exception], timeout_s: float
    ) -> None:
        """Prepare; nothing connects yet.

        Args:
            url: ``redis://`` or ``rediss://``; may hold a password, so no error
                repeats it.
            setting: where the URL comes from, for the error.
            refusal: raised where there can be no client, or no answer.
            timeout_s: of connecting, and of each answer.

        Raises:
            Exception: the refusal: the redis package is not installed, or not such a
                URL.
        """
        self._refusal = refusal
        self._next_check = 0.0
        try:
            module = importlib.import_module(self._module)
            retry = importlib.import_module(f"{self._module}.retry")
            no_backoff = importlib.import_module("redis.backoff").NoBackoff()
            self._exceptions: Any = importlib.import_module("redis.exceptions")
            self.client = module.Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=retry.Retry(no_backoff, RETRIES),
            )
        except ImportError:
            raise refusal("the package redis is not installed") from None
        except ValueError:
            raise refusal(f"{setting}: not a Redis URL") from None

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn what the library raises into the refusal."""
        try:
            yield
        except (self._exceptions.RedisError, OSError) as error:
            # The class says enough; the message may hold the address.
            raise self._refusal(f"redis: {type(error).__name__}") from None

    def _is_due(self) -> bool:
        """Whether the server must be looked at before it is asked again."""
        return time.monotonic() >= self._next_check

    def _judge(self, info: Mapping[str, Any]) -> None:
        """Refuse a server that may forget what it is told."""
        policy = info.get("maxmemory_policy")
        if policy != "noeviction":
            raise self._refusal(f"redis: maxmemory-policy is {policy}, not noeviction")
        self._next_check = time.monotonic() + CHECK_INTERVAL_S


class AsyncRedis(_Client):
    """A client for the event loop."""

    _module = "redis.asyncio"

    async def run(self, script: Any, keys: Sequence[str], values: Sequence[Any]) -> Any:
        """Run a script of `once`, or one that needs no such help.

        Raises:
            Exception: the refusal: no answer, or none to be relied on.
        """
        with self.reaching():
            if self._is_due():
                self._judge(await self.client.info("memory"))
            return await script(keys=keys, args=values)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()


class Redis(_Client):
    """A client for threads and commands."""

    def run(self, script: Any, keys: Sequence[str], values: Sequence[Any]) -> Any:
        """As `AsyncRedis.run`."""
        with self.reaching():
            if self._is_due():
                self._judge(self.client.info("memory"))
            return script(keys=keys, args=values)

    def outlives_restart(self) -> bool:
        """Whether what is written is on disk within a second (``appendonly``).

        Snapshots do not count: one that is an hour old brings back an hour-old list.

        Raises:
            Exception: the refusal: no answer.
        """
        with self.reaching():
            return bool(self.client.info("persistence").get("aof_enabled"))

    def look(self) -> bool:
        """Ask for what a start depends on.

        Returns:
            Whether the server is there; one that is away is waited for, while requests
            that need it are refused.

        Raises:
            Exception: the refusal: the server may forget, or refuses us.
        """
        try:
            self._judge(self.client.info("memory"))
        except (self._exceptions.RedisError, OSError) as error:
            why = _why(error)
            if not self._is_away(error):
                raise self._refusal(f"redis: {why}") from None
            _log.warning("redis: %s; what needs it is refused until it is there", why)
            return False
        return True

    def _is_away(self, error: BaseException) -> bool:
        denied = (
            self._exceptions.AuthenticationError,
            self._exceptions.AuthorizationError,
        )
        away = (self._exceptions.ConnectionError, self._exceptions.TimeoutError)
        return (
            isinstance(error, (*away, OSError))
            and not isinstance(error, denied)
            and _tls_error(error) is None
        )

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def check_redis(
    url: str, *, setting: str, refusal: type[Exception], timeout_s: float = 2.0
) -> None:
    """As `Redis.look`, of a URL of the settings.

    Raises:
        Exception: the refusal.
    """
    with contextlib.closing(
        Redis(url, setting=setting, refusal=refusal, timeout_s=timeout_s)
    ) as client:
        client.look()


def request_key() -> str:
    """Where the answer to one request is kept: the last key of a script of `once`."""
    return f"sealgate:once:{secrets.token_hex(16)}"


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _why(error: BaseException) -> str:
    """The class of an error, or TLS's own reason, which holds no address."""
    tls = _tls_error(error)
    return type(error).__name__ if tls is None else f"TLS: {tls.reason}"
