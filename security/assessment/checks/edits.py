"""Edits of text: characters and words swapped, within a budget, that turn the answer.

An edit swaps two neighbouring characters of a word, leaves one out, writes one twice or
another in its place, or swaps two neighbouring words. Words are tried in the order of
what the answer loses without them (Gao et al. 2018, DeepWordBug; Li et al. 2019,
TextBugger). That the text still means the same is not claimed: few edits are small to
the eye, and nobody has read them. Texts of which the data configuration lists all are
no matter of edits: `evasion-cost` replaces them by others of the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Metric
from security.assessment.plan.checks import Outcome, Unit, row_units
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import CheckResult, ScanFinding

__all__ = ["EditsCheck", "edited"]

_CHUNK = 20
_BUDGET = 2
_WORDS, _MADE = 5, 40
_MAX_CHARACTERS = 20_000
_WEAK_BELOW = 0.9
_SHOWN = 6
# Letters that stand beside each other, or look alike.
_NEAR = dict(zip("aeiounrtslcdmhgp01", "sraipmtyaovsnjbqol", strict=True))


class EditsCheck:
    """How few edits turn a text's class."""

    name = "edits"
    title = "edits of text"

    def missing(self, context: Context) -> str | None:
        """Only where a column is free text, and questions cost nothing."""
        if not _columns(context):
            return "no column is free text"
        if context.job.remote:
            return "it would spend an endpoint's quota"
        if not (context.job.clean.labels == context.job.labels).any():
            return "the model has no row right: there is nothing to break"
        return None

    def units(self, context: Context) -> list[Unit]:
        """Some rows each."""
        wanted = min(context.job.options.effort.checked_rows, len(context.job.rows))
        return row_units(self.name, wanted, size=_CHUNK)

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Edit some rows, one after the other.

        Raises:
            BudgetError: time ran out.
        """
        job, random = context.job, context.random(unit.key)
        places = np.arange(int(unit.params["first"]), int(unit.params["end"]))
        correct = job.clean.labels[places] == job.labels[places]
        needed, examples = np.full(len(places), np.inf), []
        for index, place in enumerate(places.tolist()):
            if correct[index]:
                context.check_time()
                search = _Search(context, place, random)
                needed[index] = search.run(_budget(context))
                if np.isfinite(needed[index]):
                    examples.append(search.example())
        turned = int(np.isfinite(needed).sum())
        return Outcome(
            {"found": f"{turned} of {len(places)} turned", "examples": examples},
            {"places": places, "correct": correct, "needed": needed},
        )

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """The share of rows that stay right, by edits."""
        parts = [outcome.arrays for _, outcome in sorted(outcomes.items())]
        correct, needed = (
            np.concatenate([part[name] for part in parts])
            for name in ("correct", "needed")
        )
        budget = _budget(context)
        shares = [
            intervals.proportion(int((correct & (needed > edits)).sum()), len(correct))
            for edits in range(budget + 1)
        ]
        examples = [e for out in outcomes.values() for e in out.values["examples"]]
        return CheckResult(
            self.name,
            conditions={
                "budget": budget,
                "budget_stated": context.job.config.edits is not None,
                "edits": "characters swapped, left out, doubled, replaced; words",
                "meaning": "not claimed to stay",
                "counted": "rechecked_on_onnxruntime",
                "interval": "wilson",
            },
            metrics={
                "robust_accuracy_edits": shares[-1],
                "edits": Metric(float(budget)),
            },
            findings=_findings(context, correct, needed, shares[-1]),
            details={
                "tables": [_table(shares)],
                "examples": sorted(examples, key=lambda item: len(item["changes"]))[
                    :_SHOWN
                ],
                "rows": [
                    {"row": int(context.job.places[place]), "edits": _finite(value)}
                    for place, value in enumerate(needed.tolist())
                ],
            },
        )


class _Search:
    """Greedy edits of one row, confirmed by the model at each step."""

    def __init__(
        self, context: Context, place: int, random: np.random.Generator
    ) -> None:
        self._context, self._random = context, random
        self._row = context.job.rows[place].astype(np.float64)
        self._place, self._label = place, int(context.job.labels[place])
        self._texts = {
            column: context.target.texts.texts[round(self._row[column])]
            for column in _columns(context)
        }
        self._before = dict(self._texts)

    def run(self, budget: int) -> float:
        """How many edits turn the row; infinite where so many do not."""
        for edits in range(1, budget + 1):
            made = [
                (column, text)
                for column, own in self._texts.items()
                for text in self._candidates(column, own)
            ]
            if not made:
                break
            margins, wrong = self._ask(made)
            best = int(np.argmin(np.where(wrong, -np.inf, np.nan_to_num(margins))))
            column, text = made[best]
            self._texts[column] = text
            if wrong[best]:
                return float(edits)
        return float("inf")

    def example(self) -> dict[str, Any]:
        """What was changed, for people."""
        names = self._context.job.column_names
        row = int(self._context.job.places[self._place])
        return {
            "caption": f"Row {row}",
            "changes": [
                [names[column], self._before[column][:200], text[:200]]
                for column, text in self._texts.items()
                if text != self._before[column]
            ],
        }

    def _candidates(self, column: int, text: str) -> list[str]:
        """Texts one edit away, of the words that count most."""
        words = text.split(" ")
        if len(text) > _MAX_CHARACTERS or not text:
            return []
        without = [
            (column, " ".join([*words[:place], *words[place + 1 :]]))
            for place in range(len(words))
        ]
        margins, _ = self._ask(without)
        order = np.argsort(np.nan_to_num(margins), kind="stable")[:_WORDS]
        return edited(words, order.tolist(), self._random)

    def _ask(
        self, made: list[tuple[int, str]]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        target = self._context.target
        rows = np.repeat(self._row[None], len(made), axis=0)
        for column, text in self._texts.items():
            rows[:, column] = target.texts.place(text)
        for index, (column, text) in enumerate(made):
            rows[index, column] = target.texts.place(text)
        answers = target.ask(rows.astype(self._context.job.rows.dtype))
        labels = np.full(len(made), self._label)
        return answers.margins(labels), answers.wrong(labels)


def edited(
    words: list[str], places: list[int], random: np.random.Generator
) -> list[str]:
    """Texts one edit away, of some words; a sample where they are many.

    >>> edited(["ab", "c"], [0], np.random.default_rng(0))[:3]
    ['ba c', 'c ab', 'b c']
    """
    made: dict[str, None] = {}
    for place in places:
        for word in _words_near(words[place]):
            made[" ".join([*words[:place], word, *words[place + 1 :]])] = None
        if place + 1 < len(words):
            swapped = [words[place + 1], words[place]]
            made[" ".join([*words[:place], *swapped, *words[place + 2 :]])] = None
    made.pop(" ".join(words), None)
    found = list(made)
    if len(found) > _MADE * len(places):
        chosen = random.permutation(len(found))[: _MADE * len(places)]
        found = [found[index] for index in sorted(chosen.tolist())]
    return found


def _words_near(word: str) -> list[str]:
    """A word with two characters swapped, one left out, doubled, or replaced."""
    made = []
    for place, letter in enumerate(word):
        before, after = word[:place], word[place + 1 :]
        if after:
            made.append(before + after[0] + letter + after[1:])
        if len(word) > 1:
            made.append(before + after)
        made.append(before + letter + letter + after)
        made.append(before + _NEAR.get(letter, "_") + after)
    return made


def _columns(context: Context) -> list[int]:
    """Columns of texts that are free: no list says what they may become."""
    types = context.job.spec.types(context.job.rows.shape[1])
    rules = context.job.space.rules
    return [i for i, kind in enumerate(types) if kind == "str" and not rules[i].texts]


def _budget(context: Context) -> int:
    return context.job.config.edits or _BUDGET


def _findings(
    context: Context,
    correct: NDArray[np.bool_],
    needed: NDArray[np.float64],
    share: Metric,
) -> tuple[ScanFinding, ...]:
    right, budget = int(correct.sum()), _budget(context)
    turned = int((correct & (needed <= budget)).sum())
    if right - turned >= _WEAK_BELOW * right:
        return ()
    stated = context.job.config.edits is not None
    message = (
        f"{turned} of {right} rows that are right are turned by {budget} edits of text "
        "or fewer"
    )
    severity = "" if stated else "note"
    return (ScanFinding("evasion-edits", message, "text", share, severity=severity),)


def _table(shares: list[Metric]) -> dict[str, Any]:
    return {
        "title": "Accuracy by edits of the text (95% interval)",
        "columns": ["edits", "accuracy", "n"],
        "rows": [
            [edits, f"{item.value:.3f} [{item.low:.3f}, {item.high:.3f}]", item.n]
            for edits, item in enumerate(shares)
        ],
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
