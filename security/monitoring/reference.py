"""`reference` evidence: what a model's histograms are held against.

Counts of public rows, or of training rows with noise that the training's own ledger has
booked; of private rows without noise never. A report is made offline and signed like
any other; here it is read, and held to the model's manifest and to its own guarantee.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from models.manifest import Manifest
from models.report import Metric, Report
from security.errors import MonitoringError
from security.monitoring.drift import SEASONS, Reference
from security.monitoring.guarantee import epsilon_of
from security.monitoring.layout import described, layout_of

__all__ = ["KIND", "reference_details", "reference_of", "season_keys"]

KIND = "reference"
_AGREEMENT = 1e-3
# Less is no noise on whole numbers.
_LEAST_SIGMA = 0.2


def season_keys(season: str) -> tuple[str, ...]:
    """Every part that a reference by a season has.

    >>> season_keys("weekday")
    ('1', '2', '3', '4', '5', '6', '7')

    Raises:
        MonitoringError: no such season.
    """
    if season not in SEASONS:
        raise MonitoringError(f"no references are by {season}")
    keys = {
        "none": [""],
        "month": [f"{month:02}" for month in range(1, 13)],
        "weekday": [str(day) for day in range(1, 8)],
    }
    return tuple(keys[season])


def reference_details(
    manifest: Manifest,
    season: str,
    parts: Mapping[str, Mapping[str, Sequence[int]]],
) -> dict[str, Any]:
    """The details of a report, as `reference_of` reads them."""
    return {
        "histograms": layout_of(manifest).describe(),
        "season": season,
        "parts": {
            key: {n: list(c) for n, c in part.items()} for key, part in parts.items()
        },
    }


def reference_of(report: Report, manifest: Manifest) -> Reference:
    """Read a report.

    1. it is of this kind;
    2. its histograms are those that the manifest declares, and complete;
    3. of personal data, it has noise, whose guarantee is as stated: recomputed from
       sigma and the number of histograms.

    Whose signature it has, the caller has verified.

    Raises:
        MonitoringError: one of these does not hold.
    """
    if report.kind != KIND:
        raise MonitoringError(f"a {report.kind} report is no reference")
    layout, details = layout_of(manifest), report.details
    if described(details.get("histograms")) != layout.histograms:
        raise MonitoringError("reference: other histograms than the manifest declares")
    season, parts = str(details.get("season")), details.get("parts")
    sizes = {item.name: item.size for item in layout.histograms}
    if not isinstance(parts, dict) or set(parts) != set(season_keys(season)):
        raise MonitoringError("reference: a season is missing")
    for part in parts.values():
        _check_part(part, sizes)
    sigma = _value(report.metrics, "sigma")
    _check_guarantee(report, sigma, layout.sensitivity)
    return Reference(season, parts, sigma)


def _check_part(part: Any, sizes: Mapping[str, int]) -> None:
    if not isinstance(part, dict) or part.keys() != sizes.keys():
        raise MonitoringError("reference: a histogram is missing")
    for name, counts in part.items():
        whole = isinstance(counts, list) and all(type(item) is int for item in counts)
        if not whole or len(counts) != sizes[name]:
            raise MonitoringError(f"reference: {name} has other bins")


def _check_guarantee(report: Report, sigma: float, sensitivity: float) -> None:
    if report.conditions.get("personal_data") is False:
        return
    if not sigma >= _LEAST_SIGMA:
        raise MonitoringError("reference: counts of personal data without noise")
    delta = _value(report.metrics, "delta")
    found = epsilon_of(sensitivity**2 / (2 * sigma**2), delta)
    stated = _value(report.metrics, "epsilon")
    if not math.isclose(found, stated, rel_tol=_AGREEMENT):
        raise MonitoringError(
            f"reference: epsilon is {found:.4f} by its noise, not {stated:.4f}"
        )


def _value(metrics: Mapping[str, Metric], name: str) -> float:
    if name not in metrics:
        raise MonitoringError(f"reference: {name} is missing")
    return metrics[name].value
