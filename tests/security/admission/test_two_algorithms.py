"""Statements signed with P-256 and with ML-DSA-65, and ways to make one count alone."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from models.bundle import (
    SEALED_ATTESTATION_FILE,
    VERDICT_FILE,
    attestation_file,
    mldsa_file,
    read_bundle,
)
from models.errors import BundleError
from models.files import write_atomic
from sealgate.protocol import dsse
from sealgate.protocol.dsse import ECDSA_P256, ML_DSA_65, key_hint, prehashed
from sealgate.protocol.hpke import PrivateKey
from sealgate.protocol.statement import Statement, VerificationSummary
from security.admission import gate
from security.admission.attest import (
    Signers,
    report_payload,
    signed_files,
    verdict_payload,
)
from security.admission.confidential import check_sealed, seal_model
from security.admission.signers import write_signed
from security.admission.trust import Revocation, TrustRoot
from security.errors import AdmissionRefused
from security.registry.transfer import pull, push
from tests.support.bundles import (
    POLICY,
    Keys,
    attest,
    evaluate,
    policy,
    scene_of,
    sign,
    write_bundle,
)
from tests.support.registries import Memory

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
QUALITY = attestation_file("quality")
BOTH = (ECDSA_P256, ML_DSA_65)
SIGNERS = b'[require.quality]\nsigners = ["assessor"'


@pytest.fixture(scope="module")
def two() -> Keys:
    """Every role that signs has keys of both algorithms."""
    return Keys.generate(mldsa=("trainer", "assessor", "release"))


@pytest.fixture
def folder(tmp_path: Path, two: Keys) -> Path:
    return write_bundle(tmp_path / "bundle", two, now=NOW)


def says(mode: str) -> bytes:
    return POLICY.replace(
        b"version = 1\n", f'version = 1\nsignatures = "{mode}"\n'.encode()
    )


def admitted(folder: Path, trust: TrustRoot, text: bytes = POLICY) -> gate.Admission:
    return gate.verify(read_bundle(folder), policy(text), trust, now=NOW)


def refused(
    check: int, message: str, folder: Path, trust: TrustRoot, text: bytes = POLICY
) -> None:
    with pytest.raises(AdmissionRefused, match=message) as caught:
        admitted(folder, trust, text)
    assert caught.value.check == check


def put(folder: Path, name: str, payload: bytes, key: dsse.SigningKey) -> None:
    write_atomic(folder / name, dsse.sign(payload, key))


def payload_of(folder: Path, name: str) -> bytes:
    value = json.loads((folder / name).read_bytes())
    return base64.b64decode(value["dsseEnvelope"]["payload"])


def test_both_are_checked_and_named(folder: Path, two: Keys) -> None:
    admission = admitted(folder, two.trust)
    assert set(admission.signatures.values()) == {BOTH}
    assert len(admission.signatures) == 4  # three statements and the verdict
    statement = Statement.from_json(payload_of(folder, VERDICT_FILE))
    summary = VerificationSummary.from_statement(statement)
    assert summary.signed_with(QUALITY) == BOTH
    assert {item.name for item in summary.inputs} == set(summary.signatures or ())
    # Its inputs are the P-256 files, so that older clients find all of them.
    assert not any(".mldsa." in item.name for item in summary.inputs)


def test_the_p256_half_is_what_it_was(folder: Path, two: Keys) -> None:
    data = (folder / QUALITY).read_bytes()
    assert len(json.loads(data)["dsseEnvelope"]["signatures"]) == 1
    payload = report_payload(read_bundle(folder), "quality")
    assert dsse.verify(data, two.trust.keys(("assessor",))).payload == payload


# One half stripped


@pytest.mark.parametrize(
    ("stem", "check"), [("quality", 2), ("privacy", 2), ("verdict", 11)]
)
def test_a_stripped_half(folder: Path, two: Keys, stem: str, check: int) -> None:
    (folder / mldsa_file(attestation_file(stem))).unlink()
    refused(check, "the ML-DSA-65 signature is missing beside it", folder, two.trust)


def test_the_other_half_stripped(folder: Path, two: Keys) -> None:
    (folder / VERDICT_FILE).unlink()
    refused(11, "verdict is missing", folder, two.trust)
    (folder / QUALITY).unlink()
    for text in (POLICY, says("any"), says("both")):
        refused(1, "quality report is not signed", folder, two.trust, text)


def test_a_trust_root_that_knows_one_algorithm_asks_for_one(
    folder: Path, two: Keys
) -> None:
    classical = replace(two, mldsa={}).trust
    # The verdict names more than is checked here, which claims nothing false.
    assert set(admitted(folder, classical).signatures.values()) == {(ECDSA_P256,)}
    for file in folder.glob("attestations/*.mldsa.*"):
        write_atomic(file, b"{}")
    admitted(folder, classical)


def test_a_verdict_on_one_algorithm_is_none_on_two(folder: Path, two: Keys) -> None:
    bundle = read_bundle(folder)
    payload = verdict_payload(bundle, policy(), now=NOW)
    signed = signed_files(VERDICT_FILE, payload, two.signers("release"))
    write_signed(folder, signed)
    refused(14, "ml-dsa-65 of .*sigstore.json was not checked", folder, two.trust)


# Algorithm confusion


def test_each_half_in_the_others_place(folder: Path, two: Keys) -> None:
    second = folder / mldsa_file(QUALITY)
    first, data = (folder / QUALITY).read_bytes(), second.read_bytes()
    second.write_bytes(first)
    refused(2, "ML-DSA-65: expected a signature by ml-dsa-65", folder, two.trust)
    (folder / QUALITY).write_bytes(data)
    refused(2, "expected a signature by ecdsa-p256-sha256", folder, two.trust)


def renamed(bundle: bytes, hint: str) -> bytes:
    value = json.loads(bundle)
    value["verificationMaterial"]["publicKey"]["hint"] = hint
    return json.dumps(value).encode()


def test_a_key_under_the_others_hint(folder: Path, two: Keys) -> None:
    first, second = two.assessor, two.mldsa["assessor"]
    payload = report_payload(read_bundle(folder), "quality")
    hints = {key: key_hint(key.public_key()) for key in (first, second)}
    # A P-256 signature that says it is the ML-DSA-65 key's, and the reverse.
    for name, key, hint in (
        (mldsa_file(QUALITY), first, hints[second]),
        (QUALITY, second, hints[first]),
    ):
        kept = (folder / name).read_bytes()
        write_atomic(folder / name, renamed(dsse.sign(payload, key), hint))
        refused(2, "signature does not verify", folder, two.trust)
        write_atomic(folder / name, kept)
    admitted(folder, two.trust)


def test_a_mapping_that_lies_about_a_key(two: Keys) -> None:
    """Even where the trusted key under a hint is of the other algorithm."""
    first, second = two.assessor.public_key(), two.mldsa["assessor"].public_key()
    crossed = {key_hint(first): second, key_hint(second): first}
    for key, algorithm in (
        (two.assessor, ECDSA_P256),
        (two.mldsa["assessor"], ML_DSA_65),
    ):
        with pytest.raises(dsse.StatementError, match="expected a signature by"):
            dsse.verify(dsse.sign(b"{}", key), crossed, algorithm=algorithm)


# Pre-hash against plain


class PreHash:
    """What a key service gives that signs as securesystemslib does."""

    def __init__(self, key: MLDSA65PrivateKey) -> None:
        self.key, self.public_key = key, key.public_key()

    @property
    def hint(self) -> str:
        return key_hint(self.public_key)

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(prehashed(data))


def test_each_form_is_refused_for_the_other(folder: Path, two: Keys) -> None:
    key = two.mldsa["assessor"]
    told = replace(two.trust, prehash=frozenset({key_hint(key.public_key())}))
    refused(2, "ML-DSA-65: signature does not verify", folder, told)
    for kind in ("quality", "structure"):
        attest(folder, kind, Signers(two.assessor, PreHash(key)))
    sign(folder, two, now=NOW)
    admitted(folder, told)
    refused(2, "ML-DSA-65: signature does not verify", folder, two.trust)


# Payloads that differ, and signatures of others


def test_a_second_half_over_another_payload(folder: Path, two: Keys) -> None:
    for kind in ("structure", "privacy"):  # the same signer's, and another one's
        data = (folder / mldsa_file(attestation_file(kind))).read_bytes()
        write_atomic(folder / mldsa_file(QUALITY), data)
        said = "another payload" if kind == "structure" else "not trusted for it"
        refused(2, f"ML-DSA-65: .*{said}", folder, two.trust)


def test_the_same_claim_in_other_bytes(folder: Path, two: Keys) -> None:
    payload = report_payload(read_bundle(folder), "quality") + b"\n"
    put(folder, mldsa_file(QUALITY), payload, two.mldsa["assessor"])
    refused(2, "ML-DSA-65: signs another payload than P-256 does", folder, two.trust)


def test_a_second_half_of_another_role(folder: Path, two: Keys) -> None:
    """A role may sign this kind, yet not as the second half of another role's."""
    text = POLICY.replace(SIGNERS, SIGNERS + b', "release"')
    payload = report_payload(read_bundle(folder), "quality")
    put(folder, mldsa_file(QUALITY), payload, two.mldsa["release"])
    refused(
        2, "ML-DSA-65: signed by a key that is not trusted", folder, two.trust, text
    )


def test_a_stranger(folder: Path, two: Keys) -> None:
    payload = report_payload(read_bundle(folder), "quality")
    put(folder, mldsa_file(QUALITY), payload, MLDSA65PrivateKey.generate())
    refused(2, "ML-DSA-65: signed by a key that is not trusted", folder, two.trust)


# Several signers


def test_two_signers_with_one_key_of_an_algorithm(folder: Path, two: Keys) -> None:
    other = Keys.generate(mldsa=("assessor",))
    text = POLICY.replace(SIGNERS + b"]\n", SIGNERS + b"]\nmin_signers = 2\n")
    roles = {
        role: {
            **two.trust.roles[role],
            **(other.trust.roles[role] if role == "assessor" else {}),
        }
        for role in two.trust.roles
    }
    trust = replace(two.trust, roles=roles)
    payload = report_payload(read_bundle(folder), "quality")
    place = attestation_file("quality.2")
    # Another P-256 key, the same ML-DSA-65 key; and the reverse; and one signer twice.
    for signers in (
        Signers(other.assessor, two.mldsa["assessor"]),
        Signers(two.assessor, other.mldsa["assessor"]),
        two.signers("assessor"),
    ):
        write_signed(folder, signed_files(place, payload, signers))
        refused(2, "quality report needs 2 signers, has 1 in 2", folder, trust, text)
    write_signed(folder, signed_files(place, payload, other.signers("assessor")))
    assert (
        evaluate(read_bundle(folder), policy(text), trust, now=NOW).signatures[place]
        == BOTH
    )


# Revocation


def revoked(trust: TrustRoot, key: MLDSA65PrivateKey) -> TrustRoot:
    hint = key_hint(key.public_key())
    without = {
        role: {h: k for h, k in keys.items() if h != hint}
        for role, keys in trust.roles.items()
    }
    return replace(
        trust,
        roles=without,
        revoked={hint: Revocation(hint, "2026-11-20T00:00:00Z", "lost")},
        retired={trust.role_of(hint) or "": {hint: key.public_key()}},
    )


def test_a_revoked_half_lowers_nothing(folder: Path, two: Keys) -> None:
    trust = revoked(two.trust, two.mldsa["assessor"])
    refused(2, "ML-DSA-65: signed by a key that is not trusted", folder, trust)
    # With the role's only ML-DSA-65 key gone, P-256 alone is still not enough.
    (folder / mldsa_file(QUALITY)).unlink()
    (folder / mldsa_file(attestation_file("structure"))).unlink()
    refused(2, "the ML-DSA-65 signature is missing", folder, trust)
    refused(2, "the ML-DSA-65 signature is missing", folder, trust, says("both"))


# What a policy says


def test_classical_and_any(tmp_path: Path, two: Keys) -> None:
    for mode in ("classical", "any"):
        folder = tmp_path / mode
        write_bundle(folder, two, now=NOW, policy_bytes=says(mode))
        admission = admitted(folder, two.trust, says(mode))
        assert (BOTH in admission.signatures.values()) == (mode == "any")
        for file in folder.glob("attestations/*.mldsa.*"):
            file.unlink()
        if mode == "any":  # it was signed on two, which is no claim about one
            assert admitted(folder, two.trust, says(mode)).signatures[QUALITY] == (
                ECDSA_P256,
            )
            put(folder, mldsa_file(QUALITY), b"{}", two.mldsa["assessor"])
            refused(2, "another payload", folder, two.trust, says(mode))
        else:
            admitted(folder, two.trust, says(mode))


def test_both_where_the_trust_root_has_no_such_key(tmp_path: Path) -> None:
    keys = Keys.generate()
    folder = write_bundle(tmp_path / "b", keys, now=NOW, policy_bytes=says("both"))
    said = "the trust root gives assessor no ML-DSA-65 key"
    refused(2, said, folder, keys.trust, says("both"))


def test_a_table_says_otherwise(tmp_path: Path, two: Keys) -> None:
    text = POLICY.replace(
        b"[require.quality]\n", b'[require.quality]\nsignatures = "classical"\n'
    )
    folder = write_bundle(tmp_path / "b", two, now=NOW, policy_bytes=text)
    (folder / mldsa_file(QUALITY)).unlink()
    sign(folder, two, now=NOW, policy_bytes=text)
    assert admitted(folder, two.trust, text).signatures[QUALITY] == (ECDSA_P256,)


# Files


@pytest.mark.parametrize("form", ["image", "modelpack"])
def test_there_and_back_through_a_registry(
    folder: Path, tmp_path: Path, form: str
) -> None:
    store, to = Memory(), tmp_path / "to"
    to.mkdir()
    push(read_bundle(folder), store, form=form, tag="1")
    pull(store, to)
    assert read_bundle(to) == read_bundle(folder)


@pytest.mark.parametrize(
    "name", ["quality.10.mldsa", "mldsa", "quality.mldsa.2", "quality.mldsa.mldsa"]
)
def test_no_other_names(folder: Path, name: str) -> None:
    write_atomic(folder / attestation_file(name), b"{}")
    with pytest.raises(BundleError, match="does not belong in a bundle"):
        read_bundle(folder)


def test_a_stale_half_never_stays(folder: Path, two: Keys) -> None:
    attest(folder, "quality", two.assessor)
    assert not (folder / mldsa_file(QUALITY)).exists()
    refused(2, "the ML-DSA-65 signature is missing", folder, two.trust)


def test_the_file_that_others_wait_for_comes_last(folder: Path) -> None:
    second = (folder / mldsa_file(QUALITY)).stat().st_mtime_ns
    assert second < (folder / QUALITY).stat().st_mtime_ns


def test_a_sealed_model_has_both(folder: Path, two: Keys, tmp_path: Path) -> None:
    bundle = read_bundle(folder)
    sealed = seal_model(
        bundle, [PrivateKey.generate().public_bytes], two.signers("release")
    )
    files = {name: data for name, data in bundle.files.items() if name != "model.onnx"}
    whole = replace(bundle, files={**files, **sealed})
    check_sealed(scene_of(whole, two.trust))
    second = mldsa_file(SEALED_ATTESTATION_FILE)
    stripped = {name: data for name, data in whole.files.items() if name != second}
    with pytest.raises(AdmissionRefused, match="ML-DSA-65 signature is missing"):
        check_sealed(scene_of(replace(whole, files=stripped), two.trust))
