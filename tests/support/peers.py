"""An endpoint of any model over real HTTP, sealed, that can be told to misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from sealgate.protocol.bhttp import Request, Response
from sealgate.protocol.tensors import TensorSpec
from sealgate.steps import Fetch
from tests.support.gateways import URL, Gateway, json_response, refusal
from tests.support.tensors import decode_request, encode_response

Model = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclass
class Peer:
    """One model, called m, with rows ``x`` of three numbers.

    Attributes:
        model: rows to outputs.
        outputs: as the metadata states them.
        trouble: told the number of the inference, from 1; gives the refusal to answer
            with, or raises what breaks the connection.
        seen: rows whose answer was sent, as bytes, in their order.
        times: when each inference came, by `time.monotonic`.
        max_rows: of one request.
        parameters: of the metadata.
    """

    model: Model
    outputs: tuple[dict[str, Any], ...]
    trouble: Callable[[int], Response | None] = lambda _: None
    max_rows: int = 1000
    seen: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    port: int = 0
    parameters: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def handle(self, request: Request) -> Response:
        path = request.path.decode()
        if path == "/v2":
            return json_response({"name": "peer", "version": "1", "extensions": []})
        if not path.endswith("/infer"):
            inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
            told = {"inputs": inputs, "outputs": list(self.outputs)}
            return json_response(told | {"parameters": self.parameters})
        self.times.append(time.monotonic())
        answer = self.trouble(len(self.times))
        if answer is not None:
            return answer
        specs = (TensorSpec("x", "FP32", (-1, 3)),)
        body = json.loads(bytes(request.body))
        rows = decode_request(body, specs, max_rows=10_000)["x"]
        if len(rows) > self.max_rows:
            return refusal(400)
        self.seen += [row.tobytes() for row in rows]
        return json_response(
            encode_response(self.model(rows).items(), model="m", version="1")
        )

    def profile(self, folder: Path) -> Path:
        path = folder / "peer.json"
        value = {"url": self.url, "token": "t", "model": "m"}
        path.write_text(json.dumps(value))
        return path


@contextmanager
def listening(peer: Peer) -> Iterator[Peer]:
    """The peer on a free port, until the block ends."""
    gateway = Gateway(handle=peer.handle)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def answer(self) -> None:
            size = int(self.headers.get("content-length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            content = self.rfile.read(size)
            step = Fetch(self.command, URL + self.path, 1 << 24, headers, content)
            try:
                given = gateway._fetch(step)
            except ConnectionError:
                self.close_connection = True  # without an answer
                return
            self.send_response(given.status)
            for name, value in given.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(given.body)))
            self.end_headers()
            self.wfile.write(given.body)

        do_GET = do_POST = answer  # noqa: N815  (the library's names)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    peer.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield peer
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)
