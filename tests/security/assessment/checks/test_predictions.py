"""Predictions without a model: `scan --predictions`, through the real command."""

from __future__ import annotations

import json

import fairlearn.metrics
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from security.commands import main

CONFIG = 'classes = ["no", "yes"]\nsensitive = ["sex"]\n'


def people(n=200, seed=0):
    """Truth, a probability that fits it, a decision at 0.3, and two groups."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({"sex": np.where(np.arange(n) % 2, "M", "F")})
    frame["probability"] = random.random(n).round(3)
    yes = random.random(n) < frame["probability"]
    frame["truth"] = np.where(yes, "yes", "no")
    frame["prediction"] = np.where(frame["probability"] > 0.3, "yes", "no")
    frame["id"] = np.arange(n)
    return frame


@pytest.fixture
def scan(tmp_path, capsys):
    def run(frame, *more, config=CONFIG, code=0, name="rows.csv"):
        path = tmp_path / name
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False)
        (tmp_path / "data.toml").write_text(config)
        arguments = [
            *("scan", "--predictions", str(path), "--jobs", "1"),
            *("--data-config", str(tmp_path / "data.toml")),
            *("--out", str(tmp_path / "out"), *more),
        ]
        assert main(arguments) == code
        if code == 2:
            return capsys.readouterr().err
        return json.loads((tmp_path / "out" / "scan.json").read_text())

    return run


def results(report):
    return {item["check"]: item for item in report["results"]}


def test_predictions_are_measured(scan):
    frame = people()
    report = scan(frame)
    found = results(report)
    truth, given = (frame[name] == "yes" for name in ("truth", "prediction"))
    quality, fairness = (found[name]["metrics"] for name in ("quality", "fairness"))
    assert quality["accuracy"]["value"] == (truth == given).mean()
    assert quality["auc"]["value"] == pytest.approx(
        roc_auc_score(truth, frame["probability"])
    )
    assert quality["log_loss"]["value"] == pytest.approx(
        log_loss(truth, frame["probability"])
    )
    groups = {"sensitive_features": frame["sex"]}
    assert fairness["selection_rate_difference/sex"]["value"] == pytest.approx(
        fairlearn.metrics.demographic_parity_difference(truth, given, **groups)
    )
    women = frame["sex"] == "F"
    assert fairness["tpr/sex=F"]["n"] == (women & truth).sum()
    assert fairness["fpr/sex=F"]["n"] == (women & ~truth).sum()
    assert found["quality"]["status"] == found["fairness"]["status"] == "done"
    assert report["target"]["kind"] == "predictions"


def test_what_needs_a_model_says_so(scan):
    found = results(scan(people()))
    assert "structure" not in found
    skipped = [
        item for name, item in found.items() if name not in ("quality", "fairness")
    ]
    assert len(skipped) > 5
    assert {item["status"] for item in skipped} == {"skipped"}
    assert {item["reason"] for item in skipped} == {
        "there are predictions, and no model to ask"
    }


def test_parquet_and_numbers_as_classes(scan):
    frame = people().replace({"yes": 7, "no": -1}).drop(columns=["probability"])
    config = 'sensitive = ["sex"]\n'
    report = scan(frame, config=config, name="rows.parquet")
    assert report["target"]["classes"] == ["-1", "7"]
    metrics = results(report)["quality"]["metrics"]
    assert metrics["accuracy"]["value"] == (frame.truth == frame.prediction).mean()
    # Of labels alone there is neither an area nor a calibration.
    assert "auc" not in metrics
    assert report["target"]["answers"] == "labels"


def test_scores_are_never_taken_for_probabilities(scan):
    frame = people().rename(columns={"probability": "p"})
    report = scan(frame, config=CONFIG + 'scores = ["p"]\n')
    metrics = results(report)["quality"]["metrics"]
    assert report["target"]["answers"] == "scores"
    assert "calibration_error" not in metrics
    assert metrics["auc"]["value"] == pytest.approx(
        roc_auc_score(frame["truth"] == "yes", frame["p"])
    )


def test_a_score_of_the_first_class(scan):
    frame = people()
    usual = results(scan(frame))["quality"]["metrics"]
    frame["probability"] = 1 - frame["probability"]
    config = CONFIG + 'positive = "no"\n'
    turned = results(scan(frame, config=config))["quality"]["metrics"]
    for name in ("auc", "log_loss", "accuracy"):
        assert turned[name]["value"] == pytest.approx(usual[name]["value"])


def test_three_classes_with_a_probability_each(scan):
    random = np.random.default_rng(0)
    chances = random.dirichlet([1, 1, 1], 300).round(4)
    names = np.array(["a", "b", "c"])
    frame = pd.DataFrame(chances, columns=["p_a", "p_b", "p_c"])
    frame["label"] = [names[random.choice(3, p=p / p.sum())] for p in chances]
    frame["said"] = names[chances.argmax(axis=1)]
    config = 'prediction = "said"\nprobabilities = ["p_a", "p_b", "p_c"]\n'
    metrics = results(scan(frame, config=config))["quality"]["metrics"]
    assert metrics["auc/class=b"]["value"] == pytest.approx(
        roc_auc_score(frame["label"] == "b", frame["p_b"])
    )
    halved = frame.assign(p_a=frame["p_a"] / 2)
    assert "do not sum to 1" in scan(halved, config=config, code=2)


FAULTS = {
    "no prediction": (lambda f: f.drop(columns="prediction"), "", "'prediction'"),
    "no truth": (lambda f: f.drop(columns="truth"), "", "'truth' or 'label'"),
    "no answer": (
        lambda f: f.assign(prediction=f.prediction.where(f.index != 3, "")),
        "",
        "column 'prediction', line 5: '' is no class",
    ),
    "two": (lambda f: f.assign(probability=1.5), "", "is no probability"),
    "nan": (
        lambda f: f.assign(probability=f.probability.where(f.index != 0)),
        "",
        "line 2: '' is not a number",
    ),
    "both": (lambda f: f, 'scores = ["id"]\nprobabilities = ["id"]\n', "or are not"),
    "one role": (lambda f: f, 'scores = ["truth"]\n', "one column has two roles"),
    "scores": (lambda f: f, 'classes = ["no", "yes", "?"]\n', "1 scores per row for 3"),
    "class": (lambda f: f, 'classes = ["no", "maybe"]\n', "class 'yes' is none of"),
    "positive": (lambda f: f, 'positive = "Yes"\n', "'Yes' is none of the classes"),
    "group": (lambda f: f, 'sensitive = ["race"]\n', "no sensitive column 'race'"),
    "few": (lambda f: f[:20], "", "20 rows; nothing can be concluded"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(scan, fault):
    change, config, message = FAULTS[fault]
    assert message in scan(change(people()), config=config, code=2)


@pytest.mark.parametrize(
    "more", [("model.onnx",), ("--data", "x.csv"), ("--evidence",), ("--ray",)]
)
def test_what_is_about_a_model_is_refused(scan, more):
    assert "with --predictions there is no model" in scan(people(), *more, code=2)


def test_a_target_without_rows_is_refused(capsys):
    assert main(["scan", "model.onnx"]) == 2
    assert "give TARGET and --data, or --predictions" in capsys.readouterr().err


def test_two_files_that_differ_in_what_was_said_are_two(scan):
    frame = people()
    first = scan(frame)["data"]["sha256"]
    frame.loc[0, "prediction"] = "yes" if frame.prediction[0] == "no" else "no"
    assert scan(frame)["data"]["sha256"] != first
