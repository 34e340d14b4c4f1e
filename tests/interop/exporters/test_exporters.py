"""Models of everybody's exporters: each is right through the server, or says why not.

``make interop`` measures all of them again. Without its environment a few are, with
what the project's own has: torch's two exporters and onnxruntime's quantisers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.interop.exporters import run, table

RESULTS: dict[str, dict[str, Any]] = json.loads(table.RESULTS.read_bytes())
EXPORTED = {name: item for name, item in RESULTS.items() if "not_exported" not in item}
SMALL = (
    "torch-default",
    "torchscript-threshold",
    "torchscript-training",
    "quantised-qdq",
)


def same(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    assert table.summary(got) == table.summary(wanted)
    for name in got.get("parity", {}).keys() & {"label_agreement"}:
        assert got["parity"][name] == pytest.approx(wanted["parity"][name], abs=0.05)


def test_the_page_says_what_was_measured() -> None:
    text = table.PAGE.read_text()
    assert table.page(RESULTS, text) == text


def test_enough_models_come_through_as_they_were() -> None:
    right = [
        name
        for name, item in EXPORTED.items()
        if item.get("served") == "same"
        and "parity" in item
        and not table.differing(item)
    ]
    assert len(right) >= 40
    assert len({item["exporter"] for item in EXPORTED.values()}) >= 10


def test_every_difference_is_explained() -> None:
    found = {name for name, item in EXPORTED.items() if table.differing(item)}
    assert found == set(table.CHANGED)


@pytest.mark.parametrize(
    "name",
    [
        "catboost-onetwo",  # the engine answers other classes
        "catboost-threshold",  # a threshold is lost
        "sklearn-tuned-threshold",
        "catboost-poisson",  # the exponential is left out
        "xgboost-logistic",  # the logistic function is
        "catboost-one-vs-all",  # another function of the scores
        "sklearn-forest-missing",  # missing values go the other way
        "sklearn-isotonic",  # steps that are not those of the fit
        "lightgbm-forest",  # a sum in place of a mean
        "hummingbird-xgboost",  # the base score is left out
        "torchscript-training",  # a module in training mode
        "quantised-qdq",  # fewer bits
    ],
)
def test_each_kind_of_difference_is_found(name: str) -> None:
    assert table.differing(RESULTS[name]) > 10


def test_what_an_exporter_refuses_itself() -> None:
    names = {name for name, item in RESULTS.items() if "not_exported" in item}
    assert {"sklearn-temperature", "sklearn-hist-gradient-boosting"} <= names


def test_every_cell_is_right_or_has_a_reason() -> None:
    for name, item in EXPORTED.items():
        if "refused" in item:
            assert ": " in item["refused"], name
            continue
        assert item["served"] == "same", name
        assert ("parity" in item) != ("not_compared" in item), name
        assert ("scan" in item) != ("not_scanned" in item), name
        # What a scan says of a file that answers as its original did.
        if "scan" in item and not table.differing(item):
            assert table._same_accuracy(item["scan"]) in (None, True), name


@pytest.mark.slow
def test_a_few_again(tmp_path: Path) -> None:
    run.make(sys.executable, tmp_path / "cases", "torch_cases", SMALL)
    results = run.measured(tmp_path, SMALL)
    for name in SMALL:
        same(results[name], RESULTS[name])


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("INTEROP") != "exporters", reason="exporters: run make interop"
)
def test_all_again(tmp_path: Path) -> None:
    results = run.everything(Path(os.environ["INTEROP_PART"]), tmp_path)
    if os.environ.get("RECORD"):
        table.RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        kept = json.loads(table.RESULTS.read_bytes())
        table.PAGE.write_text(table.page(kept, table.PAGE.read_text()))
        return
    assert results.keys() == RESULTS.keys()
    for name, result in results.items():
        same(result, RESULTS[name])
