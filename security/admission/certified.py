"""What evidence claims is proved: held to itself, and to what was recomputed.

A certificate is recomputed from the signed graph and the rows that the evidence names
by their digest (`admit --rows`). A server has neither rows nor the library: it reads in
the verdict whether that was done.
"""

from __future__ import annotations

from collections.abc import Mapping

from models.report import Report
from security.admission.steps import Steps
from security.errors import AdmissionRefused

__all__ = [
    "CERTIFIED",
    "certified_steps",
    "claimed",
    "claims_certificate",
    "recomputed_steps",
]

CERTIFIED = ("robustness",)
"""Kinds whose reports may claim a certificate."""

_PROVED, _BOUND = "verified_accuracy", "largest_change_bound"
# Of shares of rows, and of bounds relative to themselves.
_SAME = 1e-9


def claimed(report: Report) -> dict[str, float]:
    """The certified figures of a report, by name."""
    return {
        name: metric.value
        for name, metric in report.metrics.items()
        if name.startswith((_PROVED, _BOUND))
    }


def claims_certificate(reports: Mapping[str, Report]) -> tuple[str, ...]:
    """The kinds of evidence that claim a certificate."""
    return tuple(k for k in CERTIFIED if k in reports and claimed(reports[k]))


def certified_steps(reports: Mapping[str, Report]) -> Steps[None]:
    """Check 27 for certificates: nothing is proved that an attack refutes."""
    report = reports.get("robustness")
    if report is None:
        return
    for name, value in claimed(report).items():
        attacked = report.metrics.get(_attacked(name))
        if attacked is None or attacked.n != report.metrics[name].n:
            yield AdmissionRefused(
                27, f"robustness: {name} has no figure of the same rows under attack"
            )
            continue
        low, high = (
            (value, attacked.value) if _PROVED in name else (attacked.value, value)
        )
        if not low <= high + _SAME * abs(high):
            yield AdmissionRefused(
                27,
                f"robustness: {name} is {value:.4g}, "
                f"attacks reached {attacked.value:.4g}",
            )


def recomputed_steps(
    reports: Mapping[str, Report], certified: Mapping[str, float] | None
) -> Steps[None]:
    """Check 10 for certificates: no more is claimed than comes out again."""
    report = reports.get("robustness")
    if report is None or certified is None:
        return
    for name, value in claimed(report).items():
        found = certified.get(name)
        if found is None:
            yield AdmissionRefused(10, f"robustness: {name} cannot be recomputed")
            continue
        low, high = (value, found) if _PROVED in name else (found, value)
        # So that NaN, which compares false, is refused too.
        if not low <= high + _SAME * abs(high):
            yield AdmissionRefused(
                10,
                f"robustness: {name} is {found:.4g} when recomputed, "
                f"{value:.4g} was claimed",
            )


def _attacked(name: str) -> str:
    """The figure of the same radius that attacks reached."""
    return name.replace(_PROVED, "robust_accuracy").replace(_BOUND, "largest_change")
