"""Public data sets for the recipes here, as arrays by name."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

# Where the files of Fashion-MNIST are, if not here; and those of bike sharing.
FOLDER = "FASHION_MNIST"
BIKES = "BIKE_SHARING"
_CLASSES = [
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]


def breast_cancer() -> dict[str, Any]:
    """569 biopsies, 30 measurements."""
    source = load_breast_cancer()
    columns = {
        str(name): source.data[:, index]
        for index, name in enumerate(source.feature_names)
    }
    return {**columns, "label": source.target_names[source.target].astype(str)}


def digits() -> dict[str, Any]:
    """1797 digits, 8 by 8 pixels from 0 to 16."""
    source = load_digits()
    return {"images": source.images, "label": source.target.astype(str)}


def fashion_train() -> dict[str, Any]:
    """60,000 articles of clothing, 28 by 28 pixels."""
    return _fashion("train")


def fashion_test() -> dict[str, Any]:
    """10,000 more."""
    return _fashion("t10k")


def bike_sharing() -> dict[str, Any]:
    """17,379 hours of a bike hire: calendar, weather, and how many bikes were hired.

    An hour of a working day is another category than the same hour of a free day: that
    commuters ride at eight is known without a row.
    """
    folder = Path(os.environ.get(BIKES, Path(__file__).parent))
    with zipfile.ZipFile(folder / "bike_sharing_dataset.zip") as archive:
        text = archive.read("hour.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    free = np.array(["free", "work"])
    day = free[[int(row["workingday"]) for row in rows]]
    hour = np.array([f"{int(row['hr']):02}" for row in rows])
    texts = ("season", "yr", "mnth", "holiday", "weekday", "weathersit")
    measured = ("temp", "atemp", "hum", "windspeed", "cnt")
    return {
        "hour": np.strings.add(np.strings.add(day, " "), hour),
        **{name: np.array([row[name] for row in rows]) for name in texts},
        **{name: np.array([float(row[name]) for row in rows]) for name in measured},
    }


def _fashion(part: str) -> dict[str, Any]:
    images = _bytes(f"{part}-images-idx3-ubyte.gz", header=16)
    labels = _bytes(f"{part}-labels-idx1-ubyte.gz", header=8)
    return {
        "images": images.reshape(-1, 28, 28),
        "label": np.array(_CLASSES)[labels],
    }


def _bytes(name: str, *, header: int) -> Any:
    folder = Path(os.environ.get(FOLDER, Path(__file__).parent))
    with gzip.open(folder / name) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)
