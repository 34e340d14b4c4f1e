"""Classifiers with their preprocessing inside."""

from __future__ import annotations

import numpy as np
import torch

from models.architectures import TabularClassifier
from models.export import export_onnx, run_onnx
from models.manifest import Column
from tests.support.networks import tabular_classifier

COLUMNS = (Column("a", 0.0, 10.0), Column("b", -1.0, 1.0))


def test_scaling_to_the_public_range():
    model = tabular_classifier(COLUMNS, 2)
    scaled = model.scale(torch.tensor([[0.0, -1.0], [10.0, 1.0], [2.5, 0.0]]))
    assert torch.equal(scaled, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.25, 0.5]]))


def test_outside_is_clipped_and_missing_is_the_middle():
    model = tabular_classifier(COLUMNS, 2)
    odd = torch.tensor([[1e30, -1e30], [torch.nan, torch.inf], [-torch.inf, torch.nan]])
    assert torch.equal(
        model.scale(odd), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
    )


def test_network_input_is_centred():
    model = tabular_classifier(COLUMNS, 2)
    assert torch.equal(
        model.network_input(torch.tensor([[0.0, 1.0], [5.0, 0.0]])),
        torch.tensor([[-1.0, 1.0], [0.0, 0.0]]),
    )


def test_outputs():
    torch.manual_seed(0)
    model = tabular_classifier(COLUMNS, 3, hidden=(4,))
    torch.nn.init.normal_(model.body[-1].weight)
    probabilities, label = model(torch.tensor([[1.0, 0.5], [torch.nan, -torch.inf]]))
    assert torch.allclose(probabilities.sum(1), torch.ones(2))
    assert label.dtype == torch.int64
    assert torch.equal(label, probabilities.argmax(1))


def test_only_the_body_is_trained():
    model = tabular_classifier(COLUMNS, 2, hidden=(4,))
    names = [name for name, _ in model.named_parameters()]
    assert names
    assert all(name.startswith("body.") for name in names)


def test_last_layer_starts_at_zero():
    probabilities, _ = tabular_classifier(COLUMNS, 4)(torch.rand(3, 2))
    assert torch.equal(probabilities, torch.full((3, 4), 0.25))


def test_a_range_by_factors_inside_the_exported_graph():
    columns = (Column("size", 1.0, 100.0), Column("count", 0.0, 49.0), COLUMNS[1])
    body = torch.nn.Linear(3, 2)
    model = TabularClassifier(columns, body, logs=["size", "count"])
    rows = [[10.0, 0.0, 0.5], [1.0, 49.0, -1.0], [-5.0, 6.0, 9.0], [100.0, 1e30, 0.0]]
    features = torch.tensor([*rows, [torch.nan, torch.inf, 0.0]], requires_grad=True)
    scaled = model.scale(features)
    assert torch.allclose(scaled[:4, 0], torch.tensor([0.5, 0.0, 0.0, 1.0]))
    assert torch.allclose(
        scaled[:3, 1], torch.log1p(torch.tensor([0.0, 49, 6])) / 3.912
    )
    assert torch.equal(scaled[:4, 2], torch.tensor([0.75, 0.0, 1.0, 0.5]))
    assert torch.equal(scaled[4], torch.full((3,), 0.5))
    # An attack follows this gradient: finite everywhere, linear columns as without.
    (gradient,) = torch.autograd.grad(scaled[:4].sum(), features)
    assert torch.isfinite(gradient).all()
    assert float(gradient[0, 2]) == 0.5
    probabilities, labels = run_onnx(
        export_onnx(model, columns), features.detach().numpy()
    )
    wanted, label = model(features)
    assert np.allclose(probabilities, wanted.detach().numpy(), atol=1e-6)
    assert (labels == label.numpy()).all()
