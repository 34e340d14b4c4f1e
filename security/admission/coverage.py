"""A stated coverage, and the evidence of it. No I/O.

A part of check 27: what a quality report measured must be the quantile that the
manifest has, on other rows than those that it was found on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from models.conformal import Conformal
from models.report import Report

__all__ = ["coverage_contradictions"]

_METRIC = "coverage"


def coverage_contradictions(
    stated: Conformal | None, reports: Mapping[str, Report]
) -> Iterator[str]:
    """What a manifest and its reports say differently.

    1. Coverage was measured of a quantile, which the manifest has.
    2. A quantile whose answers were assessed was measured, too.
    3. It was this one, and it states as much. How rows were divided, reports of
       earlier releases do not say.
    4. No report rests on the rows that calibrated, nor does the coverage.

    Args:
        stated: the manifest's member.
        reports: by kind.
    """
    quality = reports.get("quality")
    measured = quality is not None and _METRIC in quality.metrics
    if stated is None:
        if measured:
            yield "quality: coverage was measured, and the manifest states none"
        return
    if quality is not None and not measured:
        yield (
            f"quality: the manifest states a coverage of {stated.coverage:g} that was "
            "not measured"
        )
    if quality is not None and measured:
        yield from _of_report(stated, quality)
    for kind, report in reports.items():
        if any(item.sha256 == stated.rows_sha256 for item in report.datasets):
            yield f"{kind}: it rests on the very rows that the coverage was found on"


def _of_report(stated: Conformal, quality: Report) -> Iterator[str]:
    told = quality.conditions
    if told.get("conformal_sha256") != stated.sha256:
        yield "quality: coverage was measured of another quantile than the manifest's"
    if told.get("coverage_stated") != stated.coverage:
        yield "quality: another coverage is stated than in the manifest"
    if told.get("calibration_private") is not (stated.epsilon is not None):
        yield "quality: it says of the calibration's privacy what the manifest does not"
    keys = ("of_these_rows", "of_other_rows") if stated.epsilon is None else ("drawn",)
    if told.get("calibration_split", keys[0]) not in keys:
        yield "quality: it says of the calibration's key what the manifest does not"
    if told.get("calibration_share", stated.split_share) != stated.split_share:
        yield "quality: another share calibrates than in the manifest"
    rows = told.get("coverage_rows_sha256")
    if rows in (None, stated.rows_sha256):
        yield "quality: coverage was measured on the rows that it was found on"
