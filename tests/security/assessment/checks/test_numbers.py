"""Models that predict a number: errors, groups, changes and residuals."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import (
    mean_absolute_error,
    mean_squared_error,
    median_absolute_error,
    r2_score,
)

from models.bundle import report_file
from models.data.held_out import Holdout
from models.sessions import make_session
from security.assessment.checks.numbers.shadows import Trees, trees_of
from security.assessment.engine.run import ScanRequest, run_scan
from security.assessment.plan.options import PROFILES, Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.dataconfig import ColumnRules, DataConfig
from security.commands import main
from tests.conftest import toy_settings
from tests.support.chains import policy
from tests.support.regressors import (
    TRAINED,
    boosted,
    diabetes,
    forest,
    linear_regressor,
    ridge,
    tree_regressor,
)
from tests.support.scanned import STRING, linear_onnx, node, onnx_model, save_npz

POLICY = policy(
    structure=(),
    quality=(
        'conditions.predicts = "number"',
        'metrics.mae = { max = 60, min_n = 100, bound = "interval" }',
        "metrics.rmse = { max = 70 }",
        'metrics.r2 = { min = 0.2, bound = "interval" }',
        "metrics.median_absolute_error = { max = 60 }",
    ),
    fairness=(
        'metrics."mae_ratio/sex" = { min = 0.5, bound = "interval" }',
        'metrics."mae_difference/sex" = { max = 30 }',
    ),
    robustness=(
        'conditions.predicts = "number"',
        'conditions.norm = "Linf"',
        "metrics.radius = { min = 0.01 }",
        "metrics.stable_share = { min = 0.9, min_n = 100 }",
        'metrics.relative_change = { max = 0.5, bound = "interval" }',
    ),
    membership=("metrics.auc = { max = 0.65 }",),
)
CONFIG = """
sensitive = ["sex"]
[[columns]]
name = "sex"
kind = "category"
values = [1, 2]
"""


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch):
    for name in ("quick", "assess"):
        effort = replace(PROFILES[name], square_queries=40, checked_rows=20)
        monkeypatch.setitem(PROFILES, name, effort)


def write_rows(path, x, y, names=None):
    names = names or diabetes()[2]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "progression"])
        writer.writerows([*map(float, row), float(t)] for row, t in zip(x, y))


def results(path):
    return {item["check"]: item for item in json.loads(path.read_text())["results"]}


def scanned(model, x, y, *checks, config=DataConfig(), train=None, **more):
    extras = {} if train is None else {"training data": train}
    rows = Holdout("rows", np.asarray(x, np.float32), np.asarray(y), **more)
    request = ScanRequest(
        TargetSource("onnx", "model.onnx", model),
        rows,
        Options(checks=checks),
        config=config,
        extras=extras,
    )
    report = run_scan(request).report
    return report, {item.name: item for item in report.results}


# The whole way of a model that scikit-learn fitted.


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Keys, rows, and an imported regression that was assessed and signed."""
    home = tmp_path_factory.mktemp("numbers")
    (home / "policy.toml").write_text(POLICY)
    (home / "data.toml").write_text('label = "progression"\n' + CONFIG)
    x, y, names = diabetes()
    write_rows(home / "train.csv", x[:TRAINED], y[:TRAINED])
    write_rows(home / "test.csv", x[TRAINED:], y[TRAINED:] + 0.5)
    columns = [
        {"name": name, "low": float(low), "high": float(high)}
        for name, low, high in zip(names, x.min(axis=0), x.max(axis=0))
    ]
    (home / "columns.json").write_text(json.dumps(columns))
    (home / "model.onnx").write_bytes(
        linear_regressor(ridge().coef_, ridge().intercept_)
    )
    with pytest.MonkeyPatch.context() as patch:
        settings(patch, home)
        assert main(["keygen"]) == 0
        made = [
            *("import", str(home / "model.onnx"), "--out", str(home / "bundle")),
            *("--name", "toy", "--version", "1.0.0"),
            *("--columns", str(home / "columns.json")),
        ]
        assert main(made) == 0
        assert main(assess(home)) == 0
        assert main(["sign", str(home / "bundle"), "--role", "assessor"]) == 0
    return home


def settings(patch, home):
    for name, value in toy_settings(home).items():
        patch.setenv(name, value)
    patch.setenv("SEALGATE_HOME", str(home))


def assess(home):
    return [
        *("assess", str(home / "bundle"), "--data", str(home / "test.csv")),
        *("--train-data", str(home / "train.csv")),
        *("--data-config", str(home / "data.toml")),
    ]


@pytest.fixture
def bundle(home, tmp_path, monkeypatch):
    settings(monkeypatch, home)
    return shutil.copytree(home / "bundle", tmp_path / "bundle")


def evidence(bundle, kind):
    return json.loads((bundle / report_file(kind)).read_text())


def test_a_regression_is_assessed_signed_and_admitted(bundle, capsys):
    x, y, _ = diabetes()
    truth, given = y[TRAINED:] + 0.5, ridge().predict(x[TRAINED:])
    metrics = evidence(bundle, "quality")["metrics"]
    for name, wanted in {
        "mae": mean_absolute_error(truth, given),
        "rmse": mean_squared_error(truth, given) ** 0.5,
        "r2": r2_score(truth, given),
        "median_absolute_error": median_absolute_error(truth, given),
        "mean_error": (given - truth).mean(),
    }.items():
        assert metrics[name]["value"] == pytest.approx(wanted, abs=1e-3), name
        assert metrics[name]["low"] < metrics[name]["value"] < metrics[name]["high"]
    for kind in ("quality", "fairness", "robustness", "membership"):
        assert evidence(bundle, kind)["conditions"]["predicts"] == "number"
    assert main(["admit", str(bundle)]) == 0
    assert main(["verify", str(bundle)]) == 0
    card = (bundle / "MODEL_CARD.md").read_text()
    assert 'pipeline_tag: "tabular-regression"' in card
    assert "predicts a number from a row of a table" in card
    assert "Mean absolute error | 4" in card
    assert "Answers within the tolerance" in card
    assert "accuracy" not in card.lower().replace("accuracy under", "")


def test_what_a_policy_bounds_is_refused_where_it_is_not_met(bundle, home, capsys):
    (home / "strict.toml").write_text(
        POLICY.replace("mae = { max = 60", "mae = { max = 44")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEALGATE_ADMISSION_POLICY", str(home / "strict.toml"))
        assert main(["admit", str(bundle)]) == 1
    assert "quality: mae is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "edit", "words"),
    [
        ("quality", {"rmse": 10.0}, "mae is above rmse"),
        ("quality", {"r2": 1.5}, "r2 is above 1"),
        ("robustness", {"clean_mae": 1e6}, "clean_mae is above attacked_mae"),
        ("membership", None, "what the model predicts is not what the quality"),
    ],
)
def test_reports_that_contradict_themselves_are_refused(
    bundle, capsys, kind, edit, words
):
    path = bundle / report_file(kind)
    report = evidence(bundle, kind)
    if edit is None:
        del report["conditions"]["predicts"]
    for name, value in (edit or {}).items():
        ends = {"low": value, "high": value, "confidence": 0.95}
        report["metrics"][name] = {"value": value, "n": 200, **ends}
    path.write_text(json.dumps(report))
    assert main(["sign", str(bundle), "--role", "assessor"]) == 0
    capsys.readouterr()
    assert main(["admit", str(bundle)]) == 1
    assert words in capsys.readouterr().err


# What the figures must be.


def test_a_linear_models_changes_are_exact():
    weights = np.array([3.0, -2.0, 0.5])
    x = np.random.default_rng(0).uniform(0.2, 0.8, size=(120, 3))
    y = x @ weights + 1 + np.random.default_rng(1).normal(size=120)
    config = DataConfig(low=0.0, high=1.0, tolerance=0.2)
    report, found = scanned(
        linear_regressor(weights, 1.0), x, y, "evasion", config=config
    )
    evasion = found["evasion"]
    assert report.target["decision"] == "predicts: a number (output variable)"
    assert evasion.reliable
    assert evasion.conditions["access"] == "white_box"
    # Within 0.02 of every range, which is 1: the sum of lengths, times that.
    for name, norm, radius in (("linf", 1, 0.02), ("l2", 2, 0.05)):
        wanted = radius * np.linalg.norm(weights, norm)
        metric = evasion.metrics[f"mean_largest_change_{name}"]
        assert metric.value == pytest.approx(wanted, rel=1e-3)
        assert evasion.metrics[f"largest_change_{name}"].value <= wanted * (1 + 1e-4)
    relative = evasion.metrics["relative_change"].value
    assert relative == pytest.approx(0.02 * 5.5 / y.std(), rel=1e-3)
    assert evasion.metrics["stable_share"].value == 1.0
    assert evasion.metrics["tolerance"].value == 0.2
    config = replace(config, tolerance=0.05)
    _, found = scanned(linear_regressor(weights, 1.0), x, y, "evasion", config=config)
    assert found["evasion"].metrics["stable_share"].value == 0.0
    rules = [item.rule for item in found["evasion"].findings]
    assert rules.count("evasion-change") == 2
    assert {"low", "high"} <= vars(found["evasion"].findings[-1].metric).keys()


def test_a_boosted_models_changes_are_near_the_exact_ones():
    model = tree_regressor(boosted())
    x, y, names = diabetes()
    rows, truth = x[TRAINED : TRAINED + 40], y[TRAINED : TRAINED + 40] + 0.5
    # Two columns may move: all regions between thresholds can be tried one by one.
    free = (2, 8)
    config = DataConfig(
        columns=tuple(
            ColumnRules(
                name,
                float(x[:, place].min()),
                float(x[:, place].max()),
                change="both" if place in free else "never",
            )
            for place, name in enumerate(names)
        )
    )
    _, found = scanned(model, rows, truth, "evasion", config=config, columns=names)
    evasion = found["evasion"]
    assert evasion.conditions["access"] == "black_box"
    assert {item.rule for item in evasion.findings} >= {"no-gradient"}
    session, known = make_session(model), []
    for row in rows:
        grid = []
        for place in free:
            low, high = x[:, place].min(), x[:, place].max()
            reach = 0.02 * (high - low)
            ends = max(low, row[place] - reach), min(high, row[place] + reach)
            grid.append(np.linspace(*ends, 60).astype(np.float32))
        asked = np.repeat(row[None], 3600, axis=0)
        asked[:, free[0]], asked[:, free[1]] = (
            item.ravel() for item in np.meshgrid(*grid)
        )
        (answers,) = session.run(None, {"x": asked})
        (own,) = session.run(None, {"x": row[None]})
        known.append(np.abs(answers - own).max())
    rows_found = evasion.details["norms"]["linf"]["rows"]
    changes = np.array([item["change"] for item in rows_found])
    assert changes.mean() >= 0.97 * np.mean(known)
    assert evasion.metrics["mean_largest_change"].value == pytest.approx(changes.mean())


def test_more_radius_never_moves_less():
    x, y, names = diabetes()
    model = tree_regressor(boosted())
    _, found = scanned(model, x[:60], y[:60] + 0.5, "evasion", columns=names)
    curve = found["evasion"].details["norms"]["linf"]["curve"]
    means = [item["mean_largest_change"]["value"] for item in curve]
    assert means == sorted(means)
    assert [item["radius"] for item in curve] == [0.005, 0.01, 0.02, 0.04, 0.08]


def test_a_group_that_is_predicted_worse_is_named():
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 2))
    group = np.where(np.arange(400) % 2, "b", "a")
    spread = np.where(group == "a", 1.0, 3.0)
    shift = np.where(group == "a", 0.0, 4.0)
    y = x @ [1.0, 2.0] + spread * random.normal(size=400) - shift
    _, found = scanned(
        linear_regressor([1.0, 2.0], 0.0), x, y, "fairness", groups={"g": group}
    )
    fairness = found["fairness"]
    errors = np.abs(x @ [1.0, 2.0] - y)
    gap = errors[group == "b"].mean() - errors[group == "a"].mean()
    metric = fairness.metrics["mae_difference/g"]
    assert metric.value == pytest.approx(gap, rel=1e-4)
    assert metric.low < gap < metric.high
    assert metric.n == 400
    messages = [item.message for item in fairness.findings]
    assert any("the error of 'g=b' is" in item for item in messages)
    assert any("about 'g=b' lie 4" in item for item in messages)


def test_equal_groups_are_not_found():
    random = np.random.default_rng(3)
    x = random.normal(size=(400, 2))
    y = x @ [1.0, 2.0] + random.normal(size=400)
    group = np.where(np.arange(400) % 2, "b", "a")
    _, found = scanned(
        linear_regressor([1.0, 2.0], 0.0), x, y, "fairness", groups={"g": group}
    )
    assert not found["fairness"].findings


def test_who_was_learned_by_heart_is_found():
    x, y, names = diabetes()
    deep = boosted().__class__(n_estimators=300, max_depth=8, random_state=0)
    model = tree_regressor(deep.fit(x[:TRAINED], y[:TRAINED]))
    train = Holdout("train", x[:TRAINED], y[:TRAINED] * 1.0, columns=names)
    _, found = scanned(
        model, x[TRAINED:], y[TRAINED:] + 0.0, "membership", train=train, columns=names
    )
    membership = found["membership"]
    assert membership.metrics["auc"].value > 0.95
    assert membership.metrics["auc"] == membership.metrics["residual_auc"]
    assert "membership-exposed" in {item.rule for item in membership.findings}


def test_shadow_forests_find_more_of_a_forest_than_its_residuals():
    x, y, names = diabetes()
    train = Holdout("train", x[:TRAINED], y[:TRAINED] * 1.0, columns=names)
    _, found = scanned(
        tree_regressor(forest()),
        x[TRAINED:],
        y[TRAINED:] + 0.0,
        "membership",
        train=train,
        columns=names,
    )
    membership = found["membership"]
    conditions, metrics = membership.conditions, membership.metrics
    assert conditions["shadows"] == "trees_alike"
    assert conditions["stated_attack"] == "lira"
    assert metrics["lira_auc"].value > metrics["residual_auc"].value + 0.03 > 0.75
    assert metrics["auc"] == metrics["lira_auc"]
    assert "membership-exposed" in {item.rule for item in membership.findings}


def test_trees_of_a_file_are_counted():
    assert trees_of(tree_regressor(boosted())) == Trees(40, 3)
    grown = trees_of(tree_regressor(forest()))
    assert (grown.count, grown.depth > 8) == (60, True)
    assert trees_of(linear_regressor([1.0], 0.0)) is None
    assert trees_of(b"") is None


# How it is known that a number is predicted.

X = np.random.default_rng(0).normal(size=(80, 3))
W = np.array([[1.0], [2.0], [-1.0]])


def test_the_operator_of_a_regressor_says_so():
    counts = np.arange(80) % 50
    report, _ = scanned(linear_regressor(W[:, 0], 0.0), X, counts, "quality")
    assert report.target["decision"].startswith("predicts: a number")
    assert report.target["classes"] == []
    assert report.data["truth"] == {"low": 0.0, "median": 19.5, "high": 49.0}


def test_a_truth_with_fractions_is_no_class():
    report, found = scanned(linear_onnx(W), X, (X @ W)[:, 0] + 0.25, "quality")
    assert report.target["decision"] == "predicts: a number (output scores)"
    assert found["quality"].metrics["mae"].value == pytest.approx(0.25, abs=1e-6)


def scan_command(tmp_path, model, x, y, *more, code=0):
    (tmp_path / "model.onnx").write_bytes(model)
    save_npz(tmp_path / "rows.npz", x.astype(np.float32), y)
    given = [
        *("scan", str(tmp_path / "model.onnx"), "--data", str(tmp_path / "rows.npz")),
        *("--out", str(tmp_path / "out"), "--jobs", "1", "--check", "quality"),
    ]
    assert main([*given, *more]) == code


def test_whole_numbers_of_a_network_have_to_be_stated(tmp_path, capsys):
    counts = np.arange(80) % 50
    scan_command(tmp_path, linear_onnx(W), X, counts, code=2)
    assert "state --decision number" in capsys.readouterr().err
    scan_command(tmp_path, linear_onnx(W), X, counts, "--decision", "number")
    assert "predicts: a number (output scores)" in capsys.readouterr().out
    page = (tmp_path / "out" / "scan.html").read_text()
    assert "predicts: a number" in page
    assert "mean absolute error" in page


def texts():
    nodes = [node("MatMul", ["x", "w"], "v"), node("Cast", ["v"], "scores", to=STRING)]
    return onnx_model(nodes, {"w": W.astype(np.float32)}, shape=[3], out=STRING)


@pytest.mark.parametrize(
    ("model", "how", "words"),
    [
        (linear_onnx(np.eye(3)), None, "3 numbers per row"),
        (texts(), "number", "no numbers to predict"),
        (linear_onnx(np.eye(3)[:, :2]), "scores", "as a class is not a whole number"),
    ],
    ids=["three", "text", "scores"],
)
def test_what_cannot_be_read_as_a_number_is_refused(
    tmp_path, capsys, model, how, words
):
    more = () if how is None else ("--decision", how)
    scan_command(tmp_path, model, X, np.arange(80) + 0.5, *more, code=2)
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_truth_of_text_is_no_number(tmp_path, capsys):
    truth = np.array(["a", "b"] * 40)
    how = ("--decision", "number")
    scan_command(tmp_path, linear_onnx(W), X, truth, *how, code=2)
    assert "the truth is text" in capsys.readouterr().err


def test_checks_about_classes_say_why_they_do_not_apply():
    report, found = scanned(linear_regressor(W[:, 0], 0.0), X, (X @ W)[:, 0] + 0.5)
    for name in ("evasion-cost", "smoothing", "extraction", "trigger", "poisoning"):
        assert found[name].status == "skipped"
        assert "predicts a number" in found[name].reason
    done = {name for name, item in found.items() if item.status == "done"}
    assert done >= {"structure", "answers", "evasion", "quality", "explanations"}
    assert not report.findings or "answer-constant" not in str(report.findings)


def test_one_number_for_everything_is_a_finding():
    y = np.random.default_rng(0).normal(size=80)
    _, found = scanned(linear_regressor([0.0, 0.0, 0.0], 2.0), X, y)
    assert "answer-constant" in {item.rule for item in found["answers"].findings}
    assert "one number" in found["evasion"].reason
    assert found["quality"].metrics["r2"].value <= 0


def test_predictions_of_a_number_need_no_model(tmp_path, capsys):
    random = np.random.default_rng(0)
    truth = random.normal(size=200) * 10
    given = truth + random.normal(size=200)
    lines = ["truth,prediction,sex"]
    lines += [f"{t},{p},{'FM'[i % 2]}" for i, (t, p) in enumerate(zip(truth, given))]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    (tmp_path / "d.toml").write_text('sensitive = ["sex"]\n')
    arguments = [
        *("scan", "--predictions", str(tmp_path / "p.csv")),
        *("--data-config", str(tmp_path / "d.toml"), "--out", str(tmp_path / "o")),
    ]
    assert main(arguments) == 0
    found = results(tmp_path / "o" / "scan.json")
    wanted = mean_absolute_error(truth, given)
    assert found["quality"]["metrics"]["mae"]["value"] == pytest.approx(wanted)
    assert "mae_ratio/sex" in found["fairness"]["metrics"]
    assert found["evasion"]["status"] == "skipped"


def test_two_regressions_are_compared(tmp_path, capsys):
    x, y, _ = diabetes()
    for name, share in (("a", 1.0), ("b", 0.2)):
        weights = share * ridge().coef_
        (tmp_path / f"{name}.onnx").write_bytes(
            linear_regressor(weights, ridge().intercept_)
        )
        write_rows(tmp_path / "rows.csv", x[TRAINED:], y[TRAINED:] + 0.5)
        (tmp_path / "d.toml").write_text('label = "progression"\n')
        assert (
            main(
                [
                    *("scan", str(tmp_path / f"{name}.onnx"), "--check", "quality"),
                    *("--data", str(tmp_path / "rows.csv"), "--jobs", "1"),
                    *("--data-config", str(tmp_path / "d.toml")),
                    *("--out", str(tmp_path / name)),
                ]
            )
            == 0
        )
    capsys.readouterr()
    both = [str(tmp_path / name / "scan.json") for name in ("a", "b")]
    assert main(["compare", *both]) == 1
    out = capsys.readouterr().out
    assert "worse" in out
    assert "mae" in out
    assert main(["compare", *reversed(both)]) == 0


# Checks that only the policy asks for.


def test_what_a_policy_bounds_is_measured_without_being_named(bundle, home, capsys):
    more = POLICY.replace(
        "metrics.relative_change = {",
        'metrics."corruption_rise/noise=0.05" = { max = 50 }\n'
        "metrics.stable_share_l2 = { min = 0.1 }\nmetrics.relative_change = {",
    )
    (home / "more.toml").write_text(more)
    assert "corruption_rise/noise=0.05" not in evidence(bundle, "robustness")["metrics"]
    given = [item.replace(str(home / "bundle"), str(bundle)) for item in assess(home)]
    assert main([*given, "--policy", str(home / "more.toml")]) == 0
    report = evidence(bundle, "robustness")
    assert {"corruption_rise/noise=0.05", "stable_share_l2"} <= report["metrics"].keys()
    assert report["conditions"]["corruption_interval"] == "student, paired"
    assert main(["sign", str(bundle), "--role", "assessor"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEALGATE_ADMISSION_POLICY", str(home / "more.toml"))
        assert main(["admit", str(bundle)]) == 0


def test_what_a_policy_needs_and_cannot_be_measured_is_said(bundle, home, capsys):
    more = POLICY.replace(
        "metrics.relative_change = {",
        "metrics.robust_accuracy_cost = { min = 0.1 }\nmetrics.relative_change = {",
    )
    (home / "cost.toml").write_text(more)
    given = [item.replace(str(home / "bundle"), str(bundle)) for item in assess(home)]
    assert main([*given, "--policy", str(home / "cost.toml")]) == 1
    out = capsys.readouterr().out
    assert "evasion-cost was not measured: the model predicts a number" in out


def test_policy_check_knows_the_names(tmp_path, capsys):
    (tmp_path / "good.toml").write_text(POLICY)
    (tmp_path / "bad.toml").write_text(POLICY.replace("stable_share", "stabel_share"))
    assert main(["policy", "check", str(tmp_path / "good.toml")]) == 0
    assert "note" not in capsys.readouterr().out
    assert main(["policy", "check", str(tmp_path / "bad.toml")]) == 0
    line = (
        "robustness: nothing here measures 'stabel_share'; did you mean 'stable_share'?"
    )
    assert line in capsys.readouterr().out
