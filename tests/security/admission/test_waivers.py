"""Waivers: what they lift, who may sign them, and every way one does not hold."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.bundle import (
    VERDICT_FILE,
    attestation_file,
    read_bundle,
    report_file,
)
from models.files import write_atomic
from models.report import Check, Metric, format_time
from sealgate.commands import _passport_lines
from sealgate.errors import PassportError, StatementError
from sealgate.passport import verify_passport
from sealgate.protocol import dsse, strict_json
from sealgate.protocol.dsse import public_pem
from sealgate.protocol.statement import (
    WAIVER_TYPE,
    Resource,
    Statement,
    VerificationSummary,
    Waiver,
)
from security.admission import gate
from security.admission.attest import sign_verdict, sign_waiver, subjects, waiver_file
from security.errors import AdmissionRefused
from tests.support import bundles
from tests.support.bundles import (
    POLICY,
    Keys,
    attest,
    policy,
    rewrite_report,
    write_bundle,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)
RULES = b"""
[waivers]
signers = ["privacy-officer"]
max_days = 14
kinds = ["quality", "structure", "fairness"]
"""
WAIVABLE = POLICY + RULES
WEAK = {"accuracy": Metric(0.6, n=200, low=0.55, high=0.65, confidence=0.95)}


def waiver(**changes: Any) -> Waiver:
    given = {
        "kind": "quality",
        "reason": "pilot with ten users",
        "created": format_time(NOW - DAY),
        "expires": format_time(NOW + 6 * DAY),
        "metric": "accuracy",
    }
    return Waiver(**(given | changes))


WHOLE = {"metric": None}


@pytest.fixture
def folder(tmp_path: Path, keys: Keys) -> Path:
    """A bundle whose accuracy is too low, without a verdict."""
    folder = write_bundle(tmp_path / "bundle", keys, now=NOW, admit=False)
    rewrite_report(folder, "quality", metrics=WEAK)
    attest(folder, "quality", keys.assessor)
    return folder


def grant(
    folder: Path,
    keys: Keys,
    given: Waiver | None = None,
    *,
    role: str = "",
    **more: Any,
) -> None:
    """Sign a waiver, and put it where one of its kind belongs."""
    given = given or waiver(**more)
    key = getattr(keys, role or "privacy_officer")
    data = sign_waiver(read_bundle(folder), given, key)
    write_atomic(folder / waiver_file(given.kind), data)


def evaluate(folder: Path, keys: Keys, text: bytes = WAIVABLE) -> gate.Evaluation:
    return bundles.evaluate(read_bundle(folder), policy(text), keys.trust, now=NOW)


def admit(folder: Path, keys: Keys, text: bytes = WAIVABLE) -> None:
    waivers = evaluate(folder, keys, text).waivers
    bundle = read_bundle(folder)
    signed = sign_verdict(bundle, policy(text), keys.release, now=NOW, waivers=waivers)
    write_atomic(folder / VERDICT_FILE, signed)


def verify(folder: Path, keys: Keys, now: datetime = NOW) -> gate.Admission:
    return gate.verify(read_bundle(folder), policy(WAIVABLE), keys.trust, now=now)


def refused(check: int, message: str, folder: Path, keys: Keys, **options: Any) -> None:
    with pytest.raises(AdmissionRefused, match=message) as caught:
        evaluate(folder, keys, **options)
    assert caught.value.check == check


def payload(folder: Path) -> Statement:
    document = json.loads((folder / VERDICT_FILE).read_bytes())
    return Statement.from_json(base64.b64decode(document["dsseEnvelope"]["payload"]))


# What a waiver lifts


def test_without_one_the_threshold_holds(folder: Path, keys: Keys) -> None:
    refused(9, "accuracy is 0.55, needs at least 0.8", folder, keys)


def test_a_waived_metric_shows_in_verdict_and_admission(
    folder: Path, keys: Keys
) -> None:
    grant(folder, keys)
    admit(folder, keys)
    admission = verify(folder, keys)
    assert set(admission.reports) == {"structure", "quality", "privacy"}
    assert admission.waivers == {"quality": waiver()}
    assert admission.expires_at == NOW + 6 * DAY
    summary = VerificationSummary.from_statement(payload(folder))
    assert set(summary.levels) == {
        "SEALGATE_STRUCTURE",
        "SEALGATE_QUALITY_WAIVED",
        "SEALGATE_PRIVACY",
    }
    names = {item.name for item in summary.inputs}
    assert {attestation_file("quality"), waiver_file("quality")} <= names
    assert summary.waivers == (
        "quality metric accuracy waived until 2026-11-27T12:00:00Z: pilot with ten "
        "users",
    )


def test_a_waived_metric_waives_no_other(folder: Path, keys: Keys) -> None:
    text = WAIVABLE.replace(
        b"[require.privacy]", b"auc = { min = 0.9 }\n[require.privacy]"
    )
    grant(folder, keys)
    refused(9, "quality: auc is not in the report", folder, keys, text=text)
    (folder / report_file("quality")).write_bytes(b"{}")
    refused(4, "quality report was changed after it was signed", folder, keys)


def test_a_waived_kind_needs_no_evidence(folder: Path, keys: Keys) -> None:
    grant(folder, keys, **WHOLE)
    (folder / report_file("quality")).write_bytes(b"[" * 1000)
    (folder / attestation_file("quality")).unlink()
    admit(folder, keys)
    admission = verify(folder, keys)
    assert set(admission.reports) == {"structure", "privacy"}
    inputs = VerificationSummary.from_statement(payload(folder)).inputs
    names = {item.name for item in inputs}
    assert names == {
        attestation_file("structure"),
        waiver_file("quality"),
        attestation_file("privacy"),
    }


def test_a_waived_condition(folder: Path, keys: Keys) -> None:
    text = WAIVABLE.replace(
        b"[require.quality.metrics]\naccuracy = { min = 0.8, min_n = 50, "
        b'bound = "interval" }',
        b'[require.quality.conditions]\nsplit = "holdout"\nrows = 5',
    )
    refused(8, "quality: condition split is None", folder, keys, text=text)
    grant(folder, keys, waiver(metric=None, condition="split"))
    refused(8, "quality: condition rows is None", folder, keys, text=text)


def test_a_waived_check(folder: Path, keys: Keys) -> None:
    rewrite_report(
        folder, "quality", metrics={"accuracy": Metric(0.9, 200, 0.9, 1, 0.95)}
    )
    rewrite_report(folder, "structure", checks=(Check("no-loops", passed=False),))
    for kind in ("quality", "structure"):
        attest(folder, kind, keys.assessor)
    refused(4, "structure attestation says FAILED", folder, keys)
    given = waiver(kind="structure", metric=None, check="no-loops")
    grant(folder, keys, replace(given, check="no-ifs"))
    refused(4, "structure attestation says FAILED", folder, keys)
    grant(folder, keys, given)
    assert evaluate(folder, keys).waivers == {"structure": given}
    checks = (Check("no-loops", passed=False), Check("no-ifs", passed=False))
    rewrite_report(folder, "structure", checks=checks)
    attest(folder, "structure", keys.assessor)
    refused(7, "structure: check no-ifs failed", folder, keys)


# 20. signed by a role that may


@pytest.mark.parametrize("role", ["trainer", "assessor", "release"])
def test_20_another_role(folder: Path, keys: Keys, role: str) -> None:
    grant(folder, keys, role=role)
    refused(20, "quality waiver: signed by a key that is not trusted", folder, keys)


def test_20_nobody_may(folder: Path, keys: Keys) -> None:
    grant(folder, keys)
    refused(20, "signed by a key that is not trusted", folder, keys, text=POLICY)


def test_20_edited(folder: Path, keys: Keys) -> None:
    grant(folder, keys)
    path = folder / waiver_file("quality")
    document = json.loads(path.read_bytes())
    text = base64.b64decode(document["dsseEnvelope"]["payload"])
    text = text.replace(b"2026-11-27", b"2026-11-28")
    document["dsseEnvelope"]["payload"] = base64.b64encode(text).decode()
    path.write_bytes(json.dumps(document).encode())
    refused(20, "quality waiver: signature does not verify", folder, keys)


# 21. about this bundle, and this kind


def test_21_another_bundle(folder: Path, keys: Keys, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", keys, version="0.9.0", now=NOW)
    grant(other, keys)
    os.replace(other / waiver_file("quality"), folder / waiver_file("quality"))
    refused(21, "quality waiver is about other bytes", folder, keys)


def test_21_another_kind(folder: Path, keys: Keys) -> None:
    grant(folder, keys, waiver(kind="structure", metric="errors"))
    os.replace(folder / waiver_file("structure"), folder / waiver_file("quality"))
    refused(21, "quality waiver is for structure", folder, keys)


def test_21_backwards(folder: Path, keys: Keys) -> None:
    grant(folder, keys, created=format_time(NOW), expires=format_time(NOW))
    refused(21, "quality waiver expires before it begins", folder, keys)


LONG = "x" * 1001


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"until": "2027"}, "waiver: unknown field 'until'"),
        ({"reason": None}, "waiver: missing reason"),
        ({"expires": None}, "waiver: missing expires"),
        ({"reason": ""}, "reason is missing or not text"),
        ({"reason": LONG}, "waiver: reason is not one short line"),
        ({"reason": "a\nrefused: b"}, "waiver: reason is not one short line"),
        ({"reason": "\x1b[2J"}, "waiver: reason is not one short line"),
        ({"condition": "split"}, "at most one of metric, condition, check"),
        ({"metric": 5}, "metric is missing or not text"),
        ({"expires": "2026-12-01"}, "a time is not RFC 3339"),
        ({"created": "9999999"}, "a time is not RFC 3339"),
    ],
)
def test_21_malformed(
    folder: Path, keys: Keys, changes: dict[str, Any], message: str
) -> None:
    predicate = waiver().to_predicate() | changes
    predicate = {name: value for name, value in predicate.items() if value is not None}
    bundle = read_bundle(folder)
    statement = Statement(subjects(bundle.subject), WAIVER_TYPE, predicate)
    signed = dsse.sign(statement.to_json(), keys.privacy_officer)
    write_atomic(folder / waiver_file("quality"), signed)
    refused(21, f"quality waiver: .*{message}", folder, keys)


def test_21_a_verdict_is_no_waiver(folder: Path, keys: Keys) -> None:
    bundle = read_bundle(folder)
    signed = sign_verdict(bundle, policy(), keys.privacy_officer, now=NOW)
    write_atomic(folder / waiver_file("quality"), signed)
    refused(21, "quality waiver: statement: not a waiver v1", folder, keys)


# 22. what the policy lets be waived


def test_22_a_kind_that_may_not_be_waived(folder: Path, keys: Keys) -> None:
    grant(folder, keys, waiver(kind="privacy", metric=None))
    refused(22, "privacy may not be waived", folder, keys)


def test_22_too_long(folder: Path, keys: Keys) -> None:
    created, expires = NOW - 8 * DAY, NOW + 6 * DAY
    given = {"created": format_time(created), "expires": format_time(expires)}
    grant(folder, keys, **given)
    evaluate(folder, keys)
    later = format_time(expires + timedelta(seconds=1))
    grant(folder, keys, created=given["created"], expires=later)
    refused(22, "quality waiver is longer than 14 days", folder, keys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "fairness", "metric": None}, "the policy does not need fairness"),
        ({"metric": "acuracy"}, "the policy does not bound acuracy"),
        ({"metric": None, "condition": "norm"}, "the policy has no condition norm"),
    ],
)
def test_22_waives_nothing(
    folder: Path, keys: Keys, changes: dict[str, Any], message: str
) -> None:
    grant(folder, keys, **changes)
    refused(22, message, folder, keys)


# 23. in force


def test_23_expired(folder: Path, keys: Keys) -> None:
    grant(folder, keys, expires=format_time(NOW))
    refused(23, "quality waiver expired on 2026-11-21T12:00:00Z", folder, keys)


def test_23_from_the_future(folder: Path, keys: Keys) -> None:
    grant(folder, keys, created=format_time(NOW + timedelta(seconds=301)))
    refused(23, "quality waiver is from the future", folder, keys)


def test_23_its_end_is_the_end_of_the_admission(folder: Path, keys: Keys) -> None:
    grant(folder, keys)
    admit(folder, keys)
    verify(folder, keys, now=NOW + 6 * DAY - timedelta(seconds=1))
    with pytest.raises(AdmissionRefused, match="quality waiver expired") as caught:
        verify(folder, keys, now=NOW + 6 * DAY)
    assert caught.value.check == 23


# 14. the verdict and its waivers


def test_14_a_verdict_without_its_waiver(folder: Path, keys: Keys) -> None:
    grant(folder, keys)
    bundle = read_bundle(folder)
    signed = sign_verdict(bundle, policy(WAIVABLE), keys.release, now=NOW)
    write_atomic(folder / VERDICT_FILE, signed)
    with pytest.raises(AdmissionRefused, match="rests on other attestations") as caught:
        verify(folder, keys)
    assert caught.value.check == 14


def test_14_a_waiver_that_came_after_the_verdict(folder: Path, keys: Keys) -> None:
    grant(folder, keys)
    admit(folder, keys)
    grant(folder, keys, reason="another")
    with pytest.raises(AdmissionRefused, match="rests on other attestations"):
        verify(folder, keys)
    (folder / waiver_file("quality")).unlink()
    with pytest.raises(AdmissionRefused, match=r"accuracy is 0\.55"):
        verify(folder, keys)


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": ("SEALGATE_STRUCTURE", "SEALGATE_QUALITY", "SEALGATE_PRIVACY")},
        {"waivers": ()},
        {"waivers": ("quality waived until 2099-01-01T00:00:00Z: fine",)},
    ],
)
def test_14_a_verdict_that_hides_its_waiver(
    folder: Path, keys: Keys, changes: dict[str, Any]
) -> None:
    grant(folder, keys)
    admit(folder, keys)
    statement = payload(folder)
    summary = replace(VerificationSummary.from_statement(statement), **changes)
    forged = replace(statement, predicate=summary.to_predicate())
    write_atomic(folder / VERDICT_FILE, dsse.sign(forged.to_json(), keys.release))
    with pytest.raises(AdmissionRefused, match="claims something else") as caught:
        verify(folder, keys)
    assert caught.value.check == 14


def test_a_bad_waiver_that_is_not_needed_is_refused(folder: Path, keys: Keys) -> None:
    good = {"accuracy": Metric(0.95, n=200, low=0.91, high=0.97, confidence=0.95)}
    rewrite_report(folder, "quality", metrics=good)
    attest(folder, "quality", keys.assessor)
    evaluate(folder, keys)
    grant(folder, keys, role="trainer")
    refused(20, "quality waiver: signed by a key", folder, keys)


def test_the_statement_of_a_waiver_is_read_back() -> None:
    for given in (waiver(), waiver(metric=None), waiver(metric=None, check="no-loops")):
        statement = Statement(
            (Resource("a", "0" * 64),), WAIVER_TYPE, given.to_predicate()
        )
        again = Statement.from_json(statement.to_json())
        assert Waiver.from_statement(again) == given
    with pytest.raises(StatementError, match="not a waiver"):
        Waiver.from_statement(replace(statement, predicate_type="x"))


# The client


def passport(folder: Path, kinds: list[str]) -> dict[str, Any]:
    files = read_bundle(folder).files
    return {
        "verdict": files[VERDICT_FILE].decode(),
        "evidence": {
            kind: {
                "attestation": files[attestation_file(kind)].decode(),
                "report": files[report_file(kind)].decode(),
            }
            for kind in kinds
        },
        "waivers": {"quality": files[waiver_file("quality")].decode()},
    }


@pytest.mark.parametrize("changes", [{}, WHOLE])
def test_the_client_sees_waivers(
    folder: Path, keys: Keys, changes: dict[str, Any]
) -> None:
    grant(folder, keys, **changes)
    admit(folder, keys)
    kinds = ["structure", "privacy", *([] if changes else ["quality"])]
    trusted = [public_pem(keys.release.public_key())]
    document = passport(folder, kinds)
    checked = verify_passport(document, model="toy", trusted_keys=trusted)
    assert checked.waivers == {"quality": waiver(**changes)}
    assert set(checked.reports) == set(kinds)
    strict_json.dumps(document)


def test_the_command_shows_waivers(folder: Path, keys: Keys) -> None:
    reason = "the hospital's rows of March are late, " + "and more of them " * 5
    grant(folder, keys, reason=reason.strip())
    admit(folder, keys)
    checked = verify_passport(
        passport(folder, ["structure", "privacy", "quality"]),
        model="toy",
        trusted_keys=[public_pem(keys.release.public_key())],
    )
    (line,) = [x for x in _passport_lines(checked) if "waiver" in x]
    given = checked.waivers["quality"]
    start = f"  waiver: quality metric accuracy waived until {given.expires}: "
    assert line.startswith(start + "the hospital's rows of March are late, and more")
    assert line.endswith("\N{HORIZONTAL ELLIPSIS}")
    assert len(line) <= len(start) + 60


@pytest.mark.parametrize(
    ("waivers", "message"),
    [
        ({}, "evidence is missing"),
        (None, "evidence is missing"),
        ([], "waivers are malformed"),
        ({"quality": 5}, "has no quality"),
        ({"privacy": "as it is"}, "privacy: the waiver is for quality"),
        ({"quality": "{}"}, "does not rest on this waiver"),
    ],
)
def test_the_client_refuses(
    folder: Path, keys: Keys, waivers: Any, message: str
) -> None:
    grant(folder, keys)
    admit(folder, keys)
    trusted = [public_pem(keys.release.public_key())]
    document = passport(folder, ["structure", "privacy", "quality"])
    if waivers == {"privacy": "as it is"}:
        waivers = {"privacy": document["waivers"]["quality"]}
    document["waivers"] = waivers
    if waivers is None:
        del document["waivers"]
    with pytest.raises(PassportError, match=message):
        verify_passport(document, model="toy", trusted_keys=trusted)
