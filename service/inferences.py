"""One inference: its rows are charged, the model runs, its answer is written down.

Requests whose parts may have to be waited for go through `Inferences.answer`. Those
that come whole, and together in one turn of the event loop, take the same steps side by
side (`service.turns`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from sealgate.protocol.bhttp import Request, Response
from sealgate.protocol.tensors import Array
from security.monitoring.cohorts import Cohorts
from security.monitoring.monitor import Monitor
from service import feedback
from service.content import Asked, encode_answer, failures, is_long, write_answer
from service.http.intake import step
from service.inference.batching import InferenceFailedError, OverloadedError
from service.inference.lineup import Lineup
from service.inference.served import Served
from service.problems import Problem
from service.telemetry.recorder import Decision, Recorder

__all__ = ["Inference", "Inferences", "name_model"]


class Inference:
    """What is asked of a model, charged and read, and not yet run.

    Attributes:
        asked: the request.
        model: that answers.
        decision: what its record will say.
        source: the output that tickets are made from, or "".
        inputs: its values.
        outputs: names of what to run for: those that are asked for, and ``source``.
        who: the request's id, and its caller's pseudonym.
    """

    __slots__ = ("asked", "decision", "inputs", "model", "outputs", "source", "who")

    def __init__(
        self,
        asked: Asked,
        model: Served,
        decision: Decision,
        *,
        source: str,
        inputs: Mapping[str, Array],
        who: tuple[str, str],
    ) -> None:
        self.asked, self.model, self.decision = asked, model, decision
        self.source, self.inputs, self.who = source, inputs, who
        self.outputs: list[str] = list(asked.outputs)
        if source:
            beside = [source, *model.counted_sets]
            self.outputs += [name for name in beside if name not in asked.outputs]


class Inferences:
    """Runs models for requests that may ask for it."""

    def __init__(
        self,
        lineup: Lineup,
        recorder: Recorder,
        *,
        monitor: Monitor | None,
        cohorts: Cohorts | None,
        max_body_bytes: int,
    ) -> None:
        """Wire it.

        Args:
            lineup: the models.
            recorder: knows the pseudonyms of callers.
            monitor: counts what is asked and answered, if that is wanted.
            cohorts: gives tickets, likewise.
            max_body_bytes: of a request's content, once it is no longer compressed.
        """
        self._lineup, self._recorder = lineup, recorder
        self._monitor, self._cohorts = monitor, cohorts
        self._max_body_bytes = max_body_bytes

    async def read(self, request: Request, model: Served) -> Asked:
        """What a request asks of a model, before its values are read.

        Raises:
            Problem, TensorError: as `Asked.read`.
        """
        return await Asked.read(
            request,
            model.input_specs,
            model.output_names,
            max_rows=model.manifest.max_rows,
            max_bytes=self._max_body_bytes,
        )

    async def infer(
        self, request: Request, model: Served, decision: Decision
    ) -> Response:
        """Read and `answer`.

        Raises:
            SealgateError: any refusal.
        """
        return await self.answer(await self.read(request, model), model, decision)

    async def answer(self, asked: Asked, model: Served, decision: Decision) -> Response:
        """Charge, run and answer.

        Raises:
            SealgateError: any refusal.
        """
        source = self.source(asked, model)
        await decision.charge_rows(asked.rows)
        inputs = await asked.inputs()
        inference = self.begin(asked, model, decision, source=source, inputs=inputs)
        return await self.finish(inference, self._run(inference))

    def source(self, asked: Asked, model: Served) -> str:
        """The output that tickets are made from, as `feedback.ticketed`."""
        document = asked.content.document
        return feedback.ticketed(document, asked.rows, model, self._cohorts)

    def begin(
        self,
        asked: Asked,
        model: Served,
        decision: Decision,
        *,
        source: str,
        inputs: Mapping[str, Array],
    ) -> Inference:
        """An inference whose rows are charged.

        Raises:
            Problem: the caller is held off.
        """
        who = self.who(decision)
        return Inference(asked, model, decision, source=source, inputs=inputs, who=who)

    def who(self, decision: Decision) -> tuple[str, str]:
        """The request, and its caller's pseudonym.

        Raises:
            Problem: the caller is held off.
        """
        subject = self._recorder.pseudonym(decision.principal)
        if subject in self._lineup.held_off.subjects:
            raise Problem("caller-held-off", headers=((b"retry-after", b"60"),))
        return decision.request_id, subject

    async def finish(
        self, inference: Inference, running: Awaitable[list[Array]]
    ) -> Response:
        """The answer, once the model has run.

        Raises:
            SealgateError: any failure of the run, or a budget that is spent.
        """
        asked, began = inference.asked, time.perf_counter()
        with failures():
            try:
                arrays = await running
            finally:
                step("run", began)
            told = inference.model.model.release.told
            await inference.decision.charge_bits(
                lambda: told(zip(asked.outputs, arrays))
            )
            answer = await encode_answer(
                zip(asked.outputs, arrays), **self._answer(inference, arrays)
            )
        self._count(inference, arrays)
        return answer

    def finish_at_once(
        self, inference: Inference, arrays: Sequence[Array]
    ) -> Response | None:
        """As `finish`, where no bits are charged; None if the answer is long.

        Raises:
            SealgateError: as `finish`.
        """
        asked = inference.asked
        outputs = list(zip(asked.outputs, arrays))
        if is_long(outputs, asked.outputs):
            return None
        answer = write_answer(outputs, **self._answer(inference, arrays))
        self._count(inference, arrays)
        return answer

    def _answer(self, inference: Inference, arrays: Sequence[Array]) -> dict[str, Any]:
        """What an answer says beside its outputs.

        Raises:
            Problem: this version gives no tickets.
        """
        model, asked = inference.model, inference.asked
        parameters: Mapping[str, Any] = {}
        if inference.source:
            given = dict(zip(inference.outputs, arrays))
            subject = inference.who[1]
            parameters = feedback.tickets(
                self._cohorts, model, inference.source, subject, given
            )
        return {
            "binary": asked.outputs,
            "model": model.manifest.name,
            "version": model.manifest.version,
            "identifier": asked.content.document.get("id"),
            "parameters": parameters,
        }

    def _count(self, inference: Inference, arrays: Sequence[Array]) -> None:
        if self._monitor is not None:
            self._monitor.count(
                inference.model.tag,
                inference.who[1],
                inference.asked.rows,
                inference.inputs,
                dict(zip(inference.outputs, arrays)),
            )

    async def _run(self, inference: Inference) -> list[Array]:
        """Run; where a canary cannot, the default version does."""
        inputs, outputs, who = inference.inputs, inference.outputs, inference.who
        try:
            return await self._lineup.infer(inference.model, inputs, outputs, who=who)
        except (InferenceFailedError, OverloadedError):
            decision = inference.decision
            stand_in = self._lineup.stand_in(inference.model, decision.rows)
            if stand_in is None or not decision.diverted:
                raise
            inference.model = stand_in
            name_model(decision, stand_in)
            return await self._lineup.infer(stand_in, inputs, outputs, who=who)


def name_model(decision: Decision, model: Served) -> None:
    """Say which version answers."""
    decision.version = model.manifest.version
    decision.digest = model.admission.bundle.subject.root_sha256
