"""Finished scans that several files look at, each run once."""

from __future__ import annotations

import csv

import pytest

from security.commands import main
from tests.support.regressors import TRAINED, diabetes, linear_regressor, ridge
from tests.support.scanned import HOSTILE, digits, digits_onnx, save_npz

COLUMNS = ("age", "sex", HOSTILE, "'\"<b>&amp;")


@pytest.fixture(scope="package")
def attacked(tmp_path_factory):
    """The folder of a scan whose attacks found something: images of digits."""
    folder = tmp_path_factory.mktemp("attacked")
    _, _, x, y = digits()
    (folder / "digits.onnx").write_bytes(digits_onnx())
    rows = save_npz(folder / "digits.npz", x[:60], y[:60])
    checks = ("--check", "evasion", "--check", "quality", "--max-rows", "30")
    arguments = ("scan", str(folder / "digits.onnx"), "--data", str(rows), *checks)
    out = folder / "out"
    assert main([*arguments, "--out", str(out), "--jobs", "1"]) == 0
    return out


@pytest.fixture(scope="package")
def numbers(tmp_path_factory):
    """The folder of a scan of a regression, by groups, whose columns have bad names."""
    folder = tmp_path_factory.mktemp("numbers")
    x, y, names = diabetes()
    names = [*COLUMNS, *names[len(COLUMNS) :]]
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "group", "truth"])
        for row, truth in zip(x[TRAINED:], y[TRAINED:]):
            writer.writerow([*row, f"{HOSTILE}{row[1]:.0f}", truth])
    (folder / "data.toml").write_text('label = "truth"\nsensitive = ["group"]\n')
    model = linear_regressor(ridge().coef_, ridge().intercept_)
    (folder / "model.onnx").write_bytes(model)
    checks = ("quality", "fairness", "corruption")
    arguments = [
        *("scan", str(folder / "model.onnx"), "--data", str(folder / "rows.csv")),
        *("--data-config", str(folder / "data.toml"), "--out", str(folder / "out")),
        *("--jobs", "1", "--max-rows", "120"),
        *(part for name in checks for part in ("--check", name)),
    ]
    assert main(arguments) == 0
    return folder / "out"
