"""The first screen of a page: what to think of the model, and its key figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sealgate.page import number
from security.assessment.reporting.words import (
    check_anchor,
    figure_anchors,
    finding_anchor,
    interval_of,
    said,
    title_of,
    words,
)

__all__ = ["counts", "glance", "headline", "lead", "tiles"]

# The figures of the first screen: check, metric (or its beginning), and what it is
# called there, with values of the check's conditions.
_KEY_FIGURES = (
    ("quality", "accuracy", "accuracy"),
    ("quality", "mae", "mean absolute error"),
    ("quality", "rmse", "root mean squared error"),
    ("quality", "r2", "R\N{SUPERSCRIPT TWO}"),
    ("evasion", "stable_share_linf", "answers that stay, L\N{INFINITY} {radius}"),
    ("evasion", "robust_accuracy_linf", "robust accuracy, L\N{INFINITY} {radius}"),
    ("evasion", "verified_accuracy_linf", "proved to stay, L\N{INFINITY} {radius}"),
    ("evasion", "robust_accuracy_l2", "robust accuracy, L2 {radius_l2}"),
    ("evasion-cost", "robust_accuracy_cost", "robust accuracy, cost {max_cost}"),
    ("membership", "tpr_at_fpr_1pct", "members found, 1% of others accused"),
    ("fairness", "selection_rate_ratio/", "selection rate ratio"),
    ("fairness", "mae_ratio/", "ratio of errors"),
    ("quality", "auc", "AUC"),
    ("extraction", "agreement/", "agreement of a copy with the model"),
    ("poisoning", "suspicious_rows", "training rows under suspicion"),
    ("inversion", "recognised", "classes recognised in pictures from the model"),
)
_NO_KEY_FIGURE = (
    "answers",
    "corruption",
    "explanation-attacks",
    "explanations",
    "structure",
    "trigger",
)
_MAX_TILES = 8

Found = Sequence[Mapping[str, Any]]


def headline(findings: Found, results: Found) -> tuple[str, str]:
    """The worst severity, and what it means."""
    severities = [item["severity"] for item in findings]
    if "error" in severities:
        return "error", "This model should not be deployed as it is"
    if not all(item.get("reliable", True) for item in results):
        return "warning", "No conclusion: the attacks did not work as they must"
    if "warning" in severities:
        return "warning", "Someone has to look at this before it is deployed"
    if any(item["status"] != "done" for item in results):
        return "note", "Nothing grave was found by the part that was done"
    return "fine", "Nothing grave was found by what was tried"


def counts(findings: Found, results: Found) -> str:
    """How many findings of each severity, and how much was done."""
    parts = []
    for severity in ("error", "warning", "note"):
        count = sum(item["severity"] == severity for item in findings)
        parts.append(f"{count} {severity}{'' if count == 1 else 's'}")
    done = sum(item["status"] == "done" for item in results)
    return f"{', '.join(parts)}; {done} of {len(results)} checks done in full."


def lead(results: Found) -> dict[str, list[Mapping[str, Any]]]:
    """What shows best how good the answers are.

    Of classes the confusion; of a number how the truth lies about the answers.
    """
    for result in results:
        details = result["details"]
        if result["check"] == "quality" and result["status"] != "skipped":
            confusion = [t for t in details.get("tables", []) if t.get("matrix")]
            return {
                "tables": confusion,
                "charts": [] if confusion else list(details.get("charts", []))[:1],
            }
    return {"tables": [], "charts": []}


def tiles(results: Found) -> list[dict[str, Any]]:
    """The key figures, then the first one of every other check."""
    return list(_tiles(results))[:_MAX_TILES]


def _tiles(results: Found) -> Iterator[dict[str, Any]]:
    known = {result["check"]: result for result in results}
    for check, wanted, label in _KEY_FIGURES:
        result = known.get(check, {"metrics": {}})
        named = [
            (metric["value"], name)
            for name, metric in result["metrics"].items()
            if "low" in metric
            and (name == wanted or (wanted[-1] == "/" and name.startswith(wanted)))
        ]
        if named:
            # Of several groups, the most uneven; of several copies, the best.
            _, name = (min if "ratio" in wanted else max)(named)
            yield _tile(result, _label(label, result, name), name)
    listed = {check for check, _, _ in _KEY_FIGURES} | {*_NO_KEY_FIGURE}
    for result in results:
        name = _first_figure(result)
        if result["check"] not in listed and name is not None:
            yield _tile(result, f"{words(result['check'])}: {words(name)}", name)


def _label(label: str, result: Mapping[str, Any], name: str) -> str:
    """The label, with the conditions that it names; with the group of a metric."""
    group = name.partition("/")[2]
    for key, value in result["conditions"].items():
        label = label.replace(f"{{{key}}}", said(value))
    return f"{label}, {group.replace('_', ' ')}" if group else label


def _tile(result: Mapping[str, Any], label: str, name: str) -> dict[str, Any]:
    metric = result["metrics"][name]
    return {
        "name": label,
        "value": number(metric["value"]),
        "interval": f"{interval_of(metric)}, n={metric.get('n', '?')}",
        "reliable": result.get("reliable", True),
        "anchor": figure_anchors(result)[name],
    }


def _first_figure(result: Mapping[str, Any]) -> str | None:
    """The first figure with an interval; one about everything, if there is one."""
    measured = [name for name, metric in result["metrics"].items() if "low" in metric]
    return min(measured, key=lambda name: "/" in name, default=None)


def glance(results: Found, findings: Found) -> Iterator[dict[str, str]]:
    """A line per check: done or not, and the worst that it found."""
    for result in results:
        own = [
            (place, item)
            for place, item in enumerate(findings)
            if item["check"] == result["check"]
        ]
        tone, text, finding = "fine", "nothing found", ""
        if own:
            place, worst = own[0]
            tone, text = worst["severity"], worst["message"]
            finding = finding_anchor(place)
        if not result.get("reliable", True):
            tone = "warning"
        skipped = result["status"] == "skipped"
        if skipped:
            tone, text, finding = "skipped", result["reason"], ""
        more = f" (and {len(own) - 1} more)" if len(own) > 1 else ""
        yield {
            "title": title_of(result["check"]),
            "anchor": "" if skipped else check_anchor(result["check"]),
            "status": result["status"],
            "tone": tone,
            "text": text + more,
            "finding": finding,
        }
