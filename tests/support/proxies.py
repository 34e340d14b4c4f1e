"""A running sealing proxy, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sealgate import AsyncClient, Options
from sealgate.peers import is_our_end, is_ours
from sealgate.proxy import Proxy, ProxyLimits

if TYPE_CHECKING:
    from sealgate.rpc.listener import Lend, RpcLimits

Told = Callable[[object], None]
Serve = Callable[[AsyncClient, asyncio.Event, Told], Awaitable[None]]


@contextmanager
def proxy(
    url: str,
    *,
    token: str = "none",  # noqa: S107  (no secret)
    hosts: bool = True,
    lend: Callable[[socket.socket], bool] = is_ours,
    limits: ProxyLimits = ProxyLimits(),
    options: Options = Options(),
) -> Iterator[int]:
    """The port on 127.0.0.1 of a proxy to ``url``, until the block ends."""
    endpoint = socket.create_server(("127.0.0.1", 0))
    port = endpoint.getsockname()[1]
    served = {b"127.0.0.1:%d" % port, b"localhost:%d" % port}

    async def serve(client: AsyncClient, stop: asyncio.Event, started: Told) -> None:
        allowed = served if hosts else None
        server = Proxy(client, hosts=allowed, lend=lend, limits=limits)
        await server.serve(endpoint, stop=stop, started=lambda: started(port))

    with _running(serve, url, token, options):
        yield port


@contextmanager
def grpc_proxy(
    url: str,
    *,
    token: str = "none",  # noqa: S107  (no secret)
    lend: Lend = is_our_end,
    limits: RpcLimits | None = None,
    options: Options = Options(),
) -> Iterator[str]:
    """The same for gRPC: its address, for a channel."""
    from sealgate.rpc.listener import Listener, RpcLimits

    async def serve(client: AsyncClient, stop: asyncio.Event, started: Told) -> None:
        server = Listener(client, lend=lend, limits=limits or RpcLimits())
        await server.serve("127.0.0.1", 0, stop=stop, started=started)

    with _running(serve, url, token, options) as where:
        yield str(where).removeprefix("grpc://")


@contextmanager
def _running(serve: Serve, url: str, token: str, options: Options) -> Iterator[object]:
    ready = threading.Event()
    told: list[object] = []
    failures: list[BaseException] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def started(where: object) -> None:
        told.append(where)
        ready.set()

    async def main() -> None:
        async with AsyncClient(
            url, token=token, options=options, timeout_s=60
        ) as client:
            await serve(client, stop, started)

    def run() -> None:
        try:
            loop.run_until_complete(main())
        except BaseException as error:  # noqa: BLE001  (raised by who waits)
            failures.append(error)
        finally:
            ready.set()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(10)
    try:
        yield told[0]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not failures, failures
