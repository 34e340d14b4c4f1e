"""`upgrade-evidence`: what it adds, what it leaves, and what it never signs."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.bundle import (
    MODEL_SIGNATURE_FILE,
    SEALED_ATTESTATION_FILE,
    SEALED_FILE,
    VERDICT_FILE,
    attestation_file,
    mldsa_file,
    read_bundle,
    report_file,
)
from models.report import format_time
from sealgate.protocol import dsse
from security.admission.keys import generate_mldsa_key
from security.admission.trust_store import load_trust
from security.admission.verification import verify
from security.errors import AdmissionRefused
from tests.conftest import toy_settings
from tests.support.bundles import KINDS, POLICY, Keys, write_bundle
from tests.support.in_process import security_result
from tests.support.timestamps import TimeAuthority, serving, time_authority

ROLES = ("trainer", "assessor")
HALVES = {mldsa_file(attestation_file(kind)) for kind in KINDS}
QUALITY = attestation_file("quality")


@pytest.fixture(scope="module")
def tsa(tmp_path_factory: pytest.TempPathFactory) -> TimeAuthority:
    return time_authority(tmp_path_factory.mktemp("authority") / "tsa")


@pytest.fixture
def url(tsa: TimeAuthority) -> Iterator[str]:
    with serving(tsa) as (where, _):
        yield where


@pytest.fixture
def home(pristine: Path, tmp_path: Path, tsa: TimeAuthority) -> Path:
    """Today's keys and trust root, and a bundle as release 0.1 signed them."""
    folder = Path(shutil.copytree(pristine, tmp_path / "home"))
    shutil.rmtree(folder / "bundle")
    keys = replace(Keys.of(folder), mldsa={})
    write_bundle(folder / "bundle", keys)
    authority = ("keys", "add-authority", "Test TSA", str(tsa.folder / "ca.pem"))
    assert run(folder, *authority).returncode == 0
    return folder


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return security_result(home, *arguments, extra=toy_settings(home))


def upgrade(home: Path, *arguments: str, roles: tuple[str, ...] = ROLES) -> str:
    asked = [part for role in roles for part in ("--role", role)]
    done = run(home, "upgrade-evidence", str(home / "bundle"), *asked, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(home: Path, message: str, *arguments: str, code: int = 1) -> None:
    """Refused, and not a byte of the bundle is another."""
    before = files(home)
    done = run(home, "upgrade-evidence", str(home / "bundle"), *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert files(home) == before


def files(home: Path) -> dict[str, bytes]:
    folder = home / "bundle"
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def admitted(home: Path) -> None:
    verify(home / "bundle", trust=home / "trust.json", policy=home / "policy.toml")


def payload_of(data: bytes) -> str:
    return str(json.loads(data)["dsseEnvelope"]["payload"])


def hint_of(home: Path, role: str, algorithm: str = dsse.ECDSA_P256) -> str:
    keys = load_trust(home / "trust.json").keys((role,), algorithm=algorithm)
    return next(iter(keys))


def test_second_signatures_over_the_very_payloads(home: Path) -> None:
    before = files(home)
    with pytest.raises(AdmissionRefused, match="ML-DSA-65 signature is missing"):
        admitted(home)
    told = upgrade(home)
    assert told.count("signed   ") == len(HALVES)
    assert f"left     {VERDICT_FILE}  needs the ML-DSA-65 key of release" in told
    assert "a new claim" in told
    after = files(home)
    assert after.keys() - before.keys() == HALVES
    assert before.items() <= after.items()  # nothing there was replaced
    for name in HALVES:
        first = name.replace(".mldsa", "")
        assert payload_of(after[name]) == payload_of(before[first])
    # The old verdict does not say that they were checked: the gate has to do so.
    assert "not admitted: " in told
    assert run(home, "admit", str(home / "bundle")).returncode == 0
    admitted(home)
    again = files(home)
    told = upgrade(home)
    assert "signed " not in told
    assert told.endswith("admitted\n")
    assert files(home) == again


def test_a_verdict_that_names_no_second_signature_is_left(home: Path) -> None:
    told = upgrade(home, roles=(*ROLES, "release"))
    assert f"left     {VERDICT_FILE}  names no ML-DSA-65 of " in told
    told = upgrade(home, roles=(*ROLES, "release"))
    assert f"left     {VERDICT_FILE}  does not hold (verdict: ml-dsa-65 of" in told
    assert mldsa_file(VERDICT_FILE) not in files(home)


def test_what_was_stripped_comes_back(home: Path, url: str) -> None:
    """A verdict that names both, whose halves were lost: all comes back, stamped."""
    folder = str(home / "bundle")
    for role in ROLES:
        assert run(home, "sign", folder, "--role", role).returncode == 0
    model = ("sign", folder, "--role", "release", "--model-signature")
    assert run(home, *model).returncode == 0
    assert run(home, "admit", folder).returncode == 0
    admitted(home)
    whole = files(home)
    for path in (home / "bundle").rglob("*.mldsa.sigstore.json"):
        path.unlink()
    plan = upgrade(home, "--dry-run", "--timestamp-url", url, roles=(*ROLES, "release"))
    assert plan.count("would sign ") == len(HALVES) + 1
    assert plan.count("would stamp") == len(HALVES) + 2
    assert not HALVES & files(home).keys()
    told = upgrade(home, "--timestamp-url", url, roles=(*ROLES, "release"))
    assert told.endswith("admitted\n")
    assert f"left     {MODEL_SIGNATURE_FILE}  the OpenSSF's form" in told
    admitted(home)
    after = files(home)
    assert after.keys() == whole.keys()
    for name in whole:
        if name.endswith(".sigstore.json") or name == MODEL_SIGNATURE_FILE:
            assert payload_of(after[name]) == payload_of(whole[name])
            material = json.loads(after[name])["verificationMaterial"]
            stamps = material["timestampVerificationData"]["rfc3161Timestamps"]
            assert len(stamps) == 1
        else:
            assert after[name] == whole[name]
    again = upgrade(home, "--timestamp-url", url, roles=(*ROLES, "release"))
    assert not {"signed", "stamped"} & set(again.split())
    assert files(home) == after


def test_a_sealed_models_statement(home: Path, tmp_path: Path) -> None:
    """Check 24 comes first; then the release key signs which ciphertext is which."""
    public = tmp_path / "model.pub.pem"
    public.write_text(run(home, "keys", "public", "--model").stdout)
    for role in ROLES:
        assert run(home, "sign", str(home / "bundle"), "--role", role).returncode == 0
    assert run(home, "admit", str(home / "bundle")).returncode == 0
    sealed = ("seal", str(home / "bundle"), "--to", str(public))
    assert run(home, *sealed, "--out", str(tmp_path / "sealed")).returncode == 0
    shutil.rmtree(home / "bundle")
    shutil.move(tmp_path / "sealed", home / "bundle")
    second = mldsa_file(SEALED_ATTESTATION_FILE)
    (home / "bundle" / second).unlink()
    told = upgrade(home, roles=("release",))
    assert f"signed   {second}  as release" in told
    assert told.endswith("admitted\n")
    (home / "bundle" / second).unlink()
    path = home / "bundle" / SEALED_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    refused(home, "changed after it was signed [check 24]", "--role", "release")


def test_a_verdict_over_roles_without_second_keys(home: Path) -> None:
    """Only release has an ML-DSA-65 key: then its verdict needs nothing else named."""
    for role in ROLES:
        second = hint_of(home, role, dsse.ML_DSA_65)
        trust = json.loads((home / "trust.json").read_bytes())
        keys = trust["roles"][role]
        by_hint = {dsse.key_hint(dsse.parse_public(pem)): pem for pem in keys}
        trust["roles"][role] = [pem for h, pem in by_hint.items() if h != second]
        (home / "trust.json").write_text(json.dumps(trust))
    told = upgrade(home, roles=("release",))
    assert f"signed   {mldsa_file(VERDICT_FILE)}  as release" in told
    assert f"left     {QUALITY}  the trust root gives assessor no ML-DSA-65 key" in told
    assert told.endswith("admitted\n")
    admitted(home)


def test_time_stamps_alone(home: Path, url: str) -> None:
    told = upgrade(home, "--timestamp-url", url, roles=())
    assert told.count("stamped  ") == len(KINDS) + 1
    assert f"left     {QUALITY}  needs the ML-DSA-65 key of assessor" in told
    assert not HALVES & files(home).keys()


@pytest.mark.parametrize("mode", ["any", "classical"])
def test_a_bundle_that_holds_goes_on_holding(home: Path, mode: str) -> None:
    head = b'version = 1\nsignatures = "%b"\n' % mode.encode()
    policy = POLICY.replace(b"version = 1\n", head)
    policy = policy.replace(
        b'signers = ["release"]',
        b'signers = ["release"]\nsignatures = "%b"' % mode.encode(),
    )
    (home / "policy.toml").write_bytes(policy)
    assert run(home, "admit", str(home / "bundle")).returncode == 0
    (home / "bundle" / mldsa_file(VERDICT_FILE)).unlink(missing_ok=True)
    admitted(home)
    told = upgrade(home)
    assert told.endswith("admitted\n")
    admitted(home)
    # `any` looks at a half that is there, and this verdict does not name it.
    added = HALVES if mode == "classical" else set()
    assert HALVES & files(home).keys() == added
    assert ("the verdict that holds names one" in told) == (mode == "any")


# What is never signed.


def changed_report(home: Path) -> None:
    path = home / "bundle" / report_file("quality")
    path.write_bytes(path.read_bytes().replace(b"0.95", b"0.99"))


def changed_payload(home: Path) -> None:
    path = home / "bundle" / QUALITY
    other = home / "bundle" / attestation_file("structure")
    document = json.loads(path.read_bytes())
    document["dsseEnvelope"]["payload"] = payload_of(other.read_bytes())
    path.write_text(json.dumps(document))


def anothers_statement(home: Path) -> None:
    other = home / "bundle" / attestation_file("structure")
    shutil.copy(other, home / "bundle" / QUALITY)


def other_bytes(home: Path) -> None:
    path = home / "bundle" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"max_rows":64', b'"max_rows":65'))


def revoked_key(home: Path) -> None:
    revoke = ("keys", "revoke", hint_of(home, "assessor"), "--reason", "lost")
    run(home, *revoke)


def another_role(home: Path) -> None:
    """The trainer signs what only the assessor may."""
    shutil.rmtree(home / "bundle")
    keys = replace(Keys.of(home), mldsa={})
    write_bundle(home / "bundle", replace(keys, assessor=keys.trainer))


def a_half_that_lies(home: Path) -> None:
    """It is of the right key, over another payload."""
    payload = json.loads((home / "bundle" / QUALITY).read_bytes())
    keys = Keys.of(home)
    other = b'{"x":' + payload["dsseEnvelope"]["payload"][:8].encode() + b"}"
    path = home / "bundle" / mldsa_file(QUALITY)
    path.write_bytes(dsse.sign(other, keys.mldsa["assessor"]))


ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "tampered report": (changed_report, "quality report was changed"),
    "another payload": (changed_payload, "signature does not verify"),
    "another statement": (anothers_statement, "is about structure"),
    "bundle of other bytes": (other_bytes, "about other bytes"),
    "revoked key": (revoked_key, "signed by a key that is not trusted for it"),
    "another role": (another_role, "signed by a key that is not trusted for it"),
    "a half that lies": (a_half_that_lies, "signs another payload"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_does_not_verify_is_not_signed(home: Path, url: str, name: str) -> None:
    attack, message = ATTACKS[name]
    attack(home)
    roles = [part for role in ROLES for part in ("--role", role)]
    refused(home, message, *roles)
    refused(home, message, *roles, "--dry-run")
    refused(home, message, "--timestamp-url", url)


def test_a_revoked_keys_statement_that_a_stamp_keeps_is_not_signed(
    home: Path, url: str
) -> None:
    upgrade(home, "--timestamp-url", url, roles=())
    # openssl's clock has whole seconds, and states an accuracy of one.
    time.sleep(2.1)
    since = format_time(datetime.now(UTC))
    revoke = ("keys", "revoke", hint_of(home, "assessor"), "--reason", "lost")
    run(home, *revoke, "--compromised", since)
    told = upgrade(home)
    assert f"left     {QUALITY}  signed by a revoked key" in told
    assert mldsa_file(QUALITY) not in files(home)
    assert mldsa_file(attestation_file("privacy")) in files(home)  # the trainer's


def test_a_key_of_another_role_signs_nothing(home: Path, tmp_path: Path) -> None:
    message = "does not hold the role assessor"
    others = home / "keys" / "trainer.mldsa.pem"
    refused(home, message, "--role", "assessor", "--mldsa-key", str(others))
    generate_mldsa_key(tmp_path / "strange.pem")
    strange = ("--mldsa-key", str(tmp_path / "strange.pem"))
    refused(home, message, "--role", "assessor", *strange)
    second = hint_of(home, "assessor", dsse.ML_DSA_65)
    run(home, "keys", "revoke", second, "--reason", "lost")
    refused(home, message, "--role", "assessor")


def test_a_payload_that_is_swapped_meanwhile(home: Path, tsa: TimeAuthority) -> None:
    """Who writes in the folder while the authority is asked has nothing signed."""
    path = home / "bundle" / QUALITY
    swapped = dsse.sign(b'{"never":"checked"}', Keys.of(home).trainer)

    class Swapping(TimeAuthority):
        def answer(self, request: bytes) -> bytes:
            path.write_bytes(swapped)
            return super().answer(request)

    between = Swapping(tsa.folder, tsa.name, tsa.root, tsa.own)
    folder = str(home / "bundle")
    with serving(between) as (where, _):
        done = run(
            home,
            *("upgrade-evidence", folder, "--role", "assessor"),
            *("--timestamp-url", where),
        )
    assert done.returncode == 1
    assert "changed while it was upgraded: nothing is written" in done.stderr
    assert path.read_bytes() == swapped
    assert not HALVES & files(home).keys()


def test_an_authority_that_fails_half_way(home: Path, tsa: TimeAuthority) -> None:
    """The second answer is of another signature: nothing at all is written."""
    strange = tsa.stamp(b"of another signature", datetime.now(UTC))

    asked: list[bytes] = []

    class Failing(TimeAuthority):
        def answer(self, request: bytes) -> bytes:
            asked.append(request)
            return super().answer(request) if len(asked) == 1 else strange

    failing = Failing(tsa.folder, tsa.name, tsa.root, tsa.own)
    with serving(failing) as (where, _):
        message = "of another signature"
        arguments = ("--role", "assessor", "--timestamp-url", where)
        refused(home, message, *arguments, code=2)
    assert len(asked) > 1


def test_what_a_stop_half_way_leaves_is_gone_on_with(home: Path) -> None:
    before = files(home)
    upgrade(home)
    (home / "bundle" / max(HALVES)).unlink()  # the last of them was not written
    half = files(home)
    assert before.items() <= half.items()
    told = upgrade(home)
    assert told.count("signed   ") == 1
    after = files(home)
    assert half.items() <= after.items()
    assert after.keys() - half.keys() == {max(HALVES)}


def test_one_key_signs_one_statement_of_a_kind(home: Path, tmp_path: Path) -> None:
    """Two assessors: nobody's second signature stands beside the other's."""
    other = Keys.generate(mldsa=["assessor"])
    for name, key in (("a", other.assessor), ("b", other.mldsa["assessor"])):
        path = tmp_path / f"{name}.pem"
        path.write_text(dsse.public_pem(key.public_key()))
        assert run(home, "keys", "add", str(path), "--role", "assessor").returncode == 0
    payload = json.loads((home / "bundle" / QUALITY).read_bytes())["dsseEnvelope"]
    data = dsse.decode_base64(payload["payload"])
    second = attestation_file("quality.2")
    (home / "bundle" / second).write_bytes(dsse.sign(data, other.assessor))
    told = upgrade(home, roles=("assessor",))
    assert f"signed   {mldsa_file(QUALITY)}" in told
    assert f"left     {second}  another assessor's" in told
    assert mldsa_file(second) not in files(home)


def test_what_the_policy_does_not_rest_on_is_left(home: Path) -> None:
    policy = POLICY.split(b"[require.quality]")
    rest = policy[1].partition(b"[require.privacy]")[2]
    without = policy[0] + b"[require.privacy]" + rest
    (home / "policy.toml").write_bytes(without)
    told = upgrade(home)
    assert f"left     {QUALITY}  the policy does not rest on it" in told
    assert mldsa_file(QUALITY) not in files(home)


def test_wrong_usage(home: Path) -> None:
    folder = str(home / "bundle")
    for message, arguments in (
        ("nothing to add", ()),
        ("no role 'x'", ("--role", "x")),
        (
            "are for one --role",
            ("--role", "trainer", "--role", "release", "--key", "x"),
        ),
        ("the trust root names no", ("--timestamp-url", "http://127.0.0.1:1")),
    ):
        if "timestamp" in str(arguments):
            run(home, "keys", "remove-authority", "Test TSA")
        refused(home, message, *arguments, code=2)
    (home / "keys" / "trainer.mldsa.pem").unlink()
    refused(home, "trainer has no ML-DSA-65 key", "--role", "trainer", code=2)
    assert read_bundle(Path(folder)).manifest.name == "toy"
