"""Releasing counts: booked first, then noise, then a record that says what it cost.

A record is a document for anyone: the noisy counts, what they promise to whom, and what
was not counted. Nothing else of the counts ever leaves this function.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.errors import ReportError
from models.report import format_time, parse_time
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from sealgate.protocol.versions import unread
from security.errors import BudgetSpentError, MonitoringError
from security.monitoring.guarantee import epsilon_of, sigma_of
from security.monitoring.ledger import MAX_RECORD_BYTES, Budget, Entry, Ledger, spent
from security.monitoring.noise import MAX_SIGMA, rounded_gaussian
from security.monitoring.windows import Window, window_named

__all__ = [
    "RELEASE_SCHEMA",
    "About",
    "Release",
    "about_of",
    "noisy",
    "read_releases",
    "release",
]

RELEASE_SCHEMA = "https://sealgate.dev/monitoring-release/v1"
# Of a release's rho, for the count of subjects that decides whether there is one.
SUBJECTS_SHARE = 0.05
_SUBJECTS = "/subjects"
# Deviations of the noise: it is further off once in 10^22 releases.
_SURE = 10.0
_REASONS = (
    "",
    "too few subjects",
    "too many subjects",
    "budget spent",
    "releaser ended",
    "counts unreadable",
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """What a release is of.

    Attributes:
        kind: "drift", or another one's word for its counts.
        model, version: whose.
        window: when.
    """

    kind: str
    model: str
    version: str
    window: Window

    @property
    def key(self) -> str:
        """What the ledger calls it."""
        return f"{self.kind}/{self.model}/{self.version}/{self.window.name}"


@dataclass(frozen=True)
class Release:
    """What was released of a window, or why nothing was.

    Attributes:
        about: what it is of.
        released_at: Unix seconds.
        withheld: why there are no counts: "too few subjects", "too many subjects" (than
            there was room for), "budget spent", "releaser ended" (booked by one who
            died) or "counts unreadable"; or empty.
        subjects: their noisy number; None where that was withheld, too.
        counts: noisy, by name; they may be negative.
        sigma: of the noise of each of them; 0 where there are none.
        guarantee: unit, neighbouring relation, mechanism, sensitivity, rho, epsilon and
            delta of this release, and of the year's together.
        lost: what is known not to have been counted.
        details: what names of counts mean; for whoever reads this kind.
    """

    about: About
    released_at: int
    withheld: str = ""
    subjects: int | None = None
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sigma: float = 0.0
    guarantee: Mapping[str, Any] = field(default_factory=dict)
    lost: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Canonical bytes; `from_json` gives it back."""
        about = self.about
        return strict_json.dumps(
            {
                "schema": RELEASE_SCHEMA,
                "kind": about.kind,
                "model": about.model,
                "version": about.version,
                "window": {
                    "name": about.window.name,
                    "start": _time(about.window.start),
                    "end": _time(about.window.end),
                },
                "released_at": _time(self.released_at),
                "withheld": self.withheld,
                "subjects": self.subjects,
                "counts": {name: list(item) for name, item in self.counts.items()},
                "sigma": self.sigma,
                "guarantee": dict(self.guarantee),
                "lost": dict(self.lost),
                "details": dict(self.details),
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> Release:
        """Parse and validate.

        Raises:
            MonitoringError: no such document.
        """
        try:
            value = strict_json.loads_object(data, max_bytes=MAX_RECORD_BYTES)
            if value["schema"] != RELEASE_SCHEMA:
                text = unread(value["schema"], RELEASE_SCHEMA)
                raise MonitoringError(f"a release: {text}")
            if value["withheld"] not in _REASONS:
                raise MonitoringError("a release: another schema")
            kind, model, version = (str(value[n]) for n in ("kind", "model", "version"))
            return cls(
                about=About(
                    kind, model, version, window_named(value["window"]["name"])
                ),
                released_at=int(parse_time(value["released_at"]).timestamp()),
                withheld=value["withheld"],
                subjects=value["subjects"],
                counts={k: tuple(map(int, v)) for k, v in value["counts"].items()},
                sigma=float(value["sigma"]),
                guarantee=dict(value["guarantee"]),
                lost=dict(value["lost"]),
                details=dict(value["details"]),
            )
        except (
            JsonError,
            ReportError,
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
        ):
            raise MonitoringError("a release: malformed") from None


def release(
    ledger: Ledger,
    budget: Budget,
    about: About,
    counts: Mapping[str, ArrayLike],
    *,
    rho: float,
    sensitivity: float,
    contribution: str,
    subjects: int,
    min_subjects: int,
    max_subjects: int,
    now: float,
    lost: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Release:
    """Release counts once: book, draw noise, keep the record.

    The number of subjects is booked and made noisy first. Where it is too small, the
    counts are neither booked nor released.

    Args:
        ledger: where it is booked, and where the record is kept.
        budget: of the deployment.
        about: what the counts are of.
        counts: integers by name, each of one axis; exact, so they go nowhere else.
        rho: what both together may cost.
        sensitivity: how far one subject moves all counts together, in Euclidean length,
            if it is added or removed.
        contribution: in words, what of a subject is counted.
        subjects: their number; one subject moves it by one.
        min_subjects: fewer are not released.
        max_subjects: as many as there was room for: about as many are not released,
            since one more might have kept another one out.
        now: Unix seconds.
        lost: as of `Release`.
        details: as of `Release`.

    Returns:
        What was published. Without counts if the budget does not reach.

    Raises:
        BookedError: another one released this, or died when it did.
        MonitoringStoreError: the ledger cannot be asked; nothing was released, unless
            it was booked: then it is lost.
    """
    result = Release(about, int(now), lost=lost or {}, details=details or {})
    share, cost = rho * SUBJECTS_SHARE, 0.0
    first = Entry(about.key + _SUBJECTS, now, share)
    second = Entry(about.key, now, rho - share)
    arrays = [np.asarray(item) for item in counts.values()]
    try:
        (found,), _ = noisy(ledger, budget, first, [np.array([subjects])], 1.0)
        cost, result = share, replace(result, subjects=int(found[0]))
        room = max_subjects - _SURE * sigma_of(share, 1.0)
        if not min_subjects <= found[0] <= room:
            few = found[0] < min_subjects
            why = "too few subjects" if few else "too many subjects"
            result = replace(result, withheld=why)
        else:
            drawn, sigma = noisy(ledger, budget, second, arrays, sensitivity)
            named = {n: tuple(map(int, item)) for n, item in zip(counts, drawn)}
            cost, result = rho, replace(result, counts=named, sigma=sigma)
    except BudgetSpentError as error:
        _log.warning("nothing is released: %s", error)
        result = replace(result, withheld="budget spent")
    year = spent(ledger.entries(), now=now)
    guarantee = {
        "contribution": contribution,
        "sensitivity": sensitivity,
        "subjects_sigma": sigma_of(share, 1.0),
        **_guarantee(budget, cost, year),
    }
    result = replace(result, guarantee=guarantee)
    ledger.publish(Entry(about.key, now, 0.0, result.to_json()))
    return result


def noisy(
    ledger: Ledger,
    budget: Budget,
    entry: Entry,
    counts: Sequence[NDArray[Any]],
    sensitivity: float,
) -> tuple[list[NDArray[np.int64]], float]:
    """Book, then add noise.

    Args:
        ledger: where it is booked.
        budget: of the deployment.
        entry: what is booked; with the rho that it costs.
        counts: arrays of integers of one axis.
        sensitivity: of all of them together, Euclidean.

    Returns:
        The noisy counts, and the noise's deviation.

    Raises:
        BudgetSpentError: so little rho leaves nothing but noise; nothing is booked.
        MonitoringError: counts that are no integers; as `Ledger.book`.
    """
    if any(item.dtype.kind not in "iu" or item.ndim != 1 for item in counts):
        raise MonitoringError("counts are arrays of integers of one axis")
    sigma = sigma_of(entry.rho, sensitivity)
    if sigma > MAX_SIGMA:
        raise BudgetSpentError(f"{entry.key} would have noise of deviation {sigma:.0f}")
    noise = rounded_gaussian(sigma)
    ledger.book(entry, budget)
    drawn = noise.sample(sum(map(len, counts)))
    ends = np.cumsum([len(item) for item in counts])[:-1]
    parts = np.split(drawn, ends) if counts else []
    return [item.astype(np.int64) + part for item, part in zip(counts, parts)], sigma


def read_releases(ledger: Ledger, *, kind: str, model: str = "") -> list[Release]:
    """What was released, the oldest window first; those that were lost, too.

    Args:
        ledger: where.
        kind: of `About`.
        model: one's only; all where empty.

    Raises:
        MonitoringStoreError: the ledger cannot be asked.
        MonitoringError: a record is malformed.
    """
    booked = ledger.entries()
    entries = {entry.key.removesuffix(_SUBJECTS): entry for entry in booked}
    entries |= {entry.key: entry for entry in booked if entry.record}
    found = []
    for key, entry in entries.items():
        about = about_of(key)
        if about.kind == kind and model in ("", about.model):
            lost = Release(about, int(entry.time), withheld="releaser ended")
            found.append(Release.from_json(entry.record) if entry.record else lost)
    return sorted(found, key=lambda item: (item.about.window, item.about.key))


def about_of(key: str) -> About:
    """What a release is of, by the ledger's name for it.

    Raises:
        MonitoringError: no such name.
    """
    parts = key.split("/")
    if len(parts) != 4:
        raise MonitoringError("the ledger has an entry of another kind")
    return About(parts[0], parts[1], parts[2], window_named(parts[3]))


def _guarantee(budget: Budget, rho: float, year: float) -> dict[str, Any]:
    """What a release promises, to be recomputed by anyone."""
    delta = budget.delta
    return {
        "unit": "subject",
        "neighbouring": "add or remove one subject",
        "mechanism": "Gaussian noise, rounded to integers",
        "rho": rho,
        "epsilon": epsilon_of(rho, delta),
        "delta": delta,
        "composition": {
            "rule": "rho adds up over all releases of 365 days; epsilon is that of one "
            "Gaussian mechanism with mu = sqrt(2 rho)",
            "rho": year,
            "epsilon": epsilon_of(year, delta),
            "cap_epsilon": budget.epsilon,
            "delta": delta,
        },
    }


def _time(seconds: int) -> str:
    return format_time(datetime.fromtimestamp(seconds, UTC))
