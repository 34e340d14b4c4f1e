"""Sums over columns with steps: the worst of a box, column by column; and their curves.

Also what the card says of an ebm, and what a scan draws.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.bundle import read_bundle
from security.assessment.checks.evasion.columns import by_columns, is_stepped_sum
from security.assessment.checks.evasion.gradient import Ball
from security.assessment.checks.evasion.losses import margins
from security.commands import main
from security.documents.model_card import model_card
from tests.security.training.test_boosted import EBM
from tests.support.small_training import write_config, write_rows

STEPS = frozenset(("GreaterOrEqual",))


def stairs(seed: int, columns: int) -> Any:
    """A sum of random stairs, of values from 0 to 1, as scores of two classes."""
    random = torch.Generator().manual_seed(seed)
    cuts = torch.rand(columns, 6, generator=random).sort(dim=1).values.double()
    scores = torch.randn(columns, 7, generator=random).double()

    def model(z: Tensor) -> Tensor:
        place = (z[:, :, None] >= cuts).sum(dim=2)
        odds = scores[torch.arange(columns), place].sum(dim=1, keepdim=True)
        return torch.cat([-odds, odds], dim=1)

    return model, cuts


@pytest.mark.parametrize("seed", range(5))
def test_nothing_in_the_box_is_worse(seed: int) -> None:
    model, cuts = stairs(seed, 3)
    centre = torch.rand(20, 3, generator=torch.Generator().manual_seed(seed)).double()
    low, high = torch.zeros(1, 3).double(), torch.ones(1, 3).double()
    ball = Ball.of(centre, (low, high), 0.15, "linf")
    labels = model(centre).argmax(dim=1)
    found = by_columns(model, ball, labels)
    assert bool(((found >= ball.low) & (found <= ball.high)).all())
    for row, label in enumerate(labels):
        one = ball.take(torch.tensor([row]))
        # Every step that the box reaches, and its ends: all combinations.
        values = [
            [float(one.low[0, c]), *(float(x) for x in cuts[c])] for c in range(3)
        ]
        inside = [
            [v for v in own if one.low[0, c] <= v <= one.high[0, c]]
            for c, own in enumerate(values)
        ]
        points = torch.tensor(list(itertools.product(*inside)), dtype=torch.float64)
        worst = margins(model(points), label.repeat(len(points))).min()
        own = margins(model(found[row][None]), label[None])[0]
        assert own >= worst - 1e-12
        # A step between two of the 65 values that are tried is the only excuse.
        narrow = any(
            len({int((v - one.low[0, c]) / (0.3 / 64)) for v in own_}) < len(own_)
            for c, own_ in enumerate(inside)
        )
        assert narrow or own <= worst + 1e-12


def test_what_is_no_such_sum() -> None:
    rows = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)).double()
    model, _ = stairs(0, 3)
    assert is_stepped_sum(model, rows, STEPS)
    assert not is_stepped_sum(model, rows, frozenset(("Gemm",)))

    def joined(z: Tensor) -> Tensor:
        return model(z) + (z[:, :1] * z[:, 1:2]) @ torch.tensor([[1.0, -1.0]]).double()

    assert not is_stepped_sum(joined, rows, STEPS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("columns")
    write_rows(folder / "rows.csv", rows=4000)
    patch = pytest.MonkeyPatch()
    patch.setenv("SEALGATE_HOME", str(folder / "home"))
    config = str(write_config(folder, EBM))
    assert main(["train", config, "--out", str(folder / "made")]) == 0
    patch.undo()
    return folder / "made"


def test_a_scan_is_reliable_and_draws_the_curves(bundle: Path, tmp_path: Path) -> None:
    data = str(bundle.parent / "c.toml")
    out = str(tmp_path / "scan")
    asked = ["scan", str(bundle), "--data", data, "--out", out, "--radius-linf", "0.02"]
    checks = ["--check", "evasion", "--check", "explanations"]
    assert main([*asked, *checks]) == 0
    report = json.loads((tmp_path / "scan/scan.json").read_bytes())
    found = {item["check"]: item for item in report["results"]}
    assert all(check["passed"] for check in found["evasion"]["checks"])
    details = found["explanations"]["details"]
    (chart,) = details["charts"]
    assert chart["x"] == "age"
    curves: Any = read_bundle(bundle).report("provenance").details["curves"]
    drawn = np.array(chart["series"][0]["points"])
    places = np.searchsorted(curves["terms"][0]["cuts"], drawn[:, 0], side="right")
    scores = np.array(curves["terms"][0]["scores"])[places]
    assert np.allclose(drawn[:, 1], scores, atol=1e-5)
    jobs = [row for row in details["tables"][1]["rows"] if row[0] == "job"]
    assert [name for _, name, _ in jobs][1:] == ["baker", "nurse", "smith"]
    page = (tmp_path / "scan/scan.html").read_text()
    assert "What age adds to the log-odds of the second class" in page


def test_the_card_tells_the_curves(bundle: Path) -> None:
    text = model_card(read_bundle(bundle)).decode()
    section = text.split("## What it learnt\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == ["age", "job"]  # the stronger first
    curve = rows[0].split("|")[4].strip()
    assert len(curve) == 24
    assert curve[0] in "▁▂▃"  # who buys is above 50
    assert curve[-1] in "▆▇█"


HOSTILE: list[Any] = [
    None,
    [],
    {"terms": "x"},
    {"terms": [{"column": "age", "scores": [1e308], "cuts": []}]},
    {"terms": [{"column": "age", "scores": ["<b>"], "cuts": []}]},
    {"terms": [{"column": ["age"], "scores": [1.0], "cuts": []}]},
    {"terms": [{"column": "age", "scores": [1.0], "cuts": [1.0, 2.0]}]},
    {"terms": [{"column": "job", "scores": [1.0]}]},
    {"terms": [{"column": "age", "scores": [0.0] * 5000, "cuts": [0.0] * 4999}]},
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_curves_that_are_none(bundle: Path, value: Any) -> None:
    made = read_bundle(bundle)
    document = json.loads(made.files["evidence/provenance.json"])
    document["details"]["curves"] = value
    data = json.dumps(document).encode()
    files = {**made.files, "evidence/provenance.json": data}
    text = model_card(replace(made, files=files)).decode()
    assert "## What it learnt" not in text
