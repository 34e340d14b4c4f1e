"""Check 27: a trainer who changes one field, and signs it, contradicts another."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle, attestation_file, read_bundle, report_file
from models.errors import ReportError
from models.files import write_atomic
from models.report import Metric, Report
from security.admission.attest import sign_report
from security.admission.consistency import initial_weights
from security.admission.gate import Recomputed
from security.commands.admit import _check_start, _recompute
from security.errors import AdmissionRefused
from tests.support import bundles, trained
from tests.support.bundles import Keys, attest, evaluate, policy

POLICY = b"""
version = 1
[verdict]
signers = ["release"]
max_age_days = 30
[require.provenance]
signers = ["trainer"]
max_age_days = 30
[require.privacy]
signers = ["trainer"]
max_age_days = 30
[require.privacy.metrics]
epsilon = { max = 3.0 }
"""
KINDS = ("provenance", "privacy")

# What nothing else says: texts for people, how many processes trained, and which
# generator made the noise, which a policy asks for by name.
FREE = {
    "conditions.outside_mechanism_sha256",
    "conditions.noise_generator",
    "conditions.processes",
    "metrics.noise_deficit_detectable.value",
    *(f"checks.{number}.message" for number in range(5)),
}


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys.generate()


@pytest.fixture
def folder(tmp_path: Path, keys: Keys) -> Path:
    folder = trained.copy(tmp_path / "bundle")
    for kind in KINDS:
        attest(folder, kind, keys.trainer)
    return folder


@pytest.fixture(scope="module")
def recomputed() -> Recomputed:
    """As `admit` computes it: of the honest mechanism, which most edits leave alone."""
    bundle = read_bundle(trained.bundle())
    return _recompute(bundle, bundle.report("privacy"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything that is no container."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from leaves(item, (*path, name))
    else:
        yield path


def other(value: Any) -> list[Any]:
    """Values of the same type that say something else."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2 + 1]
    if isinstance(value, float):
        return [value * 1.05 + 1e-9, value / 2 - 1e-9]
    if isinstance(value, str) and value.endswith("Z") and value[4] == "-":
        return [value.replace("T", "T", 1)[:8] + "01T00:00:00Z"]
    if isinstance(value, str) and len(value) == 64:
        return ["0" * 64]
    return [f"{value}x"] if isinstance(value, str) else []


def edits(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The report with one field changed, or without one condition, metric or check."""
    for path in leaves(report):
        *parents, last = path
        for value in other(_at(report, path)):
            changed = copy.deepcopy(report)
            _at(changed, tuple(parents))[last] = value
            yield ".".join(map(str, path)), changed
    for table in ("conditions", "metrics", "checks", "datasets", "details", "tools"):
        items = report[table]
        for name in range(len(items)) if isinstance(items, list) else sorted(items):
            changed = copy.deepcopy(report)
            del changed[table][name]
            yield f"without {table}.{name}", changed


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


def signed(
    bundle: Bundle, kind: str, document: dict[str, Any], keys: Keys
) -> Bundle | None:
    """The bundle with an edited report, signed by who wrote it; None if it is none."""
    data = json.dumps(document).encode()
    changed = replace(bundle, files={**bundle.files, report_file(kind): data})
    try:
        attestation = sign_report(changed, kind, keys.trainer)
    except (ReportError, AdmissionRefused):
        return None  # no report at all, or about another model: checks 3 and 5
    files = {**changed.files, attestation_file(kind): attestation}
    return replace(bundle, files=files)


def started(bundle: Bundle) -> bool:
    """Whether the weights that training began with can be drawn again, as `admit`."""
    try:
        _check_start(bundle, bundle.report("privacy"))
    except AdmissionRefused:
        return False
    return True


def sign_as_trainer(folder: Path, kind: str, document: dict[str, Any], keys: Keys):
    """The edited report, signed by who wrote it; it may be about another model."""
    data = json.dumps(document).encode()
    write_atomic(folder / report_file(kind), data)
    attest(folder, kind, keys.trainer)


def admitted(bundle: Bundle, keys: Keys, recomputed: Recomputed | None = None) -> bool:
    try:
        evaluate(
            bundle,
            policy(POLICY),
            keys.trust,
            now=datetime.now(UTC),
            recomputed=recomputed,
        )
    except AdmissionRefused:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_no_single_edit_with_the_trainers_key_passes(
    folder: Path, keys: Keys, recomputed: Recomputed, kind: str
) -> None:
    honest = json.loads((folder / report_file(kind)).read_bytes())
    assert admitted(read_bundle(folder), keys, recomputed)
    tried, passed = 0, set()
    bundle = read_bundle(folder)
    for name, document in edits(honest):
        changed = signed(bundle, kind, document, keys)
        if changed is None:
            continue
        tried += 1
        if admitted(changed, keys, recomputed) and started(changed):
            passed.add(name)
    assert tried > 60
    if kind == "privacy":
        # Digests of tensors that are not in the bundle by themselves.
        once = {name for name in passed if "details.outside_mechanism" in name}
        assert passed - once == FREE
    else:
        assert passed == set()


def restate(folder: Path, keys: Keys, kind: str = "privacy", **changes: Any) -> None:
    """Change conditions of a report, or metrics by name, as its author."""
    document = json.loads((folder / report_file(kind)).read_bytes())
    for name, value in changes.items():
        table = "metrics" if isinstance(value, dict) else "conditions"
        document[table][name] = value
    sign_as_trainer(folder, kind, document, keys)


def refusal(folder: Path, keys: Keys, text: bytes = POLICY) -> AdmissionRefused:
    with pytest.raises(AdmissionRefused) as caught:
        evaluate(read_bundle(folder), policy(text), keys.trust, now=datetime.now(UTC))
    return caught.value


def test_a_refusal_says_who_says_otherwise(folder: Path, keys: Keys) -> None:
    restate(folder, keys, max_grad_norm=0.5)
    found = refusal(folder, keys)
    assert found.check == 27
    assert "max_grad_norm is 0.5, where 1.0 must stand" in str(found)


def test_noise_that_was_half_as_large(folder: Path, keys: Keys) -> None:
    """Epsilon and noise both fit each other: only the accountant tells."""
    restate(folder, keys, epsilon={"value": 1.0}, epsilon_pld={"value": 1.0})
    bundle = read_bundle(folder)
    assert admitted(bundle, keys)
    assert not admitted(bundle, keys, _recompute(bundle, bundle.report("privacy")))


# Where the weights came from, and whether the data was a person's.

START = POLICY.replace(
    b"[require.privacy.metrics]",
    b'[require.privacy.conditions]\ninitial_weights = "random"\n'
    b"[require.privacy.metrics]",
)


def test_where_training_started(folder: Path, keys: Keys) -> None:
    """Evidence that does not say is refused where a policy asks, and only there."""
    honest = json.loads((folder / report_file("privacy")).read_bytes())
    document = copy.deepcopy(honest)
    for name in (
        *("initial_weights", "initial_weights_sha256", "ledger"),
        *("outside_mechanism", "outside_mechanism_sha256"),
    ):
        del document["conditions"][name]
    sign_as_trainer(folder, "privacy", document, keys)
    assert initial_weights(read_bundle(folder).report("privacy")) is None
    assert admitted(read_bundle(folder), keys)
    assert refusal(folder, keys, START).check == 8
    sign_as_trainer(folder, "privacy", honest, keys)
    public = f"public:{'a' * 64}"
    for value, check in [(public, 8), ("pretrained", 8), (f"{public}0", 8)]:
        restate(folder, keys, initial_weights=value)
        assert refusal(folder, keys, START).check == check
    restate(folder, keys, initial_weights="random")
    evaluate(read_bundle(folder), policy(START), keys.trust, now=datetime.now(UTC))


@pytest.mark.parametrize("value", ["", "Random", "public:", f"public:{'g' * 64}", True])
def test_a_start_that_is_none(folder: Path, keys: Keys, value: Any) -> None:
    restate(folder, keys, initial_weights=value)
    assert "neither random nor public:DIGEST" in str(refusal(folder, keys))


PUBLIC = bundles.POLICY.replace(
    b'neighbouring = "add_or_remove_one"',
    b'neighbouring = "add_or_remove_one"\npersonal_data = false',
)


def test_public_data_is_not_private(tmp_path: Path, keys: Keys) -> None:
    """With DP, yet booked in no ledger: any number of them adds up to nothing."""
    folder = bundles.write_bundle(tmp_path / "bundle", keys)
    restate(folder, keys, personal_data=False)
    found = refusal(folder, keys, bundles.POLICY)
    assert found.check == 27
    assert "the data was declared public" in str(found)
    evaluate(read_bundle(folder), policy(PUBLIC), keys.trust, now=datetime.now(UTC))


# Evidence of one model for another.


def test_evidence_of_another_version(tmp_path: Path, keys: Keys) -> None:
    """Reports, attestations and verdict, taken as a whole from another bundle."""
    good = bundles.write_bundle(tmp_path / "good", keys)
    for weights, version in ((-bundles.WEIGHTS, "1.0.0"), (bundles.WEIGHTS, "1.0.1")):
        bad = bundles.write_bundle(
            tmp_path / version, keys, weights=weights, version=version, kinds=()
        )
        for name, data in read_bundle(good).files.items():
            if "/" in name:
                write_atomic(bad / name, data)
        found = refusal(bad, keys, bundles.POLICY)
        assert found.check == 3
        assert "is about other bytes" in str(found)


def test_a_report_about_this_model_with_the_rows_of_another(
    folder: Path, keys: Keys
) -> None:
    """An assessor's membership report names the training rows it looked at."""
    privacy = read_bundle(folder).report("privacy")
    (rows,) = privacy.datasets
    elsewhere = {**vars(rows), "sha256": "0" * 64}
    report = Report(
        **{
            **vars(privacy),
            "kind": "membership",
            "datasets": (type(rows)(**elsewhere),),
            "conditions": {},
            "metrics": {"auc": Metric(0.5, n=200)},
            "details": {},
        }
    )
    write_atomic(folder / report_file("membership"), report.to_json())
    attest(folder, "membership", keys.assessor)
    more = b'[require.membership]\nsigners = ["assessor"]\nmax_age_days = 30\n'
    found = refusal(folder, keys, POLICY + more)
    assert found.check == 27
    assert "membership: other training rows than the" in str(found)


@pytest.mark.parametrize("check", range(5))
def test_a_forged_conformance_verdict(folder: Path, keys: Keys, check: int) -> None:
    """One that failed, left out, renamed or said twice; flipped, it needs the key."""
    honest = json.loads((folder / report_file("privacy")).read_bytes())
    failed = copy.deepcopy(honest)
    failed["checks"][check]["passed"] = False
    sign_as_trainer(folder, "privacy", failed, keys)
    assert refusal(folder, keys).check == 4  # its attestation says FAILED
    write_atomic(folder / report_file("privacy"), json.dumps(honest).encode())
    assert refusal(folder, keys).check == 4  # flipped back, without the key
    for checks in (
        [c for i, c in enumerate(honest["checks"]) if i != check],
        [*honest["checks"], honest["checks"][check]],
    ):
        sign_as_trainer(folder, "privacy", {**honest, "checks": checks}, keys)
        assert refusal(folder, keys).check == 27


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_breaks_the_gate(folder: Path, keys: Keys, kind: str) -> None:
    """Whatever a trainer writes into a field: refused or admitted, never an error."""
    honest = json.loads((folder / report_file(kind)).read_bytes())
    odd: tuple[Any, ...] = ("x", -1, 10**400, 1e308, True, [], {}, [1], {"a": 1}, None)
    bundle, tried = read_bundle(folder), 0
    for number, path in enumerate(leaves(honest)):
        *parents, last = path
        for value in odd[number % 2 :: 2]:
            document = copy.deepcopy(honest)
            _at(document, tuple(parents))[last] = value
            changed = signed(bundle, kind, document, keys)
            if changed is not None:
                admitted(changed, keys)
                tried += 1
    assert tried > 100
