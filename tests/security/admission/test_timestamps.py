"""Time stamps of RFC 3161, one at a time: each check of the module, and its attack."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from security.admission.timestamps import (
    MAX_STAMP_BYTES,
    earliest_stamp,
    issues_others,
    make_request,
    verify_stamp,
)
from security.errors import StrangeStampError, TimestampError
from tests.support.timestamps import (
    SHA1,
    STAMPING,
    TimeAuthority,
    integer,
    time_authority,
    tlv,
)

SIGNATURE = b"what ECDSA gives, in DER; here any bytes will do"
NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Pinned:
    """An authority as a trust root names it."""

    name: str
    certificates: tuple[x509.Certificate, ...]


@pytest.fixture(scope="module")
def tsa(tmp_path_factory: pytest.TempPathFactory) -> TimeAuthority:
    return time_authority(tmp_path_factory.mktemp("authority") / "tsa")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> TimeAuthority:
    return time_authority(tmp_path_factory.mktemp("authority") / "other", "Other TSA")


@pytest.fixture(scope="module")
def stamp(tsa: TimeAuthority) -> bytes:
    return tsa.stamp(SIGNATURE, NOW)


def refused(message: str, stamp: bytes, *authorities: object, **more: object) -> None:
    with pytest.raises(TimestampError, match=message) as caught:
        verify_stamp(stamp, SIGNATURE, authorities, **more)
    assert not isinstance(caught.value, StrangeStampError)


def strange(stamp: bytes, *authorities: object) -> None:
    with pytest.raises(StrangeStampError):
        verify_stamp(stamp, SIGNATURE, authorities)


def test_openssl_answers_our_request(tsa: TimeAuthority) -> None:
    request = make_request(SIGNATURE)
    answer = tsa.answer(request.as_bytes())
    found = verify_stamp(answer, SIGNATURE, [tsa], nonce=request.nonce)
    assert found.authority == "Test TSA"
    # openssl states an accuracy of a second: the later end counts.
    assert abs(found.time - datetime.now(UTC)) < timedelta(seconds=30)


@pytest.mark.parametrize("bits", [256, 384, 512])
def test_hashes(tsa: TimeAuthority, bits: int) -> None:
    oid = {256: "01", 384: "02", 512: "03"}[bits]
    digest = hashlib.new(f"sha{bits}", SIGNATURE).digest()
    made = tsa.stamp(SIGNATURE, NOW, algorithm="6086480165030402" + oid, digest=digest)
    assert verify_stamp(made, SIGNATURE, [tsa]).time == NOW


def test_the_later_end_of_its_accuracy_counts(tsa: TimeAuthority) -> None:
    made = tsa.stamp(SIGNATURE, NOW, accuracy_s=300)
    assert verify_stamp(made, SIGNATURE, [tsa]).time == NOW + timedelta(seconds=300)
    refused("to 5 minutes", tsa.stamp(SIGNATURE, NOW, accuracy_s=301), tsa)


def test_another_message(tsa: TimeAuthority) -> None:
    refused("of another signature", tsa.stamp(b"another", NOW), tsa)


def test_a_digest_that_can_be_forged(tsa: TimeAuthority) -> None:
    weak = hashlib.sha1(SIGNATURE).digest()  # noqa: S324  (the attack)
    made = tsa.stamp(SIGNATURE, NOW, algorithm=SHA1, digest=weak)
    refused("less than SHA-256", made, tsa)


def test_an_answer_to_another_request(tsa: TimeAuthority) -> None:
    refused("another request", tsa.stamp(SIGNATURE, NOW, nonce=7), tsa, nonce=8)
    refused("another request", tsa.stamp(SIGNATURE, NOW), tsa, nonce=8)
    made = tsa.stamp(SIGNATURE, NOW, nonce=8)
    assert verify_stamp(made, SIGNATURE, [tsa], nonce=8).time == NOW


@pytest.mark.parametrize("status", [1, 2, 3])
def test_not_granted(tsa: TimeAuthority, status: int) -> None:
    made = tsa.stamp(SIGNATURE, NOW, status=status)
    refused(f"not granted: status {status}", made, tsa)


def test_a_refusal_without_a_stamp(tsa: TimeAuthority) -> None:
    refused("not granted: status 2", tlv(0x30, tlv(0x30, integer(2))), tsa)
    refused("malformed", tlv(0x30, tlv(0x30, integer(0))), tsa)


@pytest.mark.parametrize("cut", [0, 1, 9, 100, -1])
def test_malformed(tsa: TimeAuthority, stamp: bytes, cut: int) -> None:
    refused("malformed", stamp[:cut], tsa)


def test_oversized(tsa: TimeAuthority, stamp: bytes) -> None:
    refused("over 16384 bytes", stamp + bytes(MAX_STAMP_BYTES), tsa)
    # Within the bound on bytes, a length that says there were gigabytes.
    refused("malformed", b"\x30\x84\x7f\xff\xff\xff" + stamp, tsa)


def test_a_changed_time(tsa: TimeAuthority, stamp: bytes) -> None:
    earlier = NOW - timedelta(days=1)
    form = "%Y%m%d%H%M%SZ"
    changed = stamp.replace(
        NOW.strftime(form).encode(), earlier.strftime(form).encode()
    )
    assert changed != stamp
    strange(changed, tsa)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_byte_changed_anywhere(
    tsa: TimeAuthority, stamp: bytes, data: st.DataObject
) -> None:
    """It is refused, or was no part of what the stamp says."""
    at = data.draw(st.integers(0, len(stamp) - 1))
    byte = data.draw(st.integers(0, 255))
    changed = stamp[:at] + bytes([byte]) + stamp[at + 1 :]
    try:
        found = verify_stamp(changed, SIGNATURE, [tsa])
    except TimestampError:
        return
    assert found == verify_stamp(stamp, SIGNATURE, [tsa])


def test_a_certificate_that_no_library_reads(tsa: TimeAuthority, stamp: bytes) -> None:
    """A stamp that anybody can write ends no server."""
    for version, serial in ((b"\x09", b""), (b"\x02", b"\x80")):
        own = tsa.own.public_bytes(Encoding.DER)
        at = stamp.index(own) + own.index(b"\xa0\x03\x02\x01\x02")
        changed = bytearray(stamp)
        changed[at + 4 : at + 5] = version
        changed[at + 7 : at + 7 + len(serial)] = serial
        strange(bytes(changed), Pinned("its own", (tsa.root, tsa.own)))


def test_a_certificate_with_an_extension_twice(tsa: TimeAuthority) -> None:
    """What it may do cannot be told, so it issues nothing."""
    der = tsa.root.public_bytes(Encoding.DER)
    twice = tsa.own.public_bytes(Encoding.DER).replace(
        bytes.fromhex("551d25"), bytes.fromhex("551d13")
    )
    assert issues_others(x509.load_der_x509_certificate(der))
    assert not issues_others(x509.load_der_x509_certificate(twice))


def test_an_authority_that_is_not_trusted(
    tsa: TimeAuthority, other: TimeAuthority, stamp: bytes
) -> None:
    strange(stamp)
    strange(stamp, other)
    assert verify_stamp(stamp, SIGNATURE, [other, tsa]).authority == "Test TSA"


def test_an_authority_of_the_same_name(tmp_path: Path, stamp: bytes) -> None:
    strange(stamp, time_authority(tmp_path / "again"))


@pytest.mark.parametrize(
    ("usages", "critical"),
    [
        ((), True),
        ((ExtendedKeyUsageOID.SERVER_AUTH,), True),
        ((*STAMPING, ExtendedKeyUsageOID.SERVER_AUTH), True),
        (STAMPING, False),
    ],
)
def test_a_certificate_that_may_not_stamp(
    tmp_path: Path, usages: tuple[x509.ObjectIdentifier, ...], critical: bool
) -> None:
    tsa = time_authority(tmp_path / "tsa", usages=usages, critical=critical)
    strange(tsa.stamp(SIGNATURE, NOW), tsa)


def test_a_certificate_that_had_expired(tmp_path: Path) -> None:
    began, ended = NOW - timedelta(days=20), NOW - timedelta(days=10)
    tsa = time_authority(tmp_path / "tsa", valid=(began, ended))
    strange(tsa.stamp(SIGNATURE, NOW), tsa)
    strange(tsa.stamp(SIGNATURE, began - timedelta(hours=1)), tsa)
    # It was valid then; that it is not today, takes nothing from the stamp.
    while_valid = began + timedelta(days=1)
    made = tsa.stamp(SIGNATURE, while_valid)
    assert verify_stamp(made, SIGNATURE, [tsa]).time == while_valid


def test_the_authority_s_own_certificate_pinned(
    tsa: TimeAuthority, tmp_path: Path, stamp: bytes
) -> None:
    pinned = Pinned("own", (tsa.root, tsa.own))
    assert verify_stamp(stamp, SIGNATURE, [pinned]).authority == "own"
    bare = tsa.answer(make_request(SIGNATURE, certificates=False).as_bytes())
    assert len(bare) < len(stamp)
    verify_stamp(bare, SIGNATURE, [pinned])
    strange(bare, tsa)  # nobody says by whom it was signed
    again = time_authority(tmp_path / "again")
    strange(stamp, Pinned("another's", (tsa.root, again.own)))


def test_the_earliest_of_several_counts(
    tsa: TimeAuthority, other: TimeAuthority
) -> None:
    days = [NOW - timedelta(days=count) for count in (1, 3, 2)]
    stamps = [tsa.stamp(SIGNATURE, day) for day in days]
    assert earliest_stamp(stamps, SIGNATURE, [tsa]).time == days[1]
    # An earlier one of a stranger counts for nothing, beside others or alone.
    stray = other.stamp(SIGNATURE, NOW - timedelta(days=9))
    assert earliest_stamp([*stamps, stray], SIGNATURE, [tsa]).time == days[1]
    assert earliest_stamp([stray, *stamps], SIGNATURE, [tsa]).time == days[1]
    with pytest.raises(StrangeStampError, match="not Test TSA's"):
        earliest_stamp([stray], SIGNATURE, [tsa])
    with pytest.raises(StrangeStampError, match="no time stamp"):
        earliest_stamp([], SIGNATURE, [tsa])


def test_one_that_lies_spoils_the_others(tsa: TimeAuthority, stamp: bytes) -> None:
    lie = tsa.stamp(b"another", NOW - timedelta(days=9))
    for stamps in ([stamp, lie], [lie, stamp]):
        with pytest.raises(TimestampError, match="of another signature"):
            earliest_stamp(stamps, SIGNATURE, [tsa])
