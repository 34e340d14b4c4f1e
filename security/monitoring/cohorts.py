"""Labels that come later: tickets go out with answers, and come back with labels.

A cohort is what one version answered in one window, with tickets. Of each subject one
of these answers counts, chosen at random when it is given, so that nobody can choose it
later; its label counts if it comes. When labels are final, the cohort is released once,
by the monitor that this extends, from the ledger that all releases share.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.manifest import Manifest
from sealgate.protocol.tensors import Array
from security.errors import MonitoringError, MonitoringStoreError
from security.key_files import pseudonym, read_secret
from security.monitoring.answers import (
    EVENTS,
    Answers,
    Label,
    answers_of,
    event_id,
    pack_events,
    pack_label,
    unpack_label,
)
from security.monitoring.counts import Coded, Counted, Sealer, merge
from security.monitoring.keeping import open_count_store
from security.monitoring.labels import (
    LabelStore,
    Room,
    Spending,
    open_label_store,
)
from security.monitoring.ledger import open_ledger
from security.monitoring.monitor import Monitor
from security.monitoring.release import About, about_of
from security.monitoring.tickets import Ticket, Tickets, mark_of
from security.monitoring.windows import Window, window_at
from security.settings.monitoring import MonitoringSettings

__all__ = ["KIND", "OUTCOMES", "Cohorts", "Feedback", "check_cohorts", "open_cohorts"]

KIND = "labels"
# Only who has a real ticket of this model learns more than "refused".
REFUSED, EXPIRED = "refused", "expired"
BAD_LABEL, BAD_GROUP = "no such label", "no such group"
OUTCOMES = ("accepted", "spent", "full", EXPIRED, BAD_LABEL, BAD_GROUP, REFUSED)
CONTRIBUTION = (
    "one answer of each subject per window and model version, chosen at random of "
    "those that it had tickets for, and its label"
)
_DAY_S = 86_400

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feedback:
    """A label, as anyone may send it.

    Attributes:
        ticket: what came with the answer.
        label: a class's name or index, or a number.
        group: the one that the answer was about, if that is known.
    """

    ticket: str = field(repr=False)
    label: object = field(repr=False)
    group: str = field(default="", repr=False)


class Cohorts(Monitor):
    """Gives tickets, takes labels, and releases what they say together."""

    kind = KIND

    def __init__(
        self,
        settings: MonitoringSettings,
        *,
        labels: LabelStore,
        tickets: Tickets,
        secret: bytes,
        **monitor: Any,
    ) -> None:
        """Prepare; nothing is stored yet.

        Args:
            settings: of monitoring.
            labels: where labels wait.
            tickets: seals and opens them.
            secret: of the deployment.
            monitor: further arguments of `Monitor`.
        """
        self._labels, self._tickets, self._secret = labels, tickets, secret
        self._known: dict[str, Answers] = {}
        # Threads of requests and the monitor's share one connection to the store.
        self._spending = threading.Lock()
        self._odd: set[str] = set()
        super().__init__(settings, **monitor)

    def issue(
        self, tag: str, subject: str, outputs: Mapping[str, Array]
    ) -> list[str | None]:
        """Tickets for an answer's rows; counts the answer.

        Args:
            tag: of the version that answered.
            subject: who asked: its pseudonym, 32 hexadecimal digits.
            outputs: with the one that answers.

        Returns:
            One for each row; None where the model gave no number.

        Raises:
            MonitoringError: no tickets are given for this model.
        """
        meter = self._meters.get(tag)
        if meter is None or not isinstance(meter.layout, Answers):
            raise MonitoringError(f"{tag}: answers of this model take no labels")
        read, now = meter.layout.read(outputs), self._clock()
        counts = meter.counts
        if counts is None or not meter.start <= now < meter.end:
            if not meter.is_counted:
                raise MonitoringError(f"{tag}: its last window is over")
            self._turn(meter, now)
            counts = meter.counts
        window = _window(self._settings.window, meter.start)
        answers = [one for one in read if one is not None]
        made = self._tickets.seal(
            meter.name,
            meter.version,
            window,
            bytes.fromhex(subject),
            answers,
        )
        if answers and counts is not None:
            ids = [identifier for identifier, _ in made]
            packed = pack_events(answers, ids, classes=bool(meter.layout.labels))
            counts.add(subject, len(answers), {}, {EVENTS: packed})
        texts = iter(made)
        return [None if one is None else next(texts)[1] for one in read]

    def gives(self, tag: str) -> str:
        """The output that a version's tickets are made from; "" where it has none."""
        if tag not in self._meters and tag not in self._odd:
            self._follow()  # it was loaded a moment ago
        meter = self._meters.get(tag)
        # Of a version that is not counted any more, a ticket alone would make a cohort.
        layout = meter.layout if meter is not None and meter.is_counted else None
        return layout.output if isinstance(layout, Answers) else ""

    def accept(
        self,
        model: str,
        items: Sequence[Feedback],
        *,
        may: Callable[[str], bool] = lambda version: True,
    ) -> list[str]:
        """Take labels, each ticket's once.

        Args:
            model: that they are about.
            items: from anyone.
            may: whether their sender may label a version's answers.

        Returns:
            What became of each, of `OUTCOMES`.

        Raises:
            MonitoringStoreError: it cannot be told which tickets are spent, or what
                time it is. Some may have been accepted: they are spent, then.
        """
        if self._jumps.seen():
            raise MonitoringStoreError(
                "the clock has jumped: nobody knows what expires"
            )
        outcomes = [REFUSED] * len(items)
        find = functools.cache(functools.partial(self._cohort, model))
        wanted: dict[tuple[str, float], list[tuple[int, Spending]]] = {}
        for at, item in enumerate(items):
            found = self._checked(model, item, may, find)
            if isinstance(found, str):
                outcomes[at] = found
            else:
                *cohort, spending = found
                wanted.setdefault(tuple(cohort), []).append((at, spending))  # type: ignore[arg-type]
        each = self._settings.max_labels_per_subject
        room = Room(self._settings.max_subjects * each, each)
        with self._spending:
            for (scope, until), numbered in wanted.items():
                several = [spending for _, spending in numbered]
                spent = self._labels.spend(scope, until, room, several)
                for (at, _), outcome in zip(numbered, spent):
                    outcomes[at] = outcome
        return outcomes

    def _checked(
        self,
        model: str,
        item: Feedback,
        may: Callable[[str], bool],
        find: Callable[[bytes, Window], tuple[About, Answers] | None],
    ) -> str | tuple[str, float, Spending]:
        """What is to be kept, where, until when; or why it is not.

        1. The ticket is of this deployment and model.
        2. Its version is known, and the sender may label that.
        3. Labels of its cohort are not final.
        4. The label is one of the model's, the group one of the settings'.

        Raises:
            MonitoringStoreError: what its version is cannot be told.
        """
        try:
            ticket = self._tickets.open(model, item.ticket)
        except MonitoringError:
            return REFUSED
        found = find(ticket.mark, ticket.window)
        if found is None or not may(found[0].version):
            return REFUSED
        about, layout = found
        until = self._released_from(about)
        if self._clock() >= until:
            return EXPIRED
        label = layout.label(item.label)
        if label is None:
            return BAD_LABEL
        if item.group and item.group not in layout.groups:
            return BAD_GROUP
        kept: Label = layout.outcome(ticket.answer, label), item.group
        place = _place(about.key, event_id(ticket.id))
        data = self._sealer.seal(pack_label(kept), place)
        return about.key, until, Spending(ticket.id, self._owner(about, ticket), data)

    def _cohort(
        self, model: str, mark: bytes, window: Window
    ) -> tuple[About, Answers] | None:
        """Which cohort a ticket is of, if its version is served or in the store."""
        for meter in list(self._meters.values()):
            if meter.name == model and mark_of(model, meter.version) == mark:
                layout = meter.layout
                return (
                    (meter.about(window), layout)
                    if isinstance(layout, Answers)
                    else None
                )
        with self._lock:
            for about in map(about_of, self._store.scopes()):
                of = about.kind, about.model, about.window
                if (
                    of == (KIND, model, window)
                    and mark_of(model, about.version) == mark
                ):
                    return about, self._described(about)
        return None

    def _described(self, about: About) -> Answers:
        """What answers of a version mean that is not served any more."""
        known = self._known.get(about.key)
        if known is None:
            _, meaning, _ = self._opened(about, self._store.read(about.key))
            if meaning is None:
                raise MonitoringStoreError("a cohort in the store cannot be read")
            known = self._known[about.key] = Answers.from_object(meaning)
        return known

    def _owner(self, about: About, ticket: Ticket) -> bytes:
        """Stands for a caller in one cohort's list only."""
        name = f"{about.key}/{ticket.subject.hex()}"
        return bytes.fromhex(pseudonym(self._secret, name))[:8]

    def stop(self) -> None:
        """As `Monitor.stop`."""
        super().stop()
        with self._spending:
            self._labels.close()

    # How this kind of release differs from the monitor's own

    @property
    def _share(self) -> float:
        return self._settings.labels_share

    def _layout(self, manifest: Manifest) -> Coded | None:
        try:
            return answers_of(manifest, self._settings.labels(manifest.name))
        except MonitoringError as error:
            if manifest.tag not in self._odd:
                self._odd.add(manifest.tag)
                _log.error("no tickets: %s", error)
            return None

    def _released_from(self, about: About) -> float:
        days = self._settings.labels(about.model).labels_final_after_days
        return about.window.end + days * _DAY_S

    def _counted(self, about: About, meaning: Any, parts: Sequence[bytes]) -> Counted:
        layout = Answers.from_object(meaning)
        events = merge(parts, layout.width)
        labels: dict[bytes, Label] = {}
        with self._spending:
            kept = self._labels.read(about.key)
        for identifier, data in kept.items():
            place = _place(about.key, event_id(identifier))
            with contextlib.suppress(MonitoringError):  # one that was put there
                labels[event_id(identifier)] = unpack_label(
                    self._sealer.open(data, place)
                )
        return Counted(
            counts=layout.counts(events, labels),
            sensitivity=layout.sensitivity,
            contribution=CONTRIBUTION,
            subjects=len(events),
            details=layout.describe(),
        )

    def _drop(self, scope: str) -> None:
        with self._spending:
            self._labels.drop(scope, self._clock())
        super()._drop(scope)
        self._known.pop(scope, None)


def open_cohorts(
    settings: MonitoringSettings,
    *,
    versions: Callable[[], Iterable[Manifest]],
    report: Callable[[str, float], None] = lambda name, value: None,
) -> Cohorts | None:
    """This worker's cohorts; None where monitoring is off, or labels have no budget.

    Raises:
        KeyFileError: the key cannot be read.
        MonitoringError: the key is too short, or there can be no such store.
    """
    if not settings.enabled or not settings.labels_share:
        return None
    secret = read_secret(settings.key)
    return Cohorts(
        settings,
        labels=open_label_store(settings),
        tickets=Tickets(secret),
        secret=secret,
        store=open_count_store(settings),
        ledger=open_ledger(settings),
        sealer=Sealer(secret),
        versions=versions,
        report=report,
    )


@functools.lru_cache(maxsize=16)
def _window(length: str, start: float) -> Window:
    return window_at(length, start)


def check_cohorts(settings: MonitoringSettings) -> None:
    """Make what all workers share, after `monitor.check_monitor`.

    Raises:
        MonitoringStoreError: it cannot be made.
    """
    if settings.enabled and settings.labels_share:
        store = open_label_store(settings)
        store.start()
        store.close()


def _place(scope: str, identifier: bytes) -> str:
    return f"{scope}/label/{identifier.hex()}"
