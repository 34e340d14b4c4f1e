"""The member `explanations` of a manifest, and the command that sets it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.bundle import read_bundle
from models.errors import ManifestError
from models.explanations import MAX_REFERENCES, Explanations
from models.manifest import Manifest
from security.commands import main
from tests.support.bundles import Keys, manifest, write_bundle

ROWS = ((1.0, 2.0, 3.0), (0.0, -1.5, 0.0))


def test_a_manifest_without_it_is_as_before() -> None:
    assert b"explanations" not in manifest().to_json()
    assert Manifest.from_json(manifest().to_json()).explanations == Explanations()


def test_it_reads_back_what_it_wrote() -> None:
    own = Explanations(ROWS, "probabilities", "score")
    made = replace(manifest(), explanations=own)
    assert Manifest.from_json(made.to_json()).explanations == own


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "expected"),
        ({"reference": [[1, 2, 3]]}, "expected"),
        ({"references": [[1, 2]]}, "expected 3 numbers"),
        ({"references": [1, 2, 3]}, "expected 3 numbers"),
        ({"references": [[1, 2, "3"]]}, "expected numbers"),
        ({"references": [[1, 2, True]]}, "expected numbers"),
        ({"references": [[1, 2, 10**400]]}, "expected numbers"),
        ({"references": [[1, 2, 3]] * (MAX_REFERENCES + 1)}, "expected up to"),
        ({"references": {}}, "expected up to"),
        ({"output": "nothing"}, "not one of the outputs"),
        ({"output": ["label"]}, "not one of the outputs"),
        ({"quantity": "odds"}, "one of"),
        ({"quantity": {}}, "one of"),
    ],
)
def test_malformed_ones_are_refused(value: Any, words: str) -> None:
    specs = [
        [tensor.spec for tensor in side]
        for side in (manifest().inputs, manifest().outputs)
    ]
    with pytest.raises(ManifestError, match=words):
        Explanations.from_object(value, *specs)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", Keys.generate())


def test_the_command_sets_references(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_bundle(bundle)
    table = tmp_path / "rows.csv"
    table.write_text("c,a,b,more\n3,1,2,x\n0,0,-1.5,y\n")
    assert main(["outputs", str(bundle), "--references", str(table)]) == 0
    assert "against 2 public rows" in capsys.readouterr().out
    after = read_bundle(bundle)
    assert after.manifest.explanations.references == ROWS
    # Whatever was measured has to be measured again; what was trained was trained.
    assert not [name for name in after.files if name.startswith("attestations/")]
    assert after.report("privacy").subject == after.subject != before.subject
    # Nothing asked changes nothing, and the policy alone leaves them.
    assert main(["outputs", str(bundle)]) == 0
    assert main(["outputs", str(bundle), "--no-explanations"]) == 0
    assert read_bundle(bundle).manifest.explanations.references == ROWS


def test_rows_of_other_columns_are_refused(bundle: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("a,b\n1,2\n")
    assert main(["outputs", str(bundle), "--references", str(table)]) == 2
    assert read_bundle(bundle).manifest.explanations == Explanations()
