"""A number that is learnt privately: from the rows to the client's answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundle import read_bundle
from sealgate import Client
from security.admission.consistency import _contradictions
from security.admission.policy import load_policy
from tests.support.chains import Chain
from tests.support.servers import ROOT, serve
from tests.support.small_regression import CONFIG, price, write_prices

PROFILE = ROOT / "deploy/policies/private-regression.toml"
KINDS = ("provenance", "privacy", "parity", "structure", "quality", "robustness")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, their configuration, and an admitted bundle of what was trained on them."""
    folder = tmp_path_factory.mktemp("prices")
    write_prices(folder / "rows.csv", rows=1000)
    (folder / "c.toml").write_text(CONFIG)
    chain = Chain(folder / "home", PROFILE)
    out = folder / "prices"
    assert chain.command("train", folder / "c.toml", "--out", out) == 0
    assert chain.command("assess", out, "--config", folder / "c.toml") == 0
    chain.admit(out, "trainer", "assessor")
    assert chain.command("documents", out) == 0
    return folder


@pytest.mark.slow
def test_evidence_is_of_a_number(folder: Path) -> None:
    bundle = read_bundle(folder / "prices")
    (output,) = bundle.manifest.outputs
    assert (output.spec.shape, output.bounds, output.labels) == ((-1,), (100, 1000), ())
    provenance, parity = bundle.report("provenance"), bundle.report("parity")
    assert provenance.conditions["predicts"] == "number"
    assert provenance.details["target"] == {"low": 100, "high": 1000, "scale": "log"}
    assert "classes" not in provenance.details
    assert parity.conditions["unit"] == "share_of_target_range"
    assert "label_agreement" not in parity.metrics
    assert parity.metrics["max_abs_difference"].value < 1e-5
    quality, membership = bundle.report("quality"), bundle.report("membership")
    assert quality.metrics["r2"].value > 0.6
    assert membership.conditions["shadow_models"] == 16
    assert membership.conditions["shadows"] == "same_recipe"
    # Chance, as 1000 rows show it: five deviations of 0.02 from a half.
    assert membership.metrics["lira_auc"].value == pytest.approx(0.5, abs=0.1)
    robustness = bundle.report("robustness")
    assert robustness.conditions["access"] == "white_box"
    assert robustness.metrics["stable_share"].value > 0.7


@pytest.mark.slow
def test_the_card_says_what_is_predicted(folder: Path) -> None:
    card = (folder / "prices" / "MODEL_CARD.md").read_text()
    assert "predicts a number from a row of a table, trained with differential" in card
    assert "from 100 to 1000" in card
    assert "clamped to it, and learnt by factors" in card
    assert "| `rmse` |" in card
    assert "tabular-regression" in card


@pytest.mark.slow
def test_a_client_gets_the_number(folder: Path) -> None:
    chain, out = Chain(folder / "home", PROFILE), folder / "prices"
    assert chain.command("verify", out, "--policy", PROFILE) == 0
    rows = np.array([[3, 80, 0], [6, 150, 1], [6, 150, 0]], np.float32)
    packaged = ("package", out, "--policy", PROFILE)
    assert chain.command(*packaged) == 0
    with (
        serve(str(out), chain.home, extra=chain.settings, own=()),
        Client.from_profile(chain.home / "profile.json") as client,
    ):
        (number,) = client.infer("prices", {"features": rows}).values()
    assert number.shape == (3,)
    assert number.dtype == np.float32
    truth = [price(rooms, area, int(town)) for rooms, area, town in rows.tolist()]
    np.testing.assert_allclose(number, truth, rtol=0.35)
    assert number[1] > number[2]  # the dearer town


@pytest.mark.slow
def test_another_model_of_the_same_rows_is_attacked_alike(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, own = Chain(folder / "home", PROFILE), folder / "robust.toml"
    against = '[adversarial]\nmethod = "pgd"\nradius = 0.05\n[optimizer]'
    own.write_text(CONFIG.replace("[optimizer]", against))
    assert chain.command("train", own, "--out", folder / "robust") == 0
    asked = ("assess", folder / "robust", "--config", own)
    assert chain.command(*asked, "--beside", folder / "prices") == 0
    assert "mean absolute error" in capsys.readouterr().out
    robustness = read_bundle(folder / "robust").report("robustness")
    assert robustness.conditions["adversarial_training"] == "pgd"
    figures = robustness.metrics
    assert figures["beside_attacked_mae"].value > figures["beside_clean_mae"].value > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("provenance", {"predicts": "class"}, "provenance: predicts is 'class'"),
        ("parity", {"unit": "probability"}, "parity: unit is 'probability'"),
        ("quality", {"predicts": "class"}, "quality: what the model predicts is not"),
    ],
)
def test_a_changed_field_contradicts_another(
    folder: Path, kind: str, change: dict[str, str], message: str
) -> None:
    bundle = read_bundle(folder / "prices")
    reports = {name: bundle.report(name) for name in KINDS}
    required = {item.kind: item for item in load_policy(PROFILE).requirements}
    assert list(_contradictions(bundle, reports, required)) == []
    told = reports[kind]
    changed = replace(told, conditions={**told.conditions, **change})
    found = list(_contradictions(bundle, {**reports, kind: changed}, required))
    assert any(item.startswith(message) for item in found), found
