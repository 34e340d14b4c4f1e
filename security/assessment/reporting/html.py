"""One HTML page of a scan: read in a browser, light or dark, or printed on paper.

Everything from the report is text to the template engine and to `sealgate.page`, which
escape it; only what `sealgate.page` and `sealgate.charts` make is markup.

A check's ``details`` may hold, for people: ``charts`` (`sealgate.charts.line_chart`),
``tables`` (``title``, ``columns``, ``rows``; ``matrix`` for a confusion matrix, whose
first column names the classes), ``rows`` (what became of each; or each of ``norms``'),
``examples`` (``caption``, and either ``images``: before, after and the change, or what
``names`` says, each rows of pixels from 0 to 1; or ``changes``: rows of column, before,
after), under ``examples_title``, and ``untested``. Figures of groups are drawn beside
each other (`grouped`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sealgate.charts import bars, line_chart
from sealgate.page import contents, filtered, page, table
from security.assessment.reporting import summary
from security.assessment.reporting.grouped import grouped
from security.assessment.reporting.pictures import png_source
from security.assessment.reporting.rows import row_tables
from security.assessment.reporting.taxonomies import TAXONOMIES, rule_tags
from security.assessment.reporting.words import (
    check_anchor,
    figure_anchors,
    finding_anchor,
    said,
    sentence_of,
    title_of,
    words,
)

__all__ = ["to_html"]

_TEMPLATE = Path(__file__).with_name("page.html.j2")
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
_FEW_CONDITIONS = 12
_CONDITION = ("condition", "state", "what it says")

Json = Mapping[str, Any]


def to_html(report: Json) -> bytes:
    """The page.

    Args:
        report: as `ScanReport.parse` gives it.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    findings, results = report["findings"], report["results"]
    done = [item for item in results if item["status"] != "skipped"]
    tone, headline = summary.headline(findings, results)
    remedies, lead = _remedies(findings), summary.lead(results)
    main = template.render(
        target=report["target"],
        kind=_KINDS.get(report["target"].get("kind", ""), "model"),
        data={"rows_used": None, **report["data"]},
        options={"profile": "", "seed": "", **report["options"]},
        times={"started_at": "", **report["times"]},
        tone=tone,
        headline=headline,
        counts=summary.counts(findings, results),
        tiles=summary.tiles(results),
        lead={
            "charts": [_chart(item) for item in lead["charts"]],
            "tables": [_table(item) for item in lead["tables"]],
        },
        glance=list(summary.glance(results, findings)),
        filter=_markup(filtered(len(findings), "findings")),
        findings=_findings(findings, remedies, done),
        remedies=remedies,
        checks=[_check(item, report, lead) for item in done],
        untested=[*_untested(results), *_ALWAYS_UNTESTED],
        how=_how(report),
    )
    return page(f"Scan of {report['target']['name']}", main, nav=_nav(findings, done))


def _nav(findings: Sequence[Json], done: Sequence[Json]) -> str:
    checks = [(check_anchor(item["check"]), title_of(item["check"])) for item in done]
    entries: list[tuple[str, str, list[tuple[str, str]]]] = [
        ("summary", "Summary", []),
        ("findings", f"Findings ({len(findings)})", []),
    ]
    if findings:
        entries.append(("remedies", "What to do", []))
    if checks:
        entries.append((checks[0][0], "Checks", checks))
    entries.append(("not-tested", "What was not tested", []))
    return contents([*entries, ("how", "How this was made", [])])


def _remedies(findings: Sequence[Json]) -> list[dict[str, Any]]:
    """Each remedy once, with the findings that it mends; the worst first, as these."""
    merged: dict[str, list[int]] = {}
    for place, item in enumerate(findings):
        merged.setdefault(item["remedy"], []).append(place)
    return [
        {
            "anchor": f"remedy-{index}",
            "text": text,
            "places": places,
            "findings": [_finding_link(place, findings[place]) for place in places],
        }
        for index, (text, places) in enumerate(merged.items(), 1)
    ]


def _finding_link(place: int, item: Json) -> dict[str, str]:
    return {
        "anchor": finding_anchor(place),
        "text": item["message"],
        "severity": item["severity"],
    }


def _findings(
    findings: Sequence[Json], remedies: Sequence[Json], done: Sequence[Json]
) -> list[dict[str, Any]]:
    mended = {place: item for item in remedies for place in item["places"]}
    results = {item["check"]: item for item in done}
    shown = []
    for place, item in enumerate(findings):
        metric, remedy = item["metric"], mended[place]
        number_of = remedy["anchor"].rpartition("-")[2]
        tags = vars(rule_tags(item["rule"]))
        shown.append(
            {
                **item,
                "anchor": finding_anchor(place),
                "metric": "" if metric is None else sentence_of(metric),
                "explanation": item["evidence"].get("explanation", ""),
                "remedied": {
                    "anchor": remedy["anchor"],
                    "text": f"What to do: remedy {number_of}",
                },
                "details": list(_details(item, results.get(item["check"]))),
                "tags": [
                    f"{TAXONOMIES[name].name} {tag}: {TAXONOMIES[name].names[tag]}"
                    for name in tags
                    for tag in tags[name]
                ],
            }
        )
    return shown


def _details(item: Json, result: Json | None) -> Iterator[dict[str, str]]:
    """Links to the check that found it, and to the figure that it rests on."""
    if result is None:
        return
    yield {
        "anchor": check_anchor(item["check"]),
        "text": f"details: {title_of(item['check'])}",
    }
    same = [name for name, own in result["metrics"].items() if own == item["metric"]]
    name = max(same, key=len, default="")
    # One figure, and the same by a longer name; two that are alike by chance, neither.
    if name and all(name.startswith(other) for other in same):
        anchor = figure_anchors(result)[name]
        yield {"anchor": anchor, "text": f"figure: {words(name)}"}


def _check(result: Json, report: Json, lead: Json) -> dict[str, Any]:
    details = result["details"]
    alone, groups = grouped(result)
    return {
        "anchor": check_anchor(result["check"]),
        "title": title_of(result["check"]),
        "status": result["status"],
        "reason": result["reason"],
        "reliable": result.get("reliable", True),
        "findings": [
            _finding_link(place, item)
            for place, item in enumerate(report["findings"])
            if item["check"] == result["check"]
        ],
        "conditions": [
            (words(key), said(value)) for key, value in result["conditions"].items()
        ],
        "alone": alone,
        "figures": _markup(bars([("", alone)], first="figure", ends=(0.0, 1.0))),
        "bars": [
            (title, _markup(bars(items, first=first, name=title)))
            for title, first, items in groups
        ],
        "charts": [
            _chart(item)
            for item in details.get("charts", [])
            if item not in lead["charts"]
        ],
        "tables": [
            _table(item)
            for item in details.get("tables", [])
            if item["rows"] and item not in lead["tables"]
        ],
        "rows": [
            _table(item)
            for item in row_tables(details, report["target"].get("classes", ()))
        ],
        "verified": _verified(result["checks"]),
        "examples_title": details.get("examples_title", "The worst examples"),
        "examples": [
            _example(item) for item in details.get("examples", [])[:_MAX_EXAMPLES]
        ],
    }


def _verified(checks: Sequence[Json]) -> dict[str, Any] | None:
    """Conditions that were verified; folded where they are many and all hold."""
    if not checks:
        return None
    rows = [
        [item["id"], "holds" if item["passed"] else "does not hold", item["message"]]
        for item in checks
    ]
    held = sum(bool(item["passed"]) for item in checks)
    return {
        "title": f"Verified conditions: {held} of {len(checks)} hold",
        "markup": _markup(table(_CONDITION, rows, name="conditions")),
        "open": held < len(checks) or len(checks) <= _FEW_CONDITIONS,
    }


def _markup(made: str) -> Markup:
    """What `sealgate.page` and `sealgate.charts` made: they escape."""
    return Markup(made)  # noqa: S704  (see above)


def _chart(chart: Json) -> Markup:
    return _markup(line_chart(chart))


def _table(item: Json) -> dict[str, Any]:
    title, matrix = str(item["title"]), bool(item.get("matrix"))
    made = table(item["columns"], item["rows"], name=title, matrix=matrix)
    return {"title": title, "markup": _markup(made)}


def _example(example: Json) -> dict[str, Any]:
    names = [str(name) for name in example.get("names", ("before", "after", "change"))]
    changes = example.get("changes", [])
    return {
        "caption": example["caption"],
        "pictures": [
            (name, png_source(image))
            for name, image in zip(names, example.get("images", []), strict=False)
        ],
        "changes": _markup(table(["column", "before", "after"], changes))
        if changes
        else "",
    }


def _untested(results: Sequence[Json]) -> list[str]:
    lines = []
    for result in results:
        if result["status"] != "done":
            lines.append(
                f"{words(result['check'])} ({result['status']}): {result['reason']}."
            )
        lines += [str(line) for line in result["details"].get("untested", [])]
    return lines


def _how(report: Json) -> list[tuple[str, str]]:
    data, lines = report["data"], []
    if "sha256" in data:
        lines.append(("rows", f"sha256 {data['sha256']}"))
    options = ", ".join(f"{k}={v}" for k, v in report["options"].items() if v)
    lines.append(("options", options))
    lines += [(name, str(version)) for name, version in report["tools"].items()]
    if "wall_s" in report["times"]:
        lines.append(("duration", f"{report['times']['wall_s']} s"))
    return lines
