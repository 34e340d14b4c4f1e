"""/v2/*: who may, what is asked, what is answered, what is recorded.

Sealed and plaintext requests come here in the same form, so both get the same answers.
Every request but health ends in exactly one audit record, written before the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import orjson

from sealgate.errors import SealgateError
from sealgate.protocol.bhttp import Headers, Request, Response
from security.access.permissions import MODEL_ACTIONS, Permissions
from security.access.quotas import Quotas
from security.access.tokens import Principal
from security.admission.lifecycle import State, Withdrawn
from security.errors import HiddenError
from security.monitoring.cohorts import Cohorts
from security.monitoring.monitor import Monitor
from security.sealing.freshness import Remember
from service import feedback
from service.callers import Callers
from service.content import JSON
from service.descriptions import model_config, model_metadata, passport
from service.explanations import explained, explainer_of
from service.http.intake import VISIT, step
from service.inference.lineup import Lineup
from service.inference.served import Served
from service.inferences import Inferences, name_model
from service.offering import Offering
from service.problems import (
    NO_MODEL,
    Problem,
    expect_method,
    method_not_allowed,
    problem_response,
    to_problem,
)
from service.readiness import Readiness
from service.receipts import RECEIPTS_PATH, Receipts
from service.repository import SERVER_PATHS, Repository
from service.telemetry.logs import RequestLog
from service.telemetry.metrics import Metrics
from service.telemetry.recorder import Decision, Recorder
from service.telemetry.tracing import OUTER_TRACE, read_trace
from service.watching import Watching

__all__ = ["Routes", "asked_inference", "id_field"]

OPENAPI_PATH = b"/openapi.yaml"
_YAML: Headers = ((b"content-type", b"application/yaml"),)
_LIVE = Response(200, JSON, b'{"live":true}')
_READY = Response(200, JSON, b'{"ready":true}')
_HEALTH = {
    b"/livez": _LIVE,
    b"/readyz": _READY,
    b"/v2/health/live": _LIVE,
    b"/v2/health/ready": _READY,
}
_MODEL = re.compile(
    rb"/v2/models/(?P<model>[A-Za-z0-9._-]{1,63})(?:/versions/(?P<version>[0-9.]{1,40}))?"
    rb"(?:/(?P<action>ready|infer|explain|feedback|attestations|config|monitoring|stats))?"
)
# Triton's; here it is the operator's command.
_LOADING = re.compile(rb"/v2/repository/models/[^/]+/(?:load|unload)")


class Routes:
    """Answers requests, wherever they came from."""

    def __init__(
        self,
        lineup: Lineup,
        callers: Callers,
        recorder: Recorder,
        *,
        quotas: Quotas,
        require_sealed: bool,
        permissions: Permissions = Permissions(),
        documents: Mapping[bytes, Response] = {},
        metrics: Metrics | None = None,
        log: RequestLog | None = None,
        interface: bytes | None = None,
        readiness: Readiness | None = None,
        monitor: Monitor | None = None,
        watching: Watching | None = None,
        cohorts: Cohorts | None = None,
        receipts: Receipts | None = None,
        offering: Offering | None = None,
        max_body_bytes: int = 16 << 20,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Wire it.

        Args:
            lineup: the models.
            callers: finds out who calls.
            recorder: writes the records.
            quotas: counts what each caller asks.
            require_sealed: answer sealed requests only.
            permissions: what callers may.
            documents: what answers without a token, by path, health aside.
            metrics: to count in.
            log: gets a line for each request, if any.
            interface: the OpenAPI document, if callers may read it.
            readiness: of this worker; without it, it is ready once it answers.
            monitor: counts what is asked and answered, if that is wanted.
            watching: tells what was found by that, likewise.
            cohorts: gives tickets and takes labels, likewise.
            receipts: proves that answers are on record, likewise.
            offering: the public log of what is offered, likewise.
            max_body_bytes: of a request's content, once it is no longer compressed.
            clock: Unix seconds.
        """
        self._readiness = readiness
        self._watching, self._cohorts = watching, cohorts
        self._receipts = receipts
        self.inferences = Inferences(
            lineup,
            recorder,
            monitor=monitor,
            cohorts=cohorts,
            max_body_bytes=max_body_bytes,
        )
        self.metrics = metrics or Metrics()
        self._log, self._interface = log, interface
        self.lineup = lineup
        self.callers = callers
        self.permissions = permissions
        self._repository = Repository(lineup, permissions, self.metrics)
        self._documents = documents
        self.recorder, self.quotas = recorder, quotas
        self._passport = passport if offering is None else offering.passport
        self.require_sealed = require_sealed
        self.clock = clock
        self.verified = self.metrics.histogram(
            "sealgate_stage_seconds", "verify", "", ""
        )

    def is_open(self, path: bytes) -> bool:
        """Whether a path answers without a token."""
        return path in _HEALTH or path in self._documents

    async def answer(
        self,
        request: Request,
        *,
        sealed: bool,
        principal: Principal | None = None,
        remember: Remember | None = None,
    ) -> Response:
        """Answer one request; a refusal is an answer too.

        Args:
            request: from anyone.
            sealed: whether it came sealed.
            principal: what `check_early` returned, where that was asked.
            remember: given the account that asks, refuses a replay; awaited once the
                token is verified and before anything is done for the request.
        """
        if self.is_open(request.path):
            return self._answer_open(request)
        decision = Decision(
            sealed=sealed,
            started=time.perf_counter(),
            principal=principal,
            request_bytes=len(request.body),
            method=request.method,
            scheme=request.scheme,
        )
        outer = OUTER_TRACE.get()
        if sealed:
            decision.trace, decision.outer_trace = read_trace(request.headers), outer
        else:
            decision.trace = outer
        return await self.settle(decision, self._dispatch(request, decision, remember))

    async def settle(
        self, decision: Decision, work: Coroutine[Any, Any, Response]
    ) -> Response:
        """The answer that some work gives, or its refusal; recorded.

        Args:
            decision: of that request; its ticket is given back.
            work: cancelled if the client leaves.
        """
        reason: str | None = None
        fields: Headers = ()
        try:
            response = await work
        except SealgateError as error:
            reason, response = self.refusal(error)
        except asyncio.CancelledError:
            # The client left, or the server stops: that it asked is on record.
            with contextlib.suppress(SealgateError):
                await self.recorder.record(decision, status=499, reason="cancelled")
            raise
        finally:
            if decision.ticket is not None:
                fields = decision.ticket.leave()
        return await self.conclude(decision, response, reason, fields)

    def refusal(self, error: SealgateError) -> tuple[str, Response]:
        """The reason that is recorded, and the answer."""
        problem = to_problem(error, self.callers.challenges)
        if isinstance(error, HiddenError):
            return "not-granted", problem_response(problem)  # for the record only
        return problem.code, problem_response(problem)

    async def conclude(
        self,
        decision: Decision,
        response: Response,
        reason: str | None,
        fields: Headers,
    ) -> Response:
        """An answer as it is sent, once its record is written.

        Args:
            decision: what the record says.
            response: the answer, without ``fields``.
            reason: of a refusal.
            fields: to send along.
        """
        try:
            receipt = await self.recorder.record(
                decision,
                status=response.status,
                reason=reason,
                response_bytes=len(response.body),
            )
            fields = (*fields, *receipt)
        except SealgateError as error:
            problem = to_problem(error)
            reason, response = problem.code, problem_response(problem)
        self.tell(decision, response, reason)
        return _with_id(response, decision, fields)

    async def check_early(self, request: Request) -> Principal:
        """Refuse a plaintext request by its head, before its body is read.

        Returns:
            Who calls.

        Raises:
            AccessError: no valid token.
            Problem: no token, or a valid one, but the server only answers sealed
                requests.
        """
        principal = await self._authenticate(request)
        if self.require_sealed:
            raise Problem("sealed-required")
        return principal

    async def refuse(self, error: SealgateError, *, sealed: bool) -> Response:
        """Record and answer a refusal that was decided outside `answer`."""
        problem = to_problem(error, self.callers.challenges)
        decision = Decision(sealed=sealed, started=time.perf_counter())
        decision.outer_trace = OUTER_TRACE.get()
        try:
            await self.recorder.record(
                decision, status=problem.status, reason=problem.code
            )
        except SealgateError as failure:
            problem = to_problem(failure)
        response = problem_response(problem)
        self.tell(decision, response, problem.code)
        return _with_id(response, decision)

    async def authorize_metrics(self, request: Request) -> None:
        """Allow reading metrics, or raise.

        Raises:
            AccessError: no valid token, or without the right.
            Problem: no token.
        """
        principal = await self._authenticate(request)
        self.permissions.authorize_server(principal, "metrics")

    async def _dispatch(
        self,
        request: Request,
        decision: Decision,
        remember: Remember | None,
    ) -> Response:
        principal = decision.principal or await self._authenticate(request)
        decision.principal = principal
        if remember is not None:
            await remember(principal.account)
        if self.require_sealed and not decision.sealed:
            raise Problem("sealed-required")
        path = request.path.partition(b"?")[0]
        match = _MODEL.fullmatch(path)
        if match is None or path in SERVER_PATHS:
            return await self._answer_server(request, principal, decision, path)
        decision.model = match["model"].decode()
        decision.action = (match["action"] or b"metadata").decode()
        if decision.action == "stats":
            expect_method(request, b"GET", b"HEAD")
            asked = match["model"], match["version"]
            return _json(await self._repository.statistics(principal, *asked))
        if decision.action == "feedback":
            feedback.of_model(match["version"])
            return await self._feedback(request, principal, decision)
        state = self._find(principal, decision, match["version"])
        model = state.content
        name_model(decision, model)
        if model.expires_at <= self.clock():
            raise Problem("admission-expired")
        if isinstance(state, Withdrawn):
            if state.cause == "casualties":
                raise Problem("model-held-off")
            raise Problem("admission-withdrawn")
        began = time.perf_counter()
        decision.ticket = await self.quotas.enter(principal, decision.model)
        step("quotas", began)
        return await self._model_action(request, model, decision)

    async def _answer_server(
        self, request: Request, principal: Principal, decision: Decision, path: bytes
    ) -> Response:
        """What is asked of the server, and not of a model."""
        if path in SERVER_PATHS:
            decision.action, *methods = SERVER_PATHS[path]
            expect_method(request, *methods)
            action, body = decision.action, bytes(request.body)
            return _json(await self._repository.answer(action, principal, body))
        if _LOADING.fullmatch(path):
            raise Problem("not-found", "models are loaded by the operator's command")
        if path == OPENAPI_PATH and self._interface is not None:
            decision.action = "interface"
            expect_method(request, b"GET", b"HEAD")
            return Response(200, _YAML, self._interface)
        if path.startswith(RECEIPTS_PATH) and self._receipts is not None:
            return await self._receipts.answer(request, principal, decision)
        raise Problem("not-found")

    def _find(
        self, principal: Principal, decision: Decision, asked: bytes | None
    ) -> State[Served]:
        """The model that a request is about, if its sender may use it.

        Raises:
            ScopeError: not in this way.
            HiddenError: not at all: answered like the next one.
            Problem: there is no such model or version.
        """
        name, action = decision.model or "", decision.action or ""
        version = None if asked is None else asked.decode()
        model = self.lineup.find(name, version)
        found = version if model is None else model.content.manifest.version
        needed = action if action in MODEL_ACTIONS else "metadata"
        self.permissions.authorize(principal, name, found, needed)
        if model is None:
            raise Problem("not-found", NO_MODEL)
        if action == "infer" and version is None:
            # Only now, so that a stranger takes nothing of a canary's share.
            chosen = self.lineup.choose(name) or model
            if chosen is not model and self.permissions.allows(
                principal, name, chosen.content.manifest.version, "infer"
            ):
                decision.diverted = True
                return chosen
        return model

    async def _model_action(
        self, request: Request, model: Served, decision: Decision
    ) -> Response:
        if decision.action == "infer":
            expect_method(request, b"POST")
            return await self.inferences.infer(request, model, decision)
        if decision.action == "explain":
            expect_method(request, b"POST")
            return await self._explain(request, model, decision)
        expect_method(request, b"GET", b"HEAD")
        if decision.action == "ready":
            return _json({"name": model.manifest.name, "ready": True})
        if decision.action == "attestations":
            return _json(self._passport(model.admission))
        if decision.action == "config":
            return _json(model_config(model))
        if decision.action == "monitoring":
            if self._watching is None:
                raise Problem("not-found", "this server does not monitor its models")
            return _json(self._watching.document(model))
        name = model.manifest.name
        versions = self._repository.versions(decision.principal, name)
        return _json(model_metadata(model, versions))

    async def _explain(
        self, request: Request, model: Served, decision: Decision
    ) -> Response:
        explainer = explainer_of(model)
        asked = await self.inferences.read(request, model)
        who = self.inferences.who(decision)
        began = time.perf_counter()
        try:
            return await explained(asked, model, explainer, decision, who=who)
        finally:
            step("run", began)

    async def _feedback(
        self, request: Request, principal: Principal, decision: Decision
    ) -> Response:
        """Labels, also of versions that answer no more: tickets say which."""
        expect_method(request, b"POST")
        name = decision.model or ""
        known = self.lineup.find(name)
        self.permissions.authorize(principal, name, None, "feedback")
        if known is None:
            raise Problem("not-found", NO_MODEL)
        decision.ticket = await self.quotas.enter(principal, name)
        may = partial(self.permissions.allows, principal, name, action="feedback")
        return _json(await feedback.take(request, decision, self._cohorts, may))

    def tell(self, decision: Decision, response: Response, reason: str | None) -> None:
        """Tell metrics and log. What a caller made up becomes no label."""
        status = response.status
        if (visit := VISIT.get()) is not None:
            known = decision.principal is not None
            visit.stranger, visit.vouched = visit.stranger or not known, known
            visit.decided(decision, status=status, reason=reason)
        if self._log is not None:
            size = len(response.body)
            self._log.write(decision, status=status, reason=reason, response_bytes=size)
        served = decision.version is not None
        model = decision.model or "" if served else ""
        version, action = decision.version or "", decision.action or ""
        elapsed = time.perf_counter() - decision.started
        self.metrics.answered(model, version, action, status)(elapsed)
        if reason is not None:
            self.metrics.count("sealgate_refusals", reason)
        elif decision.rows is not None and served:
            self.metrics.count("sealgate_rows", model, version, amount=decision.rows)

    async def _authenticate(self, request: Request) -> Principal:
        began, visit = time.perf_counter(), VISIT.get()
        certificate = None if visit is None else visit.certificate
        try:
            return await self.callers.authenticate(request, certificate)
        finally:
            self.verified(time.perf_counter() - began)
            step("verify", began)

    def _answer_open(self, request: Request) -> Response:
        if request.method not in (b"GET", b"HEAD"):
            return problem_response(method_not_allowed(b"GET", b"HEAD"))
        unready = self._readiness is not None and not self._readiness.ready
        answer = self._documents.get(request.path) or _HEALTH[request.path]
        if unready and answer is _READY:
            return problem_response(Problem("not-ready"))
        return answer


def asked_inference(path: bytes) -> tuple[str, str | None] | None:
    """The model, and the version if one is named, of the path of an inference."""
    match = _MODEL.fullmatch(path)
    if match is None or match["action"] != b"infer":
        return None
    version = match["version"]
    return match["model"].decode(), None if version is None else version.decode()


def _json(document: Any) -> Response:
    return Response(200, JSON, orjson.dumps(document))


def id_field(decision: Decision) -> tuple[bytes, bytes]:
    """Tells a caller the name of the request in our records."""
    return b"x-request-id", decision.request_id.encode()


def _with_id(response: Response, decision: Decision, fields: Headers = ()) -> Response:
    headers = (*response.headers, id_field(decision), *fields)
    if decision.sealed and decision.trace is not None and decision.trace.parent_id:
        # Of a plaintext one the guard tells; of a trace that began here nobody.
        headers = (*headers, decision.trace.header)
    return Response(response.status, headers, response.body, response.trailers)
