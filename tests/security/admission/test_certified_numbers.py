"""How far a predicted number can move at most: claimed, recomputed, refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from models.bundle import VERDICT_FILE, read_bundle, report_file
from models.report import Metric
from tests.conftest import run_security
from tests.support.chains import Chain, policy
from tests.support.in_process import security_result
from tests.support.regressors import TRAINED, diabetes, linear_regressor, ridge
from tests.support.torchless import without_torch

HELD = 150
BOUND = "largest_change_bound"
POLICY = policy(
    structure=(),
    robustness=(
        'conditions.certificate = "crown"',
        f"metrics.{BOUND} = {{ max = 40, min_n = 100 }}",
    ),
)


def write_rows(path, features, truth):
    np.savez(path, x=features, y=truth)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A linear model of somebody else's, assessed and signed."""
    home = tmp_path_factory.mktemp("numbers")
    features, truth, names = diabetes()
    # Rows that nobody states the range of have none that a proof could rest on.
    columns = [
        {"name": name, "low": float(low), "high": float(high)}
        for name, low, high in zip(names, features.min(axis=0), features.max(axis=0))
    ]
    (home / "columns.json").write_text(json.dumps(columns))
    (home / "model.onnx").write_bytes(
        linear_regressor(ridge().coef_, ridge().intercept_)
    )
    write_rows(home / "held.npz", features[TRAINED:][:HELD], truth[TRAINED:][:HELD])
    write_rows(home / "others.npz", features[:HELD], truth[:HELD])
    (home / "policy.toml").write_text(POLICY)
    chain = Chain(home / "home", home / "policy.toml")
    assert chain.command("keygen") == 0
    made = ("import", home / "model.onnx", "--out", home / "bundle", "--name", "toy")
    made += ("--version", "1.0.0", "--columns", home / "columns.json")
    assert chain.command(*made) == 0
    asked = ("assess", home / "bundle", "--data", home / "held.npz")
    asked += ("--decision", "number", "--radius-linf", "0.02")
    assert chain.command(*asked) == 0
    assert chain.command("sign", home / "bundle", "--role", "assessor") == 0
    return home


@pytest.fixture
def bundle(home, tmp_path):
    """A copy that the test may change."""
    return shutil.copytree(home / "bundle", tmp_path / "bundle")


def admitted(home, bundle, rows=None):
    """The end of `admit`, with these rows."""
    chain = Chain(home / "home", home / "policy.toml")
    more = () if rows is None else ("--rows", home / rows, "--decision", "number")
    given = map(str, ("admit", bundle, *more))
    return security_result(chain.home, *given, extra=chain.settings)


def claim(home, bundle, value):
    """The bound of both names as a report signed by the assessor states it."""
    report = read_bundle(bundle).report("robustness")
    metric = Metric(value, n=report.metrics[BOUND].n)
    metrics = {**report.metrics, BOUND: metric, f"{BOUND}_linf": metric}
    changed = replace(report, metrics=metrics)
    (bundle / report_file("robustness")).write_bytes(changed.to_json())
    chain = Chain(home / "home", home / "policy.toml")
    assert chain.command("sign", bundle, "--role", "assessor") == 0


def test_the_bound_is_that_of_the_weights(home, bundle) -> None:
    """Of a linear model the most is known: each column's reach by its weight."""
    metrics = read_bundle(bundle).report("robustness").metrics
    features, _, _ = diabetes()
    held = features[TRAINED:][:HELD].astype(np.float64)
    low, high = features.min(axis=0), features.max(axis=0)
    reach = 0.02 * (high.astype(np.float64) - low)
    up, down = np.minimum(reach, high - held), np.minimum(reach, held - low)
    weights = ridge().coef_
    most = np.maximum(
        np.where(weights > 0, up, -down) @ weights,
        np.where(weights > 0, down, -up) @ weights,
    ).max()
    assert metrics[BOUND].value == pytest.approx(most, abs=0.01)
    assert metrics[BOUND].value >= metrics["largest_change"].value
    assert metrics[BOUND].n == HELD


def test_with_rows_it_is_recomputed(home, bundle) -> None:
    told = admitted(home, bundle, "held.npz")
    assert told.returncode == 0, told.stderr
    assert "robustness: what it claims is proved was recomputed" in told.stdout


def test_a_smaller_claim_is_refused(home, bundle) -> None:
    metrics = read_bundle(bundle).report("robustness").metrics
    reached, bound = metrics["largest_change"].value, metrics[BOUND].value
    # What attacks reached is no contradiction; that no more is possible is not so.
    claim(home, bundle, reached)
    assert reached < bound
    assert admitted(home, bundle).returncode == 0
    told = admitted(home, bundle, "held.npz")
    assert told.returncode == 1
    assert f"{BOUND} is " in told.stderr
    assert "when recomputed" in told.stderr
    claim(home, bundle, reached * 0.9)
    told = admitted(home, bundle)
    assert told.returncode == 1
    assert "attacks reached" in told.stderr


def test_other_rows_are_refused(home, bundle) -> None:
    told = admitted(home, bundle, "others.npz")
    assert told.returncode == 1
    assert "not those that the report names" in told.stderr


def test_who_recomputes_needs_no_torch(home, bundle) -> None:
    rows = ("--rows", home / "held.npz", "--decision", "number")
    extra = Chain(home / "home", home / "policy.toml").settings
    told = without_torch(home / "home", "admit", bundle, *rows, extra=extra)
    assert told.returncode == 0, told.stderr
    assert "was recomputed from its rows" in told.stdout


def packaged(home, bundle, state, *rows):
    """What `package` says in a deployment of its own, with the same keys."""
    more = ("--rows", home / rows[0], "--decision", "number") if rows else ()
    given = ("--policy", home / "policy.toml", *more)
    return run_security(state, *map(str, ("package", bundle, *given)))


@pytest.mark.slow
def test_packaging_recomputes_what_its_rows_prove(home, bundle, tmp_path) -> None:
    state = tmp_path / "state"
    shutil.copytree(home / "home", state)
    assert admitted(home, bundle).returncode == 0
    before = (bundle / VERDICT_FILE).read_bytes()

    # Rows that are not those of the report are no reason to keep the old verdict.
    told = packaged(home, bundle, state, "others.npz")
    assert told.returncode == 1
    assert "not those that the report names" in told.stderr
    assert (bundle / VERDICT_FILE).read_bytes() == before

    told = packaged(home, bundle, state, "held.npz")
    assert told.returncode == 0, told.stderr
    assert "proved    robustness: recomputed from its rows\n" in told.stdout
    assert "signed" not in told.stdout
    after = (bundle / VERDICT_FILE).read_bytes()
    assert after != before

    for again in (packaged(home, bundle, state, *x) for x in (("held.npz",), ())):
        assert again.returncode == 0, again.stderr
        assert "admitted  toy:1.0.0 already" in again.stdout
        assert "proved    robustness: recomputed from its rows\n" in again.stdout
        assert (bundle / VERDICT_FILE).read_bytes() == after


@pytest.mark.slow
def test_packaging_without_rows_says_so(home, bundle, tmp_path) -> None:
    state = tmp_path / "state"
    shutil.copytree(home / "home", state)
    told = packaged(home, bundle, state)
    assert told.returncode == 0, told.stderr
    assert "proved    robustness: NOT recomputed: give its --rows\n" in told.stdout
