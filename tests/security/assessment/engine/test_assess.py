"""A bundle's whole assessment: all reports, or an error and none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.bundle import MODEL_FILE, read_bundle, report_file
from models.data import datasets
from models.errors import BundleError
from models.report import Report
from security.assessment.engine.assess import OPTIONS, AssessRequest, assess_bundle
from security.commands import main
from security.errors import AssessmentError
from security.inspection.findings import RULES
from security.training.config_sections import AdversarialConfig
from security.training.ledger import Ledger
from security.training.noise import SeededRandomness
from security.training.run import train_bundle
from tests.support import trained
from tests.support.bundles import WEIGHTS, Keys, write_bundle
from tests.support.scanned import linear_onnx
from tests.support.trained import EXAMPLE

KINDS = ("structure", "quality", "robustness", "membership")
QUICK = dataclasses.replace(OPTIONS, max_rows=80)


def assessed(folder: Path, rows=None, **more):
    train, holdout = rows or trained.rows()
    return assess_bundle(AssessRequest(folder, holdout, train, options=QUICK, **more))


def assess(folder: Path, rows=None, **more):
    return assessed(folder, rows, **more).reports


def written(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "evidence").iterdir()} & {
        *KINDS,
        "fairness",
    }


def refused(folder: Path, message: str, rows=None) -> None:
    with pytest.raises(AssessmentError, match=message):
        assess(folder, rows)
    assert written(folder) == set()


def test_reports(tmp_path):
    folder = trained.copy(tmp_path / "b")
    train, holdout = trained.rows()
    reports = assess_bundle(AssessRequest(folder, holdout, train)).reports
    bundle = read_bundle(folder)
    assert [report.kind for report in reports] == list(KINDS)
    for report in reports:
        assert bundle.report(report.kind) == report
        assert report.subject == bundle.subject
        assert all(check.passed for check in report.checks)
    structure, quality, robustness, membership = reports
    assert {check.id for check in structure.checks} == set(RULES)
    assert structure.metrics["errors"].value == 0
    assert structure.datasets == ()
    assert quality.metrics["accuracy"].value > 0.9
    assert quality.metrics["accuracy"].n == len(holdout)
    assert quality.conditions["covered_by_dp"] is False
    assert quality.conditions["split"] == "holdout"
    assert sum(quality.details["rows_by_class"].values()) == len(holdout)
    assert membership.metrics["auc"].value < 0.65
    used = {item.role: item for item in membership.datasets}
    assert used["holdout"].sha256 == datasets.digest(holdout.features, holdout.labels)
    assert used["train"].sha256 == datasets.digest(train.features, train.labels)
    assert_robust(robustness, len(holdout))


def assert_robust(report: Report, rows: int) -> None:
    """The claim with its assumptions, and the curve that the model card shows."""
    stated, metrics = report.conditions, report.metrics
    assert stated["norm"] == "Linf"
    assert stated["units"] == "scaled_features"
    assert stated["access"] == "white_box"
    assert stated["counted"] == "rechecked_on_onnxruntime"
    assert stated["worst_case"] == "per_row_over_attacks"
    assert {"apgd-ce", "apgd-t", "fab", "fgsm", "square"} <= {
        *stated["attacks"].split(",")
    }
    assert stated["radius"] == metrics["radius"].value == 0.02
    assert metrics["robust_accuracy"].n == rows
    assert 0.7 < metrics["robust_accuracy"].value <= metrics["clean_accuracy"].value
    curve = [point["robust_accuracy"] for point in report.details["curve"]]
    assert curve == sorted(curve, reverse=True)
    assert (report.details["curve"][-1]["radius"], curve[-1]) == (1.0, 0)
    assert metrics["robust_accuracy"].value in curve
    # Evidence is published: it may count rows, and show none.
    assert set(report.details) == {"certificate", "curve"}


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
        "nothing can be concluded",
        (train, holdout.take(np.arange(5))),
    )


def test_no_provenance(tmp_path):
    folder = trained.copy(tmp_path / "b")
    (folder / "evidence/provenance.json").unlink()
    with pytest.raises(BundleError, match="provenance report is missing"):
        assess(folder)
    assert written(folder) == set()


@pytest.mark.slow
def but_progress(stderr):
    """Lines that say something else than how far a slow machine has come."""
    return [line for line in stderr.splitlines() if " s so far" not in line]


def test_commands(security, tmp_path):
    folder = tmp_path / "bundle"
    result = security("train", str(EXAMPLE), "--out", str(folder))
    assert (result.returncode, but_progress(result.stderr)) == (0, [])
    assert (
        "epsilon 3.00 at delta 1.2e-03 (PRV, Poisson q=0.5, 100 steps" in result.stdout
    )
    privacy = Report.from_json((folder / "evidence/privacy.json").read_bytes())
    assert privacy.conditions["noise_generator"] == "os_urandom"
    result = security("assess", str(folder), "--config", str(EXAMPLE))
    assert (result.returncode, but_progress(result.stderr)) == (0, [])
    said = [line.split()[0] for line in result.stdout.splitlines()]
    # What the noise of a training left to find comes before, the policy's view after.
    start = said.index(KINDS[0])
    assert "error" not in said[:start]
    figures = said[start:]
    assert figures[: len(KINDS) + 1] == [*KINDS, "policy"]
    assert written(folder) == set(KINDS)
    result = security("train", str(EXAMPLE), "--out", str(folder))
    assert result.returncode == 1
    assert result.stderr == f"refused: {folder} exists already\n"


def test_command_errors(security, tmp_path):
    (tmp_path / "c.toml").write_text("[modle]\n")
    result = security("train", str(tmp_path / "c.toml"), "--out", str(tmp_path / "b"))
    assert result.returncode == 2
    assert result.stderr == (
        "error: c.toml:1: unknown key 'modle'; did you mean 'model'? (and 3 more)\n"
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
    made = assessed(hardened, beside=trained.bundle())
    report = made.reports[2]
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
    assert "adversarial training pgd, epsilon" in made.lines["trade-off"]
    other = trained.rewrite_provenance(trained.copy(tmp_path / "other"), ())
    with pytest.raises(AssessmentError, match="trained on other rows"):
        assess(hardened, beside=other)


def test_missing_values_are_attacked_too(tmp_path):
    train, holdout = trained.rows()
    features = holdout.features.copy()
    features[:, 3] = np.nan
    holed = dataclasses.replace(holdout, features=features)
    robustness = assess(trained.copy(tmp_path / "b"), (train, holed))[2]
    assert [check.id for check in robustness.checks if not check.passed] == []
    assert robustness.conditions["access"] == "white_box"


# Models that were made elsewhere.

COLUMNS = "name,low,high\na,-4,4\nb,-4,4\nc,-4,4\n"
GROUPS = 'positive = "1"\nsensitive = ["sex"]\n'


@pytest.fixture
def imported(tmp_path, capsys):
    """A bundle by `import`, rows of a file with groups, and the command."""
    (tmp_path / "m.onnx").write_bytes(linear_onnx(WEIGHTS, tail=("Softmax",)))
    (tmp_path / "columns.csv").write_text(COLUMNS)
    (tmp_path / "groups.toml").write_text(GROUPS)
    generator = np.random.default_rng(0)
    for name, count in (("holdout", 120), ("train", 90)):
        x = generator.normal(size=(count, 3)).astype(np.float32)
        y = np.argmax(x @ WEIGHTS, axis=1)
        sex = np.where(generator.random(count) < 0.5, "f", "m")
        np.savez(tmp_path / f"{name}.npz", x=x, y=y, sex=sex)
    folder = str(tmp_path / "bundle")
    arguments = ("import", str(tmp_path / "m.onnx"), "--name", "theirs")
    columns = ("--columns", str(tmp_path / "columns.csv"))
    more = ("--version", "1.0.0", "--out", folder)
    assert main([*arguments, *columns, *more]) == 0

    def run(*more: str) -> int:
        data = ("--data", str(tmp_path / "holdout.npz"))
        return main(["assess", folder, *data, *more])

    capsys.readouterr()
    return run


def test_an_imported_model_is_assessed_on_rows_of_a_file(imported, tmp_path, capsys):
    assert imported() == 0
    told = capsys.readouterr().out.splitlines()
    # Findings come first, each with what to do; then figures.
    kinds = [line[:12].strip() for line in told]
    first = kinds.index("structure")
    assert {*kinds[:first]} <= {"warning", "note", ""}
    assert "Calibrate" in "".join(told[:first])
    assert kinds[first : first + 4] == ["structure", "quality", "robustness", "policy"]
    assert "privacy     MISSES the report: there is none" in "\n".join(told)
    bundle = read_bundle(tmp_path / "bundle")
    assert written(tmp_path / "bundle") == {"structure", "quality", "robustness"}
    quality, robustness = (bundle.report(kind) for kind in ("quality", "robustness"))
    assert quality.metrics["accuracy"].value == 1
    # Nobody has compared the rows with those that it was trained on.
    assert quality.conditions["split"] == "as_given"
    assert robustness.conditions["ranges"] == "manifest"
    rows = np.load(tmp_path / "holdout.npz")
    (used,) = robustness.datasets
    assert used.sha256 == datasets.digest(rows["x"], rows["y"])


def test_groups_and_training_rows_of_an_imported_model(imported, tmp_path):
    groups = ("--data-config", str(tmp_path / "groups.toml"))
    known = ("--train-data", str(tmp_path / "train.npz"))
    assert imported(*groups, *known) == 0
    folder = tmp_path / "bundle"
    assert written(folder) == {*KINDS, "fairness"}
    bundle = read_bundle(folder)
    fairness, membership = (bundle.report(kind) for kind in ("fairness", "membership"))
    assert fairness.metrics["selection_rate_difference/sex"].n == 120
    assert membership.details["loss"] == {"members": 90, "others": 120}
    assert bundle.report("quality").conditions["split"] == "holdout"


def test_held_out_rows_of_a_file_that_were_trained_on(imported, tmp_path, capsys):
    assert imported("--train-data", str(tmp_path / "holdout.npz")) == 2
    assert "120 held-out rows are among" in capsys.readouterr().err
    assert written(tmp_path / "bundle") == set()


def test_a_model_with_one_answer_has_no_robustness_to_state(tmp_path, capsys):
    zeros = np.zeros((3, 2), np.float32)
    folder = write_bundle(tmp_path / "b", Keys.generate(), admit=False, weights=zeros)
    (folder / report_file("quality")).unlink()
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    np.savez(tmp_path / "r.npz", x=x, y=np.arange(60) % 2)
    assert main(["assess", str(folder), "--data", str(tmp_path / "r.npz")]) == 1
    assert "robustness was not measured: the model gives every row" in (
        capsys.readouterr().out
    )
    assert written(folder) == {"structure", "quality"}


def test_a_scan_writes_every_kind_that_assess_writes(imported, tmp_path):
    out, folder = str(tmp_path / "out"), tmp_path / "bundle"
    more = ("--data", str(tmp_path / "holdout.npz"), "--evidence", "--jobs", "1")
    more += ("--data-config", str(tmp_path / "groups.toml"))
    more += ("--train-data", str(tmp_path / "train.npz"), "--max-rows", "60")
    checks = [f"--check={name}" for name in ("evasion", "fairness", "membership")]
    checks.append("--check=quality")
    assert main(["scan", str(folder), "--out", out, *more, *checks]) == 0
    assert written(folder) == {*KINDS, "fairness"}
    scanned = read_bundle(folder).report("structure")
    assert imported() == 0
    assessed = read_bundle(folder).report("structure")
    assert (scanned.metrics, scanned.checks) == (assessed.metrics, assessed.checks)


def test_rows_and_a_configuration_exclude_each_other(imported, capsys):
    with pytest.raises(SystemExit):
        imported("--config", str(EXAMPLE))
    assert "not allowed with" in capsys.readouterr().err
