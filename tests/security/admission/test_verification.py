"""security.admission.verification: the doors' checks, for other people's pipelines."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.bundle import read_bundle
from models.errors import BundleError
from models.files import write_atomic
from models.report import Metric
from sealgate.protocol.dsse import public_pem
from security.admission import gate
from security.admission.policy import load_policy
from security.admission.trust import load_trust, trust_document
from security.admission.verification import all_refusals, verify
from security.commands import main
from security.errors import AdmissionRefused, KeyFileError, SettingsError
from tests.conftest import working_directory
from tests.support.bundles import POLICY, Keys, attest, rewrite_report, write_bundle
from tests.support.servers import ROOT


@pytest.fixture
def folder(tmp_path: Path, keys: Keys) -> Path:
    """An admitted bundle beside the trust root and the policy it was admitted under."""
    roles = {
        role: [public_pem(getattr(keys, role).public_key())]
        for role in ("trainer", "assessor", "release")
    }
    write_atomic(tmp_path / "trust.json", trust_document(roles))
    write_atomic(tmp_path / "policy.toml", POLICY)
    return write_bundle(tmp_path / "bundle", keys)


def rules(folder: Path) -> dict[str, Any]:
    return {
        "trust": folder.parent / "trust.json",
        "policy": folder.parent / "policy.toml",
    }


def test_an_admitted_bundle(folder: Path) -> None:
    admission = verify(folder, **rules(folder))
    assert admission.bundle.files == read_bundle(folder).files
    assert admission.reports["privacy"].metrics["epsilon"].value == 2.5
    assert admission == verify(read_bundle(folder), **rules(folder))
    assert all_refusals(folder, **rules(folder)) == []
    assert admission.notices == (
        "the privacy report does not say what the weights started from",
    )


def test_it_says_what_the_command_says(
    folder: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{name}={path}" for name, path in rules(folder).items()]
    assert main(["verify", str(folder), *flags]) == 0
    assert "notice: the privacy report does not say" in capsys.readouterr().out
    metrics = {"accuracy": Metric(0.1, n=5, low=0.0, high=0.2, confidence=0.95)}
    rewrite_report(folder, "quality", metrics=metrics)
    attest(folder, "quality", keys.assessor)
    with pytest.raises(AdmissionRefused) as caught:
        verify(folder, **rules(folder))
    assert main(["verify", str(folder), *flags]) == 1
    assert capsys.readouterr().err == f"refused: {caught.value}\n"
    found = all_refusals(folder, **rules(folder))
    assert len(found) > 1
    assert main(["verify", str(folder), "--all", *flags]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"refused: {refusal}" for refusal in found]


def test_it_never_checks_less_than_the_gate(folder: Path, keys: Keys) -> None:
    """Whatever file of a bundle changes: what the gate refuses, this refuses."""
    policy = load_policy(folder.parent / "policy.toml")
    trust = load_trust(folder.parent / "trust.json")
    for name, good in read_bundle(folder).files.items():
        (folder / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        try:
            changed = read_bundle(folder)
        except BundleError:
            with pytest.raises(BundleError):
                verify(folder, **rules(folder))
        else:
            with pytest.raises(AdmissionRefused) as first:
                gate.verify(changed, policy, trust, now=datetime.now(UTC))
            with pytest.raises(AdmissionRefused, match=re.escape(str(first.value))):
                verify(folder, **rules(folder))
        (folder / name).write_bytes(good)
    verify(folder, **rules(folder))


def test_beside_the_gate(folder: Path) -> None:
    """The doors check more than the gate: a model.sig that lies is refused too."""
    write_atomic(folder / "model.sig", b"{}")
    with pytest.raises(AdmissionRefused) as caught:
        verify(folder, **rules(folder))
    assert caught.value.check == 25
    assert [r.check for r in all_refusals(folder, **rules(folder))] == [25]


def test_at_another_time(folder: Path) -> None:
    later = datetime.now(UTC) + timedelta(days=31)
    with pytest.raises(AdmissionRefused, match="expired"):
        verify(folder, **rules(folder), now=later)
    assert all_refusals(folder, **rules(folder), now=later)


def test_what_cannot_be_used(folder: Path) -> None:
    with pytest.raises(KeyFileError, match="no such file"):
        verify(folder, **rules(folder) | {"trust": folder / "none"})
    with pytest.raises(SettingsError, match="no such file"):
        verify(folder, **rules(folder) | {"policy": folder / "none"})
    with pytest.raises(BundleError):
        verify(folder.parent, **rules(folder))


def test_it_imports_only_what_a_server_has() -> None:
    code = (
        "import sys, security.admission.verification\n"
        "heavy = {'torch', 'onnx', 'opacus', 'art', 'bentoml', 'onnxruntime'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"


def test_the_example_of_the_documentation(folder: Path) -> None:
    text = (ROOT / "docs" / "attestation.md").read_text()
    (example,) = re.findall(r"```pycon\n(.*?)```", text, re.DOTALL)
    test = doctest.DocTestParser().get_doctest(example, {}, "attestation.md", None, 0)
    assert len(test.examples) > 3
    said: list[str] = []
    with working_directory(folder.parent):
        failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
            test, out=said.append
        )
    assert not failed, "".join(said)
