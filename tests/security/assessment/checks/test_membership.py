"""Membership by answers alone: finds a model that learned by heart, and no other."""

from __future__ import annotations

import numpy as np
import torch

from models.bundle import read_bundle
from models.data.held_out import holdout_of
from models.export import export_onnx
from security.assessment.checks.privacy.answers import learned_scores
from security.assessment.checks.privacy.curves import roc_point
from security.assessment.engine.run import ScanRequest, run_scan
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from tests.support import trained
from tests.support.networks import tabular_classifier


def membership(bundle, train, holdout):
    request = ScanRequest(
        TargetSource.of(bundle),
        holdout_of(holdout),
        Options(profile="assess", checks=("membership",)),
        extras={"training data": holdout_of(train)},
    )
    (result,) = (
        item for item in run_scan(request).report.results if item.name == "membership"
    )
    return result


def test_the_private_model_hides_its_rows():
    train, holdout = trained.rows()
    result = membership(read_bundle(trained.bundle()), train, holdout)
    assert result.metrics["auc"].low < 0.55
    assert result.metrics["auc"].value >= result.metrics["loss_auc"].value
    assert result.metrics["tpr_at_fpr_1pct"].value < 0.1
    assert all(check.passed for check in result.checks)
    assert result.public["loss"] == {"members": len(train), "others": len(holdout)}
    half = len(holdout) // 2
    assert result.public["learned"] == {
        "members": len(train) - half,
        "others": len(holdout) - half,
    }
    assert result.conditions["stated_attack"] in ("loss", "rule", "learned")
    assert result.conditions["shadow_models"] == 0


def test_a_model_that_learned_by_heart_is_found(tmp_path):
    train, holdout = trained.rows()
    generator = np.random.default_rng(0)
    # Random labels can only be learned by heart.
    train, holdout = (
        type(item)(**{**vars(item), "labels": generator.integers(0, 2, len(item))})
        for item in (train, holdout)
    )
    torch.manual_seed(0)
    module = tabular_classifier(train.columns, 2, hidden=(256,))
    inputs = module.network_input(torch.tensor(train.features, dtype=torch.float32))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            module.body(inputs), torch.tensor(train.labels)
        )
        torch.autograd.backward(loss)
        optimizer.step()
    model = export_onnx(module, train.columns)
    bundle = read_bundle(trained.replace_model(trained.copy(tmp_path / "b"), model))
    result = membership(bundle, train, holdout)
    assert result.metrics["auc"].low > 0.6
    assert result.metrics["learned_auc"].value > 0.6
    # Without a recipe nothing is known of the claim: exposed is all that can be said.
    assert [item.rule for item in result.findings] == ["membership-exposed"]


def test_roc_point():
    others = np.arange(100) / 100
    assert roc_point(np.array([0.985, 0.5]), others, 0.01).value == 0.5
    assert roc_point(np.array([0.98, 0.98]), others, 0.01).value == 0
    assert roc_point(np.array([0.7]), np.array([0.5]), 0.01).value == 1
    assert roc_point(np.full(5, 0.5), np.full(5, 0.5), 0.01).value == 0


def test_the_forest_is_judged_on_rows_that_it_has_not_seen():
    random = np.random.default_rng(0)
    scores = random.random((200, 2))
    labels, member = random.integers(0, 2, 200), np.arange(200) % 2 == 0
    fitted = np.arange(200) < 100
    # The answers say nothing of membership: nor may the forest.
    made = learned_scores(scores, labels, member, fitted, seed=1)
    assert (made[fitted] == 0).all()
    again = learned_scores(scores, labels, member, fitted, seed=1)
    np.testing.assert_array_equal(made, again)
    gap = made[~fitted & member].mean() - made[~fitted & ~member].mean()
    assert abs(gap) < 0.1


def test_too_few_rows():
    train, holdout = trained.rows()
    few = holdout.take(np.arange(49))
    result = membership(read_bundle(trained.bundle()), train, few)
    assert result.status == "skipped"
    assert "50 are needed" in result.reason
