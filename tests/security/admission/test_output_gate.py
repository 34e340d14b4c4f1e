"""Check 29: policy, manifest, evidence and verdict say the same of what may leave."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jsonschema
import pytest

from models.bundle import VERDICT_FILE, Bundle, read_bundle, report_file
from models.errors import BundleError
from models.files import write_atomic
from models.manifest import Manifest
from models.output_policy import ALL_SCORES, OutputPolicy
from models.report import Report
from models.restriction import restrict
from sealgate.protocol import dsse
from sealgate.protocol.statement import VSA_TYPE, Statement, VerificationSummary
from security.admission import gate
from security.admission.attest import subjects
from security.admission.comparison import compare
from security.admission.policy import parse_policy, policy_mistakes
from security.commands import main
from security.commands.policy import explain
from security.errors import AdmissionRefused
from tests.support import bundles, evidence
from tests.support.bundles import POLICY, Keys, policy
from tests.support.servers import ROOT

TOP = OutputPolicy(top_k=1, decimals=2)
LABEL_ONLY = OutputPolicy(label_only=True)
MEMBERSHIP = b"""
[require.membership]
signers = ["assessor"]
max_age_days = 30
"""
DEMAND = b"\n[output_policy]\ndecimals = 2\n"


def refusals(bundle: Bundle, keys: Keys, text: bytes = POLICY) -> list[str]:
    found = gate.all_refusals(bundle, policy(text), keys.trust, now=evidence.NOW)
    return [f"{item.check}: {item}" for item in found]


def written(folder: Path, keys: Keys, leaving: OutputPolicy, text: bytes) -> Bundle:
    bundle = bundles.write_bundle(
        folder, keys, leaving=leaving, policy_bytes=text, now=evidence.NOW
    )
    return read_bundle(bundle)


@pytest.mark.parametrize("leaving", [ALL_SCORES, TOP, LABEL_ONLY], ids=str)
def test_the_verdict_says_what_leaves(
    tmp_path: Path, keys: Keys, leaving: OutputPolicy
) -> None:
    bundle = written(tmp_path / "b", keys, leaving, POLICY)
    gate.verify(bundle, policy(), keys.trust, now=evidence.NOW)
    verified = dsse.verify(bundle.files[VERDICT_FILE], keys.trust.keys(("release",)))
    predicate = Statement.from_json(verified.payload).predicate
    assert predicate["outputPolicy"] == leaving.to_object()


def test_a_policy_may_demand_as_little(tmp_path: Path, keys: Keys) -> None:
    text = POLICY + DEMAND
    for number, fits in enumerate((TOP, LABEL_ONLY, OutputPolicy(decimals=0))):
        assert not refusals(
            written(tmp_path / f"{number}", keys, fits, text), keys, text
        )
    wide = written(tmp_path / "wide", keys, OutputPolicy(top_k=1), text)
    (found,) = refusals(wide, keys, text)
    assert found.startswith("29: ")
    assert "the highest score may leave" in found
    assert "of 2 decimals: decimals" in found


def test_an_entry_for_a_model_has_its_own_demand(tmp_path: Path, keys: Keys) -> None:
    entry = b"\n[[models]]\nmatch = 'toy'\n[models.output_policy]\nlabel_only = true\n"
    text = POLICY + DEMAND + entry
    assert not refusals(written(tmp_path / "b", keys, LABEL_ONLY, text), keys, text)
    (found,) = refusals(written(tmp_path / "c", keys, TOP, text), keys, text)
    assert "allows label only: label_only" in found
    lines = list(explain(policy(text), "toy"))
    assert "  - of its answers may leave at most: label only." in lines
    assert any("all scores, of 2 decimals" in line for line in explain(policy(text)))


def test_a_verdict_that_says_something_else_is_refused(
    tmp_path: Path, keys: Keys
) -> None:
    """By the release key, over a manifest that it did not look at."""
    folder = tmp_path / "b"
    bundle = written(folder, keys, TOP, POLICY)
    verified = dsse.verify(bundle.files[VERDICT_FILE], keys.trust.keys(("release",)))
    summary = VerificationSummary.from_statement(Statement.from_json(verified.payload))
    for claimed in ({}, {"decimals": 2}, {"label_only": True}, None):
        other = dataclasses.replace(summary, output_policy=claimed)
        statement = Statement(subjects(bundle.subject), VSA_TYPE, other.to_predicate())
        write_atomic(
            folder / VERDICT_FILE, dsse.sign(statement.to_json(), keys.release)
        )
        (found,) = refusals(read_bundle(folder), keys)
        assert found.startswith("29: verdict says that something else leaves")


def measured(through: str | None):
    def change(item: Report) -> Report:
        if item.kind != "membership" or through is None:
            return item
        return dataclasses.replace(item, conditions={"output_policy": through})

    return change


@pytest.mark.parametrize(
    ("leaving", "through", "fits"),
    [
        (ALL_SCORES, None, True),
        (ALL_SCORES, "all scores", True),
        (TOP, str(TOP), True),
        (TOP, None, False),
        (TOP, "label only", False),
        (ALL_SCORES, "label only", False),
    ],
    ids=str,
)
def test_evidence_is_measured_through_what_leaves(
    tmp_path: Path, keys: Keys, *, leaving: OutputPolicy, through: str, fits: bool
) -> None:
    bundle = evidence.write(
        tmp_path / "b",
        keys,
        manifest=bundles.manifest(leaving=leaving),
        change=measured(through),
    )
    text = POLICY + MEMBERSHIP
    found = [item for item in refusals(bundle, keys, text) if item.startswith("29")]
    assert bool(found) is not fits
    if found:
        assert found[0].startswith("29: membership was measured through '")


def test_a_wider_manifest_breaks_every_signature(tmp_path: Path, keys: Keys) -> None:
    folder = tmp_path / "b"
    narrow = written(folder, keys, LABEL_ONLY, POLICY)
    wide = dataclasses.replace(narrow.manifest, output_policy=ALL_SCORES)
    write_atomic(folder / "manifest.json", wide.to_json())
    with pytest.raises(AdmissionRefused) as caught:
        gate.verify(read_bundle(folder), policy(), keys.trust, now=evidence.NOW)
    assert caught.value.check == 3


FAULTS = [
    ("decimals = 10", "decimals expected -9 to 9"),
    ("top = 1", "unknown field 'top'"),
    ("label_only = 1", "label_only expected true or false"),
]


@pytest.mark.parametrize(("line", "message"), FAULTS)
def test_a_demand_that_is_none_is_refused_with_its_line(
    line: str, message: str
) -> None:
    text = POLICY + f"\n[output_policy]\n{line}\n".encode()
    (found,) = policy_mistakes(text, name="p")
    assert re.match(rf"p:\d+: \[output_policy\]: {message}", found)
    schema = json.loads((ROOT / "deploy" / "policy.schema.json").read_text())
    key, value = line.split(" = ")
    shown = {"output_policy": {key: json.loads(value)}}
    errors = jsonschema.Draft202012Validator(schema).iter_errors(shown)
    assert any("output_policy" in error.path for error in errors)


def test_a_looser_demand_shows() -> None:
    before = parse_policy(POLICY + DEMAND, name="before")
    after = parse_policy(POLICY, name="after")
    (change,) = compare(before, after)
    assert change.loosens
    assert change.what == "output_policy: all scores, of 2 decimals -> all scores"
    (change,) = compare(after, before)
    assert not change.loosens


def test_the_command_sets_it_before_anything_is_signed(
    tmp_path: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "b"
    before = evidence.write(folder, keys)
    assert main(["outputs", str(folder), "--top-k", "1", "--decimals", "2"]) == 0
    assert capsys.readouterr().out == (
        "toy:1.0.0  the highest score, of 2 decimals\n"
        "answers     probabilities, label\n"
    )
    after = read_bundle(folder)
    assert after.manifest.output_policy == TOP
    assert not any(name.startswith("attestations/") for name in after.files)
    # A reference of training rows has cost privacy, and cannot be had again either.
    kinds = ("parity", "privacy", "provenance", "reference")
    left = {n for n in after.files if n.startswith("evidence/")}
    assert left == {report_file(kind) for kind in kinds}
    for kind in kinds:
        own = after.report(kind)
        assert own.subject == after.subject != before.subject
        assert dataclasses.replace(own, subject=before.subject) == before.report(kind)
    assert main(["outputs", str(folder)]) == 0
    assert "2 decimals" in capsys.readouterr().out
    assert main(["outputs", str(folder), "--label-only", "--top-k", "2"]) == 2
    assert "no scores are left" in capsys.readouterr().err
    assert read_bundle(folder).files == after.files
    assert main(["outputs", str(folder), "--all-scores"]) == 0
    assert read_bundle(folder).manifest == bundles.manifest()


def test_a_report_about_another_model_is_not_bound_to_this_one(
    tmp_path: Path, keys: Keys
) -> None:
    bundle = evidence.write(tmp_path / "b", keys)
    foreign = dataclasses.replace(bundle.subject, root_sha256="0" * 64)
    bundles.rewrite_report(tmp_path / "b", "privacy", subject=foreign)
    before = read_bundle(tmp_path / "b").files
    with pytest.raises(BundleError, match="privacy report is about another model"):
        restrict(tmp_path / "b", TOP)
    assert read_bundle(tmp_path / "b").files == before


def test_the_same_policy_again_changes_nothing(tmp_path: Path, keys: Keys) -> None:
    bundle = evidence.write(tmp_path / "b", keys)
    assert restrict(tmp_path / "b", ALL_SCORES).files == bundle.files
    assert Manifest.from_json(bundle.files["manifest.json"]) == bundle.manifest
