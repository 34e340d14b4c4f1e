"""A running sealing proxy, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sealgate import AsyncClient, Options
from sealgate.peers import is_ours
from sealgate.proxy import Proxy, ProxyLimits


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
    ready = threading.Event()
    failures: list[BaseException] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    served = {b"127.0.0.1:%d" % port, b"localhost:%d" % port}

    async def main() -> None:
        async with AsyncClient(
            url, token=token, options=options, timeout_s=60
        ) as client:
            allowed = served if hosts else None
            server = Proxy(client, hosts=allowed, lend=lend, limits=limits)
            await server.serve(endpoint, stop=stop, started=ready.set)

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
        yield port
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not failures, failures
