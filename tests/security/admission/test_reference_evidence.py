"""Check 27 of a reference: a policy that asks for one is not shown private counts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.bundle import read_bundle, report_file
from models.files import write_atomic
from models.report import Metric, Report
from security.errors import AdmissionRefused
from security.monitoring.guarantee import epsilon_of
from security.monitoring.layout import layout_of
from tests.support import bundles
from tests.support.bundles import Keys, attest, evaluate, policy, rewrite_report

POLICY = bundles.POLICY + (
    b'[require.reference]\nsigners = ["assessor"]\nmax_age_days = 30\n'
    b"[require.reference.metrics]\nepsilon = { max = 1.0 }\n"
)
DELTA = 1e-6


@pytest.fixture
def keys() -> Keys:
    return Keys.generate()


@pytest.fixture
def folder(tmp_path: Path, keys: Keys) -> Path:
    """The toy bundle, whose data is personal, with a reference that has noise."""
    bundles.write_bundle(tmp_path, keys, admit=False)
    told = {"personal_data": True}
    privacy = read_bundle(tmp_path).report("privacy").conditions
    rewrite_report(tmp_path, "privacy", conditions={**privacy, **told})
    attest(tmp_path, "privacy", keys.trainer)
    given = read_bundle(tmp_path)
    layout = layout_of(given.manifest)
    report = Report(
        kind="reference",
        created_at=datetime.now(UTC).replace(microsecond=0),
        subject=given.subject,
        tools={"tests": "1"},
        conditions=told,
        metrics={
            "sigma": Metric(10 * layout.sensitivity),
            "epsilon": Metric(epsilon_of(1 / 200, DELTA)),
            "delta": Metric(DELTA),
        },
        details={
            "histograms": layout.describe(),
            "season": "none",
            "parts": {"": {item.name: [9] * item.size for item in layout.histograms}},
        },
    )
    write_atomic(tmp_path / report_file("reference"), report.to_json())
    attest(tmp_path, "reference", keys.assessor)
    return tmp_path


def admit(folder: Path, keys: Keys) -> None:
    bundle = read_bundle(folder)
    evaluate(bundle, policy(POLICY), keys.trust, now=datetime.now(UTC))


def test_a_reference_with_noise_is_admitted(folder: Path, keys: Keys) -> None:
    admit(folder, keys)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"conditions": {"personal_data": False}}, "personal_data is False"),
        ({"details": {"season": "none"}}, "not described"),
    ],
    ids=["private counts declared public", "of no histograms"],
)
def test_another_is_refused(
    folder: Path, keys: Keys, changes: dict[str, object], reason: str
) -> None:
    rewrite_report(folder, "reference", **changes)
    attest(folder, "reference", keys.assessor)
    with pytest.raises(AdmissionRefused, match=reason) as refused:
        admit(folder, keys)
    assert refused.value.check == 27


@pytest.mark.parametrize("name", ["sigma", "epsilon", "delta"])
def test_each_number_of_its_guarantee_is_held_to_the_others(
    folder: Path, keys: Keys, name: str
) -> None:
    """An attack: counts without noise, or a smaller epsilon than the noise gives."""
    metrics = dict(read_bundle(folder).report("reference").metrics)
    metrics[name] = Metric(0.0 if name == "sigma" else metrics[name].value / 2)
    rewrite_report(folder, "reference", metrics=metrics)
    attest(folder, "reference", keys.assessor)
    with pytest.raises(AdmissionRefused, match="reference: ") as refused:
        admit(folder, keys)
    assert refused.value.check == 27
