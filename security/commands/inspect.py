"""`inspect`: the structural inspection of ONNX files, or of bundles' models."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.bundle import MODEL_FILE, BundleLimits
from models.errors import BundleError
from models.files import read_regular, write_atomic
from security.commands.options import Subparsers, add_root, below_root
from security.commands.screen import Screen, add_color
from security.commands.stages import Stages
from security.errors import AssessmentError
from security.inspection.findings import RULES, SEVERITIES

if TYPE_CHECKING:
    from security.inspection.structure import Inspection

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "inspect",
        help="look for what must not be in an ONNX file, and for suspicious branches",
        description="Inspect ONNX files, or the models of bundles, each in a process "
        "of its own with bounded time and memory: what was found, and what to do about "
        "it; then who made the file, its operators, inputs and outputs, and texts in "
        "it that no operator reads. Nothing is loaded. Exit code 1: something was "
        "found that is as bad as --fail-on says. No finding is no proof that there is "
        "no backdoor.",
    )
    parser.add_argument("models", metavar="FILE.onnx|BUNDLE", type=Path, nargs="+")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON: an object, or of several models a list of them",
    )
    parser.add_argument(
        "--sarif", type=Path, metavar="FILE", help="also write SARIF, for code scanning"
    )
    parser.add_argument(
        "--fail-on",
        choices=(*SEVERITIES, "never"),
        default="error",
        metavar="SEVERITY",
        help="exit code 1 for findings this bad: error, warning, note, or never "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--strict",
        action="store_const",
        dest="fail_on",
        const="warning",
        help="the same as --fail-on warning",
    )
    add_root(parser)
    add_color(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Inspect; returns the exit code."""
    several = len(args.models) > 1
    screen = Screen(color=not args.no_color)
    found: list[Inspection] = []
    objects, reports = [], []
    for path in args.models:
        file = path / MODEL_FILE if path.is_dir() else path
        model = _read(file)
        found.append(_examine(model))
        if args.sarif is not None:
            reports.append(_report(file, args.root, model, found[-1]))
        if args.json:
            named = {"model": str(path)} if several else {}
            objects.append({**named, **_object(found[-1])})
            continue
        if several:
            screen.line((str(path), "head"))
        _print(found[-1], screen)
    if args.json:
        print(json.dumps(objects if several else objects[0], indent=2))
    if args.sarif is not None:
        _write_sarif(args.sarif, reports)
    return int(any(_fails(item, args.fail_on) for item in found))


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, max_bytes=BundleLimits().max_model_bytes)
    except BundleError as error:
        # Nothing was inspected: that is no finding.
        raise AssessmentError(str(error)) from None


def _examine(model: bytes) -> Inspection:
    from security.inspection.structure import examine  # noqa: PLC0415  (subprocess)

    with Stages() as stages:
        stages("inspection", 0.0)
        return examine(model)


def _fails(inspection: Inspection, fail_on: str) -> bool:
    fatal = SEVERITIES[: SEVERITIES.index(fail_on) + 1] if fail_on != "never" else ()
    return any(item.severity in fatal for item in inspection.findings)


def _report(
    path: Path, root: Path | None, model: bytes, inspection: Inspection
) -> dict[str, Any]:
    """What a scan would report that stopped here."""
    from security.assessment.checks.structure import structure_result  # noqa: PLC0415
    from security.assessment.results.report import (  # noqa: PLC0415  (not always)
        ScanReport,
        target_facts,
    )

    report = ScanReport(
        target=target_facts(path.name, "onnx", model, path=below_root(path, root)),
        data={},
        options={"profile": "inspection"},
        tools={},
        results=(structure_result(inspection, len(model)),),
    )
    return dict(ScanReport.parse(report.to_json()))


def _write_sarif(path: Path, reports: list[dict[str, Any]]) -> None:
    from security.assessment.reporting.sarif import to_sarif  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_sarif(*reports))


def _object(inspection: Inspection) -> dict[str, Any]:
    findings = [
        {"severity": item.severity, **vars(item), "remedy": RULES[item.rule].remedy}
        for item in inspection.findings
    ]
    counts, description = inspection.counts, inspection.description
    return {"findings": findings, "counts": counts, "description": description}


def _print(inspection: Inspection, screen: Screen) -> None:
    """Findings before the rest: with what to do about each."""
    for item in inspection.findings:
        text = f"{item.rule:<22}{item.where or '-'}: {item.message}"
        remedy = RULES[item.rule].remedy
        screen.finding(item.severity, text, item.explanation, remedy)
    for heading, facts in inspection.description.items():
        for count, line in enumerate(_facts(heading, facts)):
            screen.line((f"{'' if count else heading:<12}", "head"), line)
    counts = ", ".join(f"{count} {name}" for name, count in inspection.counts.items())
    screen.line(f"{len(inspection.findings)} findings; {counts or '-'}")


def _facts(heading: str, facts: Mapping[str, str | int]) -> list[str]:
    """Short facts on one line; inputs, outputs and texts on one each."""
    if heading in ("inputs", "outputs", "strings"):
        return [f"{name}  {value}" for name, value in facts.items()]
    words = [f"{name.replace('_', ' ')} {value}" for name, value in facts.items()]
    return [", ".join(words)] if words else []
