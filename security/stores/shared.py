"""A Redis that all machines of a deployment share.

The package is optional: a deployment of one machine has no use for it.

What a store asks for may be sent twice: a connection that broke may have broken before
the request arrived or after it was done. So every script takes a request's id, and the
second time gives the answer of the first; and the client says how often it repeats,
whatever its library's default is.

A Redis that forgets what it must know under pressure (``allkeys-*``, ``volatile-*``) is
refused, at the start and while it is used. One that is away is asked again every tenth
of a second by one request; the others are refused meanwhile, so that no worker waits
with all of its requests, or storms a server that comes back.

In a cluster the keys that a script takes together have a tag in common, in braces;
elsewhere the names have none, and are what they were before there was a cluster.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import secrets
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from security.stores.clients import RETRIES, client_maker, errors
from security.stores.places import Reach, parse_place

__all__ = ["AsyncRedis", "Client", "Redis", "checked_redis", "once"]

CHECK_INTERVAL_S = 60.0
# So many failures in a row, and one request at a time tries again, after so long.
AWAY_AFTER = 3
AWAY_S = 0.1
# What a server of a cluster says to clients that know nothing of clusters.
_OF_A_CLUSTER = ("ClusterCrossSlotError", "MovedError")
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


class Client:
    """What both kinds of client share."""

    _asynchronous = False

    def __init__(
        self,
        url: str,
        reach: Reach,
        *,
        setting: str,
        refusal: type[Exception],
        timeout_s: float,
    ) -> None:
        """Prepare; nothing connects yet.

        Args:
            url: as of `security.stores.places`; may hold a password, so no error
                repeats it.
            reach: prefix of the keys, and certificates.
            setting: where the URL comes from, for the error.
            refusal: raised where there can be no client, or no answer.
            timeout_s: of connecting, and of each answer.

        Raises:
            Exception: the refusal: the redis package is not installed, or not such a
                URL.
        """
        self._refusal = refusal
        self._prefix = reach.prefix
        self._next_check = 0.0
        # Of one question, whomever the library asks.
        self._limit_s = timeout_s * (1 + RETRIES)
        self._failures = 0
        self._again_at = 0.0
        try:
            place = parse_place(url)
            self._exceptions: Any = errors()
            self._make = client_maker(
                place, reach, asynchronous=self._asynchronous, timeout_s=timeout_s
            )
        except ImportError:
            raise refusal("the package redis is not installed") from None
        except ValueError as error:
            raise refusal(f"{setting}: {error}") from None
        self.is_cluster = place.kind == "cluster"

    @functools.cached_property
    def client(self) -> Any:
        """The library's."""
        return self._make()

    def key(self, *parts: object, tag: str) -> str:
        """A key's name; of those with one tag a script may take several.

        >>> AsyncRedis("redis+cluster://a", Reach(), setting="store",
        ...     refusal=ValueError, timeout_s=1).key("quota", 7, tag="me")
        'sealgate:{me}:quota:7'
        """
        tags = (f"{{{tag}}}",) if self.is_cluster else ()
        return ":".join((self._prefix, *tags, *map(str, parts)))

    def request_key(self, *, tag: str) -> str:
        """Where a request's answer is kept: the last key of a script of `once`."""
        return self.key("once", secrets.token_hex(16), tag=tag)

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn what the library raises into the refusal."""
        try:
            yield
        except self._errors as error:
            # The class says enough; the message may hold the address.
            raise self._refusal(f"redis: {_why(error)}") from None

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """As `reaching`; while the server is away, one at a time asks."""
        if self._failures >= AWAY_AFTER:
            self._probe()
        try:
            with self.reaching():
                yield
        except self._refusal as refused:
            if self._is_away(refused.__context__ or refused):
                self._failures += 1
            raise
        else:
            self._failures = 0
        finally:  # also of a request that ended meanwhile, and learned nothing
            self._again_at = time.monotonic() + AWAY_S

    def _probe(self) -> None:
        """Let one request try again, and refuse it to the others until then."""
        now = time.monotonic()
        if now < self._again_at:
            raise self._refusal("redis: away")
        self._again_at = now + self._limit_s

    @property
    def _errors(self) -> tuple[type[BaseException], ...]:
        """What the library raises; of a cluster's client not all is a RedisError."""
        known = self._exceptions
        return known.RedisError, known.RedisClusterException, OSError

    def _is_due(self) -> bool:
        """Whether the server must be looked at before it is asked again."""
        return time.monotonic() >= self._next_check

    def _judge(self, infos: Iterable[Mapping[str, Any]]) -> None:
        """Refuse servers that may forget what they are told."""
        for info in infos:
            policy = info.get("maxmemory_policy")
            if policy != "noeviction":
                text = f"redis: maxmemory-policy is {policy}, not noeviction"
                raise self._refusal(text)
        self._next_check = time.monotonic() + CHECK_INTERVAL_S

    def _targets(self) -> dict[str, Any]:
        """Whom to ask about themselves: the server, or all masters of a cluster."""
        return {"target_nodes": self.client.PRIMARIES} if self.is_cluster else {}

    def _each(self, answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """What each server says of itself; of one server the library says no name."""
        several = all(isinstance(value, Mapping) for value in answer.values())
        return list(answer.values()) if self.is_cluster and several else [answer]

    def _is_away(self, error: BaseException) -> bool:
        """Whether waiting may help."""
        known = self._exceptions
        denied = (known.AuthenticationError, known.AuthorizationError)
        away = (
            *(known.ConnectionError, known.TimeoutError, known.ClusterDownError),
            *(known.RedisClusterException, OSError),
        )
        return (
            isinstance(error, away)
            and not _has_cause(error, denied)
            and _tls_error(error) is None
        )


class AsyncRedis(Client):
    """A client for the event loop."""

    _asynchronous = True

    async def run(self, script: str, keys: Sequence[str], values: Sequence[Any]) -> Any:
        """Run a script of `once`, or one that needs no such help.

        Raises:
            Exception: the refusal: no answer, or none to be relied on.
        """
        # A command that reads the ledger has no event loop, and would wait for this.
        import asyncio  # noqa: PLC0415

        with self._asking():
            async with asyncio.timeout(self._limit_s):
                return await self._run(script, keys, values)

    async def _run(
        self, script: str, keys: Sequence[str], values: Sequence[Any]
    ) -> Any:
        if self._is_due():
            info = await self.client.info("memory", **self._targets())
            self._judge(self._each(info))
        try:
            return await self.client.evalsha(_sha(script), len(keys), *keys, *values)
        except self._exceptions.NoScriptError:
            return await self.client.eval(script, len(keys), *keys, *values)

    async def close(self) -> None:
        """Close the connections."""
        if "client" in self.__dict__:
            with contextlib.suppress(*self._errors):
                await self.client.aclose()
                for sentinel in _sentinels(self.client):
                    await sentinel.aclose()


class Redis(Client):
    """A client for threads and commands."""

    def run(self, script: str, keys: Sequence[str], values: Sequence[Any]) -> Any:
        """As `AsyncRedis.run`."""
        with self.asking() as client:
            try:
                return client.evalsha(_sha(script), len(keys), *keys, *values)
            except self._exceptions.NoScriptError:
                return client.eval(script, len(keys), *keys, *values)

    @contextlib.contextmanager
    def asking(self) -> Iterator[Any]:
        """The library's client, for what needs no script.

        Raises:
            Exception: the refusal, of what is asked within.
        """
        with self._asking():
            self._check()
            yield self.client

    def _check(self) -> None:
        if self._is_due():
            self._judge(self._infos("memory"))

    def outlives_restart(self) -> bool:
        """Whether what is written is on disk within a second (``appendonly``).

        Snapshots do not count: one that is an hour old brings back an hour-old list.

        Raises:
            Exception: the refusal: no answer.
        """
        with self.reaching():
            return all(info.get("aof_enabled") for info in self._infos("persistence"))

    def look(self) -> bool:
        """Ask for what a start depends on.

        Returns:
            Whether the server is there; one that is away is waited for, while requests
            that need it are refused.

        Raises:
            Exception: the refusal: the server may forget, or refuses us.
        """
        try:
            self._judge(self._infos("memory"))
        except self._errors as error:
            why = _why(error)
            if not self._is_away(error):
                raise self._refusal(f"redis: {why}") from None
            _log.warning("redis: %s; what needs it is refused until it is there", why)
            return False
        return True

    def _infos(self, section: str) -> list[Mapping[str, Any]]:
        return self._each(self.client.info(section, **self._targets()))

    def close(self) -> None:
        """Close the connections."""
        if "client" in self.__dict__:
            with contextlib.suppress(*self._errors):
                self.client.close()
                for sentinel in _sentinels(self.client):
                    sentinel.close()


@contextlib.contextmanager
def checked_redis(
    url: str,
    reach: Reach,
    *,
    setting: str,
    refusal: type[Exception],
    timeout_s: float = 2.0,
) -> Iterator[Redis | None]:
    """As `Redis.look`, of a URL of the settings; says what a restart would lose.

    Yields:
        A client, for what else a start needs; None while the server is away.

    Raises:
        Exception: the refusal.
    """
    with contextlib.closing(
        Redis(url, reach, setting=setting, refusal=refusal, timeout_s=timeout_s)
    ) as client:
        is_there = client.look()
        if is_there and not client.outlives_restart():
            _log.warning("%s: a restart of its redis loses it; set appendonly", setting)
        yield client if is_there else None


@functools.cache
def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _sentinels(client: Any) -> Sequence[Any]:
    pool = getattr(client, "connection_pool", None)
    manager = getattr(pool, "sentinel_manager", None)
    return manager.sentinels if manager is not None else ()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _has_cause(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    return any(isinstance(one, kinds) for one in _causes(error))


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    return next((one for one in _causes(error) if isinstance(one, ssl.SSLError)), None)


def _why(error: BaseException) -> str:
    """The class of an error, or TLS's own reason, which holds no address."""
    tls = _tls_error(error)
    if tls is not None:
        return f"TLS: {tls.reason}"
    name, *causes = (type(one).__name__ for one in _causes(error))
    if name in _OF_A_CLUSTER:
        return f"{name}: a cluster, which redis+cluster:// names"
    # That no server of a cluster could be asked says less than why.
    return causes[0] if name == "RedisClusterException" and causes else name
