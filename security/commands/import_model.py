"""`import`: a bundle from a model that was made elsewhere, through the same door."""

from __future__ import annotations

import argparse
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from models.files import new_directory, read_regular, write_atomic
from models.report import Condition, Report
from security.commands.options import Subparsers, add_tracking, check_tracking
from security.commands.rows import add_data_config, answered_rows, data_config
from security.commands.stages import Stages
from security.errors import AssessmentError, SettingsError
from security.tracking import dvc

if TYPE_CHECKING:
    from models.manifest import Column, Manifest
    from security.assessment.parity import Comparison

__all__ = ["add_parser", "run"]

MAX_STATEMENT_CHARACTERS = 1000
MAX_MODEL_BYTES = 512 << 20  # what the structural inspection takes

_SHOWN = 10

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_MLFLOW = "mlflow:"


@dataclass(frozen=True)
class _Source:
    """A model as it came, inspected by nobody.

    Attributes:
        model: the ONNX file's bytes.
        folder: where weights may lie that it names, or None.
        stated: what is known of where it is from.
    """

    model: bytes = field(repr=False)
    folder: Path | None
    stated: Mapping[str, Condition]


@dataclass(frozen=True)
class _Said:
    """What is known of an import beside model and manifest."""

    conditions: Mapping[str, Mapping[str, Condition]]
    notes: tuple[str, ...]
    compared: Comparison | None


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "import",
        help="make a bundle from a model that was made elsewhere",
        description="Inspect an ONNX file and make a bundle of it: a manifest from its "
        "inputs and outputs, and a provenance report that says it was imported. "
        "Weights in a file beside it, as torch.onnx.export writes them, are embedded. "
        "It needs evidence and admission like any other. Of a model in MLflow the file "
        "is taken that its MLmodel names; MLflow loads nothing. A torch module is "
        "exported first; its factory is code, and runs. With --expect the model's "
        "answers are compared with its author's, which makes its parity report.",
    )
    parser.add_argument("source", metavar="FILE.onnx|mlflow:URI|pkg.module:factory")
    parser.add_argument("--name", required=True, help="name of the model")
    parser.add_argument("--version", required=True, help="dotted numbers, like 1.0.0")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to be made"
    )
    parser.add_argument(
        "--columns",
        type=Path,
        metavar="FILE",
        help="names and public ranges of a tabular input's columns: what `init "
        "--model` wrote; JSON, an array of name, low, high; or CSV with that header",
    )
    parser.add_argument(
        "--public-data",
        metavar="STATEMENT",
        help="what it was trained on, where that is public or about nobody: written as "
        "the privacy report, for whoever answers for it to sign",
    )
    add_tracking(parser)
    expect = parser.add_argument_group("what the original answers")
    expect.add_argument(
        "--expect",
        type=Path,
        metavar="FILE",
        help="its answers, as columns prediction, probability or score (or "
        "probability:CLASS of each), or value: .csv, .parquet or .npz",
    )
    expect.add_argument(
        "--data", type=Path, metavar="FILE", help="the rows that they are about"
    )
    expect.add_argument(
        "--key", metavar="COLUMN", help="says which row is which (default: the order)"
    )
    expect.add_argument("--output", metavar="NAME", help="the output to compare")
    add_data_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import; returns the exit code."""
    told = args.public_data
    if told is not None and not 1 <= len(told.strip()) <= MAX_STATEMENT_CHARACTERS:
        raise SettingsError(
            f"--public-data: 1 to {MAX_STATEMENT_CHARACTERS} characters are needed"
        )
    tracked = args.source.startswith(_MLFLOW)
    check_tracking(args, used=tracked, by=f"a source {_MLFLOW}URI")
    columns = _columns(args.columns) if args.columns else ()
    with Stages() as stages:
        stages("reading", 0.0)
        with _source(args, columns) as source:
            # Not before there is a file: it takes onnx and onnxruntime.
            from security.assessment import imported  # noqa: PLC0415

            stages("inspection", 0.0)
            model, findings = imported.inspected(source.model, source.folder)
        manifest = imported.describe(
            model, name=args.name, version=args.version, columns=columns
        )
        manifest, notes = imported.corrected(model, manifest)
        stages("comparing", 0.0)
        compared = _compared(args, model, manifest)
    said = _Said(_conditions(source.stated, told), notes, compared)
    _write(args.out, model, manifest, said)
    for finding in findings:
        print(f"{'finding':<10}{finding.rule}: {finding.message}")
    for note in notes:
        print(f"{'note':<10}{note}")
    if compared is not None:
        _print_differences(compared)
    print(f"imported  {manifest.tag}  sha256:{hashlib.sha256(model).hexdigest()}")
    return 0


def _columns(path: Path) -> tuple[Column, ...]:
    from security.assessment import imported  # noqa: PLC0415

    return tuple(imported.read_columns(path))


@contextmanager
def _source(args: argparse.Namespace, columns: Sequence[Column]) -> Iterator[_Source]:
    """Read the model; its folder is there as long as the block runs."""
    name = args.source
    if name.startswith(_MLFLOW):
        from security.tracking.addresses import parse_address  # noqa: PLC0415
        from security.tracking.client import connect  # noqa: PLC0415  (optional)
        from security.tracking.fetched import fetch_onnx  # noqa: PLC0415

        address = parse_address(name.removeprefix(_MLFLOW))
        with tempfile.TemporaryDirectory() as place:
            found = fetch_onnx(connect(args.tracking_uri), address, Path(place))
            yield _Source(
                found.model, Path(place), {"source": "MLflow", **found.origin}
            )
    elif _FACTORY.fullmatch(name):
        from security.assessment import imported  # noqa: PLC0415  (torch)

        model = imported.export_factory(name, columns)
        yield _Source(model, None, {"source": "torch factory"})
    else:
        path = Path(name)
        model = read_regular(path, max_bytes=MAX_MODEL_BYTES)
        stated = {"source": "ONNX file", **dvc.tracked(path, "model", model)}
        yield _Source(model, path.parent, stated)


def _conditions(
    stated: Mapping[str, Condition], told: str | None
) -> dict[str, dict[str, Condition]]:
    """What each report states, by its kind."""
    provenance: dict[str, Condition] = {
        "imported": True,
        **stated,
        "training_known": False,
    }
    if told is None:
        return {"provenance": provenance}
    # Nothing can be computed from a statement: what holds it up is who signs it.
    privacy: dict[str, Condition] = {
        "basis": "statement",
        "mechanism": "none",
        "personal_data": False,
        "statement": told.strip(),
    }
    return {"provenance": provenance, "privacy": privacy}


def _compared(
    args: argparse.Namespace, model: bytes, manifest: Manifest
) -> Comparison | None:
    """The model beside its author's answers, if there are any."""
    if args.expect is None or args.data is None:
        given = (args.expect, args.data, args.key, args.output, args.data_config)
        if any(item is not None for item in (*given, args.decision)):
            raise AssessmentError(
                "give --expect and --data together; --key, --output, --decision and "
                "--data-config are about them"
            )
        return None
    from security.assessment import parity  # noqa: PLC0415  (as above)
    from security.assessment.targets.decision import Stated  # noqa: PLC0415

    config = data_config(args)
    answered = answered_rows(
        args.expect,
        args.data,
        config,
        manifest.columns,
        text=manifest.text,
        key=args.key,
    )
    stated = Stated(config.classes, output=args.output, decision=args.decision)
    return parity.compare(model, answered, stated)


def _print_differences(compared: Comparison) -> None:
    print(f"{'parity':<10}{compared.line()}")
    for item in compared.differences[:_SHOWN]:
        place = compared.answered.places[item.row]
        print(
            f"{'differs':<10}{place}: {item.column} is {item.expected[:40]}, the file "
            f"gives {item.got[:40]}"
        )
    if len(compared.differences) > _SHOWN:
        print(f"{'differs':<10}… and {len(compared.differences) - _SHOWN} more answers")


def _write(out: Path, model: bytes, manifest: Manifest, said: _Said) -> None:
    from models.bundle import (  # noqa: PLC0415
        MANIFEST_FILE,
        MODEL_FILE,
        read_bundle,
        report_file,
    )
    from security.assessment import imported  # noqa: PLC0415  (as above)

    with new_directory(out) as folder:
        write_atomic(folder / MODEL_FILE, model)
        write_atomic(folder / MANIFEST_FILE, manifest.to_json())
        subject = read_bundle(folder).subject
        for kind, stated in said.conditions.items():
            noted = kind == "provenance" and said.notes
            report = Report(
                kind=kind,
                created_at=datetime.now(UTC).replace(microsecond=0),
                subject=subject,
                tools=imported.tools(),
                conditions={**stated, "file_sha256": subject.onnx_sha256},
                details={"notes": list(said.notes)} if noted else {},
            )
            write_atomic(folder / report_file(kind), report.to_json())
        if said.compared is not None:
            found = said.compared.report(subject, imported.tools())
            write_atomic(folder / report_file("parity"), found.to_json())
