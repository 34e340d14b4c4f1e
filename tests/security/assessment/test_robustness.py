"""PGD against models whose robustness is known exactly."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from models.architectures import TabularClassifier, tabular_classifier
from models.bundle import Bundle, read_bundle
from models.export import export_onnx
from security.assessment import robustness
from security.assessment.robustness import EvasionPlan
from security.assessment.scaled_model import ServedModel, WhiteBox
from security.errors import AssessmentError
from tests.support import trained

QUICK = EvasionPlan(curve=(0.01, 0.05), iterations=20, restarts=2)


def bundle_of(module: TabularClassifier, folder: Path) -> Bundle:
    model = export_onnx(module, trained.rows()[0].columns)
    return read_bundle(trained.replace_model(trained.copy(folder), model))


@cache
def good() -> robustness.Evasion:
    return robustness.attack(read_bundle(trained.bundle()), trained.rows()[1], QUICK)


def failed(result) -> list[str]:
    return [check.id for check in result.checks if not check.passed]


def test_checks_pass():
    assert failed(good()) == []


def test_claim_and_assumptions():
    conditions, metrics = good().conditions, good().metrics
    assert conditions["norm"] == "Linf"
    assert conditions["units"] == "scaled_features"
    assert conditions["attack"] == "pgd"
    assert conditions["radius"] == metrics["radius"].value == 0.02
    assert metrics["robust_accuracy"].n == len(trained.rows()[1])
    assert metrics["robust_accuracy"].value <= metrics["clean_accuracy"].value


def test_curve_falls_to_nothing():
    curve = [point["robust_accuracy"] for point in good().details["curve"]]
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] == 0


def test_a_linear_model_is_broken_exactly_where_it_can_be(tmp_path):
    # A linear model's worst case in a box is known in closed form: no attack can do
    # better, and this one may not do worse.
    torch.manual_seed(1)
    _, holdout = trained.rows()
    module = tabular_classifier(holdout.columns, 2)
    torch.nn.init.normal_(module.body[-1].weight)
    bundle = bundle_of(module, tmp_path / "b")
    served = ServedModel(bundle)
    scaled = served.scale(holdout.features)
    weight = module.body[-1].weight.detach().double().numpy()
    difference = 2 * (weight[1] - weight[0])
    margin = (scaled - 0.5) @ difference
    sign = np.where(holdout.labels == 1, -1, 1)[:, None] * np.sign(difference)
    for radius in (0.01, 0.05, 0.2):
        worst = (np.clip(scaled + radius * sign, 0, 1) - 0.5) @ difference
        wanted = ((worst > 0).astype(int) == holdout.labels) & (
            (margin > 0).astype(int) == holdout.labels
        )
        plan = dataclasses.replace(QUICK, radius=radius, curve=())
        result = robustness.attack(bundle, holdout, plan)
        got = result.metrics["robust_accuracy"].value * len(holdout)
        assert got == pytest.approx(wanted.sum(), abs=1)
        assert got >= wanted.sum()


class Stairs(torch.nn.Module):
    """The trained model's weights on inputs that are rounded: no gradient anywhere."""

    def __init__(self):
        super().__init__()
        graph = onnx.load_from_string(read_bundle(trained.bundle()).model).graph
        stored = [np.array(numpy_helper.to_array(item)) for item in graph.initializer]
        self.inner = torch.nn.Linear(30, 2)
        for item in stored:
            for parameter in self.inner.parameters():
                if parameter.shape == item.shape:
                    parameter.data = torch.from_numpy(item)

    def forward(self, inputs):
        steps = torch.arange(-0.9375, 1, 0.125)
        above = (inputs.unsqueeze(-1) > steps).to(torch.float32)
        return self.inner(0.125 * above.sum(dim=-1) - 1)


def test_a_hidden_gradient_is_called_unreliable(tmp_path):
    _, holdout = trained.rows()
    module = TabularClassifier(holdout.columns, Stairs())
    result = robustness.attack(bundle_of(module, tmp_path / "b"), holdout, QUICK)
    assert result.metrics["clean_accuracy"].value > 0.85
    assert "unbounded-radius-breaks" in failed(result)


def test_a_constant_model_is_called_unreliable(tmp_path):
    _, holdout = trained.rows()
    module = tabular_classifier(holdout.columns, 2)
    torch.nn.init.constant_(module.body[-1].bias, 1.0)
    module.body[-1].bias.data[1] = 2.0
    result = robustness.attack(bundle_of(module, tmp_path / "b"), holdout, QUICK)
    assert failed(result) == ["unbounded-radius-breaks"]


def test_a_saturated_model_is_still_broken(tmp_path):
    # Logits times 1000: in single precision every gradient is 0.
    _, holdout = trained.rows()
    torch.manual_seed(1)
    module = tabular_classifier(holdout.columns, 2)
    torch.nn.init.normal_(module.body[-1].weight, std=0.1)
    soft = robustness.attack(bundle_of(module, tmp_path / "s"), holdout, QUICK)
    with torch.no_grad():
        module.body[-1].weight *= 100
    hard = robustness.attack(bundle_of(module, tmp_path / "h"), holdout, QUICK)
    assert hard.metrics["robust_accuracy"].value == pytest.approx(
        soft.metrics["robust_accuracy"].value, abs=0.02
    )


def test_missing_values_can_be_attacked():
    _, holdout = trained.rows()
    features = holdout.features.copy()
    features[:, 3] = np.nan
    holed = dataclasses.replace(holdout, features=features)
    assert failed(robustness.attack(read_bundle(trained.bundle()), holed, QUICK)) == []


def test_same_seed_same_result():
    again = robustness.attack(read_bundle(trained.bundle()), trained.rows()[1], QUICK)
    assert again == good()


def test_parity_is_checked():
    bundle = read_bundle(trained.bundle())
    served = ServedModel(bundle)
    white_box = WhiteBox(bundle, served)
    white_box.low += 0.1 * white_box.span
    with pytest.raises(AssessmentError, match="differs from onnxruntime"):
        white_box.check_parity(served, served.scale(trained.rows()[1].features))


def test_no_rows():
    _, holdout = trained.rows()
    empty = holdout.take(np.zeros(len(holdout), dtype=bool))
    with pytest.raises(AssessmentError, match="no rows"):
        robustness.attack(read_bundle(trained.bundle()), empty)


def test_nothing_is_written_to_the_home(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-c",
            "from security.assessment.art_library import art; art()",
        ],
        cwd=Path(__file__).parents[3],
        env={"HOME": str(tmp_path)},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
