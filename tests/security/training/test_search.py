"""Choosing settings privately: what it costs, that it is paid for, what it tells."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from models.bundle import read_bundle
from security.commands.admit import _numbers
from security.errors import AdmissionRefused, LedgerError, TrainingError
from security.training.accounting import (
    Mechanism,
    Spent,
    compose,
    epsilon_prv,
    epsilon_selected,
    find_noise_multiplier,
    recompute_epsilon,
)
from security.training.candidates import candidates
from security.training.config import load_config, parse_object
from security.training.ledger import Ledger
from security.training.noise import SeededRandomness
from security.training.run import train_bundle
from security.training.selection import DISTRIBUTIONS, Selection
from tests.support.in_process import security_code
from tests.support.servers import ROOT, environment
from tests.support.small_training import CONFIG, write_config

SEARCH = (
    CONFIG
    + """
[search]
tries = 3
learning_rate = [0.001, 1.0]
clipping = ["flat", "automatic"]
"""
)
KINDS = sorted(DISTRIBUTIONS)
TRUNCATED = ["geometric", "logarithmic"]


def generating(selection: Selection, share: float) -> float:
    """The mean of share^K: the chance that no try is above a point of that share."""
    if math.isinf(selection.shape):
        return math.exp(selection.tries * (share - 1))
    rest, shape = 1 - selection.gamma, selection.shape
    if shape == 0:
        return math.log1p(-rest * share) / math.log(selection.gamma)
    top = (1 - rest * share) ** -shape - 1
    return top / (selection.gamma**-shape - 1)


def divergence(first: np.ndarray, second: np.ndarray, order: float) -> float:
    """Rényi's, in the worse direction: neighbours are neighbours both ways."""
    one, two = np.log(first), np.log(second)
    sums = (logsumexp(order * a + (1 - order) * b) for a, b in ((one, two), (two, one)))
    return float(max(sums)) / (order - 1)


def best_of(once: np.ndarray, selection: Selection) -> np.ndarray:
    """The distribution of the best of K draws; "nothing" is one more outcome."""
    below = np.concatenate([[0.0], np.cumsum(once)])
    reached = np.array([generating(selection, min(1.0, share)) for share in below])
    return np.concatenate([[reached[0]], np.diff(reached)])


@given(
    kind=st.sampled_from(KINDS),
    tries=st.floats(1.1, 40.0),
    odds=st.lists(st.floats(0.2, 5.0), min_size=2, max_size=5),
    tilt=st.lists(st.floats(-0.7, 0.7), min_size=5, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_the_bound_holds_where_the_truth_can_be_computed(kind, tries, odds, tilt):
    first = np.array(odds) / sum(odds)
    second = first * np.exp(np.array(tilt[: len(odds)]))
    second /= second.sum()
    selection = Selection(tries, kind, 1.0)
    orders = [1.5, 2.0, 3.0, 5.0, 9.0, 17.0, 65.0]
    once = np.array([divergence(first, second, order) for order in orders])
    bounds = selection.bound(orders, once)
    chosen = [best_of(item, selection) for item in (first, second)]
    keep = (chosen[0] > 0) & (chosen[1] > 0)
    for order, bound in zip(orders, bounds):
        truth = divergence(chosen[0][keep], chosen[1][keep], order)
        assert truth <= bound + 1e-9


@pytest.mark.parametrize(("kind", "times"), [("logarithmic", 2), ("geometric", 3)])
def test_a_pure_guarantee_is_paid_two_or_three_times(kind, times):
    # Papernot and Steinke's corollary for pure privacy: (2 + shape) epsilon.
    orders = [2.0**k for k in range(1, 41)]
    bound = Selection(8.0, kind, 1.0).bound(orders, np.full(len(orders), 0.5))
    assert bound[-1] == pytest.approx(times * 0.5, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tries", [1.5, 8.0, 60.0])
def test_another_library_agrees(kind, tries):
    mechanism, selection = Mechanism(0.05, 1.5, 200), Selection(tries, kind, 10.0)
    mine = epsilon_selected(mechanism, selection, 1e-5)
    other = recompute_epsilon(0.05, 1.5, 200, 1e-5, selection=selection)
    assert mine == pytest.approx(other, abs=1e-6)
    assert mine > epsilon_prv(mechanism, 1e-5)


def test_the_noise_pays_for_all_of_it():
    selection = Selection(8.0, "geometric", 10.0)
    asked = {"epsilon": 2.0, "delta": 1e-5, "sample_rate": 0.05, "steps": 100}
    noise = find_noise_multiplier(**asked, selection=selection)
    assert noise > 1.2 * find_noise_multiplier(**asked)
    spent = epsilon_selected(Mechanism(0.05, noise, 100), selection, 1e-5)
    assert 1.99 < spent <= 2.0
    with pytest.raises(TrainingError, match="choosing alone costs more"):
        find_noise_multiplier(**asked, selection=replace(selection, score_noise=0.1))
    with pytest.raises(TrainingError, match="for groups"):
        recompute_epsilon(0.05, noise, 100, 1e-5, group=2, selection=selection)


def test_searches_add_up_with_trainings():
    item = Spent(1.0, 20.0, 12, selection=Selection(3.0, "geometric", 10.0))
    plain = replace(item, selection=None)
    assert compose([item], 1e-3) > compose([plain], 1e-3)
    assert compose([item, plain], 1e-3) > compose([plain, plain], 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_tries_has_the_stated_distribution(kind):
    selection = Selection(6.0, kind, 1.0)
    draws = np.random.default_rng(5).random(4000)
    counts = np.array([selection.count(float(u)) for u in draws])
    spread = counts.std() / math.sqrt(len(counts))
    assert abs(counts.mean() - 6.0) < 6 * spread
    for share in (0.2, 0.5, 0.9):  # the generating function tells the distribution
        values = share ** counts.astype(float)
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - generating(selection, share)) < 6 * error
    assert counts.min() == (0 if kind == "poisson" else 1)
    assert Selection(100.0, "poisson", 1.0).count(0.5) in range(98, 103)


FAULTS = {
    "nothing to choose": (
        'learning_rate = [0.001, 1.0]\nclipping = ["flat", "automatic"]',
        "",
        "search: needs a list",
    ),
    "one try": ("tries = 3", "tries = 1", "search.tries: must be above 1"),
    "distribution": (
        "tries = 3",
        'tries = 3\ndistribution = "geometrc"',
        "did you mean 'geometric'",
    ),
    "misspelt": ("clipping = [", "cliping = [", "did you mean 'clipping'"),
    "not a list": ("learning_rate = [0.001, 1.0]", "learning_rate = 2", "a list"),
    "twice": ("[0.001, 1.0]", "[1.0, 1.0]", "search.learning_rate: a value twice"),
    "a bad candidate": ("[0.001, 1.0]", "[-1.0]", "candidate's optimizer.learning_"),
    "a bad width": ("tries = 3", "tries = 3\nhidden = [[4]]", "candidate's model.hid"),
    "no noise": ("tries = 3", "tries = 3\nscore_noise = 0", "score_noise: must be"),
    "the mechanism": ("tries = 3", "tries = 3\nsteps = [5]", "unknown key 'steps'"),
    "groups": ("steps = 12", 'steps = 12\nunit_bound = "group"', "search: not with"),
    "public": (
        "steps = 12",
        'steps = 12\nmechanism = "none"',
        "is for data.personal = false",
    ),
    "too many": (
        "[0.001, 1.0]",
        str([i / 1000 for i in range(1, 502)]),
        "1002 candidates",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    before, after, message = FAULTS[fault]
    path = write_config(tmp_path, SEARCH)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(TrainingError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def account(ledger: Ledger):
    (only,) = ledger.accounts()
    return only


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, config = tmp_path / "home", str(write_config(tmp_path, SEARCH))
    assert security_code(home, "train", config, "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    # Nothing about how many tries there were, nor about those that lost.
    assert [line.split()[0] for line in said.splitlines()] == [
        # Some of the made-up rows are the same, and no unit says whose they are.
        *("data", "warning", "noise", "search", "privacy", "export", "bundle"),
    ]
    assert "of 4 candidates: clipping " in said
    privacy = read_bundle(tmp_path / "out").report("privacy")
    assert privacy.conditions["hyperparameters"] == "private_selection"
    assert privacy.conditions["search_expected_tries"] == 3.0
    assert privacy.conditions["training_loss"] == "not_told"
    claimed = privacy.metrics["epsilon"].value
    assert 1.9 < claimed <= 2.0
    assert all(check.passed for check in privacy.checks)
    # The gate computes all of it again, not the one try that is left.
    assert _numbers(privacy)["epsilon"] == pytest.approx(claimed, rel=0.01)
    config = privacy.details["config"]
    assert config["search"]["tries"] == 3.0
    assert config["optimizer"]["learning_rate"] in (0.001, 1.0)
    ledger = Ledger(tmp_path / "home" / "ledger")
    assert account(ledger).spent == pytest.approx(claimed, abs=0.01)
    assert security_code(home, "ledger", "show") == 0
    assert "the best of about 3 tries" in capsys.readouterr().out
    hidden = {k: v for k, v in privacy.conditions.items() if k != "search_score_noise"}
    with pytest.raises(AdmissionRefused, match="search_score_noise"):
        _numbers(replace(privacy, conditions=hidden))


def test_the_better_setting_wins_and_the_cap_holds(tmp_path: Path) -> None:
    text = SEARCH.replace("tries = 3", "tries = 12").replace(
        'clipping = ["flat", "automatic"]', "score_noise = 4.0"
    )
    config = load_config(write_config(tmp_path, text, epsilon="8.0"))
    ledger = Ledger(tmp_path / "ledger")
    shown: list[tuple[object, ...]] = []
    train_bundle(
        config,
        tmp_path / "out",
        lambda *told: shown.append(told),
        ledger=ledger,
        randomness=SeededRandomness(4),
    )
    stages = [told for told in shown if told[0] == "search"]
    assert {told[1] for told in stages[:-1]} == {0.0}
    assert len(stages) > 3
    assert "learning_rate 1.0" in str(stages[-1][2])
    with pytest.raises(LedgerError, match="is taken"):
        train_bundle(config, tmp_path / "two", lambda *_: None, ledger=ledger)
    assert not (tmp_path / "two").exists()


def test_what_is_stopped_is_spent(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, SEARCH))
    ledger, stop = Ledger(tmp_path / "ledger"), threading.Event()

    def progress(stage: str, *_: object) -> None:
        if stage == "search":
            stop.set()

    with pytest.raises(TrainingError, match="was interrupted"):
        train_bundle(config, tmp_path / "out", progress, ledger=ledger, stop=stop)
    assert account(ledger).entries[0].state == "interrupted"
    assert account(ledger).spent == pytest.approx(2.0, abs=0.1)
    with pytest.raises(TrainingError, match="is not taken up"):
        train_bundle(
            config, tmp_path / "out", lambda *_: None, ledger=ledger, going_on=True
        )
    assert account(ledger).spent == pytest.approx(2.0, abs=0.1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_is_killed_is_spent(tmp_path: Path) -> None:
    text = SEARCH.replace("tries = 3", "tries = 100")
    path = write_config(tmp_path, text, steps="2000")
    process = subprocess.Popen(
        [sys.executable, "-m", "security", "train", str(path), "--out",
         str(tmp_path / "out")],
        cwd=ROOT,
        env=environment(tmp_path / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    database = tmp_path / "home" / "ledger" / "ledger.sqlite"
    deadline = time.monotonic() + 400
    booked = False
    while not booked and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
        if database.exists():
            with contextlib.closing(sqlite3.connect(database)) as opened:
                try:
                    rows = opened.execute("SELECT spent FROM trainings")
                    booked = any(row[0] for row in rows)
                except sqlite3.OperationalError:
                    booked = False
    process.kill()
    process.communicate()
    assert booked
    found = account(Ledger(tmp_path / "home" / "ledger"))
    assert found.entries[0].state == "interrupted"
    assert found.spent == pytest.approx(2.0, abs=0.1)
    left = {item.name for item in tmp_path.iterdir()}
    assert left == {"c.toml", "rows.csv", "home"}


def test_a_ledger_of_before_is_read_on(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    folder.mkdir()
    with sqlite3.connect(folder / "ledger.sqlite") as database:
        database.execute(
            "CREATE TABLE trainings (id TEXT PRIMARY KEY, name TEXT NOT NULL, digest "
            "TEXT NOT NULL, unit TEXT NOT NULL, model TEXT NOT NULL, created_at TEXT "
            "NOT NULL, state TEXT NOT NULL, rate REAL NOT NULL, noise REAL NOT NULL, "
            "group_size INTEGER NOT NULL, planned INTEGER NOT NULL, spent INTEGER NOT "
            "NULL, delta REAL NOT NULL, token TEXT NOT NULL)"
        )
        database.execute(
            "INSERT INTO trainings VALUES ('a', 'persons', 'd', 'row', 'm:1', "
            "'2026-01-01T00:00:00Z', 'finished', 1.0, 8.0, 1, 12, 12, 1e-3, '')"
        )
    database.close()
    assert account(Ledger(folder)).spent == epsilon_prv(Mechanism(1.0, 8.0, 12), 1e-3)


def test_what_the_evidence_holds_can_be_searched_again(tmp_path: Path) -> None:
    text = SEARCH.replace("[search]", "[search]\nhidden = [[4], [8, 4]]")
    text = text.replace(
        'version = "1.0.0"', 'version = "1.0.0"\narchitecture = "mlp"\nhidden = [2]'
    )
    config = load_config(write_config(tmp_path, text))
    again = parse_object(config.to_object(), where="evidence")
    assert again == replace(config, _base=again.base)
    assert len(list(candidates(again))) == 8
    assert {item.model.hidden for item in candidates(again)} == {(4,), (8, 4)}
