"""`inspect`: the structural inspection of one ONNX file, or of a bundle's model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from models.bundle import MODEL_FILE, BundleLimits
from models.errors import BundleError
from models.files import read_regular
from security.commands.options import Subparsers
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
        "its own with bounded time and memory. Nothing is loaded or written. Exit "
        "code 1: an error was found, or with --strict a warning. No finding is no "
        "proof that there is no backdoor.",
    )
    parser.add_argument("model", metavar="FILE.onnx|BUNDLE", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--strict", action="store_true", help="exit code 1 for warnings too"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Inspect; returns the exit code."""
    from security.inspection.structure import examine  # noqa: PLC0415  (subprocess)

    path = args.model / MODEL_FILE if args.model.is_dir() else args.model
    with Stages() as stages:
        stages("inspection", 0.0)
        inspection = examine(_read(path))
    print(_as_json(inspection) if args.json else _as_text(inspection))
    fatal = {"error", "warning"} if args.strict else {"error"}
    return int(any(item.severity in fatal for item in inspection.findings))


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, max_bytes=BundleLimits().max_model_bytes)
    except BundleError as error:
        # Nothing was inspected: that is no finding.
        raise AssessmentError(str(error)) from None


def _as_json(inspection: Inspection) -> str:
    findings = [
        {"severity": item.severity, **vars(item)} for item in inspection.findings
    ]
    return json.dumps({"findings": findings, "counts": inspection.counts}, indent=2)


def _as_text(inspection: Inspection) -> str:
    lines = []
    for item in inspection.findings:
        lines.append(
            f"{item.severity:<8}{item.rule:<22}{item.where or '-'}: {item.message}"
        )
        if item.explanation:
            lines.append(f"{'':<8}{item.explanation}")
    counts = ", ".join(f"{count} {name}" for name, count in inspection.counts.items())
    return "\n".join([*lines, f"{len(inspection.findings)} findings; {counts or '-'}"])
