"""Held-out rows from a file: NumPy, CSV or Parquet, read within bounds.

- ``.npz``: two arrays, features and labels, under one of the usual pairs of names;
- ``.csv``, ``.parquet``: a header, one column with the class, all others features.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import BundleError
from models.files import read_regular
from security.errors import AssessmentError

__all__ = ["Holdout", "Roles", "load_holdout"]

MAX_DATA_BYTES = 2 << 30
_MAX_GROUPS = 50
_FEATURES = ("x", "X", "x_test", "X_test", "features", "images", "data")
_LABELS = ("y", "Y", "y_test", "Y_test", "labels", "label", "target", "targets")
_LABEL_COLUMNS = ("label", "target", "class", "y")


@dataclass(frozen=True, eq=False)
class Holdout:
    """Rows with their classes, as the file has them.

    Attributes:
        name: of the file or data set.
        features: ``(n, …)``, numbers; NaN where a value is missing.
        labels: ``(n,)``, whole numbers or text.
        columns: names of the features of tables, otherwise none.
        classes: names in the order of the labels where the source says so.
        groups: by sensitive column: each row's value, as text ``(n,)``.
    """

    name: str
    features: NDArray[Any] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    groups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sha256(self) -> str:
        """Digest of the rows: shape and type, features, labels."""
        state = hashlib.sha256()
        head = f"{self.features.shape} {self.features.dtype.str} {self.columns}\n"
        state.update(head.encode())
        state.update(np.ascontiguousarray(self.features).tobytes())
        for values in (self.labels, *self.groups.values()):
            state.update("\n".join(map(str, values.tolist())).encode())
        return state.hexdigest()


@dataclass(frozen=True)
class Roles:
    """What columns of a file are for.

    Attributes:
        label: the column of a table with the class, or None to look for a usual name.
        sensitive: columns, or arrays, whose values make groups.
        features: sensitive columns that the model reads all the same.
    """

    label: str | None = None
    sensitive: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


def load_holdout(path: Path, roles: Roles = Roles()) -> Holdout:
    """Read held-out rows.

    Args:
        path: a file that the operator names.
        roles: what its columns are for.

    Raises:
        AssessmentError: unreadable, not that format, or not rows with classes.
    """
    readers = {".npz": _npz, ".csv": _table, ".parquet": _table}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        kinds = ", ".join(readers)
        raise AssessmentError(f"{path.name}: held-out rows come as {kinds} or .toml")
    try:
        data = read_regular(path, max_bytes=MAX_DATA_BYTES, follow_links=True)
    except BundleError as error:
        raise AssessmentError(str(error)) from None
    holdout = reader(data, path, roles)
    _check(holdout)
    return holdout


def _npz(data: bytes, path: Path, roles: Roles) -> Holdout:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            stated = sum(item.file_size for item in archive.infolist())
        if stated > MAX_DATA_BYTES:
            raise AssessmentError(f"{path.name}: {stated} bytes unpacked")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            names = list(arrays)
            features = next((name for name in _FEATURES if name in names), None)
            labels = next((name for name in _LABELS if name in names), None)
            if features is None or labels is None:
                raise AssessmentError(
                    f"{path.name}: holds {', '.join(names)[:100] or 'nothing'}; "
                    "expected features as 'x' and classes as 'y'"
                )
            groups = {name: arrays[name].astype(str) for name in _known(roles, names)}
            return Holdout(path.name, arrays[features], arrays[labels], groups=groups)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else "malformed"
        raise AssessmentError(f"{path.name}: not a NumPy archive: {reason}") from None


def _table(data: bytes, path: Path, roles: Roles) -> Holdout:
    import pandas as pd  # noqa: PLC0415  (only for tables)

    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(io.BytesIO(data))
        else:
            frame = pd.read_csv(io.BytesIO(data))
    except Exception as error:  # noqa: BLE001  (the parsers' exceptions share no base)
        reason = str(error).splitlines()[0][:100] if str(error) else "malformed"
        raise AssessmentError(f"{path.name}: {reason}") from None
    column = _label_column(
        [str(name) for name in frame.columns], path.name, roles.label
    )
    frame.columns = [str(name) for name in frame.columns]
    groups = {
        name: frame[name].astype(str).to_numpy(dtype=str)
        for name in _known(roles, list(frame.columns))
    }
    kept = [name for name in roles.sensitive if name not in roles.features]
    features = frame.drop(columns=[column, *kept])
    text = [name for name in features if features[name].dtype.kind not in "biuf"]
    if text:
        raise AssessmentError(
            f"{path.name}: column {text[0]!r} holds text; a model takes numbers"
        )
    return Holdout(
        path.name,
        features.to_numpy(dtype=np.float64),
        frame[column].to_numpy(),
        columns=tuple(features.columns),
        groups=groups,
    )


def _known(roles: Roles, names: list[str]) -> tuple[str, ...]:
    """The sensitive columns.

    Raises:
        AssessmentError: the file has no such column.
    """
    for name in roles.sensitive:
        if name not in names:
            raise AssessmentError(f"there is no sensitive column {name!r}")
    return roles.sensitive


def _label_column(names: list[str], file: str, label: str | None) -> str:
    if len(set(names)) != len(names):
        raise AssessmentError(f"{file}: two columns have one name")
    wanted = (label,) if label is not None else _LABEL_COLUMNS
    for name in wanted:
        if name in names:
            return name
    raise AssessmentError(
        f"{file}: no column {' or '.join(map(repr, wanted))} with the class; "
        "name it as `label` in the data configuration"
    )


def _check(holdout: Holdout) -> None:
    features, labels, name = holdout.features, holdout.labels, holdout.name
    if features.dtype.kind not in "biuf" or features.ndim < 2:
        raise AssessmentError(f"{name}: features are not rows of numbers")
    if labels.ndim != 1:
        raise AssessmentError(f"{name}: classes have shape {labels.shape}, not (n,)")
    if len(features) != len(labels):
        raise AssessmentError(
            f"{name}: {len(features)} rows of features, {len(labels)} classes"
        )
    for group, values in holdout.groups.items():
        if values.shape != labels.shape:
            raise AssessmentError(f"{name}: {group!r} is not one value per row")
        if len(np.unique(values)) > _MAX_GROUPS:
            raise AssessmentError(
                f"{name}: sensitive column {group!r} has more than {_MAX_GROUPS} "
                "values; put them into bands"
            )
    if 0 in features.shape:
        raise AssessmentError(f"{name}: there are no rows")
    if labels.dtype.kind == "f" and not (
        np.isfinite(labels).all() and (labels == np.round(labels)).all()
    ):
        raise AssessmentError(f"{name}: a class is not a whole number")
    if labels.dtype.kind == "O" and any(
        item is None or item != item  # noqa: PLR0124  (NaN, for a missing text)
        for item in labels.tolist()
    ):
        raise AssessmentError(f"{name}: a row has no class")
