"""Explanations of a model's answers: what each column of a row contributes.

Shapley values of the raw columns, in log-odds of one class where the model answers
probabilities, since probabilities saturate; otherwise of the answer itself. A row is
compared with reference rows that are public, and signed with the manifest. Three ways,
of which `service.inference.study` settles one when a model is loaded:

1. a tree ensemble over the raw columns is explained exactly by its own numbers
   (`models.trees`), which are held to the session's answer about every row;
2. where no two columns interact, one antithetic pair of permutations is exact, and
   says on each row whether it was;
3. otherwise pairs are drawn, and the standard error is stated (`models.shapley`).

Mixed rows are asked through the batcher, in runs of bounded size with a turn of the
event loop after each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models import shapley
from models.shapley import Orders
from models.trees import TreeEnsemble
from sealgate.protocol.tensors import Array
from service.inference.batching import InferenceFailedError, InferenceTimeoutError
from service.inference.layout import Floats, Inputs, Layout, Places, rows_at
from service.inference.quantity import Reading

__all__ = [
    "MAX_EVALUATIONS",
    "MAX_NEARBY_VALUES",
    "Explainer",
    "Explanation",
    "Parts",
    "Question",
    "Trees",
    "explain",
    "is_rounding",
]

Evaluate = Callable[[Inputs], Awaitable[Array]]

MAX_EVALUATIONS = 1 << 16  # of one request
MAX_NEARBY_VALUES = 1 << 19  # of the rows near one: some megabytes
_RUN_ROWS, _RUN_VALUES = 1024, 1 << 18
_TESTS_AT_ONCE = 1 << 18
# Largest difference between the two orders of a pair that is rounding in 32 bits.
_ROUNDING = 1e-4
# At most one, since each that waits for the interpreter keeps the event loop waiting.
_APART = asyncio.Semaphore(1)

_T = TypeVar("_T")
_orders = lru_cache(maxsize=8)(Orders)


@dataclass(frozen=True)
class Question:
    """What is to be explained, and how hard.

    Attributes:
        method: "shapley", or "local" for a linear model of what is answered nearby.
        pairs: of permutations, where they are needed.
        which: the class; None for the one that has the highest score.
        samples: rows that are asked near each row, of "local".
    """

    method: str = "shapley"
    pairs: int = 10
    which: int | None = None
    samples: int = 1000


@dataclass(frozen=True, eq=False)
class Explanation:
    """Of some rows, against the references' mean.

    Attributes:
        method: "trees", "additive", "permutations" or "local".
        attributions: ``(rows, columns)``; of all but "local" they add up to values less
            references.
        errors: ``(rows, columns)``, their standard errors.
        values: ``(rows,)``, the explained quantity of each row.
        references: ``(rows,)``, the same of the references.
        classes: ``(rows,)``; none where a number is explained.
        fits: ``(rows,)``, R squared, of "local" only.
    """

    method: str
    attributions: Floats
    errors: Floats
    values: Floats
    references: Floats
    classes: Places | None = None
    fits: Floats | None = None


@dataclass(frozen=True, eq=False)
class Trees:
    """A compiled ensemble, and what each class has of its leaves.

    Attributes:
        ensemble: all of it.
        weights: ``(classes, leaves)``; of a number, one.
        base: ``(classes,)``, what is added.
    """

    ensemble: TreeEnsemble
    weights: Floats
    base: Floats

    def explain(
        self, rows: Floats, which: Places, references: Floats
    ) -> list[tuple[Floats, float, float]]:
        """Of each row its attributions, its value, and the references' mean value."""
        numbers = references.astype(np.float32)
        known = [self.ensemble.passed(row) for row in numbers]
        means = np.mean([self._values(one) for one in known], axis=0)
        found = []
        for row, place in zip(rows.astype(np.float32), which):
            own, weights = self.ensemble.passed(row), self.weights[place]
            parts = [self.ensemble.attributions(own, one, weights) for one in known]
            value = float(self._values(own)[place])
            found.append((np.mean(parts, axis=0), value, float(means[place])))
        return found

    def _values(self, passed: NDArray[np.bool_]) -> Floats:
        """The explained quantity of a row, for each class, by what it passes."""
        return self.base + self.weights @ self.ensemble.reached(passed)


@dataclass(frozen=True, eq=False)
class Parts:
    """An output of what each column adds to the log-odds of the second of two classes.

    Attributes:
        output: its name.
        known: ``(references, columns)``, it about the references.
    """

    output: str
    known: Floats

    def explain(
        self, contributions: Array, which: Places, references: Floats
    ) -> tuple[Floats, Floats]:
        """Of each row its attributions, and its value.

        Args:
            contributions: the output about the rows.
            which: class of each.
            references: ``(rows,)``, value of the references.
        """
        sign = np.where(which == 1, 1.0, -1.0)[:, None]
        wide = contributions.astype(np.float64)
        found = sign * (wide - self.known.mean(axis=0))
        return found, references + found.sum(axis=1)


async def explain(
    explainer: Explainer,
    run: Callable[[Inputs, Sequence[str]], Awaitable[list[Array]]],
    inputs: Inputs,
    outputs: Sequence[str],
    question: Question,
    *,
    timeout_s: float,
) -> tuple[list[Array], Explanation]:
    """What a model answers, and why.

    Args:
        explainer: of the model.
        run: gives outputs of the model by name.
        inputs: as its manifest says.
        outputs: the names of those asked for.
        question: what is to be explained.
        timeout_s: for all of it.

    Raises:
        UnexplainableError: these answers cannot be explained in this way.
        InferenceTimeoutError: not done by then.
        InferenceFailedError: an answer is no number.
    """
    output = explainer.reading.output
    parts = [] if explainer.parts is None else [explainer.parts.output]
    names = list(dict.fromkeys([*outputs, output, *parts]))

    async def evaluate(rows: Inputs) -> Array:
        return (await run(rows, [output]))[0]

    try:
        async with asyncio.timeout(timeout_s):
            arrays = dict(zip(names, await run(inputs, names)))
            given = arrays[parts[0]] if parts else None
            found = await explainer.explain(
                inputs, arrays[output], question, evaluate, contributions=given
            )
    except TimeoutError:
        raise InferenceTimeoutError("explained until the deadline") from None
    return [arrays[name] for name in outputs], found


class Explainer:
    """How one model is explained.

    Attributes:
        names: of the columns.
        reading: of the output.
        method: how Shapley values are found.
        given_references: the references are the manifest's own, and no midpoints.
        parts: what the model itself says each column adds, if it does.
    """

    def __init__(
        self,
        layout: Layout,
        reading: Reading,
        known: Array,
        *,
        trees: Trees | None = None,
        additive: bool = False,
        parts: Parts | None = None,
    ) -> None:
        """Wire it.

        Args:
            layout: of the columns.
            reading: of the output.
            known: the output about the references.
            trees: compiled, where the model is such.
            additive: no two columns interacted.
            parts: what the model itself says each column adds, if it does.
        """
        self._layout, self.reading, self._known = layout, reading, known
        self._trees, self.parts = trees, parts
        additive = additive or parts is not None
        self.names, self.given_references = layout.names, layout.given
        self.method = "trees" if trees else "additive" if additive else "permutations"

    def price(self, rows: int, question: Question) -> int:
        """How many rows of input an explanation of so many counts as.

        As many as are asked about. What is known exactly from less counts as one pair
        of permutations, since it tells as much; what the model gives beside its answer
        as nothing more.
        """
        if question.method == "local":
            return rows * (1 + question.samples)
        if self.parts is not None:
            return rows
        orders = self._orders(question)
        return rows * (1 + len(self._known) * orders.coalitions)

    async def explain(
        self,
        inputs: Inputs,
        scores: Array,
        question: Question,
        evaluate: Evaluate,
        *,
        contributions: Array | None = None,
    ) -> Explanation:
        """Explain some rows.

        Args:
            inputs: as the manifest says.
            scores: the explained output about them.
            question: what is asked.
            evaluate: gives the output about other rows.
            contributions: of `parts`, about them.

        Raises:
            UnexplainableError: no public ranges for what is nearby.
            InferenceFailedError: an answer is no number.
        """
        flat = self._layout.flat(inputs)
        which = self.reading.which(scores, question.which)
        values = self.reading.values(scores, which)
        references = np.stack(
            [
                self.reading.values(np.broadcast_to(one, scores.shape), which)
                for one in self._known
            ],
            axis=1,
        )
        state = _State(flat, which, values, references)
        if question.method == "local":
            return await self._near(state, question, evaluate)
        if self.parts is not None and contributions is not None:
            return self._given(state, self.parts, contributions, scores)
        if self._trees is not None:
            found = await self._exact(state, self._trees)
            if self._agrees(found, scores):
                return found
        return await self._sampled(state, question, evaluate)

    def _given(
        self, state: _State, parts: Parts, contributions: Array, scores: Array
    ) -> Explanation:
        """By the model's own sum, which was held to its answers when it was loaded.

        Raises:
            InferenceFailedError: here it is not what it answers.
        """
        references = state.references.mean(axis=1)
        found, values = parts.explain(contributions, state.which, references)
        made = Explanation(
            "additive",
            found,
            np.zeros_like(found),
            values,
            references,
            state.classes(self.reading),
        )
        if not self._agrees(made, scores):
            raise InferenceFailedError("contributions do not add up to the answer")
        return made

    def _agrees(self, found: Explanation, scores: Array) -> bool:
        which = np.zeros(len(scores), np.intp)
        which = which if found.classes is None else found.classes
        return self.reading.agrees(found.values, scores, which)

    def _orders(self, question: Question) -> Orders:
        pairs = question.pairs if self.method == "permutations" else 1
        return _orders(self._layout.columns, pairs)

    async def _exact(self, state: _State, trees: Trees) -> Explanation:
        """By the ensemble's own numbers, beside the event loop, some rows at a time."""
        numbers = self._layout.numbers(state.flat)
        known = self._layout.numbers(self._layout.references)
        many = max(1, _TESTS_AT_ONCE // (trees.ensemble.tests * len(known)))
        found = []
        for start in range(0, len(numbers), many):
            part = slice(start, start + many)
            work = partial(trees.explain, numbers[part], state.which[part], known)
            found += await _apart(work)
        attributions, values, references = (np.array(item) for item in zip(*found))
        return Explanation(
            "trees",
            attributions,
            np.zeros_like(attributions),
            values,
            references,
            state.classes(self.reading),
        )

    async def _sampled(
        self, state: _State, question: Question, evaluate: Evaluate
    ) -> Explanation:
        orders = self._orders(question)
        rows, count = state.references.shape
        each = count * orders.coalitions
        values = np.empty(rows * each)
        for start, stop in self._runs(len(values)):
            place = np.arange(start, stop)
            row, reference = place // each, place // orders.coalitions % count
            mixed = self._layout.mixed(
                rows_at(state.flat, row),
                rows_at(self._layout.references, reference),
                orders.masks(start, stop),
            )
            scores = await evaluate(mixed)
            values[start:stop] = self.reading.values(scores, state.which[row])
            await asyncio.sleep(0)
        found, errors = orders.attributions(
            values.reshape(rows, count, orders.coalitions),
            state.values,
            state.references,
        )
        method = self.method
        if method != "permutations" and not is_rounding(errors, state.values):
            method = "permutations"
        return Explanation(
            "permutations" if method == "trees" else method,
            found,
            errors,
            state.values,
            state.references.mean(axis=1),
            state.classes(self.reading),
        )

    async def _near(
        self, state: _State, question: Question, evaluate: Evaluate
    ) -> Explanation:
        span = self._layout.high - self._layout.low
        found = []
        for place, row in enumerate(self._layout.numbers(state.flat)):
            rows, near = await _apart(partial(self._layout.near, row, question.samples))
            values = np.empty(len(rows))
            for start, stop in self._runs(len(rows)):
                part = {name: array[start:stop] for name, array in near.items()}
                which = np.full(stop - start, state.which[place])
                scores = await evaluate(part)
                values[start:stop] = self.reading.values(scores, which)
                await asyncio.sleep(0)
            categories = self._layout.categories
            fit = partial(shapley.fit_local, row, rows, values, span, categories)
            found.append(await _apart(fit))
        return Explanation(
            "local",
            np.array([one.slopes for one in found]),
            np.array([one.errors for one in found]),
            state.values,
            state.references.mean(axis=1),
            state.classes(self.reading),
            np.array([one.fit for one in found]),
        )

    def _runs(self, total: int) -> Iterator[tuple[int, int]]:
        """Parts of evaluations that one run takes."""
        most = min(_RUN_ROWS, self._layout.max_rows, _RUN_VALUES // len(self.names))
        for start in range(0, total, most):
            yield start, min(start + most, total)


@dataclass(frozen=True, eq=False)
class _State:
    """The rows of one request, and what is known of them.

    Attributes:
        flat: their values.
        which: the explained class of each.
        values: the quantity of each.
        references: ``(rows, references)``, the same of the references.
    """

    flat: Inputs
    which: Places
    values: Floats
    references: Floats

    def classes(self, reading: Reading) -> Places | None:
        """Their classes, unless a number is explained."""
        return self.which if reading.classes else None


async def _apart(work: Callable[[], _T]) -> _T:
    async with _APART:
        return await asyncio.to_thread(work)


def is_rounding(errors: Floats, values: Floats) -> bool:
    """Whether errors ``(rows, columns)`` are those of floats of 32 bits."""
    scale = np.maximum(1.0, np.abs(values))[:, None]
    return bool((errors <= _ROUNDING * scale).all())
