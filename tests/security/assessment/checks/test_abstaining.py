"""Membership of a model that abstains: attackers see the decisions that leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from models.bundle import Bundle
from models.data.held_out import holdout_of
from models.output_policy import OutputPolicy
from models.restriction import restrict
from security.admission.loaded import LoadedModel
from security.assessment.calibration import Wanted, calibrate
from security.assessment.checks.estimators import asking_estimator
from security.assessment.checks.privacy.left import conformal_of, hidden_rows
from security.assessment.checks.privacy.membership import MembershipCheck, known_of
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.answers import Answers
from tests.support import trained
from tests.support.rooms import unverified

ABSTAIN = OutputPolicy(abstain=True)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """That answers less than half of its rows: sets of half of the truth are small."""
    folder = trained.copy(tmp_path_factory.mktemp("abstaining") / "b")
    _, holdout = trained.rows()
    before = restrict(folder)
    wanted = Wanted(coverage=0.5, waiver="public", policy=ABSTAIN)
    made = calibrate(before, holdout_of(holdout), wanted)
    return restrict(folder, ABSTAIN, conformal=made.conformal, answer=made.answer)


@pytest.fixture(scope="module")
def context(bundle: Bundle) -> Context:
    train, holdout = trained.rows()
    extras = {"training data": holdout_of(train)}
    options = Options(profile="standard", checks=("membership",), max_rows=120)
    source = TargetSource.of(bundle)
    job, target = prepare(source, holdout_of(holdout), options)
    return Context(replace(job, extras=extras), target)


def served(bundle: Bundle, folder: Path, rows: np.ndarray) -> dict[str, np.ndarray]:
    model = LoadedModel(unverified(folder, bundle.model, bundle.manifest))
    given = {bundle.manifest.inputs[0].spec.name: rows.astype(np.float32)}
    names = model.release.names
    return dict(zip(names, model.run(given, names, ort.RunOptions())))


def test_a_right_decision_is_one_that_leaves(
    bundle: Bundle, context: Context, tmp_path: Path
) -> None:
    check = MembershipCheck()
    (unit,) = (u for u in check.units(context) if u.params.get("part") == "target")
    found = check.run(unit, context).arrays
    known = known_of(context)
    told = served(bundle, tmp_path / "s", known.rows)
    silent = told["label"] == -1
    assert 0.1 < silent.mean() < 0.9
    assert found["rule"].tolist() == (told["label"] == known.labels).tolist()
    assert found["whole_rule"].sum() > found["rule"].sum()


def test_searches_for_a_boundary_meet_rows_without_an_answer(
    bundle: Bundle, context: Context, tmp_path: Path
) -> None:
    job = context.job
    told = served(bundle, tmp_path / "s", job.rows)

    def hidden(given: Answers) -> np.ndarray:
        return hidden_rows(ABSTAIN, given, conformal_of(context))

    decided = asking_estimator(context, hidden).predict(job.space.to_z(job.rows))
    assert decided.shape == (len(job.rows), 3)
    assert np.where(told["label"] < 0, 2, told["label"]).tolist() == (
        decided.argmax(axis=1).tolist()
    )
    check = MembershipCheck()
    units = [u for u in check.units(context) if u.params.get("part") == "label_only"]
    for unit in units:
        found = check.run(unit, context).arrays
        assert np.isfinite(found["scores"]).all()
    assert units
