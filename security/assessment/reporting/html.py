"""One HTML page of a scan: read in a browser, light or dark, or printed on paper.

It loads nothing and runs nothing: its own policy forbids scripts. Everything from the
report is text to the template engine, which escapes it; only the pictures drawn by
`pictures` are markup.

A check's ``details`` may hold, for people: ``charts`` (`pictures.line_chart`),
``tables`` (``title``, ``columns``, ``rows``) and ``examples`` (``caption``, and either
``images``, each rows of pixels from 0 to 1, or ``changes``, rows of column, before,
after).
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
    "evasion": "Evasion: changed inputs",
    "fairness": "Fairness",
    "quality": "Quality",
    "structure": "Structure of the file",
}
_KINDS = {
    "onnx": "ONNX file",
    "bundle": "bundle",
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
    for result in results:
        measured = [
            (name, metric)
            for name, metric in result["metrics"].items()
            if "low" in metric and "/" not in name
        ]
        for name, metric in measured[:2]:
            yield {
                "name": _words(name),
                "value": _number(metric["value"]),
                "interval": f"{_interval(metric)}, n={metric.get('n', '?')}",
                "reliable": result.get("reliable", True),
            }


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
        "title": _TITLES.get(result["check"], _words(result["check"])),
        "status": result["status"],
        "reason": result["reason"],
        "reliable": result.get("reliable", True),
        "conditions": [(_words(k), v) for k, v in result["conditions"].items()],
        "metrics": [_metric(*item) for item in result["metrics"].items()],
        "charts": [Markup(line_chart(item)) for item in details.get("charts", [])],  # noqa: S704  (escaped there)
        "tables": [_table(item) for item in details.get("tables", [])],
        "verified": result["checks"],
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
    return {
        "title": table["title"],
        "columns": table["columns"],
        "rows": [[_cell(cell) for cell in row] for row in table["rows"]],
    }


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    images = example.get("images", [])
    return {
        "caption": example["caption"],
        "pictures": [
            Markup(pixels(image, label=f"{name} the change"))  # noqa: S704  (numbers, and a constant)
            for name, image in zip(("before", "after"), images, strict=False)
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


def _cell(value: Any) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("/", ", ")
