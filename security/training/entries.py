"""Trainings as the ledger holds them, and which of them are on one data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from security.errors import LedgerError
from security.training.accounting import Spent
from security.training.overlap import LEAST, share
from security.training.selection import Selection

__all__ = ["Account", "Entry", "Request", "known", "linked", "names_of"]


@dataclass(frozen=True)
class Request:
    """What a training is about to spend.

    Attributes:
        name: declared, of the data set.
        digest: of its rows in any order (`models.data.datasets.multiset_digest`).
        unit: what is protected: "row", or "owner by COLUMN".
        model: tag of the model, for people.
        rate, noise, group: of each step.
        steps: planned.
        delta: of the claim.
        selection: how the best of several tries is chosen, each of so many steps; its
            whole cost is spent with the first step of the first one.
        former: digests of the same data by earlier versions of what a row is: what was
            booked under them was spent on it too.
        sketch: of the rows' owners (`overlap.sketch`); empty where nobody made one.
    """

    name: str
    digest: str
    unit: str
    model: str
    rate: float
    noise: float
    group: int
    steps: int
    delta: float
    selection: Selection | None = None
    former: tuple[str, ...] = ()
    sketch: bytes = field(default=b"", repr=False)

    def shares_data(self, other: Request) -> bool:
        """Whether both are on one data set: by name, rows, or the rows' owners."""
        ours, theirs = {self.digest, *self.former}, {other.digest, *other.former}
        same = self.name == other.name or bool(ours & theirs)
        return same or share(self.sketch, other.sketch) >= LEAST


@dataclass(frozen=True)
class Entry:
    """A training in the ledger.

    Attributes:
        id: of the training.
        request: what it asked for.
        state: "running", "interrupted" or "finished".
        spent: steps booked so far.
        created_at: UTC, RFC 3339.
        token: digest of the checkpoint that it can be taken up from.
    """

    id: str
    request: Request
    state: str
    spent: int
    created_at: str
    token: str = field(default="", repr=False)

    @property
    def held(self) -> int:
        """Steps that nobody else can have: all, while it runs."""
        return self.request.steps if self.state == "running" else self.spent

    def cost(self, steps: int) -> Spent:
        """So many of its steps; of a selection any of them cost all."""
        item = self.request
        if item.selection is not None and steps:
            steps = item.steps
        return Spent(item.rate, item.noise, steps, item.group, item.selection)


@dataclass(frozen=True)
class Account:
    """The trainings on one data set, and what they add up to at one delta.

    Attributes:
        names: under which it was declared.
        cap: on epsilon.
        cap_is_default: whether nobody set it.
        delta: at which epsilon is stated.
        spent, held: epsilon of the steps booked, and with what running ones hold.
        entries: by time.
    """

    names: tuple[str, ...]
    cap: float
    cap_is_default: bool
    delta: float
    spent: float
    held: float
    entries: tuple[Entry, ...]


def known(entries: Iterable[Entry], identity: str) -> Entry:
    """The training of an identity.

    Raises:
        LedgerError: there is none.
    """
    entry = next((item for item in entries if item.id == identity), None)
    if entry is None:
        raise LedgerError(f"the ledger has no training {identity}")
    return entry


def linked(entries: Iterable[Entry], request: Request) -> list[Entry]:
    """Trainings on the same data, and on what those share."""
    entries = list(entries)
    found: set[str] = set()
    todo = [request]
    while todo:
        known = todo.pop()
        new = [
            item
            for item in entries
            if item.id not in found and item.request.shares_data(known)
        ]
        found |= {item.id for item in new}
        todo += [item.request for item in new]
    return [item for item in entries if item.id in found]


def names_of(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Under which their data was declared."""
    return tuple(sorted({item.request.name for item in entries}))
