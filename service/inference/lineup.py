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
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from models.manifest import Manifest
from sealgate.errors import SealgateError
from sealgate.protocol.tensors import Array
from security.admission.gate import Admission
from security.admission.lifecycle import (
    Admitted,
    Canary,
    Default,
    Shadow,
    State,
    Warm,
    Withdrawn,
    find,
)
from security.errors import AdmissionRefused
from security.settings.runtime import RuntimeSettings
from service.inference.agreement import compare
from service.inference.batching import Batcher, Budget, Observe, OverloadedError
from service.inference.runtime import LoadedModel
from service.inference.warmup import Lesson, tidy_up, warm_up
from service.inference.watchdog import Watchdog
from service.telemetry.casualties import HeldOff, Notes
from service.telemetry.metrics import Metrics

__all__ = ["Entry", "Lineup", "Served", "answers_now", "check_alike"]

# Comparisons at the same time; more are counted as skipped.
_MAX_COMPARISONS = 32


class Served:
    """A model that a worker has loaded.

    Attributes:
        model: the session, and the manifest that requests are validated against.
        tag: name and version.
        input_specs, output_names: of that.
        admission: what admitted it; renewed when it is verified again.
        expires_at: when that gets too old, Unix seconds; infinity for never.
        batcher: gathers and runs its requests.
        revision: of the plan's order to load it.
    """

    def __init__(self, model: LoadedModel, batcher: Batcher, revision: int = 0) -> None:
        self.model = model
        self.manifest = model.manifest
        self.tag = model.manifest.tag
        self.input_specs = model.input_specs
        self.output_names = [tensor.spec.name for tensor in model.manifest.outputs]
        self.admission = model.admission
        self.expires_at = _expiry(model.admission)
        self.batcher = batcher
        self.revision = revision


class _Share:
    """Lets exactly a share of calls through, spread evenly."""

    def __init__(self) -> None:
        self._sum = 0

    def next(self, percent: int) -> bool:
        self._sum += percent
        if self._sum < 100:
            return False
        self._sum -= 100
        return True


class Entry:
    """One model: its versions, each in its state. It does not change.

    Attributes:
        states: of every version that may be asked for.
        default: answers requests that name no version.
        canary: answers a share of them instead, unless it is withdrawn.
        shadow: runs on a share of them, too, unless it is withdrawn.
    """

    def __init__(self, states: Mapping[str, State[Served]]) -> None:
        """Find who has which part.

        Args:
            states: by version; one of them is the default.
        """
        self.states = states
        self.default = states[find(states, Default) or ""]
        self.canary = next((s for s in states.values() if isinstance(s, Canary)), None)
        self.shadow = next((s for s in states.values() if isinstance(s, Shadow)), None)
        self._canary_share = _Share()
        self._shadow_share = _Share()

    def choose(self) -> State[Served]:
        """Who answers a request that names no version.

        A canary that may not answer leaves its share to the default.
        """
        canary = self.canary
        if canary is None or not self._canary_share.next(canary.percent):
            return self.default
        return canary if answers_now(canary) else self.default

    def other(self, served: Served) -> tuple[str, Served] | None:
        """The kind of trial that a request is part of, and who else runs it."""
        if self.canary is not None and served is self.canary.content:
            if isinstance(self.default, Withdrawn):
                return None
            return "canary", self.default.content
        shadow = self.shadow
        if (
            shadow is not None
            and served is self.default.content
            and self._shadow_share.next(shadow.percent)
        ):
            return "shadow", shadow.content
        return None


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
        return admitted.warm_up(Served(model, batcher, admitted.revision))

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
    def manifests(self) -> list[Manifest]:
        """Of each version that is served now."""
        return [served.manifest for served in _all(self._table)]

    def switch(self, table: Mapping[str, Entry]) -> None:
        """Serve this from now on.

        Raises:
            AdmissionRefused: a trial takes or gives other tensors than the default, so
                that they cannot answer the same requests.
        """
        for entry in table.values():
            for trial in (entry.canary, entry.shadow):
                if trial is not None:
                    check_alike(entry.default.content, trial.content)
        old, new = _answering(self._table), _answering(table)
        self._table = dict(table)
        for served in old - new:
            self._metrics.serves(served.admission, served=False)
        for served in new - old:
            self._metrics.serves(served.admission)

    def renew(self, served: Served, admission: Admission) -> None:
        """Put what admits a version today in the place of what did before."""
        if admission.verdict_sha256 != served.admission.verdict_sha256:
            self._metrics.serves(served.admission, served=False)
            self._metrics.serves(admission)
        served.admission, served.expires_at = admission, _expiry(admission)

    def find(self, name: str, version: str | None = None) -> State[Served] | None:
        """A version of a model; the default one where none is named."""
        entry = self._table.get(name)
        if entry is None:
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
        note = Notes.text(*who, served.tag)
        arrays = await served.batcher.infer(inputs, outputs, note)
        entry = self._table.get(served.manifest.name)
        if entry is not None and (entry.canary or entry.shadow):
            other = entry.other(served)
            if other is not None:
                kind, partner = other
                ours = dict(zip(outputs, arrays))
                note = Notes.text(*who, partner.tag)
                self._try(kind, entry, inputs, ours, partner=partner, note=note)
        return arrays

    def _try(
        self,
        kind: str,
        entry: Entry,
        inputs: Mapping[str, Array],
        ours: Mapping[str, Array],
        *,
        partner: Served,
        note: bytes,
    ) -> None:
        """Run the other version too, after the answer, and compare."""
        if len(self._comparisons) >= _MAX_COMPARISONS:
            self._count(kind, entry, "skipped")
            return

        # Inputs may lie in a buffer that is gone with the request: they are kept alive
        # by the arrays, and nothing writes to them.
        async def run() -> None:
            try:
                theirs = await partner.batcher.infer(inputs, list(ours), note)
            except OverloadedError:
                self._count(kind, entry, "skipped")
            except SealgateError:
                self._count(kind, entry, "failed")
            else:
                self._compare(kind, entry, ours, theirs)

        task = asyncio.get_running_loop().create_task(run())
        self._comparisons.add(task)
        task.add_done_callback(self._comparisons.discard)

    def _compare(
        self,
        kind: str,
        entry: Entry,
        ours: Mapping[str, Array],
        theirs: Sequence[Array],
    ) -> None:
        tensors = {t.spec.name: t for t in entry.default.content.manifest.outputs}
        result = compare([tensors[name] for name in ours], list(ours.values()), theirs)
        self._count(kind, entry, "same" if result.same else "different")
        self._observe(kind, entry, result.difference)

    def _count(self, kind: str, entry: Entry, result: str) -> None:
        labels = _labels(kind, entry)
        self._metrics.count("sealgate_comparisons", *labels, result)

    def _observe(self, kind: str, entry: Entry, difference: float) -> None:
        labels = _labels(kind, entry)
        self._metrics.observe(
            "sealgate_comparison_difference", *labels, value=difference
        )

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


def answers_now(state: State[Served]) -> bool:
    """Whether a version is admitted at this moment."""
    return not isinstance(state, Withdrawn) and time.time() < state.content.expires_at


def _all(table: Mapping[str, Entry]) -> list[Served]:
    return [s.content for entry in table.values() for s in entry.states.values()]


def _answering(table: Mapping[str, Entry]) -> set[Served]:
    return {
        state.content
        for entry in table.values()
        for state in entry.states.values()
        if not isinstance(state, Withdrawn)
    }


def _expiry(admission: Admission) -> float:
    expires_at = admission.expires_at
    return math.inf if expires_at is None else expires_at.timestamp()


def _labels(kind: str, entry: Entry) -> tuple[str, str, str, str]:
    """Model, kind of trial, default version, version on trial."""
    trial = entry.canary if kind == "canary" else entry.shadow
    tried = "" if trial is None else trial.content.manifest.version
    ours = entry.default.content.manifest
    return ours.name, kind, ours.version, tried


def check_alike(default: Served, trial: Served) -> None:
    """Refuse versions that cannot answer the same requests.

    Raises:
        AdmissionRefused: they take or give other tensors.
    """
    ours, theirs = default.manifest, trial.manifest
    for mine, other in ((ours.inputs, theirs.inputs), (ours.outputs, theirs.outputs)):
        if {t.spec for t in mine} != {t.spec for t in other}:
            raise AdmissionRefused(
                17,
                f"{theirs.tag} has other tensors than {ours.tag}, so that they cannot "
                "answer the same requests",
            )
