"""What got better or worse between two reports, and whether by more than chance.

On the same rows, shares (accuracy, robust accuracy) are compared row by row, by
McNemar's exact test, where the reports say of each row whether it was right; otherwise
by Fisher's exact test on their counts. Other metrics with an interval are compared by a
z-test on its width, if it has one. The latter two treat the samples as independent,
which on the same rows is the cautious choice. The p-values of one comparison are
corrected together (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy.stats import fisher_exact, norm

from security.assessment.reporting.pairs import mcnemar, rows_of
from security.assessment.results import intervals
from security.inspection.findings import SEVERITIES

__all__ = ["LEVEL", "Change", "Comparison", "compare", "less_is_better"]

LEVEL = 0.05
# Of these, less is better. Everything else that has a direction is a share of success.
_LESS = (
    *("auc", "tpr_at", "epsilon", "calibration", "difference", "success"),
    *("advantage", "errors", "warnings", "stolen", "agreement", "inverted"),
    *("mae", "rmse", "median_absolute_error"),
    *("largest_change", "relative_change"),
)
_MORE = (
    *("accuracy", "robust", "certified", "ratio", "cost", "median_distance"),
    *("stable_share", "r2"),
)
# An AUC is an attack's only in these checks; elsewhere it is the model's.
_ATTACKS = ("membership", "privacy", "attribute", "poisoning")
_SAME = 1e-6
# How intervals were made changes their width, and no value.
_OF_INTERVALS = {
    *("interval", "resamples", "several_groups"),
    *(
        f"{name}_interval"
        for name in (
            *("accuracy", "advantage", "auc", "calibration", "difference"),
            *("log_loss", "mae", "mean_error", "median", "r2", "ratio", "rmse", "tpr"),
        )
    ),
}


@dataclass(frozen=True)
class Change:
    """One metric in both reports.

    Attributes:
        check, metric: where it stands.
        before, after: the values.
        p: corrected p-value, or None where no test applies.
        test: "mcnemar", "fisher" or "z"; "" where none applies.
        direction: "better", "worse" or "changed", if by more than chance; "same";
            or "not comparable".
        reason: why it cannot be compared.
    """

    check: str
    metric: str
    before: float
    after: float
    p: float | None = None
    test: str = ""
    direction: str = "same"
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two reports side by side.

    Attributes:
        changes: of every metric that both have.
        appeared: findings that only the newer has, worse ones than before included.
        disappeared: findings that only the older has.
        missing: checks that only the older did.
        notes: what limits the comparison.
    """

    changes: tuple[Change, ...]
    appeared: tuple[Mapping[str, Any], ...]
    disappeared: tuple[Mapping[str, Any], ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def worse(self) -> bool:
        """A metric got worse by more than chance, a finding came, or a check went."""
        return (
            any(change.direction == "worse" for change in self.changes)
            or any(item["severity"] != "note" for item in self.appeared)
            or bool(self.missing)
        )


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Compare two documents of `ScanReport.parse`."""
    old = {item["check"]: item for item in before["results"]}
    new = {item["check"]: item for item in after["results"]}
    done = [name for name in old if old[name]["status"] != "skipped"]
    both = [name for name in done if name in new and new[name]["status"] != "skipped"]
    same = _same_rows(before, after)
    changes = [
        change
        for name in both
        for change in _metrics(old[name], new[name], same_rows=same)
    ]
    appeared, disappeared = _findings(before["findings"], after["findings"])
    return Comparison(
        tuple(_corrected(changes)),
        appeared,
        disappeared,
        tuple(name for name in done if name not in both),
        _notes(before, after),
    )


def _same_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    digests = [item.get("data", {}).get("sha256") for item in (before, after)]
    return digests[0] is not None and digests[0] == digests[1]


def _metrics(
    old: Mapping[str, Any], new: Mapping[str, Any], *, same_rows: bool
) -> list[Change]:
    reason = ""
    for name in sorted({*old["conditions"], *new["conditions"]} - _OF_INTERVALS):
        values = old["conditions"].get(name), new["conditions"].get(name)
        if values[0] != values[1]:
            reason = f"{name} was {values[0]}, is {values[1]}"
    if not (old.get("reliable", True) and new.get("reliable", True)):
        reason = "one of them is not reliable"
    changes = []
    for name in old["metrics"]:
        if name in new["metrics"]:
            first, second = old["metrics"][name], new["metrics"][name]
            change = Change(old["check"], name, first["value"], second["value"])
            if reason:
                change = replace(change, direction="not comparable", reason=reason)
            else:
                p, test = _paired(old, new, name) if same_rows else (None, "")
                if p is None:
                    p, test = _p_value(first, second)
                change = replace(change, p=p, test=test)
                if p is None and "low" in first and "low" in second:
                    widths = "neither interval has a width"
                    change = replace(change, direction="not comparable", reason=widths)
            changes.append(change)
    return changes


def _paired(
    old: Mapping[str, Any], new: Mapping[str, Any], name: str
) -> tuple[float | None, str]:
    first, second = rows_of(old, name), rows_of(new, name)
    if first is None or second is None:
        return None, ""
    return mcnemar(first, second), "mcnemar"


def _p_value(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[float | None, str]:
    if first["value"] == second["value"]:
        return 1.0, ""
    if any("low" not in item for item in (first, second)):
        return None, ""
    if all(_is_share(item) for item in (first, second)):
        table = [
            [hits := round(item["value"] * item["n"]), item["n"] - hits]
            for item in (first, second)
        ]
        return float(fisher_exact(table).pvalue), "fisher"
    spread = sum(_error(item) ** 2 for item in (first, second)) ** 0.5
    if spread == 0:
        return None, ""
    return float(2 * norm.sf(abs(first["value"] - second["value"]) / spread)), "z"


def _is_share(metric: Mapping[str, Any]) -> bool:
    """Whether the value is a count out of n, so that an exact test applies.

    A difference or an area may be a whole number of n-ths too: the interval tells.
    """
    n = metric.get("n")
    if not n or not 0 <= metric["value"] <= 1:
        return False
    share = vars(
        intervals.proportion(round(metric["value"] * n), n, metric["confidence"])
    )
    return all(
        abs(metric[end] - share[end]) < _SAME for end in ("value", "low", "high")
    )


def _error(metric: Mapping[str, Any]) -> float:
    width = metric["high"] - metric["low"]
    return float(width / (2 * norm.ppf(0.5 + metric["confidence"] / 2)))


def _corrected(changes: Sequence[Change]) -> list[Change]:
    """Holm's step-down correction, over all metrics that were tested."""
    tested = sorted(
        (index for index, item in enumerate(changes) if item.p is not None),
        key=lambda index: changes[index].p or 0.0,
    )
    result, highest = list(changes), 0.0
    for rank, index in enumerate(tested):
        change = changes[index]
        highest = max(highest, min(1.0, (change.p or 0.0) * (len(tested) - rank)))
        direction = _direction(change) if highest < LEVEL else "same"
        result[index] = replace(change, p=highest, direction=direction)
    # A number that nothing was sampled for (an epsilon) has changed or has not.
    return [
        replace(item, direction=_direction(item))
        if item.p is None and not item.reason and item.before != item.after
        else item
        for item in result
    ]


def less_is_better(check: str, metric: str) -> bool | None:
    """Whether a smaller value is the better one; None of what is neither.

    >>> less_is_better("quality", "rmse"), less_is_better("fairness", "tpr_ratio")
    (True, False)
    """
    name = metric.partition("/")[0]
    less = "ratio" not in name and any(part in name for part in _LESS)
    if "auc" in name and not check.startswith(_ATTACKS):
        return False
    if not less and not any(part in name for part in (*_MORE, "auc")):
        return None
    return less


def _direction(change: Change) -> str:
    less = less_is_better(change.check, change.metric)
    if less is None:
        return "changed"
    return "better" if (change.after < change.before) == less else "worse"


def _findings(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]]:
    def ranks(items: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], int]:
        return {
            (item["rule"], item["where"]): SEVERITIES.index(item["severity"])
            for item in items
        }

    old, new = ranks(before), ranks(after)
    never = len(SEVERITIES)

    def key(item: Mapping[str, Any]) -> tuple[str, str]:
        return item["rule"], item["where"]

    appeared = (item for item in after if new[key(item)] < old.get(key(item), never))
    disappeared = (item for item in before if key(item) not in new)
    return tuple(appeared), tuple(disappeared)


def _notes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    if not _same_rows(before, after):
        notes.append("the reports rest on different rows")
    for name in ("profile", "seed"):
        values = [item.get("options", {}).get(name) for item in (before, after)]
        if values[0] != values[1]:
            notes.append(f"{name} was {values[0]}, is {values[1]}")
    return tuple(notes)
