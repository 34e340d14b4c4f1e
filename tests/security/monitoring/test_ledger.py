"""No release is made before it is booked, twice, or beyond the year's budget."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from security.commands import main
from security.errors import (
    BookedError,
    BudgetSpentError,
    MonitoringError,
    MonitoringStoreError,
)
from security.monitoring.guarantee import epsilon_of, sigma_of
from security.monitoring.ledger import (
    YEAR_S,
    Budget,
    Entry,
    Ledger,
    LocalLedger,
    RedisLedger,
)
from security.monitoring.release import About, Release, read_releases, release
from security.monitoring.windows import window_named
from security.stores.places import Reach
from tests.support.redis_servers import RedisServer, losing_answers, redis_server

NOW = 1_796_000_000.0
BUDGET = Budget(8.0, 1e-6)
WINDOW = window_named("2026-W48")
ABOUT = About("drift", "toy", "1.0.0", WINDOW)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(params=["local", "redis"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    found: Ledger
    if request.param == "local":
        found = LocalLedger(tmp_path / "monitoring")
    else:
        found = RedisLedger(request.getfixturevalue("redis").url, Reach())
        found._redis.client.flushall()  # type: ignore[attr-defined]
        found.new_ledger()
    found.start()
    yield found
    found.close()


def released(ledger: Ledger, about: About = ABOUT, **changes: object) -> Release:
    given: dict[str, object] = {
        "rho": 0.02,
        "sensitivity": math.sqrt(2),
        "contribution": "one event, chosen at random",
        "subjects": 3000,
        "min_subjects": 200,
        "max_subjects": 1 << 16,
        "now": NOW,
    } | changes
    counts = {"age": np.array([1000, 1500, 500]), "score": np.array([3000, 0])}
    return release(ledger, BUDGET, about, counts, **given)  # type: ignore[arg-type]


def test_a_release_is_made_once_and_says_what_it_cost(ledger: Ledger) -> None:
    made = released(ledger, lost={"workers": 0})
    assert made.withheld == ""
    assert list(map(len, made.counts.values())) == [3, 2]
    assert made.counts["age"] != (1000, 1500, 500)
    assert made.sigma == sigma_of(0.02 * 0.95, math.sqrt(2))
    guarantee = made.guarantee
    assert guarantee["epsilon"] == epsilon_of(0.02, 1e-6)
    assert guarantee["composition"]["rho"] == pytest.approx(0.02)
    assert abs(made.counts["age"][0] - 1000) < 10 * made.sigma
    assert read_releases(ledger, kind="drift") == [made]
    assert read_releases(ledger, kind="drift", model="other") == []
    assert Release.from_json(made.to_json()) == made
    with pytest.raises(BookedError):
        released(ledger)
    assert sum(entry.rho for entry in ledger.entries()) == pytest.approx(0.02)


def test_what_a_record_states_is_enough_to_recompute_it(ledger: Ledger) -> None:
    """By the exact curve of a second library, from the record's own numbers."""
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    document = json.loads(released(ledger).to_json())
    said = document["guarantee"]
    accountant = PLDAccountant()
    for sigma, sensitivity in (
        (document["sigma"], said["sensitivity"]),
        (said["subjects_sigma"], 1.0),
    ):
        accountant.compose(dp_event.GaussianDpEvent(sigma / sensitivity))
    found = accountant.get_epsilon(said["delta"])
    assert found == pytest.approx(said["epsilon"], rel=2e-3)


def test_too_few_subjects_cost_their_count_only(ledger: Ledger) -> None:
    made = released(ledger, subjects=3, min_subjects=1000)
    assert (made.withheld, made.counts) == ("too few subjects", {})
    assert made.guarantee["rho"] == pytest.approx(0.001)
    assert sum(entry.rho for entry in ledger.entries()) == pytest.approx(0.001)
    with pytest.raises(BookedError):
        released(ledger)


def test_releases_stop_at_the_cap_and_say_so(ledger: Ledger) -> None:
    window, count = WINDOW, 0
    while True:
        about = About("drift", "toy", "1.0.0", window)
        made = released(ledger, about, rho=BUDGET.rho / 5)
        if made.withheld:
            break
        window, count = window.next, count + 1
    assert (made.withheld, count) == ("budget spent", 5)
    total = sum(entry.rho for entry in ledger.entries())
    assert total == pytest.approx(BUDGET.rho)
    assert made.guarantee["composition"]["epsilon"] == pytest.approx(8.0)
    # The same for every other model and kind: it is one budget.
    other = About("labels", "other", "2.0.0", WINDOW)
    assert released(ledger, other, rho=0.001).withheld == "budget spent"
    # A year later there is room again.
    later = About("drift", "toy", "1.0.0", window.next)
    assert released(ledger, later, now=NOW + YEAR_S + 1).withheld == ""


def test_so_small_a_share_that_its_noise_cannot_be_drawn(ledger: Ledger) -> None:
    """The release is withheld; it does not fail again and again before all others."""
    made = released(ledger, rho=1e-7)
    assert (made.withheld, made.guarantee["rho"]) == ("budget spent", 0)
    # The number of subjects can be had, and the counts cannot.
    about = About("drift", "toy", "2.0.0", WINDOW)
    many = {"subjects": 1 << 20, "max_subjects": 1 << 22}
    made = released(ledger, about, rho=1e-6, sensitivity=8.0, **many)
    assert made.withheld == "budget spent"
    assert made.guarantee["rho"] == pytest.approx(5e-8)
    assert len(ledger.entries()) == 3


def test_a_clock_that_was_ahead_forgets_nothing(ledger: Ledger) -> None:
    ledger.book(Entry("drift/a/1/2026-W48", NOW + YEAR_S, BUDGET.rho), BUDGET)
    with pytest.raises(BudgetSpentError):
        ledger.book(Entry("drift/a/1/2026-W49", NOW, 0.01), BUDGET)


def test_a_releaser_that_died_has_spent_its_part(ledger: Ledger) -> None:
    ledger.book(Entry(f"{ABOUT.key}/subjects", NOW, 0.001), BUDGET)
    with pytest.raises(BookedError):
        released(ledger)
    (lost,) = read_releases(ledger, kind="drift")
    assert (lost.withheld, lost.counts) == ("releaser ended", {})


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_nonsense_is_not_booked(ledger: Ledger, rho: float) -> None:
    with pytest.raises(MonitoringError):
        ledger.book(Entry("drift/a/1/2026-W48", NOW, rho), BUDGET)
    assert ledger.entries() == []


def book_many(folder: Path, who: int, results: multiprocessing.Queue[int]) -> None:
    ledger, won = LocalLedger(folder), 0
    for number in range(30):
        try:
            key = f"drift/m/{number}/2026-W48"
            ledger.book(Entry(key, NOW + who, BUDGET.rho / 20), BUDGET)
            won += 1
        except (BookedError, BudgetSpentError):
            pass
    results.put(won)


def test_of_several_workers_one_books_each_and_none_passes_the_cap(
    tmp_path: Path,
) -> None:
    LocalLedger(tmp_path).start()
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()  # type: ignore[assignment]
    workers = [
        context.Process(target=book_many, args=(tmp_path, who, results))
        for who in range(3)
    ]
    for worker in workers:
        worker.start()
    assert sum(results.get(timeout=60) for _ in workers) == 20
    for worker in workers:
        worker.join()
    assert len(LocalLedger(tmp_path).entries()) == 20


def test_a_kill_between_booking_and_noise_leaves_it_booked(tmp_path: Path) -> None:
    LocalLedger(tmp_path).start()
    pid = os.fork()
    if not pid:
        LocalLedger(tmp_path).book(Entry(ABOUT.key, NOW, 0.5), BUDGET)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (entry,) = LocalLedger(tmp_path).entries()
    assert (entry.rho, entry.record) == (0.5, b"")


def test_a_ledger_that_is_gone_is_not_empty(tmp_path: Path) -> None:
    folder = tmp_path / "monitoring"
    ledger = LocalLedger(folder)
    ledger.start()
    ledger.close()
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(MonitoringStoreError, match="is gone"):
        ledger.start()
    with pytest.raises(MonitoringStoreError):
        ledger.entries()


def test_a_redis_that_forgets_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(MonitoringStoreError, match="appendonly")
    with redis_server(tmp_path, "--appendonly", "no") as running, refused:
        RedisLedger(running.url, Reach()).start()


def test_a_redis_that_is_away_stops_no_start() -> None:
    ledger = RedisLedger("redis://127.0.0.1:9/0", Reach())
    ledger.start()
    with pytest.raises(MonitoringStoreError):
        ledger.book(Entry(ABOUT.key, NOW, 0.25), BUDGET)


def test_a_booking_whose_answer_was_lost_is_one_booking(redis: RedisServer) -> None:
    RedisLedger(redis.url, Reach())._redis.client.flushall()
    RedisLedger(redis.url, Reach()).new_ledger()
    with losing_answers(redis.port, ABOUT.key.encode()) as (url, lost):
        ledger = RedisLedger(url, Reach())
        ledger.book(Entry(ABOUT.key, NOW, 0.25), BUDGET)
        assert [entry.rho for entry in ledger.entries()] == [0.25]
        ledger.close()
        assert lost


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "x"},
        {"withheld": "because"},
        {"window": {"name": "2026-W99"}},
        {"counts": {"age": ["a"]}},
        {"counts": 3},
        {"sigma": "wide"},
        {"released_at": "yesterday"},
    ],
)
def test_malformed_records_are_refused(change: dict[str, object]) -> None:
    document = json.loads(Release(ABOUT, int(NOW)).to_json()) | change
    with pytest.raises(MonitoringError):
        Release.from_json(json.dumps(document).encode())


def test_the_ledger_of_a_new_redis_is_made_by_a_command(
    redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once, under the deployment's own prefix; a server's start makes none."""
    reach = Reach("blue")
    monkeypatch.setenv("SEALGATE_MONITORING_STORE", redis.url)
    monkeypatch.setenv("SEALGATE_REDIS_PREFIX", reach.prefix)
    with closing(RedisLedger(redis.url, reach)) as ledger:
        with pytest.raises(MonitoringStoreError, match="monitor --new-ledger"):
            ledger.start()
        assert main(["monitor", "--new-ledger"]) == 0
        assert "made a ledger" in capsys.readouterr().out
        ledger.start()
    assert main(["monitor", "--new-ledger"]) == 2
    assert capsys.readouterr().err == "error: redis: there is a ledger\n"
