"""A version answers by default only where every requirement is met, with numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle, read_bundle, report_file
from models.report import Metric, Report, format_time
from sealgate.protocol import dsse, strict_json
from sealgate.protocol.statement import Statement, Waiver
from security.admission import gate, steps
from security.admission.attest import Signers, sign_waiver, subjects
from security.admission.observations import (
    check_fresh,
    monitored_until,
    observation_file,
    promotion_waivers,
    read_observation,
    write_observation,
)
from security.admission.plan import Plan, default_since, plan_of_tags
from security.admission.promotion import Case, Decision, decide
from security.admission.rules import Promotion
from security.admission.steps import demand
from security.admission.trust import TrustRoot
from security.assessment.reporting.versions import compare_versions
from security.errors import AdmissionRefused
from tests.support.bundles import (
    Keys,
    attest,
    policy,
    rewrite_report,
    scene_of,
    sign,
    write_bundle,
)
from tests.support.promotions import ASKING, agreement, monitoring, window

NOW = datetime.now(UTC)


@dataclass(frozen=True)
class Scene:
    """Two admitted versions, and whose keys there are."""

    keys: Keys
    folder: Path
    before: gate.Admission
    after: gate.Admission

    @property
    def trust(self) -> TrustRoot:
        return self.keys.trust

    def case(self, **changes: object) -> Case:
        """One in which everything is met."""
        old, new = self.before.bundle, self.after.bundle
        root = old.subject.root_sha256
        whole = Case(
            after=new.manifest.tag,
            before=old.manifest.tag,
            before_root=root,
            admission=self.after,
            promotion=policy(ASKING).promotion,
            evidence={
                "comparison": compare_versions(self.before, root, self.after, now=NOW),
                "agreement": agreement(new.subject, old.subject),
                "monitoring": monitoring(old.subject),
            },
            now=datetime.now(UTC),
        )
        return replace(whole, **changes)

    def decided(self, **evidence: Report | AdmissionRefused) -> Decision:
        case = self.case()
        return decide(replace(case, evidence={**case.evidence, **evidence}))


def admitted(folder: Path, keys: Keys) -> gate.Admission:
    return gate.verify(
        read_bundle(folder), policy(ASKING), keys.trust, now=datetime.now(UTC)
    )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder, keys = tmp_path_factory.mktemp("promotion"), Keys.generate()
    made = []
    for version in ("1.0.0", "2.0.0"):
        where = folder / version
        write_bundle(where, keys, version=version, policy_bytes=ASKING, admit=False)
        rewrite_report(
            where,
            "quality",
            metrics={"accuracy": Metric(0.95, 2000, 0.94, 0.959, 0.95)},
        )
        attest(where, "quality", keys.assessor)
        sign(where, keys, policy_bytes=ASKING)
        made.append(admitted(where, keys))
    return Scene(keys, folder, *made)


def only_refused(decision: Decision, *words: str) -> None:
    """One line is in the way, and it says all of this."""
    (line,) = decision.refused
    text = str(line)
    assert all(word in text for word in words), text
    assert line.remedy
    assert line.check


def test_everything_met_promotes_and_says_the_numbers(scene: Scene) -> None:
    decision = decide(scene.case())
    assert decision.refused == ()
    text = "\n".join(map(str, decision.lines))
    assert [f"{line.kind} {line.what}".strip() for line in decision.lines] == [
        "gate",
        *("comparison worse", "comparison accuracy_loss"),
        *("agreement", "agreement trial", "agreement disagreement"),
        *("monitoring", "monitoring drift_alarms"),
    ]
    assert "0.02 [0.015, 0.03] of 2000, at most 0.1 (interval), margin 0.07" in text


def test_the_gate_comes_first_and_nothing_lifts_it(scene: Scene) -> None:
    refusal = AdmissionRefused(6, "quality report expired")
    everything = {
        kind: Waiver(kind, "now", format_time(NOW), format_time(NOW))
        for kind in ("gate", "comparison", "agreement", "monitoring")
    }
    case = scene.case(admission=refusal, waivers=everything)
    gate_line, *_ = decide(case).refused
    assert (gate_line.kind, gate_line.check) == ("gate", 6)


def test_the_first_default_has_nothing_to_be_compared_with(scene: Scene) -> None:
    decision = decide(scene.case(before="", evidence={}))
    assert [line.outcome for line in decision.lines] == ["met", "not needed"]


def test_a_policy_without_the_table_leaves_it_to_the_gate(scene: Scene) -> None:
    decision = decide(scene.case(promotion=Promotion(), evidence={}))
    assert decision.refused == ()
    assert "the gate alone decides" in str(decision.lines[-1])


def changed(report: Report, **conditions: object) -> Report:
    return replace(report, conditions={**report.conditions, **conditions})


def of_after(scene: Scene, **changes: object) -> Report:
    return agreement(scene.after.bundle.subject, scene.before.bundle.subject, **changes)


REFUSALS: dict[str, tuple[str, Callable[[Scene], object], tuple[str, ...]]] = {
    "no agreement": (
        "agreement",
        lambda s: AdmissionRefused(40, "agreement: there is no report"),
        ("there is no report", "models shadow toy:2.0.0"),
    ),
    "too few answers": (
        "agreement",
        lambda s: of_after(s, n=49),
        ("rests on 49 samples, needs 50", "wait until more was counted"),
    ),
    "a stale trial": (
        "agreement",
        lambda s: of_after(s, age=timedelta(days=8)),
        ("expired: older than 7 days",),
    ),
    "another default": (
        "agreement",
        lambda s: changed(of_after(s), beside_sha256="0" * 64),
        ("not about toy:1.0.0, the default now",),
    ),
    "no default": (
        "agreement",
        lambda s: replace(of_after(s), conditions={"trial": "shadow", **window()}),
        ("not about toy:1.0.0, the default now",),
    ),
    "a canary": (
        "agreement",
        lambda s: changed(of_after(s), trial="canary"),
        ("trial is 'canary', the policy needs 'shadow'",),
    ),
    "they differ": (
        "agreement",
        lambda s: of_after(s, disagreement=(0.3, 0.28, 0.32)),
        ("0.3 [0.28, 0.32] of 2000", "margin -0.22", "a better version, or a waiver"),
    ),
    "too wide": (
        "agreement",
        lambda s: of_after(s, disagreement=(0.09, 0.07, 0.11)),
        ("margin -0.01", "more rows or requests narrow its interval"),
    ),
    "no interval": (
        "agreement",
        lambda s: replace(of_after(s), metrics={"disagreement": Metric(0.0, n=2000)}),
        ("has no interval",),
    ),
    "not measured": (
        "agreement",
        lambda s: replace(of_after(s), metrics={}),
        ("disagreement is not in the report",),
    ),
    "nobody looked": (
        "monitoring",
        lambda s: monitoring(s.before.bundle.subject, age=timedelta(days=15)),
        ("expired: older than 14 days", "security monitor"),
    ),
    "no window released": (
        "monitoring",
        lambda s: monitoring(s.before.bundle.subject, None),
        ("drift_alarms is not in the report",),
    ),
    "a window to come": (
        "monitoring",
        lambda s: monitoring(s.before.bundle.subject, age=-timedelta(days=1)),
        ("its window is none",),
    ),
    "drift, and trained before": (
        "monitoring",
        lambda s: monitoring(s.before.bundle.subject, 2),
        ("2 of 1000, at most 0, margin -2",),
    ),
    "worse": (
        "comparison",
        lambda s: replace(
            s.case().evidence["comparison"],  # type: ignore[type-var]
            metrics={
                "worse": Metric(1.0, n=2000),
                "accuracy_loss": Metric(0.01, 2000, 0.0, 0.02, 0.95),
            },
        ),
        ("comparison worse", "1 of 2000, at most 0"),
    ),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_one_fault_is_one_line(scene: Scene, fault: str) -> None:
    kind, make, words = REFUSALS[fault]
    only_refused(scene.decided(**{kind: make(scene)}), *words)


def test_drift_is_no_obstacle_to_what_was_trained_since(scene: Scene) -> None:
    drifted = monitoring(scene.before.bundle.subject, 2, age=timedelta(hours=1))
    provenance = replace(drifted, kind="provenance")
    later = replace(
        scene.after, reports={**scene.after.reports} | {"provenance": provenance}
    )
    case = scene.case(admission=later)
    case = replace(case, evidence={**case.evidence, "monitoring": drifted})
    decision = decide(case)
    assert decision.refused == ()
    assert "toy:2.0.0 was trained" in str(decision.lines[-1])
    old = replace(provenance, created_at=NOW - timedelta(days=1))
    later = replace(scene.after, reports={"provenance": old})
    only_refused(decide(replace(case, admission=later)), "drift_alarms")


def waiver(kind: str, **target: str) -> Waiver:
    return Waiver(
        kind, "an emergency", format_time(NOW), "2099-01-01T00:00:00Z", **target
    )


def test_a_waiver_lifts_its_line_and_no_other(scene: Scene) -> None:
    worse = of_after(scene, disagreement=(0.3, 0.28, 0.32), age=timedelta(days=8))
    case = scene.case(waivers={"agreement": waiver("agreement", metric="disagreement")})
    case = replace(case, evidence={**case.evidence, "agreement": worse})
    decision = decide(case)
    only_refused(decision, "expired")
    (waived,) = (line for line in decision.lines if line.outcome == "waived")
    assert "an emergency" in str(waived)
    assert "0.3 [0.28, 0.32]" in str(waived)
    whole = replace(case, waivers={"agreement": waiver("agreement")})
    assert decide(whole).refused == ()
    other = replace(case, waivers={"comparison": waiver("comparison")})
    assert len(decide(other).refused) == 2


@pytest.mark.parametrize(
    ("key", "changes", "check"),
    [
        ("trainer", {}, 20),
        ("privacy_officer", {"of": "before"}, 21),
        ("privacy_officer", {"kind": "comparison"}, 21),
        ("privacy_officer", {"metric": "accuracy_loss"}, 22),
        ("privacy_officer", {"expires": NOW + timedelta(days=8)}, 22),
        ("privacy_officer", {"expires": NOW - timedelta(days=1)}, 23),
    ],
    ids=range(6),
)
def test_a_waiver_that_does_not_hold_is_refused(
    scene: Scene, tmp_path: Path, key: str, changes: dict[str, Any], check: int
) -> None:
    begun = NOW - timedelta(days=3)
    expires = changes.get("expires", NOW + timedelta(days=2))
    given = Waiver(
        kind=changes.get("kind", "agreement"),
        reason="why",
        created=format_time(NOW if expires > NOW else begun),
        expires=format_time(expires),
        metric=changes.get("metric"),
    )
    about = scene.before if changes.get("of") else scene.after
    signed = sign_waiver(about.bundle, given, getattr(scene.keys, key))
    subject = scene.after.bundle.subject
    path = observation_file(tmp_path, subject, "waiver-agreement")
    path.parent.mkdir(parents=True)
    path.write_bytes(signed)
    asked = policy(ASKING)
    looked = steps.Scene(scene.after.bundle, asked, scene.trust, datetime.now(UTC))
    with pytest.raises(AdmissionRefused, match=rf"\[check {check}\]"):
        demand(promotion_waivers(tmp_path, looked, asked.promotion.requirements))


# What both were measured on


def requality(scene: Scene, folder: Path, **changes: object) -> gate.Admission:
    """The second version with another quality report, admitted."""
    write_bundle(folder, scene.keys, version="2.0.0", admit=False)
    rewrite_report(folder, "quality", **changes)
    attest(folder, "quality", scene.keys.assessor)
    sign(folder, scene.keys, policy_bytes=ASKING)
    return admitted(folder, scene.keys)


def compared(scene: Scene, after: gate.Admission) -> Report:
    root = scene.before.bundle.subject.root_sha256
    return compare_versions(scene.before, root, after, now=NOW)


def test_a_loss_has_the_sign_and_interval_of_both_samples(
    scene: Scene, tmp_path: Path
) -> None:
    worse = {"accuracy": Metric(0.9, 2000, 0.886, 0.912, 0.95)}
    report = compared(scene, requality(scene, tmp_path / "b", metrics=worse))
    loss = report.metrics["accuracy_loss"]
    assert loss.value == pytest.approx(0.05)
    assert 0.03 < (loss.low or 0) < 0.05 < (loss.high or 0) < 0.07
    assert report.metrics["worse"].value == 1
    assert report.details["worse"] == ["accuracy"]
    decision = scene.decided(comparison=report)
    assert [line.what for line in decision.refused] == ["worse", "accuracy_loss"]


def fair(admission: gate.Admission, gap: Metric) -> gate.Admission:
    """An admission whose policy also asked for fairness."""
    report = replace(
        admission.reports["quality"], kind="fairness", metrics={"tpr_difference": gap}
    )
    bundle = admission.bundle
    files = {**bundle.files, report_file("fairness"): report.to_json()}
    return replace(
        admission,
        bundle=replace(bundle, files=files),
        reports={**admission.reports, "fairness": report},
    )


def test_what_got_less_fair_is_in_the_way(scene: Scene) -> None:
    before = fair(scene.before, Metric(0.02, 2000, 0.0, 0.05, 0.95))
    after = fair(scene.after, Metric(0.3, 2000, 0.25, 0.35, 0.95))
    root = before.bundle.subject.root_sha256
    report = compare_versions(before, root, after, now=NOW)
    gap = report.metrics["tpr_difference_loss"]
    assert gap.value == pytest.approx(0.28)
    assert 0.2 < (gap.low or 0) < 0.28 < (gap.high or 0)
    assert report.details["worse"] == ["tpr_difference"]
    only_refused(scene.decided(comparison=report), "worse", "1 of 2000, at most 0")


def test_other_rows_compare_with_nothing(scene: Scene, tmp_path: Path) -> None:
    (rows,) = scene.after.reports["quality"].datasets
    other = (replace(rows, sha256="1" * 64),)
    after = requality(scene, tmp_path / "b", datasets=other)
    with pytest.raises(AdmissionRefused, match=r"on other rows.*\[check 44\]"):
        compared(scene, after)


def test_a_default_that_is_refused_vouches_for_no_figure(scene: Scene) -> None:
    refused = AdmissionRefused(15, "verdict expired")
    root = scene.before.bundle.subject.root_sha256
    with pytest.raises(AdmissionRefused, match="not admitted today: verdict expired"):
        compare_versions(refused, root, scene.after, now=NOW)


def retrained(scene: Scene, **changes: object) -> gate.Admission:
    """The second version, as `retrain` describes one; pretended, only to compare."""
    report = replace(
        scene.after.reports["quality"],
        kind="provenance",
        conditions={"compared_with_sha256": scene.before.bundle.subject.root_sha256},
        metrics={"comparison_p_value": Metric(1.0, n=1000)},  # not believed
        details={"comparison": {"only_before": 40, "only_after": 10}},
    )
    return replace(
        scene.after,
        reports={**scene.after.reports, "provenance": replace(report, **changes)},
    )


def test_pairs_of_a_retraining_count_before_evidence(scene: Scene) -> None:
    report = compared(scene, retrained(scene))
    loss = report.metrics["accuracy_loss"]
    assert (loss.value, loss.n) == (0.03, 1000)
    assert (loss.high or 0) < 0.05
    assert report.details["worse"] == ["accuracy"]
    assert report.conditions["test"] == "mcnemar"
    # Of another version it says nothing, nor if its counts cannot be.
    for change in (
        {"conditions": {"compared_with_sha256": "0" * 64}},
        {"details": {"comparison": {"only_before": 900, "only_after": 900}}},
        {"details": {"comparison": {"only_before": True, "only_after": 1}}},
        {"details": {"comparison": "better"}},
        {"metrics": {}},
    ):
        other = compared(scene, retrained(scene, **change))
        assert other.metrics["accuracy_loss"].value == 0
        assert other.conditions["paired"] is False


# Signed reports beside the plan


@pytest.fixture
def beside(scene: Scene, tmp_path: Path) -> Path:
    report = monitoring(scene.before.bundle.subject)
    write_observation(tmp_path, report, Signers(scene.keys.monitor))
    return tmp_path


def read(scene: Scene, folder: Path, bundle: Bundle | None = None) -> Report:
    about = bundle or scene.before.bundle
    needed = policy(ASKING).promotion.of("monitoring")
    assert needed is not None
    return read_observation(folder, scene_of(about, scene.trust), needed).report


def resigned(scene: Scene, folder: Path, key: str, **changes: object) -> None:
    """The same place, with another statement."""
    report = monitoring(scene.before.bundle.subject)
    document = strict_json.loads_object(report.to_json(), max_bytes=1 << 20) | changes
    subject = subjects(scene.before.bundle.subject)
    kind = str(changes.get("schema", document["schema"]))
    payload = Statement(subject, kind, document).to_json()
    path = observation_file(folder, report.subject, "monitoring")
    path.write_bytes(dsse.sign(payload, getattr(scene.keys, key)))


def test_what_was_signed_is_read_back(scene: Scene, beside: Path) -> None:
    assert read(scene, beside).metrics["drift_alarms"].value == 0


def test_no_report_and_one_of_another_version(scene: Scene, beside: Path) -> None:
    with pytest.raises(AdmissionRefused, match=r"no report about toy:2.0.0.*check 40"):
        read(scene, beside, scene.after.bundle)
    of_one = observation_file(beside, scene.before.bundle.subject, "monitoring")
    of_two = observation_file(beside, scene.after.bundle.subject, "monitoring")
    of_two.parent.mkdir(parents=True)
    of_two.write_bytes(of_one.read_bytes())
    with pytest.raises(AdmissionRefused, match=r"about other bytes \[check 41\]"):
        read(scene, beside, scene.after.bundle)


@pytest.mark.parametrize("key", ["trainer", "assessor", "privacy_officer", "release"])
def test_a_report_that_another_role_signed(
    scene: Scene, beside: Path, key: str
) -> None:
    resigned(scene, beside, key)
    with pytest.raises(AdmissionRefused, match=r"\[check 40\]"):
        read(scene, beside)


def test_a_report_that_nobody_signed_or_that_was_changed(
    scene: Scene, beside: Path
) -> None:
    path = observation_file(beside, scene.before.bundle.subject, "monitoring")
    good = path.read_bytes()
    unsigned = monitoring(scene.before.bundle.subject).to_json()
    for data in (unsigned, b"", b"{", good.replace(b'"sig":"ME', b'"sig":"MF', 1)):
        path.write_bytes(data)
        with pytest.raises(AdmissionRefused, match=r"\[check 40\]"):
            read(scene, beside)
    path.write_bytes(b"{" * (5 << 20))
    with pytest.raises(AdmissionRefused, match="there is no report"):
        read(scene, beside)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "agreement"},
        {"kind": "quality"},
        {"schema": "https://sealgate.dev/report/v2"},
        {"subject": {"name": "toy", "version": "1.0.0"}},
        {"metrics": {"drift_alarms": {"value": "none"}}},
        {"more": 1},
    ],
    ids=range(6),
)
def test_a_signed_report_that_is_none_of_this_kind(
    scene: Scene, beside: Path, changes: dict[str, object]
) -> None:
    resigned(scene, beside, "monitor", **changes)
    with pytest.raises(AdmissionRefused, match=r"\[check 41\]"):
        read(scene, beside)


# A default stays that only while it is watched


def until(
    scene: Scene, folder: Path, *, begun: timedelta, stays: bool = True
) -> tuple[float | None, str]:
    """Days from now, and why not longer."""
    now = datetime.now(UTC)
    asked = replace(policy(ASKING).promotion, stays_monitored=stays)
    rules = replace(policy(ASKING), promotion=asked)
    looked = steps.Scene(scene.before.bundle, rules, scene.trust, now)
    end, why = monitored_until(folder, looked, begun=now - begun)
    return (None if end is None else (end - now) / timedelta(days=1)), why


def test_a_default_is_watched_or_ends(scene: Scene, tmp_path: Path) -> None:
    old = timedelta(days=100)
    assert until(scene, tmp_path, begun=old, stays=False) == (None, "")
    days, why = until(scene, tmp_path, begun=timedelta(days=4))
    assert days == pytest.approx(10, abs=0.01)
    assert "there is no report" in why
    assert (until(scene, tmp_path, begun=old)[0] or 0) < 0
    report = monitoring(scene.before.bundle.subject, 3, age=timedelta(days=2))
    write_observation(tmp_path, report, Signers(scene.keys.monitor))
    days, why = until(scene, tmp_path, begun=old)
    assert days == pytest.approx(12, abs=0.01)
    assert why == ""
    write_observation(tmp_path, report, Signers(scene.keys.release))
    assert (until(scene, tmp_path, begun=old)[0] or 0) < 0


def test_an_old_window_signed_again_is_no_fresher(scene: Scene) -> None:
    needed = policy(ASKING).promotion.of("monitoring")
    assert needed is not None
    report = monitoring(scene.before.bundle.subject, age=timedelta(days=15))
    assert report.created_at > NOW - timedelta(minutes=5)
    with pytest.raises(AdmissionRefused, match="expired"):
        demand(check_fresh(report, needed, now=datetime.now(UTC)))
    for broken in ({}, window() | {"window_end": "yesterday"}):
        with pytest.raises(AdmissionRefused, match=r"its window.*\[check 42\]"):
            demand(
                check_fresh(
                    replace(report, conditions=broken), needed, now=datetime.now(UTC)
                )
            )


def test_since_when_a_version_is_the_default() -> None:
    def plan(generation: int, *tags: str) -> Plan:
        time = f"2026-01-0{generation}T00:00:00Z" if generation else ""
        return replace(plan_of_tags(tags), generation=generation, time=time)

    history = [plan(0, "a:1"), plan(1, "a:2"), plan(2, "a:2", "b:1"), plan(3, "a:2")]
    assert default_since(history, "a:2") == "2026-01-01T00:00:00Z"
    assert default_since(history[:1], "a:1") == ""
    assert default_since(history, "a:1") == default_since([], "a:2") == ""
