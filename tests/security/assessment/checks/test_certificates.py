"""The certified end of a scan: beside attacks, of the same ball, or named why not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from models.data.held_out import Holdout
from models.manifest import Column
from security.assessment.checks.evasion.certified import prover_of
from security.assessment.checks.evasion.plan import plan_for
from security.assessment.checks.evasion.proofs import Proofs
from security.assessment.checks.evasion.results import NormResult
from security.assessment.engine.run import ScanRequest, run_scan
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.dataconfig import ColumnRules, DataConfig
from security.errors import UnboundedModel
from tests.support.networks import tabular_classifier
from tests.support.scanned import digits, digits_onnx, fit, linear_onnx, to_onnx

pytestmark = pytest.mark.usefixtures("one_thread")

UNIT = DataConfig(low=0.0, high=1.0)


def scanned(model, x, y, config=UNIT, **options):
    chosen = Options(checks=("evasion",), norms=("linf",), **options)
    source = TargetSource("onnx", "m", model)
    request = ScanRequest(source, Holdout("rows", x, y), chosen, config=config)
    report = run_scan(request).report
    (result,) = (item for item in report.results if item.name == "evasion")
    return result


def context_of(source, x, y, config=UNIT, **options):
    job, target = prepare(source, Holdout("rows", x, y), Options(**options), config)
    return Context(job, target)


def mlp():
    x, y, held, labels = digits()
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    return to_onnx(fit(net, x, y, epochs=8, rate=3e-3), (1, 8, 8)), held, labels


def test_both_ends_of_each_radius_and_the_checks_of_the_bounds() -> None:
    model, x, y = mlp()
    result = scanned(model, x[:120], y[:120], radius_linf=(0.02, 0.05))
    assert result.reliable
    pairs = {p["radius"]: p for p in result.public["certificate"]["by_radius"]}
    assert {0.005, 0.01, 0.02, 0.05, 0.08} <= {*pairs}
    for pair in pairs.values():
        certified, attacked = pair["interval"]
        assert certified <= attacked
    certified, attacked = pairs[0.02]["interval"]
    assert result.metrics["verified_accuracy_linf"].value == certified > 0.5
    assert attacked - certified < 0.03
    assert result.metrics["verified_accuracy_linf/0.05"].n == 120
    (table,) = (t for t in result.details["tables"] if "proved" in t["columns"])
    assert sum(bool(row[3]) for row in table["rows"]) == len(pairs)
    ids = {check.id for check in result.checks}
    assert {"linf-certified-unbroken", "linf-bounds-read-alike"} <= ids
    assert "linf-bounds-meet" not in ids


def test_of_a_linear_model_nothing_is_between() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(5, 3))
    x = random.random((200, 5)).astype(np.float32)
    y = (x @ weight).argmax(axis=1)
    result = scanned(linear_onnx(weight), x, y, radius_linf=0.05)
    for pair in result.public["certificate"]["by_radius"]:
        assert pair["interval"][0] == pytest.approx(pair["interval"][1], abs=0.006)
    (meets,) = (c for c in result.checks if c.id == "linf-bounds-meet")
    assert meets.passed
    assert "on 8 rows" in meets.message


@pytest.mark.parametrize(
    ("config", "model", "reason"),
    [
        (UNIT, lambda: digits_onnx(tail=()), "operator MaxPool has no bound"),
        (DataConfig(), None, "ranges are those of these rows"),
    ],
)
def test_what_is_not_proved_is_named_and_the_scan_goes_on(
    config, model, reason
) -> None:
    if model is None:
        random = np.random.default_rng(0)
        x = (random.normal(size=(60, 3)) * 9).astype(np.float32)
        weight = random.normal(size=(3, 2))
        result = scanned(linear_onnx(weight), x, (x @ weight).argmax(axis=1), config)
    else:
        _, _, x, y = digits()
        result = scanned(model(), x[:60], y[:60], config)
    assert result.status == "done"
    assert "robust_accuracy" in result.metrics
    assert not any(name.startswith("verified") for name in result.metrics)
    assert result.conditions["certificate"] == "none"
    (found,) = (f for f in result.findings if f.rule == "no-certificate")
    assert found.severity == "note"
    assert reason in found.message


def test_a_proof_that_an_attack_refutes_is_an_error_and_no_figure() -> None:
    model, x, y = mlp()
    context = context_of(TargetSource("onnx", "m", model), x[:60], y[:60])
    plan = plan_for(context.job, "linf")
    result = NormResult(
        plan=plan,
        places=np.arange(60),
        own=np.ones(60),
        correct=np.ones(60, bool),
        distance=np.full(60, plan.radius),
        attack=np.zeros(60, np.int64),
        examples=context.job.rows,
        names=("apgd-ce",),
        attacks={},
        notes={},
        finite=True,
        strange=0,
        certified=(plan.radius,),
        proved=np.arange(60)[:, None] == 7,
    )
    proofs = Proofs.of(context, result)
    assert proofs.metrics == {}
    assert [f.rule for f in proofs.findings] == ["certificate-contradicted"]
    assert proofs.findings[0].severity == "error"
    failed = [check.id for check in proofs.checks if not check.passed]
    assert failed == ["linf-certified-unbroken"]
    fine = replace(result, distance=np.full(60, np.inf))
    assert Proofs.of(context, fine).metrics["verified_accuracy"].value == 1 / 60


def test_the_ball_is_the_attacks_own() -> None:
    """Missing, held, directed, constant, whole; and a radius beyond the range."""
    columns = (
        Column("a", 0.0, 1.0),
        Column("job", 0.0, 2.0, ("x", "y", "z")),
        Column("c", 0.0, 4.0),
    )
    torch.manual_seed(0)
    module = tabular_classifier(columns, 2, hidden=(6,))
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter)
    from models.export import export_onnx, run_onnx

    model = export_onnx(module, columns)
    random = np.random.default_rng(0)
    x = np.stack(
        [random.random(80), random.integers(0, 3, 80), np.full(80, 4.0)], axis=1
    ).astype(np.float32)
    x[::7, 0] = np.nan
    _, y = run_onnx(model, x)
    y[:5] = 1 - y[:5]
    if len(np.unique(y)) < 2:
        y[-1] = 1 - y[-1]
    rules = {
        "job": ColumnRules("job", kind="category", values=(0.0, 1.0, 2.0)),
        "c": ColumnRules("c", change="down", low=0.0, high=4.0),
    }
    source = TargetSource("bundle", "m", model, columns=columns, classes=("0", "1"))
    context = context_of(source, x, y, DataConfig(columns=tuple(rules.values())))
    prover = prover_of(context.job)
    every = np.arange(80)
    low, high = prover.ball(every, 5.0)
    assert np.isnan(low[::7, 0]).all()
    assert np.array_equal(np.isnan(low), np.isnan(high))
    assert (low[:, 1] == high[:, 1]).all()
    assert (high[:, 2] == 4.0).all()
    assert (low[:, 2] == 0.0).all()
    assert np.nanmin(low[:, 0]) == 0.0
    assert np.nanmax(high[:, 0]) == 1.0
    proved = prover.proved(every, (0.01, 0.1, 5.0))
    assert proved[:, 0].any()
    assert (proved[:, :-1] >= proved[:, 1:]).all()
    for _ in range(60):
        inside = low + (high - low) * random.integers(0, 2, low.shape)
        _, answered = run_onnx(model, inside.astype(np.float32))
        assert not (proved[:, 2] & (answered != y)).any()


def test_a_code_that_may_move_may_become_any_or_none() -> None:
    """What nobody calls a code is moved as a number by attacks, and so by bounds."""
    columns = (Column("a", 0.0, 1.0), Column("job", 0.0, 2.0, ("x", "y", "z")))
    torch.manual_seed(0)
    module = tabular_classifier(columns, 2)
    weight = torch.tensor([[0.1, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    module.body[0].weight.data = weight
    module.body[0].bias.data = torch.tensor([-1.0, 0.0])
    from models.export import export_onnx, run_onnx

    model = export_onnx(module, columns)
    random = np.random.default_rng(0)
    x = np.stack([random.random(40), random.integers(0, 3, 40)], axis=1)
    x = x.astype(np.float32)
    _, y = run_onnx(model, x)

    def proved(told: tuple[Column, ...]) -> NDArray[np.bool_]:
        source = TargetSource("bundle", "m", model, columns=told, classes=("0", "1"))
        job = context_of(source, x, y).job
        return prover_of(job).proved(np.arange(40), (0.02,))[:, 0]

    # Class 0 needs the code 0 exactly: a hair beside it, there is no code.
    assert (proved((columns[0], Column("job", 0.0, 2.0))) == (y == 1)).all()
    assert proved(columns).all()


def test_nothing_is_proved_of_an_endpoint_or_of_several_inputs() -> None:
    model, x, y = mlp()
    context = context_of(TargetSource("onnx", "m", model), x[:60], y[:60])
    remote = replace(context.job, source=TargetSource("remote", "m"))
    with pytest.raises(UnboundedModel, match="no graph"):
        prover_of(remote)
