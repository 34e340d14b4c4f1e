"""Inferences that came whole in one turn of the event loop, answered side by side.

Most requests are alike: a caller whose token is known asks, with a head that was parsed
before, for an inference by a model that answers by itself, and all of it is there.
Nothing of that has to be waited for. So the requests of one turn take each step one
after another, without a task, a future to wake it or a message between layers: what
they have in common stays in the caches (decision 0042), and the model runs once, the
log is written once for all of them (decision 0124).

1. the caller, the model, the permission, the quota: whoever is refused here, and
   whatever may have to wait, goes the ordinary way from the start (`Routes.answer`),
   since nothing has been charged or recorded;
2. the content is read, its rows are charged;
3. the models run;
4. answers are written down, budgets given back;
5. all of it is recorded, then sent.

From 2 on what has to be waited for goes on in a task (`Routes.settle`), from there.
Every check and every text is that of the ordinary way: both call the same functions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol

from sealgate.errors import SealgateError
from sealgate.protocol.bhttp import Headers, Request, Response
from security.admission.lifecycle import Withdrawn
from service.content import Asked, Content, content_fields, told
from service.http.exchange import Connection, Cycle, Reply
from service.http.heads import Head
from service.http.intake import Intake
from service.inference.batching import Item
from service.inference.served import Served
from service.inferences import Inference, name_model
from service.routes import Routes, asked_inference, id_field
from service.telemetry.casualties import Notes
from service.telemetry.recorder import Decision
from service.telemetry.tracing import TRACEPARENT

__all__ = ["Errand", "Host", "Turns"]

_log = logging.getLogger(__name__)

# More are left to the next turn.
_MOST = 64

Work = Coroutine[Any, Any, Response]


class Host(Protocol):
    """Who turns are taken for: `service.guard.Guard`."""

    def reply_to(
        self, head: Head, scheme: bytes, response: Response, fields: Headers
    ) -> Reply:
        """All of an answer's header fields, these among them."""

    def answer(
        self, request: Request, certificate: str | None
    ) -> Coroutine[Any, Any, Reply]:
        """The ordinary way of a whole request."""

    def go_on(
        self, work: Work, request: Request, certificate: str | None
    ) -> Coroutine[Any, Any, Reply]:
        """What remains of one, as a task."""


class _Note:
    """What a head says that all requests with it have in common.

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


class Errand(Cycle):
    """One request of a turn, on its connection in the place of uvicorn's cycle.

    Attributes:
        decision: what its record will say, once it is charged.
        inference: what is run for it, once that has been read.
        item: its place in that run.
        response: its answer, once it has one.
        reason: of a refusal.
        fields: what its quotas say.
    """

    __slots__ = (
        "body", "came", "connection", "decision", "fields", "inference", "item",
        "known", "model", "reason", "response",
    )  # fmt: skip

    decision: Decision
    model: Served
    inference: Inference
    item: Item
    response: Response

    def __init__(self, connection: Connection, known: Head, body: bytes) -> None:
        super().__init__(
            connection, keep_alive=True, default_headers=connection.default_headers
        )
        self.connection, self.known, self.body = connection, known, body
        self.came = time.perf_counter()
        self.reason: str | None = None
        self.fields: Headers = ()

    def end(self) -> None:
        """Its answer was written, or could not be."""
        self.response_complete = True
        self.connection.end_exchange(None)


class Turns:
    """Gathers what comes in one turn, and answers it at its end."""

    def __init__(self, routes: Routes, intake: Intake, host: Host) -> None:
        """Wire it.

        Args:
            routes: whose ways are taken.
            intake: the places of this worker.
            host: takes what is not answered here.
        """
        self._routes, self._intake, self._host = routes, intake, host
        self._errands: list[Errand] = []
        self._answered: list[Errand] = []

    def take(self, connection: Connection, head: Head, body: bytes) -> Errand | None:
        """Answer a request at the end of this turn; None if it is not such a one."""
        if head.note is None:
            head.note = self._note(head) or False
        if not head.note or not self._intake.enter(len(body)):
            return None
        if not self._errands:
            asyncio.get_running_loop().call_soon(self._run)
        errand = Errand(connection, head, body)
        self._errands.append(errand)
        return errand

    def _note(self, head: Head) -> _Note | None:
        """What is known of a head, if its requests can be answered here."""
        asked = asked_inference(head.path)
        if (
            asked is None
            or head.method != b"POST"
            or any(name == TRACEPARENT for name, _ in head.headers)
            or self._routes.require_sealed
            or self._intake.tracer is not None
        ):
            return None
        try:
            token = self._routes.callers.bearer_token(head.headers)
            lengths, coding = content_fields(head.headers)
        except SealgateError:
            return None
        if token is None or coding is not None:
            return None
        return _Note(token, *asked, lengths)

    def _run(self) -> None:
        errands, self._errands = self._errands[:_MOST], self._errands[_MOST:]
        if self._errands:
            asyncio.get_running_loop().call_soon(self._run)
        self._intake.tell()
        running = self._each(self._read, self._each(self._charge, errands))
        for batcher in {errand.model.batcher for errand in running}:
            batcher.run_queued()
        self._each(self._answer, running)
        answered, self._answered = self._answered, []
        if answered:
            self._record(answered)
        self._intake.tell()

    # Step 1.

    def _charge(self, errand: Errand) -> bool:
        if self._admit(errand):
            return True
        self._begin(errand, self._host.answer)
        return False

    def _admit(self, errand: Errand) -> bool:
        """Whether a request is charged; if not, nothing has happened."""
        routes, note, known = self._routes, errand.known.note, errand.known
        began = time.perf_counter()
        try:
            principal = routes.callers.bearer(note.token, errand.connection.certificate)
            state = routes.lineup.find_untried(note.model, note.version)
            if state is None or isinstance(state, Withdrawn):
                return False
            model = state.content
            routes.permissions.authorize(
                principal, note.model, model.manifest.version, "infer"
            )
            if model.expires_at <= routes.clock():
                return False
            verified = time.perf_counter()
            ticket = routes.quotas.enter_at_once(principal, note.model)
        except SealgateError:
            return False
        if ticket is None:
            return False
        routes.verified(verified - began)
        errand.model = model
        errand.decision = decision = Decision(
            sealed=False,
            started=errand.came,
            principal=principal,
            model=note.model,
            action="infer",
            request_bytes=len(errand.body),
            ticket=ticket,
            method=known.method,
            scheme=_scheme(errand.connection),
        )
        name_model(decision, model)
        return True

    # Step 2.

    def _read(self, errand: Errand) -> bool:
        model, decision = errand.model, errand.decision
        inferences, ticket = self._routes.inferences, decision.ticket
        try:
            content = Content.at_once(errand.body, errand.known.note.lengths)
            if content is None:
                request = _request(errand)
                self._settle(errand, inferences.infer(request, model, decision))
                return False
            asked = Asked.of(
                content,
                model.input_specs,
                model.output_names,
                max_rows=model.manifest.max_rows,
            )
            source = inferences.source(asked, model)
            if (
                ticket is None
                or asked.takes_long
                or not ticket.charge_at_once(asked.rows)
            ):
                self._settle(errand, inferences.answer(asked, model, decision))
                return False
            decision.rows = asked.rows
            inputs = asked.inputs_at_once()
            errand.inference = inferences.begin(
                asked, model, decision, source=source, inputs=inputs
            )
        except SealgateError as error:
            self._refuse(errand, error)
            return False
        return self._submit(errand)

    # Step 3.

    def _submit(self, errand: Errand) -> bool:
        inference = errand.inference
        note = Notes.text(*inference.who, errand.model.tag)
        try:
            errand.item = errand.model.batcher.submit(
                inference.inputs, inference.outputs, note
            )
        except SealgateError as error:
            self._refuse(errand, told(error))
            return False
        return True

    # Step 4.

    def _answer(self, errand: Errand) -> None:
        item, inference, batcher = errand.item, errand.inference, errand.model.batcher
        inferences = self._routes.inferences
        try:
            response = None
            if item.future.done():
                response = inferences.finish_at_once(inference, item.future.result())
        except SealgateError as error:
            batcher.leave(item)
            self._refuse(errand, told(error))
            return
        if response is None:
            self._settle(errand, inferences.finish(inference, batcher.wait(item)))
            return
        batcher.leave(item)
        errand.response = response
        self._answered.append(errand)

    def _refuse(self, errand: Errand, error: SealgateError) -> None:
        errand.reason, errand.response = self._routes.refusal(error)
        self._answered.append(errand)

    # Step 5.

    def _record(self, answered: list[Errand]) -> None:
        for errand in answered:
            if errand.decision.ticket is not None:
                errand.fields = errand.decision.ticket.leave()
        outcomes = [
            (one.decision, one.response.status, one.reason, len(one.response.body))
            for one in answered
        ]
        receipts: Iterable[Headers] | None
        try:
            receipts = self._routes.recorder.record_at_once(outcomes)
        except SealgateError as error:
            receipts = [() for _ in answered]
            for errand in answered:
                errand.reason, errand.response = self._routes.refusal(error)
        if receipts is None:
            self._each(self._conclude, answered)
            return
        for errand, receipt in zip(answered, receipts):
            errand.fields += receipt
        self._each(self._send, answered)

    def _send(self, errand: Errand) -> None:
        decision = errand.decision
        self._routes.tell(decision, errand.response, errand.reason)
        if not errand.disconnected:
            fields = id_field(decision), *errand.fields
            errand.write(
                self._host.reply_to(
                    errand.known, decision.scheme, errand.response, fields
                )
            )
        self._end(errand)

    # What has to be waited for.

    def _settle(self, errand: Errand, work: Work) -> None:
        self._go_on(errand, self._routes.settle(errand.decision, work))

    def _conclude(self, errand: Errand) -> None:
        self._go_on(
            errand,
            self._routes.conclude(
                errand.decision, errand.response, errand.reason, errand.fields
            ),
        )

    def _go_on(self, errand: Errand, work: Work) -> None:
        self._begin(errand, partial(self._host.go_on, work))

    def _begin(
        self,
        errand: Errand,
        answer: Callable[[Request, str | None], Coroutine[Any, Any, Reply]],
    ) -> None:
        """Let a task go on; it takes the place that this request has had."""
        self._intake.leave(len(errand.body))
        connection = errand.connection
        connection.begin_exchange(
            answer(_request(errand), connection.certificate),
            keep_alive=errand.keep_alive,
            disconnected=errand.disconnected,
        )

    def _end(self, errand: Errand) -> None:
        self._intake.leave(len(errand.body))
        errand.end()

    def _each(
        self, step: Callable[[Errand], bool | None], errands: Iterable[Errand]
    ) -> list[Errand]:
        """Those with whom a step succeeds; where it breaks, the client is told."""
        going_on = []
        for errand in errands:
            try:
                if step(errand):
                    going_on.append(errand)
            except Exception:  # noqa: BLE001  (as of an exchange)
                _log.exception("a request was not answered")
                errand.fail()
                self._end(errand)
        return going_on


def _request(errand: Errand) -> Request:
    return errand.known.request(_scheme(errand.connection), errand.body)


def _scheme(connection: Connection) -> bytes:
    return b"http" if connection.scheme == "http" else b"https"
