"""What turning a row of a table costs, and certificates by smoothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from models.data.held_out import Holdout
from security.assessment.checks.evasion.cost import CostCheck
from security.assessment.checks.evasion.smoothing import (
    SmoothingCheck,
    certified_radius,
)
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.options import PROFILES, Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.dataconfig import DataConfig, parse_data_config
from security.assessment.targets.space import build_space
from tests.support.scanned import linear_onnx

RANDOM = np.random.default_rng(0)


def run(check, model, x, y, config, **options):
    source = TargetSource("onnx", "model.onnx", model)
    names = tuple(f"c{i}" for i in range(x.shape[1]))
    holdout = Holdout("rows", x, y, columns=names)
    job, target = prepare(source, holdout, Options(**options), config)
    context = Context(job, target)
    assert check.missing(context) is None
    outcomes = {u.key: check.run(u, context) for u in check.units(context)}
    return check.conclude(context, outcomes)


CONFIG_TEXT = b"""
    max_cost = 2.0
    [[columns]]
    name = "c0"
    low = 0
    high = 10
    cost = 2.0
    [[columns]]
    name = "c1"
    low = 0
    high = 10
    kind = "integer"
    change = "up"
    [[columns]]
    name = "c2"
    low = 0
    high = 10
    change = "never"
    [[columns]]
    name = "c3"
    low = 0
    high = 2
    kind = "category"
    values = [0, 1, 2]
    cost = 0.5
    [[columns]]
    name = "c4"
    group = "hot"
    low = 0
    high = 1
    cost = 0.25
    [[columns]]
    name = "c5"
    group = "hot"
    low = 0
    high = 1
    """
CONFIG = parse_data_config(CONFIG_TEXT)


def rows(count=40):
    hot = RANDOM.integers(0, 2, size=count)
    x = np.stack(
        [
            RANDOM.random(count) * 10,
            RANDOM.integers(0, 11, size=count),
            RANDOM.random(count) * 10,
            RANDOM.integers(0, 3, size=count),
            hot,
            1 - hot,
        ],
        axis=1,
    )
    return x.astype(np.float32)


def test_categories_and_groups_state_their_ranges():
    lines = CONFIG_TEXT.decode().split("[[columns]]")
    bare = "[[columns]]".join(
        part.replace("low = 0", "").replace("high = 1\n", "").replace("high = 2\n", "")
        if "values" in part or "group" in part
        else part
        for part in lines
    )
    names = [f"c{i}" for i in range(6)]
    space = build_space(
        rows(),
        "float32",
        table=True,
        names=names,
        config=parse_data_config(bare.encode()),
    )
    assert space.ranges_from == "configuration"
    assert space.high.tolist() == [10, 10, 10, 2, 1, 1]


def test_only_what_is_allowed_changes_and_costs_what_it_costs():
    x = rows()
    # c2, which may not change, decides most: what is left must do.
    weights = np.array([0.3, 0.4, 1.0, 0.5, 1.0, 0.0])
    scores = np.stack([np.zeros(len(x)), x @ weights - 8.0], axis=1)
    y = np.argmax(scores, axis=1)
    model = linear_onnx(np.stack([0 * weights, weights], axis=1), [0.0, -8.0])
    result = run(CostCheck(), model, x, y, CONFIG)
    turned = [row for row in result.details["rows"] if row["cost"] is not None]
    assert len(turned) >= 10
    for row in turned:
        before, after = x[row["row"]].astype(float), x[row["row"]].astype(float)
        for change in row["changes"]:
            after[int(change["column"][1:])] = change["after"]
        assert after[2] == before[2]
        assert after[1] >= before[1]
        assert after[1] == round(after[1])
        assert after[3] in (0, 1, 2)
        assert sorted(after[4:]) == [0, 1]
        cost = 0.2 * abs(after[0] - before[0]) + 0.1 * abs(after[1] - before[1])
        cost += 0.5 * (after[3] != before[3]) + 0.25 * (after[4] != before[4])
        assert row["cost"] == pytest.approx(cost, abs=1e-5)
        assert (after @ weights > 8.0) != (before @ weights > 8.0)
    cheapest = min(turned, key=lambda row: row["cost"])
    shown = result.details["examples"][0]["changes"]
    assert sorted(shown) == sorted(list(c.values()) for c in cheapest["changes"])
    curve = [point["value"] for point in result.details["curve"]]
    assert curve == sorted(curve, reverse=True)
    assert result.metrics["max_cost"].value == 2.0


def test_the_cheapest_single_column_is_found():
    x = RANDOM.random((40, 3)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 1).astype(int)
    weights = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    config = DataConfig(low=0.0, high=1.0)
    result = run(CostCheck(), linear_onnx(weights, [0.0, -1.0]), x, y, config)
    for row in result.details["rows"][:30]:
        values = x[row["row"]].astype(float)
        # Both columns count alike: the cost is the gap, wherever it is made up.
        assert row["cost"] == pytest.approx(abs(values[0] + values[1] - 1), abs=0.02)
    assert {item["column"] for item in result.details["columns"]} <= {"c0", "c1"}
    # Nobody said what a change costs, or what is too much: no verdict rests on it.
    (finding,) = result.findings
    assert (finding.rule, finding.severity) == ("evasion-cost-unstated", "note")
    config = replace(config, max_cost=1.0)
    result = run(CostCheck(), linear_onnx(weights, [0.0, -1.0]), x, y, config)
    (finding,) = result.findings
    assert (finding.rule, finding.severity) == ("evasion-cost", "error")


def test_the_certificate_of_a_linear_model(monkeypatch):
    effort = replace(PROFILES["quick"], smoothing_rows=30, smoothing_draws=500)
    monkeypatch.setitem(PROFILES, "quick", effort)
    x = RANDOM.normal(size=(40, 3)).astype(np.float32)
    weights = np.array([[1.0, -1.0], [0.5, 0.5], [2.0, -1.0]])
    y = np.argmax(x @ weights, axis=1)
    config = DataConfig(units="raw", low=-5.0, high=5.0)
    check = SmoothingCheck()
    result = run(check, linear_onnx(weights), x, y, config, radius_l2=0.5)
    # Smoothing a linear model changes no decision; its radius is the row's distance.
    assert result.metrics["smoothed_accuracy"].value >= 0.9
    gap = np.abs(x @ (weights[:, 0] - weights[:, 1]))
    true = gap / np.linalg.norm(weights[:, 0] - weights[:, 1])
    for point in result.details["curve"]:
        possible = (true[:30] >= point["radius"]).mean()
        assert point["value"] <= possible + 0.07
    assert result.details["curve"][0]["value"] > 0.5


def test_a_certificate_is_never_larger_than_its_draws_allow():
    for draws in (100, 1000):
        best = certified_radius(draws, draws, 1.0)
        assert best < norm.ppf(0.001 ** (1 / draws)) + 1e-6
    assert certified_radius(0, 100, 1.0) == 0
    assert certified_radius(60, 100, 1.0) == 0


def test_where_they_do_not_apply():
    x = rows()
    model = linear_onnx(np.ones((6, 2)) * [1, -1], [0.0, 30.0])
    y = np.argmax(x @ (np.ones((6, 2)) * [1, -1]) + [0.0, 30.0], axis=1)
    source = TargetSource("onnx", "m", model)
    holdout = Holdout("r", x, y, columns=tuple(f"c{i}" for i in range(6)))
    job, target = prepare(source, holdout, Options(profile="standard"), CONFIG)
    assert "whole numbers" in SmoothingCheck().missing(Context(job, target))
    job, target = prepare(source, holdout, Options(), CONFIG)
    assert "not part" in SmoothingCheck().missing(Context(job, target))
