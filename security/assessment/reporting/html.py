"""One HTML page of a scan: read in a browser, light or dark, or printed on paper.

It loads nothing and runs nothing: its own policy forbids scripts. Everything from the
report is text to the template engine, which escapes it; only the pictures drawn by
`pictures` are markup.

A check's ``details`` may hold, for people: ``charts`` (`pictures.line_chart`),
``tables`` (``title``, ``columns``, ``rows``; ``matrix`` for a confusion matrix, whose
first column names the classes) and ``examples`` (``caption``, and either ``images``:
before, after and the change, or what ``names`` says, each rows of pixels from 0 to 1;
or ``changes``: rows of column, before, after), under ``examples_title``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from security.assessment.reporting.pictures import interval_bar, line_chart, pixels
from security.assessment.reporting.taxonomies import TAXONOMIES, rule_tags

__all__ = ["to_html"]

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_TITLES = {
    "answers": "Answers",
    "attributes": "Attribute inference: guessing a secret column",
    "corruption": "Natural corruption: worn data, no attacker",
    "canaries": "Canaries: does the training keep its epsilon",
    "edits": "Evasion: edits of text",
    "evasion": "Evasion: changed inputs",
    "evasion-cost": "Evasion: what turning a row costs",
    "explanation-attacks": "Explanations: what they give away",
    "explanations": "Explanations: which columns decide",
    "extraction": "Extraction: copying the model",
    "fairness": "Fairness",
    "inversion": "Inversion: drawing a class from the model",
    "membership": "Membership: who was in the training data",
    "poisoning": "Poisoning: suspicious training rows",
    "quality": "Quality",
    "smoothing": "Certified accuracy by randomised smoothing",
    "structure": "Structure of the file",
    "trigger": "Triggers: a pattern that sends everything to one class",
}
# The figures of the first screen: check, metric (or its beginning), and what it is
# called there, with values of the check's conditions.
_KEY_FIGURES = (
    ("quality", "accuracy", "accuracy"),
    ("quality", "mae", "mean absolute error"),
    ("quality", "r2", "R\N{SUPERSCRIPT TWO}"),
    ("evasion", "stable_share_linf", "answers that stay, L\N{INFINITY} {radius}"),
    ("evasion", "robust_accuracy_linf", "robust accuracy, L\N{INFINITY} {radius}"),
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
_KINDS = {
    "onnx": "ONNX file",
    "bundle": "bundle",
    "predictions": "predictions, no model",
    "remote": "endpoint, black box",
}
_ALWAYS_UNTESTED = (
    "Attacks other than the listed ones, and larger radii than the curves show.",
    "Triggers in the weights: no inspection of a file finds all of them.",
    "Rows unlike the held-out ones: every figure is about their distribution.",
)
_MAX_EXAMPLES = 12
_MAX_TILES = 8


def to_html(report: Mapping[str, Any]) -> bytes:
    """The page.

    Args:
        report: as `ScanReport.parse` gives it.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    findings, results = report["findings"], report["results"]
    tone, headline = _headline(findings, results)
    text = template.render(
        target=report["target"],
        kind=_KINDS.get(report["target"].get("kind", ""), "model"),
        data={"rows_used": None, **report["data"]},
        options={"profile": "", "seed": "", **report["options"]},
        times={"started_at": "", **report["times"]},
        tone=tone,
        headline=headline,
        counts=_counts(findings, results),
        tiles=list(_tiles(results))[:_MAX_TILES],
        glance=list(_glance(results, findings)),
        findings=[_finding(item) for item in findings],
        checks=[_check(item) for item in results if item["status"] != "skipped"],
        untested=[*_untested(results), *_ALWAYS_UNTESTED],
        how=_how(report),
    )
    return text.encode()


def _headline(
    findings: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
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


def _counts(
    findings: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> str:
    parts = []
    for severity in ("error", "warning", "note"):
        count = sum(item["severity"] == severity for item in findings)
        parts.append(f"{count} {severity}{'' if count == 1 else 's'}")
    done = sum(item["status"] == "done" for item in results)
    return f"{', '.join(parts)}; {done} of {len(results)} checks done in full."


def _tiles(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The key figures, then the first one of every other check."""
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
            yield _tile(result, _label(label, result, name), result["metrics"][name])
    listed = {check for check, _, _ in _KEY_FIGURES} | {*_NO_KEY_FIGURE}
    for result in results:
        if result["check"] not in listed:
            first = _first_figure(result)
            if first is not None:
                yield _tile(result, f"{_words(result['check'])}: {first[0]}", first[1])


def _label(label: str, result: Mapping[str, Any], name: str) -> str:
    """The label, with the conditions that it names; with the group of a metric."""
    group = name.partition("/")[2]
    for key, value in result["conditions"].items():
        label = label.replace(f"{{{key}}}", str(value))
    return f"{label}, {_words(group)}" if group else label


def _tile(
    result: Mapping[str, Any], name: str, metric: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "check": result["check"],
        "name": name,
        "value": _number(metric["value"]),
        "interval": f"{_interval(metric)}, n={metric.get('n', '?')}",
        "reliable": result.get("reliable", True),
    }


def _first_figure(
    result: Mapping[str, Any],
) -> tuple[str, Mapping[str, Any]] | None:
    """The first figure with an interval; one about everything, if there is one."""
    measured = [item for item in result["metrics"].items() if "low" in item[1]]
    if not measured:
        return None
    name, metric = min(measured, key=lambda item: "/" in item[0])
    return _words(name), metric


def _glance(
    results: Sequence[Mapping[str, Any]], findings: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, str]]:
    """A line per check: done or not, and the worst that it found."""
    for result in results:
        own = [item for item in findings if item["check"] == result["check"]]
        tone, text = "fine", "nothing found"
        if own:
            tone, text = own[0]["severity"], own[0]["message"]
        if not result.get("reliable", True):
            tone = "warning"
        if result["status"] == "skipped":
            tone, text = "skipped", result["reason"]
        more = f" (and {len(own) - 1} more)" if len(own) > 1 else ""
        yield {
            "title": _title(result["check"]),
            "status": result["status"],
            "tone": tone,
            "text": text + more,
        }


def _title(check: str) -> str:
    return _TITLES.get(check) or _words(check).capitalize()


def _finding(item: Mapping[str, Any]) -> dict[str, Any]:
    metric = item["metric"]
    tags = vars(rule_tags(item["rule"]))
    return {
        **item,
        "metric": "" if metric is None else _sentence(metric),
        "explanation": item["evidence"].get("explanation", ""),
        "tags": [
            f"{TAXONOMIES[name].name} {tag}: {TAXONOMIES[name].names[tag]}"
            for name in tags
            for tag in tags[name]
        ],
    }


def _check(result: Mapping[str, Any]) -> dict[str, Any]:
    details = result["details"]
    examples = details.get("examples", [])[:_MAX_EXAMPLES]
    return {
        "name": result["check"],
        "title": _title(result["check"]),
        "status": result["status"],
        "reason": result["reason"],
        "reliable": result.get("reliable", True),
        "conditions": [(_words(k), v) for k, v in result["conditions"].items()],
        "metrics": [_metric(*item) for item in result["metrics"].items()],
        "charts": [Markup(line_chart(item)) for item in details.get("charts", [])],  # noqa: S704  (escaped there)
        "tables": [_table(item) for item in details.get("tables", [])],
        "verified": result["checks"],
        "examples_title": details.get("examples_title", "The worst examples"),
        "examples": [_example(item) for item in examples],
    }


def _metric(name: str, metric: Mapping[str, Any]) -> dict[str, Any]:
    bar = ""
    if "low" in metric and metric["low"] >= 0 and metric["high"] <= 1:
        bar = Markup(interval_bar(metric["value"], metric["low"], metric["high"]))  # noqa: S704  (numbers)
    return {
        "name": _words(name),
        "value": _number(metric["value"]),
        "interval": _interval(metric),
        "bar": bar,
        "n": metric.get("n", ""),
    }


def _table(table: Mapping[str, Any]) -> dict[str, Any]:
    matrix = bool(table.get("matrix"))
    return {
        "title": table["title"],
        "columns": table["columns"],
        "matrix": matrix,
        "rows": [
            _shaded(row, place) if matrix else [_cell(cell) for cell in row]
            for place, row in enumerate(table["rows"])
        ],
    }


def _shaded(row: Sequence[Any], place: int) -> list[dict[str, Any]]:
    """A row of a confusion matrix: each cell by its share, errors in another colour."""
    total = sum(row[1:]) or 1
    cells = [_cell(row[0])]
    for column, count in enumerate(row[1:]):
        # The root shows a single error among many that are right.
        share = round(70 * (count / total) ** 0.5)
        colour = "s0" if column == place else "s1"
        cells.append(_cell(count) | {"shade": f"{colour} {share}" if share else ""})
    return cells


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    images = example.get("images", [])
    names = [str(name) for name in example.get("names", ("before", "after", "change"))]
    return {
        "caption": example["caption"],
        "pictures": [
            (name, Markup(pixels(image, label=name)))  # noqa: S704  (escaped there)
            for name, image in zip(names, images, strict=False)
        ],
        "changes": [
            [_cell(cell) for cell in row] for row in example.get("changes", [])
        ],
    }


def _untested(results: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for result in results:
        if result["status"] != "done":
            lines.append(
                f"{_words(result['check'])} ({result['status']}): {result['reason']}."
            )
        lines += [str(line) for line in result["details"].get("untested", [])]
    return lines


def _how(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, lines = report["data"], []
    if "sha256" in data:
        lines.append(("rows", f"sha256 {data['sha256']}"))
    options = ", ".join(f"{k}={v}" for k, v in report["options"].items() if v)
    lines.append(("options", options))
    lines += [(name, str(version)) for name, version in report["tools"].items()]
    if "wall_s" in report["times"]:
        lines.append(("duration", f"{report['times']['wall_s']} s"))
    return lines


def _sentence(metric: Mapping[str, Any]) -> str:
    parts = [_number(metric["value"])]
    if "low" in metric:
        parts.append(f"interval {_interval(metric)}")
    if "n" in metric:
        parts.append(f"n={metric['n']}")
    return "Measured: " + ", ".join(parts) + "."


def _interval(metric: Mapping[str, Any]) -> str:
    if "low" not in metric:
        return ""
    level = f"{100 * metric['confidence']:g}%"
    return f"{_number(metric['low'])} to {_number(metric['high'])} ({level})"


def _cell(value: Any) -> dict[str, Any]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = _number(value) if number else str(value)
    return {"text": text, "kind": "n" if number else "", "shade": ""}


def _number(value: float) -> str:
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("-", " ").replace("/", ", ")
