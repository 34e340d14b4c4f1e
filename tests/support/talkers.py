"""A server that says given bytes, whatever it is asked, and keeps the requests."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sealgate.steps import Fetch

LIMIT = 1 << 20


class Talker:
    """Answers each request on each connection with the same bytes.

    Attributes:
        url: where.
        connections: how many there were.
        requests: what was asked, heads with contents.
        asked: set when there was a request.
        ended: set when a client has closed a connection.
    """

    def __init__(
        self, said: bytes, *, close: bool, context: ssl.SSLContext | None
    ) -> None:
        self._said, self._close, self._context = said, close, context
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.requests: list[bytes] = []
        self.asked, self.ended = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._secure, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _secure(self, connection: socket.socket) -> None:
        if self._context is None:
            self._serve(connection)
            return
        try:
            secured = self._context.wrap_socket(connection, server_side=True)
        except OSError:  # the client has refused it, or is gone
            connection.close()
            self.ended.set()
            return
        self._serve(secured)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            while request := self._request(file):
                self.requests.append(request)
                self.asked.set()
                try:
                    connection.sendall(self._said)
                except OSError:  # it has read enough
                    return
                if self._close:
                    return
            self.ended.set()

    def _request(self, file) -> bytes:
        text, length = b"", 0
        try:
            for line in file:
                text += line
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
                if line == b"\r\n":
                    break
            return text + file.read(length)
        except ConnectionError:
            return b""


@contextmanager
def talker(
    said: bytes, *, close: bool = False, context: ssl.SSLContext | None = None
) -> Iterator[Talker]:
    found = Talker(said, close=close, context=context)
    try:
        yield found
    finally:
        found.stop()


def step(url: str, content: bytes | None = b"sealed") -> Fetch:
    fields = {"content-type": "message/ohttp-req"}
    method = "GET" if content is None else "POST"
    return Fetch(method, f"{url}/gateway?q=1", LIMIT, fields, content)
