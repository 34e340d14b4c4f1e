"""Part of check 27: a number that was learnt here is the number that is served. No I/O.

The configuration says what a training learns, provenance what was learnt, the manifest
what is answered, and whoever measured the model what it predicts: one thing, of one
public range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.bundle import Bundle
from models.report import Report
from security.admission.stated import Found, differ

__all__ = ["REGRESSION", "regression_contradictions"]

REGRESSION = "regression"
_OF_ROWS = ("quality", "fairness", "robustness", "membership")


def regression_contradictions(bundle: Bundle, reports: Mapping[str, Report]) -> Found:
    """What does not fit the task that the provenance's configuration states."""
    provenance = reports.get("provenance")
    config = None if provenance is None else provenance.details.get("config")
    data = config.get("data") if isinstance(config, dict) else None
    if provenance is None or not isinstance(data, dict):
        return  # an imported model: `_predicted` holds its reports to each other
    number = data.get("task") == REGRESSION
    yield from _learnt(provenance, data, number=number)
    yield from _served(bundle, data, number=number)
    for kind in _OF_ROWS:
        if kind in reports:
            told = reports[kind].conditions.get("predicts") == "number"
            if told is not number:
                yield f"{kind}: what the model predicts is not what was trained"
    if "parity" in reports:
        unit = "share_of_target_range" if number else "probability"
        yield from differ("parity", reports["parity"].conditions, {"unit": unit})


def _learnt(provenance: Report, data: Mapping[str, Any], *, number: bool) -> Found:
    details = provenance.details
    told = provenance.conditions.get("predicts")
    if told != ("number" if number else None):
        yield f"provenance: predicts is {told!r}, and its configuration says otherwise"
    target = data.get("target") if number else None
    if details.get("target") != target or (number and not target):
        yield "provenance: the target is not the configuration's"
    if number and "classes" in details:
        yield "provenance: it names classes, and a number was trained"


def _served(bundle: Bundle, data: Mapping[str, Any], *, number: bool) -> Found:
    """The range is in the signed manifest too, by which answers are counted."""
    output, target = bundle.manifest.number, data.get("target")
    if not number:
        if output is not None:
            yield "manifest: its output is a number, and classes were trained"
        return
    wanted = target if isinstance(target, dict) else {}
    ends = None if output is None else output.bounds
    if ends != (wanted.get("low"), wanted.get("high")):
        yield "manifest: its output is not a number of the range that was trained"
