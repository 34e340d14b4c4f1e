"""What `sealgate receipt` and `sealgate offers` do: proofs by a deployment's logs."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sealgate.commands import loaded, open_client, profile_of
from sealgate.errors import NotFoundError, ProfileError, ReceiptError
from sealgate.log_trust import log_trust
from sealgate.options import Options, options_of
from sealgate.protocol.offers import offers_trust
from sealgate.protocol.receipts import MAX_RECEIPT_BYTES, Proven, Receipt
from sealgate.receipt_numbers import ReceiptNumber
from sealgate.receipts import check_receipt, read_numbers
from sealgate.retry import RetryPolicy

__all__ = ["fetch", "offers", "verify"]

_MAX_VKEYS_BYTES = 64 << 10
# A checkpoint comes every few seconds, and witnesses may take some more.
_PATIENT = RetryPolicy(max_retries=100, max_wait_s=120.0)
_FILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def fetch(args: argparse.Namespace) -> int:
    """Fetch the receipts for the answers of a file, and verify them."""
    numbers = read_numbers(args.numbers)
    profile = loaded(args)
    known, refused = bool(profile.log_keys), False
    with open_client(profile, args, retry=_PATIENT) as client:
        for number in numbers:
            path = _path(args.output, number)
            try:
                receipt = client.receipt(number)
                if known:
                    client.verify_receipt(receipt, number)
            except (NotFoundError, ReceiptError) as error:
                # The others' may be there, and not for ever.
                print(f"refused: {number.request_id}: {error}", file=sys.stderr)
                refused = True
                continue
            _write(path, receipt)
            print(path)
    if not known:
        print("not verified: the profile has no log_keys", file=sys.stderr)
    return 1 if refused else 0


def verify(args: argparse.Namespace) -> int:
    """Verify receipts; no server is asked."""
    options = _trusted(args)
    log_trust(options)
    expected = {} if args.numbers is None else _by_request(args.numbers)
    refused = False
    for path in args.receipts:
        try:
            proven = _verified(path, options, args, expected)
        except ReceiptError as error:
            print(f"refused: {path}: {error}", file=sys.stderr)
            refused = True
            continue
        for line in _lines(proven):
            # What a server put on record may not steer a terminal.
            print("".join(char if char.isprintable() else "?" for char in line))
    return 1 if refused else 0


def offers(args: argparse.Namespace) -> int:
    """Print the public log of what a deployment offers, or the keys of it."""
    named = _named(args)
    if args.vkeys:
        options = options_of(loaded(args)) if named is None else named
        for key in offers_trust(log_trust(options)).log:
            print(key)
        return 0
    profile = profile_of(args)
    if named is not None:
        profile = replace(
            profile,
            log_keys=named.log_keys,
            witness_keys=named.witness_keys,
            required_witnesses=named.required_witnesses,
        )
    with open_client(profile, args) as client:
        entries = client.offers()
    for place, entry in enumerate(entries):
        print(place, json.dumps(entry, sort_keys=True))
    return 0


def _verified(
    path: Path,
    options: Options,
    args: argparse.Namespace,
    expected: dict[str, ReceiptNumber],
) -> Proven:
    receipt = _read(path, MAX_RECEIPT_BYTES)
    proven = check_receipt(receipt, options, None, model_sha256=args.model_sha256)
    if args.numbers is not None and proven.request_id not in expected:
        raise ReceiptError(f"no request of {args.numbers}: {proven.request_id}")
    if (number := expected.get(proven.request_id)) is not None:
        check_receipt(receipt, options, number)
    if args.request_id not in (None, proven.request_id):
        raise ReceiptError(f"a receipt for another request: {proven.request_id}")
    if args.tlog_proof is not None:
        parsed = Receipt.decode(receipt)
        _write(args.tlog_proof, parsed.tlog_proof())
        _write(args.tlog_proof.with_suffix(".leaf"), parsed.writer_checkpoint)
    return proven


def _lines(proven: Proven) -> Iterator[str]:
    yield f"request {proven.request_id}"
    yield f"  answered {_time(proven.time_us / 1e6)} by {proven.model}"
    yield f"  model sha256:{proven.model_sha256}"
    yield f"  in {proven.origin}, under its checkpoint {proven.size}"
    for name, time_s in sorted(proven.witnesses.items()):
        yield f"  cosigned {_time(time_s)} by {name}"


def _time(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return "at no time"


def _trusted(args: argparse.Namespace) -> Options:
    """The keys of the command line, or else of the profile."""
    if (named := _named(args)) is not None:
        return named
    options = options_of(loaded(args))
    if args.required is not None:
        options = replace(options, required_witnesses=args.required)
    return options


def _named(args: argparse.Namespace) -> Options | None:
    """The keys of the command line, if it names any."""
    if args.log_key:
        return Options(
            log_keys=_vkeys(args.log_key),
            witness_keys=_vkeys(args.witness),
            required_witnesses=args.required or 0,
        )
    if args.witness:
        raise ProfileError("--witness: name the log's key too, with --log-key")
    return None


def _by_request(path: Path) -> dict[str, ReceiptNumber]:
    return {number.request_id: number for number in read_numbers(path)}


def _path(folder: Path, number: ReceiptNumber) -> Path:
    """Where a receipt goes. The server named the request: no path of its own choice."""
    if not _FILE_NAME.fullmatch(number.request_id):
        raise ProfileError(f"not a request's id: {number.request_id[:80]!r}")
    return folder / f"{number.request_id}.receipt"


def _vkeys(paths: Iterable[Path]) -> tuple[str, ...]:
    """The verifier keys of files: one a line, as `witness vkey` prints two."""
    texts = (_read(path, _MAX_VKEYS_BYTES).decode("utf-8", "replace") for path in paths)
    return tuple(line for text in texts for line in text.splitlines() if line.strip())


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None
