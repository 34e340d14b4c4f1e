"""A small table of persons, and a configuration that trains on it in a second."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

CONFIG = """
[model]
name = "small"
version = "1.0.0"
[data]
name = "persons"
source = "rows.csv"
split_key = "k"
label = "bought"
classes = ["no", "yes"]
[[data.columns]]
name = "age"
low = 0
high = 100
[[data.columns]]
name = "job"
categories = ["baker", "nurse", "smith"]
[privacy]
epsilon = 2.0
delta = 1e-3
sampling_rate = 1.0
steps = 12
max_grad_norm = 1.0
expected_batch = 100
[optimizer]
learning_rate = 1.0
"""


def write_rows(
    path: Path,
    *,
    rows: int = 240,
    units: int = 0,
    seed: int = 0,
    oldest: int = 99,
    buys_above: int = 50,
) -> Path:
    """Rows of age and job, with a person if units are wanted."""
    generator = np.random.default_rng(seed)
    ages = generator.integers(1, oldest, rows)
    jobs = generator.choice(["baker", "nurse", "smith"], rows)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "job", "bought", *["person"] * bool(units)])
        for index in range(rows):
            bought = ["no", "yes"][int(ages[index] > buys_above)]
            owner = [f"p{index % units}"] if units else []
            writer.writerow([ages[index], jobs[index], bought, *owner])
    return path


def write_config(folder: Path, text: str = CONFIG, **changed: str) -> Path:
    """The configuration, with lines ``key = …`` changed, and its rows."""
    lines = text.strip().splitlines()
    for key, value in changed.items():
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{key} = ")]
        lines[at] = f"{key} = {value}"
    if not (folder / "rows.csv").exists():
        write_rows(folder / "rows.csv")
    path = folder / "c.toml"
    path.write_text("\n".join(lines) + "\n")
    return path
