"""The next version: same configuration, what is left of the budget, and a fair test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.bundle import read_bundle
from models.errors import DatasetError
from security.errors import LedgerError, TrainingError
from security.training.config import load_config
from security.training.ledger import Ledger
from security.training.retrain import _mcnemar, next_version, recorded_config, retrain
from security.training.run import train_bundle
from tests.support.small_training import write_config, write_rows


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


def test_mcnemar():
    before = np.array([True] * 90 + [False] * 10)
    same = _mcnemar(before, before)
    assert (same.p_value, same.verdict) == (1.0, "no_difference_shown")
    better = _mcnemar(before, np.ones(100, dtype=bool))
    assert better.p_value == pytest.approx(2 * 0.5**10)
    assert better.verdict == "better"
    worse = _mcnemar(np.ones(100, dtype=bool), before)
    assert worse.verdict == "worse"
    # Three against one is no evidence.
    after = before.copy()
    after[[0, 90, 91, 92]] = ~after[[0, 90, 91, 92]]
    assert _mcnemar(before, after).verdict == "no_difference_shown"


def test_next_version():
    assert [next_version(v) for v in ("1", "1.0.9", "2.3")] == ["2", "1.0.10", "2.4"]


def test_retrain_on_new_rows_within_the_budget(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger")
    ledger.set_cap("persons", 3.5, None)
    config = load_config(write_config(tmp_path))
    current = train_bundle(config, tmp_path / "one", quiet, ledger=ledger)
    assert recorded_config(read_bundle(current)).to_object() == config.to_object()
    write_rows(tmp_path / "new.csv", rows=260, seed=1)
    options = {"ledger": ledger, "base": tmp_path}
    found = retrain(current, "new.csv", tmp_path / "two", quiet, **options)
    bundle = read_bundle(tmp_path / "two")
    assert bundle.manifest.tag == "small:1.0.1"
    provenance = bundle.report("provenance")
    assert provenance.conditions["compared_with"] == "1.0.0"
    assert provenance.conditions["comparison"] == found.verdict
    assert provenance.metrics["comparison_p_value"].value == found.p_value
    assert provenance.metrics["accuracy_after"].n == found.rows > 30
    (account,) = ledger.accounts()
    assert len(account.entries) == 2  # other rows, the same name
    with pytest.raises(LedgerError, match="is taken"):
        retrain(current, "new.csv", tmp_path / "three", quiet, **options)
    assert not (tmp_path / "three").exists()
    with pytest.raises(DatasetError, match="No such file"):
        retrain(current, "none.csv", tmp_path / "three", quiet, **options)
    report = current / "evidence" / "provenance.json"
    report.write_bytes(report.read_bytes().replace(b'"steps":12', b'"steps":11'))
    with pytest.raises(TrainingError, match="not the one it was made with"):
        retrain(current, "new.csv", tmp_path / "three", quiet, **options)
