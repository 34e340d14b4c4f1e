"""What a model decides is read once, of whatever form, and never from rows' values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models.data.held_out import Holdout
from security.assessment.engine.run import ScanRequest, run_scan
from security.assessment.plan.context import prepare
from security.assessment.plan.options import PROFILES, Options
from security.assessment.plan.rows import class_indices
from security.assessment.plan.source import TargetSource
from security.assessment.targets.decision import Stated, parse_decision, settle
from security.assessment.targets.declared import declared_outputs
from security.errors import AssessmentError
from tests.support.scanned import DOUBLE, FLOAT, INT64, linear_onnx, node, onnx_model
from tests.support.servers import ROOT

CASES = ROOT.parent / "shared" / "cases" / "models"
STRING, BOOL = TensorProto.STRING, TensorProto.BOOL
ML = [("ai.onnx.ml", 3)]


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch):
    effort = replace(PROFILES["quick"], square_queries=60, norms=("linf",))
    monkeypatch.setitem(PROFILES, "quick", effort)


def scanned(model, x, y, *checks, **more):
    options = Options(checks=checks or ("answers", "quality"), **more)
    source = TargetSource("onnx", "model.onnx", model)
    report = run_scan(ScanRequest(source, Holdout("rows", x, y), options)).report
    return report, {item.name: item for item in report.results}


def job_of(model, x, y, **more):
    source = TargetSource("onnx", "model.onnx", model, classes=more.pop("classes", ()))
    return prepare(source, Holdout("rows", x, np.asarray(y)), Options(**more))[0]


def case(model, rows):
    if not (CASES / f"{model}.onnx").exists():
        pytest.skip("the shared cases are not here")
    data = np.load(CASES / f"{rows}.npz")
    return (CASES / f"{model}.onnx").read_bytes(), data["x"], data["y"]


# Models of the test's own: a line through 40 rows of two numbers.

X = np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32)
LOGIT = (X @ np.array([2.0, -1.0]) + 0.25).astype(np.float64)
SECOND = LOGIT > 0
W = np.array([[2.0], [-1.0]], np.float32)


def classifier(classes, post="LOGISTIC", outputs=("label", "p"), more=(), **stored):
    """A linear classifier: its label, and probabilities or scores."""
    texts = isinstance(classes[0], str)
    name = "classlabels_strings" if texts else "classlabels_ints"
    made = onnx.helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", "p"],
        domain="ai.onnx.ml",
        coefficients=[-2.0, 1.0, 2.0, -1.0],
        intercepts=[-0.25, 0.25],
        multi_class=0,
        post_transform=post,
        **{name: classes},
    )
    kinds = {"label": STRING if texts else INT64, "p": FLOAT}
    return onnx_model(
        [made, *more],
        stored,
        shape=[2],
        outputs={item: kinds.get(item, INT64) for item in outputs},
        domains=ML,
        rank=None,
    )


def one_score(*tail, start=("Gemm",)):
    """One score per row, by the operators that are named."""
    nodes = [node(start[0], ["x", "w", "b"], "v0")]
    nodes += [node(op, [f"v{i}"], f"v{i + 1}") for i, op in enumerate(tail)]
    nodes.append(node("Identity", [f"v{len(tail)}"], "scores"))
    return onnx_model(nodes, {"w": W, "b": np.array([0.25], np.float32)}, shape=[2])


@pytest.mark.parametrize(
    ("model", "rows", "classes"),
    [
        ("lrd_onetwo", "lr_onetwo", ("1", "2")),
        ("lrd_str", "lr_str", ("no", "yes")),
    ],
)
def test_shared_classes_of_any_name_are_all_scored(model, rows, classes):
    data, x, y = case(model, rows)
    report, results = scanned(data, x, y)
    figures = results["quality"].metrics
    assert (figures["accuracy"].value, figures["accuracy"].n) == (0.94, 200)
    for name in classes:
        own = y.astype(str) == name
        assert figures[f"accuracy/class={name}"].n == own.sum()
    parts = [figures[f"accuracy/class={name}"] for name in classes]
    assert sum(part.value * part.n for part in parts) == pytest.approx(188)
    read = "decides by: label output; scores: probabilities of classes"
    assert report.target["decision"] == f"{read} {', '.join(classes)}"


def test_shared_machine_whose_scores_are_the_wrong_way_round():
    _, results = scanned(*case("svc_bin", "svc_bin"))
    assert results["quality"].metrics["auc"].value == pytest.approx(0.91, abs=0.005)
    assert results["quality"].metrics["accuracy"].value == 0.8


def test_shared_single_score_is_read_by_what_comes():
    report, results = scanned(*case("ridge_bin", "ridge_bin"))
    assert results["quality"].metrics["accuracy"].value == 0.84
    assert results["quality"].metrics["auc"].value > 0.9
    (note,) = [item for item in report.findings if item.rule == "answer-reading"]
    assert "declared with 2 columns, 1 come" in note.message


def test_shared_label_with_a_threshold_of_its_own_breaks_where_it_decides():
    data, x, y = case("threshold_label", "threshold_rows")
    report, results = scanned(data, x, y, "answers", "evasion", radius_linf=0.1)
    # 12 x - 6 is the logit: decided above ln(1/9), by the first column alone.
    edge = 0.5 + np.log(1 / 9) / 12
    exact = np.mean(np.abs(x[:, 0].astype(np.float64) - edge) > 0.1)
    evasion = results["evasion"]
    assert evasion.metrics["robust_accuracy"].value == pytest.approx(exact)
    assert evasion.metrics["clean_accuracy"].value == 1.0
    assert "no-gradient" in {item.rule for item in report.findings}
    assert "threshold of their own" in str(results["answers"].findings)


@pytest.mark.parametrize(
    ("classes", "truth"),
    [
        ([-1, 1], np.where(SECOND, 1, -1)),
        ([5, 70], np.where(SECOND, 70, 5)),
        (["b", "a"], np.where(SECOND, "a", "b")),
        ([3, 2], np.where(SECOND, 2, 3)),
    ],
)
@pytest.mark.parametrize("post", ["LOGISTIC", "NONE"])
def test_classes_are_those_that_the_graph_lists(classes, truth, post):
    job = job_of(classifier(classes, post), X, truth)
    assert job.reading.classes == tuple(map(str, classes))
    assert (job.clean.labels == job.labels).all()
    assert (job.clean.scores.argmax(axis=1) == job.labels).all()
    assert job.reading.form == ("scores" if post == "NONE" else "probabilities")


def test_names_for_people_stand_for_the_numbers_of_a_graph():
    model = classifier([1, 2])
    for truth in (np.where(SECOND, 2, 1), np.where(SECOND, "yes", "no")):
        job = job_of(model, X, truth, classes=("no", "yes"))
        assert job.reading.classes == ("no", "yes")
        assert (job.clean.labels == job.labels).all()


def test_names_against_the_graph_are_refused():
    with pytest.raises(AssessmentError, match="the model's own are 1, 2"):
        job_of(classifier([1, 2]), X, np.where(SECOND, 2, 1), classes=("2", "1"))


def test_boolean_labels():
    made = [node("Gemm", ["x", "w", "b"], "v"), node("Greater", ["v", "o"], "label")]
    stored = {"w": W, "b": np.array([0.25], np.float32), "o": np.zeros(1, np.float32)}
    model = onnx_model(made, stored, shape=[2], outputs={"label": BOOL})
    for truth in (SECOND, SECOND.astype(int), np.where(SECOND, "True", "False")):
        labels = np.asarray(truth)
        labels = labels.astype(str) if labels.dtype.kind == "b" else labels
        job = job_of(model, X, labels)
        assert job.reading.form == "labels"
        assert (job.clean.labels == job.labels).all()


def test_labels_alone_are_what_they_are_called():
    # Nothing lists these: a distance to the classes -3 and 4, made by arithmetic.
    made = [
        node("Gemm", ["x", "w", "b"], "v"),
        node("Sign", ["v"], "s"),
        node("Mul", ["s", "half"], "h"),
        node("Add", ["h", "mid"], "f"),
        node("Cast", ["f"], "label", to=INT64),
    ]
    stored = {"w": W, "b": np.array([0.25], np.float32)}
    stored |= {"half": np.float32([3.5]), "mid": np.float32([0.5])}
    model = onnx_model(made, stored, shape=[2], outputs={"label": INT64})
    job = job_of(model, X, np.where(SECOND, 4, -3))
    assert job.reading.classes == ("-3", "4")
    assert (job.clean.labels == job.labels).all()


def test_one_probability_has_true_figures():
    model = one_score("Sigmoid")
    report, results = scanned(model, X, SECOND.astype(int))
    chance = 1 / (1 + np.exp(-LOGIT))
    loss = -np.log(np.where(SECOND, chance, 1 - chance)).mean()
    assert results["quality"].metrics["log_loss"].value == pytest.approx(loss, abs=1e-5)
    assert "probability of class 1 above 0.5" in report.target["decision"]


def test_one_sum_of_products_is_a_logit():
    # All of these would pass for probabilities, by their values.
    x = X[(LOGIT > 0.02) & (LOGIT < 0.98)]
    job = job_of(one_score(), np.repeat(x, 40, axis=0)[:60], [0, 1] * 30)
    assert (job.reading.form, job.reading.threshold) == ("scores", 0.0)
    assert (job.clean.labels == 1).all()


def test_one_score_that_may_be_anything_has_to_be_stated():
    model = one_score("Exp", "Neg")
    with pytest.raises(AssessmentError, match="state --decision"):
        job_of(model, X, SECOND.astype(int))
    job = job_of(one_score("Exp"), X, SECOND.astype(int), decision="score>1")
    assert (job.clean.labels == job.labels).all()
    with pytest.raises(AssessmentError, match="no probabilities"):
        job_of(one_score("Exp"), X, SECOND.astype(int), decision="probability>0.5")


@pytest.mark.parametrize("tail", [(), ("Sigmoid",), ("Softmax",)])
def test_a_stated_threshold_decides_everywhere(tail):
    stated = "probability>0.8" if tail else "score>1.3862943"
    truth = (np.log(4) < LOGIT).astype(int)
    checks = ("quality", "evasion")
    options = {"decision": stated, "radius_linf": 0.05}
    # Two columns whose difference is the same logit: half of it each way.
    both = linear_onnx(np.concatenate([-W, W], 1) / 2, [-0.125, 0.125], tail=tail)
    model = both if "Softmax" in tail else one_score(*tail)
    _, results = scanned(model, X, truth, *checks, **options)
    assert results["quality"].metrics["accuracy"].value == 1.0
    assert results["evasion"].conditions["access"] == "white_box"
    reach = 0.05 * np.abs(W[:, 0] * np.ptp(X, axis=0)).sum()
    far = np.abs(LOGIT - np.log(4)) > reach
    found = results["evasion"].metrics["robust_accuracy"].value
    # Ranges end at the furthest rows, so that these cannot go as far.
    assert far.mean() - 1e-9 <= found <= far.mean() + 0.04


def test_two_probabilities_take_a_threshold_and_labels_can_be_passed_over():
    model = classifier([1, 2])
    truth = np.where(np.log(0.1 / 0.9) < LOGIT, 2, 1)
    job = job_of(model, X, truth, decision="probability>0.1")
    assert job.reading.label_output is None
    assert (job.clean.labels == job.labels).all()
    assert (job.clean.wrong(1 - job.labels) == True).all()  # noqa: E712  (an array)
    with pytest.raises(AssessmentError, match="no label output"):
        job_of(one_score(), X, SECOND.astype(int), decision="label")
    with pytest.raises(AssessmentError, match="for one score"):
        job_of(model, X, truth, decision="score>0.1")


@pytest.mark.parametrize(
    "text", ["", "p>0.5", "probability>1", "probability>nan", "score>1e9", "label>1"]
)
def test_decisions_that_say_nothing_are_refused(text):
    with pytest.raises(AssessmentError, match="--decision"):
        parse_decision(text)


def test_an_engine_that_names_other_classes_than_its_graph_is_found():
    # onnxruntime's trees answer 0 and 1 for classes of other numbers, in some exports.
    declared = declared_outputs(classifier([1, 2]))
    x = {"label": SECOND.astype(np.int64), "p": np.eye(2)[SECOND.astype(int)]}
    with pytest.raises(AssessmentError, match=r"answers '0'.*--decision scores"):
        settle(x, Stated(data=("1", "2")), declared)
    passed = settle(x, Stated(data=("1", "2"), decision="scores"), declared)
    assert passed.classes == ("1", "2")


def outputs_of(labels, scores):
    return {"label": np.asarray(labels), "scores": np.asarray(scores, float)}


def test_scores_that_contradict_labels_in_no_order_are_not_read():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]] * 10)
    reading = settle(outputs_of([0, 0, 1, 1] * 10, scores), Stated(data=("0", "1")))
    assert (reading.form, reading.output) == ("labels", "label")
    assert "20 of 40 rows" in reading.notes[0]
    # The graph says nothing of an endpoint: scores the wrong way round are that, too.
    turned = settle(outputs_of([1, 0, 1, 0] * 10, scores), Stated(data=("0", "1")))
    assert turned.form == "labels"


def test_a_label_that_is_no_class_is_refused_and_asks_for_the_classes():
    scores = np.eye(3)[[0, 1, 2] * 10]
    with pytest.raises(AssessmentError, match="which is which cannot be known"):
        settle(outputs_of([10, 20, 10] * 10, scores), Stated(data=("10", "20")))
    names = Stated(("10", "20", "30"), ("10", "20"))
    assert settle(outputs_of([10, 20, 30] * 10, scores), names).classes[2] == "30"
    with pytest.raises(AssessmentError, match="answers '99'"):
        settle(outputs_of([10, 20, 99] * 10, scores), names)


def test_data_that_counts_otherwise_is_not_shifted():
    zero_based = Holdout("rows", X, np.array([0, 1] * 40))
    with pytest.raises(AssessmentError, match="class '0' is none"):
        class_indices(zero_based, ("1", "2"))
    named = replace(zero_based, classes=("2", "1"))
    assert class_indices(named, ("1", "2"))[:2].tolist() == [1, 0]


def test_a_graph_of_more_paths_than_atoms_is_followed_no_further():
    nodes = [node("MatMul", ["x", "x"], "v0")]
    nodes += [node("MatMul", [f"v{i}", f"v{i}"], f"v{i + 1}") for i in range(200)]
    nodes.append(node("Identity", ["v200"], "scores"))
    model = onnx_model(nodes, {}, shape=[2], out=DOUBLE, kind=DOUBLE)
    assert declared_outputs(model)["scores"].form == "scores"
