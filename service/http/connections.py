"""What uvicorn's next server speaks: our protocol, our TLS, nothing else left open."""

from __future__ import annotations

import contextlib
import logging
import math
import resource
from dataclasses import replace

from uvicorn.config import Config
from uvicorn.protocols.http import auto as http_auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets import auto as websockets_auto
from uvicorn.server import Server

from security.settings.loading import Settings
from security.settings.service import ServiceSettings
from service.http.ending import refusing
from service.http.exchange import Answerer
from service.http.heads import Heads
from service.http.protocol import BoundedProtocol
from service.http.tls import harden, server_context
from service.telemetry.metrics import Metrics

__all__ = ["bounded_protocol", "install", "openable"]

# What a worker opens beside connections: logs, stores, keys, whom it asks.
_OTHER_FILES = 256
# Connections that are accepted at once, before one of them can be made room for: as
# many as wait to be.
_BACKLOG = 2048

_log = logging.getLogger(__name__)


def install(settings: Settings, metrics: Metrics, answerer: Answerer) -> None:
    """Make uvicorn's next server in this process use the bounded protocol, and TLS.

    BentoML's worker makes its uvicorn configuration by itself, with protocols by the
    name "auto"; these are the two names that stands for. The rest is set when that
    configuration is loaded.

    Raises:
        SealgateError: a file of TLS cannot be used.
    """
    service = settings.service
    bounds = replace(service, max_connections=openable(service.max_connections))
    http_auto.AutoHTTPProtocol = bounded_protocol(bounds, metrics, answerer)
    websockets_auto.AutoWebSocketsProtocol = None
    context = server_context(settings.tls) if settings.tls.enabled else None
    bound_s = settings.service.shutdown_timeout_s
    load = Config.load

    def load_bounded(config: Config) -> None:
        config.server_header = False
        # Whose address the client has makes no difference to any answer.
        config.proxy_headers = False
        given_s = config.timeout_graceful_shutdown
        config.timeout_graceful_shutdown = math.ceil(min(given_s or bound_s, bound_s))
        load(config)
        if context is not None:
            config.ssl = context
        elif config.ssl is not None:  # by BentoML's own options
            harden(config.ssl)

    # BentoML offers no other way.
    Config.load = load_bounded  # type: ignore[method-assign, assignment]
    Server.shutdown = refusing(Server.shutdown)  # type: ignore[method-assign, assignment]


def openable(connections: int) -> int:
    """Let this process have descriptors for so many connections, as far as it may.

    Systems give a process 1024 unless it asks for more. Strangers could take them all
    before any bound of ours is reached, and then nothing is answered, or written.

    Args:
        connections: wanted at once.

    Returns:
        For how many of them the limit that cannot be raised has descriptors.
    """
    wanted = connections + _BACKLOG + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError):  # a system with a bound of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft == resource.RLIM_INFINITY or soft >= connections + _OTHER_FILES:
        return connections
    fewer = min(connections, max(soft - _OTHER_FILES, soft // 2))
    _log.warning(
        "service.max_connections: %d of %d: this process may open %d files",
        fewer, connections, soft,
    )  # fmt: skip
    return fewer


def bounded_protocol(
    settings: ServiceSettings, metrics: Metrics, guard: Answerer
) -> type[HttpToolsProtocol]:
    """Uvicorn's protocol with the settings' bounds."""

    class Bounded(BoundedProtocol):
        bounds = settings
        max_head_bytes = settings.max_head_bytes
        told = metrics
        answerer = guard
        heads = Heads()
        sweep_s = max(0.05, min(settings.head_timeout_s, settings.idle_timeout_s) / 8)
        sweeper = None

    return Bounded
