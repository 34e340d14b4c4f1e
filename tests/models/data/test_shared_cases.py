"""The shared cases of tables: each gives the right answer, or one clear error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from models.data.datasets import common_rows
from models.data.held_out import Roles, load_holdout
from models.data.sources import Schema, load_source
from models.errors import DatasetError
from models.manifest import Column
from security.commands import main
from security.training.config import load_config
from security.training.data import load_split
from tests.conftest import ROOT
from tests.support import trained
from tests.support.scanned import linear_onnx

CASES = ROOT.parent / "shared" / "cases" / "tables"
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason="../shared/cases is not on this machine"
)
NUMBERS = (Column("a", 0.0, 100.0), Column("b", 0.0, 100.0))
PERSONS = Schema(name="p", label="out", classes=("no", "yes"), columns=NUMBERS)


@pytest.mark.parametrize("name", ["c_same", "c_float"])
@pytest.mark.parametrize("source", ["train.csv", "train_float.csv"])
def test_held_out_rows_are_not_trained_on(tmp_path, name, source):
    shutil.copytree(CASES / "holdout", tmp_path / "case")
    path = tmp_path / "case" / f"{name}.toml"
    path.write_text(path.read_text().replace("train.csv", source))
    train, holdout = load_split(load_config(path))
    assert (len(train), len(holdout)) == (286, 100)
    assert common_rows(train, holdout) == 0


def owned(name):
    schema = Schema(**{**vars(PERSONS), "unit": "pid"})
    return load_source(name, schema, CASES)


def test_an_owner_is_one_however_written():
    train, test = owned("units_train.csv"), owned("units_test.csv")
    kept = ~np.isin(train.units, test.units)
    assert set(train.units[~kept]) == {"3", "4", "5"} == set(test.units)
    assert kept.sum() < len(train)


def test_rows_without_an_owner_are_refused():
    with pytest.raises(DatasetError, match=r"line 2: '' is no owner.*and 9 more"):
        owned("unit_empty.csv")


def test_a_missing_group_is_named():
    roles = Roles(sensitive=("group",))
    full = load_holdout(CASES / "group_full.csv", roles).groups["group"]
    part = load_holdout(CASES / "group_one_missing.csv", roles).groups["group"]
    assert set(full) == {"Asian", "African", "European"}
    assert set(part) == {*full, "missing"}
    assert (part == "missing").sum() == 1


def test_a_class_called_none():
    rows = load_holdout(CASES / "label_none.csv")
    assert set(rows.labels) == {"None", "Mild"}
    columns = (Column("f0", 0.0, 99.0), Column("f1", 0.0, 9.0))
    schema = Schema(name="p", label="label", classes=("None", "Mild"), columns=columns)
    read = load_source("label_none.csv", schema, CASES)
    assert (read.labels == (rows.labels == "Mild")).all()


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(DatasetError, match="column 'f0' occurs twice"):
        load_holdout(CASES / "dup_scan.csv")


def test_carriage_returns_end_lines():
    schema = Schema(
        **{
            **vars(PERSONS),
            "columns": (*NUMBERS, Column("cat", 0.0, 1.0, ("x", "y"))),
        }
    )
    assert len(load_source("cr.csv", schema, CASES)) == 60


def test_a_line_break_in_a_header():
    columns = (Column("a\n(years)", 0.0, 100.0), NUMBERS[1])
    schema = Schema(**{**vars(PERSONS), "columns": columns, "drop": ("cat",)})
    assert len(load_source("hdr_newline.csv", schema, CASES)) == 60


def test_categories_of_a_column_with_nulls_keep_their_spelling():
    pytest.importorskip("pyarrow")
    columns = (*NUMBERS, Column("cat", 0.0, 1.0, ("0", "1")))
    schema = Schema(**{**vars(PERSONS), "columns": columns, "missing": ("",)})
    read = load_source("null_int_cat.parquet", schema, CASES)
    assert set(read.features[:, 2][~np.isnan(read.features[:, 2])]) == {0.0, 1.0}


def scan(folder: Path, rows: str, config: str, *more: str) -> dict:
    """A scan of rows of the case by the real command; its report."""
    header = (CASES / rows).read_text().partition("\n")[0]
    width = header.split(",").index("label")
    weights = np.zeros((width, 2))
    weights[0] = [1.0, -1.0]
    (folder / "m.onnx").write_bytes(linear_onnx(weights, [-14.0, 14.0]))
    arguments = (
        *("scan", str(folder / "m.onnx"), "--data", str(CASES / rows)),
        *("--data-config", str(CASES / config), "--check", "fairness"),
        *("--jobs", "1", "--out", str(folder / "out")),
    )
    assert main([*arguments, *more]) == 0
    report = json.loads((folder / "out" / "scan.json").read_text())
    return next(item for item in report["results"] if item["check"] == "fairness")


def test_groups_with_commas_have_figures_of_their_own(tmp_path):
    metrics = scan(tmp_path, "fair_comma.csv", "dc_comma.toml")["metrics"]
    for city in ("London, UK", "London, ON"):
        assert metrics[f"selection_rate/city={city}"]["n"] == 50
    one, two = (
        metrics[f"selection_rate/city=London, {x}"]["value"] for x in ("UK", "ON")
    )
    assert one != two


def test_a_sensitive_column_with_a_comma(tmp_path):
    found = scan(tmp_path, "fair_name.csv", "dc_name.toml")
    assert found["status"] == "done"
    assert "selection_rate_difference/sex, legal" in found["metrics"]


def test_a_bundles_features_are_found_by_name(tmp_path):
    """The same figures whatever the order; any other column is refused by name."""
    figures = []
    for name in ("q.csv", "q_sorted.csv"):
        out = tmp_path / name
        arguments = (
            *("scan", str(trained.bundle()), "--data", str(CASES / name)),
            *("--check", "answers", "--jobs", "1", "--out", str(out)),
        )
        assert main(arguments) == 0
        report = json.loads((out / "scan.json").read_text())
        (result,) = (r for r in report["results"] if r["check"] == "answers")
        figures.append((result["metrics"], report["data"]["sha256"]))
    assert figures[0] == figures[1]
    assert figures[0][0]["clean_accuracy"]["value"] > 0.5


def test_a_bundles_other_columns_are_refused(tmp_path, capsys):
    text = (CASES / "q.csv").read_text().replace("mean radius", "mean raidus", 1)
    (tmp_path / "q.csv").write_text(text)
    arguments = ("--data", str(tmp_path / "q.csv"), "--out", str(tmp_path / "out"))
    assert main(["scan", str(trained.bundle()), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "q.csv: no column 'mean radius'; did you mean 'mean raidus'?" in line
