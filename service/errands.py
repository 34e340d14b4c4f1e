"""What `service.turns` knows of a request that came whole, and of its head."""

from __future__ import annotations

import time

from sealgate.protocol.bhttp import Body, Headers, Request, Response
from security.access.quotas import Ticket
from security.access.tokens import Principal
from service.gateway import Opened
from service.http.exchange import Connection, Cycle, Reply
from service.http.heads import Head
from service.inference.items import Item
from service.inference.served import Served
from service.inferences import Inference
from service.telemetry.recorder import Decision

__all__ = ["Errand", "Note", "SealedNote", "scheme_of"]


class Note:
    """What the head of an inference says, in all requests with it.

    Attributes:
        token: of its caller, a bearer.
        model: its name.
        version: the one that is asked for, if any.
        lengths: of the JSON, as `content_fields` has it.
    """

    __slots__ = ("lengths", "model", "token", "version")

    def __init__(
        self, token: str, model: str, version: str | None, lengths: list[bytes]
    ) -> None:
        self.token, self.model, self.version = token, model, version
        self.lengths = lengths


class SealedNote:
    """Of a head: what follows is a sealed request."""


class Errand(Cycle):
    """One request of a turn, on its connection in the place of uvicorn's cycle.

    Attributes:
        known, body: as they came.
        opened: what was sealed in it; None of a plaintext one.
        note, content: of the inference that is asked for.
        principal: who asks, where that is known before step 1.
        verified_s: how long finding that out took.
        decision: what its record will say, once it is charged.
        inference: what is run for it, once that has been read.
        item: its place in that run.
        waits: whether it still has that place.
        ticket: what its quotas were charged with, until that is given back.
        response: its answer, once it has one.
        reason: of a refusal.
        fields: what its quotas say.
    """

    __slots__ = (
        "body", "came", "connection", "content", "decision", "fields", "inference",
        "item", "known", "model", "note", "opened", "principal", "reason", "reply",
        "response", "ticket", "verified_s", "waits",
    )  # fmt: skip

    decision: Decision
    model: Served
    inference: Inference
    item: Item
    response: Response
    reply: Reply
    note: Note

    def __init__(self, connection: Connection, known: Head, body: bytes) -> None:
        super().__init__(
            connection, keep_alive=True, default_headers=connection.default_headers
        )
        self.connection, self.known, self.body = connection, known, body
        self.vouched = True  # else its head would not be known
        self.came = time.perf_counter()
        self.content: Body = body
        self.opened: Opened | None = None
        self.principal: Principal | None = None
        self.verified_s = 0.0
        self.reason: str | None = None
        self.fields: Headers = ()
        self.ticket: Ticket | None = None
        self.waits = False

    @property
    def outer(self) -> Request:
        """The request as it came."""
        return self.known.request(scheme_of(self.connection), self.body)

    @property
    def request(self) -> Request:
        """The request for an inference."""
        inner = None if self.opened is None else self.opened.request
        return inner or self.outer

    def give_back(self) -> None:
        """What it has taken to be answered: its place in a run, its slot."""
        if self.waits:
            self.waits = False
            self.model.batcher.leave(self.item)
        if self.ticket is not None:
            self.fields = self.ticket.leave()
            self.ticket = None

    def end(self) -> None:
        """Its answer was written, or could not be."""
        self.response_complete = True
        self.connection.end_exchange(None)


def scheme_of(connection: Connection) -> bytes:
    """Of what comes on a connection."""
    return b"http" if connection.scheme == "http" else b"https"
