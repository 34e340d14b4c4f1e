"""A bundle's whole assessment: all reports, or an error and none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.bundle import MODEL_FILE, read_bundle
from models.data import datasets
from models.errors import BundleError
from models.report import Report
from security.assessment.robustness import EvasionPlan
from security.assessment.run import assess_bundle
from security.errors import AssessmentError
from security.inspection.findings import RULES
from security.training.config import AdversarialConfig
from security.training.ledger import Ledger
from security.training.noise import SeededRandomness
from security.training.run import train_bundle
from tests.support import trained
from tests.support.trained import EXAMPLE

KINDS = ("structure", "quality", "robustness", "membership")
QUICK = EvasionPlan(curve=(0.05,), iterations=10, restarts=1)


def assess(folder: Path, rows=None, plan=QUICK):
    return assess_bundle(folder, *(rows or trained.rows()), lambda *_: None, plan=plan)


def written(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "evidence").iterdir()} & set(KINDS)


def refused(folder: Path, message: str, rows=None) -> None:
    with pytest.raises(AssessmentError, match=message):
        assess(folder, rows)
    assert written(folder) == set()


@pytest.mark.slow
def test_reports(tmp_path):
    folder = trained.copy(tmp_path / "b")
    reports = assess(folder)
    bundle = read_bundle(folder)
    _, holdout = trained.rows()
    assert [report.kind for report in reports] == list(KINDS)
    for report in reports:
        assert bundle.report(report.kind) == report
        assert report.subject == bundle.subject
        assert all(check.passed for check in report.checks)
    structure, quality, robustness, membership = reports
    assert {check.id for check in structure.checks} == set(RULES)
    assert structure.metrics["errors"].value == 0
    assert quality.metrics["accuracy"].value > 0.9
    assert quality.conditions["covered_by_dp"] is False
    assert robustness.metrics["robust_accuracy"].value > 0.7
    assert membership.metrics["auc"].value < 0.65
    used = {item.role: item for item in membership.datasets}
    assert used["holdout"].sha256 == datasets.digest(holdout.features, holdout.labels)


@pytest.mark.slow
def test_again_gives_the_same_numbers(tmp_path):
    folder = trained.copy(tmp_path / "b")
    for first, second in zip(assess(folder), assess(folder), strict=True):
        assert first.metrics == second.metrics
        assert first.checks == second.checks


def test_structure_comes_first(tmp_path):
    folder = trained.copy(tmp_path / "b")
    model = onnx.load_from_string((folder / MODEL_FILE).read_bytes())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    (folder / MODEL_FILE).write_bytes(model.SerializeToString())
    # The provenance report is about another model now too; structure is told first.
    refused(folder, "structure refuses the model: external-data")


def test_another_model(tmp_path):
    folder = trained.copy(tmp_path / "b")
    model = onnx.load_from_string((folder / MODEL_FILE).read_bytes())
    model.producer_name = "other"
    (folder / MODEL_FILE).write_bytes(model.SerializeToString())
    refused(folder, "provenance report is about another model")


def test_other_training_rows(tmp_path):
    train, holdout = trained.rows()
    folder = trained.copy(tmp_path / "b")
    refused(folder, "trained on other rows", (train.take(np.arange(300)), holdout))


def test_training_rows_that_nobody_stated(tmp_path):
    folder = trained.rewrite_provenance(trained.copy(tmp_path / "b"), ())
    refused(folder, "trained on other rows")


def test_held_out_rows_that_were_trained_on(tmp_path):
    train, holdout = trained.rows()
    mixed = dataclasses.replace(
        holdout,
        features=np.concatenate([holdout.features, train.features[:2]]),
        labels=np.concatenate([holdout.labels, train.labels[:2]]),
    )
    refused(trained.copy(tmp_path / "b"), "2 held-out rows are among", (train, mixed))


def test_columns_that_do_not_fit(tmp_path):
    train, holdout = trained.rows()
    wider = dataclasses.replace(holdout.columns[0], high=41.0)
    other = dataclasses.replace(holdout, columns=(wider, *holdout.columns[1:]))
    refused(trained.copy(tmp_path / "b"), "columns and ranges", (train, other))


def test_classes_that_do_not_fit(tmp_path):
    train, holdout = trained.rows()
    other = dataclasses.replace(holdout, classes=("benign", "malignant"))
    refused(trained.copy(tmp_path / "b"), "model's classes", (train, other))


def test_too_few_rows_to_conclude(tmp_path):
    train, holdout = trained.rows()
    refused(
        trained.copy(tmp_path / "b"),
        "quality needs",
        (train, holdout.take(np.arange(5))),
    )


def test_no_provenance(tmp_path):
    folder = trained.copy(tmp_path / "b")
    (folder / "evidence/provenance.json").unlink()
    with pytest.raises(BundleError, match="provenance report is missing"):
        assess(folder)
    assert written(folder) == set()


@pytest.mark.slow
def test_commands(security, tmp_path):
    folder = tmp_path / "bundle"
    result = security("train", str(EXAMPLE), "--out", str(folder))
    assert (result.returncode, result.stderr) == (0, "")
    assert (
        "epsilon 3.00 at delta 1.2e-03 (PRV, Poisson q=0.5, 100 steps" in result.stdout
    )
    privacy = Report.from_json((folder / "evidence/privacy.json").read_bytes())
    assert privacy.conditions["noise_generator"] == "os_urandom"
    result = security("assess", str(folder), "--config", str(EXAMPLE))
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(KINDS)
    assert written(folder) == set(KINDS)
    result = security("train", str(EXAMPLE), "--out", str(folder))
    assert result.returncode == 1
    assert result.stderr == f"refused: {folder} exists already\n"


def test_command_errors(security, tmp_path):
    (tmp_path / "c.toml").write_text("[modle]\n")
    result = security("train", str(tmp_path / "c.toml"), "--out", str(tmp_path / "b"))
    assert result.returncode == 2
    assert result.stderr == (
        "error: c.toml:1: unknown key 'modle'; did you mean 'model'?\n"
    )
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_what_adversarial_training_costs_stands_in_the_report(tmp_path):
    plain = trained.config()
    config = dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, version="2.0.0"),
        privacy=dataclasses.replace(plain.privacy, steps=20),
        adversarial=AdversarialConfig("pgd", radius=0.02, steps=2),
    )
    hardened = train_bundle(
        config,
        tmp_path / "hardened",
        lambda *_: None,
        ledger=Ledger(tmp_path / "ledger"),
        randomness=SeededRandomness(3),
    )
    told = []
    report = assess_bundle(
        hardened,
        *trained.rows(),
        lambda *stage: told.append(stage),
        plan=QUICK,
        beside=trained.bundle(),
    )[2]
    stated = report.conditions
    assert report == read_bundle(hardened).report("robustness")
    assert (stated["adversarial_training"], stated["beside_adversarial_training"]) == (
        *("pgd", "none"),
    )
    assert stated["beside"] == "breast-cancer:1.0.0"
    assert 0 < stated["epsilon"] <= 3
    assert 0 < stated["beside_epsilon"] <= 3
    alone = assess(trained.copy(tmp_path / "b"))[2]
    for name in ("clean_accuracy", "robust_accuracy"):
        assert report.metrics[f"beside_{name}"] == alone.metrics[name]
    (line,) = [stage[2] for stage in told if stage[0] == "trade-off"]
    assert "adversarial training pgd, epsilon" in line
    other = trained.rewrite_provenance(trained.copy(tmp_path / "other"), ())
    with pytest.raises(AssessmentError, match="trained on other rows"):
        assess_bundle(hardened, *trained.rows(), lambda *_: None, beside=other)
