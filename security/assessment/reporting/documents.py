"""All formats of one report, side by side: scan.json, .sarif, .junit.xml, .html."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.files import write_atomic
from security.assessment.reporting.junit import to_junit
from security.assessment.reporting.sarif import to_sarif
from security.assessment.results.report import ScanReport
from security.errors import AssessmentError

__all__ = ["FORMATS", "render", "write_documents"]

FORMATS: Mapping[str, str] = {
    "html": "scan.html",
    "junit": "scan.junit.xml",
    "sarif": "scan.sarif",
}


def render(data: bytes, form: str, *, fail_on: str = "error") -> bytes:
    """One format of a scan.json.

    Args:
        data: of scan.json.
        form: of `FORMATS`.
        fail_on: JUnit: findings this bad are failures.

    Raises:
        AssessmentError: not a scan report.
    """
    report = ScanReport.parse(data)
    match form:
        case "html":
            return _html(report)
        case "junit":
            return to_junit(report, fail_on=fail_on)
        case _:
            return to_sarif(report)


def _html(report: Mapping[str, Any]) -> bytes:
    """The page; what is drawn of a check's details is held to no schema before."""
    import jinja2  # noqa: PLC0415  (only for this format)

    from security.assessment.reporting.html import to_html  # noqa: PLC0415  (as above)

    try:
        return to_html(report)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        what = f"{type(error).__name__} in the details of a check"
        raise AssessmentError(f"not a scan report: {what}") from error
    except jinja2.TemplateError as error:
        raise AssessmentError(f"not a scan report: {error.message}") from error


def write_documents(folder: Path, data: bytes, *, fail_on: str = "error") -> None:
    """Write every format beside scan.json."""
    for form, name in FORMATS.items():
        write_atomic(folder / name, render(data, form, fail_on=fail_on))
