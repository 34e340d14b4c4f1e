"""More rows than a model takes in one request, sent in several."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sealgate.errors import InvalidInputError
from sealgate.protocol.tensors import Array
from sealgate.receipt_numbers import Answers
from sealgate.steps import Steps

__all__ = ["Progress", "in_parts", "joined"]

_TOO_LARGE = 413
Arrays = dict[str, Array]
# Told how many rows were answered, and of how many.
Progress = Callable[[int, int], None]


def in_parts(
    ask: Callable[[Arrays], Steps[Answers]],
    arrays: Mapping[str, Array],
    rows: int,
    most: int,
    progress: Progress | None,
) -> Steps[list[Answers]]:
    """Ask about some rows after others; about fewer where a part is too large.

    Args:
        ask: about the rows of a part.
        arrays: of all rows.
        rows: their number.
        most: that a part has at first.
        progress: told after each part.

    Raises:
        ServerRefusedError: of a part; an `InvalidInputError` names its rows.
    """
    answers: list[Answers] = []
    start = 0
    while start < rows:
        part = {name: a[start : start + most] for name, a in arrays.items()}
        try:
            answers.append((yield from ask(part)))
        except InvalidInputError as error:
            if error.status == _TOO_LARGE and most > 1:
                most //= 2
                continue
            last = min(start + most, rows) - 1
            error.args = (f"{error}; in rows {start} to {last}",)
            raise
        start += most
        if progress is not None:
            progress(min(start, rows), rows)
    return answers


def joined(answers: list[Answers]) -> Answers:
    """The answers about all parts as one.

    >>> joined([Answers({"y": np.array([1])}), Answers({"y": np.array([2, 3])})])
    {'y': array([1, 2, 3])}
    """
    whole = {n: np.concatenate([a[n] for a in answers]) for n in answers[0]}
    return Answers(whole, (item for part in answers for item in part.receipts))
