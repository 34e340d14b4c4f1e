"""The models that one worker serves: which versions, which by default, which on trial.

What is served is one table that nothing changes: switching is putting another one in
its place. Requests keep the model that they began with until they are done, and the
last of them lets its session go.

A trial is a **canary**, which answers a share of the requests, or a **shadow**, whose
answers nobody sees. Either way each of its requests also runs on the other version,
after the caller got the answer, and the metrics say how often the two agree.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from models.manifest import Manifest
from sealgate.errors import SealgateError
from sealgate.protocol.tensors import Array
from security.admission.gate import Admission
from security.admission.lifecycle import (
    Admitted,
    State,
    Warm,
    Withdrawn,
)
from security.admission.loaded import LoadedModel
from security.settings.runtime import RuntimeSettings
from service.inference.agreement import Tally, Trial, compare
from service.inference.batching import Batcher, Budget, Observe, OverloadedError
from service.inference.served import Entry, Served, answers_now, check_alike
from service.inference.study import study
from service.inference.warmup import Lesson, tidy_up, warm_up
from service.inference.watchdog import Watchdog
from service.telemetry.casualties import HeldOff, Notes
from service.telemetry.metrics import Metrics

__all__ = ["Lineup"]

# Comparisons at the same time; more are counted as skipped.
_MAX_COMPARISONS = 32


class Lineup:
    """The models of one worker.

    Attributes:
        held_off: who ended workers again and again, and may run nothing for a while.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        settings: RuntimeSettings = RuntimeSettings(),
        metrics: Metrics | None = None,
        notes: Notes | None = None,
    ) -> None:
        """Serve nothing yet.

        Args:
            timeout_s: from a request's arrival until its run is stopped.
            settings: how models are run.
            metrics: to count in.
            notes: of what is run.
        """
        self._metrics = metrics or Metrics()
        self._notes = notes or Notes()
        self.held_off = HeldOff()
        self._settings = settings
        self._timeout_s = timeout_s
        threads = settings.inference_threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="inference")
        # One model that never ends leaves a thread to the others.
        self._slots = max(1, threads - 1)
        self._budget = Budget(settings.max_waiting_bytes)
        self._watchdog = Watchdog()
        self._comparisons: set[asyncio.Task[None]] = set()
        self._table: Mapping[str, Entry] = {}
        self._tallies: dict[Trial, Tally] = {}

    def load(self, admitted: Admitted) -> Warm[Served]:
        """Make a session and warm it up; nothing is served by it yet.

        Takes its time: call it outside of the event loop.

        Raises:
            AdmissionRefused: onnxruntime cannot load it, or it is not what the manifest
                says.
            SettingsError: a provider is not installed.
        """
        settings = self._settings
        model = LoadedModel(admitted.admission, settings)
        limits = settings.limits(model.manifest.name)
        # The first runs of one that ended workers would end this one, too.
        held_off = model.manifest.tag in self.held_off.models
        lesson = Lesson() if held_off else self._warm_up(model, limits.max_batch_rows)
        batcher = Batcher(
            model.run,
            limits,
            executor=self._executor,
            slots=self._slots,
            timeout_s=self._timeout_s,
            budget=self._budget,
            watchdog=self._watchdog,
            notes=self._notes,
            rows_apart=lesson.rows_apart,
            inline_rows=lesson.inline_rows,
            at_once_rows=lesson.at_once_rows,
            in_work=self._metrics.cell("sealgate_requests_in_work"),
            observe=self._observer(model.manifest),
            tidy_up=functools.partial(self._tidy_up, model),
        )
        with self._noted(model):
            limit_s = min(2.0, self._timeout_s)
            explainer = study(model, limit_s=limit_s, held_off=held_off)
        served = Served(model, batcher, explainer, revision=admitted.revision)
        return admitted.warm_up(served)

    def _warm_up(self, model: LoadedModel, max_batch_rows: int) -> Lesson:
        with self._noted(model):
            return warm_up(
                model,
                inline_s=self._settings.inline_run_us / 1e6,
                at_once_s=self._settings.at_once_run_us / 1e6,
                max_batch_rows=max_batch_rows,
                limit_s=min(2.0, self._timeout_s),
            )

    def _tidy_up(self, model: LoadedModel) -> None:
        with self._noted(model):
            tidy_up(model, limit_s=min(2.0, self._timeout_s))

    @contextmanager
    def _noted(self, model: LoadedModel) -> Iterator[None]:
        """Note a run that nobody asked for."""
        slots = self._notes.begin([Notes.text("", "", model.manifest.tag)])
        try:
            yield
        finally:
            self._notes.end(slots)

    @property
    def table(self) -> Mapping[str, Entry]:
        """What is served now, by name."""
        return self._table

    @property
    def watched(self) -> list[Manifest]:
        """Of the versions that answer requests that name none."""
        shown = [(e.default, e.canary) for e in self._table.values()]
        return [s.content.manifest for pair in shown for s in pair if s is not None]

    @property
    def admissions(self) -> list[Admission]:
        """What admits each version that is served now."""
        return [served.admission for served in _all(self._table)]

    @property
    def trials(self) -> list[dict[str, Any]]:
        """What was counted of each trial that is on now."""
        return [asdict(t) | asdict(n) for t, n in list(self._tallies.items())]

    @property
    def manifests(self) -> list[Manifest]:
        """Of each version that is served now."""
        return [served.manifest for served in _all(self._table)]

    def switch(self, table: Mapping[str, Entry]) -> None:
        """Serve this from now on.

        Raises:
            AdmissionRefused: as `check_alike`.
        """
        for entry in table.values():
            for trial in (entry.canary, entry.shadow):
                if trial is not None:
                    check_alike(entry.default.content, trial.content)
        old, new = _answering(self._table), _answering(table)
        self._table = dict(table)
        self._tallies = {
            trial: self._tallies.get(trial) or Tally()
            for entry in table.values()
            for trial in entry.trials.values()
        }
        for served in old - new:
            self._metrics.serves(served.admission, served=False)
        for served in new - old:
            self._metrics.serves(served.admission)

    def renew(self, served: Served, admission: Admission) -> None:
        """Put what admits a version today in the place of what did before."""
        if admission.verdict_sha256 != served.admission.verdict_sha256:
            self._metrics.serves(served.admission, served=False)
            self._metrics.serves(admission)
        served.renew(admission)

    def find(self, name: str, version: str | None = None) -> State[Served] | None:
        """A version of a model; the default one where none is named."""
        entry = self._table.get(name)
        if entry is None:
            return None
        return entry.default if version is None else entry.states.get(version)

    def find_untried(self, name: str, version: str | None) -> State[Served] | None:
        """As `find`; None too while a trial of the model is on."""
        entry = self._table.get(name)
        if entry is None or entry.trials:
            return None
        return entry.default if version is None else entry.states.get(version)

    def choose(self, name: str) -> State[Served] | None:
        """As `find`, for an inference that names none: a canary gets its share."""
        entry = self._table.get(name)
        return None if entry is None else entry.choose()

    def stand_in(self, canary: Served, rows: int | None) -> Served | None:
        """Who answers for a canary that cannot: the default, if it may and can."""
        default = self.find(canary.manifest.name)
        if default is None or not answers_now(default):
            return None
        model = default.content
        return model if (rows or 0) <= model.manifest.max_rows else None

    def versions(self, name: str) -> list[str]:
        """The versions of a model that may be asked for."""
        entry = self._table.get(name)
        return [] if entry is None else list(entry.states)

    async def infer(
        self,
        served: Served,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        who: tuple[str, str] = ("", ""),
    ) -> list[Array]:
        """Run a model until its deadline.

        Args:
            served: the model.
            inputs: as its manifest says.
            outputs: the names of those asked for.
            who: the request's id, and the caller's pseudonym, to be noted.

        Raises:
            OverloadedError: too many requests wait.
            InferenceTimeoutError: stopped at the deadline.
            InferenceFailedError: the model failed.
        """
        note, began = Notes.text(*who, served.tag), time.perf_counter()
        arrays = await served.batcher.infer(inputs, outputs, note)
        took_s = time.perf_counter() - began
        entry = self._table.get(served.manifest.name)
        if entry is not None and (entry.canary or entry.shadow):
            other = entry.other(served)
            if other is not None:
                kind, partner = other
                ours = dict(zip(outputs, arrays))
                note = Notes.text(*who, partner.tag)
                self._try(
                    kind, entry, inputs, ours, partner=partner, took_s=took_s, note=note
                )
        return arrays

    def _try(
        self,
        kind: str,
        entry: Entry,
        inputs: Mapping[str, Array],
        ours: Mapping[str, Array],
        *,
        partner: Served,
        took_s: float,
        note: bytes,
    ) -> None:
        """Run the other version too, after the answer, and compare."""
        trial = entry.trials[kind]
        if len(self._comparisons) >= _MAX_COMPARISONS:
            self._count(trial, "skipped")
            return

        # Inputs may lie in a buffer that is gone with the request: they are kept alive
        # by the arrays, and nothing writes to them.
        async def run() -> None:
            began = time.perf_counter()
            try:
                theirs = await partner.batcher.infer(inputs, list(ours), note)
            except OverloadedError:
                self._count(trial, "skipped")
            except SealgateError:
                self._count(trial, "failed")
            else:
                self._compare(trial, entry, ours, theirs)
                self._took(trial, took_s, time.perf_counter() - began)

        task = asyncio.get_running_loop().create_task(run())
        self._comparisons.add(task)
        task.add_done_callback(self._comparisons.discard)

    def _compare(
        self,
        trial: Trial,
        entry: Entry,
        ours: Mapping[str, Array],
        theirs: Sequence[Array],
    ) -> None:
        tensors = {t.spec.name: t for t in entry.default.content.manifest.served}
        result = compare([tensors[name] for name in ours], list(ours.values()), theirs)
        self._count(trial, "same" if result.same else "different")
        self._metrics.observe(
            "sealgate_comparison_difference", *trial.labels, value=result.difference
        )

    def _took(self, trial: Trial, first_s: float, second_s: float) -> None:
        times = first_s, second_s  # a canary answers first, a shadow second
        if trial in self._tallies:
            ordered = times if trial.kind == "shadow" else times[::-1]
            self._tallies[trial].took(*ordered)

    def _count(self, trial: Trial, result: str) -> None:
        self._metrics.count("sealgate_comparisons", *trial.labels, result)
        if trial in self._tallies:
            self._tallies[trial].count(result)

    def _observer(self, manifest: Manifest) -> Observe:
        histogram, name = self._metrics.histogram, manifest.name
        add_requests, add_rows = (
            histogram(f"sealgate_batch_{what}", name, manifest.version)
            for what in ("requests", "rows")
        )
        add_waited, add_ran = (
            histogram("sealgate_stage_seconds", stage, name, manifest.version)
            for stage in ("queue", "run")
        )

        def observe(requests: int, rows: int, waited_s: float, ran_s: float) -> None:
            add_requests(requests)
            add_rows(rows)
            add_waited(waited_s)
            add_ran(ran_s)

        return observe


def _all(table: Mapping[str, Entry]) -> list[Served]:
    return [s.content for entry in table.values() for s in entry.states.values()]


def _answering(table: Mapping[str, Entry]) -> set[Served]:
    return {
        state.content
        for entry in table.values()
        for state in entry.states.values()
        if not isinstance(state, Withdrawn)
    }
