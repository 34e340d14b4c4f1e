"""A gateway that takes and gives streams, as slowly as a test wants."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from sealgate.errors import SealgateError
from sealgate.protocol import bhttp, keyconfig
from sealgate.protocol.bhttp import BhttpLimits, Request, Response
from sealgate.protocol.bhttp_stream import RequestDecoder
from sealgate.protocol.drafts.chunked import ChunkLimits, ChunkSealer, RequestOpener
from sealgate.protocol.hpke import KEM_X25519, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig

_ANY = 1 << 40
OHTTP_KEY = (
    b'{"type": "https://iana.org/assignments/http-problem-types#ohttp-key",'
    b' "title": "key"}'
)


@dataclass
class Peer:
    """What the gateway does, and what it saw.

    Attributes:
        answer: pieces of the inner answer's content, for a request.
        known: whether the answer says how long it is.
        reading: while unset, nothing more is read of a request's body.
        cut: end answers after this many sealed bytes, as if that were all.
        received: content bytes of the last request, and their digest.
        written: sealed bytes of the last answer that left for the network.
    """

    answer: Callable[[Request], list[bytes]] = lambda _: [b"answer"]
    known: bool = True
    cut: int | None = None
    url: str = ""
    received: int = 0
    digest: str = ""
    written: int = 0
    requests: list[Request] = field(default_factory=list)
    reading: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.rotate()

    def rotate(self) -> None:
        self._key = PrivateKey.generate()

    async def serve(self, reader: asyncio.StreamReader, writer) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET"):
                    config = KeyConfig(1, KEM_X25519, self._key.public_bytes)
                    document = keyconfig.encode_list([config])
                    _plain(writer, 200, b"application/ohttp-keys", document)
                else:
                    await self._exchange(reader, writer)
        except (OSError, asyncio.IncompleteReadError, ValueError, SealgateError):
            pass  # the other side left, or sent half a message
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def pause(self) -> None:
        """Read no more."""
        self._loop.call_soon_threadsafe(self.reading.clear)

    def resume(self) -> None:
        """Read again."""
        self._loop.call_soon_threadsafe(self.reading.set)

    def run(self, ready: threading.Event) -> None:
        """Serve until `stop`."""
        self._loop = asyncio.new_event_loop()
        try:
            self._loop.run_until_complete(self._main(ready))
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)

    async def _main(self, ready: threading.Event) -> None:
        self._stopped = asyncio.Event()
        listening = socket.create_server(("127.0.0.1", 0))
        # Its connections get these sizes too, instead of ones that grow.
        for side in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            listening.setsockopt(socket.SOL_SOCKET, side, 1 << 16)
        server = await asyncio.start_server(self.serve, sock=listening, limit=1 << 18)
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        ready.set()
        async with server:
            await self._stopped.wait()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _exchange(self, reader: asyncio.StreamReader, writer) -> None:
        key = self._key
        opener = RequestOpener(lambda _: key, ChunkLimits(max_message_bytes=_ANY))
        decoder = RequestDecoder(BhttpLimits(max_body_bytes=_ANY, max_chunks=_ANY))
        digest = hashlib.sha256()
        self.received = 0

        def take(chunks: list[bytes]) -> None:
            for event in (e for chunk in chunks for e in decoder.feed(chunk)):
                if isinstance(event, Request):
                    self.requests.append(event)
                elif isinstance(event, bytes):
                    self.received += len(event)
                    digest.update(event)

        async for data in _http_chunks(reader, self.reading):
            with suppress(SealgateError):  # once broken, an opener stays so
                take(opener.feed(data))
        with suppress(SealgateError):
            take([opener.finish()])
            decoder.finish()
            self.digest = digest.hexdigest()
            await self._respond(writer, opener.seal_response())
            return
        _plain(writer, 422, b"application/problem+json", OHTTP_KEY)

    async def _respond(self, writer, sealer: ChunkSealer) -> None:
        pieces = self.answer(self.requests[-1])
        body = b"".join(pieces) if self.known else b""
        front = b"".join(
            bhttp.response_parts(Response(200, (), body), known=self.known)[:2]
        )
        sealed = [sealer.head, sealer.seal(front)]
        if self.known:
            parts = [*pieces, b"\0"]
        else:
            parts = [bhttp.chunk_front(len(p)) + p for p in pieces] + [b"\0\0"]
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: message/ohttp-chunked-res\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        self.written = 0
        text = b"".join(parts)
        for start in range(0, len(text), 16384):
            sealed.append(sealer.seal(text[start : start + 16384]))
            for data in sealed:
                self.written += len(data)
                if self.cut is not None and self.written > self.cut:
                    writer.write(b"0\r\n\r\n")
                    return
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                await writer.drain()
            sealed.clear()
        final = sealer.finish()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(final), final))
        await writer.drain()


async def _http_chunks(
    reader: asyncio.StreamReader, reading: asyncio.Event
) -> AsyncIterator[bytes]:
    while size := int(await reader.readline(), 16):
        await reading.wait()
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readline()


def _plain(writer, status: int, kind: bytes, content: bytes) -> None:
    writer.write(
        b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
        % (status, kind, len(content), content)
    )


@contextmanager
def serving(peer: Peer) -> Iterator[Peer]:
    """Serve it on a free port until the block ends; it reads from the start."""
    ready = threading.Event()
    peer.reading.set()
    thread = threading.Thread(target=peer.run, args=(ready,))
    thread.start()
    try:
        if not ready.wait(10):
            raise AssertionError("the peer did not start")
        yield peer
    finally:
        peer.stop()
        thread.join(10)
