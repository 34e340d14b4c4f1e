"""Labels that come later: tickets that came with answers, and the labels for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sealgate.errors import TensorError, TransportError
from sealgate.receipt_numbers import Answers

__all__ = ["Label", "Ticketed", "feedback_bodies", "outcomes_of", "tickets_of"]

# What a server takes in one request; of bytes, with room to spare.
MAX_LABELS = 1000
# It makes tickets on its event loop, which that many hold for 14 ms.
MAX_TICKETS = 4096
MAX_BYTES = 100_000

Array = npt.NDArray[Any]
# A ticket and its label, and perhaps a group; or an object of these by their names.
Label = Mapping[str, Any] | Sequence[Any]


class Ticketed(Answers):
    """Arrays by output name, and what brings a label back to each row.

    Attributes:
        tickets: one for each row; None for a row that the model gave no number for.
            Whoever has one, and the right to send labels, can say what was right.
    """

    def __init__(
        self, outputs: Mapping[str, Array], tickets: Sequence[str | None]
    ) -> None:
        super().__init__(outputs, getattr(outputs, "receipts", ()))
        self.tickets = list(tickets)

    @classmethod
    def joined(
        cls, outputs: Mapping[str, Array], parts: Iterable[Mapping[str, Array]]
    ) -> Ticketed:
        """Outputs that were joined from those of several, with the tickets of all."""
        given = (part for part in parts if isinstance(part, Ticketed))
        return cls(outputs, [ticket for part in given for ticket in part.tickets])

    def __repr__(self) -> str:
        return f"<Ticketed outputs={sorted(self)} rows={len(self.tickets)}>"


def tickets_of(parameters: Mapping[str, Any]) -> list[str | None]:
    """The tickets in an answer's parameters.

    Raises:
        TransportError: there are none.
    """
    tickets = parameters.get("tickets")
    if not isinstance(tickets, list) or not all(
        item is None or isinstance(item, str) for item in tickets
    ):
        raise TransportError("the answer has no tickets")
    return tickets


def feedback_bodies(labels: Iterable[Label]) -> Iterator[tuple[int, bytes]]:
    """Labels as the content of requests, as many as it takes.

    Yields:
        How many there are in it, and the content.

    Raises:
        TensorError: one of them is no ticket with a label.
    """
    texts: list[str] = []
    size = 0
    for at, label in enumerate(labels):
        text = json.dumps(_object(label, at), separators=(",", ":"))
        if texts and (len(texts) == MAX_LABELS or size + len(text) > MAX_BYTES):
            yield len(texts), _body(texts)
            texts, size = [], 0
        texts.append(text)
        size += len(text) + 1
    if texts:
        yield len(texts), _body(texts)


def outcomes_of(document: Any, count: int) -> list[str]:
    """What became of labels, as the server says.

    Raises:
        TransportError: it does not say so of each.
    """
    outcomes = document.get("outcomes") if isinstance(document, dict) else None
    if not isinstance(outcomes, list) or len(outcomes) != count:
        raise TransportError("the server does not say what became of each label")
    return [str(outcome) for outcome in outcomes]


def _object(label: Label, at: int) -> dict[str, Any]:
    names = ("ticket", "label", "group")
    if not isinstance(label, Mapping):
        if isinstance(label, str) or not 2 <= len(label) <= len(names):
            raise TensorError(f"label {at}: expected a ticket, a label, a group")
        label = dict(zip(names, label))
    found = {name: label[name] for name in names if label.get(name) not in (None, "")}
    value = found.get("label")
    if isinstance(value, np.generic):
        found["label"] = value = value.item()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TensorError(f"label {at}: expected a class's name or index, or a number")
    if not isinstance(found.get("ticket"), str):
        raise TensorError(f"label {at}: has no ticket")
    return found


def _body(texts: Sequence[str]) -> bytes:
    return ('{"labels":[' + ",".join(texts) + "]}").encode()
