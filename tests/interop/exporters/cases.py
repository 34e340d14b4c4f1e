"""Models to export: the data they learn, what they answer, and how a case is kept.

Runs in the interop environment, which has the exporters, and in the project's own:
nothing of the project is imported here.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import make_classification, make_friedman1

ROWS, TRAINED = 200, 400


@dataclass(frozen=True)
class Split:
    """Rows to learn from, and rows to compare on."""

    x: np.ndarray
    y: np.ndarray
    rows: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Made:
    """An exported model with what the original answers.

    Attributes:
        model: the ONNX file.
        rows: of its only input, or by name of several.
        truth: what the rows are.
        answers: columns of the original's answers, as `import --expect` reads them.
        files: what lies beside the model.
    """

    model: bytes
    rows: np.ndarray | Mapping[str, np.ndarray]
    truth: np.ndarray
    answers: Mapping[str, Sequence[Any]]
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One estimator by one exporter.

    Attributes:
        exporter, estimator: for the table.
        packages: whose versions count.
        make: fits and exports.
    """

    exporter: str
    estimator: str
    packages: tuple[str, ...]
    make: Callable[[], Made]


def classes(*labels: Any, seed: int = 1, missing: bool = False) -> Split:
    """Rows of as many classes as there are labels."""
    x, y = make_classification(
        ROWS + TRAINED,
        6,
        n_informative=4,
        n_redundant=1,
        n_classes=len(labels),
        class_sep=0.8,
        flip_y=0.05,
        random_state=seed,
    )
    x = x.astype(np.float32)
    if missing:
        x[np.random.default_rng(seed).random(x.shape) < 0.15] = np.nan
    return _split(x, np.array(labels)[y])


def numbers(
    *, positive: bool = False, missing: bool = False, outputs: int = 1
) -> Split:
    """Rows with a number, or several, or counts, to predict."""
    x, y = make_friedman1(ROWS + TRAINED, 6, noise=0.5, random_state=2)
    x = x.astype(np.float32)
    if positive:
        y = np.random.default_rng(0).poisson(np.exp(y / 10)).astype(float)
    if outputs > 1:
        y = np.stack([y * (place + 1) - x[:, place] for place in range(outputs)], 1)
    if missing:
        x[np.random.default_rng(2).random(x.shape) < 0.15] = np.nan
    return _split(x, y)


def _split(x: np.ndarray, y: np.ndarray) -> Split:
    return Split(x[:TRAINED], y[:TRAINED], x[TRAINED:], y[TRAINED:])


def answers_of(model: Any, rows: Any) -> dict[str, Sequence[Any]]:
    """What an estimator with scikit-learn's methods answers."""
    decided = np.asarray(model.predict(rows))
    names = getattr(model, "classes_", None)
    likely = hasattr(model, "predict_proba")
    if not likely and not hasattr(model, "decision_function"):
        if decided.dtype.kind in "iuU":
            return {"prediction": decided}
        wide = decided.reshape(len(decided), -1).astype(float)
        places = [""] if wide.shape[1] == 1 else [f":{i}" for i in range(wide.shape[1])]
        return {f"value{place}": wide[:, i] for i, place in enumerate(places)}
    decided = decided.reshape(-1)
    if likely:
        return {"prediction": decided} | _of_classes(
            "probability", np.asarray(model.predict_proba(rows)), names
        )
    return {"prediction": decided} | _of_classes(
        "score", np.asarray(model.decision_function(rows)), names
    )


def _of_classes(
    kind: str, scores: np.ndarray, names: Sequence[Any] | None
) -> dict[str, Sequence[Any]]:
    if scores.ndim == 1:
        return {kind: scores}
    listed = range(scores.shape[1]) if names is None else names
    return {f"{kind}:{name}": scores[:, i] for i, name in enumerate(listed)}


def _version(package: str) -> str:
    """Without the name of a build."""
    return importlib.metadata.version(package).partition("+")[0]


def _plain(array: np.ndarray) -> np.ndarray:
    """Texts as numpy's own, which are read without unpickling."""
    return array.astype(str) if array.dtype == object else array


def write(folder: Path, name: str, case: Case) -> None:
    """Fit, export and keep one case; an exporter's error is kept, too."""
    place = folder / name
    place.mkdir(parents=True)
    told: dict[str, Any] = {
        "exporter": case.exporter,
        "estimator": case.estimator,
        "versions": {item: _version(item) for item in case.packages},
    }
    try:
        made = case.make()
    except Exception as error:  # noqa: BLE001  (someone else's code)
        traceback.print_exc()
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        told["error"] = f"{type(error).__name__}: {lines[0]}"[:200]
    else:
        (place / "model.onnx").write_bytes(made.model)
        for file, data in made.files.items():
            (place / file).write_bytes(data)
        single = not isinstance(made.rows, Mapping)
        arrays = {"x": made.rows} if single else dict(made.rows)
        texts = {
            n: a.astype(str) if a.dtype == object else a for n, a in arrays.items()
        }
        np.savez(place / "rows.npz", **texts, y=made.truth)
        columns = {str(n): list(column) for n, column in made.answers.items()}
        with (place / "expect.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values()))
    (place / "case.json").write_text(json.dumps(told))
