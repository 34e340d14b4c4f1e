"""The redis library's clients: of a server, of Sentinels' master, of a cluster.

How often each repeats is said here, whatever the library's default is: once. So a store
knows what may be done twice, and how long it waits at most.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from security.stores.places import Place, Reach

__all__ = ["RETRIES", "client_maker", "errors"]

RETRIES = 1
# More requests than this are never in work in one worker, unless somebody asks for it.
MAX_CONNECTIONS = 4096


def errors() -> Any:
    """The library's exceptions.

    Raises:
        ImportError: the redis package is not installed.
    """
    return importlib.import_module("redis.exceptions")


def client_maker(
    place: Place, reach: Reach, *, asynchronous: bool, timeout_s: float
) -> Callable[[], Any]:
    """What makes a client; a cluster's for threads connects at once.

    Args:
        place: where the server is.
        reach: certificates.
        asynchronous: for an event loop; else for threads.
        timeout_s: of connecting, and of each answer.

    Raises:
        ImportError: the redis package is not installed.
        ValueError: not such a URL, or a file of certificates is not there.
    """
    room = "redis.asyncio" if asynchronous else "redis"
    module = importlib.import_module(room)
    parse_url = importlib.import_module(f"{room}.connection").parse_url
    options = {**parse_url(place.url), **_times(room, timeout_s, RETRIES)}
    options |= _certificates(place, reach)
    is_tls = options.pop("connection_class", None) is not None
    if place.kind == "server":
        pool = importlib.import_module(f"{room}.connection")
        kind = pool.SSLConnection if is_tls else pool.Connection
        options |= {"connection_class": kind, "max_connections": MAX_CONNECTIONS}
        return lambda: module.Redis.from_pool(pool.ConnectionPool(**options))
    for name in ("host", "port"):
        options.pop(name, None)
    if is_tls:
        options["ssl"] = True
    if place.kind == "cluster":
        options.pop("db", None)
        return partial(_cluster, room, place, options)
    sentinels = {key: options[key] for key in options if key.startswith("ssl")}
    # The next Sentinel is asked instead of the same one again, and all of them within
    # the time of one answer: those that say nothing keep nobody from the others.
    sentinels |= _times(room, timeout_s / len(place.hosts), 0) | place.sentinel
    options["max_connections"] = MAX_CONNECTIONS
    return partial(_master, room, place, sentinels, options)


def _times(room: str, timeout_s: float, retries: int) -> dict[str, Any]:
    retry = importlib.import_module(f"{room}.retry")
    no_backoff = importlib.import_module("redis.backoff").NoBackoff()
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": retry.Retry(no_backoff, retries),
    }


def _certificates(place: Place, reach: Reach) -> dict[str, Any]:
    """Of TLS alone: without it the library knows no such options."""
    if not place.url.startswith("rediss:"):
        return {}
    files = {
        "ssl_ca_certs": reach.ca,
        "ssl_certfile": reach.certificate,
        "ssl_keyfile": reach.key,
    }
    named = {name: path for name, path in files.items() if path is not None}
    for path in named.values():
        if not path.is_file():  # or each attempt to connect would fail
            raise ValueError(f"{path}: no such file, which [redis] names")
    return {name: str(path) for name, path in named.items()}


def _cluster(room: str, place: Place, options: dict[str, Any]) -> Any:
    module = importlib.import_module(f"{room}.cluster")
    nodes = [module.ClusterNode(*host) for host in place.hosts]
    return module.RedisCluster(startup_nodes=nodes, **options)


def _master(
    room: str, place: Place, sentinels: dict[str, Any], options: dict[str, Any]
) -> Any:
    module = importlib.import_module(f"{room}.sentinel")
    known = module.Sentinel(place.hosts, sentinel_kwargs=sentinels)
    return known.master_for(place.service, **options)
