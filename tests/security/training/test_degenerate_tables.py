"""Tables and targets with next to nothing in them, through `train`: ebm and number.

Each is refused in one line, with nothing spent and nothing written, or trained to a
model that answers what is to be expected.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from models.bundle import read_bundle
from models.export import predict_onnx
from security.training.ledger import Ledger
from tests.security.training.test_boosted import EBM
from tests.support.in_process import security_code
from tests.support.small_regression import CONFIG, write_prices
from tests.support.small_training import write_rows

pytestmark = pytest.mark.usefixtures("one_thread")

# By recipe: configuration, rows, a number, a category and the target in a row.
RECIPES = {
    "ebm": (EBM, write_rows, (0, 1, 2)),
    "number": (CONFIG, write_prices, (0, 2, 3)),
}
WORDS = {
    "ebm": {"category": "nurse", "target": "yes", "what": "class"},
    "number": {"category": "Ulm", "target": "500", "what": "target"},
}
# Of both: what every row has, and what the one line says.
ROWS = {
    "constant number": ((0, "5"), "is constant: drop it"),
    "one category of two": ((1, "{category}"), "is constant: drop it"),
    "one target": ((2, "{target}"), "every row has the same {what}"),
    "no target": ((2, ""), "line 2"),
    "target nan": ((2, "nan"), "line 2"),
}
CHANGES = {
    "ebm": {
        "a range of nothing": (("low = 0", "low = 100"), "low must be below high"),
        "one category": (
            ('["baker", "nurse", "smith"]', '["nurse"]'),
            "two categories or more",
        ),
        "one class": (('["no", "yes"]', '["no"]'), "two classes or more"),
        "too many terms for epsilon": (
            ("epsilon = 4.0", "epsilon = 0.05"),
            "(2 terms, 20 rounds), more than the",
        ),
        "an epsilon of nothing": (("epsilon = 4.0", "epsilon = 0.0"), "above 0"),
    },
    "number": {
        "a range of nothing": (("low = 0\n", "low = 10\n"), "low must be below high"),
        "one category": (('["Bonn", "Ulm"]', '["Ulm"]'), "two categories or more"),
        "empty clamp": (("low = 100,", "low = 1000,"), "low: must be below high"),
        "clamp upside down": (("low = 100,", "low = 2000,"), "low: must be below high"),
        "clamp of nan": (("low = 100,", "low = nan,"), "data.target"),
        "clamp without end": (("high = 1000,", "high = inf,"), "data.target"),
        "an epsilon of nothing": (("epsilon = 3.0", "epsilon = 0.0"), "above 0"),
    },
}


def prepare(folder: Path, recipe: str, change: tuple[str, str] = ("", "")) -> None:
    text, write, _ = RECIPES[recipe]
    assert change[0] in text
    (folder / "c.toml").write_text(text.replace(*change, 1) if change[0] else text)
    write(folder / "rows.csv")


def fill(folder: Path, place: int, value: str) -> None:
    """Give every row the same value in a column."""
    path = folder / "rows.csv"
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    for row in rows:
        row[place] = value
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def train(folder: Path) -> int:
    made = ("--out", str(folder / "out"))
    return security_code(folder / "home", "train", str(folder / "c.toml"), *made)


def refused(folder: Path, capsys: pytest.CaptureFixture[str], message: str) -> None:
    assert train(folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 400
    assert message in line
    assert not (folder / "out").exists()
    accounts = Ledger(folder / "home" / "ledger").accounts()
    assert all(not account.entries for account in accounts)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("fault", ROWS)
def test_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, fault: str
) -> None:
    (column, value), message = ROWS[fault]
    prepare(tmp_path, recipe)
    words = WORDS[recipe]
    fill(tmp_path, RECIPES[recipe][2][column], value.format(**words))
    refused(tmp_path, capsys, message.format(**words))


@pytest.mark.parametrize(
    ("recipe", "fault"), [(kind, name) for kind in CHANGES for name in CHANGES[kind]]
)
def test_configurations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, fault: str
) -> None:
    change, message = CHANGES[recipe][fault]
    prepare(tmp_path, recipe, change)
    refused(tmp_path, capsys, message)


def test_two_targets_at_the_ends_of_the_range_are_learnt(tmp_path: Path) -> None:
    """All of them clamped, to both ends: still a number between."""
    prepare(tmp_path, "number")
    path = tmp_path / "rows.csv"
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    for place, row in enumerate(rows):
        row[3] = ["1", "99999"][place % 2]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    assert train(tmp_path) == 0
    bundle = read_bundle(tmp_path / "out")
    answers = predict_onnx(bundle.model, np.array([[3, 60, 0], [5, 90, 1]], "f4"))
    assert ((answers > 100) & (answers < 1000)).all()
    told = bundle.report("privacy").metrics["clamped_targets"]
    assert told.high == 1.0
