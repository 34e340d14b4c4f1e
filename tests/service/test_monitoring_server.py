"""A real server counts what it answers, and releases what is over."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import httpx
import pytest

from security.access.issuer import load_issuer_key, mint
from security.errors import KeyFileError, MonitoringStoreError
from security.key_files import read_secret
from security.monitoring.counts import Sealer
from security.monitoring.keeping import LocalCountStore
from security.monitoring.ledger import LocalLedger
from security.monitoring.monitor import Monitor, check_monitor
from security.monitoring.release import Release, read_releases
from security.monitoring.windows import window_at
from security.settings.monitoring import MonitoringSettings
from tests.conftest import toy_settings
from tests.security.monitoring.test_monitor import Clock, crowd
from tests.support.bundles import NAME, manifest
from tests.support.servers import Server, serve

SUBJECTS = 40
# A great epsilon, so that forty subjects are many.
CHANGED = {
    "SEALGATE_MONITORING_ENABLED": "true",
    "SEALGATE_MONITORING_EPSILON": "100",
    "SEALGATE_MONITORING_MIN_SUBJECTS": "1",
    "SEALGATE_MONITORING_FLUSH_S": "0.2",
    "SEALGATE_SEALING_REQUIRE_SEALED": "false",
}


def settings(home: Path) -> MonitoringSettings:
    return MonitoringSettings(
        enabled=True,
        epsilon=100.0,
        min_subjects=1,
        directory=home / "monitoring",
        key=home / "keys/monitoring.key",
    )


def elsewhere(home: Path, clock: Clock) -> Monitor:
    """Another host's worker, with a clock of its own."""
    given = settings(home)
    return Monitor(
        given,
        store=LocalCountStore(given.directory),
        ledger=LocalLedger(given.directory),
        sealer=Sealer(read_secret(given.key)),
        versions=lambda: [manifest()],
        clock=clock,
        steady=clock.steady,
    )


def ask(server: Server, client: httpx.Client, subject: str, rows: int) -> None:
    token = mint(
        load_issuer_key(server.home),
        audience="urn:sealgate:local",
        subject=subject,
        client_id="test",
        scopes=[f"infer:{NAME}"],
        lifetime_s=600,
        now=int(time.time()),
    )
    data = {"datatype": "FP32", "shape": [rows, 3], "data": [1, 2, 3] * rows}
    answer = client.post(
        f"{server.url}/v2/models/{NAME}/infer",
        json={"inputs": [{"name": "features", **data}]},
        headers={"authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 200, answer.text


def releases(home: Path) -> list[Release]:
    return read_releases(LocalLedger(home / "monitoring"), kind="drift")


@pytest.fixture(scope="module")
def home(
    within_a_day: None, pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("monitored") / "home"
    return Path(shutil.copytree(pristine, folder))


@pytest.fixture(scope="module")
def released(home: Path) -> list[Release]:
    """What was released of last week, by the server, and of this week, after it."""
    LocalLedger(home / "monitoring").start()
    now = time.time()
    before = Clock(now=now - 7 * 86_400)
    other = elsewhere(home, before)
    crowd(other, range(SUBJECTS), 1.0)
    other.stop()
    extra = toy_settings(home) | CHANGED
    with serve("", home, extra=extra, alone=True) as server:
        with httpx.Client() as client:
            for number in range(SUBJECTS):
                ask(server, client, f"caller-{number}", rows=1 + number % 3)
            for _ in range(100):
                ask(server, client, "busy", rows=5)
        deadline = time.monotonic() + 20
        while not releases(home) and time.monotonic() < deadline:
            time.sleep(0.1)
        log = server.log
    assert "caller-1" not in log.read_text()
    after = Clock(now=window_at("weekly", now).end + 3600.0)
    elsewhere(home, after).look()
    return releases(home)


def test_the_server_releases_the_week_that_is_over(released: list[Release]) -> None:
    made = released[0]
    assert (made.withheld, made.lost) == ("", {})
    assert made.released_at < time.time()
    assert made.subjects == pytest.approx(SUBJECTS, abs=35)
    assert made.counts["input/a"][7] == pytest.approx(SUBJECTS, abs=10 * made.sigma)


def test_each_subject_that_asked_the_server_counts_once(
    released: list[Release],
) -> None:
    """The busy one sent ten times as many rows as all others."""
    made = released[-1]
    assert (made.withheld, made.lost) == ("", {})
    assert made.subjects == pytest.approx(SUBJECTS + 1, abs=35)
    assert made.counts["input/a"][7] == pytest.approx(SUBJECTS + 1, abs=10 * made.sigma)
    assert made.counts["answer/score"][11] == pytest.approx(
        SUBJECTS + 1, abs=10 * made.sigma
    )


def test_nothing_unencrypted_is_left_behind(home: Path) -> None:
    names = {path.name for path in (home / "monitoring").iterdir()}
    assert {name.partition("-")[0] for name in names} <= {
        "counts.sqlite",
        "labels.sqlite",
        "ledger.sqlite",
    }
    assert all(os.stat(home / "monitoring" / n).st_mode & 0o077 == 0 for n in names)


def test_a_worker_that_was_stopped_leaves_no_report(
    released: list[Release], home: Path
) -> None:
    """`models` asks those that run: what ends in good order is not waited for."""
    folder = home / "deployment" / "workers"
    assert folder.is_dir()
    assert not list(folder.glob("*.json"))


def test_a_server_without_its_key_or_its_ledger_does_not_start(
    home: Path, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(home, tmp_path / "bare"))
    (tmp_path / "bare" / "monitoring.made").touch()
    check_monitor(settings(bare))
    shutil.rmtree(bare / "monitoring")
    with pytest.raises(MonitoringStoreError, match="is gone"):
        check_monitor(settings(bare))
    (bare / "keys" / "monitoring.key").unlink()
    with pytest.raises(KeyFileError):
        check_monitor(settings(bare))
