"""Rows that `assess` and `scan` are given: files, or training configurations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from security.errors import AssessmentError

if TYPE_CHECKING:
    from models.data.datasets import AnyDataset
    from models.data.expected import Answered
    from models.data.held_out import Holdout, Predictions, Roles
    from models.manifest import Column
    from security.assessment.plan.options import Radii
    from security.assessment.targets.dataconfig import DataConfig

__all__ = [
    "add_data_config",
    "add_held_out",
    "add_radius",
    "add_train_data",
    "answered_rows",
    "configured_rows",
    "data_config",
    "file_predictions",
    "file_rows",
    "radii",
]


def add_held_out(rows: argparse._MutuallyExclusiveGroup, *names: str) -> None:
    """Add --config, and a file of rows by these names."""
    rows.add_argument(
        "--config",
        metavar="CONFIG.toml",
        type=Path,
        help="the training configuration, which fixes the held-out rows",
    )
    rows.add_argument(
        *names,
        type=Path,
        metavar="HOLDOUT",
        help="rows the model never saw, with the truth: .npz, .csv or .parquet",
    )


def add_data_config(parser: argparse.ArgumentParser) -> None:
    """Add --data-config and --decision."""
    parser.add_argument(
        "--data-config",
        type=Path,
        metavar="FILE.toml",
        help="groups to compare, ranges, and what an attacker may change in a row",
    )
    parser.add_argument(
        "--decision",
        metavar="HOW",
        help="what decides where outputs do not say: label, scores, for two classes "
        "'probability>T' or 'score>T', or number: nothing, it predicts one",
    )


def add_train_data(parser: argparse.ArgumentParser) -> None:
    """Add --train-data."""
    parser.add_argument(
        "--train-data",
        type=Path,
        metavar="FILE",
        help="the rows it was trained on, as --data reads them",
    )


def data_config(args: argparse.Namespace) -> DataConfig:
    """What --data-config says, or nothing.

    Raises:
        AssessmentError: the file is malformed.
    """
    from security.assessment.targets import dataconfig  # noqa: PLC0415  (as below)

    if args.data_config is None:
        return dataconfig.DataConfig()
    return dataconfig.load_data_config(args.data_config)


def configured_rows(path: Path, bundle: Path | None) -> tuple[AnyDataset, AnyDataset]:
    """A training configuration's own rows, and its held-out ones.

    Args:
        path: of the configuration.
        bundle: of the model, which says by which version rows are told apart; or None.

    Raises:
        TrainingError: the configuration is malformed.
        DatasetError: its data cannot be read.
    """
    from security.training.data import load_split, read_config  # noqa: PLC0415  (numpy)

    return load_split(read_config(path, bundle))


def add_radius(parser: argparse.ArgumentParser, norm: str, more: str) -> None:
    """Add --radius-NORM."""
    parser.add_argument(
        f"--radius-{norm}", nargs="+", metavar="R", help=f"{more} (TARGET goes first)"
    )


def radii(args: argparse.Namespace, norm: str) -> Radii:
    """What --radius-NORM says: one radius, several, or a column that has each row's.

    Raises:
        AssessmentError: several words, of which one is no number.
    """
    given = getattr(args, f"radius_{norm}", None) or []
    try:
        found = tuple(float(item) for item in given)
    except ValueError:
        if len(given) == 1:
            return str(given[0])
        raise AssessmentError(
            f"--radius-{norm}: numbers, or the name of one column of the data"
        ) from None
    return found if len(found) > 1 else next(iter(found), None)


def file_rows(
    path: Path,
    config: DataConfig,
    columns: tuple[Column, ...],
    text: tuple[str, ...] = (),
    beside: tuple[str, ...] = (),
) -> Holdout:
    """Rows of a file.

    Args:
        path: of the file.
        config: says what its columns are for.
        columns: of the model, found by name; none where it has none.
        text: those of its inputs that are texts, as far as it is known.
        beside: columns of numbers that are no features.

    Raises:
        DatasetError: unreadable, or no rows with classes.
    """
    from models.data.held_out import load_holdout  # noqa: PLC0415  (as above)

    return load_holdout(path, _roles(config, columns, text, beside))


def file_predictions(path: Path, config: DataConfig) -> Predictions:
    """A model's predictions about rows, of a file.

    Raises:
        DatasetError: unreadable, or no predictions beside classes.
    """
    from models.data.held_out import load_predictions  # noqa: PLC0415  (as above)

    return load_predictions(path, _roles(config, ()))


def answered_rows(
    path: Path,
    rows: Path,
    config: DataConfig,
    columns: tuple[Column, ...],
    *,
    text: tuple[str, ...],
    key: str | None,
) -> Answered:
    """What the author of a model says that it answers, and the rows.

    Args:
        path: of the answers.
        rows: of the rows.
        config: says what columns are for.
        columns: of the model, found by name; none where it has none.
        text: those of its inputs that are texts.
        key: a column of both files that says which row is which, or None.

    Raises:
        DatasetError: unreadable, or rows and answers that do not fit each other.
    """
    from models.data.expected import load_answered  # noqa: PLC0415  (as above)

    roles = _roles(config, columns, text)
    return load_answered(path, rows, roles, classes=config.classes, key=key)


def _roles(
    config: DataConfig,
    columns: tuple[Column, ...],
    text: tuple[str, ...] = (),
    beside: tuple[str, ...] = (),
) -> Roles:
    from models.data.held_out import Roles  # noqa: PLC0415  (as above)

    return Roles(
        label=config.label,
        sensitive=config.sensitive,
        kept=tuple(config.rules),
        columns=columns,
        features=config.features,
        text=(*config.text, *text),
        drop=config.drop,
        beside=beside,
        missing=config.missing,
        prediction=config.prediction,
        scores=config.scores,
        probabilities=config.probabilities,
    )
