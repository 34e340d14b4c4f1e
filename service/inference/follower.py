"""Each worker follows the plan of what is served, and the rules it rests on.

A thread looks at the plan, the policy and the trust root, and does all that takes time:
what is new is read once, verified and loaded from those very bytes, and warmed up. Only
then it is served, by one assignment. What is refused is not served, the version that
runs stays, and the refusal is in the log, the audit log and this worker's report.

When the policy or the trust root changes, everything that runs is verified again under
the new one. What no longer passes answers 503 from then on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from models.files import write_atomic
from models.report import format_time, parse_time
from sealgate.errors import SealgateError
from security.admission.hooks import current_plan, open_tag
from security.admission.lifecycle import (
    Canary,
    Default,
    Planned,
    Shadow,
    State,
    Warm,
    Withdrawn,
    arrange,
)
from security.admission.observations import monitored_until, observation_file
from security.admission.plan import ModelPlan, Plan, PlanFolder, default_since
from security.admission.policy import load_policy
from security.admission.steps import Scene
from security.admission.trust_store import load_trust
from security.errors import AdmissionRefused, PlanError
from security.settings.loading import Settings
from service.inference.lineup import Lineup
from service.inference.memory import give_back
from service.inference.served import Entry, Served, check_alike
from service.telemetry.casualties import Casualties, who_is_held_off
from service.telemetry.metrics import Metrics

__all__ = ["REPORT_S", "Follower", "Record"]

_MAX_REASON = 300
_HELD_OFF = "workers that ran it ended, again and again"
# How often a worker says that it is there, whatever happens.
REPORT_S = 2.0
# At the end, a look that is being taken may go on for so long.
_END_S = 2.0

_TELL_S = 86_400.0
# Long enough for several people to sign the next version.
_EXPIRES_SOON = timedelta(days=30)

_log = logging.getLogger(__name__)
# A record of the audit log: what was decided about which version, and why.
Record = Callable[[Mapping[str, str | None]], None]
Stamp = tuple[int, int, int] | None


class Follower:
    """Keeps a lineup at what the plan says."""

    def __init__(
        self,
        settings: Settings,
        lineup: Lineup,
        *,
        record: Record | None = None,
        casualties: Casualties | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Prepare; nothing is loaded yet.

        Args:
            settings: where the plan, the policy and the trust root are.
            lineup: of this worker.
            record: called for each decision, from the thread.
            casualties: of the server, to hold off who ended workers.
            metrics: told of the trust root.
        """
        self._settings = settings
        self._lineup = lineup
        self._record = record or _forget
        self._folder = PlanFolder(settings.deployment.directory)
        self._plan = Plan()
        self._plan_stamp: Stamp = None
        self._rules_stamp = self._rules()
        self._casualties = casualties or Casualties(None)
        self._metrics = metrics or Metrics()
        self._next_told = 0.0
        self._watched: dict[Path, Stamp] = {}
        self._refused: dict[str, str] = {}
        self._problem: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._follow, name="follower", daemon=True
        )
        name = f"{os.getpid()}-{time.time_ns():x}.json"
        self._report_path = self._folder.workers_directory / name
        self._reported: dict[str, Any] = {}
        self._next_report = 0.0
        self._trials: list[dict[str, Any]] = []

    def load_first(self) -> None:
        """Load what is to be served, before the worker is ready.

        Raises:
            SealgateError: of service.toml's models one was refused, or of a plan's all.
        """
        self._hold_off()
        self._plan_stamp = self._folder.stamp()
        plan = current_plan(self._settings)
        first = self._apply(plan, note=False)
        if first is not None and (not plan.generation or not self._lineup.table):
            raise first
        if not self._lineup.table:
            raise PlanError("no model is to be served")
        self._tell_trust()
        self._report()

    def start(self) -> None:
        """Follow from now on, in a thread that ends with the process."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no more, and take the report away."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)
        self._report_path.unlink(missing_ok=True)

    def _follow(self) -> None:
        while not self._stop.wait(self._settings.deployment.poll_s):
            try:
                self.look()
            except Exception:  # noqa: BLE001  (the thread outlives what a load meets)
                _log.exception("the plan cannot be followed")

    def look(self) -> None:
        """Look once, and do what has to be done."""
        rules = self._rules()
        changed = self._hold_off() or rules != self._rules_stamp or self._observed()
        if changed:
            self._rules_stamp = rules
            self._verify_again()
        stamp = self._folder.stamp()
        if stamp != self._plan_stamp:
            self._plan_stamp = stamp
            self._read_plan()
        elif changed and self._refused:
            # What was refused may pass under the new rules.
            self._apply(self._plan)
        if changed or time.monotonic() >= self._next_told:
            self._tell_trust()
        self._report()

    def _hold_off(self) -> bool:
        """See who ended workers again and again; whether other models than before."""
        before = self._lineup.held_off
        casualties = self._casualties.all()
        held_off = who_is_held_off(casualties, now=time.time())
        self._lineup.held_off = held_off
        return held_off.models != before.models

    def _observed(self) -> bool:
        """Whether a report has come or gone that a default version stands by."""
        return any(_stamp(path) != stamp for path, stamp in self._watched.items())

    def _read_plan(self) -> None:
        try:
            plan = current_plan(self._settings)
        except SealgateError as error:
            self._problem = str(error)
            _log.warning("the plan is not followed: %s", error)
            self._note("load", None, reason=str(error))
            return
        self._problem = None
        self._apply(plan)

    def _apply(self, plan: Plan, *, note: bool = True) -> SealgateError | None:
        """Serve what a plan says, as far as it is admitted; the first refusal."""
        self._plan, self._refused, self._watched = plan, {}, {}
        before, table = self._lineup.table, {}
        first: SealgateError | None = None
        for name, model in plan.models.items():
            old = before.get(name)
            try:
                table[name] = self._entry(name, model, old)
            except SealgateError as error:
                first = first or error
                if old is not None:
                    table[name] = old
        self._lineup.switch(table)
        give_back()  # what was read, now that it is loaded
        if note:  # of the first ones the worker's own log says so
            self._note_changes(before, table)
        return first

    def _entry(self, name: str, plan: ModelPlan, old: Entry | None) -> Entry:
        """What is served of a model.

        Raises:
            SealgateError: its default version is refused.
        """
        running = {} if old is None else old.states
        states: dict[str, State[Served]] = {}
        for version in sorted(plan.versions, key=lambda v: v != plan.default):
            planned = plan.versions[version]
            state = running.get(version)
            try:
                if state is None or state.content.revision != planned.content:
                    warm = self._load(f"{name}:{version}", Planned(planned.content))
                    state = self._verified(warm) if self._is_held(warm) else warm
            except SealgateError:
                if version == plan.default:
                    raise
                if state is None:
                    continue
                # It was to be read again: it stays as it was.
            if isinstance(state, Withdrawn) and state.cause == "monitoring":
                state = state.restore()  # it may not be the default any more
            states[version] = self._standing(arrange(state, planned))
        return Entry(self._alike(states[plan.default].content, states))

    def _standing(self, state: State[Served]) -> State[Served]:
        """A default version, withdrawn if it is not monitored as the policy asks.

        Raises:
            SealgateError: the policy or the trust root cannot be used.
        """
        served = state.content
        was = state.was if isinstance(state, Withdrawn) else state
        until, why = self._stands(served) if isinstance(was, Default) else (None, "")
        served.stand_until(until)
        if until is None or until > datetime.now(UTC):
            return state
        return state.withdraw(why, cause="monitoring")

    def _stands(self, served: Served) -> tuple[datetime | None, str]:
        """Until when it may answer by default, and why not longer."""
        admission = self._settings.admission
        policy = load_policy(admission.policy)
        if not policy.promotion_of(served.manifest.name).stays_monitored:
            return None, ""
        bundle = served.admission.bundle
        directory = self._settings.deployment.directory
        path = observation_file(directory, bundle.subject, "monitoring")
        self._watched[path] = _stamp(path)
        since = default_since(self._folder.history(), served.tag)
        made = [item.created_at for item in served.admission.reports.values()]
        return monitored_until(
            directory,
            Scene(bundle, policy, load_trust(admission.trust), datetime.now(UTC)),
            begun=parse_time(since) if since else max(made, default=datetime.now(UTC)),
        )

    def _is_held(self, warm: Warm[Served]) -> bool:
        return warm.content.tag in self._lineup.held_off.models

    def _load(self, tag: str, planned: Planned) -> Warm[Served]:
        try:
            return self._lineup.load(planned.admit(open_tag(tag, self._settings)))
        except SealgateError as error:
            self._refuse(tag, error)
            raise

    def _alike(
        self, default: Served, states: Mapping[str, State[Served]]
    ) -> dict[str, State[Served]]:
        """End the trials of versions that cannot answer the default's requests."""
        alike = dict(states)
        for version, state in states.items():
            if isinstance(state, Canary | Shadow):
                try:
                    check_alike(default, state.content)
                except AdmissionRefused as error:
                    self._refuse(state.content.tag, error)
                    alike[version] = state.retire()
        return alike

    def _verify_again(self) -> None:
        """Ask the gate about all that runs, under the rules as they are now."""
        self._watched = {}
        self._lineup.switch(
            {
                name: Entry({v: self._verified(s) for v, s in entry.states.items()})
                for name, entry in self._lineup.table.items()
            }
        )

    def _verified(self, state: State[Served]) -> State[Served]:
        """As `_judged`; what has changed is told."""
        after, tag = self._judged(state), state.content.tag
        if isinstance(after, Withdrawn):
            if not isinstance(state, Withdrawn) or state.reason != after.reason:
                _log.warning("%s is withdrawn: %s", tag, after.reason)
                self._note("withdraw", tag, reason=after.reason)
        elif isinstance(state, Withdrawn):
            _log.info("%s answers again", tag)
            self._note("restore", tag)
        return after

    def _judged(self, state: State[Served]) -> State[Served]:
        served = state.content
        try:
            admission = open_tag(served.tag, self._settings)
            if admission.bundle.subject != served.admission.bundle.subject:
                raise AdmissionRefused(16, "the store holds other bytes than run")
        except SealgateError as error:
            return state.withdraw(str(error))
        self._lineup.renew(served, admission)
        if served.tag in self._lineup.held_off.models:
            return state.withdraw(_HELD_OFF, cause="casualties")
        restored = state.restore() if isinstance(state, Withdrawn) else state
        try:
            return self._standing(restored)
        except SealgateError as error:
            return restored.withdraw(str(error))

    def _tell_trust(self) -> None:
        """Say which trust root is in force, and that it expires soon: once a day."""
        self._next_told = time.monotonic() + _TELL_S
        try:
            trust = load_trust(self._settings.admission.trust)
        except SealgateError as error:
            _log.warning("no trust root is in force: %s", error)
            return
        expires = trust.expires
        ends = 0.0 if expires is None else expires.timestamp()
        self._metrics.set("sealgate_trust_root_version", value=trust.version or 0)
        self._metrics.set("sealgate_trust_root_expires_seconds", value=ends)
        if expires is not None and expires - datetime.now(UTC) < _EXPIRES_SOON:
            _log.warning("the trust root expires at %s", format_time(expires))

    def _rules(self) -> tuple[Stamp, Stamp]:
        admission = self._settings.admission
        return _stamp(admission.policy), _stamp(admission.trust)

    def _refuse(self, tag: str, error: SealgateError) -> None:
        self._refused[tag] = str(error)
        _log.warning("%s refused: %s", tag, error)
        self._note("load", tag, reason=str(error))

    def _note_changes(
        self, before: Mapping[str, Entry], after: Mapping[str, Entry]
    ) -> None:
        old, new = _describe(before), _describe(after)
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                state = orjson.dumps(new.get(name)).decode()
                _log.info("generation %d: %s %s", self._plan.generation, name, state)
                entry = after.get(name)
                if entry is None:
                    self._note("unload", name)
                else:
                    self._note("load", entry.default.content.tag)

    def _note(self, action: str, tag: str | None, reason: str | None = None) -> None:
        name, _, version = (tag or "").partition(":")
        state = self._lineup.find(name, version or None)
        subject = None if state is None else state.content.admission.bundle.subject
        record: dict[str, str | None] = {
            "client": "worker",
            "action": action,
            "model": tag,
            "model_sha256": None if subject is None else subject.root_sha256,
            "outcome": "allow" if reason is None else "refuse",
            "reason": reason and reason[:_MAX_REASON],
        }
        try:
            self._record(record)
        except SealgateError as error:
            _log.error("a decision about %s is not recorded: %s", tag, error)

    def _report(self) -> None:
        """Say in a file what is served; only its time changes while nothing does."""
        table, now = self._lineup.table, time.monotonic()
        if now >= self._next_report:  # counts change with each request
            self._trials = self._lineup.trials
        report = {
            "pid": os.getpid(),
            "generation": self._plan.generation,
            "serving": _describe(table),
            "refused": self._refused,
            "withdrawn": {
                state.content.tag: state.reason
                for entry in table.values()
                for state in entry.states.values()
                if isinstance(state, Withdrawn)
            },
            "problem": self._problem,
            "trials": self._trials,
        }
        if report == self._reported and now < self._next_report:
            return
        self._next_report = now + REPORT_S
        try:
            if report == self._reported:
                os.utime(self._report_path)
            else:
                self._folder.make()
                write_atomic(self._report_path, orjson.dumps(report))
            self._reported = report
        except OSError as error:
            # Serving goes on; the operator's command will miss this worker.
            self._reported = {}
            _log.warning("%s: %s", self._report_path, error.strerror)


def _describe(table: Mapping[str, Entry]) -> dict[str, dict[str, Any]]:
    return {name: _describe_entry(entry) for name, entry in table.items()}


def _describe_entry(entry: Entry) -> dict[str, Any]:
    result: dict[str, Any] = {
        "default": entry.default.content.manifest.version,
        "versions": {
            version: state.content.admission.bundle.subject.root_sha256
            for version, state in entry.states.items()
        },
    }
    for name, trial in (("canary", entry.canary), ("shadow", entry.shadow)):
        if trial is not None:
            version = trial.content.manifest.version
            result[name] = {"version": version, "percent": trial.percent}
    return result


def _stamp(path: Path) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _forget(record: Mapping[str, Any]) -> None:
    """Nobody keeps records."""
