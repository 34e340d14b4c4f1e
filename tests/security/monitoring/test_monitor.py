"""Workers and hosts with one store: what is released, once, and what is said of it."""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from models.manifest import Manifest
from security.errors import MonitoringStoreError
from security.monitoring.counts import Sealer
from security.monitoring.keeping import LocalCountStore, RedisCountStore
from security.monitoring.ledger import Budget, Ledger, LocalLedger, RedisLedger
from security.monitoring.monitor import PATIENCE_S, Monitor
from security.monitoring.release import Release, read_releases
from security.monitoring.windows import BELIEVED_S, window_at
from security.settings.monitoring import MonitoringSettings
from security.stores.places import Reach
from tests.support.bundles import manifest
from tests.support.redis_servers import RedisServer, redis_server

START = window_at("daily", 1_796_000_000.0).start
DAY_S = 86_400
SECRET = secrets.token_bytes(32)
TOY = manifest()


@dataclass
class Clock:
    """A clock that a test sets, and one that goes on with it but never jumps."""

    now: float = START + 3600.0
    gone: float = 0.0

    def __call__(self) -> float:
        return self.now

    def steady(self) -> float:
        return self.gone

    def tomorrow(self) -> None:
        """To a moment after the end of this day."""
        self.pass_s(DAY_S - (self.now - START) % DAY_S + 2)

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        self.gone += seconds


@dataclass
class Site:
    """A deployment: one store, one ledger, any number of workers."""

    settings: MonitoringSettings
    open_store: Callable[[], LocalCountStore | RedisCountStore]
    open_ledger: Callable[[], Ledger]
    clock: Clock = field(default_factory=Clock)
    versions: list[Manifest] = field(default_factory=lambda: [TOY])
    reports: dict[str, float] = field(default_factory=dict)

    def worker(self, **changes: object) -> Monitor:
        return Monitor(
            replace(self.settings, **changes),  # type: ignore[arg-type]
            store=self.open_store(),
            ledger=self.open_ledger(),
            sealer=Sealer(SECRET),
            versions=lambda: self.versions,
            report=self.reports.__setitem__,
            clock=self.clock,
            steady=self.clock.steady,
        )

    def releases(self) -> list[Release]:
        return read_releases(self.open_ledger(), kind="drift")


SETTINGS = MonitoringSettings(enabled=True, window="daily", min_subjects=200)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path) -> Site:
    folder = tmp_path / "monitoring"
    LocalLedger(folder).start()
    return Site(SETTINGS, lambda: LocalCountStore(folder), lambda: LocalLedger(folder))


@pytest.fixture(params=["local", "redis"])
def any_site(request: pytest.FixtureRequest) -> Site:
    if request.param == "local":
        found: Site = request.getfixturevalue("site")
        return found
    url = request.getfixturevalue("redis").url
    RedisLedger(url, Reach())._redis.client.flushall()
    RedisLedger(url, Reach()).new_ledger()
    return Site(
        SETTINGS,
        lambda: RedisCountStore(url, Reach()),
        lambda: RedisLedger(url, Reach()),
    )


def name(subject: int) -> str:
    return f"{subject + (0xFEDCBA9876543210 << 64):032x}"


def about(made: Release, subjects: int) -> bool:
    """Whether it says about so many; a wrong no in less than 10^20 runs."""
    assert made.subjects is not None
    return abs(made.subjects - subjects) < 10 * made.guarantee["subjects_sigma"]


def ask(monitor: Monitor, subject: int, *values: float, version: str = "1.0.0") -> None:
    rows = np.array([[value, 0.0, 0.0] for value in values], dtype=np.float32)
    answer = np.tile(np.array([0.25, 0.75], dtype=np.float32), (len(values), 1))
    monitor.count(
        f"toy:{version}",
        name(subject),
        len(values),
        {"features": rows},
        {"probabilities": answer},
    )


def crowd(monitor: Monitor, subjects: range, value: float = 1.0) -> None:
    for subject in subjects:
        ask(monitor, subject, value)


def test_two_hosts_with_one_store_release_once(any_site: Site) -> None:
    """Subjects that asked both count once; the noise is that of one release."""
    here, there = any_site.worker(), any_site.worker()
    crowd(here, range(1500), 1.0)
    crowd(there, range(1000, 2000), -9.0)
    for monitor in (here, there):
        monitor.look()
    assert any_site.releases() == []
    any_site.clock.tomorrow()
    for monitor in (here, there, here, there):
        monitor.look()
    (made,) = any_site.releases()
    assert (made.withheld, made.lost) == ("", {})
    assert about(made, 2000)
    assert set(made.counts) == {
        "input/a", "input/b", "input/c", "answer/class", "answer/score",
    }  # fmt: skip
    near = {"abs": 10 * made.sigma}
    # A subject that asked both has either event: 1000 to 1500 of the first kind.
    first, second = made.counts["input/a"][7], made.counts["input/a"][2]
    assert first + second == pytest.approx(2000, **near)
    assert 1000 - 10 * made.sigma < first < 1500 + 10 * made.sigma
    assert made.counts["answer/class"][3] == pytest.approx(2000, **near)
    assert made.guarantee["sensitivity"] == math.sqrt(5)
    assert any_site.reports["epsilon"] == made.guarantee["composition"]["epsilon"]
    assert any_site.open_store().scopes() == ["drift/toy/1.0.0/2026-12-01"]


def test_workers_that_release_at_once_make_one_release(site: Site) -> None:
    workers = [site.worker() for _ in range(6)]
    for number, monitor in enumerate(workers):
        crowd(monitor, range(number * 100, number * 100 + 100))
        monitor.look()
    site.clock.tomorrow()
    # All of them store their last before any releases.
    for monitor in workers:
        monitor._flush(closing=False)
    threads = [threading.Thread(target=monitor.look) for monitor in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (made,) = site.releases()
    assert about(made, 600)
    booked = [entry.rho for entry in site.open_ledger().entries()]
    assert sum(booked) == pytest.approx(made.guarantee["rho"])


def test_one_subject_cannot_steer_what_is_released(site: Site) -> None:
    """An attack: a caller sends twenty thousand rows into one bin; it is one event."""
    monitor = site.worker()
    crowd(monitor, range(1000, 2000), 1.0)
    for _ in range(400):
        ask(monitor, 7, *([9.9] * 50))
    site.clock.tomorrow()
    monitor.look()
    (made,) = site.releases()
    assert made.counts["input/a"][11] <= 1 + 10 * made.sigma
    assert about(made, 1001)


def test_a_worker_that_was_killed_leaves_what_it_stored(site: Site) -> None:
    pid = os.fork()
    if not pid:
        doomed = site.worker()
        crowd(doomed, range(600))
        doomed.look()
        crowd(doomed, range(600, 9000))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    monitor = site.worker()
    crowd(monitor, range(10_000, 10_400))
    site.clock.tomorrow()
    monitor.look()
    assert site.releases() == []  # the other one may only be late
    site.clock.pass_s(PATIENCE_S)
    monitor.look()
    (made,) = site.releases()
    assert about(made, 1000)
    assert made.lost == {"workers_ended": 1, "last_heard": [START + 3600]}


def test_a_worker_that_is_stopped_loses_nothing(site: Site) -> None:
    stopped, monitor = site.worker(), site.worker()
    crowd(stopped, range(1000))
    stopped.stop()
    site.clock.tomorrow()
    monitor.look()
    (made,) = site.releases()
    assert made.lost == {}
    assert about(made, 1000)


def test_a_store_that_is_away_holds_nothing_up_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "monitoring"
    site = Site(SETTINGS, lambda: LocalCountStore(folder), lambda: LocalLedger(folder))
    site.open_ledger().start()
    monitor = site.worker()
    hidden = folder.rename(tmp_path / "elsewhere")
    folder.write_text("no folder")
    crowd(monitor, range(1000))
    with caplog.at_level(logging.WARNING):
        monitor.look()
    assert site.reports["away"] == 1.0
    assert "counts.sqlite" in caplog.text
    folder.unlink()
    hidden.rename(folder)
    monitor.look()
    assert site.reports["away"] == 0.0
    site.clock.tomorrow()
    monitor.look()
    (made,) = site.releases()
    assert about(made, 1000)


def test_of_a_store_that_is_away_for_long_the_last_windows_are_kept(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "monitoring"
    site = Site(SETTINGS, lambda: LocalCountStore(folder), lambda: LocalLedger(folder))
    site.open_ledger().start()
    monitor = site.worker()
    hidden = folder.rename(tmp_path / "elsewhere")
    folder.write_text("no folder")
    for _ in range(7):
        crowd(monitor, range(1000))
        monitor.look()
        site.clock.tomorrow()
    folder.unlink()
    hidden.rename(folder)
    monitor.look()
    monitor.look()
    days = [made.about.window.name for made in site.releases()]
    assert days == ["2026-12-04", "2026-12-05", "2026-12-06"]


def test_a_redis_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    url = "redis://127.0.0.1:9/0"
    site = Site(
        SETTINGS,
        lambda: RedisCountStore(url, Reach()),
        lambda: RedisLedger(url, Reach()),
    )
    monitor = site.worker()
    ask(monitor, 1, 1.0)
    monitor.look()
    assert site.reports == {"away": 1.0}
    with pytest.raises(MonitoringStoreError):
        site.releases()


def test_nothing_is_released_by_a_clock_that_jumped(site: Site) -> None:
    """A year ahead: no window is released early, and no cap forgotten."""
    monitor = site.worker()
    crowd(monitor, range(500))
    monitor.look()
    site.clock.now += 365 * DAY_S
    crowd(monitor, range(500, 600))
    monitor.look()
    assert site.releases() == []
    site.clock.now -= 365 * DAY_S
    crowd(monitor, range(600, 1000))
    monitor.look()
    site.clock.tomorrow()
    monitor.look()
    (made,) = site.releases()
    assert made.about.window.start == START
    assert made.lost == {"clock_jumped": True}
    assert about(made, 900)


def test_a_clock_that_stays_where_it_jumped_is_believed_after_an_hour(
    site: Site,
) -> None:
    monitor = site.worker()
    crowd(monitor, range(500))
    site.clock.now += DAY_S
    monitor.look()
    assert site.releases() == []
    site.clock.pass_s(BELIEVED_S + 1)
    monitor.look()
    monitor.look()
    (made,) = site.releases()
    assert made.lost == {"clock_jumped": True}


def test_a_step_back_over_the_end_of_a_window_overwrites_nothing(site: Site) -> None:
    monitor = site.worker()
    crowd(monitor, range(500))
    other = site.worker()  # has not stored its last, so that the release waits
    site.clock.tomorrow()
    monitor._flush(closing=False)
    site.clock.now -= 10
    crowd(monitor, range(500, 1000))
    monitor._flush(closing=False)
    site.clock.pass_s(20)
    monitor.look()
    other.look()
    (made,) = site.releases()
    assert about(made, 1000)


def test_quiet_windows_are_withheld_and_cost_little(site: Site) -> None:
    monitor = site.worker(min_subjects=2000)
    site.clock.tomorrow()
    monitor.look()
    (made,) = site.releases()
    assert (made.withheld, made.counts) == ("too few subjects", {})


def test_a_window_that_may_have_been_full_is_withheld(site: Site) -> None:
    """There one subject more might have kept another one out: it would count twice."""
    monitor = site.worker(max_subjects=500)
    crowd(monitor, range(900))
    site.clock.tomorrow()
    monitor.look()
    (made,) = site.releases()
    assert (made.withheld, made.counts) == ("too many subjects", {})


def test_releases_stop_when_the_budget_is_spent(site: Site) -> None:
    """Windows cost what a year of them may; a smaller cap later stops them."""
    monitor = site.worker()
    for _ in range(3):
        crowd(monitor, range(1000))  # twelve deviations of noise more than it takes
        site.clock.tomorrow()
        monitor.look()
    poor = site.worker(epsilon=0.5)
    for _ in range(2):
        crowd(poor, range(1000))
        monitor.stop()
        site.clock.tomorrow()
        poor.look()
    *first, last = [made.withheld for made in site.releases()]
    assert first[:3] == [""] * 3
    assert last == "budget spent"
    year = site.releases()[2].guarantee["composition"]
    assert year["epsilon"] < year["cap_epsilon"] == 8.0


def test_versions_of_a_window_share_its_budget(site: Site) -> None:
    site.versions.append(manifest("1.1.0"))
    monitor = site.worker()
    crowd(monitor, range(2000))
    for subject in range(2000):
        ask(monitor, subject, 2.0, version="1.1.0")
    ask(monitor, 1, 2.0, version="9.9.9")  # is not watched
    site.clock.tomorrow()
    monitor.look()
    first, second = site.releases()
    assert first.about.version != second.about.version
    window = Budget(8.0, 1e-6).per_window("daily")
    assert first.guarantee["rho"] == pytest.approx(window * 0.8 / 2)
    assert second.guarantee["rho"] == pytest.approx(window * 0.8 / 2)


def test_a_version_that_was_retired_is_released_by_whoever_is_there(
    site: Site,
) -> None:
    monitor = site.worker()
    crowd(monitor, range(500))
    monitor.look()
    site.versions[:] = [manifest("2.0.0")]
    crowd(monitor, range(500, 900))
    monitor.look()
    crowd(monitor, range(900, 2000))  # no longer watched
    monitor.stop()
    site.clock.tomorrow()
    site.worker().look()
    old = next(m for m in site.releases() if m.about.version == "1.0.0")
    assert about(old, 900)


def test_counts_of_another_key_are_unreadable_and_said_to_be(site: Site) -> None:
    stranger = site.worker()
    stranger._sealer = Sealer(secrets.token_bytes(32))
    crowd(stranger, range(300))
    stranger.stop()
    site.clock.tomorrow()
    site.worker().look()
    (made,) = site.releases()
    assert made.withheld == "counts unreadable"
    assert made.lost == {"unreadable": True}


def test_nothing_on_disk_or_in_the_log_tells_a_count(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "security")
    monitor = site.worker()
    crowd(monitor, range(777))
    monitor.look()
    data = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert name(5).encode() not in data
    assert bytes.fromhex(name(5)) not in data
    sizes = site.open_store().read(site.open_store().scopes()[0])[0][1]
    monitor.stop()
    other = site.worker()
    crowd(other, range(1000))
    other.look()
    assert {len(s.data) for s in sizes} == {
        len(s.data)
        for _, found in site.open_store().read(site.open_store().scopes()[0])
        for s in found
    }
    # Other libraries' threads may say something of a port, which may be any number.
    ours = [one.getMessage() for one in caplog.records if "security" in one.name]
    assert "777" not in "\n".join(ours)


def test_what_cannot_be_counted_fails_no_answer(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = site.worker()
    broken = {"features": np.zeros((0, 3), np.float32)}
    monitor.count("toy:1.0.0", "0" * 32, 1, broken, {})
    monitor.count("toy:1.0.0", "0" * 32, 1, broken, {})
    assert caplog.text.count("events are not counted") <= 1


def test_many_stores_of_one_worker_are_gathered(any_site: Site) -> None:
    monitor = any_site.worker()
    for subject in range(300):
        ask(monitor, subject, 1.0)
        monitor.look()
    ((_, segments),) = any_site.open_store().read(any_site.open_store().scopes()[0])
    assert len(segments) <= 66
    any_site.clock.tomorrow()
    monitor.look()
    (made,) = any_site.releases()
    assert about(made, 300)
