"""Scan, sign, admit: what the gate believes of a scan, by the real commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from models.bundle import attestation_file, report_file
from security.commands import main
from tests.conftest import check_security, toy_settings
from tests.support.bundles import POLICY, WEIGHTS, Keys, write_bundle
from tests.support.scanned import save_npz

ROBUST = (
    POLICY
    + b"""
[require.robustness]
signers = ["assessor"]
max_age_days = 30
[require.robustness.conditions]
norm = "Linf"
counted = "rechecked_on_onnxruntime"
worst_case = "per_row_over_attacks"
[require.robustness.metrics]
robust_accuracy = { min = 0.5, min_n = 50, bound = "interval" }
radius = { min = 0.02 }
"""
)
NAMES = ("quality", "robustness")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Keys, a policy, rows, and a bundle that was scanned and signed."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "policy.toml").write_bytes(ROBUST)
    x = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    save_npz(folder / "r.npz", x, np.argmax(x @ WEIGHTS, axis=1))
    with pytest.MonkeyPatch.context() as patch:
        settings(patch, folder)
        assert main(["keygen"]) == 0
        scanned(folder, "bundle", WEIGHTS)
        sign(folder / "bundle")
    return folder


def settings(patch, home):
    for name, value in toy_settings(home).items():
        patch.setenv(name, value)
    patch.setenv("SEALGATE_HOME", str(home))


def scanned(home, name, weights):
    """A bundle whose quality and robustness are what a scan found."""
    folder = write_bundle(home / name, Keys.generate(), admit=False, weights=weights)
    shutil.rmtree(folder / "attestations")  # by keys that nobody trusts
    (folder / report_file("quality")).unlink()
    arguments = (
        *("scan", str(folder), "--data", str(home / "r.npz"), "--evidence"),
        *("--out", str(home / f"{name}-scan"), "--jobs", "1"),
        *("--check", "evasion", "--check", "quality"),
    )
    assert main([*arguments]) == 0
    return folder


def sign(folder):
    for role in ("trainer", "assessor"):
        assert main(["sign", str(folder), "--role", role]) == 0


@pytest.fixture
def bundle(home, tmp_path, monkeypatch):
    """A copy of the signed bundle."""
    settings(monkeypatch, home)
    return Path(shutil.copytree(home / "bundle", tmp_path / "bundle"))


def refused(capsys, bundle, *words):
    capsys.readouterr()
    assert main(["admit", str(bundle)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("refused:")
    for word in words:
        assert word in line, line


def change(bundle, kind, edit):
    path = bundle / report_file(kind)
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_what_a_scan_found_is_signed_admitted_and_verified(home, bundle):
    for kind in NAMES:
        scan = bundle / report_file(kind)
        assert json.loads(scan.read_text())["kind"] == kind
        assert (bundle / attestation_file(kind)).exists()
    assert main(["admit", str(bundle)]) == 0
    # Its libraries warn when they are imported: a process of its own.
    verified = check_security(home, "verify", str(bundle), **toy_settings(home))
    assert "verified" in verified


def test_a_report_changed_after_signing_is_refused(bundle, capsys):
    def better(report):
        report["metrics"]["robust_accuracy"] |= {"value": 1.0, "low": 1.0, "high": 1.0}

    change(bundle, "robustness", better)
    refused(capsys, bundle, "robustness")


def test_free_text_changed_after_signing_is_refused_too(bundle, capsys):
    change(bundle, "robustness", lambda r: r["details"].update(note="looks fine"))
    refused(capsys, bundle, "robustness")


def test_a_report_about_another_model_is_refused(home, bundle, capsys):
    other = scanned(home, "other", -WEIGHTS[:, ::-1] * 3)
    sign(other)
    kinds = (report_file("robustness"), attestation_file("robustness"))
    for name in kinds:
        shutil.copy(other / name, bundle / name)
    refused(capsys, bundle, "robustness")
    # Nor is it signed anew for this one.
    capsys.readouterr()
    assert main(["sign", str(bundle), "--role", "assessor"]) in (1, 2)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        # What the figures say counts, whatever is written beside them.
        (
            lambda r: (
                r["metrics"]["robust_accuracy"].update(value=0.4, low=0.3, high=0.5),
                r["details"].update(verdict="passed", robust_accuracy=1.0),
            ),
            ("robust_accuracy",),
        ),
        # A result that the attacks' own checks call unreliable is none.
        (lambda r: r["checks"][0].update(passed=False), ("robustness",)),
        (lambda r: r["conditions"].update(norm="L2"), ("norm",)),
        (lambda r: r["conditions"].update(counted="by attack"), ("counted",)),
        (lambda r: r["metrics"].pop("radius"), ("radius",)),
        (lambda r: r["metrics"]["robust_accuracy"].update(n=10), ("robust_accuracy",)),
    ],
)
def test_a_signed_report_passes_by_its_figures_only(bundle, capsys, edit, words):
    change(bundle, "robustness", edit)
    assert main(["sign", str(bundle), "--role", "assessor"]) == 0
    refused(capsys, bundle, *words)


def test_words_for_people_change_no_verdict(bundle):
    def words(report):
        report["details"] = {"anything": ["<script>", {"robust_accuracy": 0.0}]}

    change(bundle, "robustness", words)
    assert main(["sign", str(bundle), "--role", "assessor"]) == 0
    assert main(["admit", str(bundle)]) == 0
