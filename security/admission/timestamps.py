"""Time stamps of third parties (RFC 3161) over the signatures of statements.

A stamp proves that a signature existed by a time, on the word of an authority that the
trust root names. It says nothing of how long before: a signer can stamp late. So age
counts from what is earlier, the time that a statement gives itself or its stamp, and a
statement that claims a time after its stamp is refused.

What is stamped is the raw signature in a Sigstore bundle, one stamp per bundle or
several; of several the earliest counts, since each proves the same. The checks of one
stamp, sections of RFC 3161:

1. at most `MAX_STAMP_BYTES`, before anything is parsed; a TimeStampResp in DER (2.4.2);
2. its status is granted (2.4.2);
3. its message imprint is SHA-256, -384 or -512 of this signature (2.4.1);
4. the nonce is the one that was sent, where one was (2.4.1);
5. signed by a certificate of an authority: the chain ends in one that is pinned, and
   was valid at the stamp's time; the signer's only extended key usage is timeStamping,
   critical (2.3). Where the authority pins the signer's own certificate, by that one;
6. its accuracy is within `MAX_ACCURACY` (2.4.2).

Who fails 5 is a stranger, whose stamp counts for nothing. Any other failure refuses the
statement: the stamp is not what it claims, and nobody should take it for one that
counts. Whether a stamp is from the future is for who knows the time, in
`security.admission.steps`.

Not checked: the authority's policy (2.4.2, TSAPolicyId), since who pins an authority
accepts its policy; revocation lists, since the gate asks nobody. An authority that is
trusted no more is taken out of the trust root, and its stamps count for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from sealgate.protocol.dsse import Verified
from security.errors import StrangeStampError, TimestampError

if TYPE_CHECKING:
    from cryptography import x509
    from rfc3161_client import TimeStampRequest, TimeStampResponse

__all__ = [
    "Authority",
    "Stamp",
    "Timed",
    "earliest_stamp",
    "issues_others",
    "make_request",
    "read_stamps",
    "verify_stamp",
]

MAX_STAMP_BYTES = 16 << 10
MAX_ACCURACY = timedelta(minutes=5)

# By object identifier (RFC 5754, section 2).
_HASHES = {
    "2.16.840.1.101.3.4.2.1": hashlib.sha256,
    "2.16.840.1.101.3.4.2.2": hashlib.sha384,
    "2.16.840.1.101.3.4.2.3": hashlib.sha512,
}


class Authority(Protocol):
    """Whose stamps are believed."""

    @property
    def name(self) -> str:
        """One line."""

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """Its root first; last may be the one that signs stamps, which pins it."""


@dataclass(frozen=True)
class Stamp:
    """What a verified time stamp proves.

    Attributes:
        time: the latest that the signature can have come into being: the authority's
            time and its accuracy, in UTC.
        authority: name of who says so.
    """

    time: datetime
    authority: str


@dataclass(frozen=True)
class Timed(Verified):
    """A payload whose signature verified, and by when that existed.

    Attributes:
        stamp: the earliest that counts; None where there is none.
        unstamped: why there is none, for whoever demands one.
    """

    stamp: Stamp | None = field(default=None, kw_only=True)
    unstamped: str = field(default="", kw_only=True)


def read_stamps(verified: Verified, authorities: Sequence[Authority]) -> Timed:
    """A verified signature, with the time that its stamps prove.

    Where the trust root names no authority, stamps are not looked at.

    Raises:
        TimestampError: a stamp is malformed, or of another signature.
    """
    stamp, unstamped = None, "the trust root names no timestamp authority"
    if authorities:
        try:
            stamp = earliest_stamp(verified.timestamps, verified.signature, authorities)
        except StrangeStampError as error:
            unstamped = str(error)
    return Timed(
        payload=verified.payload,
        hint=verified.hint,
        signature=verified.signature,
        timestamps=verified.timestamps,
        stamp=stamp,
        unstamped="" if stamp else unstamped,
    )


def make_request(signature: bytes, *, certificates: bool = True) -> TimeStampRequest:
    """A request for a stamp over a signature: SHA-256, with a nonce (2.4.1).

    Args:
        signature: raw, as in the bundle.
        certificates: whether the answer shall hold the authority's certificate; without
            it, only who pins that very certificate can verify the stamp.
    """
    import rfc3161_client  # noqa: PLC0415  (only where there are stamps)

    return (
        rfc3161_client.TimestampRequestBuilder()
        .data(signature)
        .hash_algorithm(rfc3161_client.HashAlgorithm.SHA256)
        .nonce(nonce=True)
        .cert_request(cert_request=certificates)
        .build()
    )


def earliest_stamp(
    stamps: Iterable[bytes], signature: bytes, authorities: Sequence[Authority]
) -> Stamp:
    """The earliest of a signature's stamps, every one of which is checked.

    Args:
        stamps: TimeStampResp in DER, possibly hostile.
        signature: raw, as in the bundle; verified by the caller.
        authorities: that the trust root names.

    Raises:
        StrangeStampError: there is no stamp, or none by one of the authorities.
        TimestampError: one is malformed, or of another signature.
    """
    found: list[Stamp] = []
    strange = StrangeStampError("it has no time stamp")
    for stamp in stamps:
        try:
            found.append(verify_stamp(stamp, signature, authorities))
        except StrangeStampError as error:
            strange = error
    if not found:
        raise strange
    return min(found, key=lambda stamp: stamp.time)


def verify_stamp(
    stamp: bytes,
    signature: bytes,
    authorities: Sequence[Authority],
    *,
    nonce: int | None = None,
) -> Stamp:
    """Verify one time stamp; the module lists the checks.

    Args:
        stamp: TimeStampResp in DER, possibly hostile.
        signature: that must have been stamped.
        authorities: of which one must have made it.
        nonce: that was sent, where the answer to a request is verified.

    Raises:
        StrangeStampError: check 5 failed for every authority.
        TimestampError: another check failed.
    """
    answer = _parsed(stamp)
    _check_imprint(answer, signature)
    if nonce is not None and answer.tst_info.nonce != nonce:
        raise TimestampError("the time stamp answers another request")
    strange = StrangeStampError("the trust root names no timestamp authority")
    for authority in authorities:
        try:
            _check_signer(answer, signature, authority)
        except StrangeStampError as error:
            strange = error
        else:
            return Stamp(_latest(answer), authority.name)
    raise strange


def issues_others(certificate: x509.Certificate) -> bool:
    """Whether a certificate may issue others (RFC 5280, section 4.2.1.9)."""
    from cryptography import x509  # noqa: PLC0415  (only where there are certificates)

    try:
        return certificate.extensions.get_extension_for_class(
            x509.BasicConstraints
        ).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def _parsed(stamp: bytes) -> TimeStampResponse:
    """Checks 1 and 2."""
    import rfc3161_client  # noqa: PLC0415  (only where there are stamps)

    if len(stamp) > MAX_STAMP_BYTES:
        raise TimestampError(f"the time stamp is over {MAX_STAMP_BYTES} bytes")
    try:
        answer = rfc3161_client.decode_timestamp_response(stamp)
        status = answer.status
    except ValueError:
        raise TimestampError("the time stamp is malformed") from None
    if status != rfc3161_client.PKIStatus.GRANTED:
        raise TimestampError(f"the time stamp was not granted: status {status}")
    return answer


def _check_imprint(answer: TimeStampResponse, signature: bytes) -> None:
    """Check 3."""
    try:
        imprint = answer.tst_info.message_imprint
        algorithm, digest = imprint.hash_algorithm.dotted_string, imprint.message
    except ValueError:
        raise TimestampError("the time stamp is malformed") from None
    if algorithm not in _HASHES:
        raise TimestampError("the time stamp hashes with less than SHA-256")
    if _HASHES[algorithm](signature).digest() != digest:
        raise TimestampError("the time stamp is of another signature")


def _check_signer(
    answer: TimeStampResponse, signature: bytes, authority: Authority
) -> None:
    """Check 5."""
    import rfc3161_client  # noqa: PLC0415  (only where there are stamps)

    root, *others = authority.certificates
    own = others.pop() if others and not issues_others(others[-1]) else None
    verifier = rfc3161_client.VerifierBuilder(
        tsa_certificate=own, intermediates=others, roots=[root]
    ).build()
    try:
        verifier.verify_message(answer, signature)
    except Exception:  # noqa: BLE001  (its own, and those of hostile certificates)
        # The library quotes OpenSSL's stack of errors, which says no more than this.
        raise StrangeStampError(
            f"the time stamp is not {authority.name}'s, or not of a certificate that "
            "may stamp and was valid then"
        ) from None


def _latest(answer: TimeStampResponse) -> datetime:
    """Check 6; the end of the interval that the stamp's time is in."""
    try:
        moment = answer.tst_info.gen_time
        # Optional (2.4.2), which the library's annotations do not say.
        accuracy: Any = answer.tst_info.accuracy
    except ValueError:
        raise TimestampError("the time stamp is malformed") from None
    if accuracy is None:
        return moment
    seconds = accuracy.seconds or 0
    # Compared before it is a timedelta, which holds no number of forty digits.
    if seconds > MAX_ACCURACY.total_seconds():
        raise TimestampError("the time stamp does not know its time to 5 minutes")
    parts = {"milliseconds": accuracy.millis or 0, "microseconds": accuracy.micros or 0}
    try:
        return moment + timedelta(seconds=seconds, **parts)
    except OverflowError:  # at the end of the year 9999
        return moment
