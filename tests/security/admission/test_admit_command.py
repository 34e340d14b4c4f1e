"""`admit`, `verify` and `waive` in this process, on small bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.bundle import VERDICT_FILE, attestation_file, read_bundle, report_file
from models.files import write_atomic
from models.report import Metric
from sealgate.protocol.dsse import public_pem
from security.admission.attest import waiver_file
from security.admission.trust import ROLES, trust_document
from security.commands import main
from security.key_files import write_private
from tests.support.bundles import POLICY, Keys, attest, rewrite_report, write_bundle

RULES = b"""
[waivers]
signers = ["privacy-officer"]
max_days = 14
kinds = ["quality", "structure"]
"""
WEAK = {"accuracy": Metric(0.6, n=200, low=0.55, high=0.65, confidence=0.95)}


@pytest.fixture
def home(tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SEALGATE_HOME with keys, trust root, policy and a bundle without a verdict."""
    roles = {}
    for role in ROLES:
        key = getattr(keys, role.replace("-", "_"))
        write_private(tmp_path / "keys" / f"{role}.pem", key)
        roles[role] = [public_pem(key.public_key())]
    write_atomic(tmp_path / "trust.json", trust_document(roles))
    write_atomic(tmp_path / "policy.toml", POLICY + RULES)
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path))
    monkeypatch.setenv("SEALGATE_ADMISSION_POLICY", str(tmp_path / "policy.toml"))
    write_bundle(tmp_path / "bundle", keys, admit=False)
    return tmp_path


def run(*arguments: str | Path) -> int:
    return main([str(item) for item in arguments])


def weaken(home: Path, keys: Keys) -> None:
    rewrite_report(home / "bundle", "quality", metrics=WEAK)
    attest(home / "bundle", "quality", keys.assessor)


def waive(home: Path, **options: str) -> int:
    given = {
        "kind": "quality",
        "reason": "pilot",
        "days": "14",
        "role": "privacy-officer",
    }
    flags = [
        part
        for name, value in (given | options).items()
        for part in (f"--{name}", value)
    ]
    return run("waive", home / "bundle", *flags)


def test_admit_and_verify(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = home / "bundle"
    assert run("verify", bundle, "--all") == 1
    assert "verdict is missing" in capsys.readouterr().err
    assert run("admit", bundle, "--all") == 0
    assert capsys.readouterr().out == "nothing is refused\n"
    assert not (bundle / VERDICT_FILE).exists()
    assert run("admit", bundle) == 0
    assert "waiver" not in capsys.readouterr().out
    assert run("verify", bundle, "--all") == run("verify", bundle) == 0
    assert "holds until" in capsys.readouterr().out


def test_all_refusals_are_listed(
    home: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    weaken(home, keys)
    rewrite_report(home / "bundle", "privacy", metrics={"delta": Metric(1e-3)})
    attest(home / "bundle", "privacy", keys.trainer)
    assert run("admit", home / "bundle", "--all") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "refused: quality: accuracy is 0.55, needs at least 0.8 [check 9]",
        "refused: privacy: epsilon is not in the report [check 9]",
        "refused: privacy: the report states no epsilon [check 10]",
    ]
    assert run("verify", home / "bundle", "--all") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (
        "refused: verdict is missing: the bundle was not admitted [check 11]"
    )
    assert run("admit", home / "bundle") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (home / "bundle" / VERDICT_FILE).exists()


def test_epsilon_is_recomputed_for_the_list_too(
    home: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = {"epsilon": Metric(0.5), "delta": Metric(1e-3)}
    rewrite_report(home / "bundle", "privacy", metrics=metrics)
    attest(home / "bundle", "privacy", keys.trainer)
    assert run("admit", home / "bundle", "--all") == 1
    assert "when recomputed, 0.5 was claimed [check 10]" in capsys.readouterr().err
    rewrite_report(
        home / "bundle", "privacy", metrics=metrics | {"delta": Metric(2e-3)}
    )
    attest(home / "bundle", "privacy", keys.trainer)
    assert run("admit", home / "bundle", "--all") == 1
    assert "states two deltas [check 10]" in capsys.readouterr().err


def test_nothing_unsigned_is_recomputed(
    home: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    attest(home / "bundle", "structure", keys.trainer)
    write_atomic(home / "bundle" / report_file("privacy"), b"[")
    assert run("admit", home / "bundle", "--all") == 1
    err = capsys.readouterr().err
    assert "[check 2]" in err
    assert "privacy report was changed after it was signed [check 4]" in err
    assert "[check 10]" not in err


def test_a_waiver_lets_a_bundle_in(
    home: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = home / "bundle"
    weaken(home, keys)
    assert run("admit", bundle) == 1
    assert waive(home, metric="accuracy") == 0
    assert "signed as privacy-officer: quality metric accuracy waived until" in (
        capsys.readouterr().out
    )
    assert waiver_file("quality") in read_bundle(bundle).files
    assert run("admit", bundle) == 0
    assert "waiver: quality metric accuracy waived" in capsys.readouterr().out
    assert run("verify", bundle) == 0
    assert "waiver: quality metric accuracy waived" in capsys.readouterr().out


def test_a_waived_kind_is_not_recomputed(
    home: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = (POLICY + RULES).replace(b'"structure"]', b'"privacy"]')
    write_atomic(home / "policy.toml", policy)
    write_atomic(home / "bundle" / report_file("privacy"), b"[")
    (home / "bundle" / attestation_file("privacy")).unlink()
    assert waive(home, kind="privacy") == 0
    assert run("admit", home / "bundle", "--all") == 0
    assert run("admit", home / "bundle") == 0
    assert "waiver: privacy waived until" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"kind": "privacy"}, 1, "refused: privacy may not be waived [check 22]"),
        ({"days": "15"}, 1, "refused: quality waiver is longer than 14 days"),
        ({"days": "0"}, 1, "refused: quality waiver expired"),
        ({"days": "-3"}, 1, "refused: quality waiver expired"),
        ({"days": "9" * 12}, 2, "error: waiver: "),
        ({"role": "release"}, 1, "the policy does not let release sign waivers"),
        ({"metric": "acuracy"}, 1, "the policy does not bound acuracy [check 22]"),
        ({"condition": "norm"}, 1, "the policy has no condition norm [check 22]"),
        ({"reason": "a\nb"}, 2, "error: waiver: waiver: reason is not one short line"),
        ({"reason": ""}, 2, "error: waiver: statement: reason is missing"),
    ],
)
def test_a_waiver_that_would_not_hold_is_not_signed(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    options: dict[str, str],
    code: int,
    message: str,
) -> None:
    assert waive(home, **options) == code
    assert message in capsys.readouterr().err
    assert waiver_file(options.get("kind", "quality")) not in (
        read_bundle(home / "bundle").files
    )


def test_two_signers_of_a_verdict(
    home: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    text = POLICY.replace(b'["release"]', b'["release", "assessor"]\nmin_signers = 2')
    write_atomic(home / "policy.toml", text)
    bundle = home / "bundle"
    for _ in range(2):
        assert run("admit", bundle) == 0
        assert "signed by 1 of 2 signers" in capsys.readouterr().out
    assert run("verify", bundle) == 1
    assert "verdict needs 2 signers, has 1" in capsys.readouterr().err
    assert run("admit", bundle, "--role", "assessor") == 0
    assert "signed by 1" not in capsys.readouterr().out
    assert run("verify", bundle) == 0
