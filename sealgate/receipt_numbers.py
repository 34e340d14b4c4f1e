"""What callers keep of answers, to fetch the receipts for them by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from sealgate.protocol.bhttp import Headers
from sealgate.protocol.receipts import RECEIPT_HEADER

__all__ = ["Answers", "ReceiptNumber", "numbers_of"]

Array = npt.NDArray[Any]
_REQUEST_ID = b"x-request-id"


@dataclass(frozen=True)
class ReceiptNumber:
    """An answer's receipt number, and what its receipt must be about.

    Attributes:
        number: opaque; says nothing to whoever lacks the deployment's key.
        request_id: names the answer's record.
        model: the name that was asked for.
    """

    number: str
    request_id: str
    model: str


class Answers(dict[str, Array]):
    """Arrays by output name, and the receipt numbers of the requests they come from.

    Attributes:
        receipts: one for each request, in their order; empty where the server gives
            no receipts.
    """

    def __init__(
        self, outputs: Mapping[str, Array], receipts: Iterable[ReceiptNumber] = ()
    ) -> None:
        super().__init__(outputs)
        self.receipts = (*receipts,)


def numbers_of(headers: Headers, model: str) -> tuple[ReceiptNumber, ...]:
    """The receipt number in an answer's head, if there is one."""
    found = {
        name: value.decode("ascii", "replace")
        for name, value in headers
        if name in (RECEIPT_HEADER, _REQUEST_ID)
    }
    if len(found) != 2:
        return ()
    return (ReceiptNumber(found[RECEIPT_HEADER], found[_REQUEST_ID], model),)
