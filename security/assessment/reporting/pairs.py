"""The same rows in two reports: which were right in each, and McNemar's exact test.

Where both reports rest on the same rows, and say of each row whether the model was
right about it, the rows on which they disagree decide (McNemar 1947; the exact
binomial test of these). That sees smaller changes than comparing two shares does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scipy.stats import binomtest

__all__ = ["exact_p", "mcnemar", "rows_of"]


def rows_of(result: Mapping[str, Any], metric: str) -> dict[int, bool] | None:
    """Whether each row counts as right in a metric, by its place in the data.

    Args:
        result: of one check, as in a report.
        metric: its name.

    Returns:
        None where the report does not say so for every row, or where what it says does
        not give the metric's value.
    """
    found = _found(result["details"], metric)
    if not found:
        return None
    stated = result["metrics"][metric]
    share = sum(found.values()) / len(found)
    agrees = stated.get("n") == len(found) and math.isclose(
        share, stated["value"], abs_tol=1e-9
    )
    return found if agrees else None


def mcnemar(before: Mapping[int, bool], after: Mapping[int, bool]) -> float | None:
    """The two-sided exact p-value; None where the rows are not the same.

    >>> rows = {place: True for place in range(10)}
    >>> mcnemar(rows, rows | {0: False})
    1.0
    """
    if before.keys() != after.keys():
        return None
    lost = sum(right and not after[place] for place, right in before.items())
    won = sum(after[place] and not right for place, right in before.items())
    return exact_p(lost, won)


def exact_p(lost: int, won: int) -> float:
    """The two-sided p-value of so many rows that only one of the two got right.

    >>> round(exact_p(1, 9), 4), exact_p(0, 0)
    (0.0215, 1.0)
    """
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def _found(details: Mapping[str, Any], metric: str) -> dict[int, bool]:
    """As the details of the check say it; empty where they do not, or are malformed."""
    try:
        if metric in ("accuracy", "clean_accuracy") and "wrong_rows" in details:
            wrong = {*details["wrong_rows"]}
            return {int(place): place not in wrong for place in details["asked_rows"]}
        if metric == "robust_accuracy_cost":
            return _standing(details["rows"], "cost", details["max_cost"])
        metric, _, at = metric.partition("/")  # one of several radii
        norm = details["norms"]["l2" if metric.endswith("_l2") else "linf"]
        if metric == "clean_accuracy":
            return {int(row["row"]): row["correct"] is True for row in norm["rows"]}
        if metric.startswith("robust_accuracy"):
            bound = float(at) if at else norm["radius"]
            return _standing(norm["rows"], "distance", bound)
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {}


def _standing(rows: Any, measure: str, bound: float) -> dict[int, bool]:
    return {
        int(row["row"]): row["correct"] is True
        and (row[measure] is None or row[measure] > row.get("radius", bound))
        for row in rows
    }
