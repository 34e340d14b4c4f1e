"""What release 0.1 wrote, this house still reads, verifies and serves.

The files are in tests/fixtures/release-0.1, where NOTES.md says how each was made. A
test works on a copy that only its owner may read: git keeps no such modes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from models.bundle import Bundle, read_bundle
from models.sessions import Session, make_session
from sealgate import Client
from sealgate.errors import StatementError
from sealgate.keys import choose_config, load_identity_keys, parse_configs
from sealgate.passport import verify_passport
from sealgate.protocol.dsse import key_hint
from sealgate.protocol.kem import KEM_XWING
from sealgate.protocol.signedkeys import verify_keys
from security.access.revocation_stores import LocalStore
from security.admission.confidential import (
    check_sealed,
    open_admission,
    open_bundle,
)
from security.admission.doors import verify_with
from security.admission.gate import Admission, all_refusals
from security.admission.lifecycle import Canary
from security.admission.model_keys import (
    load_model_key,
    load_model_public,
)
from security.admission.plan import PlanFolder
from security.admission.policy import load_policy
from security.admission.trust_store import load_trust
from security.assessment.reporting.comparison import compare
from security.assessment.reporting.documents import write_documents
from security.assessment.results.report import SCAN_SCHEMA, ScanReport, read_report
from security.audit.journal import load_verifier
from security.audit.records import Record
from security.audit.verify import verify_log
from security.documents.bom import ml_bom
from security.documents.model_card import model_card
from security.errors import AdmissionRefused, AuditError, LedgerError
from security.training.checkpoint import read_checkpoints
from security.training.config import load_config
from security.training.ledger import Ledger, Request
from security.training.run import train_bundle
from tests.conftest import check_security
from tests.support.bundles import scene_of
from tests.support.servers import serve

FIXTURES = Path(__file__).parents[1] / "fixtures" / "release-0.1"
NOW = datetime(2026, 11, 29, 19, 0, 0, tzinfo=UTC)
KEYS_FETCHED_AT = 1_795_977_632.0  # 2026-11-29T18:40:32Z
TAG = "breast-cancer:1.0.0"
ROOT_SHA256 = "2299f0de46759640886169fbc3d6027bd118bb1f16cd93482525237ff9a631a3"
VERDICT_SHA256 = "8fd4811427aec934ec1e7f0efaea9f9fe56340e35aecc7ecb63720778a0542f3"
LONG_VERDICT_SHA256 = "6243fac56406b80ae563aeae233c5c1814411385ab77afd92ee6fe23b4775327"
KINDS = {
    *("provenance", "privacy", "parity"),
    *("structure", "quality", "robustness", "membership"),
}
RUNNING = "67228f4e3e8e3cb2"  # the interrupted training


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A copy that a test may change, readable by its owner alone."""
    folder = tmp_path / "release-0.1"
    shutil.copytree(FIXTURES, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


@pytest.fixture
def answers() -> dict[str, np.ndarray]:
    """Rows, and what the release's server answered to them."""
    value = json.loads((FIXTURES / "serving" / "answers.json").read_bytes())
    return {
        "rows": np.array(value["features"], dtype=np.float32),
        "label": np.array(value["label"]),
        "probabilities": np.array(value["probabilities"], dtype=np.float32),
    }


def admitted(
    release: Path, bundle: Bundle, policy: str = "policy.toml", now: datetime = NOW
) -> Admission:
    policies, trust = load_policy(release / policy), load_trust(release / "trust.json")
    return verify_with(bundle, policies, trust, now=now)


def asked(bundle: Bundle, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = make_session(bundle.model)
    label, probabilities = session.run(
        ["label", "probabilities"], {"features": rows.astype(_dtype(session))}
    )
    return label, probabilities


def _dtype(session: Session) -> type:
    (given,) = session.get_inputs()
    return {"tensor(float)": np.float32, "tensor(double)": np.float64}[given.type]


# The bundle.


def test_the_bundle_verifies_with_every_kind_of_evidence(release: Path) -> None:
    bundle = read_bundle(release / "bundle")
    admission = admitted(release, bundle)
    assert bundle.manifest.tag == TAG
    assert bundle.subject.root_sha256 == ROOT_SHA256
    assert admission.verdict_sha256 == VERDICT_SHA256
    assert set(admission.reports) == KINDS
    privacy = admission.reports["privacy"]
    assert privacy.metrics["epsilon"].value == pytest.approx(2.996922450824564)
    assert privacy.conditions["steps"] == 100
    assert admission.reports["quality"].metrics["accuracy"].n == 134
    assert admission.expires_at == datetime(2027, 2, 27, 18, 37, 55, tzinfo=UTC)
    assert "model.sig" in bundle.files


def test_the_bundle_gets_too_old(release: Path) -> None:
    bundle = read_bundle(release / "bundle")
    with pytest.raises(AdmissionRefused, match="check 6"):
        admitted(release, bundle, now=NOW + timedelta(days=91))
    with pytest.raises(AdmissionRefused, match="check 6"):
        admitted(release, bundle, now=NOW - timedelta(days=1))


def test_a_changed_report_is_still_refused(release: Path) -> None:
    path = release / "bundle" / "evidence" / "quality.json"
    path.write_bytes(path.read_bytes().replace(b'"n":134', b'"n":135'))
    with pytest.raises(AdmissionRefused, match="quality"):
        admitted(release, read_bundle(release / "bundle"))
    refusals = all_refusals(
        read_bundle(release / "bundle"),
        load_policy(release / "policy.toml"),
        load_trust(release / "trust.json"),
        now=NOW,
    )
    assert next(item.check for item in refusals) == 4


@pytest.mark.parametrize("name", ["bundle", "imported-bundle"])
def test_the_documents_are_what_the_evidence_gives(release: Path, name: str) -> None:
    bundle = read_bundle(release / name)
    card, bom = bundle.files["MODEL_CARD.md"], bundle.files["bom.cdx.json"]
    if name == "imported-bundle":  # 0.1.0 said so of graphs that do nothing of the kind
        true = card.replace(b"; values outside a range are clipped to it", b"")
        bom = bom.replace(*(sha256(text).hexdigest().encode() for text in (card, true)))
        card = true
    assert card == model_card(bundle)
    assert bom == ml_bom(bundle)


def test_the_model_gives_the_same_answers(
    release: Path, answers: dict[str, np.ndarray]
) -> None:
    label, probabilities = asked(read_bundle(release / "bundle"), answers["rows"])
    assert label.tolist() == answers["label"].tolist()
    np.testing.assert_allclose(probabilities, answers["probabilities"], atol=1e-6)


def test_the_verify_command(release: Path, tmp_path: Path) -> None:
    trust, home = str(release / "trust.json"), tmp_path / "no-home"
    with _store(release) as folder:
        command = "verify", str(folder / "1.0.0-plain"), "--trust", trust
        printed = check_security(home, *command, **_settings(release))
    assert f"verified {TAG}" in printed
    assert f"verdict sha256:{LONG_VERDICT_SHA256}" in printed


# An imported model, with a waiver.


def test_the_imported_bundle_verifies_with_its_waiver(release: Path) -> None:
    bundle = read_bundle(release / "imported-bundle")
    admission = admitted(release, bundle, "imported-policy.toml")
    assert bundle.manifest.tag == "theirs:1.0.0"
    assert set(admission.reports) == {"provenance", "quality"}
    assert admission.reports["provenance"].conditions["imported"] is True
    assert admission.waivers["membership"].reason == "its training data is not known"
    with pytest.raises(AdmissionRefused, match=r"check 2[0-3]"):
        admitted(release, bundle, "imported-policy.toml", now=NOW + timedelta(days=366))


# Scans.


def test_scans_are_read_and_compared(release: Path, tmp_path: Path) -> None:
    data = (release / "scan" / "scan.json").read_bytes()
    before = ScanReport.parse(data)
    after = read_report((release / "scan" / "scan-1.1.0.json").read_bytes())
    assert before["schema"] == SCAN_SCHEMA == "https://sealgate.dev/scan/v1"
    done = {item["check"] for item in before["results"] if item["status"] == "done"}
    assert {"structure", "answers", "evasion", "evasion-cost", "quality"} <= done
    result = compare(before, after)
    assert result.worse
    assert [item["rule"] for item in result.appeared] == ["evasion-weak"]
    assert not result.missing
    assert len(result.changes) == 29
    assert not compare(before, before).worse
    write_documents(tmp_path / "formats", data, fail_on="error")
    assert (tmp_path / "formats" / "scan.html").stat().st_size > 10_000


def test_a_report_of_evidence_is_compared_too(release: Path) -> None:
    with _store(release) as folder:
        path = "evidence/quality.json"
        before = read_report((release / "bundle" / path).read_bytes())
        after = read_report((folder / "1.1.0" / path).read_bytes())
    assert not compare(before, after).worse


# The ledger.


def test_the_ledger_counts_on(release: Path) -> None:
    ledger = Ledger(release / "ledger")
    (account,) = ledger.accounts()
    assert account.names == ("breast-cancer",)
    assert (account.cap, account.cap_is_default) == (6.0, False)
    assert account.spent == pytest.approx(5.17, abs=0.01)
    first, second = account.entries
    assert (first.id, first.state, first.spent) == (
        "b30143eefb943a69",
        "finished",
        100,
    )
    assert second.request.model == "breast-cancer:1.1.0"
    request = first.request
    with pytest.raises(LedgerError, match="of 6 is taken"):
        ledger.reserve(Request(**{**vars(request), "model": "breast-cancer:1.2.0"}))
    small = Request(**{**vars(request), "steps": 1, "noise": 50.0})
    ledger.reserve(small).close("finished")
    assert len(ledger.accounts()[0].entries) == 3


# The audit log.


def test_the_audit_log_verifies(release: Path) -> None:
    seen: list[Record] = []
    report = verify_log(
        [release / "audit"],
        verifier=load_verifier(release / "audit" / "audit.vkey"),
        visit=lambda writer, record: seen.append(record),
    )
    assert sum(report.records.values()) == sum(report.signed.values()) == len(seen)
    assert len(seen) == 31
    assert len(report.records) == 17
    (notice,) = report.notices
    assert "of an earlier release, and bind no other writer's" in notice
    actions = [record.fields["action"] for record in seen]
    assert {"admission", "start", "load", "infer", "deployment"} <= set(actions)
    served = [r for r in seen if r.fields["action"] == "infer"]
    assert {r.fields["model_sha256"] for r in served} == {ROOT_SHA256}
    refused = {r.fields["reason"] for r in seen if r.fields["outcome"] == "refuse"}
    assert {"not-granted", "unauthenticated"} <= refused


def test_a_cut_audit_log_is_refused(release: Path) -> None:
    path = max((release / "audit").glob("*.jsonl"), key=lambda p: p.stat().st_size)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    verifier = load_verifier(release / "audit" / "audit.vkey")
    with pytest.raises(AuditError, match="are missing"):
        verify_log([release / "audit"], verifier=verifier)


# A sealed model.


def test_the_sealed_bundle_opens_with_its_key(
    release: Path, answers: dict[str, np.ndarray]
) -> None:
    folder = release / "sealed"
    bundle = read_bundle(folder / "bundle")
    assert bundle.sealed
    assert bundle.subject.root_sha256 == ROOT_SHA256
    check_sealed(scene_of(bundle, load_trust(release / "trust.json")))
    admission = admitted(release, bundle, "policy-long.toml")
    assert admission.verdict_sha256 == LONG_VERDICT_SHA256
    key_file = folder / "TEST-ONLY-model-key.pem"
    key = load_model_key(key_file)
    assert load_model_public(folder / "model.pub.pem") == key.public_bytes
    opened = open_admission(admission, key_file).bundle
    assert opened.model == read_bundle(release / "bundle").model
    assert open_bundle(bundle, key).model == opened.model
    label, _ = asked(opened, answers["rows"])
    assert label.tolist() == answers["label"].tolist()


# Signed keys and a passport, as the server gave them.


def test_the_signed_keys_verify(release: Path) -> None:
    folder = release / "keyconfig"
    pem = (folder / "identity.pub.pem").read_text()
    keys = load_identity_keys([pem])
    assert set(keys) == {key_hint(load_pem_public_key(pem.encode()))}
    envelope = (folder / "sealgate-keys.json").read_bytes()
    signed = verify_keys(envelope, keys, now=KEYS_FETCHED_AT)
    plain = (folder / "ohttp-keys").read_bytes()
    assert signed.document == plain
    assert signed.not_after - signed.not_before == 7200
    assert [config.key_id for config in parse_configs(plain)] == [1, 2]
    assert choose_config(plain).kem_id == KEM_XWING
    with pytest.raises(StatementError, match="not valid any more"):
        verify_keys(envelope, keys, now=KEYS_FETCHED_AT + 2 * 7200)


def test_the_passport_verifies(release: Path) -> None:
    folder = release / "passport"
    passport = verify_passport(
        json.loads((folder / "passport.json").read_bytes()),
        model="breast-cancer",
        trusted_keys=[(folder / "release.pub.pem").read_text()],
    )
    assert passport.model == TAG
    assert passport.verdict_sha256 == VERDICT_SHA256
    assert set(passport.reports) == KINDS
    assert passport.metric("privacy", "epsilon") == pytest.approx(2.996922450824564)


def test_the_revocations_are_read(release: Path) -> None:
    store = LocalStore(release / "revocations")
    try:
        entries = store.entries()
    finally:
        store.close()
    assert [(item.kind, item.value) for item in entries] == [
        ("subject", "mallory"),
        ("token", "abc123"),
    ]


# The plan.


def test_the_plan_and_its_history_are_read(release: Path) -> None:
    folder = PlanFolder(release / "plan")
    plan = folder.read()
    assert plan is not None
    assert plan.generation == 5
    model = plan.models["breast-cancer"]
    assert model.default == "1.0.0"
    assert set(model.versions) == {"1.0.0", "1.1.0"}
    # It was a canary and a shadow; a version is one of them now.
    trial = model.versions["1.1.0"]
    assert isinstance(trial, Canary)
    assert trial.percent == 10
    assert [item.generation for item in folder.history()] == [0, 1, 2, 3, 4, 5]
    changed = folder.change(lambda before: before, first=plan, note="again")
    assert changed.generation == 6


# An interrupted training.


def test_the_interrupted_training_goes_on(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = release / "checkpoint"
    (folder / "out.training").rename(folder / ".out.training")
    (checkpoint,) = read_checkpoints(folder / ".out.training").values()
    assert checkpoint.training == RUNNING
    assert checkpoint.state.step == 120
    ledger = Ledger(folder / "home" / "ledger")
    assert ledger.token(RUNNING) == checkpoint.digest
    (account,) = ledger.accounts()
    assert (account.entries[0].state, account.entries[0].spent) == ("interrupted", 120)
    shutil.copytree(folder / ".out.training", folder / "kept")
    monkeypatch.chdir(folder)
    arguments = load_config(folder / "c.toml"), folder / "out", lambda *_: None
    train_bundle(*arguments, ledger=ledger, going_on=True)
    (account,) = ledger.accounts()
    assert (account.entries[0].state, account.entries[0].spent) == ("finished", 200)
    privacy = read_bundle(folder / "out").report("privacy")
    assert privacy.conditions["steps"] == 200
    assert privacy.conditions["steps_in_weights"] == 200
    # Once only.
    shutil.move(folder / "kept", folder / ".second.training")
    with pytest.raises(LedgerError, match="spend the budget twice"):
        train_bundle(
            arguments[0],
            folder / "second",
            arguments[2],
            ledger=ledger,
            going_on=True,
        )


# The store, and a server over it: by the real clock, under a policy for ten years.


@contextlib.contextmanager
def _store(release: Path) -> Iterator[Path]:
    """The stored versions; ``1.0.0-plain`` is without BentoML's own file."""
    with tempfile.TemporaryDirectory() as home:
        _unpack(release, Path(home))
        folder = Path(home) / "models" / "breast-cancer"
        for version in ("1.0.0", "1.1.0"):
            assert (folder / version / "model.yaml").exists()
        plain = shutil.ignore_patterns("model.yaml")
        shutil.copytree(folder / "1.0.0", folder / "1.0.0-plain", ignore=plain)
        yield folder


def _unpack(release: Path, home: Path) -> None:
    with tarfile.open(release / "store" / "bentoml-models.tar.gz") as archive:
        archive.extractall(home, filter="data")


def _settings(release: Path) -> dict[str, str]:
    return {
        "SEALGATE_ADMISSION_POLICY": str(release / "policy-long.toml"),
        "SEALGATE_SERVICE_MODELS": TAG,
    }


@pytest.mark.slow
def test_the_stored_versions_are_listed(release: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    _unpack(release, home / "bentoml")
    shutil.copy(release / "trust.json", home)
    settings = _settings(release)
    history = check_security(home, "history", "breast-cancer", **settings)
    assert history.count("  admitted") == 2
    assert f"verdict  sha256:{LONG_VERDICT_SHA256}" in history
    assert f"verified {TAG}" in check_security(home, "verify", TAG, **settings)
    # Under the same tag and with the same bytes it is there already; nothing is made.
    folder = home / "bentoml" / "models" / "breast-cancer" / "1.0.0"
    plain = shutil.ignore_patterns("model.yaml")
    shutil.copytree(folder, tmp_path / "again", ignore=plain)
    again = check_security(home, "store", str(tmp_path / "again"), **settings)
    assert f"stored {TAG} already" in again


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stored", "sealed"])
def test_it_is_served(
    release: Path, tmp_path: Path, answers: dict[str, np.ndarray], kind: str
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    settings = _settings(release)
    check_security(home, "keygen", **settings)
    shutil.copy(release / "trust.json", home / "trust.json")
    if kind == "stored":
        _unpack(release, home / "bentoml")
        shutil.copytree(release / "plan", home / "deployment")
    else:
        shutil.copy(
            release / "sealed" / "TEST-ONLY-model-key.pem", home / "keys" / "model.pem"
        )
        sealed = str(release / "sealed" / "bundle")
        check_security(home, "store", sealed, **settings)
    target = "service.app:Sealgate"
    with serve(target, home, extra=settings, alone=True) as server:
        profile = "profile", "--url", server.url, "--model", "breast-cancer"
        check_security(home, *profile, **settings)
        with Client.from_profile(home / "profile.json") as client:
            passport = client.passport("breast-cancer")
            assert passport.model == TAG
            assert passport.verdict_sha256 == LONG_VERDICT_SHA256
            if kind == "stored":
                _take_the_trial_back(home, settings)
            answer = client.infer("breast-cancer", {"features": answers["rows"]})
    assert answer["label"].tolist() == answers["label"].tolist()
    np.testing.assert_allclose(
        answer["probabilities"], answers["probabilities"], atol=1e-6
    )
    check_security(home, "audit", "verify", **settings)


def _take_the_trial_back(home: Path, settings: dict[str, str]) -> None:
    """The canary would answer one request in ten."""
    listed = check_security(home, "models", "list", **settings)
    assert "plan      generation 5: rollback breast-cancer" in listed
    assert "canary 1.1.0 10%" in listed  # once a shadow as well
    tag = "breast-cancer:1.1.0"
    canary = "models", "canary", tag, "--percent", "0"
    changed = check_security(home, *canary, **settings)
    assert "generation 6" in changed
    assert "follows" in changed
