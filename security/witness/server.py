"""A witness's HTTP interface (C2SP tlog-witness).

===============================================  =====================================
``POST /add-checkpoint``                         cosign a checkpoint
``GET /<origin hash>/checkpoint``                the latest one that was cosigned
``GET /<origin hash>/checkpoint/<size>``         the one of a size
``GET /<origin hash>/history?after=<size>``      sizes, roots and times of all, in pages
``GET /<origin hash>/forks``                     what a log signed against itself
===============================================  =====================================

The first two are the specification's; the others are ours, for auditors. The origin
hash is SHA-256 of a log's origin in hexadecimal.

Strangers may ask. Heads, bodies and connections are bounded (`sealgate.listener`), a
request has to come whole in time, one address has a part of the connections, and what
is told on standard error is bounded by the rates of the known logs and the clock.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import ipaddress
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from sealgate.errors import ClientError
from sealgate.inbound import BadRequestError, Head
from sealgate.listener import Listener, ListenerLimits, Upload
from sealgate.protocol.bhttp import Response
from sealgate.protocol.tlog_witness import MAX_REQUEST_BYTES
from security.errors import WitnessError
from security.witness.state import State
from security.witness.witness import TEXT, Refused, Witness

__all__ = ["Server", "ServerLimits"]

MAX_HISTORY = 1000
_TELL_EVERY_S = 60.0
_MONITORED = re.compile(
    r"/(?P<hash>[0-9a-f]{64})/(?P<what>checkpoint|history|forks)"
    r"(?:/(?P<size>0|[1-9][0-9]{0,17}))?(?:\?after=(?P<after>0|[1-9][0-9]{0,17}))?"
)


@dataclass(frozen=True)
class ServerLimits(ListenerLimits):
    """Bounds on what the server takes: a listener's, and two more.

    Attributes:
        request_timeout_s: for all of a request's body to arrive.
        max_connections_of_one: from one address, or one IPv6 network of 64 bits. Not
            from this machine, where a reverse proxy may stand for all.
    """

    max_head_bytes: int = 8 << 10
    max_body_bytes: int = MAX_REQUEST_BYTES
    kept_body_bytes: int = 4 * MAX_REQUEST_BYTES
    head_timeout_s: float = 15.0
    body_timeout_s: float = 10.0
    request_timeout_s: float = 15.0
    max_connections_of_one: int = 32


class Server(Listener):
    """Answers for one witness."""

    def __init__(
        self,
        witness: Witness,
        state: State,
        *,
        origins: Iterable[str],
        tell: Callable[[str], None],
        limits: ServerLimits = ServerLimits(),
    ) -> None:
        """Nothing listens yet.

        Args:
            witness: decides.
            state: what auditors ask for.
            origins: of the known logs.
            tell: gets lines for the operator.
            limits: bounds.
        """
        super().__init__(hosts=None, limits=limits)
        self._witness = witness
        self._state = state
        self._origins = {
            hashlib.sha256(origin.encode()).hexdigest(): origin for origin in origins
        }
        self._tell = tell
        self._limits = limits
        # One thread: the state has one user, and a slow disk holds up no connection.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="witness")
        self._places: WeakKeyDictionary[asyncio.StreamWriter, str] = WeakKeyDictionary()
        self._refusals: Counter[int] = Counter()
        self._told_s = time.monotonic()
        self._told_error_s = -math.inf

    def close(self) -> None:
        """End the thread, when what it does is done."""
        self._thread.shutdown()

    def _has_room(self, writer: asyncio.StreamWriter) -> bool:
        place = _place(writer)
        if place:
            self._places[writer] = place
        others = sum(
            other == place and not known.is_closing()
            for known, other in self._places.items()
            if place
        )
        return super()._has_room(writer) and (
            others <= self._limits.max_connections_of_one
        )

    async def _answer(
        self, head: Head, upload: Upload, writer: asyncio.StreamWriter
    ) -> bool:
        async with asyncio.timeout(self._limits.request_timeout_s):
            body = await upload.begin()
        if not isinstance(body, bytes):  # beyond kept_body_bytes: each costs work
            raise BadRequestError(400, "the body comes in too small parts")
        loop = asyncio.get_running_loop()
        work = functools.partial(self._work, head, body)
        response = await loop.run_in_executor(self._thread, work)
        self._count(response.status)
        close = not head.keep_alive or self._stopping
        await self._write_whole(writer, head, response, close=close)
        return not close

    def _refusal(self, error: ClientError) -> Response:
        status = error.status if isinstance(error, BadRequestError) else 500
        self._count(status)
        return _text(status, f"{error}\n")

    def _work(self, head: Head, body: bytes) -> Response:
        """In the thread."""
        try:
            return self._respond(head.method, head.target.decode("ascii"), body)
        except Refused as refused:
            fields: tuple[tuple[bytes, bytes], ...] = ()
            if refused.retry_after_s is not None:
                fields = ((b"retry-after", b"%d" % refused.retry_after_s),)
            kind = refused.media_type.encode()
            content = refused.detail.encode()
            headers = ((b"content-type", kind), *fields)
            return Response(refused.status, headers, content)
        except WitnessError as error:
            self._tell_error(error)
            return _text(503, "the state of this witness cannot be used\n")

    def _respond(self, method: bytes, target: str, body: bytes) -> Response:
        if target == "/add-checkpoint":
            if method != b"POST":
                return _text(405, "POST it\n", (b"allow", b"POST"))
            return _text(200, self._witness.add_checkpoint(body, now_s=time.time()))
        match = _MONITORED.fullmatch(target)
        if match is None:
            raise Refused(404, "no such page\n")
        if method not in (b"GET", b"HEAD"):
            return _text(405, "GET it\n", (b"allow", b"GET, HEAD"))
        origin = self._origins.get(match["hash"])
        if origin is None:
            raise Refused(404, "a log that this witness does not know\n")
        what, size, after = match["what"], match["size"], match["after"]
        if what == "history" and size is None:
            return _text(200, self._history(origin, int(after or -1)))
        if what == "forks" and size is after is None:
            forks = self._state.forks(origin)
            return _text(200, b"".join(fork.note + b"\n" for fork in forks))
        if what != "checkpoint" or after is not None:
            raise Refused(404, "no such page\n")
        found = (
            self._state.latest(origin)
            if size is None
            else self._state.at(origin, int(size))
        )
        if found is None:
            raise Refused(404, "no such checkpoint was cosigned\n")
        return _text(200, found.note)

    def _history(self, origin: str, after: int) -> bytes:
        return b"".join(
            b"%d %b %d\n" % (size, base64.b64encode(root), time_s)
            for size, root, time_s in self._state.after(origin, after, MAX_HISTORY)
        )

    def _tell_error(self, error: WitnessError) -> None:
        """Tell at once, and then no more than every minute."""
        now_s = time.monotonic()
        if now_s - self._told_error_s >= _TELL_EVERY_S:
            self._told_error_s = now_s
            self._tell(f"error: {error}")

    def _count(self, status: int) -> None:
        """Tell of refusals, all of a minute in one line."""
        if status >= 400:
            self._refusals[status] += 1
        now_s = time.monotonic()
        if self._refusals and now_s - self._told_s >= _TELL_EVERY_S:
            counts = ", ".join(f"{n} of {s}" for s, n in sorted(self._refusals.items()))
            self._tell(f"refused lately, by status: {counts}")
            self._refusals.clear()
            self._told_s = now_s


def _text(status: int, content: bytes | str, *fields: tuple[bytes, bytes]) -> Response:
    body = content.encode() if isinstance(content, str) else content
    return Response(status, ((b"content-type", TEXT.encode()), *fields), body)


def _place(writer: asyncio.StreamWriter) -> str:
    """What counts as one address; empty for this machine, and for Unix sockets."""
    peer = writer.get_extra_info("peername")
    try:
        address = ipaddress.ip_address(peer[0].partition("%")[0])
    except (IndexError, TypeError, ValueError):
        return ""
    if address.is_loopback:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is not None:
            return "" if mapped.is_loopback else str(mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
