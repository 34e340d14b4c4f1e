"""Attacks through a bundle's output policy: what is measured is what is served."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime as ort
import pytest

from models.bundle import read_bundle
from models.data.held_out import Holdout, holdout_of
from models.manifest import Manifest, Tensor
from models.output_policy import ALL_SCORES, OutputPolicy, scores_left
from models.restriction import restrict
from sealgate.protocol.tensors import TensorSpec
from security.admission.loaded import LoadedModel
from security.assessment.checks.privacy import curves, signals
from security.assessment.checks.privacy.extraction import ExtractionCheck
from security.assessment.checks.privacy.left import chances_left, shadow_logits
from security.assessment.checks.privacy.shadows import Shadows
from security.assessment.engine.assess import OPTIONS, AssessRequest, assess_bundle
from security.assessment.engine.run import ScanRequest, run_scan
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.answers import Answers
from security.assessment.targets.remote import RemoteLimits, RemoteTarget
from security.errors import AssessmentError
from tests.support import trained
from tests.support.peers import Peer, listening
from tests.support.regressors import TRAINED, diabetes, linear_regressor, ridge
from tests.support.rooms import unverified

LABEL_ONLY = OutputPolicy(label_only=True)
TOP = OutputPolicy(top_k=1)
POLICIES = [ALL_SCORES, OutputPolicy(decimals=1), TOP, LABEL_ONLY]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def labels_only(tmp_path_factory: pytest.TempPathFactory):
    folder = trained.copy(tmp_path_factory.mktemp("labels") / "b")
    restrict(folder, LABEL_ONLY)
    return folder


def test_an_assessment_attacks_what_leaves(labels_only):
    train, holdout = trained.rows()
    options = dataclasses.replace(OPTIONS, checks=("quality", "membership"))
    request = AssessRequest(labels_only, holdout, train, options=options)
    membership = assess_bundle(request).reports[-1]
    assert membership.kind == "membership"
    assert membership.conditions["output_policy"] == "label only"
    whole = dataclasses.replace(request, bundle=trained.bundle())
    metrics = membership.metrics
    # Of labels alone, the loss is whether they are right.
    assert metrics["loss_auc"].value == metrics["rule_auc"].value
    beside = unrestricted(whole)
    assert beside["auc"] == metrics["all_scores_auc"]
    assert beside["tpr_at_fpr_1pct"] == metrics["all_scores_tpr_at_fpr_1pct"]


def unrestricted(request: AssessRequest):
    source = TargetSource.of(read_bundle(request.bundle))
    found = run_scan(
        ScanRequest(
            source,
            holdout_of(request.holdout),
            Options(profile="assess", checks=("membership",)),
            extras={"training data": holdout_of(request.train)},
        )
    ).report.results
    (result,) = (item for item in found if item.name == "membership")
    assert result.conditions["output_policy"] == "all scores"
    assert not any(name.startswith("all_scores") for name in result.metrics)
    assert not any("policy" in item.rule for item in result.findings)
    return result.metrics


def test_the_scan_says_that_it_is_no_protection(labels_only):
    train, holdout = trained.rows()
    request = ScanRequest(
        TargetSource.of(read_bundle(labels_only)),
        holdout_of(holdout),
        Options(profile="assess", checks=("membership",)),
        extras={"training data": holdout_of(train)},
    )
    found = run_scan(request).report.findings
    (finding,) = (item for item in found if item.rule == "membership-output-policy")
    assert finding.severity == "note"
    assert finding.message.startswith("what leaves (label only) gives the best attack")
    assert finding.message.endswith("it is no protection here")


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_what_is_attacked_is_what_is_served(tmp_path, policy):
    bundle = restrict(trained.copy(tmp_path / "b"), policy)
    _, holdout = trained.rows()
    options = Options(checks=("extraction",), max_rows=100)
    job, target = prepare(TargetSource.of(bundle), holdout_of(holdout), options)
    context = Context(job, target)
    assert context.leaving == policy
    answers = target.ask(job.rows)
    served = LoadedModel(unverified(tmp_path / "s", bundle.model, bundle.manifest))
    rows = {bundle.manifest.inputs[0].spec.name: job.rows.astype(np.float32)}
    names = served.release.names
    arrays = dict(zip(names, served.run(rows, names, ort.RunOptions())))
    assert arrays["label"].tolist() == answers.labels.tolist()
    if policy.label_only:
        assert names == ["label"]
    else:
        left = scores_left(policy, answers.scores)
        assert left == pytest.approx(arrays["probabilities"], abs=1e-6)


def test_a_thief_buys_what_is_served(tmp_path):
    bundle = restrict(trained.copy(tmp_path / "b"), TOP)
    _, holdout = trained.rows()
    options = Options(checks=("extraction",), max_rows=100)
    job, target = prepare(TargetSource.of(bundle), holdout_of(holdout), options)
    check, context = ExtractionCheck(), Context(job, target)
    unit = check.units(context)[1]
    result = check.conclude(context, {unit.key: check.run(unit, context)})
    assert result.conditions["output_policy"] == "the highest score"
    assert result.conditions["output_policies"] == "scores, served, labels"
    assert {name.split("_")[1] for name in result.metrics} == {
        *("scores", "served", "labels"),
    }
    # What nobody is sold is no finding.
    assert not any("_scores_" in item.where for item in result.findings)


def test_withholding_leaves_the_likelihood_ratio_as_it_was():
    """LiRA compares what leaves with what leaves of shadows; labels give less."""
    random = np.random.default_rng(5)
    rows, models, classes = 600, 32, 4
    labels = random.integers(0, classes, rows)
    base = random.normal(0, 1.5, (rows, classes))
    base[np.arange(rows), labels] += 2
    included = random.random((models + 1, rows)) < 0.5
    logits = base + random.normal(0, 0.3, (models + 1, rows, classes))
    logits[:, np.arange(rows), labels] += 0.6 * included
    shadows = Shadows(included[1:], logits[1:].astype(np.float32))
    scores = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=1, keepdims=True)
    target, member = Answers(scores, scores.argmax(axis=1)), included[0]
    found = {}
    for policy in (*POLICIES, OutputPolicy(decimals=2)):
        seen = np.log(chances_left(policy, target, "probabilities"))
        logits_left = shadow_logits(policy, shadows.logits, "probabilities")
        ratio = signals.lira(
            signals.confidences(seen, labels),
            Shadows(shadows.included, logits_left),
            labels,
        )
        found[str(policy)] = curves.rates(ratio[member], ratio[~member])["auc"].value
    whole = found.pop("all scores")
    assert whole > 0.75
    assert found["the highest score"] > whole - 0.05
    assert found["all scores, of 2 decimals"] > whole - 0.05
    assert 0.5 < found["label only"] < found["the highest score"]


def test_a_predicted_number_is_attacked_as_it_is_rounded(tmp_path):
    x, y, names = diabetes()
    model = ridge()
    onnx = linear_regressor(model.coef_, model.intercept_)
    own = Manifest(
        "ridge",
        "1.0.0",
        (Tensor(TensorSpec("x", "FP32", (-1, x.shape[1]))),),
        (Tensor(TensorSpec("y", "FP32", (-1, 1))),),
        max_rows=64,
        output_policy=OutputPolicy(decimals=-2),
    )
    bundle = unverified(tmp_path, onnx, own).bundle
    train = Holdout("train", x[:TRAINED], y[:TRAINED] + 0.0, columns=names)
    request = ScanRequest(
        TargetSource.of(bundle),
        Holdout("held out", x[TRAINED:], y[TRAINED:] + 0.0, columns=names),
        Options(profile="assess", checks=("membership",), decision="number"),
        extras={"training data": train},
    )
    (result,) = (r for r in run_scan(request).report.results if r.name == "membership")
    assert result.status == "done", result.reason
    assert result.conditions["output_policy"] == "all scores, of -2 decimals"
    assert result.metrics["auc"] != result.metrics["all_scores_auc"]


def soft(x):
    logits = x @ np.array([[1.0, -1.0], [0.5, 0.2], [-1.0, 1.0]])
    return {"p": np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)}


OUTPUTS = ({"name": "p", "datatype": "FP64", "shape": [-1, 2]},)


def test_an_endpoint_says_what_it_withholds(tmp_path):
    stated = {"output_policy": {"decimals": 1}}
    with listening(Peer(soft, OUTPUTS, parameters=stated)) as peer:
        target = RemoteTarget(peer.url, peer.profile(tmp_path), RemoteLimits(10))
        target.close()
        assert target.leaving == OutputPolicy(decimals=1)
    for strange in ({"output_policy": 7}, {"output_policy": {"noise": 1}}):
        with (
            listening(Peer(soft, OUTPUTS, parameters=strange)) as peer,
            pytest.raises(AssessmentError, match="output_policy"),
        ):
            RemoteTarget(peer.url, peer.profile(tmp_path), RemoteLimits(10))


@pytest.mark.parametrize("policy", [OutputPolicy(decimals=1), TOP], ids=str)
def test_what_an_endpoint_left_is_read_as_probabilities(policy):
    """Rounded or withheld they do not add up to 1, and are no logits for that."""
    whole = np.array([[0.62, 0.27, 0.11], [0.05, 0.9, 0.05]])
    left = scores_left(policy, whole)
    answers = Answers(left, left.argmax(axis=1))
    found = chances_left(policy, answers, "scores")
    assert found.sum(axis=1) == pytest.approx([1, 1])
    assert found == pytest.approx(whole, abs=0.11)
