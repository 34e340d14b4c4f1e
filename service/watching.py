"""What monitoring found of the models that are served: read by a thread, told at once.

A thread reads what was released, every minute, and sees it beside the evidence of what
is served. Requests and metrics get what it saw last: the ledger may be away without
anyone waiting for it, and the answer says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sealgate.errors import SealgateError
from security.admission.gate import Admission
from security.monitoring.ledger import Budget, Entry, Ledger, open_ledger
from security.monitoring.overview import (
    Evidence,
    Overview,
    Spent,
    labels_of,
    overview,
)
from security.monitoring.release import Release, read_releases
from security.settings.monitoring import MonitoringSettings
from service.inference.lineup import Lineup
from service.inference.served import Served
from service.problems import Problem
from service.telemetry.metrics import Metrics

__all__ = ["REFRESH_S", "Watching", "open_watching"]

REFRESH_S = 60.0

_log = logging.getLogger(__name__)


class Watching:
    """What was released of the versions that one worker serves."""

    def __init__(
        self,
        settings: MonitoringSettings,
        *,
        ledger: Ledger,
        lineup: Lineup,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            settings: of monitoring.
            ledger: of releases.
            lineup: the models.
            metrics: told of each look.
            clock: Unix seconds.
        """
        self._settings, self._ledger = settings, ledger
        self._lineup, self._metrics, self._clock = lineup, metrics, clock
        self._budget = Budget(settings.epsilon, settings.delta)
        self._entries: list[Entry] = []
        self._releases: list[Release] = []
        self._labels: list[Release] = []
        self._seen: dict[str, Overview] = {}
        self._documents: dict[str, dict[str, Any]] = {}
        self._told: set[tuple[str, ...]] = set()
        self._problem = ""

    def start(self) -> None:
        """Look, again and again, in a thread that ends with the process."""
        threading.Thread(target=self._watch, name="watching", daemon=True).start()

    def look(self) -> None:
        """Look once."""
        try:
            known = {} if self._read() else self._seen
            now = self._clock()
            spent = Spent.of(self._entries, self._budget, now=now)
            self._seen = {
                root: replace(known[root], spent=spent, as_of=now)
                if root in known
                else self._overview(item, spent, now)
                for item in self._lineup.admissions
                for root in [item.bundle.subject.root_sha256]
            }
            # Here, since each may take 50 ms: requests do not make the event loop wait.
            self._documents = {
                root: seen.to_object() for root, seen in self._seen.items()
            }
            self._problem = ""
        except SealgateError as error:
            if not self._problem:
                _log.warning("what was released cannot be read: %s", error)
            self._problem = "what was released cannot be read now"
        self._tell()

    def document(self, model: Served) -> dict[str, Any]:
        """What was seen of a version last.

        Raises:
            Problem: nothing yet.
        """
        found = self._documents.get(model.admission.bundle.subject.root_sha256)
        if found is None:
            raise Problem("monitoring-unavailable", self._problem or None)
        return {**found, "problem": self._problem}

    def _watch(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # noqa: BLE001  (the thread goes on)
                _log.warning("monitoring is not read: %s", type(error).__name__)
            time.sleep(REFRESH_S)

    def _read(self) -> bool:
        """Read the ledger, and parse it if it has changed; whether it has.

        Raises:
            MonitoringError: it is away, or malformed.
        """
        entries = self._ledger.entries()
        if entries == self._entries:
            return False
        self._releases = read_releases(self._ledger, kind="drift")
        self._labels = read_releases(self._ledger, kind="labels")
        self._entries = entries
        return True

    def _overview(self, admission: Admission, spent: Spent, now: float) -> Overview:
        """Test every window of a version: 20 ms each, with 30 columns."""
        return overview(
            Evidence.of_bundle(admission.bundle, admission.reports),
            self._releases,
            length=self._settings.window,
            spent=spent,
            now=now,
            labels=labels_of(
                self._labels, admission.bundle.subject, self._settings.window
            ),
        )

    def _tell(self) -> None:
        """Set gauges; of versions, and of histograms, no longer there they are 0."""
        found: dict[tuple[str, ...], float] = {}
        for seen in self._seen.values():
            found |= _gauges(seen)
        for key in self._told - found.keys():
            found[key] = 0.0
        for key, value in found.items():
            self._metrics.set(*key, value=value)
        self._told = set(found)


def _gauges(seen: Overview) -> dict[tuple[str, ...], float]:
    """What metrics tell of a version: released figures only, by few labels."""
    subject, last = seen.evidence.subject, seen.last
    version = subject.name, subject.version
    found: dict[tuple[str, ...], float] = {
        ("sealgate_monitoring_epsilon",): seen.spent.epsilon,
        ("sealgate_monitoring_epsilon_cap",): seen.spent.cap,
        ("sealgate_monitoring_unknown", *version): float(seen.state == "unknown"),
    }
    if last is None:
        return found
    alarms = last.alarms or ()
    sizes = [item.psi for item in last.alone.values()]
    found |= {
        ("sealgate_monitoring_window_end_seconds", *version): float(last.window.end),
        ("sealgate_monitoring_subjects", *version): float(last.release.subjects or 0),
        ("sealgate_drift_alarms", *version): float(len(alarms)),
        ("sealgate_drift_psi", *version): max(sizes, default=0.0),
    }
    # A series for each histogram that ever was in alarm, not for each that there is.
    found |= {("sealgate_drift_alarm", *version, name): 1.0 for name in alarms}
    labelled = [item.labels for item in seen.sights if item.labels is not None]
    accuracy = labelled[-1].accuracy if labelled else None
    if accuracy is not None:
        ends = {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high}
        for end, value in ends.items():
            found["sealgate_label_accuracy", *version, end] = value
    covered = labelled[-1].coverage if labelled else None
    if covered is not None and covered.share is not None:
        for end in ("value", "low", "high"):
            key = "sealgate_label_coverage", *version, end
            found[key] = getattr(covered.share, end)
        found["sealgate_coverage_below", *version] = float(covered.below)
    return found


def open_watching(
    settings: MonitoringSettings, *, lineup: Lineup, metrics: Metrics
) -> Watching | None:
    """This worker's, which looks from now on; None where monitoring is off.

    Raises:
        MonitoringStoreError: there can be no such ledger.
    """
    if not settings.enabled:
        return None
    ledger = open_ledger(settings)
    watching = Watching(settings, ledger=ledger, lineup=lineup, metrics=metrics)
    watching.start()
    return watching
