"""`documents` and `sbom`, as a person runs them."""

from __future__ import annotations

import argparse
import json

import pytest

from models.bundle import read_bundle
from models.errors import BundleError
from security.admission import gate
from security.commands import documents
from security.errors import SettingsError
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
    run("documents", str(folder))
    gate.verify(read_bundle(folder), bundles.policy(), keys.trust, now=evidence.NOW)


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
