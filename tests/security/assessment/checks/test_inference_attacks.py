"""Attribute inference, model inversion, ART's membership attacks, and thieves."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from security.assessment.art_library import art
from security.assessment.checks.estimators import bought_answers
from security.assessment.checks.privacy import answers, attributes
from security.assessment.checks.privacy.extraction import _POLICIES
from security.assessment.checks.privacy.left import chances_left
from security.assessment.checks.privacy.thieves import THIEVES, steal
from security.assessment.targets.answers import Answers
from security.commands import main
from security.errors import AssessmentError
from tests.support.scanned import digits, digits_onnx, linear_onnx, save_npz
from tests.support.small_training import write_config

pytestmark = pytest.mark.usefixtures("one_thread")


def scan(tmp_path, model, data, *more):
    (tmp_path / "m.onnx").write_bytes(model)
    arguments = ["scan", str(tmp_path / "m.onnx"), "--data", str(data), "--jobs", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out"), *more]) == 0
    report = json.loads((tmp_path / "out" / "scan.json").read_text())
    return report, report["results"][-1]


def persons(tmp_path, rows=240, seed=0):
    """A column that nothing else tells, and a class that mostly does not either."""
    random = np.random.default_rng(seed)
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "visits", "ill", "label"])
        for _ in range(rows):
            age, visits = random.random(2).round(3)
            writer.writerow([age, visits, random.integers(2), int(age > 0.5)])
    return path


def model(secret: float) -> bytes:
    """Class by age; the score also moves with the secret column."""
    weights = np.array([[-8.0, 8.0], [0.0, 0.0], [-secret, secret]])
    return linear_onnx(weights, [4.0, -4.0], tail=("Softmax",))


def config(tmp_path, text='infer = ["ill"]\nlow = 0\nhigh = 1\n'):
    (tmp_path / "data.toml").write_text(text)
    return ["--data-config", str(tmp_path / "data.toml"), "--check", "attributes"]


def test_answers_that_give_a_column_away_are_found(tmp_path):
    report, result = scan(tmp_path, model(3.0), persons(tmp_path), *config(tmp_path))
    metrics = result["metrics"]
    assert metrics["ill_advantage"]["low"] > 0.2
    assert metrics["ill_without_model"]["value"] < 0.65
    assert metrics["ill_with_model"]["n"] == 240
    (finding,) = report["findings"][:1]
    assert finding["rule"] == "attribute-inferred"
    assert finding["atlas"] == ["AML.T0024.001"]
    assert "ill" in (tmp_path / "out" / "scan.html").read_text()


def test_answers_that_say_nothing_of_a_column_are_not_accused(tmp_path):
    report, result = scan(tmp_path, model(0.0), persons(tmp_path), *config(tmp_path))
    assert "attribute-inferred" not in {item["rule"] for item in report["findings"]}
    assert abs(result["metrics"]["ill_advantage"]["value"]) < 0.15


def test_a_group_that_is_no_feature_is_guessed_too(tmp_path):
    random = np.random.default_rng(0)
    x = random.random((120, 3)).astype(np.float32)
    sex = np.where(x[:, 1] > 0.5, "f", "m")
    np.savez(tmp_path / "rows.npz", x=x, y=(x[:, 0] > 0.5).astype(int), sex=sex)
    text = 'sensitive = ["sex"]\nlow = 0\nhigh = 1\n'
    _, result = scan(
        tmp_path, model(1.0), tmp_path / "rows.npz", *config(tmp_path, text)
    )
    # Everyone reads it off the second column: the model adds nothing.
    assert result["metrics"]["sex_without_model"]["value"] > 0.9
    assert result["metrics"]["sex_advantage"]["value"] < 0.05
    assert result["details"]["tables"][0]["rows"][0][1:3] == ["held out", "f, m"]


def test_rows_that_were_trained_on_are_guessed_too(tmp_path):
    training = write_config(tmp_path)
    random = np.random.default_rng(1)
    held = [f"{age},{random.integers(3)},{int(age > 50)}" for age in range(10, 90)]
    (tmp_path / "held.csv").write_text("\n".join(["age,job,label", *held]))
    own = linear_onnx([[-0.1, 0.1], [0, 0]], [5.0, -5.0], tail=("Softmax",))
    more = ["--training", str(training), *config(tmp_path, 'infer = ["job"]\n')]
    _, result = scan(tmp_path, own, tmp_path / "held.csv", *more)
    metrics = result["metrics"]
    assert metrics["job_advantage"]["n"] == 80
    assert metrics["job_trained_on_advantage"]["n"] > 150
    rows = result["details"]["tables"][0]["rows"]
    assert [row[1:3] for row in rows] == [
        ["held out", "0, 1, 2"],
        ["trained on", "0, 1, 2"],
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("low = 0\nhigh = 1\n", "no column"), ('infer = ["nobody"]\n', "no column")],
)
def test_without_a_column_to_guess_it_is_skipped(tmp_path, text, reason):
    _, result = scan(tmp_path, model(1.0), persons(tmp_path), *config(tmp_path, text))
    assert result["status"] == "skipped"
    assert reason in result["reason"]


def test_a_rare_value_is_not_judged(tmp_path):
    path = persons(tmp_path, rows=80)
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([lines[0], *(f"{r.rsplit(',', 2)[0]},0,{r[-1]}" for r in lines[1:])])
    )
    _, result = scan(tmp_path, model(1.0), path, *config(tmp_path))
    assert result["status"] == "partial"
    assert not result["metrics"]


def test_guesses_are_repeatable():
    random = np.random.default_rng(0)
    others, codes = random.random((60, 2)), random.integers(0, 2, 60)
    scores = np.eye(2)[codes] * 0.6 + 0.2
    labels = random.integers(0, 2, 60)
    first, second = (
        attributes.guesses(others, codes, scores, labels, seed=5) for _ in "ab"
    )
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert first["answers"].mean() > 0.95


def test_digits_are_drawn_from_the_model(tmp_path):
    x, y = digits()[2:]
    data = save_npz(tmp_path / "rows.npz", x[:200], y[:200])
    report, result = scan(tmp_path, digits_onnx(), data, "--check", "inversion")
    metrics = result["metrics"]
    assert result["status"] == "done"
    assert metrics["recognised"]["low"] > result["conditions"]["recognised_by_chance"]
    own, others = (metrics[f"likeness_{n}"] for n in ("own_class", "other_classes"))
    assert own["value"] > others["value"] + 0.1
    assert len(result["details"]["examples"]) == 10
    page = (tmp_path / "out" / "scan.html").read_text()
    assert "What the model has in mind" in page
    assert "mean of rows" in page
    again, _ = scan(tmp_path, digits_onnx(), data, "--check", "inversion")
    assert {**again, "times": 0} == {**report, "times": 0}


def test_a_model_that_says_nothing_gives_no_picture(tmp_path):
    x, y = digits()[2:]
    data = save_npz(tmp_path / "rows.npz", x[:100].reshape(100, 64), y[:100])
    weights = np.random.default_rng(0).normal(size=(64, 10)) * 1e-3
    from tests.support.scanned import node, onnx_model

    nodes = [
        node("Flatten", ["x"], "flat"),
        node("MatMul", ["flat", "w"], "v"),
        node("Softmax", ["v"], "scores", axis=-1),
    ]
    bare = onnx_model(nodes, {"w": weights.astype(np.float32)}, shape=[1, 8, 8])
    report, result = scan(tmp_path, bare, data, "--check", "inversion")
    assert result["metrics"]["recognised"]["value"] < 0.5
    assert "inversion-recognised" not in {item["rule"] for item in report["findings"]}


def test_a_table_has_no_picture(tmp_path):
    _, result = scan(tmp_path, model(1.0), persons(tmp_path), "--check", "inversion")
    assert result["status"] == "skipped"
    assert "no images" in result["reason"]


def line(steep=20.0):
    """Two classes by the first of two columns; answers as ART asks for them."""

    def predict(rows):
        second = 1 / (1 + np.exp(-steep * (rows[:, 0] - 0.5)))
        return np.stack([1 - second, second], axis=1).astype(np.float32)

    return art().BlackBoxClassifierNeuralNetwork(
        predict, input_shape=(2,), nb_classes=2, clip_values=(0.0, 1.0)
    )


def test_by_labels_alone_rows_are_ranked_by_their_distance():
    rows = np.c_[[0.52, 0.6, 0.7, 0.95, 0.9, 0.1], [0.5] * 6].astype(np.float32)
    labels = np.array([1, 1, 1, 1, 0, 0])  # the fifth is wrong: distance 0
    first, second = (
        answers.boundary_scores(line(), rows, labels, steps=4, seed=1) for _ in "ab"
    )
    assert np.array_equal(first, second)
    assert np.argsort(first).tolist() == [4, 0, 1, 2, 5, 3]
    assert first[4] == 0
    assert (first[:4] > np.array([0.02, 0.1, 0.2, 0.45]) - 0.01).all()


def test_the_rule_calls_members_who_are_classified_rightly():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]])
    assert answers.rule_scores(scores, np.array([0, 0, 1])).tolist() == [1, 0, 1]


def test_only_bought_answers_are_given():
    rows = np.random.default_rng(0).random((5, 3))
    estimator = bought_answers(rows, np.eye(5))
    assert estimator.predict(rows[[3, 1]]).argmax(axis=1).tolist() == [3, 1]
    with pytest.raises(AssessmentError, match="without answer"):
        estimator.predict(rows + 1)


@pytest.mark.parametrize("thief", THIEVES)
def test_thieves_copy_what_is_simple(thief):
    random = np.random.default_rng(0)
    questions = random.random((300, 2)).astype(np.float32) * 2 - 1
    judged = random.random((200, 2)).astype(np.float32) * 2 - 1
    truth = (questions[:, 0] > 0).astype(int)
    before = torch.random.get_rng_state()
    first, second = (
        steal(thief, questions, np.eye(2)[truth], judged, seed=3) for _ in "ab"
    )
    assert np.array_equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (first == (judged[:, 0] > 0)).mean() > 0.9


def test_an_output_policy_takes_scores_away():
    chances = np.array([[0.55, 0.33, 0.12], [0.04, 0.05, 0.91]])
    given = Answers(chances, chances.argmax(axis=1))
    left = {
        name: chances_left(policy, given, "probabilities")
        for name, policy in _POLICIES.items()
    }
    assert left["scores"] == pytest.approx(chances)
    assert left["rounded"][1].tolist() == pytest.approx([0, 0, 1], abs=1e-9)
    assert left["top"].sum(axis=1) == pytest.approx([1, 1])
    assert left["top"][0, 1] == left["top"][0, 2]
    assert left["labels"] == pytest.approx(np.array([[1, 0, 0], [0, 0, 1]]), abs=1e-9)


def test_stricter_answers_do_not_help_a_thief(tmp_path):
    random = np.random.default_rng(0)
    x = random.random((160, 3)).astype(np.float32)
    data = save_npz(tmp_path / "rows.npz", x, (x[:, 0] > 0.5).astype(int))
    _, result = scan(tmp_path, model(1.0), data, "--check", "extraction")
    metrics = result["metrics"]
    for policy in ("scores", "rounded", "top", "labels"):
        assert metrics[f"agreement/ranges_{policy}_1000"]["value"] > 0.9
    charts = result["details"]["charts"]
    assert [len(chart["series"]) for chart in charts] == [4, 4]
    assert result["conditions"]["output_policies"] == "scores, rounded, top, labels"
