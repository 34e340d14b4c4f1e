"""JUnit XML: a scan as a test suite, for dashboards that read nothing else.

A suite per check. Each condition that the check verified and each finding is a case;
findings of severity error fail, milder ones are told in the output of their case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from security.assessment.results.rules import severity_at_least

__all__ = ["to_junit"]

# What XML 1.0 (2.2) cannot hold, escaped or not.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: Mapping[str, Any], *, fail_on: str = "error") -> bytes:
    """The document.

    Args:
        report: as `ScanReport.parse` gives it.
        fail_on: findings this bad are failures: error, warning or note.
    """
    root = Element("testsuites", name=_text(f"scan {report['target']['name']}"))
    totals = {"tests": 0, "failures": 0, "skipped": 0}
    for result in report["results"]:
        suite = SubElement(root, "testsuite", name=_text(result["check"]))
        _fill(suite, result, report, fail_on)
        cases = suite.findall("testcase")
        counts = {
            "tests": len(cases),
            "failures": sum(case.find("failure") is not None for case in cases),
            "skipped": sum(case.find("skipped") is not None for case in cases),
        }
        for name, count in counts.items():
            suite.set(name, str(count))
            totals[name] += count
        suite.set("errors", "0")
        suite.set("time", "0")
    for name, count in totals.items():
        root.set(name, str(count))
    return tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _fill(
    suite: Element, result: Mapping[str, Any], report: Mapping[str, Any], fail_on: str
) -> None:
    name = result["check"]
    whole = _case(suite, name, name)
    if result["status"] == "skipped":
        SubElement(whole, "skipped", message=_text(result["reason"]))
        return
    lines = [
        f"{key} = {metric['value']:.6g}" for key, metric in result["metrics"].items()
    ]
    SubElement(whole, "system-out").text = _text("\n".join(lines))
    for check in result["checks"]:
        case = _case(suite, name, check["id"])
        if not check["passed"]:
            SubElement(case, "failure", message=_text(check["message"]))
    for item in report["findings"]:
        if item["check"] == name:
            _finding(
                _case(suite, name, f"{item['rule']} {item['where']}"), item, fail_on
            )


def _finding(case: Element, item: Mapping[str, Any], fail_on: str) -> None:
    if severity_at_least(item["severity"], fail_on):
        failure = SubElement(
            case, "failure", type=item["severity"], message=_text(item["message"])
        )
        failure.text = _text(f"{item['title']}\n{item['remedy']}")
    else:
        SubElement(case, "system-out").text = _text(
            f"{item['severity']}: {item['message']}"
        )


def _case(suite: Element, check: str, name: str) -> Element:
    return SubElement(
        suite, "testcase", classname=_text(f"scan.{check}"), name=_text(name.strip())
    )


def _text(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
