"""`documents` and `sbom`, as a person runs them."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial

import pytest

from models.bundle import VERDICT_FILE, read_bundle
from models.errors import BundleError
from models.files import write_atomic
from sealgate.protocol import dsse
from sealgate.protocol.dsse import key_hint
from sealgate.protocol.statement import Statement
from security.admission import gate
from security.commands import documents
from security.errors import AdmissionRefused, SettingsError
from tests.support import bundles, evidence


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    documents.add_parser(parser.add_subparsers())
    args = parser.parse_args(arguments)
    return args.run(args)


@pytest.fixture
def folder(tmp_path, keys):
    evidence.write(tmp_path / "bundle", keys)
    return tmp_path / "bundle"


def test_write_then_check(folder, capsys):
    assert run("documents", str(folder)) == 0
    assert "wrote MODEL_CARD.md" in capsys.readouterr().out
    assert run("documents", str(folder), "--check") == 0
    assert capsys.readouterr().out.count("is what the evidence gives") == 2
    assert json.loads((folder / "bom.cdx.json").read_bytes())["specVersion"] == "1.6"
    # Written again: the same bytes, and nothing left beside them.
    before = read_bundle(folder).files
    assert run("documents", str(folder)) == 0
    assert read_bundle(folder).files == before


def test_check_names_what_is_missing(folder, capsys):
    assert run("documents", str(folder), "--check") == 1
    assert capsys.readouterr().err == (
        "refused: MODEL_CARD.md is missing\nrefused: bom.cdx.json is missing\n"
    )
    assert not (folder / "MODEL_CARD.md").exists()


def test_check_names_what_was_edited(folder, capsys):
    run("documents", str(folder))
    card = folder / "MODEL_CARD.md"
    card.write_bytes(card.read_bytes().replace(b"0.9701", b"0.9901"))
    assert run("documents", str(folder), "--check") == 1
    assert capsys.readouterr().err == (
        "refused: MODEL_CARD.md is not what the evidence gives\n"
    )


def test_check_after_new_evidence(folder, capsys, keys):
    run("documents", str(folder))
    bundles.rewrite_report(folder, "quality", tools={"torch": "3"})
    bundles.attest(folder, "quality", keys.assessor)
    assert run("documents", str(folder), "--check") == 1
    assert capsys.readouterr().err.count("is not what the evidence gives") == 2


def test_the_bundle_stays_admitted(folder, keys):
    """A verdict over these very documents, and none that came or changed later."""
    admitted = partial(gate.verify, trust=keys.trust, now=evidence.NOW)
    run("documents", str(folder))
    with pytest.raises(AdmissionRefused, match=r"another MODEL_CARD.md \[check 28\]"):
        admitted(read_bundle(folder), bundles.policy())
    bundles.sign(folder, keys, now=evidence.NOW)
    assert admitted(read_bundle(folder), bundles.policy()).notices[:-1] == ()
    run("documents", str(folder))
    admitted(read_bundle(folder), bundles.policy())
    for name in ("MODEL_CARD.md", "bom.cdx.json"):
        good = (folder / name).read_bytes()
        write_atomic(folder / name, good + b"\n")
        with pytest.raises(AdmissionRefused, match=f"another {name}") as caught:
            admitted(read_bundle(folder), bundles.policy())
        assert caught.value.check == 28
        (folder / name).unlink()
        with pytest.raises(AdmissionRefused, match=f"another {name}"):
            admitted(read_bundle(folder), bundles.policy())
        write_atomic(folder / name, good)


def test_a_verdict_of_an_earlier_release_binds_no_documents(folder, keys):
    bundle = read_bundle(folder)
    release = keys.release.public_key()
    signed = dsse.verify(bundle.files[VERDICT_FILE], {key_hint(release): release})
    statement = Statement.from_json(signed.payload)
    predicate = {k: v for k, v in statement.predicate.items() if k != "documents"}
    old = dsse.sign(replace(statement, predicate=predicate).to_json(), keys.release)
    write_atomic(folder / VERDICT_FILE, old)
    run("documents", str(folder))
    admission = gate.verify(
        read_bundle(folder), bundles.policy(), keys.trust, now=evidence.NOW
    )
    assert "binds no documents: it is of an earlier release" in admission.notices[0]


@pytest.mark.parametrize("value", [{}, "MODEL_CARD.md", [{}], [{"uri": "x"}], None])
def test_documents_of_a_verdict_that_are_none(folder, keys, value):
    bundle = read_bundle(folder)
    release = keys.release.public_key()
    signed = dsse.verify(bundle.files[VERDICT_FILE], {key_hint(release): release})
    statement = Statement.from_json(signed.payload)
    wrong = replace(statement, predicate={**statement.predicate, "documents": value})
    write_atomic(folder / VERDICT_FILE, dsse.sign(wrong.to_json(), keys.release))
    with pytest.raises(AdmissionRefused, match="documents") as caught:
        gate.verify(read_bundle(folder), bundles.policy(), keys.trust, now=evidence.NOW)
    assert caught.value.check == 12


def test_nothing_is_written_when_a_report_is_wrong(folder):
    (folder / "evidence" / "quality.json").write_bytes(b"{}")
    with pytest.raises(BundleError):
        run("documents", str(folder))
    assert not (folder / "MODEL_CARD.md").exists()


def test_sbom(tmp_path, capsys):
    assert run("sbom") == 0
    printed = capsys.readouterr().out
    names = {item["name"] for item in json.loads(printed)["components"]}
    assert {"bentoml", "onnxruntime", "numpy"} <= names
    out = tmp_path / "sbom.json"
    assert run("sbom", "--out", str(out)) == 0
    assert out.read_text() == printed


def test_sbom_of_other_requirements(tmp_path):
    file = tmp_path / "r.txt"
    with pytest.raises(BundleError, match=r"r\.txt"):
        run("sbom", "--requirements", str(file))
    file.write_text("not a requirement\n")
    with pytest.raises(SettingsError, match="line 1"):
        run("sbom", "--requirements", str(file))
