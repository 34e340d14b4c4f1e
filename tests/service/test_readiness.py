"""service.readiness: what it takes to be ready, and to be that no more."""

from __future__ import annotations

import time
from pathlib import Path

from security.settings.loading import load_settings
from service.inference.served import Entry
from service.readiness import (
    BAD_LOOKS,
    GOOD_LOOKS,
    Readiness,
    answers,
    own_folders,
    usable,
)
from service.telemetry.metrics import Metrics
from tests.support.rooms import admitted, log_model, serving


def test_one_look_decides_nothing() -> None:
    holds = True
    metrics = Metrics()
    readiness = Readiness({"model": lambda: holds, "keys": lambda: True}, metrics)

    def looks(number: int) -> bool:
        for _ in range(number):
            readiness.look()
        return readiness.ready

    assert readiness.ready
    holds = False
    assert looks(BAD_LOOKS - 1)
    holds = True
    assert looks(1)  # a good one in between begins the row anew
    holds = False
    assert looks(BAD_LOOKS - 1)
    assert not looks(1)
    text = metrics.text().decode()
    assert "sealgate_ready 0.0" in text
    assert 'sealgate_unready{missing="model"} 1.0' in text
    assert 'sealgate_unready{missing="keys"} 0.0' in text
    holds = True
    assert not looks(GOOD_LOOKS - 1)
    assert looks(1)
    assert "sealgate_ready 1.0" in metrics.text().decode()


def test_the_first_look_decides() -> None:
    assert not Readiness({"keys": lambda: False}, Metrics()).ready


def test_one_model_that_answers_is_enough(tmp_path: Path) -> None:
    admissions = [admitted(tmp_path / "toy"), log_model(tmp_path / "odd")]
    lineup = serving(admissions, timeout_s=10)
    assert answers(lineup)
    toy, odd = (lineup.table[name].default for name in ("toy", "odd"))
    withdrawn = {"1.0.0": toy.withdraw("no more")}
    lineup.switch({**lineup.table, "toy": Entry(withdrawn)})
    assert answers(lineup)
    odd.content.expires_at = time.time() - 1
    assert not answers(lineup)


def test_only_the_own_stores_count(tmp_path: Path) -> None:
    def names(**variables: str) -> list[str]:
        home = {"SEALGATE_HOME": str(tmp_path)}
        return [f.name for f in own_folders(load_settings(home | variables))]

    assert names() == ["audit", "quotas", "replay"]
    shared = {
        "SEALGATE_QUOTAS_STORE": "redis://127.0.0.1:1",
        "SEALGATE_SEALING_REPLAY_STORE": "redis://127.0.0.1:1",
    }
    assert names(**shared) == ["audit"]
    assert names(**shared, SEALGATE_AUDIT_ON_FAILURE="serve") == []


def test_a_folder_that_takes_nothing(tmp_path: Path) -> None:
    assert usable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    assert not usable(tmp_path / "file")
    assert not usable(Path("/proc/self"))  # nobody can write there, not even root
