"""Bike-sharing (UCI 275) from `../shared`: hours of two years, and a model of them."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support.servers import ROOT

FILE = ROOT.parent / "shared" / "data" / "bike-sharing" / "bike_sharing_dataset.zip"
RANGE = (0.0, 1000.0)
_CODED = {"season": 4, "mnth": 12, "hr": 24, "weekday": 7, "weathersit": 4}
_PLAIN = ("holiday", "workingday", "temp", "hum", "windspeed")
# The day's shape differs between working days and others: hours of both.
NAMES = (
    *_PLAIN,
    *(f"{name}_{code}" for name, count in _CODED.items() for code in range(count)),
    *(f"work_hr_{code}" for code in range(24)),
)


@cache
def hours() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, how many bikes were lent, and the year (0 is 2011), in random order."""
    if not FILE.exists():
        pytest.skip(f"{FILE} is not there")
    with zipfile.ZipFile(FILE) as archive:
        text = archive.read("hour.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    order = np.random.default_rng(0).permutation(len(rows))
    table = np.array([_features(rows[at]) for at in order], np.float32)
    lent = np.array([float(rows[at]["cnt"]) for at in order])
    years = np.array([int(rows[at]["yr"]) for at in order])
    return table, lent, years


def _features(row: dict[str, str]) -> list[float]:
    found = [float(row[name]) for name in _PLAIN]
    for name, count in _CODED.items():
        first = 0 if name in ("hr", "weekday") else 1
        found += np.eye(count)[int(row[name]) - first].tolist()
    work = float(row["workingday"])
    return found + (work * np.eye(24)[int(row["hr"])]).tolist()


def model(features: np.ndarray, lent: np.ndarray) -> bytes:
    """Least squares on the root of the number, whose square is answered."""
    design = np.c_[features, np.ones(len(features))].astype(np.float64)
    fitted, *_ = np.linalg.lstsq(design, np.sqrt(lent), rcond=1e-6)
    weights = fitted[:-1, None].astype(np.float32)
    made = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["root"]),
        helper.make_node("Mul", ["root", "root"], ["lent"]),
    ]
    graph = helper.make_graph(
        made,
        "bikes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(NAMES)])],
        [helper.make_tensor_value_info("lent", TensorProto.FLOAT, ["n", 1])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.float32(fitted[-1:]), "b"),
        ],
    )
    whole = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return bytes(whole.SerializeToString())


def write_columns(path: Path) -> None:
    """The columns' public ranges, for `import`."""
    columns = [{"name": name, "low": 0.0, "high": 1.0} for name in NAMES]
    path.write_text(json.dumps(columns))


def write_rows(path: Path, features: np.ndarray, lent: np.ndarray) -> None:
    """A table with its truth in the column ``lent``."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*NAMES, "lent"])
        writer.writerows([*map(float, row), t] for row, t in zip(features, lent))
