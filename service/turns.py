"""Inferences that came whole in one turn of the event loop, answered side by side.

Most requests are alike: a caller whose token is known asks, with a head that was parsed
before, for an inference by a model that answers by itself, and all of it is there.
Nothing of that has to be waited for. So the requests of one turn take each step one
after another, without a task, a future to wake it or a message between layers: what
they have in common stays in the caches (decision 0042), and the model runs once, the
log is written once for all of them (decision 0124).

0. of a sealed request: it is opened and read, its caller is known, and it is no replay
   (`service.gateway`, checks 1 to 5); refusals go on in a task from where they stand;
1. the caller, the model, the permission, the quota: whoever is refused here, and
   whatever may have to wait, goes the ordinary way from the start (`Routes.answer`),
   since nothing has been charged or recorded;
2. the content is read, its rows are charged;
3. the models run;
4. answers are written down, budgets given back;
5. all of it is recorded, then sealed where it came sealed, then sent.

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
from sealgate.protocol import ohttp
from sealgate.protocol.bhttp import Headers, Request, Response
from security.admission.lifecycle import Withdrawn
from service.content import Asked, Content, content_fields, told
from service.errands import Errand, Note, SealedNote, scheme_of
from service.gateway import GATEWAY_PATH, Gateway, Opened
from service.http.bodies import LARGE_BYTES
from service.http.exchange import Connection, Reply
from service.http.heads import Head
from service.http.intake import Intake
from service.inferences import name_model
from service.routes import Routes, asked_inference, id_field
from service.telemetry.casualties import Notes
from service.telemetry.recorder import Decision
from service.telemetry.tracing import TRACEPARENT

__all__ = ["Host", "Turns"]

_log = logging.getLogger(__name__)

# More are left to the next turn.
_MOST = 64
_SEALED_TYPE = ohttp.REQUEST_MEDIA_TYPE.encode()

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


class Turns:
    """Gathers what comes in one turn, and answers it at its end."""

    def __init__(
        self, routes: Routes, intake: Intake, host: Host, gateway: Gateway
    ) -> None:
        """Wire it.

        Args:
            routes: whose ways are taken.
            intake: the places of this worker.
            host: takes what is not answered here.
            gateway: opens what is sealed.
        """
        self._routes, self._intake, self._host = routes, intake, host
        self._gateway = gateway
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

    def _note(self, head: Head) -> Note | SealedNote | None:
        """What is known of a head, if its requests can be answered here."""
        kinds = [value for name, value in head.headers if name == b"content-type"]
        if (
            head.method != b"POST"
            or any(name == TRACEPARENT for name, _ in head.headers)
            or self._intake.tracer is not None
            or head.length > self._intake.settings.max_body_bytes
        ):
            return None
        if head.path == GATEWAY_PATH:
            small = kinds == [_SEALED_TYPE] and head.length < LARGE_BYTES
            return SealedNote() if small else None
        if self._routes.require_sealed:
            return None
        return self._note_of(head.path, head.headers)

    def _note_of(self, path: bytes, headers: Headers) -> Note | None:
        asked = asked_inference(path)
        if asked is None:
            return None
        try:
            token = self._routes.callers.bearer_token(headers)
            lengths, coding = content_fields(headers)
        except SealgateError:
            return None
        if token is None or coding is not None:
            return None
        return Note(token, *asked, lengths)

    def _run(self) -> None:
        errands, self._errands = self._errands[:_MOST], self._errands[_MOST:]
        if self._errands:
            asyncio.get_running_loop().call_soon(self._run)
        self._intake.tell()
        try:
            self._take_steps(errands)
        except Exception:  # noqa: BLE001  (in what they share: all are told)
            for errand in errands:
                if not errand.response_complete:
                    self._fail(errand)
        self._answered = []
        self._intake.tell()

    def _take_steps(self, errands: list[Errand]) -> None:
        errands = self._remember(self._each(self._open, errands))
        running = self._each(self._read, self._each(self._charge, errands))
        for batcher in {errand.model.batcher for errand in running}:
            batcher.run_queued()
        self._each(self._answer, running)
        if self._answered:
            self._record(self._answered)

    # Step 0.

    def _open(self, errand: Errand) -> bool:
        if isinstance(errand.known.note, Note):
            errand.note = errand.known.note
            return True
        try:
            errand.opened = opened = self._gateway.open(errand.body)
        except SealgateError as error:
            self._go_on(errand, self._routes.refuse(error, sealed=False))
            return False
        if self._is_inference(errand, opened):
            return True
        self._go_on(errand, self._gateway.answer_opened(opened))
        return False

    def _is_inference(self, errand: Errand, opened: Opened) -> bool:
        """Whether what was opened asks for an inference, by a caller who is known."""
        certificate = errand.connection.certificate
        try:
            request = self._gateway.read(opened)
            note = self._note_of(request.path, request.headers)
            if (
                note is None
                or request.method != b"POST"
                or any(name == TRACEPARENT for name, _ in request.headers)
            ):
                return False
            began = time.perf_counter()
            errand.principal = self._routes.callers.bearer(note.token, certificate)
        except SealgateError:
            return False
        errand.verified_s = time.perf_counter() - began
        errand.note, errand.content = note, request.body
        return True

    def _remember(self, errands: list[Errand]) -> list[Errand]:
        """Those that are no replays; whatever was sealed is remembered from now on."""
        group = [
            (one.opened, one.principal.account)
            for one in errands
            if one.opened is not None and one.principal is not None
        ]
        outcomes: list[SealgateError | None] | None = None
        try:
            outcomes = self._gateway.remember_at_once(group) if group else []
        except Exception:  # noqa: BLE001  (one of them: each finds out for itself)
            _log.exception("requests were not remembered together")
        if outcomes is None or any(outcomes):
            return self._each(self._is_new, errands)
        return errands

    def _is_new(self, errand: Errand) -> bool:
        opened = errand.opened
        if opened is None or (opened.is_asked and opened.outcome is None):
            return True
        self._go_on(errand, self._gateway.answer_opened(opened))
        return False

    # Step 1.

    def _charge(self, errand: Errand) -> bool:
        if self._admit(errand):
            return True
        if errand.opened is None:
            self._begin(errand, self._host.answer)
        else:
            self._go_on(errand, self._gateway.answer_opened(errand.opened))
        return False

    def _admit(self, errand: Errand) -> bool:
        """Whether a request is charged; if not, nothing has happened."""
        routes, note, request = self._routes, errand.note, errand.request
        principal = errand.principal
        try:
            if principal is None:
                began = time.perf_counter()
                certificate = errand.connection.certificate
                principal = routes.callers.bearer(note.token, certificate)
                errand.verified_s = time.perf_counter() - began
            state = routes.lineup.find_untried(note.model, note.version)
            if state is None or isinstance(state, Withdrawn):
                return False
            model = state.content
            routes.permissions.authorize(
                principal, note.model, model.manifest.version, "infer"
            )
            if model.expires_at <= routes.clock():
                return False
            ticket = routes.quotas.enter_at_once(principal, note.model)
        except SealgateError:
            return False
        if ticket is None:
            return False
        routes.verified(errand.verified_s)
        errand.model, errand.ticket = model, ticket
        errand.decision = decision = Decision(
            sealed=errand.opened is not None,
            started=errand.came,
            principal=principal,
            model=note.model,
            action="infer",
            request_bytes=len(errand.content),
            ticket=ticket,
            method=request.method,
            scheme=request.scheme,
        )
        name_model(decision, model)
        return True

    # Step 2.

    def _read(self, errand: Errand) -> bool:
        model, decision = errand.model, errand.decision
        inferences, ticket = self._routes.inferences, decision.ticket
        try:
            content = Content.at_once(errand.content, errand.note.lengths)
            if content is None:
                work = inferences.infer(errand.request, model, decision)
                self._settle(errand, work)
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
            errand.waits = True
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
            self._refuse(errand, told(error))
            return
        if response is None:
            errand.waits = False
            self._settle(errand, inferences.finish(inference, batcher.wait(item)))
            return
        errand.response = response
        self._answered.append(errand)

    def _refuse(self, errand: Errand, error: SealgateError) -> None:
        errand.reason, errand.response = self._routes.refusal(error)
        self._answered.append(errand)

    # Step 5.

    def _record(self, answered: list[Errand]) -> None:
        for errand in answered:
            errand.give_back()
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
        self._each(self._send, self._each(self._enclose, answered))

    def _enclose(self, errand: Errand) -> bool:
        response, opened = errand.response, errand.opened
        fields: Headers = (id_field(errand.decision), *errand.fields)
        if opened is not None:
            headers = (*response.headers, *fields)
            inner = Response(response.status, headers, response.body)
            response, fields = self._gateway.seal(opened, inner), ()
        scheme = scheme_of(errand.connection)
        errand.reply = self._host.reply_to(errand.known, scheme, response, fields)
        return True

    def _send(self, errand: Errand) -> None:
        self._routes.tell(errand.decision, errand.response, errand.reason)
        if not errand.disconnected:
            errand.write(errand.reply)
        self._end(errand)

    # What has to be waited for.

    def _settle(self, errand: Errand, work: Work) -> None:
        self._seal_later(errand, self._routes.settle(errand.decision, work))

    def _conclude(self, errand: Errand) -> None:
        self._seal_later(
            errand,
            self._routes.conclude(
                errand.decision, errand.response, errand.reason, errand.fields
            ),
        )

    def _seal_later(self, errand: Errand, work: Work) -> None:
        """Go on, and seal what comes of it where the request came sealed."""
        opened = errand.opened
        sealed = work if opened is None else self._gateway.sealing(opened, work)
        self._go_on(errand, sealed)

    def _go_on(self, errand: Errand, work: Work) -> None:
        self._begin(errand, partial(self._host.go_on, work))

    def _begin(
        self,
        errand: Errand,
        answer: Callable[[Request, str | None], Coroutine[Any, Any, Reply]],
    ) -> None:
        """Let a task go on; it takes the place that this request has had."""
        self._intake.leave(len(errand.body))
        errand.response_complete = True  # as far as this one goes
        connection = errand.connection
        connection.begin_exchange(
            answer(errand.outer, connection.certificate),
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
                self._fail(errand)
        return going_on

    def _fail(self, errand: Errand) -> None:
        """Tell the client that something broke, and give back what was taken."""
        _log.exception("a request was not answered")
        errand.give_back()
        errand.fail()
        self._end(errand)
