"""`init`: a first configuration, with what only a person can know marked as such."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.data.columns import Table
from models.data.readers import CsvFormat, read_table
from security.assessment.targets.dataconfig import DataConfig
from security.assessment.targets.dataconfig import broken as broken_data
from security.commands.options import Subparsers
from security.commands.stages import Stages
from security.config_reader import Rules, sections_of
from security.errors import SettingsError
from security.training.config_rules import broken
from security.training.config_sections import TrainingConfig
from security.training.draft import Asked, draft

__all__ = ["add_parser", "run"]

# A file of one column is tried with each of these, for a column of the label's name.
_DELIMITERS = (";", "\t", "|")


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "init",
        help="write a first configuration for a table, or for an imported model",
        description="Write a commented configuration: for a table, of its training; "
        "with --model, of what `import --columns` and `assess --data-config` need. "
        "Every column of the header gets a role. Ranges, categories and classes of "
        "private rows must not come from the rows: they are marked TODO, and `check` "
        "lists those that are left. Asks nothing, and replaces no file.",
    )
    parser.add_argument(
        "data", nargs="?", type=Path, metavar="DATA", help=".csv or .parquet"
    )
    parser.add_argument("--label", metavar="COLUMN", help="the column with the class")
    parser.add_argument(
        "--person",
        metavar="COLUMN",
        default="",
        help="the column that says whose a row is, where one may own several",
    )
    parser.add_argument(
        "--public",
        action="store_true",
        help="the rows are public, or about nobody: fill in what they show",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FILE.onnx",
        help="a model from elsewhere, with DATA or --data as rows it never saw",
    )
    parser.add_argument("--data", dest="rows", type=Path, metavar="FILE", help="DATA")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.toml",
        help="default: named as the model, or else the data, in this folder",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write; returns the exit code."""
    data = args.data or args.rows
    if args.model is None and (data is None or args.label is None):
        raise SettingsError("give DATA and --label, or --model")
    if args.model is not None and args.person:
        raise SettingsError("--person is for training")
    named = args.model or data
    out = args.out or Path(f"{named.name.partition('.')[0]}.toml")
    if out.exists():
        raise SettingsError(f"{out} exists already; --out names another file")
    with Stages() as stages:
        stages("reading", 0.0)
        text, left = (_of_data if args.model is None else _of_model)(args, data, out)
    with out.open("x", encoding="utf-8") as file:
        file.write(text)
    print(f"wrote {out}")
    for line in left:
        print(line)
    return 0


def _of_data(args: argparse.Namespace, data: Path, out: Path) -> tuple[str, list[str]]:
    """A training's configuration, and what it lacks."""
    table, delimiter = _read_rows(data, args.label)
    source = os.path.relpath(data, out.parent)
    asked = Asked(source, args.label, args.person, args.public, delimiter)
    text = draft(table, asked)
    return text, _unfilled(text, TrainingConfig, broken, out)


def _of_model(
    args: argparse.Namespace, data: Path | None, out: Path
) -> tuple[str, list[str]]:
    """A data configuration, and what it lacks."""
    from security.commands.init_model import draft_model  # noqa: PLC0415  (onnxruntime)

    table = None if data is None else _read_rows(data, args.label)[0]
    text = draft_model(args.model, table, args.label, public=args.public)
    return text, _unfilled(text, DataConfig, broken_data, out)


def _unfilled(
    text: str, kind: type, rules: Callable[[Any], Rules], out: Path
) -> list[str]:
    """What is left to fill in, with lines; everything else is as it must be."""
    _, left = sections_of(text.encode(), kind, rules, where=out.name)
    return left


def _read_rows(path: Path, label: str | None) -> tuple[Table, str]:
    """The rows, and the delimiter by which the file has a column of this name.

    Raises:
        DatasetError: unreadable.
    """
    first = read_table(str(path), base=Path())
    if label is None or label in first.arrays or len(first.arrays) > 1:
        return first, ","
    for delimiter in _DELIMITERS:
        layout = CsvFormat(delimiter=delimiter)
        table = read_table(str(path), base=Path(), layout=layout)
        if label in table.arrays:
            return table, delimiter
    return first, ","
