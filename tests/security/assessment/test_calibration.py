"""Calibration: which rows, whose, with how much noise; and who attacks what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundle import read_bundle
from models.conformal import Conformal, class_scores, quantile
from models.data.held_out import Holdout
from models.errors import ManifestError
from models.output_policy import OutputPolicy
from models.report import Dataset, Metric, Report
from models.restriction import restrict
from security.admission.coverage import coverage_contradictions
from security.assessment.calibration import BINS, Wanted, calibrate, noisy_quantile
from security.assessment.checks.coverage import coverage_of
from security.assessment.checks.privacy.left import (
    chances_left,
    hidden_rows,
    shadow_logits,
)
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.answers import Answers
from security.errors import AssessmentError, LedgerError
from security.monitoring.noise import rounded_gaussian
from tests.support import bundles, trained

PUBLIC = Wanted(waiver="public")


@pytest.fixture(scope="module")
def rows() -> Holdout:
    _, holdout = trained.rows()
    names = tuple(column.name for column in holdout.columns)
    return Holdout("rows", holdout.features, holdout.labels, columns=names)


# A trained bundle: its classes have names.


def test_a_model_that_was_trained_here(rows: Holdout, tmp_path: Path) -> None:
    folder = trained.copy(tmp_path / "bundle")
    before = read_bundle(folder)
    wanted = replace(PUBLIC, coverage=0.8)
    made = calibrate(before, rows, wanted)
    own = made.conformal
    assert own.scale == "probability"
    assert own.rows + made.left == len(rows)
    after = restrict(folder, conformal=own, answer=made.answer)
    assert after.manifest.conformal == own
    assert after.manifest.release.names[-1] == f"{own.output}_set"
    # Other bytes: what was measured, and signed, is gone; what training says stays.
    assert "evidence/privacy.json" in after.files
    assert "evidence/quality.json" not in after.files
    assert after.report("privacy").subject == after.subject != before.subject


def test_each_calibration_that_is_paid_for_draws_other_rows(rows: Holdout) -> None:
    bundle = trained.bundle()
    wanted = Wanted(coverage=0.5, epsilon=50.0)
    made = [calibrate(read_bundle(bundle), rows, wanted).conformal for _ in "ab"]
    assert made[0].split_key != made[1].split_key
    assert made[0].rows_sha256 != made[1].rows_sha256


def test_nobody_calibrates_again_until_the_quantile_is_small(rows: Holdout) -> None:
    """The same rows give the same, in any order, twice over, and one of each owner."""
    bundle = read_bundle(trained.bundle())
    wanted = replace(PUBLIC, coverage=0.7)
    units = np.array([f"owner {at // 3}" for at in range(len(rows))])

    def found(places: np.ndarray) -> Conformal:
        own = replace(rows, features=rows.features[places], labels=rows.labels[places])
        return calibrate(bundle, own, wanted, units=units[places]).conformal

    whole = np.arange(len(rows))
    first = found(whole)
    assert first == found(whole)
    back = found(whole[::-1])
    assert (back.split_key, back.quantile) == (first.split_key, first.quantile)
    assert found(np.append(whole, whole[:9])).split_key == first.split_key
    # More may calibrate; those that did still do.
    more = calibrate(bundle, rows, replace(wanted, share=0.8)).conformal
    assert more.split_key == first.split_key
    # Of an owner's equal rows with another truth, too, the order chooses none.
    both = replace(
        rows,
        features=np.concatenate([rows.features] * 2),
        labels=np.append(rows.labels, 1 - rows.labels),
    )
    twice = np.append(units, units)
    turned = replace(both, features=both.features[::-1], labels=both.labels[::-1])
    assert (
        calibrate(bundle, both, wanted, units=twice).conformal.quantile
        == calibrate(bundle, turned, wanted, units=twice[::-1]).conformal.quantile
    )
    # Other rows have another key: evidence on all of them says so.
    fewer = found(whole[1:])
    assert fewer.split_key != first.split_key


@pytest.mark.parametrize(
    ("epsilon", "places", "said"),
    [
        (None, np.arange, "of_these_rows"),
        (None, lambda count: np.arange(1, count), "of_other_rows"),
        # Some of them twice: the key is the same, and the quantile is not.
        (None, lambda count: np.arange(2 * count) % count, "of_other_rows"),
        (50.0, np.arange, "drawn"),
    ],
)
def test_evidence_says_of_which_rows_the_calibration_is(
    rows: Holdout,
    tmp_path: Path,
    epsilon: float | None,
    places: Callable[[int], np.ndarray],
    said: str,
) -> None:
    folder = trained.copy(tmp_path / "bundle")
    wanted = replace(PUBLIC, coverage=0.5, epsilon=epsilon)
    chosen = places(len(rows))
    own = replace(rows, features=rows.features[chosen], labels=rows.labels[chosen])
    made = calibrate(read_bundle(folder), own, wanted)
    after = restrict(folder, conformal=made.conformal, answer=made.answer)
    options = Options(profile="assess", checks=("quality",))
    job, target = prepare(TargetSource.of(after), rows, options)
    stated = coverage_of(Context(job, target)).conditions
    assert stated["calibration_split"] == said
    assert stated["calibration_rows_sha256"] == made.conformal.rows_sha256
    assert stated["calibration_share"] == 0.5


def test_one_row_of_each_owner(rows: Holdout) -> None:
    bundle = read_bundle(trained.bundle())
    units = np.array([f"owner {at // 3}" for at in range(len(rows))])
    wanted = replace(PUBLIC, coverage=0.7)
    made = calibrate(bundle, rows, wanted, units=units)
    most = len(np.unique(units))
    assert made.owners > 0
    assert made.conformal.rows <= most
    assert made.conformal.rows + made.owners + made.left == len(rows)


def test_nothing_is_drawn_that_was_not_booked(rows: Holdout) -> None:
    def refuse(noise: float) -> None:
        assert noise == pytest.approx(4.2247, abs=1e-3)  # epsilon 1 at delta 1e-6
        raise LedgerError("the budget is spent")

    with pytest.raises(LedgerError):
        wanted = Wanted(coverage=0.8, epsilon=1.0)
        calibrate(read_bundle(trained.bundle()), rows, wanted, book=refuse)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (replace(PUBLIC, coverage=0.999), "too few"),
        (replace(PUBLIC, coverage=1.0), "above 0 and below 1"),
        (replace(PUBLIC, share=1.0), "above 0 and below 1"),
        (replace(PUBLIC, scale="sqrt"), "of classes it is probability"),
        (replace(PUBLIC, bounds=(0.0, 1.0)), "--range is for a number"),
        (Wanted(coverage=0.8, epsilon=0.01), "larger epsilon"),
    ],
)
def test_what_cannot_be_is_refused(rows: Holdout, wanted: Wanted, message: str) -> None:
    with pytest.raises((AssessmentError, ManifestError), match=message):
        calibrate(read_bundle(trained.bundle()), rows, wanted)


def test_rows_of_one_class_are_refused(rows: Holdout) -> None:
    one = replace(rows, labels=np.zeros_like(rows.labels))
    with pytest.raises(AssessmentError, match="one class only"):
        calibrate(read_bundle(trained.bundle()), one, PUBLIC)


def test_answers_of_few_decimals_are_calibrated_as_they_leave(
    rows: Holdout, tmp_path: Path
) -> None:
    folder = trained.copy(tmp_path / "bundle")
    restrict(folder, OutputPolicy(decimals=1))
    made = calibrate(read_bundle(folder), rows, replace(PUBLIC, coverage=0.8))
    own = made.conformal
    assert own.decimals == 1
    # The quantile is a rounded score, of the output's own type: ties are inside.
    score = 1.0 - np.float32(round(1 - own.quantile, 1)).astype(np.float64)
    assert own.quantile == score
    manifest = restrict(folder, conformal=own).manifest
    edge = np.array([[1 - own.quantile, own.quantile]], np.float32)
    (inside,) = manifest.release.answer(manifest.release.names[-1:], {own.output: edge})
    assert inside[0, 0]


# Quantiles with noise.


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("where", [0.1, 0.5, 0.95])
def test_noise_never_costs_coverage(coverage: float, where: float) -> None:
    """Of 400 histograms none is below its quantile; the allowed chance is 1e-2."""
    random = np.random.default_rng(3)
    sigma, edges = 4.22 * 2**0.5, np.linspace(0, 1, BINS + 1)[1:]
    table, missed, far = rounded_gaussian(sigma), 0, []
    for _ in range(400):
        scores = np.clip(random.beta(40 * where, 40 * (1 - where), 3000), 0, 1)
        places = np.minimum(np.searchsorted(edges, scores, side="left"), BINS)
        exact = np.append(np.bincount(places, minlength=BINS + 1), len(scores))
        noisy = exact + table.sample(BINS + 2)
        found = float(edges[noisy_quantile(noisy.astype(float), sigma, coverage)])
        missed += found < quantile(scores, coverage)
        far.append(found - quantile(scores, coverage))
    assert missed == 0
    assert np.mean(far) < 0.1


def test_without_noise_it_is_the_next_bin() -> None:
    scores = np.random.default_rng(4).random(100_000)
    edges = np.linspace(0, 1, BINS + 1)[1:]
    places = np.minimum(np.searchsorted(edges, scores, side="left"), BINS)
    counts = np.append(np.bincount(places, minlength=BINS + 1), len(scores))
    assert edges[noisy_quantile(counts.astype(float), 0.0, 0.905)] == pytest.approx(
        0.92
    )


# The gate, of reports that say something else.

OWN = Conformal(
    "p", "probability", 0.9, 0.5, 99, "a" * 64, "0" * 32, 0.5, waiver="public"
)


def report(**changes: object) -> Report:
    made = bundles.report("quality", read_bundle(trained.bundle()).subject)
    conditions = {
        "coverage_stated": 0.9,
        "conformal_sha256": OWN.sha256,
        "calibration_private": False,
        "coverage_rows_sha256": "b" * 64,
    }
    return replace(
        made,
        conditions=conditions,
        metrics={"coverage": Metric(0.9, n=100)},
        **changes,
    )


def told(stated: Conformal | None, made: Report) -> str:
    return " ".join(coverage_contradictions(stated, {"quality": made}))


def test_evidence_and_manifest_are_held_together() -> None:
    assert not told(OWN, report())
    assert not told(None, bundles_quality())
    assert "states none" in told(None, report())
    assert "was not measured" in told(OWN, bundles_quality())
    other = replace(OWN, quantile=0.4)
    assert "another quantile" in told(other, report())
    for name, value, words in (
        ("calibration_split", "drawn", "the calibration's key"),
        ("calibration_split", "mine", "the calibration's key"),
        ("calibration_share", 0.9, "another share"),
    ):
        made = report()
        lie = replace(made, conditions={**made.conditions, name: value})
        assert words in told(OWN, lie)
    paid = replace(OWN, epsilon=1.0, delta=1e-6, waiver=None)
    conditions = {"conformal_sha256": paid.sha256, "calibration_private": True}
    made = replace(report(), conditions={**report().conditions, **conditions})
    assert not told(paid, made)
    lie = {**made.conditions, "calibration_split": "of_these_rows"}
    assert "the calibration's key" in told(paid, replace(made, conditions=lie))
    rows = Dataset("rows", "holdout", 99, "a" * 64)
    assert "very rows" in told(OWN, report(datasets=(rows,)))
    assert not list(coverage_contradictions(OWN, {}))


def bundles_quality() -> Report:
    return bundles.report("quality", read_bundle(trained.bundle()).subject)


# Attacks on a model that abstains.

SCORES = np.array([[0.6, 0.35, 0.05], [0.9, 0.06, 0.04], [0.34, 0.33, 0.33]])


@pytest.mark.parametrize(
    "policy",
    [
        OutputPolicy(abstain=True),
        OutputPolicy(abstain=True, label_only=True),
        OutputPolicy(abstain=True, top_k=1),
    ],
    ids=str,
)
def test_attackers_learn_nothing_of_what_is_not_answered(policy: OutputPolicy) -> None:
    own = replace(OWN, quantile=0.7)
    given = Answers(SCORES, SCORES.argmax(axis=1))
    left = chances_left(policy, given, "probabilities", own)
    # Where scores leave the set does: its classes are alike, no other is possible.
    first = [1 / 2, 1 / 2, 0] if policy.tells_sets else [1 / 3] * 3
    assert left[0] == pytest.approx(first, abs=1e-9)
    assert left[2] == pytest.approx(1 / 3)
    assert left[1].argmax() == 0
    assert left[1, 0] > 0.8
    shadows = shadow_logits(
        policy, np.log(SCORES)[None].astype(np.float32), "probabilities", own
    )
    assert np.exp(shadows[0, 0]) == pytest.approx(first, abs=1e-6)
    # Behind an endpoint the answers say it.
    answered = np.where(np.array([[True], [False], [True]]), 0.0, SCORES)
    remote = chances_left(policy, Answers(answered, given.labels), "probabilities")
    assert remote[[0, 2]] == pytest.approx(1 / 3)


def test_a_decision_for_another_class_is_none() -> None:
    own = replace(OWN, quantile=0.7)
    given = Answers(SCORES, np.array([0, 1, 0]), stated=True)
    policy = OutputPolicy(abstain=True)
    left = chances_left(policy, given, "probabilities", own)
    assert hidden_rows(policy, given, own).all()
    # The set of the second row has one class, and leaves.
    assert left[1] == pytest.approx([1, 0, 0], abs=1e-9)
    alone = replace(policy, label_only=True)
    told = chances_left(alone, given, "probabilities", own)
    assert told == pytest.approx(1 / 3)


def test_scores_of_rows_that_are_no_numbers() -> None:
    scores = SCORES.copy()
    scores[0, 1] = np.nan
    assert np.isinf(class_scores(scores, np.array([0, 0, 0]), "probability")[0])
