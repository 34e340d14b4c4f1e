"""Time stamps at the gate: what a policy demands, and what a revoked key loses."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from models.bundle import (
    MODEL_FILE,
    MODEL_SIGNATURE_FILE,
    SEALED_ATTESTATION_FILE,
    VERDICT_FILE,
    attestation_file,
    mldsa_file,
    read_bundle,
)
from models.files import write_atomic
from models.report import format_time
from sealgate.passport import verify_passport
from sealgate.protocol import dsse
from sealgate.protocol.dsse import key_hint, public_pem
from sealgate.protocol.hpke import PrivateKey
from sealgate.protocol.statement import Waiver
from security.admission import gate
from security.admission.attest import Signers, sign_waiver, waiver_file
from security.admission.confidential import check_sealed, seal_model
from security.admission.model_signature import check_signature, sign_model
from security.admission.observations import read_observation, write_observation
from security.admission.rules import Requirement
from security.admission.steps import Scene
from security.admission.timestamps import MAX_STAMP_BYTES
from security.admission.trust import Revocation, TimestampAuthority, TrustRoot
from security.documents.bom import documents
from security.documents.sourced import sourced
from security.errors import AdmissionRefused
from service.descriptions import passport
from tests.support.bundles import (
    KINDS,
    POLICY,
    Keys,
    attest,
    policy,
    rewrite_report,
    write_bundle,
)
from tests.support.promotions import monitoring
from tests.support.timestamps import TimeAuthority, time_authority

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
QUALITY, STRUCTURE = attestation_file("quality"), attestation_file("structure")

ALL = POLICY.replace(b"version = 1\n", b'version = 1\ntimestamps = "required"\n')
KIND = b"[require.quality]\n"
ONE = POLICY.replace(KIND, KIND + b'timestamps = "required"\n')
VERDICT = POLICY.replace(b"[verdict]\n", b'[verdict]\ntimestamps = "required"\n')
BUT_ONE = ALL.replace(KIND, KIND + b'timestamps = "optional"\n')
WAIVERS = b"""
[waivers]
signers = ["privacy-officer"]
max_days = 14
kinds = ["quality"]
"""


@pytest.fixture(scope="module")
def tsa(tmp_path_factory: pytest.TempPathFactory) -> TimeAuthority:
    return time_authority(tmp_path_factory.mktemp("authority") / "tsa")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> TimeAuthority:
    return time_authority(tmp_path_factory.mktemp("authority") / "other", "Stranger")


@pytest.fixture
def trust(keys: Keys, tsa: TimeAuthority) -> TrustRoot:
    authority = TimestampAuthority(tsa.name, tsa.certificates)
    return replace(keys.trust, timestamp_authorities=(authority,))


def written(tmp_path: Path, keys: Keys, text: bytes = POLICY, **more: Any) -> Path:
    return write_bundle(tmp_path / "bundle", keys, now=NOW, policy_bytes=text, **more)


@pytest.fixture
def folder(tmp_path: Path, keys: Keys) -> Path:
    return written(tmp_path, keys)


def stamp(path: Path, tsa: TimeAuthority, time: datetime = NOW, **more: Any) -> None:
    data = path.read_bytes()
    made = tsa.stamp(dsse.read_signature(data), time, **more)
    write_atomic(path, dsse.stamped(data, made))


def stamp_all(folder: Path, tsa: TimeAuthority, time: datetime = NOW) -> None:
    for path in (folder / "attestations").iterdir():
        stamp(path, tsa, time)


def unstamp(path: Path) -> None:
    write_atomic(path, dsse.unstamped(path.read_bytes()))


def verify(
    folder: Path, trust: TrustRoot, text: bytes = POLICY, now: datetime = NOW
) -> gate.Admission:
    return gate.verify(read_bundle(folder), policy(text), trust, now=now)


def refused(
    check: int,
    message: str,
    folder: Path,
    trust: TrustRoot,
    text: bytes = POLICY,
    *,
    now: datetime = NOW,
) -> None:
    with pytest.raises(AdmissionRefused, match=message) as caught:
        verify(folder, trust, text, now)
    assert caught.value.check == check
    bundle = read_bundle(folder)
    found = gate.all_refusals(bundle, policy(text), trust, now=now)
    assert str(found[0]) == str(caught.value)


# What a policy demands.


def test_where_nobody_demands_them(folder: Path, trust: TrustRoot) -> None:
    assert verify(folder, trust).expires_at == NOW + 30 * DAY


def test_stamps_that_come_after_the_verdict(
    folder: Path, trust: TrustRoot, tsa: TimeAuthority
) -> None:
    before = documents(read_bundle(folder))
    stamp_all(folder, tsa)
    assert verify(folder, trust).expires_at == NOW + 30 * DAY
    assert documents(read_bundle(folder)) == before
    # Only stamps may come: anything else in the file is another statement.
    document = json.loads((folder / QUALITY).read_bytes())
    document["verificationMaterial"]["tlogEntries"] = [{}]
    write_atomic(folder / QUALITY, json.dumps(document).encode())
    refused(14, "rests on other attestations", folder, trust)


@pytest.mark.parametrize("text", [ALL, ONE, BUT_ONE, VERDICT])
def test_what_a_policy_demands(
    tmp_path: Path, keys: Keys, trust: TrustRoot, tsa: TimeAuthority, text: bytes
) -> None:
    folder = written(tmp_path, keys, text)
    first, check, needed = {
        ALL: ("structure attestation", 2, (*KINDS, "verdict")),
        BUT_ONE: ("structure attestation", 2, ("structure", "privacy", "verdict")),
        ONE: ("quality attestation", 2, ("quality",)),
        VERDICT: ("verdict", 11, ("verdict",)),
    }[text]
    demanded = f"{first}: it has no time stamp; the policy demands a trusted one"
    refused(check, demanded, folder, trust, text)
    for kind in needed:
        stamp(folder / attestation_file(kind), tsa)
    verify(folder, trust, text)
    for kind in needed:
        path = folder / attestation_file(kind)
        unstamp(path)
        check = 11 if kind == "verdict" else 2
        refused(check, f"^{kind}.* it has no time stamp", folder, trust, text)
        stamp(path, tsa)
    # An authority that is trusted no more takes its stamps with it.
    bare = replace(trust, timestamp_authorities=())
    check = 11 if needed == ("verdict",) else 2
    refused(check, "names no timestamp authority", folder, bare, text)


def test_both_signatures_are_stamped(
    tmp_path: Path, keys: Keys, trust: TrustRoot, tsa: TimeAuthority
) -> None:
    key = MLDSA65PrivateKey.generate()
    hint = key_hint(key.public_key())
    assessor = {**trust.roles["assessor"], hint: key.public_key()}
    trust = replace(trust, roles={**trust.roles, "assessor": assessor})
    folder = written(tmp_path, keys, ONE)
    for path in (folder / QUALITY, folder / STRUCTURE):
        payload = json.loads(path.read_bytes())["dsseEnvelope"]["payload"]
        second = dsse.sign(base64.b64decode(payload), key)
        write_atomic(folder / mldsa_file(str(path.relative_to(folder))), second)
    stamp(folder / QUALITY, tsa)
    refused(2, "ML-DSA-65: it has no time stamp", folder, trust, ONE)
    # The stamp of one signature is none of the other.
    path = folder / mldsa_file(QUALITY)
    plain = path.read_bytes()
    ecdsa = dsse.read_signature((folder / QUALITY).read_bytes())
    write_atomic(path, dsse.stamped(plain, tsa.stamp(ecdsa, NOW)))
    refused(2, "of another signature", folder, trust, ONE)
    write_atomic(path, plain)
    stamp(path, tsa)
    found = gate.all_refusals(read_bundle(folder), policy(ONE), trust, now=NOW)
    assert {item.check for item in found} == {14}  # the verdict knows of one algorithm


def test_a_waiver_too(
    tmp_path: Path, keys: Keys, trust: TrustRoot, tsa: TimeAuthority
) -> None:
    text = ALL + WAIVERS
    folder = written(tmp_path, keys, text, admit=False)
    waiver = Waiver(
        kind="quality",
        reason="pilot",
        created=format_time(NOW),
        expires=format_time(NOW + 7 * DAY),
        metric="accuracy",
    )
    path = folder / waiver_file("quality")
    signed = sign_waiver(read_bundle(folder), waiver, keys.privacy_officer)
    write_atomic(path, signed)
    stamp_all(folder, tsa)
    verified = gate.all_refusals(
        read_bundle(folder), policy(text), trust, now=NOW, verdict=False
    )
    assert verified == []
    write_atomic(path, signed)
    refused(20, "quality waiver: it has no time stamp", folder, trust, text)
    stamp(path, tsa, NOW - DAY)
    refused(23, "newer than its stamp", folder, trust, text)


# Which time counts.


def test_to_stamp_late_makes_nothing_fresh(
    tmp_path: Path, keys: Keys, trust: TrustRoot, tsa: TimeAuthority
) -> None:
    folder = written(tmp_path, keys, ALL)
    rewrite_report(folder, "quality", created_at=NOW - 31 * DAY)
    attest(folder, "quality", keys.assessor)
    stamp_all(folder, tsa)
    refused(6, "quality report expired", folder, trust, ALL)


def test_a_clock_that_is_ahead_makes_nothing_fresh(
    tmp_path: Path, keys: Keys, trust: TrustRoot, tsa: TimeAuthority
) -> None:
    """Signed a month ago for today; without a stamp nobody could tell."""
    folder = written(tmp_path, keys, ALL)
    stamp_all(folder, tsa, NOW - 29 * DAY)
    refused(6, "structure report says that it is newer", folder, trust, ALL)
    for kind in ("structure", "quality", "privacy"):
        path = folder / attestation_file(kind)
        unstamp(path)
        stamp(path, tsa)
    refused(15, "verdict says that it is newer than its stamp", folder, trust, ALL)


def test_age_counts_from_the_earlier_time(
    tmp_path: Path, keys: Keys, trust: TrustRoot, tsa: TimeAuthority
) -> None:
    folder = written(tmp_path, keys, ALL)
    stamp_all(folder, tsa, NOW + DAY)
    later = NOW + DAY
    assert verify(folder, trust, ALL, later).expires_at == NOW + 30 * DAY
    # Within the tolerance of clocks a stamp may be before what it stamps.
    path, before = folder / QUALITY, NOW - timedelta(minutes=4)
    unstamp(path)
    stamp(path, tsa, before)
    assert verify(folder, trust, ALL, later).expires_at == before + 30 * DAY
    # Of several the earliest counts, also where a later one says otherwise.
    stamp(path, tsa, NOW + DAY)
    assert verify(folder, trust, ALL, later).expires_at == before + 30 * DAY
    stamp(path, tsa, NOW - DAY)
    refused(6, "newer than its stamp", folder, trust, ALL, now=later)


def test_a_stamp_from_the_future(
    folder: Path, trust: TrustRoot, tsa: TimeAuthority
) -> None:
    stamp(folder / QUALITY, tsa, NOW + timedelta(minutes=6))
    refused(6, "quality report has a time stamp from the future", folder, trust)
    unstamp(folder / QUALITY)
    stamp(folder / VERDICT_FILE, tsa, NOW + timedelta(minutes=6))
    refused(15, "verdict has a time stamp from the future", folder, trust)


# Stamps that are not what they claim.


def test_a_stamp_of_another_message(
    folder: Path, trust: TrustRoot, tsa: TimeAuthority
) -> None:
    other = dsse.read_signature((folder / STRUCTURE).read_bytes())
    for good_too in (False, True):
        if good_too:
            stamp(folder / QUALITY, tsa)
        data = (folder / QUALITY).read_bytes()
        bad = dsse.stamped(data, tsa.stamp(other, NOW))
        write_atomic(folder / QUALITY, bad)
        refused(2, "of another signature", folder, trust)
        write_atomic(folder / QUALITY, data)


def test_a_stamp_of_a_stranger_counts_for_nothing(
    tmp_path: Path,
    keys: Keys,
    trust: TrustRoot,
    tsa: TimeAuthority,
    stranger: TimeAuthority,
) -> None:
    folder = written(tmp_path, keys, ONE)
    stamp(folder / QUALITY, stranger, NOW - 20 * DAY)
    refused(2, "not Test TSA's", folder, trust, ONE)
    stamp(folder / QUALITY, tsa)
    verify(folder, trust, ONE)


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        ([b"x" * (MAX_STAMP_BYTES + 1)], "time stamp over 16384 bytes"),
        ([b"x"] * 9, "more than 8 time stamps"),
        ([b"x"], "malformed"),
        ("x", "malformed"),
    ],
)
def test_malformed_and_oversized(
    folder: Path, trust: TrustRoot, stamps: Any, message: str
) -> None:
    document = json.loads((folder / QUALITY).read_bytes())
    listed = (
        [{"signedTimestamp": base64.b64encode(item).decode()} for item in stamps]
        if isinstance(stamps, list)
        else stamps
    )
    material = document["verificationMaterial"]
    material["timestampVerificationData"] = {"rfc3161Timestamps": listed}
    write_atomic(folder / QUALITY, json.dumps(document).encode())
    refused(2, message, folder, trust)


# Keys that were revoked after they had signed.


def revoking(trust: TrustRoot, role: str, compromised: datetime | None) -> TrustRoot:
    """All of a role's keys, revoked an hour ago."""
    since = None if compromised is None else format_time(compromised)
    at = format_time(NOW - timedelta(hours=1))
    gone = {hint: Revocation(hint, at, "lost", since) for hint in trust.roles[role]}
    roles = {name: keys for name, keys in trust.roles.items() if name != role}
    return replace(trust, roles=roles, revoked=gone, retired={role: trust.roles[role]})


def sealed(folder: Path, keys: Keys) -> Path:
    """The same bundle, its model encrypted to somebody."""
    bundle = read_bundle(folder)
    other = folder.with_name("sealed")
    key = PrivateKey.generate().public_bytes
    files = bundle.files | seal_model(bundle, [key], Signers(keys.release))
    for path, data in files.items():
        if path != MODEL_FILE:
            write_atomic(other / path, data)
    return other


def of_statement(folder: Path, trust: TrustRoot) -> None:
    verify(folder, trust, now=NOW)


def of_sealed_model(folder: Path, trust: TrustRoot) -> None:
    check_sealed(Scene(read_bundle(folder), policy(), trust, NOW))


def of_model_signature(folder: Path, trust: TrustRoot) -> None:
    check_signature(Scene(read_bundle(folder), policy(), trust, NOW))


CASES = {
    "statement": (QUALITY, "assessor", 2, of_statement),
    "verdict": (VERDICT_FILE, "release", 11, of_statement),
    "sealed model": (SEALED_ATTESTATION_FILE, "release", 24, of_sealed_model),
    "model.sig": (MODEL_SIGNATURE_FILE, "release", 25, of_model_signature),
}


@pytest.mark.parametrize("case", CASES)
def test_a_revoked_key(  # noqa: PLR0917  (fixtures)
    case: str,
    folder: Path,
    keys: Keys,
    trust: TrustRoot,
    tsa: TimeAuthority,
    stranger: TimeAuthority,
) -> None:
    name, role, check, verify_it = CASES[case]
    if case == "sealed model":
        folder = sealed(folder, keys)
    write_atomic(
        folder / MODEL_SIGNATURE_FILE, sign_model(read_bundle(folder), keys.release)
    )
    hour = timedelta(hours=1)
    known = revoking(trust, role, NOW + hour)

    def falls(message: str, root: TrustRoot) -> None:
        with pytest.raises(AdmissionRefused, match=message) as caught:
            verify_it(folder, root)
        assert caught.value.check == check

    falls("signed by a revoked key, and it has no time stamp", known)
    for path in {QUALITY, STRUCTURE, VERDICT_FILE, MODEL_SIGNATURE_FILE, name}:
        stamp(folder / path, tsa)
    verify_it(folder, known)
    # Nobody knows since when: nothing is believed, stamped or not.
    falls("not trusted", revoking(trust, role, None))
    falls("stamped after it was compromised", revoking(trust, role, NOW))
    falls("stamped after it was compromised", revoking(trust, role, NOW - hour))
    # The latest that the authority's time may mean counts.
    unstamp(folder / STRUCTURE)
    unstamp(folder / name)
    stamp(folder / STRUCTURE, tsa, NOW - timedelta(minutes=4))
    stamp(folder / name, tsa, NOW, accuracy_s=60)
    just = NOW + timedelta(seconds=60)
    falls("stamped after it was compromised", revoking(trust, role, just))
    verify_it(folder, revoking(trust, role, just + timedelta(seconds=1)))
    # One that is earlier, of whom nobody trusts.
    unstamp(folder / name)
    stamp(folder / name, stranger)
    falls("signed by a revoked key, and the time stamp is not Test TSA's", known)
    # The trust root that believes nobody's time.
    unstamp(folder / name)
    stamp(folder / name, tsa)
    falls("names no timestamp authority", replace(known, timestamp_authorities=()))


def test_the_gate_agrees_on_who_signed(
    folder: Path, trust: TrustRoot, tsa: TimeAuthority
) -> None:
    """A revoked key is one signer, whatever else it may do: no role comes back."""
    stamp_all(folder, tsa)
    known = revoking(trust, "assessor", NOW + DAY)
    assert known.keys(("assessor",)) == {}
    with pytest.raises(AdmissionRefused, match="not trusted"):
        verify(folder, replace(known, retired={"trainer": known.retired["assessor"]}))


def test_what_is_signed_beside_the_plan(
    folder: Path, keys: Keys, trust: TrustRoot, tsa: TimeAuthority, tmp_path: Path
) -> None:
    subject = read_bundle(folder).subject
    path = write_observation(tmp_path, monitoring(subject), Signers(keys.monitor))
    needed = Requirement("monitoring", ("monitor",), DAY, {}, (), timestamps=True)

    def read(root: TrustRoot, wanted: Requirement = needed) -> str:
        scene = Scene(read_bundle(folder), policy(), root, datetime.now(UTC))
        return read_observation(tmp_path, scene, wanted).sha256

    with pytest.raises(AdmissionRefused, match=r"it has no time stamp.*check 40"):
        read(trust)
    before = read(trust, replace(needed, timestamps=False))
    stamp(path, tsa, datetime.now(UTC))  # the report is of now, not of NOW
    assert read(trust) == before
    gone = revoking(trust, "monitor", NOW - DAY)
    with pytest.raises(AdmissionRefused, match=r"after it was compromised.*check 40"):
        read(gone)
    read(revoking(trust, "monitor", NOW + DAY))
    unstamp(path)
    stamp(path, tsa, NOW - DAY)
    with pytest.raises(AdmissionRefused, match=r"newer than its stamp.*check 42"):
        read(trust)


def test_the_passport_has_what_the_verdict_names(
    folder: Path, keys: Keys, trust: TrustRoot, tsa: TimeAuthority
) -> None:
    """Clients of any release compare digests: they get statements without stamps."""
    before = verify(folder, trust)
    stamp_all(folder, tsa)
    stamped = verify(folder, trust)
    assert stamped.verdict_sha256 == before.verdict_sha256
    assert sourced(stamped).sources["verdict"].sha256 == before.verdict_sha256
    document = json.loads(json.dumps(passport(stamped)))
    pem = public_pem(keys.release.public_key())
    found = verify_passport(document, model="toy", trusted_keys=[pem])
    assert found.model == "toy:1.0.0"
    assert found.verdict_sha256 == before.verdict_sha256
    assert "timestampVerificationData" in document["verdict"]
