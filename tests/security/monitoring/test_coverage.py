"""Whether a stated coverage still holds, from labels: hours of 2011, and of 2012."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from models.conformal import Conformal, quantile, residuals
from models.manifest import Manifest, Tensor
from models.output_policy import OutputPolicy
from models.sessions import make_session
from sealgate.monitoring import lines
from sealgate.protocol.tensors import TensorSpec
from security.monitoring.answers import (
    Answers,
    answers_of,
    event_id,
    pack_events,
    pack_label,
    unpack_label,
)
from security.monitoring.outcomes import Coverage, Statement, state
from security.settings.monitoring import LabelSettings
from tests.security.monitoring.test_outcomes import release
from tests.support import bikes, bundles

SIDES = {"split_key": "0" * 32, "split_share": 0.5, "rows_sha256": "0" * 64}


def conformal(output: str, scale: str, half: float, rows: int) -> Conformal:
    return Conformal(
        output,
        scale,
        0.9,
        half,
        rows,
        **SIDES,
        waiver="public",  # type: ignore[arg-type]
    )


@cache
def predicted() -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Answers, truth and years, without the hours trained on; and half a width."""
    x, y, years = bikes.hours()
    old = np.flatnonzero(years == 0)
    session = make_session(bikes.model(x[old[:4000]], y[old[:4000]]))
    (given,) = session.run(["lent"], {"x": x})
    held = old[4000:6300]
    far = residuals(given[held, 0].astype(float), y[held], "sqrt", bikes.RANGE)
    rest = np.setdiff1d(np.arange(len(y)), np.concatenate([old[:4000], held]))
    return given[rest], y[rest], years[rest], quantile(far, 0.9)


def told_of(given: np.ndarray, truth: np.ndarray, seed: int = 0) -> Coverage:
    """By tickets and labels, as a cohort counts them, after noise."""
    tensor = Tensor(TensorSpec("lent", "FP32", (-1, 1)), bounds=bikes.RANGE)
    own = conformal("lent", "sqrt", predicted()[3], 2300)
    made = replace(bundles.manifest(), outputs=(tensor,), conformal=own)
    return through(made, {"lent": given}, truth.tolist(), seed)


def through(
    manifest: Manifest,
    outputs: dict[str, np.ndarray],
    truth: list[float] | list[str],
    seed: int = 0,
) -> Coverage:
    found = statement(manifest, outputs, truth, seed).coverage
    assert found is not None
    return found


def statement(
    manifest: Manifest,
    outputs: dict[str, np.ndarray],
    truth: list[float] | list[str],
    seed: int = 0,
) -> Statement:
    layout = answers_of(manifest, LabelSettings())
    assert isinstance(layout, Answers)
    read = [item for item in layout.read(outputs) if item is not None]
    assert len(read) == len(truth)
    ids = [at.to_bytes(12, "little") for at in range(len(read))]
    events = pack_events(read, ids, classes=bool(layout.labels))
    labels = {}
    for (answer, _), name, value in zip(read, ids, truth):
        label = layout.label(value)
        assert label is not None
        outcome = layout.outcome(answer, label)
        labels[event_id(name)] = unpack_label(pack_label((outcome, "")))
    counts = layout.counts(events, labels)
    return state([release(layout, counts, len(read), seed=seed)])


def test_the_alarm_fires_on_the_next_year() -> None:
    given, truth, years, _ = predicted()
    new = years == 1
    found = told_of(given[new][:4000], truth[new][:4000])
    assert found.below
    assert found.stated == 0.9
    assert found.share is not None
    # Lending grew: nine tenths were promised.
    assert found.share.value < 0.7


def test_the_counts_are_those_of_the_intervals_as_served() -> None:
    given, truth, years, half = predicted()
    new = years == 1
    own = conformal("lent", "sqrt", half, 2300)
    low, high = own.ends(given[new][:4000, 0], bikes.RANGE)
    exact = ((low <= truth[new][:4000]) & (truth[new][:4000] <= high)).mean()
    found = told_of(given[new][:4000], truth[new][:4000])
    assert found.share is not None
    assert found.share.low < exact < found.share.high


@pytest.mark.parametrize("seed", range(4))
def test_no_alarm_on_hours_of_the_same_year(seed: int) -> None:
    given, truth, years, _ = predicted()
    old = np.flatnonzero(years == 0)
    assert len(old) > 2000
    found = told_of(given[old], truth[old], seed=seed)
    assert not found.below
    assert found.share is not None
    assert found.share.value == pytest.approx(0.9, abs=0.05)


def test_too_few_labels_say_nothing() -> None:
    given, truth, _, _ = predicted()
    found = told_of(given[:20], truth[:20])
    assert found.share is None
    assert not found.below


# Classes: what is not answered is counted, too, and is no wrong answer.

SCORES = Tensor(TensorSpec("p", "FP32", (-1, 3)), labels=("a", "b", "c"))


def served(shift: float, count: int = 9000) -> tuple[Manifest, dict, list[str], float]:
    """A model that abstains, what it answers, and the truth; and its true coverage.

    Args:
        shift: how often the truth is another class than the probabilities say.
        count: of rows.
    """
    random = np.random.default_rng(5)
    p = random.dirichlet([0.6] * 3, count).astype(np.float32)
    truth = (random.random((count, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    changed = random.random(count) < shift
    drawn = np.where(changed, random.integers(0, 3, count), truth)
    far = 1.0 - p[np.arange(count), truth].astype(float)
    own = conformal("p", "probability", quantile(far, 0.9), count)
    made = replace(
        bundles.manifest(),
        outputs=(SCORES,),
        conformal=own,
        output_policy=OutputPolicy(abstain=True),
    )
    names = made.release.names
    answered = dict(zip(names, made.release.answer(names, {"p": p})))
    inside = answered["p_set"][np.arange(count), drawn]
    return made, answered, ["abc"[k] for k in drawn], float(inside.mean())


@pytest.mark.parametrize(("shift", "below"), [(0.0, False), (0.4, True)])
def test_sets_are_held_against_labels(shift: float, below: bool) -> None:
    made, answered, truth, exact = served(shift)
    found = through(made, answered, truth)
    assert found.share is not None
    assert found.share.low < exact < found.share.high
    assert found.below is below


def test_accuracy_is_of_rows_that_are_answered() -> None:
    made, answered, truth, _ = served(0.0)
    told = statement(made, answered, truth)
    scores = answered["p"]
    some = scores.any(axis=1)
    assert 0.1 < some.mean() < 0.95
    best = np.array(["abc"[k] for k in scores.argmax(axis=1)])
    exact = float((best == np.array(truth))[some].mean())
    assert told.accuracy is not None
    assert told.accuracy.low < exact < told.accuracy.high
    assert sum(map(sum, told.confusion)) == pytest.approx(some.sum(), abs=15 * 3 * 7)


def test_people_are_told() -> None:
    def shown(below: bool) -> list[tuple[str, str]]:
        share = {"value": 0.55, "low": 0.5, "high": 0.6}
        covered = {"stated": 0.9, "share": share, "below": below}
        window = {
            "name": "2026-W40",
            "subjects": 9,
            "alarms": [],
            "withheld": "",
            "histograms": [],
            "labels": {"accuracy": None, "refused": "", "coverage": covered},
            "accuracy_without_labels": {"estimate": None, "statement": ""},
        }
        document = {
            "model": "toy",
            "version": "1.0.0",
            "length": "weekly",
            "state": "quiet",
            "reason": "",
            "windows": [window],
            "budget": {"epsilon": 1.0, "cap": 2.0, "delta": 1e-6},
        }
        return [item for item in lines(document) if "inside" in item[0]]

    ((text, kind),) = shown(below=True)
    assert kind == "error"
    assert "0.550 [0.500, 0.600] of labels are inside, and 0.9 are stated" in text
    ((text, kind),) = shown(below=False)
    assert kind == ""


@pytest.mark.parametrize("place", [0, 127, 128, 249])
def test_many_classes_are_counted_as_themselves(place: int) -> None:
    """Of more classes than sets are counted of, a class may have the flag's bit."""
    answers = Answers("p", labels=tuple(f"class {at}" for at in range(250)))
    told = place.to_bytes(4, "big")
    kept = answers.outcome(told, float(place))
    events = pack_events([(told, 2)], [b"12345678"], classes=True)
    counts = answers.counts(events, {b"12345678": (kept, "")})
    cells = counts["cells"].reshape(answers.shapes["cells"])
    assert cells[place, 2].tolist() == [0, 1, 0]
