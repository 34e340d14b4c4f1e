"""A worker's part in monitoring: it counts, stores what it has, releases what is over.

`Monitor.count` is all that the event loop does. A thread stores what was counted, every
few seconds, and releases windows that are over: whichever worker or host books a
release first makes it. While the store is away nothing waits for it: what was counted
stays in memory, within its bound, and the monitor says that the store is away.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.manifest import Manifest
from sealgate.errors import JsonError, SealgateError
from sealgate.protocol import strict_json
from sealgate.protocol.tensors import Array
from security.errors import BookedError, MonitoringError, MonitoringStoreError
from security.key_files import read_secret
from security.monitoring.counts import (
    Coded,
    Counted,
    Counts,
    Sealer,
    merge,
)
from security.monitoring.keeping import (
    CountStore,
    Presence,
    Segment,
    lost_of,
    open_count_store,
)
from security.monitoring.layout import Layout, described, layout_of
from security.monitoring.ledger import Budget, Entry, Ledger, open_ledger
from security.monitoring.release import About, Release, about_of, release
from security.monitoring.windows import Jumps, Window, window_at
from security.settings.monitoring import MonitoringSettings

__all__ = ["KIND", "Monitor", "check_monitor", "open_monitor"]

KIND = "drift"
CONTRIBUTION = (
    "one event of each subject per window and model version, chosen at random of all"
)
# After a window's end, for workers that have not stored the last of it.
PATIENCE_S = 60.0
# Events are counted by the same clock, a moment after they looked at it.
_MOMENT_S = 1.0
_SEGMENTS = 64
_COMPLAIN_S = 60.0
# Of one version at once, the nearest ones: this one, those that could not be stored
# yet, and where a wrong clock has been.
_WINDOWS = 4

# Goes on while the machine sleeps, where the system has such a clock.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_log = logging.getLogger(__name__)


@dataclass
class _Place:
    """One window of a version in this worker."""

    counts: Counts
    since: int
    stored: list[int] = field(default_factory=list)
    jumped: bool = False


@dataclass
class _Meter:
    """One version in this worker.

    Attributes:
        kind: of its releases.
        is_counted: whether it is to be counted now.
        start, end: of the window that was last counted in.
    """

    kind: str
    name: str
    version: str
    layout: Coded
    is_counted: bool = True
    places: dict[Window, _Place] = field(default_factory=dict)
    counts: Counts | None = None
    start: float = 0.0
    end: float = 0.0

    def about(self, window: Window) -> About:
        return About(self.kind, self.name, self.version, window)


class Monitor:
    """Counts for one worker, and releases for all.

    Attributes:
        kind: of its releases.
    """

    kind = KIND

    def __init__(
        self,
        settings: MonitoringSettings,
        *,
        store: CountStore,
        ledger: Ledger,
        sealer: Sealer,
        versions: Callable[[], Iterable[Manifest]],
        report: Callable[[str, float], None] = lambda name, value: None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = lambda: time.clock_gettime(_STEADY),
    ) -> None:
        """Prepare; nothing is stored yet.

        Args:
            settings: of monitoring.
            store: of counts.
            ledger: of releases.
            sealer: with the deployment's key.
            versions: the ones to count now.
            report: told whether the store is away, and of epsilon.
            clock: Unix seconds.
            steady: seconds that go on also while the machine sleeps, and never jump.
        """
        self._settings = settings
        self._store, self._ledger, self._sealer = store, ledger, sealer
        self._versions = versions
        self._report = report
        self._clock, self._steady = clock, steady
        self._jumps = Jumps(clock, steady)
        self._worker = secrets.token_hex(8)
        # Also where a window is counted in a second time, its segments have new ones.
        self._numbers = itertools.count(1)
        self._meters: dict[str, _Meter] = {}
        self._budget = Budget(settings.epsilon, settings.delta)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._complained = -_COMPLAIN_S
        self._failed = False
        self._follow()

    def count(
        self,
        tag: str,
        subject: str,
        rows: int,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> None:
        """Count an answered request; never fails, and waits for nothing.

        Args:
            tag: of the version that answered.
            subject: who asked: its pseudonym.
            rows: of the request.
            inputs: as the model took them.
            outputs: those that were asked for.
        """
        meter = self._meters.get(tag)
        if meter is None or not meter.is_counted:
            return
        try:
            now = self._clock()
            if meter.counts is None or not meter.start <= now < meter.end:
                self._turn(meter, now)
            meter.counts.add(subject, rows, inputs, outputs)  # type: ignore[union-attr]
        except Exception as error:  # noqa: BLE001  (an answer is not lost for a count)
            if not self._failed:  # without its text, which may hold values
                self._failed = True
                _log.error("%s: events are not counted: %s", tag, type(error).__name__)

    def look(self) -> None:
        """Store what was counted, release what is over; says what stands in the way."""
        with self._lock:
            try:
                self._follow()
                self._flush(closing=False)
                self._release_due()
            except SealgateError as error:
                away = isinstance(error, MonitoringStoreError)
                self._report("away", float(away))
                self._complain(str(error))
            else:
                self._report("away", 0.0)

    def start(self) -> None:
        """Look every few seconds from now on, in a thread, until `stop`."""
        threading.Thread(target=self._run, name="monitoring", daemon=True).start()

    def stop(self) -> None:
        """Store the last of what was counted, and look no more."""
        if self._stop.is_set():
            return
        self._stop.set()
        with self._lock:
            try:
                self._flush(closing=True)
            except SealgateError as error:
                _log.warning("the last counts are lost: %s", error)
            self._store.close()
            self._ledger.close()

    def _run(self) -> None:
        while not self._stop.wait(self._settings.flush_s):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001  (the thread goes on)
                self._complain(type(error).__name__)

    def _complain(self, reason: str) -> None:
        now = self._steady()
        if now - self._complained >= _COMPLAIN_S:
            self._complained = now
            _log.warning("monitoring: %s", reason)

    def _follow(self) -> None:
        """Have a meter for each version that is to be counted."""
        now = self._clock()
        manifests = {item.tag: item for item in self._versions()}
        for tag, manifest in manifests.items():
            if tag not in self._meters:
                layout = self._layout(manifest)
                if layout is not None:
                    name, version = manifest.name, manifest.version
                    made = _Meter(self.kind, name, version, layout)
                    self._meters.setdefault(tag, made)
        for tag, meter in self._meters.items():
            meter.is_counted = tag in manifests
            if meter.is_counted:
                # One that nobody asks has a window, too, with no subjects: that there
                # is a release, and what share of the budget it has, says nothing.
                self._place(meter, window_at(self._settings.window, now), now)

    def _turn(self, meter: _Meter, now: float) -> None:
        """Count in another window from now on."""
        window = window_at(self._settings.window, now)
        place = self._place(meter, window, now)
        meter.counts, meter.start, meter.end = place.counts, window.start, window.end

    def _place(self, meter: _Meter, window: Window, now: float) -> _Place:
        known = meter.places.get(window)
        if known is None:
            by_distance = sorted(meter.places, key=lambda one: abs(one.start - now))
            for far in by_distance[_WINDOWS - 1 :]:
                meter.places.pop(far, None)
            counts = Counts(meter.layout, max_subjects=self._settings.max_subjects)
            known = meter.places.setdefault(window, _Place(counts, int(now)))
        return known

    def _flush(self, *, closing: bool) -> None:
        now, jumped = self._clock(), self._jumps.seen()
        for meter in list(self._meters.values()):
            for window, place in list(meter.places.items()):
                place.jumped = place.jumped or jumped
                over = now >= window.end + _MOMENT_S and not jumped
                closed = over or closing
                self._put(meter.about(window), meter.layout, place, now, closed=closed)
                if closed:
                    del meter.places[window]
                    if meter.counts is place.counts:
                        meter.counts = None

    def _put(
        self, about: About, layout: Coded, place: _Place, now: float, *, closed: bool
    ) -> None:
        """Store what changed of a window.

        Raises:
            MonitoringStoreError: nothing was stored; it stays in memory.
        """
        scope, stored = about.key, place.stored
        whole = len(stored) >= _SEGMENTS
        data, changed = place.counts.take(whole=whole)
        segments = []
        if not stored:  # until there are events: it is small
            segments.append(
                self._segment(scope, 0, strict_json.dumps(layout.describe()))
            )
        if data:
            segments.append(self._segment(scope, next(self._numbers), data))
        replaces = stored if whole and data else []
        presence = Presence(
            worker=self._worker,
            since=place.since,
            until=int(now),
            closed=closed,
            jumped=place.jumped,
        )
        try:
            self._store.put(scope, presence, segments, replaces)
        except MonitoringError:
            place.counts.put_back(changed)
            raise
        kept = [] if replaces else stored
        place.stored = [*kept, *(item.number for item in segments if item.number)]

    def _segment(self, scope: str, number: int, plain: bytes) -> Segment:
        at = f"{scope}/{self._worker}/{number}"
        return Segment(number, self._sealer.seal(plain, at))

    def _release_due(self) -> None:
        """Release every window that is over, unless somebody did.

        Raises:
            MonitoringStoreError: store or ledger cannot be asked.
        """
        now = self._clock()
        every = map(about_of, self._store.scopes())
        scopes = [about for about in every if about.kind == self.kind]
        due = [about for about in scopes if now >= self._released_from(about)]
        if not due:
            return
        if self._jumps.seen():
            raise MonitoringError(
                "the clock has jumped: nothing is released until it is back, or has "
                "been steady for an hour"
            )
        booked = {entry.key for entry in self._ledger.entries()}
        for about in due:
            if {about.key, f"{about.key}/subjects"} & booked:
                self._drop(about.key)
                continue
            found = self._store.read(about.key)
            if not found:  # somebody released it meanwhile
                continue
            waiting = not all(presence.closed for presence, _ in found)
            if waiting and now < about.window.end + self._patience_s:
                continue
            sharing = {item.key for item in scopes if item.window == about.window}
            sharing |= {key for key in booked if _shares(key, about)}
            self._release(about, found, sharing=len(sharing), now=now)
            self._drop(about.key)

    @property
    def _patience_s(self) -> float:
        return max(PATIENCE_S, 4 * self._settings.flush_s)

    def _release(
        self,
        about: About,
        found: list[tuple[Presence, list[Segment]]],
        *,
        sharing: int,
        now: float,
    ) -> None:
        parts, meaning, unread = self._opened(about, found)
        lost = lost_of([presence for presence, _ in found], unread, about.window)
        counted = None if meaning is None else self._readable(about, meaning, parts)
        if counted is None:
            made = Release(about, int(now), withheld="counts unreadable", lost=lost)
            self._ledger.publish(Entry(about.key, now, 0.0, made.to_json()))
            return
        part = self._budget.per_window(about.window.length) * self._share
        try:
            made = release(
                self._ledger,
                self._budget,
                about,
                counted.counts,
                rho=part / sharing,
                sensitivity=counted.sensitivity,
                contribution=counted.contribution,
                subjects=counted.subjects,
                min_subjects=self._settings.min_subjects,
                max_subjects=self._settings.max_subjects,
                now=now,
                lost=lost,
                details=counted.details,
            )
        except BookedError:
            return
        _log.info("%s: %s", about.key, made.withheld or "released")
        self._report("epsilon", made.guarantee["composition"]["epsilon"])

    def _opened(
        self, about: About, found: list[tuple[Presence, list[Segment]]]
    ) -> tuple[list[bytes], Any, int]:
        """The events of all workers, what they mean, and how much cannot be opened."""
        parts: list[bytes] = []
        meaning: Any = None
        unread = 0
        for presence, segments in found:
            for item in segments:
                at = f"{about.key}/{presence.worker}/{item.number}"
                try:
                    plain = self._sealer.open(item.data, at)
                    if item.number:
                        parts.append(plain)
                    else:
                        meaning = strict_json.loads(plain, max_bytes=len(plain))
                except (MonitoringError, JsonError):
                    unread += 1
        return parts, meaning, unread

    def _readable(
        self, about: About, meaning: Any, parts: Sequence[bytes]
    ) -> Counted | None:
        try:
            return self._counted(about, meaning, parts)
        except MonitoringStoreError:
            raise
        except MonitoringError as error:
            _log.error("%s: %s", about.key, error)
            return None

    # What another kind of release does in its own way

    @property
    def _share(self) -> float:
        """Of a window's part of the budget."""
        return 1.0 - self._settings.labels_share

    def _layout(self, manifest: Manifest) -> Coded | None:
        """What is kept of a version's events; None where that is nothing."""
        layout: Coded = layout_of(manifest)
        return layout if layout.width else None

    def _released_from(self, about: About) -> float:
        """When a window may be released, Unix seconds."""
        return about.window.end

    def _counted(self, about: About, meaning: Any, parts: Sequence[bytes]) -> Counted:
        """What there is to release.

        Raises:
            MonitoringError: the events are of another layout.
        """
        del about
        layout = Layout(described(meaning), (), ())
        codes = merge(parts, layout.width)
        return Counted(
            counts=layout.counts(codes),
            sensitivity=layout.sensitivity,
            contribution=CONTRIBUTION,
            subjects=len(codes),
            details={"histograms": layout.describe()},
        )

    def _drop(self, scope: str) -> None:
        """Forget a window that was released.

        Raises:
            MonitoringStoreError: the store cannot be asked.
        """
        self._store.drop(scope)


def open_monitor(
    settings: MonitoringSettings,
    *,
    versions: Callable[[], Iterable[Manifest]],
    report: Callable[[str, float], None],
) -> Monitor | None:
    """This worker's monitor; None where monitoring is off.

    Raises:
        KeyFileError: the key cannot be read.
        MonitoringError: the key is too short, or there can be no such store.
    """
    if not settings.enabled:
        return None
    return Monitor(
        settings,
        store=open_count_store(settings),
        ledger=open_ledger(settings),
        sealer=Sealer(read_secret(settings.key)),
        versions=versions,
        report=report,
    )


def check_monitor(settings: MonitoringSettings) -> None:
    """Fail in the parent what would fail in every worker; make what they share.

    Raises:
        SealgateError: the key cannot be used, or the ledger is gone or away.
    """
    if settings.enabled:
        Sealer(read_secret(settings.key))
        ledger = open_ledger(settings)
        ledger.start()
        ledger.close()


def _shares(key: str, about: About) -> bool:
    parts = key.split("/")
    return len(parts) == 4 and (parts[0], parts[3]) == (about.kind, about.window.name)
