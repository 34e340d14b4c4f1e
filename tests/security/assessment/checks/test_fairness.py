"""Quality by slice, fairness by group, and explanations, through the real command."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from fairlearn import metrics

from security.assessment.checks import rates
from security.commands import main
from tests.support.scanned import linear_onnx

# Grants where the first column is large; the third column is not read.
WEIGHTS = np.array([[-8.0, 8.0], [0.0, 0.0], [0.0, 0.0]])
BIAS = np.array([4.0, -4.0])


def people(n=400, *, gap=0.0, seed=0):
    """Rows; men's incomes lie ``gap`` higher."""
    rng = np.random.default_rng(seed)
    sex = np.where(np.arange(n) % 2 == 0, "F", "M")
    x = rng.random((n, 3))
    x[:, 0] = np.clip(x[:, 0] * 0.8 + np.where(sex == "M", gap, 0.0), 0, 1)
    frame = pd.DataFrame(x, columns=["income", "age", "other"])
    frame["sex"] = sex
    frame["region"] = np.where(np.arange(n) < 10, "islands", "main")
    noise = rng.normal(0, 0.05, n)
    frame["label"] = np.where(frame["income"] + noise > 0.5, "granted", "rejected")
    return frame


CONFIG = """\
label = "label"
classes = ["rejected", "granted"]
sensitive = ["sex", "region"]
"""


@pytest.fixture
def scan(tmp_path, capsys):
    model = tmp_path / "credit.onnx"
    model.write_bytes(linear_onnx(WEIGHTS, BIAS, tail=("Softmax",)))

    def run(frame, *more, config=CONFIG, code=0):
        frame.to_csv(tmp_path / "rows.csv", index=False)
        (tmp_path / "data.toml").write_text(config)
        arguments = [
            *("scan", str(model), "--data", str(tmp_path / "rows.csv"), "--jobs", "1"),
            *("--data-config", str(tmp_path / "data.toml")),
            *("--out", str(tmp_path / "out"), *more),
        ]
        assert main(arguments) == code
        if code == 2:
            return capsys.readouterr().err
        return json.loads((tmp_path / "out" / "scan.json").read_text())

    return run


def by_x(values):
    return rates.Attribute.of(("x",), {"x": values})


def result(report, name):
    return next(item for item in report["results"] if item["check"] == name)


def rules(report):
    return {(item["rule"], item["where"]) for item in report["findings"]}


def test_a_group_that_is_passed_over_is_found(scan):
    report = scan(people(gap=0.3), "--check", "fairness")
    assert ("fairness-selection", "sex") in rules(report)
    metrics = result(report, "fairness")["metrics"]
    ratio = metrics["selection_rate_ratio/sex"]
    low, high = metrics["selection_rate/sex=F"], metrics["selection_rate/sex=M"]
    assert ratio["value"] == pytest.approx(low["value"] / high["value"])
    assert ratio["low"] <= ratio["value"] <= ratio["high"] < 0.8
    (finding,) = [
        item
        for item in report["findings"]
        if (item["rule"], item["where"]) == ("fairness-selection", "sex")
    ]
    assert finding["message"].startswith("'sex=F' gets the positive class")
    assert finding["message"].endswith("as 'sex=M'")
    stated = result(report, "fairness")["conditions"]
    assert (stated["interval"], stated["difference_interval"]) == ("wilson", "newcombe")


def test_groups_that_are_treated_alike_are_not_accused(scan):
    report = scan(people(gap=0.0), "--check", "fairness")
    assert not any(
        rule.startswith("fairness-s") for rule, where in rules(report) if where == "sex"
    )
    assert ("fairness-gap", "sex/tpr") not in rules(report)


def test_a_small_group_is_named_and_left_out(scan):
    report = scan(people(gap=0.3), "--check", "fairness")
    assert ("fairness-small-group", "region") in rules(report)
    (note,) = [item for item in report["findings"] if item["where"] == "region"]
    assert note["message"].endswith("'region=islands' (10 rows)")
    values = result(report, "fairness")
    assert "selection_rate_difference/region" not in values["metrics"]
    assert "selection_rate/region=islands" not in values["metrics"]
    (table,) = [t for t in values["details"]["tables"] if t["title"] == "By region"]
    assert table["rows"][0][:2] == ["region=islands", 10]


def test_confusion_is_counted_by_group(scan):
    frame = people(gap=0.3)
    values = result(scan(frame, "--check", "fairness"), "fairness")
    (table,) = [
        t
        for t in values["details"]["tables"]
        if t["title"] == "Confusion by sex; positive is granted"
    ]
    given, truth = frame["income"] > 0.5, frame["label"] == "granted"
    for row, group in zip(table["rows"], ("F", "M"), strict=True):
        own = frame["sex"] == group
        kinds = (truth & given, truth & ~given, ~truth & given, ~truth & ~given)
        assert row == [group, *(int((own & kind).sum()) for kind in kinds), own.sum()]


def test_intersections_are_measured(scan):
    metrics = result(scan(people(gap=0.3), "--check", "fairness"), "fairness")[
        "metrics"
    ]
    assert "tpr/region=main,sex=F" in metrics


def test_three_attributes_are_crossed_by_two_and_by_three(scan):
    frame = people()
    frame["old"] = np.where(frame["age"] > 0.5, "yes", "no")
    config = CONFIG.replace('"region"', '"region", "old"')
    found = result(scan(frame, "--check", "fairness", config=config), "fairness")
    assert {
        f"{rate}_{kind}/{names}"
        for rate in ("selection_rate", "tpr", "fpr")
        for kind in ("difference", "ratio")
        for names in ("old,sex", "old,region,sex")
    } <= found["metrics"].keys()


def test_the_values_are_fairlearns():
    rng = np.random.default_rng(0)
    n = 500
    truth, given = rng.random((2, n)) < 0.4
    values = rng.choice(["a", "b", "c"], n)
    found = rates.measure(by_x(values), rates.of_classes(truth, given, None))
    kept = {"sensitive_features": values}
    for rate, function in (
        ("selection_rate", metrics.demographic_parity_difference),
        ("tpr", metrics.equal_opportunity_difference),
    ):
        expected = function(truth.astype(int), given.astype(int), **kept)
        assert found.differences[rate].value == pytest.approx(expected)
    for rate, function in (
        ("selection_rate", metrics.demographic_parity_ratio),
        ("tpr", metrics.equal_opportunity_ratio),
    ):
        expected = function(truth.astype(int), given.astype(int), **kept)
        assert found.ratios[rate].value == pytest.approx(expected)


def test_rates_of_nought_and_one_are_no_certainty():
    # Forty women, all refused; forty men, all granted: each rightly.
    truth = np.arange(80) >= 40
    found = rates.measure(
        by_x(np.where(truth, "m", "f")), rates.of_classes(truth, truth, None)
    )
    for group in found.groups:
        for metric in group.rates.values():
            assert metric.n == 40
            assert metric.value in (0, 1)
            assert metric.high - metric.low > 0.08
    gap, ratio = (
        found.differences["selection_rate"],
        found.ratios["selection_rate"],
    )
    assert (gap.value, gap.high, ratio.value, ratio.low) == (1, 1, 0, 0)
    assert gap.low < 0.9
    assert ratio.high > 0.05


def test_true_positive_rates_rest_on_positives_alone():
    # "b" has 100 rows, of which 10 are positives: nothing is said of its TPR.
    values = np.repeat(["a", "b", "c"], 100)
    truth = np.arange(300) % 100 < np.repeat([60, 10, 40], 100)
    found = rates.measure(by_x(values), rates.of_classes(truth, truth, None))
    counts = {g.name: (g.rates["tpr"].n, g.rates["fpr"].n) for g in found.groups}
    assert counts == {"x=a": (60, 40), "x=b": (10, 90), "x=c": (40, 60)}
    assert found.differences["tpr"].n == 100
    assert found.extremes["tpr"] == ("x=a", "x=c")
    assert found.differences["fpr"].n == 190
    assert [group.enough("tpr") for group in found.groups] == [True, False, True]


def test_a_calibration_that_never_differs_is_no_certainty():
    truth = np.arange(120) % 2 == 0
    values = np.repeat(["a", "b"], 60)
    found = rates.measure(
        by_x(values), rates.of_classes(truth, truth, truth.astype(float))
    )
    for metric in (*(g.rates["calibration"] for g in found.groups),):
        assert metric.value == 0
        assert -0.1 < metric.low < -0.03 < 0.03 < metric.high < 0.1
    assert 0.03 < found.differences["calibration"].high < 0.2


def test_a_group_without_positives_has_no_true_positive_rate():
    truth = np.arange(80) >= 40
    values = np.where(truth, "a", "b")
    found = rates.measure(by_x(values), rates.of_classes(truth, truth, None))
    known = {group.name: set(group.rates) for group in found.groups}
    assert "tpr" not in known["x=b"]
    assert "fpr" not in known["x=a"]
    assert "tpr" not in found.differences


def test_quality_by_slice_and_class(scan):
    report = scan(people(gap=0.3), "--check", "quality")
    metrics = result(report, "quality")["metrics"]
    assert {"accuracy", "auc", "calibration_error", "log_loss"} <= metrics.keys()
    assert {"accuracy/class=granted", "accuracy/sex=F"} <= metrics.keys()
    assert "accuracy/region=islands" not in metrics
    for name in ("calibration_error", "calibration_error/sex=F", "auc/sex=F"):
        metric = metrics[name]
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert metric["low"] < metric["high"]


def test_the_slice_that_is_worst_is_named(scan):
    # Every answer about old people is wrong, and only about them.
    frame = people(n=600)
    old = frame["age"] > 2 / 3
    turned = np.where(frame["label"] == "granted", "rejected", "granted")
    frame["label"] = np.where(old, turned, frame["label"])
    found = result(scan(frame, "--check", "quality"), "quality")
    (table,) = [
        t for t in found["details"]["tables"] if t["title"].startswith("Slices")
    ]
    assert table["rows"][0][0].startswith("age 0.6")


def test_what_a_missing_value_does_is_found(scan):
    report = scan(people(), "--check", "quality")
    metrics = result(report, "quality")["metrics"]
    # One column in three decides; NaN times a weight of zero is NaN all the same.
    assert metrics["missing_failed"]["value"] == 1.0
    assert ("quality-missing", "") in rules(report)
    assert metrics["out_of_range_failed"]["value"] == 0.0


def test_overconfidence_is_found(scan):
    frame = people()
    rng = np.random.default_rng(0)
    frame["label"] = np.where(rng.random(len(frame)) < 0.5, "granted", "rejected")
    assert ("quality-calibration", "") in rules(scan(frame, "--check", "quality"))


def test_the_column_that_decides_is_explained(scan):
    report = scan(people(), "--check", "explanations")
    (table,) = result(report, "explanations")["details"]["tables"]
    assert table["rows"][0][0] == "income"
    metrics = result(report, "explanations")["metrics"]
    # What is never read has no importance, and nothing that an interval could hold.
    assert metrics["importance/age"] == {"value": 0.0, "n": 40}
    assert metrics["importance/income"]["low"] > 0


def test_the_same_seed_gives_the_same_figures(scan):
    checks = ("--check", "fairness", "--check", "quality", "--check", "explanations")
    first, again = (scan(people(120), *checks) for _ in range(2))
    assert first | {"times": 0} == again | {"times": 0}


def test_without_sensitive_columns_fairness_is_skipped_with_a_reason(scan):
    frame = people().drop(columns=["sex", "region"])
    config = "\n".join(CONFIG.splitlines()[:2])
    report = scan(frame, "--check", "fairness", config=config)
    assert result(report, "fairness")["status"] == "skipped"
    assert "sensitive" in result(report, "fairness")["reason"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG.replace('"region"', '"nationality"'), "no sensitive column"),
        (CONFIG.replace("sensitive", "sensitve"), "did you mean 'sensitive'"),
        (CONFIG.replace('"region"', '"region", "income"'), "put them into bands"),
    ],
)
def test_bad_groups_are_refused(scan, config, message):
    assert message in scan(people(), config=config, code=2)
