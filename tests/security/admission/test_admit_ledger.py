"""`admit` against the privacy ledger, where the machine has one of the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.bundle import read_bundle
from security.commands.admit import _check_ledger
from security.errors import AdmissionRefused
from security.training.ledger import Ledger, Request
from tests.support.bundles import Keys, rewrite_report, write_bundle

BOOKED = Request(
    name="toy",
    digest="d",
    unit="row",
    model="toy:1.0.0",
    rate=0.1,
    noise=1.2,
    group=1,
    steps=50,
    delta=1e-3,
)


@pytest.fixture
def folder(tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle, and a home whose ledger has its training."""
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path))
    Ledger(tmp_path / "ledger").reserve(BOOKED).close("finished")
    return write_bundle(tmp_path / "bundle", keys)


def check(folder: Path, **conditions: Any) -> None:
    stated = read_bundle(folder).report("privacy").conditions
    conditions = {**stated, "group_size": 1, **conditions}
    report = rewrite_report(folder, "privacy", conditions=conditions)
    _check_ledger(read_bundle(folder), report)


def test_what_was_booked(folder: Path) -> None:
    check(folder)


@pytest.mark.parametrize(
    "change",
    [{"steps": 49}, {"noise_multiplier": 1.3}, {"sample_rate": 0.05}, {"delta": 1e-4}],
)
def test_another_training_than_was_booked(folder: Path, change: dict[str, Any]) -> None:
    with pytest.raises(AdmissionRefused, match=r"another training of toy:1.0.0") as e:
        check(folder, **change)
    assert e.value.check == 27


def test_personal_data_cannot_be_declared_public(folder: Path) -> None:
    with pytest.raises(AdmissionRefused, match="declared public, and booked as pers"):
        check(folder, personal_data=False)


def test_a_ledger_of_other_models(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path / "none"))
    check(folder, steps=49)
