"""Receipts for answers: fetched when there is a proof, verified without the server.

What a receipt is and how it is verified is in `sealgate.protocol.receipts`; here are
the keys that a client's options name, and the request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from sealgate.errors import (
    JsonError,
    ProfileError,
    ReceiptError,
    TransportError,
)
from sealgate.log_trust import log_trust
from sealgate.options import Options
from sealgate.protocol import strict_json
from sealgate.protocol.bhttp import Response
from sealgate.protocol.receipts import (
    MAX_RECEIPT_BYTES,
    RECEIPT_PATH,
    Proven,
    Receipt,
    verify_receipt,
)
from sealgate.receipt_numbers import ReceiptNumber
from sealgate.steps import Steps

__all__ = [
    "check_receipt",
    "fetch_receipt",
    "read_numbers",
    "write_numbers",
]

MAX_NUMBERS_BYTES = 64 << 20
_NUMBER = re.compile(r"[A-Za-z0-9_-]{1,256}")
_MEMBERS = ("number", "request_id", "model")


class _Call(Protocol):
    def __call__(self, method: str, *, action: str) -> Steps[Response]: ...


def fetch_receipt(call: _Call, number: ReceiptNumber | str) -> Steps[bytes]:
    """Ask the server for a receipt.

    Args:
        call: makes a request, and raises its refusal.
        number: what came with an answer, or its text.

    Raises:
        OverloadedError: no checkpoint covers the request yet.
        NotFoundError: no such number, or another caller's.
        ReceiptError: that is no number, or what came no receipt.
    """
    text = number if isinstance(number, str) else number.number
    if not _NUMBER.fullmatch(text):
        raise ReceiptError("not the number of a receipt")
    response = yield from call("GET", action=RECEIPT_PATH.removeprefix("/v2") + text)
    if len(response.body) > MAX_RECEIPT_BYTES:
        raise TransportError("the receipt is too long")
    data = bytes(response.body)
    Receipt.decode(data)
    return data


def check_receipt(
    data: bytes,
    options: Options,
    number: ReceiptNumber | None,
    *,
    model_sha256: str | None = None,
) -> Proven:
    """Verify a receipt by the keys that a client's options name.

    Args:
        data: the receipt.
        options: ``log_keys``, ``witness_keys`` and ``required_witnesses`` are used.
        number: of the answer it must be about; None takes any.
        model_sha256: root digest of the bundle that must have answered; None takes any.

    Raises:
        ReceiptError: it does not verify, or is about another request.
        ProfileError: no key of a log is named, or one is none.
    """
    trust = log_trust(options)
    if number is None:
        return verify_receipt(data, trust, request_id=None, model_sha256=model_sha256)
    return verify_receipt(
        data,
        trust,
        request_id=number.request_id,
        model=number.model,
        model_sha256=model_sha256,
    )


def write_numbers(path: Path, numbers: Iterable[ReceiptNumber]) -> None:
    """Write receipt numbers, one JSON object a line.

    Raises:
        ProfileError: the file cannot be written.
    """
    lines = [
        json.dumps({name: getattr(item, name) for name in _MEMBERS}) + "\n"
        for item in numbers
    ]
    try:
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None


def read_numbers(path: Path) -> list[ReceiptNumber]:
    """Read what `write_numbers` wrote.

    Raises:
        ProfileError: unreadable, or a line is none; names the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_NUMBERS_BYTES + 1)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_NUMBERS_BYTES:
        raise ProfileError(f"{path}: too long")
    return [
        _number(line, f"{path}, line {place}")
        for place, line in enumerate(data.splitlines(), start=1)
        if line.strip()
    ]


def _number(line: bytes, where: str) -> ReceiptNumber:
    try:
        value: dict[str, Any] = strict_json.loads_object(line, max_bytes=4096)
    except JsonError as error:
        raise ProfileError(f"{where}: {error}") from None
    if value.keys() != {*_MEMBERS} or not all(
        isinstance(value[name], str) and value[name] for name in _MEMBERS
    ):
        raise ProfileError(f"{where}: expected number, request_id and model")
    return ReceiptNumber(**value)
