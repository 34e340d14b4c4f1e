"""How a model is explained, settled by its first runs; or why it cannot be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from models.manifest import Tensor
from models.shapley import Orders
from models.trees import TreeEnsemble, compile_trees
from sealgate.protocol.tensors import Array
from security.admission.loaded import LoadedModel
from service.inference.batching import InferenceFailedError
from service.inference.explaining import Explainer, Parts, Trees, is_rounding
from service.inference.layout import (
    Floats,
    Inputs,
    Layout,
    UnexplainableError,
)
from service.inference.quantity import Reading, are_chances, explained_output
from service.inference.warmup import limited

__all__ = ["study"]

_ROWS = 16
# How far a model's contributions may be from its log-odds, in 32 bits.
_ADDS_UP = 1e-3
_SATURATED = 6.0


class _Run(Protocol):
    """Gives an output about some rows; the explained one if none is named."""

    def __call__(self, inputs: Inputs, name: str = ...) -> Array: ...


def study(
    model: LoadedModel, *, limit_s: float, held_off: bool = False
) -> Explainer | UnexplainableError:
    """Settle how a model is explained, by some first runs; or why it cannot be.

    Args:
        model: just loaded.
        limit_s: until the runs are stopped.
        held_off: it has ended workers, so that nothing is run.
    """
    manifest = model.manifest
    if held_off:
        return UnexplainableError("workers ended while they ran this model")
    with limited(limit_s) as options:
        try:
            if not manifest.output_policy.explains:
                raise UnexplainableError("the model's output policy forbids it")
            layout, output = Layout(manifest), explained_output(manifest)

            def run(inputs: Inputs, name: str = output.spec.name) -> Array:
                return model.run(inputs, [name], options)[0]

            return _study(layout, output, run, model)
        except UnexplainableError as error:
            return error
        except InferenceFailedError:
            return UnexplainableError("the model failed on made-up rows")


def _study(
    layout: Layout,
    output: Tensor,
    run: _Run,
    model: LoadedModel,
) -> Explainer:
    """By runs over references and made-up rows.

    Raises:
        UnexplainableError: rows that share a run change each other's answers.
        InferenceFailedError: the model failed, or what it answers is no number.
    """
    random = np.random.default_rng(0)
    rows = {t.spec.name: t.made_up(_ROWS, random) for t in layout.inputs}
    scores, known = run(rows), run(layout.shaped(layout.references))
    alone = run({name: array[:1] for name, array in rows.items()})
    if not np.allclose(alone, scores[:1], rtol=1e-3, atol=1e-5, equal_nan=True):
        raise UnexplainableError("rows that share a run change each other's answers")
    stated = model.manifest.explanations.quantity
    chances = are_chances(np.concatenate([scores, known]))
    quantities = [stated] if stated else ["log_odds", "score"][not chances :]
    readings = [Reading.of(output, quantity) for quantity in quantities]
    flat = layout.flat(rows)
    one = len(layout.inputs) == 1
    data = model.admission.bundle.model
    ensemble = compile_trees(data, layout.columns) if one else None
    if ensemble is not None:
        for reading in readings:
            trees = _fitted(ensemble, reading, layout.numbers(flat), scores)
            if trees is not None:
                return Explainer(layout, reading, known, trees=trees)
    parts = _parts(layout, readings[0], run, rows, model)
    if parts is not None:
        return Explainer(layout, readings[0], known, parts=parts)
    additive = False
    # A model may be too slow for this, or answer what is no number about made-up rows.
    with contextlib.suppress(InferenceFailedError):
        additive = _is_additive(layout, readings[0], run, flat, scores)
    return Explainer(layout, readings[0], known, additive=additive)


def _parts(
    layout: Layout, reading: Reading, run: _Run, rows: Inputs, model: LoadedModel
) -> Parts | None:
    """The output that the manifest calls contributions, if they add up to the answer.

    Up to a constant, about made-up rows and references.
    """
    name = model.manifest.explanations.contributions
    if name is None or reading.quantity != "log_odds" or reading.classes != 2:
        return None
    gaps, found = [], []
    for inputs in (rows, layout.shaped(layout.references)):
        scores, parts = run(inputs), run(inputs, name).astype(np.float64)
        value = reading.values(scores, np.ones(len(scores), np.intp))
        # Beyond, a probability in 32 bits says little of the log-odds.
        kept = np.abs(value) < _SATURATED
        gaps.append((value - parts.sum(axis=1))[kept])
        found.append(parts)
    gap = np.concatenate(gaps)
    if not len(gap) or not np.ptp(gap) <= _ADDS_UP:
        return None
    return Parts(name, found[1])


def _fitted(
    ensemble: TreeEnsemble, reading: Reading, numbers: Floats, scores: Array
) -> Trees | None:
    """What each class has of an ensemble's leaves, if that gives the scores."""
    passed = [ensemble.passed(row) for row in numbers.astype(np.float32)]
    reached = np.array([ensemble.reached(one) for one in passed], np.float64)
    classes = max(1, reading.classes)
    for weights in _combinations(ensemble.leaves.T, reading, classes):
        sums = reached @ weights.T
        wanted = [
            reading.values(scores, np.full(len(scores), k, np.intp))
            for k in range(classes)
        ]
        base = np.median(np.transpose(wanted) - sums, axis=0)
        agree = [
            reading.agrees(sums[:, k] + base[k], scores, np.full(len(scores), k))
            for k in range(classes)
        ]
        if all(agree):
            return Trees(ensemble, weights, base)
    return None


def _combinations(sums: Floats, reading: Reading, classes: int) -> Iterator[Floats]:
    """How classes may be made of an ensemble's sums ``(classes, leaves)``."""
    if len(sums) == 1:
        yield np.array([-sums[0], sums[0]]) if classes == 2 else sums
    elif reading.quantity == "log_odds" and classes == len(sums) == 2:
        difference = sums[1] - sums[0]
        yield np.array([-difference, difference])
    elif len(sums) == classes:
        yield sums


def _is_additive(
    layout: Layout,
    reading: Reading,
    run: Callable[[Inputs], Array],
    flat: Inputs,
    scores: Array,
) -> bool:
    """Whether no column's effect hung on others, between pairs of made-up rows.

    Of most models the first pair shows that it does, so that no more are asked about.
    """
    orders = Orders(layout.columns, 1)
    masks = orders.masks(0, orders.coalitions)
    for row in range(0, _ROWS, 2):
        pair = slice(row, row + 1), slice(row + 1, row + 2)
        ours, theirs = ({n: a[one] for n, a in flat.items()} for one in pair)
        which = reading.which(scores[pair[0]], None)
        value, other = (reading.values(scores[one], which) for one in pair)
        asked = np.empty(0)
        if len(masks):
            answers = run(layout.mixed(ours, theirs, masks))
            asked = reading.values(answers, np.repeat(which, len(masks)))
        _, errors = orders.attributions(asked[None, None], value, other[:, None])
        if not is_rounding(errors, value):
            return False
    return True
