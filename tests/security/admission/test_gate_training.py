"""What the gate makes of training evidence: benchmarks, groups, the unaccounted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.bundle import read_bundle, report_file
from models.report import Report
from security.errors import AdmissionRefused
from tests.support.bundles import (
    Keys,
    attest,
    evaluate,
    policy,
    rewrite_report,
    write_bundle,
)

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path, keys: Keys) -> Path:
    return write_bundle(tmp_path / "bundle", keys, now=NOW)


def restate(folder: Path, keys: Keys, **conditions: Any) -> None:
    """State more in the privacy report, signed as its author would."""
    stated = read_bundle(folder).report("privacy").conditions
    rewrite_report(folder, "privacy", conditions={**stated, **conditions})
    attest(folder, "privacy", keys.signer("privacy"))


def refused(folder: Path, keys: Keys, check: int, message: str) -> None:
    with pytest.raises(AdmissionRefused, match=message) as caught:
        evaluate(read_bundle(folder), policy(), keys.trust, now=NOW, recomputed=None)
    assert caught.value.check == check


@pytest.mark.parametrize("mark", [True, "true", 1, "no"])
def test_a_benchmark_is_admitted_by_no_policy(
    folder: Path, keys: Keys, mark: object
) -> None:
    restate(folder, keys, benchmark=mark)
    refused(folder, keys, 7, "privacy: made by a benchmark")


def test_also_where_the_policy_does_not_ask(folder: Path, keys: Keys) -> None:
    privacy = read_bundle(folder).report("privacy")
    assert "provenance" not in {item.kind for item in policy().required("toy")}
    marked = Report(**{**vars(privacy), "kind": "provenance"})
    marked = Report(**{**vars(marked), "conditions": {"benchmark": True}})
    (folder / report_file("provenance")).write_bytes(marked.to_json())
    refused(folder, keys, 7, "provenance: made by a benchmark")


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"normalisation": "private_row_count"}, "normalisation 'private_row_count'"),
        ({"unit": "household"}, "unit 'household'"),
        ({"sampled": "token"}, "sampled 'token'"),
        ({"verdicts_cover": "steps_since_resume"}, "verdicts_cover 'steps_since"),
        ({"group_size": 0}, "group_size 0"),
        ({"group_size": 2.0}, "group_size 2.0"),
        ({"group_size": True}, "group_size True"),
        ({"unit": "owner", "sampled": "row"}, "accounted one by one"),
        ({"unit": "owner"}, "accounted one by one"),
    ],
)
def test_what_cannot_be_accounted(
    folder: Path, keys: Keys, conditions: dict[str, Any], message: str
) -> None:
    restate(folder, keys, **conditions)
    refused(folder, keys, 10, message)


@pytest.mark.parametrize(
    "conditions",
    [
        {"unit": "owner", "sampled": "unit", "normalisation": "public_constant"},
        {"unit": "owner", "sampled": "row", "group_size": 3},
        {"unit": "row", "sampled": "row", "group_size": 1},
        {"benchmark": False},
    ],
)
def test_what_can(folder: Path, keys: Keys, conditions: dict[str, Any]) -> None:
    restate(folder, keys, **conditions)
    evaluate(read_bundle(folder), policy(), keys.trust, now=NOW, recomputed=None)
