"""--timestamp-url, and who asks an authority of time for its stamp (RFC 3161, 3.4)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from models.report import format_time
from sealgate.protocol import dsse
from security.errors import SettingsError, StrangeStampError, TimestampError

if TYPE_CHECKING:
    from security.admission.attest import Signers
    from security.admission.timestamps import Authority, Stamp
    from security.admission.trust import TrustRoot

__all__ = ["Stamping", "add_timestamp_url", "ask", "remind", "stamping", "stamping_url"]

TIMEOUT_S = 30.0
_QUERY, _REPLY = b"application/timestamp-query", b"application/timestamp-reply"

# Gives the bundle with a stamp more.
Stamping = Callable[[bytes], bytes]


def add_timestamp_url(parser: argparse.ArgumentParser) -> None:
    """Add --timestamp-url."""
    parser.add_argument(
        "--timestamp-url",
        metavar="URL",
        help="authority of time (RFC 3161) that stamps what is signed; the trust root "
        "must name it (`keys add-authority`)",
    )


def stamping(url: str | None, trust: Path) -> Stamping | None:
    """What stamps a signed bundle; None without a URL.

    Raises:
        KeyFileError: the trust root cannot be used.
        SettingsError: as `stamping_url`.
    """
    from security.admission.trust_store import load_trust  # noqa: PLC0415

    if url is None:
        return None
    root = load_trust(trust)
    return partial(
        _stamped,
        url=stamping_url(url, root),
        authorities=root.timestamp_authorities,
    )


def stamping_url(url: str, trust: TrustRoot) -> str:
    """Give an authority's URL back, if its stamps can be believed. Plain http will do.

    Raises:
        SettingsError: not a URL, or the trust root names no authority.
    """
    from security.settings.issuers import https_url  # noqa: PLC0415  (seldom needed)

    if not trust.timestamp_authorities:
        raise SettingsError(
            "the trust root names no timestamp authority: `keys add-authority`"
        )
    return https_url(url, "the authority's URL", or_plain=True)


def _stamped(bundle: bytes, *, url: str, authorities: Sequence[Authority]) -> bytes:
    der, _ = ask(url, dsse.read_signature(bundle), authorities)
    return dsse.stamped(bundle, der)


def remind(keys: Signers, *, demanded: bool) -> None:
    """Say now what every door would refuse later."""
    if demanded and keys.stamp is None:
        print(
            "notice: the policy demands a time stamp, which is not there yet: "
            "`timestamp BUNDLE --url URL`, or --timestamp-url",
            file=sys.stderr,
        )


def ask(
    url: str, signature: bytes, authorities: Sequence[Authority]
) -> tuple[bytes, Stamp]:
    """Have a signature stamped; what comes is verified before it is given back.

    The authority learns a digest of the signature, and nothing of what was signed. A
    reply that cannot be read is asked for again without certificates: some authorities
    send several in an order that DER does not allow. Such a stamp is believed where the
    trust root pins the authority's own certificate.

    Args:
        url: of the authority.
        signature: raw.
        authorities: of the trust root, one of which must have made the stamp.

    Returns:
        The TimeStampResp in DER, and what it proves.

    Raises:
        KeyFileError: no answer within `TIMEOUT_S` and `MAX_STAMP_BYTES`.
        TimestampError: the stamp does not verify, or tells another time than the clock
            does.
    """
    try:
        return _asked(url, signature, authorities, certificates=True)
    except StrangeStampError:
        raise
    except TimestampError as first:
        try:
            return _asked(url, signature, authorities, certificates=False)
        except TimestampError:
            raise first from None


def _asked(
    url: str, signature: bytes, authorities: Sequence[Authority], *, certificates: bool
) -> tuple[bytes, Stamp]:
    from security.admission.steps import CLOCK_SKEW  # noqa: PLC0415
    from security.admission.timestamps import (  # noqa: PLC0415
        MAX_STAMP_BYTES,
        make_request,
        verify_stamp,
    )
    from security.bounded_fetch import fetch, trusting  # noqa: PLC0415  (ssl)

    request = make_request(signature, certificates=certificates)
    der = fetch(
        url,
        context=trusting(None),
        max_bytes=MAX_STAMP_BYTES,
        timeout_s=TIMEOUT_S,
        form=request.as_bytes(),
        content_type=_QUERY,
        accept=_REPLY,
    )
    stamp = verify_stamp(der, signature, authorities, nonce=request.nonce)
    if abs(stamp.time - datetime.now(UTC)) > CLOCK_SKEW:
        # Written, it would be refused as from the future, or make evidence look old.
        raise TimestampError(
            f"{stamp.authority} says that it is {format_time(stamp.time)}, and this "
            "machine's clock differs"
        )
    return der, stamp
