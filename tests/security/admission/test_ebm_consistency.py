"""The gate on an ebm: what a trainer changes alone is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.bundle import read_bundle, report_file
from security.admission.gate import Recomputed
from security.commands.admit import _recompute
from security.errors import AdmissionRefused
from security.training.config import load_config
from security.training.ledger import Ledger
from security.training.run import train_bundle
from tests.security.admission.test_consistency import (
    KINDS,
    POLICY,
    admitted,
    edits,
    signed,
    started,
)
from tests.security.training.test_boosted import EBM
from tests.support.bundles import Keys, attest, evaluate, policy
from tests.support.small_training import write_config, write_rows

ROOT = Path(__file__).parents[3]
# What nothing else says, as in `test_consistency`; digests of what is in the graph.
FREE = {
    "conditions.outside_mechanism_sha256",
    "conditions.noise_generator",
    "metrics.noise_deficit_detectable.value",
    "metrics.noise_deficit_detectable.n",
    *(f"checks.{number}.message" for number in range(3)),
}


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys.generate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Path:
    home = tmp_path_factory.mktemp("ebm")
    write_rows(home / "rows.csv", rows=3000)
    config = load_config(write_config(home, EBM, epsilon="3.0"))
    made = train_bundle(
        config, home / "bundle", lambda *_: None, ledger=Ledger(home / "ledger")
    )
    for kind in KINDS:
        attest(made, kind, keys.trainer)
    return made


@pytest.fixture(scope="module")
def recomputed(folder: Path) -> Recomputed:
    bundle = read_bundle(folder)
    return _recompute(bundle, bundle.report("privacy"))


def test_another_accountant_agrees(folder: Path, recomputed: Recomputed) -> None:
    """At all of delta, of which the claim leaves a thousandth to the verdicts."""
    stated = read_bundle(folder).report("privacy").metrics
    assert recomputed.epsilon == pytest.approx(stated["epsilon"].value, abs=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_single_edit_passes(
    folder: Path, keys: Keys, recomputed: Recomputed, kind: str
) -> None:
    bundle = read_bundle(folder)
    honest = json.loads((folder / report_file(kind)).read_bytes())
    assert admitted(bundle, keys, recomputed)
    tried, passed = 0, set()
    for name, document in edits(honest):
        changed = signed(bundle, kind, document, keys)
        if changed is None:
            continue
        tried += 1
        if admitted(changed, keys, recomputed) and started(changed):
            passed.add(name)
    assert tried > 60
    if kind == "privacy":
        assert {n for n in passed if "details.outside_mechanism" not in n} == FREE
    else:
        # The curves are for people, and the file gives them, too.
        assert {n for n in passed if "details.curves" not in n} == set()


@pytest.mark.parametrize("named", [True, False])
def test_fewer_terms_than_columns_are_refused(
    folder: Path, keys: Keys, recomputed: Recomputed, *, named: bool
) -> None:
    """Half of the queries would be half of the cost; no configuration helps."""
    bundle = read_bundle(folder)
    document = json.loads((folder / report_file("privacy")).read_bytes())
    stated = document["conditions"]
    stated["terms"], steps = 1, stated["steps"] // 2
    stated["steps"] = stated["steps_in_weights"] = steps
    if named:  # a built-in data set: the configuration lists no columns
        del document["details"]["config"]["data"]["columns"]
    else:
        del document["details"]["config"]
    changed = signed(bundle, "privacy", document, keys)
    assert changed is not None
    assert not admitted(changed, keys, recomputed)


def test_an_earlier_release_s_report_is_admitted(
    folder: Path, keys: Keys, recomputed: Recomputed
) -> None:
    """It stated a check that could not fail, and nothing of how sums round."""
    bundle = read_bundle(folder)
    document = json.loads((folder / report_file("privacy")).read_bytes())
    check = {"id": "queries-conform", "passed": True, "message": "as often as planned"}
    document["checks"].append(check)
    passed = []
    for name in ("sums", "rounding"):
        del document["conditions"][name]
        changed = signed(bundle, "privacy", document, keys)
        assert changed is not None
        passed.append(admitted(changed, keys, recomputed))
    assert passed == [False, True]  # not with half of what is stated now


def test_the_default_policy_does_not_take_it(folder: Path, keys: Keys) -> None:
    """It asks for PRV and Poisson sampling; a policy admits this mechanism by name."""
    default = (ROOT / "deploy/policy.toml").read_text()
    own = (ROOT / "deploy/policies/ebm.toml").read_text()
    asked = {
        name: POLICY + b"[require.privacy.conditions]\n" + _conditions(text).encode()
        for name, text in (("default", default), ("own", own))
    }
    bundle, now = read_bundle(folder), datetime.now(UTC)
    evaluate(bundle, policy(asked["own"]), keys.trust, now=now)
    with pytest.raises(AdmissionRefused, match="dp_sgd_gaussian"):
        evaluate(bundle, policy(asked["default"]), keys.trust, now=now)


def _conditions(text: str) -> str:
    """The lines of a policy's conditions on privacy."""
    found = text.split("[require.privacy.conditions]\n")[1]
    return found.split("[")[0]
