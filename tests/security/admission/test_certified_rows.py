"""What robustness evidence claims is proved, from assess to a door that demands it."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from models.bundle import VERDICT_FILE, report_file
from models.report import Metric, Report
from security.commands import main
from tests.conftest import check_security, run_security, toy_settings
from tests.support.chains import policy
from tests.support.scanned import digits, fit, to_onnx
from tests.support.torchless import without_torch

POLICY = policy(
    structure=(),
    robustness=(
        'conditions.certificate = "crown"',
        'metrics.verified_accuracy = { min = 0.5, min_n = 100, bound = "interval" }',
        "metrics.robust_accuracy = { min = 0.5, min_n = 100 }",
    ),
)


def run(*arguments):
    return main([str(item) for item in arguments])


def settings(patch, home):
    for name, value in toy_settings(home).items():
        patch.setenv(name, value)
    patch.setenv("SEALGATE_HOME", str(home))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An imported network of digits, assessed and signed."""
    home = tmp_path_factory.mktemp("certified")
    (home / "policy.toml").write_text(POLICY)
    x, y, held, labels = digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    net = fit(net, x, y, epochs=15, rate=3e-3)
    model = to_onnx(net, (1, 8, 8), tail=("Softmax",))
    (home / "model.onnx").write_bytes(model)
    names = [str(name) for name in range(10)]
    np.savez(home / "held.npz", x=held[:240], y=np.array(names)[labels[:240]])
    np.savez(home / "others.npz", x=held[240:480], y=np.array(names)[labels[240:480]])
    classes = f"classes = {json.dumps(names)}\n"
    (home / "data.toml").write_text(f"{classes}low = 0\nhigh = 1\n")
    (home / "wider.toml").write_text(f"{classes}low = 0\nhigh = 2\n")
    with pytest.MonkeyPatch.context() as patch:
        settings(patch, home)
        assert run("keygen") == 0
        made = ("import", home / "model.onnx", "--out", home / "bundle")
        made += ("--name", "toy", "--version", "1.0.0")
        assert run(*made) == 0
        more = ("--data-config", home / "data.toml", "--radius-linf", "0.02", "0.05")
        assert run("assess", home / "bundle", "--data", home / "held.npz", *more) == 0
        assert run("sign", home / "bundle", "--role", "assessor") == 0
    return home


@pytest.fixture
def bundle(home, tmp_path, monkeypatch):
    """A copy that the test may change."""
    settings(monkeypatch, home)
    return shutil.copytree(home / "bundle", tmp_path / "bundle")


def rows(home, name="held.npz", config="data.toml"):
    return ("--rows", home / name, "--data-config", home / config)


def report_of(bundle):
    return Report.from_json((bundle / report_file("robustness")).read_bytes())


def change(bundle, **metrics):
    report = report_of(bundle)
    changed = replace(report, metrics={**report.metrics, **metrics})
    (bundle / report_file("robustness")).write_bytes(changed.to_json())
    assert run("sign", bundle, "--role", "assessor") == 0


def verdict(bundle):
    signed = json.loads((bundle / "attestations/verdict.sigstore.json").read_bytes())
    return json.loads(base64.b64decode(signed["dsseEnvelope"]["payload"]))["predicate"]


def test_evidence_states_both_ends_of_the_same_rows(bundle) -> None:
    report = report_of(bundle)
    pairs = report.details["certificate"]["by_radius"]
    assert [pair["radius"] for pair in pairs][1:4] == [0.01, 0.02, 0.04]
    for pair in pairs:
        certified, attacked = pair["interval"]
        assert 0 <= certified <= attacked <= 1
        assert pair["n"] == 240
    low, high = next(p["interval"] for p in pairs if p["radius"] == 0.02)
    assert report.metrics["verified_accuracy"].value == low
    assert report.metrics["robust_accuracy"].value == high
    assert high - low < 0.02
    assert "verified_accuracy_linf/0.05" in report.metrics
    assert [c.passed for c in report.checks if "certified" in c.id] == [True]


def test_with_rows_it_is_recomputed_and_the_verdict_says_so(
    home, bundle, capsys
) -> None:
    assert run("admit", bundle, *rows(home), "--all") == 0
    assert run("admit", bundle, *rows(home)) == 0
    assert "was recomputed from its rows" in capsys.readouterr().out
    assert verdict(bundle)["recomputed"] == {"robustness": True}
    assert run("verify", bundle) == 0
    assert "did not recompute" not in capsys.readouterr().err
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "Accuracy that is proved under attack" in card
    assert "| Radius | Robust accuracy | Proved | n |" in card


def test_who_recomputes_needs_no_torch(home, bundle) -> None:
    given = ("admit", bundle, *rows(home))
    told = without_torch(home, *given, extra=toy_settings(home))
    assert told.returncode == 0, told.stderr
    assert "was recomputed from its rows" in told.stdout
    assert verdict(bundle)["recomputed"] == {"robustness": True}


def test_without_rows_the_verdict_says_that_it_was_not(bundle, capsys) -> None:
    assert run("admit", bundle) == 0
    assert "was NOT recomputed" in capsys.readouterr().out
    assert verdict(bundle)["recomputed"] == {"robustness": False}
    assert run("verify", bundle) == 0
    said = capsys.readouterr()
    assert "did not recompute what robustness claims is proved" in said.out + said.err


def test_rows_that_were_forgotten_until_it_was_stored(home, bundle, tmp_path) -> None:
    """`package` signs no verdict that it could not store, and says what to do."""
    extra = toy_settings(home) | {"BENTOML_HOME": str(tmp_path / "bentoml")}
    assert run("admit", bundle) == 0
    check_security(home, "store", str(bundle), **extra)
    before = (bundle / VERDICT_FILE).read_bytes()
    told = run_security(home, "package", str(bundle), *map(str, rows(home)), **extra)
    assert told.returncode == 1
    assert "in the model store already, with a verdict of its own" in told.stderr
    assert "bentoml models delete toy:1.0.0" in told.stderr
    assert "admitted" not in told.stdout
    assert (bundle / VERDICT_FILE).read_bytes() == before


def test_a_policy_may_demand_it(home, bundle, monkeypatch, capsys) -> None:
    assert run("admit", bundle) == 0
    text = POLICY.replace("[verdict]\n", '[verdict]\nrecomputed = ["robustness"]\n')
    path = bundle.parent / "strict.toml"
    path.write_text(text)
    monkeypatch.setenv("SEALGATE_ADMISSION_POLICY", str(path))
    assert run("admit", bundle) == 1
    assert "the policy needs it recomputed; give its --rows" in capsys.readouterr().err
    assert run("verify", bundle, "--all") == 1
    assert "did not recompute robustness, and the policy" in capsys.readouterr().err
    assert run("admit", bundle, *rows(home)) == 0
    assert run("verify", bundle) == 0


def test_a_higher_claim_is_refused_with_rows(home, bundle, capsys) -> None:
    value = report_of(bundle).metrics["verified_accuracy"].value + 1 / 240
    metric = Metric(value, n=240, low=0.9, high=0.99, confidence=0.95)
    both = dict.fromkeys(("robust_accuracy", "robust_accuracy_linf"), metric)
    change(bundle, verified_accuracy=metric, **both)
    assert run("admit", bundle, *rows(home)) == 1
    assert "when recomputed" in capsys.readouterr().err


def test_a_claim_above_what_attacks_left_is_refused_without_rows(
    bundle, capsys
) -> None:
    change(
        bundle, verified_accuracy=Metric(1.0, n=240, low=0.9, high=1.0, confidence=0.95)
    )
    assert run("admit", bundle) == 1
    assert "attacks reached" in capsys.readouterr().err
    change(
        bundle, verified_accuracy=Metric(0.9, n=999, low=0.9, high=1.0, confidence=0.95)
    )
    assert run("admit", bundle) == 1
    assert "no figure of the same rows" in capsys.readouterr().err


def test_other_rows_or_another_space_are_refused(home, bundle, capsys) -> None:
    assert run("admit", bundle, *rows(home, "others.npz")) == 1
    assert "not those that the report names" in capsys.readouterr().err
    assert run("admit", bundle, *rows(home, config="wider.toml")) == 1
    assert "another space" in capsys.readouterr().err


def test_rows_for_evidence_that_claims_nothing(home, bundle, capsys, tmp_path) -> None:
    report = report_of(bundle)
    left = {k: v for k, v in report.metrics.items() if not k.startswith("verified")}
    (bundle / report_file("robustness")).write_bytes(
        replace(report, metrics=left).to_json()
    )
    assert run("sign", bundle, "--role", "assessor") == 0
    assert run("admit", bundle, "--all", *rows(home)) == 1
    err = capsys.readouterr().err
    assert "verified_accuracy is not in the report" in err
