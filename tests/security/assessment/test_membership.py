"""Membership inference: finds a model that learned by heart, not one that did not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.architectures import tabular_classifier
from models.bundle import read_bundle
from models.export import export_onnx
from security.assessment import membership
from security.errors import AssessmentError
from tests.support import trained


@pytest.mark.slow
def test_the_private_model_hides_its_rows():
    train, holdout = trained.rows()
    result = membership.attack(read_bundle(trained.bundle()), train, holdout)
    assert result.metrics["auc"].low < 0.55
    assert result.metrics["auc"].value >= result.metrics["loss_auc"].value
    assert result.metrics["tpr_at_fpr_1pct"].value < 0.1
    assert all(check.passed for check in result.checks)
    assert result.details["loss"] == {"members": len(train), "others": len(holdout)}


@pytest.mark.slow
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
    result = membership.attack(bundle, train, holdout)
    assert result.metrics["auc"].low > 0.6
    assert result.metrics["learned_auc"].value > 0.6


def test_roc_point():
    others = np.arange(100) / 100
    assert membership.roc_point(np.array([0.985, 0.5]), others, 0.01).value == 0.5
    assert membership.roc_point(np.array([0.98, 0.98]), others, 0.01).value == 0
    assert membership.roc_point(np.array([0.7]), np.array([0.5]), 0.01).value == 1
    assert membership.roc_point(np.full(5, 0.5), np.full(5, 0.5), 0.01).value == 0


def test_halves_are_disjoint():
    first, second = membership._halves(trained.rows()[0])
    together = np.concatenate([first.features, second.features])
    assert len(np.unique(together, axis=0)) == len(
        np.unique(trained.rows()[0].features, axis=0)
    )


def test_too_few_rows():
    train, holdout = trained.rows()
    few = holdout.take(np.arange(49))
    with pytest.raises(AssessmentError, match="50 rows or more"):
        membership.attack(read_bundle(trained.bundle()), train, few)
