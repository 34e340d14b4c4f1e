"""`inspect`: the structural inspection of one ONNX file, or of a bundle's model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from models.bundle import MODEL_FILE, BundleLimits
from models.errors import BundleError
from models.files import read_regular
from security.commands.options import Subparsers
from security.commands.screen import Screen, add_color
from security.commands.stages import Stages
from security.errors import AssessmentError

if TYPE_CHECKING:
    from security.inspection.structure import Inspection

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "inspect",
        help="look for what must not be in an ONNX file, and for suspicious branches",
        description="Inspect an ONNX file, or the model of a bundle, in a process of "
        "its own with bounded time and memory: what was found, and what to do about "
        "it; then who made the file, its operators, inputs and outputs, and texts in "
        "it that no operator reads. Nothing is loaded or written. Exit code 1: an "
        "error was found, or with --strict a warning. No finding is no proof that "
        "there is no backdoor.",
    )
    parser.add_argument("model", metavar="FILE.onnx|BUNDLE", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--strict", action="store_true", help="exit code 1 for warnings too"
    )
    add_color(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Inspect; returns the exit code."""
    from security.inspection.structure import examine  # noqa: PLC0415  (subprocess)

    path = args.model / MODEL_FILE if args.model.is_dir() else args.model
    with Stages() as stages:
        stages("inspection", 0.0)
        inspection = examine(_read(path))
    if args.json:
        print(_as_json(inspection))
    else:
        _print(inspection, Screen(color=not args.no_color))
    fatal = {"error", "warning"} if args.strict else {"error"}
    return int(any(item.severity in fatal for item in inspection.findings))


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, max_bytes=BundleLimits().max_model_bytes)
    except BundleError as error:
        # Nothing was inspected: that is no finding.
        raise AssessmentError(str(error)) from None


def _as_json(inspection: Inspection) -> str:
    from security.inspection.findings import RULES  # noqa: PLC0415  (as above)

    findings = [
        {"severity": item.severity, **vars(item), "remedy": RULES[item.rule].remedy}
        for item in inspection.findings
    ]
    answer = {"findings": findings, "counts": inspection.counts}
    return json.dumps({**answer, "description": inspection.description}, indent=2)


def _print(inspection: Inspection, screen: Screen) -> None:
    """Findings before the rest: with what to do about each."""
    from security.inspection.findings import RULES  # noqa: PLC0415  (as above)

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
