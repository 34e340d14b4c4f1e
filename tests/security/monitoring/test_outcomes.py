"""What released labels say: right where it can be known, refused where it cannot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from security.errors import MonitoringError
from security.monitoring.answers import BINS, Answers, Label
from security.monitoring.outcomes import Statement, state
from security.monitoring.release import About, Release
from security.monitoring.windows import window_named

CLASSES = Answers("p", labels=("no", "yes"), groups=("f", "m"))
NUMBER = Answers("y", low=0.0, high=200.0)
SIGMA = 15.0
Select = Callable[[Any, Any, Any], Any]


def release(
    layout: Answers, counts: dict[str, NDArray[np.int64]], subjects: int, seed: int = 0
) -> Release:
    """As it leaves the ledger: rounded Gaussian noise of this deviation."""
    random = np.random.default_rng(seed)
    noisy = {
        name: tuple(map(int, np.rint(item + random.normal(0, SIGMA, len(item)))))
        for name, item in counts.items()
    }
    details = json.loads(json.dumps(layout.describe()))
    about = About("labels", "toy", "1.0.0", window_named("2026-W40"))
    made = Release(
        about, 1, subjects=subjects, counts=noisy, sigma=SIGMA, details=details
    )
    return Release.from_json(made.to_json())


def events_of(
    answered: NDArray[Any], bins: NDArray[Any]
) -> tuple[NDArray[np.uint8], list[bytes]]:
    ids = [at.to_bytes(8, "big") for at in range(len(bins))]
    events = np.zeros((len(bins), 10), np.uint8)
    events[:, 0], events[:, 1] = answered, bins
    events[:, 2:] = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 8)
    return events, ids


def classified(
    select: Select, subjects: int = 12_000, layout: Answers = CLASSES, seed: int = 1
) -> tuple[Release, float]:
    """Labels of some answers of a calibrated model, and its true accuracy."""
    random = np.random.default_rng(seed)
    chance = random.beta(0.6, 1.2, subjects)
    truth = (random.random(subjects) < chance).astype(int)
    answered = (chance > 0.5).astype(int)
    score = np.maximum(chance, 1 - chance)
    bins = np.clip(((score - 0.5) * 2 * BINS).astype(int), 0, BINS - 1)
    events, ids = events_of(answered, bins)
    chosen = select(random, answered, score) if select else truth == 1
    labels: dict[bytes, Label] = {
        ids[at]: (int(truth[at]), "fm"[at % 2]) for at in np.flatnonzero(chosen)
    }
    counts = layout.counts(events, labels)
    accuracy = float((answered == truth).mean())
    return release(layout, counts, subjects, seed), accuracy


def stated(select: Select, **more: Any) -> tuple[Statement, float]:
    made, truth = classified(select, **more)
    return state([made]), truth


def everything(random: Any, answered: Any, score: Any) -> Any:
    return np.ones(len(answered), bool)


def a_third(random: Any, answered: Any, score: Any) -> Any:
    return random.random(len(answered)) < 1 / 3


def more_yes(random: Any, answered: Any, score: Any) -> Any:
    return random.random(len(answered)) < np.where(answered == 1, 0.6, 0.15)


def uncertain(random: Any, answered: Any, score: Any) -> Any:
    return random.random(len(answered)) < np.clip(1.6 - 1.4 * score, 0.02, 1)


def only_yes(random: Any, answered: Any, score: Any) -> Any:
    return answered == 1


def only_sure(random: Any, answered: Any, score: Any) -> Any:
    return score > 0.8


@pytest.mark.parametrize("select", [everything, a_third, more_yes, uncertain])
def test_the_truth_is_in_the_interval(select: Select) -> None:
    """In about 19 of 20; a window that cannot be stated counts neither way."""
    found = [stated(select, seed=seed) for seed in range(20)]
    kept = [(one.accuracy, truth) for one, truth in found if one.accuracy is not None]
    assert len(kept) >= 17
    inside = sum(item.low <= truth <= item.high for item, truth in kept)
    assert inside >= len(kept) - 3
    assert all(item.high - item.low > 0.005 for item, _ in kept)  # never certain


@pytest.mark.parametrize("select", [more_yes, uncertain])
def test_labels_of_a_selection_are_weighted(select: Select) -> None:
    found = [stated(select, seed=seed) for seed in range(10)]
    naive = np.mean([one.naive - truth for one, truth in found])
    weighted = np.mean([one.accuracy.value - truth for one, truth in found])
    assert abs(naive) > 0.03
    assert abs(weighted) < 0.01


@pytest.mark.parametrize(
    ("select", "reason"),
    [
        (only_yes, "labels for some answers only: none to speak of for no"),
        (only_sure, "too few labels in these bins of the score: no 0.50-0.60"),
        (lambda r, a, s: np.zeros(len(a), bool), "too few labels for the noise"),
        (lambda r, a, s: r.random(len(a)) < 0.005, "too few labels for the noise"),
    ],
)
def test_what_cannot_be_identified_is_refused(select: Select, reason: str) -> None:
    found, _ = stated(select)
    assert found.accuracy is None
    assert found.refused.startswith(reason)
    assert found.to_object()["accuracy"] is None


def test_labels_that_come_for_one_class_only() -> None:
    """As where only what went wrong is reported: silence then means the other class."""
    found, _ = stated(None)
    assert found.refused.startswith(("all labels are 'yes'", "too few labels in these"))
    silent = replace(CLASSES, silence="no")
    found, truth = stated(None, layout=silent)
    assert found.refused == ""
    assert found.accuracy.low <= truth <= found.accuracy.high
    assert found.labelled is None
    assert found.assumption == (
        "Answers without a label are counted as 'no', as the settings say."
    )


def test_by_score_by_class_and_by_group() -> None:
    found, truth = stated(a_third)
    assert [round(one.low, 1) for one in found.calibration] == [0.5, 0.6, 0.7, 0.8, 0.9]
    for one in found.calibration:
        assert one.accuracy.low - 0.05 <= (one.low + one.high) / 2
        assert (one.low + one.high) / 2 <= one.accuracy.high + 0.05
    assert math.isclose(sum(one.share for one in found.calibration), 1, abs_tol=1e-9)
    table = np.array(found.confusion)
    assert table.shape == (2, 2)
    assert abs(np.trace(table) / table.sum() - truth) < 0.02
    assert found.groups.keys() == {"f", "m"}
    for group in found.groups.values():
        assert group.accuracy.low <= truth <= group.accuracy.high
        assert group.rates.keys() == group.recall.keys() == {"no", "yes"}
    assert found.labelled.low <= 1 / 3 <= found.labelled.high
    assert json.loads(json.dumps(found.to_object()))["windows"] == ["2026-W40"]


def test_several_windows_are_added_up() -> None:
    """One says little, four say twice as much; noise is paid for once."""
    parts = [classified(a_third, subjects=8000, seed=seed) for seed in range(4)]
    one, all_ = state([parts[0][0]]), state([made for made, _ in parts])
    truth = np.mean([truth for _, truth in parts])
    assert all_.subjects == 32_000
    assert all_.accuracy.low <= truth <= all_.accuracy.high
    width = all_.accuracy.high - all_.accuracy.low
    assert width < 0.7 * (one.accuracy.high - one.accuracy.low)


def test_what_is_not_added_up() -> None:
    made, _ = classified(a_third, subjects=1000)
    other, _ = classified(a_third, subjects=1000, layout=replace(CLASSES, groups=()))
    with pytest.raises(MonitoringError, match="different labels"):
        state([made, other])
    elsewhere = replace(made, about=replace(made.about, version="2.0.0"))
    with pytest.raises(MonitoringError, match="one version"):
        state([made, elsewhere])
    with pytest.raises(MonitoringError, match="one version"):
        state([])
    with pytest.raises(MonitoringError, match="malformed"):
        state([replace(made, counts={"cells": (1, 2)})])
    with pytest.raises(MonitoringError, match="malformed"):
        state([replace(made, details={})])


def test_a_window_that_was_withheld() -> None:
    made, _ = classified(a_third, subjects=1000)
    withheld = replace(made, withheld="too few subjects", counts={}, sigma=0.0)
    assert state([withheld]).refused == "withheld: too few subjects"
    assert state([withheld, made]).windows == ("2026-W40",)


def numbers(select: float, seed: int = 0, off: float = 8.0) -> tuple[Release, Any]:
    random = np.random.default_rng(seed)
    truth = random.uniform(0, 200, 20_000)
    given = np.clip(truth + random.normal(0, off, len(truth)), 0, 200)
    bins = np.clip((given / 200 * BINS).astype(int), 0, BINS - 1)
    events, ids = events_of(np.zeros(len(truth)), bins)
    labels: dict[bytes, Label] = {}
    for at in np.flatnonzero(random.random(len(truth)) < select):
        ((answer, _),) = NUMBER.read({"y": given[at : at + 1]})
        labels[ids[at]] = NUMBER.outcome(answer, truth[at]), ""
    counts = NUMBER.counts(events, labels)
    return release(NUMBER, counts, len(truth), seed), given - truth


def test_errors_of_numbers() -> None:
    made, error = numbers(0.8)
    found = state([made])
    assert found.refused == ""
    assert found.accuracy is None
    assert found.confusion == ()
    rmse, mae = found.error.rmse, found.error.mae
    assert rmse.low <= math.sqrt((error**2).mean()) <= rmse.high
    assert mae.low <= np.abs(error).mean() <= mae.high
    assert mae.high < 20
    for far, share in found.error.within.items():
        assert share.low <= (np.abs(error) <= far).mean() <= share.high
    assert found.to_object()["error"]["within"].keys() == {
        "2", "4", "10", "20", "40", "100"
    }  # fmt: skip


def test_errors_of_too_few_numbers() -> None:
    found = state([numbers(0.01)[0]])
    assert found.error is None
    assert found.refused.startswith("too few labels")
