"""Tickets and labels over two hosts with one store: each once, released once."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.manifest import Manifest, Tensor
from sealgate.protocol.datatypes import narrow
from sealgate.protocol.tensors import TensorSpec
from security.errors import MonitoringError, MonitoringStoreError
from security.monitoring.answers import Answers
from security.monitoring.cohorts import Cohorts, Feedback, open_cohorts
from security.monitoring.counts import Counted, Sealer
from security.monitoring.keeping import LocalCountStore, RedisCountStore
from security.monitoring.labels import LabelStore, LocalLabelStore, RedisLabelStore
from security.monitoring.ledger import Ledger, LocalLedger, RedisLedger
from security.monitoring.outcomes import Statement, state
from security.monitoring.release import Release, about_of, read_releases
from security.monitoring.tickets import Tickets
from security.settings.monitoring import MonitoringSettings
from security.stores.places import Reach
from tests.security.monitoring.test_monitor import DAY_S, Clock, name
from tests.support.bundles import manifest
from tests.support.redis_servers import RedisServer, redis_server

SECRET = secrets.token_bytes(32)
TOY = manifest()
LABELS = {"labels_final_after_days": 10.0, "groups": ("f", "m")}
SETTINGS = MonitoringSettings(
    enabled=True,
    window="daily",
    min_subjects=50,
    epsilon=100.0,
    models={"toy": LABELS, "price": {"labels_final_after_days": 10.0}},
)


@dataclass
class Site:
    """A deployment: one store, one ledger, any number of workers."""

    settings: MonitoringSettings
    open_store: Callable[[], LocalCountStore | RedisCountStore]
    open_labels: Callable[[], LabelStore]
    open_ledger: Callable[[], Ledger]
    clock: Clock = field(default_factory=Clock)
    versions: list[Manifest] = field(default_factory=lambda: [TOY])

    def worker(self, *, secret: bytes = SECRET, **changes: Any) -> Cohorts:
        return Cohorts(
            replace(self.settings, **changes),
            labels=self.open_labels(),
            tickets=Tickets(secret),
            secret=secret,
            store=self.open_store(),
            ledger=self.open_ledger(),
            sealer=Sealer(secret),
            versions=lambda: self.versions,
            clock=self.clock,
            steady=self.clock.steady,
        )

    def releases(self) -> list[Release]:
        return read_releases(self.open_ledger(), kind="labels")

    def finish(self, *workers: Cohorts) -> Statement:
        """Wait until labels are final, release, and say what came out."""
        for _ in range(11):
            self.clock.tomorrow()
            for worker in workers:
                worker.look()
        return state([self.largest])

    @property
    def largest(self) -> Release:
        """Where a clock has jumped there are releases of nobody, too."""
        return max(self.releases(), key=lambda made: made.subjects or 0)


def local(folder: Path) -> Site:
    LocalLedger(folder).start()
    LocalLabelStore(folder).start()
    return Site(
        SETTINGS,
        lambda: LocalCountStore(folder),
        lambda: LocalLabelStore(folder),
        lambda: LocalLedger(folder),
    )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return local(tmp_path / "monitoring")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


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
        lambda: RedisLabelStore(url, Reach()),
        lambda: RedisLedger(url, Reach()),
    )


def scores(*yes: float) -> dict[str, Any]:
    return {"probabilities": np.array([[1 - one, one] for one in yes], np.float32)}


def ask(
    worker: Cohorts, subject: int, *yes: float, version: str = "1.0.0"
) -> list[str]:
    found = worker.issue(f"toy:{version}", name(subject), scores(*yes))
    return [ticket for ticket in found if ticket is not None]


def bring(
    worker: Cohorts, *tickets: str, label: object = "yes", **more: Any
) -> list[str]:
    items = [Feedback(ticket, label, more.get("group", "")) for ticket in tickets]
    return worker.accept(more.get("model", "toy"), items)


def exact(worker: Cohorts) -> Counted:
    """What would be released, before noise."""
    worker.look()
    (scope,) = worker._store.scopes()
    about = about_of(scope)
    parts, meaning, _ = worker._opened(about, worker._store.read(scope))
    return worker._counted(about, meaning, parts)


def test_two_hosts_with_one_store(any_site: Site) -> None:
    """What one gave the other takes, once; the cohort is released once."""
    here, there = any_site.worker(), any_site.worker()
    given = [ask(here, subject, 0.9)[0] for subject in range(400)]
    given += [ask(there, subject, 0.2)[0] for subject in range(400, 600)]
    for worker in (here, there):
        worker.look()
    any_site.clock.tomorrow()
    labels = ["yes"] * 360 + ["no"] * 240
    items = [Feedback(*pair, "f") for pair in zip(given, labels)]
    assert set(there.accept("toy", items)) == {"accepted"}
    assert set(here.accept("toy", items)) == {"spent"}
    assert any_site.releases() == []
    found = any_site.finish(here, there)
    (made,) = any_site.releases()
    assert (made.withheld, made.lost) == ("", {})
    assert made.guarantee["contribution"].startswith("one answer of each subject")
    assert made.sigma < 10
    # Ten deviations: a wrong no in less than 10^20 runs.
    assert abs(found.subjects - 600) < 10 * made.guarantee["subjects_sigma"]
    for name_, wanted in (
        ("confusion", [200, 0, 40, 360]),
        ("groups", [200, 0, 40, 360]),
    ):
        noise = np.array(made.counts[name_][:4]) - wanted
        assert np.abs(noise).max() < 10 * made.sigma
    assert found.refused == ""
    # Nothing remains of it but the release.
    assert made.about.key not in any_site.open_store().scopes()
    assert any_site.open_labels().read(made.about.key) == {}


def test_at_once_on_two_hosts(any_site: Site) -> None:
    """Of many who bring the same tickets at the same time, one is told that it did."""
    workers = [any_site.worker() for _ in range(4)]
    given = [ask(workers[0], subject, 0.9)[0] for subject in range(30)]
    workers[0].look()
    found: list[list[str]] = []
    barrier = threading.Barrier(len(workers))

    def run(worker: Cohorts) -> None:
        barrier.wait()
        found.append(bring(worker, *given))

    threads = [threading.Thread(target=run, args=(one,)) for one in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    each = [Counter(outcomes) for outcomes in zip(*found)]
    assert each == [Counter(accepted=1, spent=3)] * 30


def test_labels_come_while_a_cohort_is_dropped(site: Site) -> None:
    """The thread that releases shares the store's connection with requests'."""
    worker = site.worker()
    given = ask(worker, 1, *[0.9] * 64)
    done, found = threading.Event(), set[str]()

    def drop() -> None:
        while not done.is_set():
            worker._drop("labels/other/1.0.0/2026-11-01")

    dropping = threading.Thread(target=drop)
    dropping.start()
    try:
        for ticket in given:
            found |= set(bring(worker, ticket))
    finally:
        done.set()
        dropping.join()
    assert found == {"accepted"}


def test_twice_in_one_request(any_site: Site) -> None:
    worker = any_site.worker()
    (ticket,) = ask(worker, 1, 0.9)
    assert bring(worker, ticket, ticket) == ["accepted", "spent"]
    assert bring(worker, ticket, label="no") == ["spent"]


def test_a_heavy_subject_counts_once(site: Site) -> None:
    """However many answers and labels it brings, it is one of two hundred."""
    worker = site.worker()
    given = [ask(worker, subject, 0.9)[0] for subject in range(200)]
    mine = [ticket for _ in range(8) for ticket in ask(worker, 1000, *[0.9] * 8)]
    assert set(bring(worker, *given)) == {"accepted"}
    assert set(bring(worker, *mine, label="no")) == {"accepted"}
    counted = exact(worker)
    assert counted.subjects == 201
    assert counted.counts["confusion"].tolist() == [0, 0, 1, 200]


def test_only_the_chosen_answer_of_a_subject_counts(site: Site) -> None:
    """Bringing the labels of right answers only gains nothing: most are silent."""
    worker = site.worker()
    bring(worker, *(ask(worker, subject, 0.9, 0.9)[0] for subject in range(600)))
    silent, right, wrong = exact(worker).counts["cells"].reshape(-1, 3).sum(axis=0)
    assert (silent + right, wrong) == (600, 0)
    assert 150 < silent < 450  # twelve deviations


def test_what_strangers_learn(site: Site, tmp_path: Path) -> None:
    """Unknown, foreign and forged tickets have one outcome, whatever the label."""
    worker = site.worker()
    (ticket,) = ask(worker, 1, 0.9)
    elsewhere = local(tmp_path / "elsewhere").worker(secret=secrets.token_bytes(32))
    (foreign,) = ask(elsewhere, 1, 0.9)
    forged = ticket[:-1] + ("A" if ticket[-1] != "A" else "B")
    for text in ("", "x", foreign, forged, ticket + "=", ticket[:-4]):
        for label in ("yes", "maybe", 7, 1e400, [], None):
            assert bring(worker, text, label=label) == ["refused"]
        assert bring(worker, text, group="nobody") == ["refused"]
    assert bring(worker, ticket, model="other") == ["refused"]
    assert worker.accept("toy", [Feedback(ticket, "yes")], may=lambda _: False) == [
        "refused"
    ]
    assert bring(worker, ticket) == ["accepted"]


@pytest.mark.parametrize(
    "label", ["maybe", 2, -1, 0.5, "2", True, float("nan"), 10**400, None, [], {}]
)
def test_labels_outside_the_classes(site: Site, label: object) -> None:
    worker = site.worker()
    (ticket,) = ask(worker, 1, 0.9)
    assert bring(worker, ticket, label=label) == ["no such label"]
    assert bring(worker, ticket, group="x") == ["no such group"]
    assert bring(worker, ticket, group="f") == ["accepted"]


def test_a_long_label_takes_no_time(site: Site) -> None:
    """As many digits as a request holds were read in every way: for four minutes."""
    worker = site.worker()
    digits = "1" * 60_000
    began = time.thread_time()
    for label in (f"{digits}.{digits}x", f"{digits}{digits}x"):
        assert bring(worker, *ask(worker, 1, 0.9), label=label) == ["no such label"]
        assert Answers("price", high=9.0).label(label) is None
    assert time.thread_time() - began < 5


@pytest.mark.parametrize("label", ["yes", "no", 0, 1, 1.0, "1"])
def test_labels_of_the_classes(site: Site, label: object) -> None:
    worker = site.worker()
    assert bring(worker, *ask(worker, 1, 0.9), label=label) == ["accepted"]


def test_expired(site: Site) -> None:
    worker = site.worker()
    early, late = ask(worker, 1, 0.9, 0.9)
    worker.look()
    site.clock.tomorrow()
    site.clock.pass_s(10 * DAY_S - 10)
    assert bring(worker, early) == ["accepted"]
    site.clock.pass_s(10)
    assert bring(worker, early, late) == ["expired", "expired"]
    worker.look()
    assert bring(worker, early, late) == ["expired", "expired"]


def test_a_version_that_is_served_no_more(site: Site) -> None:
    """The store knows what its answers meant, for servers and for the command."""
    worker = site.worker()
    (ticket,) = ask(worker, 1, 0.9)
    worker.look()
    site.versions = [replace(TOY, version="2.0.0")]
    later = site.worker()
    assert bring(later, ticket, label="maybe") == ["no such label"]
    assert bring(later, ticket) == ["accepted"]
    other = site.worker()
    assert bring(other, ticket) == ["spent"]
    (unknown,) = ask(other, 1, 0.9, version="2.0.0")
    site.versions = []
    assert bring(site.worker(), unknown) == ["refused"]  # its worker stored nothing


def test_clocks_that_jump(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing expires, is spent or released by a clock that cannot be believed."""
    worker = site.worker()
    given = [ask(worker, subject, 0.9)[0] for subject in range(400)]
    worker.look()
    for jump in (30 * DAY_S, -30 * DAY_S):
        site.clock.now += jump
        with pytest.raises(MonitoringStoreError, match="the clock has jumped"):
            bring(worker, *given)
        with caplog.at_level(logging.WARNING):
            worker.look()
        assert site.releases() == []
        site.clock.now -= jump
        worker.look()
    assert set(bring(worker, *given)) == {"accepted"}
    site.finish(worker)
    assert site.largest.lost == {"clock_jumped": True}


def test_the_store_is_away(site: Site, tmp_path: Path) -> None:
    """Tickets go out all the same; labels are not taken, and not said to be."""
    worker = site.worker()
    given = [ask(worker, subject, 0.9)[0] for subject in range(100)]
    folder = tmp_path / "monitoring"
    folder.rename(tmp_path / "away")
    folder.write_bytes(b"")
    worker._labels.close()
    (late,) = ask(worker, 500, 0.9)
    with pytest.raises(MonitoringStoreError):
        bring(worker, *given)
    folder.unlink()
    (tmp_path / "away").rename(folder)
    assert set(bring(worker, *given, late)) == {"accepted"}
    assert exact(worker).counts["confusion"].tolist() == [0, 0, 0, 101]


def test_redis_is_away(redis: RedisServer, site: Site) -> None:
    worker = replace(
        site, open_labels=lambda: RedisLabelStore("redis://127.0.0.1:1/0", Reach())
    ).worker()
    (ticket,) = ask(worker, 1, 0.9)
    with pytest.raises(MonitoringStoreError, match="redis: ConnectionError"):
        bring(worker, ticket)


def test_room(any_site: Site) -> None:
    """One caller's labels are bounded, and take no other's room."""
    worker = any_site.worker(max_subjects=10, max_labels_per_subject=5)
    mine = ask(worker, 1, *[0.9] * 8)
    assert bring(worker, *mine) == ["accepted"] * 5 + ["full"] * 3
    others = [ask(worker, subject, *[0.9] * 5) for subject in range(2, 11)]
    for tickets in others:
        assert bring(worker, *tickets) == ["accepted"] * 5
    assert bring(worker, mine[7], others[0][0]) == ["full", "spent"]
    # More subjects than there is room for: such a window is not released at all.
    assert bring(worker, *ask(worker, 99, 0.9)) == ["full"]


def test_what_the_store_shows(site: Site, tmp_path: Path) -> None:
    """Neither labels nor groups nor callers; and what others put there is not read."""
    worker = site.worker()
    given = [ask(worker, subject, 0.9)[0] for subject in range(100)]
    bring(worker, *given[:50], label="no", group="f")
    worker.look()
    store = LocalLabelStore(tmp_path / "monitoring")
    (scope,) = LocalCountStore(tmp_path / "monitoring").scopes()
    kept = store.read(scope)
    assert {len(data) for data in kept.values()} == {60}
    files = b"".join(path.read_bytes() for path in (tmp_path / "monitoring").iterdir())
    for subject in range(100):
        assert bytes.fromhex(name(subject)) not in files
    assert name(1).encode() not in files
    # A label that is moved to another ticket's place does not open.
    first, second, *_ = kept
    store._file.execute("UPDATE labels SET data = ? WHERE id = ?", kept[first], second)
    counted = exact(worker)
    assert counted.subjects == 100
    assert counted.counts["confusion"].tolist() == [0, 0, 49, 0]


def test_silence_is_a_label(site: Site) -> None:
    """As the settings say: who did not default in ten days has not defaulted."""
    silent = {"toy": {**LABELS, "silence": "no"}}
    worker = site.worker(models=silent)
    given = [
        ask(worker, subject, 0.9 if subject < 100 else 0.2)[0] for subject in range(400)
    ]
    bring(worker, *given[:80])
    counted = exact(worker)
    assert counted.counts["confusion"].tolist() == [300, 0, 20, 80]
    assert counted.counts["cells"].reshape(-1, 3)[:, 0].sum() == 0


def test_numbers(site: Site) -> None:
    price = Tensor(TensorSpec("price", "FP32", (-1, 1)), bounds=(0.0, 100.0))
    site.versions = [replace(TOY, name="price", outputs=(price,))]
    worker = site.worker()
    given = []
    for subject in range(500):
        answer = {"price": np.array([[subject % 100]], np.float32)}
        given += worker.issue("price:1.0.0", name(subject), answer)
    for label in (-0.1, 100.1, "dear", float("inf")):
        assert bring(worker, given[0], label=label, model="price") == ["no such label"]
    labels = [min(subject % 100 + 3, 100) for subject in range(500)]
    items = [Feedback(*pair) for pair in zip(given, labels)]
    assert set(worker.accept("price", items)) == {"accepted"}
    cells = exact(worker).counts["cells"].reshape(5, 15)
    huge = {"price": np.array([1e300, -np.inf, np.nan])}
    assert [one is None for one in worker.issue("price:1.0.0", name(0), huge)] == [
        False, False, True
    ]  # fmt: skip
    # All but those at the upper end are three of a hundred too low.
    assert (cells[:, 0].sum(), cells[:, 5].sum(), cells.sum()) == (0, 490, 500)


def test_rows_without_a_number(site: Site) -> None:
    worker = site.worker()
    found = worker.issue("toy:1.0.0", name(1), scores(0.9, float("nan"), 0.1))
    assert [ticket is None for ticket in found] == [False, True, False]
    assert worker.issue("toy:1.0.0", name(1), scores(float("nan"))) == [None]


def test_models_without_tickets(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Their outputs are no classes, or the settings mean a class that is none."""
    bare = replace(TOY, name="bare", outputs=TOY.outputs[1:])
    site.versions = [bare, TOY]
    worker = site.worker(models={"toy": {"silence": "perhaps"}})
    for tag in ("bare:1.0.0", "toy:1.0.0", "unknown:1.0.0"):
        assert worker.gives(tag) == ""
        with pytest.raises(MonitoringError, match="take no labels"):
            worker.issue(tag, name(1), scores(0.9))
    worker.look()
    told = [line for line in caplog.messages if "'perhaps' is none" in line]
    assert len(told) == 1


def test_one_ticket_makes_no_release(site: Site, tmp_path: Path) -> None:
    """Whether anybody asked shows nowhere: not in which releases there are, not in
    their shares of the budget, not in what is said to be lost.
    """
    found = []
    for folder, asked in (("none", 0), ("one", 1)):
        site = local(tmp_path / folder)
        # Some forty deviations of the noise on how many there are: it never says that
        # there are enough.
        site.settings = replace(SETTINGS, min_subjects=1000)
        site.versions = [TOY, replace(TOY, version="2.0.0")]
        dies, stays = site.worker(), site.worker()
        for subject in range(asked):
            ask(dies, subject, 0.9, version="2.0.0")
        dies.look()
        for _ in range(12):
            site.clock.tomorrow()
            stays.look()
        found.append(
            [
                (one.about.key, one.withheld, one.lost, one.guarantee["rho"])
                for one in site.releases()
            ]
        )
    assert found[0] == found[1] != []
    assert {withheld for _, withheld, _, _ in found[0]} == {"too few subjects"}


def test_a_version_that_is_not_counted_gives_no_tickets(site: Site) -> None:
    """One would make a cohort where without it there is none."""
    worker = site.worker()
    ask(worker, 1, 0.9)
    site.versions = [replace(TOY, version="2.0.0")]
    worker.look()
    assert worker.gives("toy:1.0.0") == ""
    assert ask(worker, 1, 0.9)  # of a request that was under way
    site.clock.tomorrow()
    with pytest.raises(MonitoringError, match="its last window is over"):
        ask(worker, 1, 0.9)
    worker.look()
    scopes = site.open_store().scopes()
    assert len([one for one in scopes if "/1.0.0/" in one]) == 1


def test_numbers_of_16_bits(site: Site) -> None:
    """What a BF16 output answers is its number, and not the bits of it."""
    price = Tensor(TensorSpec("price", "BF16", (-1, 1)), bounds=(0.0, 100.0))
    site.versions = [replace(TOY, name="price", outputs=(price,))]
    worker = site.worker()
    answer = {"price": narrow(np.array([[50.0]], np.float32))}
    (ticket,) = worker.issue("price:1.0.0", name(1), answer)
    assert bring(worker, str(ticket), label=50, model="price") == ["accepted"]
    cells = exact(worker).counts["cells"].reshape(5, 15)
    assert np.argwhere(cells).tolist() == [[2, 8]]


def test_where_labels_have_no_budget(tmp_path: Path) -> None:
    assert open_cohorts(MonitoringSettings(), versions=list) is None
    off = MonitoringSettings(enabled=True, labels_share=0.0)
    assert open_cohorts(off, versions=list) is None
