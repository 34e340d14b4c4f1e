"""Sealed requests, made before they are played: each is one of its own.

A sealed request passes once (the replay window) and not long after it was made (its
Date), so they are made in parallel, just before a run.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks.peers.load import http_request, write_requests
from sealgate.exchange import GATEWAY_PATH, build_request
from sealgate.protocol import bhttp, keyconfig, ohttp
from sealgate.protocol.padding import pad

_TYPE = {"Content-Type": ohttp.REQUEST_MEDIA_TYPE}


@dataclass(frozen=True)
class Order:
    """What is to be sealed.

    Attributes:
        keys: the ``application/ohttp-keys`` document of the server.
        kem_id: which of its keys.
        url: the server's.
        token: access token.
        path: of the inner request.
        body: its content.
        headers: its fields.
    """

    keys: bytes
    kem_id: int
    url: str
    token: str
    path: str
    body: bytes
    headers: Mapping[str, str]

    def message(self, now: float) -> bytes:
        """The padded Binary HTTP message that is sealed."""
        fields = {name.lower(): value for name, value in self.headers.items()}
        head = fields.get("inference-header-content-length")
        request = build_request(
            "POST",
            self.path,
            url=self.url,
            token=self.token,
            now=now,
            headers=tuple((n.encode(), v.encode()) for n, v in fields.items()),
            body=self.body,
        )
        align = None if head is None else int(head)
        return pad(bhttp.encode_request(request, align=align))

    def requests(self, count: int) -> Iterator[bytes]:
        """So many HTTP requests, no two of them alike."""
        configs = keyconfig.decode_list(self.keys)
        config = next(item for item in configs if item.kem_id == self.kem_id)
        message = self.message(time.time())
        host = self.url.partition("://")[2]
        for _ in range(count):
            sealed = bytes(ohttp.seal_request(config, message)[0])
            yield http_request(GATEWAY_PATH, sealed, _TYPE, host=host)


class Sealer:
    """Processes that seal. Close it, or use ``with``."""

    def __init__(self, processes: int | None = None) -> None:
        self._count = processes or os.cpu_count() or 1
        self._pool = ProcessPoolExecutor(self._count, get_context("spawn"))

    def __enter__(self) -> Sealer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def write(self, folder: Path, orders: list[Order], count: int) -> list[Path]:
        """Files with ``count`` requests in all, of each order in turn."""
        share = -(-count // self._count)
        paths = [folder / f"sealed-{number}" for number in range(self._count)]
        jobs = [self._pool.submit(_write, path, orders, share) for path in paths]
        for job in jobs:
            job.result()
        return paths


def interleave(*sources: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Items of each source in turn, ``count`` in all.

    >>> list(interleave(iter([b"a", b"c"]), iter([b"b", b"d"]), count=3))
    [b'a', b'b', b'c']
    """
    return itertools.islice(itertools.chain.from_iterable(zip(*sources)), count)


def _write(path: Path, orders: list[Order], count: int) -> None:
    share = -(-count // len(orders))
    sources = [order.requests(share) for order in orders]
    write_requests(path, interleave(*sources, count=count))
