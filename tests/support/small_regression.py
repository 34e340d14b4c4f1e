"""A small table of flats and their prices, and a configuration that learns them."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

TOWNS = ("Bonn", "Ulm")
CONFIG = """
[model]
name = "prices"
version = "1.0.0"
[data]
name = "flats"
source = "rows.csv"
split_key = "k"
holdout = 0.3
task = "regression"
label = "price"
target = { low = 100, high = 1000, scale = "log" }
[[data.columns]]
name = "rooms"
low = 0
high = 10
[[data.columns]]
name = "area"
low = 10
high = 200
[[data.columns]]
name = "town"
categories = ["Bonn", "Ulm"]
[privacy]
epsilon = 3.0
delta = 1e-3
sampling_rate = 1.0
steps = 40
max_grad_norm = 0.25
expected_batch = 700
[optimizer]
learning_rate = 4.0
momentum = 0.9
ema = 0.9
"""


def price(rooms: float, area: float, town: int) -> float:
    """What a flat costs, but for noise."""
    return math.exp(5 + 0.12 * rooms + 0.003 * area + 0.2 * town)


def write_prices(path: Path, *, rows: int = 240, seed: int = 0) -> Path:
    """Flats with prices, most of them in the range of the configuration."""
    random = np.random.default_rng(seed)
    rooms = random.uniform(1, 8, rows).round(1)
    area = (20 * rooms + random.uniform(10, 40, rows)).round(1)
    town = random.integers(0, 2, rows)
    noise = np.exp(random.normal(0, 0.1, rows))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rooms", "area", "town", "price"])
        for *row, place, factor in zip(rooms, area, town, noise):
            cost = price(row[0], row[1], int(place)) * factor
            writer.writerow([*row, TOWNS[place], round(cost)])
    return path
