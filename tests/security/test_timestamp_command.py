"""`timestamp`, --timestamp-url, and authorities of time in `keys`; with openssl's."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sigstore_models.bundle.v1 import Bundle as SigstoreBundle

from models.bundle import attestation_file
from models.report import format_time
from sealgate.protocol import dsse
from security.admission.gate import Admission
from security.admission.trust_store import load_trust
from security.admission.verification import verify
from security.commands.verify import print_admission
from security.errors import AdmissionRefused
from tests.conftest import check_security, run_security, toy_settings
from tests.support.bundles import POLICY
from tests.support.timestamps import (
    TimeAuthority,
    nonce_of,
    serving,
    time_authority,
)

REQUIRED = POLICY.replace(b"version = 1\n", b'version = 1\ntimestamps = "required"\n')


@pytest.fixture(scope="module")
def tsa(tmp_path_factory: pytest.TempPathFactory) -> TimeAuthority:
    return time_authority(tmp_path_factory.mktemp("authority") / "tsa")


@pytest.fixture(scope="module")
def url(tsa: TimeAuthority) -> Iterator[str]:
    with serving(tsa) as (where, _):
        yield where


@pytest.fixture
def home(pristine: Path, tmp_path: Path, tsa: TimeAuthority) -> Path:
    """A deployment of one's own, which believes the authority."""
    folder = Path(shutil.copytree(pristine, tmp_path / "home"))
    check(folder, "keys", "add-authority", "Test TSA", str(tsa.folder / "ca.pem"))
    return folder


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_security(home, *arguments, **toy_settings(home))


def check(home: Path, *arguments: str) -> str:
    return check_security(home, *arguments, **toy_settings(home))


def refused(home: Path, message: str, *arguments: str, code: int = 1) -> None:
    result = run(home, *arguments)
    assert result.returncode == code, result.stdout + result.stderr
    assert message in result.stderr


def verified(home: Path) -> Admission:
    return verify(
        home / "bundle", trust=home / "trust.json", policy=home / "policy.toml"
    )


def signed(home: Path) -> dict[Path, bytes]:
    folder = home / "bundle" / "attestations"
    return {path: path.read_bytes() for path in sorted(folder.iterdir())}


def hint_of(home: Path, role: str) -> str:
    return next(iter(load_trust(home / "trust.json").roles[role]))


def test_stamps_what_is_signed_already(home: Path, url: str) -> None:
    before = signed(home)
    told = check(home, "timestamp", str(home / "bundle"), "--url", url)
    assert told.count("stamped   ") == len(before)
    for path, data in signed(home).items():
        stamped, plain = json.loads(data), json.loads(before[path])
        (stamp,) = stamped["verificationMaterial"].pop("timestampVerificationData")[
            "rfc3161Timestamps"
        ]
        assert stamp.keys() == {"signedTimestamp"}
        assert stamped == plain  # nothing was signed anew
        theirs = SigstoreBundle.from_json(data)
        material = theirs.verification_material.timestamp_verification_data
        assert len(material.rfc3161_timestamps) == 1
    # The verdict still names the very statements, and may be stamped again for nothing.
    verified(home)
    again = check(home, "timestamp", str(home / "bundle"), "--url", url)
    assert again.count("has one   ") == len(before)
    assert " by Test TSA" in again


def test_one_file(home: Path, url: str) -> None:
    path = home / "bundle" / attestation_file("quality")
    others = {k: v for k, v in signed(home).items() if k != path}
    told = check(home, "timestamp", str(path), "--url", url)
    assert told.startswith(f"stamped   {path}  ")
    assert {k: v for k, v in signed(home).items() if k != path} == others


def test_a_policy_that_demands_stamps(
    home: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "policy.toml").write_bytes(REQUIRED)
    folder = str(home / "bundle")
    demanded = "it has no time stamp; the policy demands a trusted one"
    refused(home, f"structure attestation: {demanded}", "admit", folder)
    notice = run(home, "sign", folder, "--role", "trainer")
    assert "notice: the policy demands a time stamp" in notice.stderr
    for role in ("trainer", "assessor"):
        check(home, "sign", folder, "--role", role, "--timestamp-url", url)
    check(home, "admit", folder)
    with pytest.raises(AdmissionRefused, match=f"verdict: {demanded}"):
        verified(home)
    told = run(home, "admit", folder, "--timestamp-url", url)
    assert told.returncode == 0
    assert "notice" not in told.stderr
    print_admission(verified(home))
    assert "Z by Test TSA\n" in capsys.readouterr().out


def test_nothing_is_written_where_one_cannot_be_stamped(home: Path, url: str) -> None:
    path = home / "bundle" / attestation_file("structure")
    document = json.loads(path.read_bytes())
    document["dsseEnvelope"]["signatures"][0]["sig"] = "MAA="
    path.write_text(json.dumps(document))
    before = signed(home)
    message = f"{path}: signature does not verify"
    refused(home, message, "timestamp", str(home / "bundle"), "--url", url)
    assert signed(home) == before


def test_an_authority_that_answers_something_else(
    home: Path, tsa: TimeAuthority, tmp_path: Path
) -> None:
    folder = str(home / "bundle")
    stray = time_authority(tmp_path / "stray", "Stray")
    with serving(stray) as (where, _):
        message = "the time stamp is not Test TSA's"
        refused(home, message, "timestamp", folder, "--url", where, code=2)
    old = tsa.stamp(b"of another signature", datetime.now(UTC))
    for answers, message in (
        ([old, old], "of another signature"),
        ([b"<html>", b"<html>"], "malformed"),
        ([bytes(1 << 20)], "over 16384 bytes"),
    ):
        with serving(tsa, answers=answers) as (where, _):
            refused(home, message, "timestamp", folder, "--url", where, code=2)
    refused(
        home, "ConnectError", "timestamp", folder, "--url", "http://127.0.0.1:1", code=2
    )
    refused(home, "only http", "timestamp", folder, "--url", "ftp://a/b", code=2)


@pytest.mark.parametrize("minutes", [-6, 6])
def test_an_authority_whose_clock_differs(
    home: Path, tsa: TimeAuthority, minutes: int
) -> None:
    path = home / "bundle" / attestation_file("quality")
    data = path.read_bytes()
    when = datetime.now(UTC) + timedelta(minutes=minutes)

    def answer(request: bytes) -> bytes:
        return tsa.stamp(dsse.read_signature(data), when, nonce=nonce_of(request))

    with serving(tsa, answers=[answer, answer]) as (where, _):
        message = f"Test TSA says that it is {format_time(when)}"
        refused(home, message, "timestamp", str(path), "--url", where, code=2)
    assert path.read_bytes() == data


def test_certificates_in_an_order_that_der_does_not_allow(
    home: Path, tmp_path: Path
) -> None:
    """The reply is asked for again without them; the pinned certificate will do."""
    chain = time_authority(tmp_path / "chain", "Chain", certificates_of_chain=True)
    pems = [str(chain.folder / name) for name in ("tsa.pem", "ca.pem")]
    told = check(home, "keys", "add-authority", "Chain", *pems)
    assert "timestamps       Chain: its own alone" in told
    path = home / "bundle" / attestation_file("quality")
    with serving(chain) as (where, requests):
        check(home, "timestamp", str(path), "--url", where)
        assert len(requests) == 2


def test_authorities_in_the_trust_root(home: Path, tsa: TimeAuthority) -> None:
    assert "timestamps       Test TSA: any under its root" in check(
        home, "keys", "list"
    )
    add = ("keys", "add-authority", "Again")
    own = str(tsa.folder / "tsa.pem")
    refused(home, "one root", *add, own, code=2)
    refused(home, "no certificates in PEM", *add, str(home / "policy.toml"), code=2)
    assert "Test TSA" not in check(home, "keys", "remove-authority", "Test TSA")
    refused(home, "names no authority", "keys", "remove-authority", "x", code=2)
    refused(
        home,
        "names no timestamp authority",
        *("timestamp", str(home / "bundle"), "--url", "http://127.0.0.1:1"),
        code=2,
    )


def test_a_key_that_was_compromised_later(home: Path, url: str) -> None:
    check(home, "timestamp", str(home / "bundle"), "--url", url)
    future = format_time(datetime.now(UTC) + timedelta(days=1))
    revoke = ("keys", "revoke", hint_of(home, "assessor"), "--reason", "laptop lost")
    refused(home, "yet to come", *revoke, "--compromised", future, code=2)
    refused(home, "not RFC 3339", *revoke, "--compromised", "yesterday", code=2)
    # openssl's clock has whole seconds, and states an accuracy of one.
    time.sleep(2.1)
    since = format_time(datetime.now(UTC))
    told = run(home, *revoke, "--compromised", since)
    # What lies in the store has no stamps: it falls.
    assert told.returncode == 1
    assert "signed by a revoked key, and it has no time stamp" in told.stdout
    verified(home)
    assert f"compromised {since}: laptop lost" in check(home, "keys", "list")
    # Without the stamps, or with the compromise before them, nothing holds.
    path = home / "bundle" / attestation_file("quality")
    document = json.loads(path.read_bytes())
    del document["verificationMaterial"]["timestampVerificationData"]
    path.write_text(json.dumps(document))
    message = "quality attestation: signed by a revoked key, and it has no time stamp"
    with pytest.raises(AdmissionRefused, match=message):
        verified(home)
