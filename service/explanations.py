"""What is asked of an explanation, and how it is answered: v2 tensors, and parameters.

A request is one for inference, with further ``parameters``:

- ``method``: "shapley" (default), or "local" for a linear model of nearby answers;
- ``class``: the class to explain, by name or number; without it, the one answered;
- ``pairs``: antithetic pairs of permutations, 2 to 100;
- ``samples``: rows asked near each row, of "local".

The answer has the model's outputs, and these, a row for each of the request's:
``explanation.attributions`` and ``explanation.errors`` [rows, columns],
``explanation.value``, ``explanation.reference`` and, of classes, ``explanation.class``
[rows]; of "local" also ``explanation.fit`` [rows].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sealgate.errors import TensorError
from sealgate.protocol.bhttp import Response
from sealgate.protocol.tensors import Array
from service.content import Asked, encode_answer, failures
from service.inference.explaining import (
    MAX_EVALUATIONS,
    MAX_NEARBY_VALUES,
    Explainer,
    Explanation,
    Question,
    explain,
)
from service.inference.layout import UnexplainableError
from service.inference.served import Served
from service.problems import Problem
from service.telemetry.casualties import Notes
from service.telemetry.recorder import Decision

__all__ = [
    "explained",
    "explainer_of",
    "parameters_of",
    "priced",
    "question_of",
    "tensors_of",
]

_METHODS = ("shapley", "local")
# An attribution tells as much as a float of 32 bits, from which it was made.
_BITS = 24
_PAIRS, _SAMPLES = (2, 100), (100, 10_000)


def explainer_of(model: Served) -> Explainer:
    """What explains a model's answers.

    Raises:
        Problem: its output policy forbids that, or it cannot be done.
    """
    explainer = model.explainer
    if not model.manifest.output_policy.explains:
        raise Problem("explanations-forbidden")
    if isinstance(explainer, UnexplainableError):
        raise Problem("not-explainable", str(explainer))
    return explainer


async def explained(
    asked: Asked,
    model: Served,
    explainer: Explainer,
    decision: Decision,
    *,
    who: tuple[str, str],
) -> Response:
    """The answer to a request for an explanation.

    Args:
        asked: of the model.
        model: that is asked. No trial takes part.
        explainer: of its answers.
        decision: about the request, which is charged.
        who: the request, and its caller's pseudonym, to be noted.

    Raises:
        TensorError: a parameter is not as above, or asks for too much.
        QuotaError, QuotaStoreError: as `Decision.charge_rows`, and for its answer.
        Problem: the run failed.
    """
    document = asked.content.document
    if not asked.rows or len({head.shape[0] for _, head in asked.heads.values()}) > 1:
        raise TensorError("inputs: expected as many rows of each, and one at least")
    question = question_of(document, explainer)
    price = priced(explainer, asked.rows, question)
    await decision.charge_rows(price)
    inputs, outputs = await asked.inputs(), list(asked.outputs)
    note, told_by = Notes.text(*who, model.tag), model.model.release.told
    with failures():
        try:
            arrays, found = await explain(
                explainer,
                lambda rows, names: model.batcher.infer(rows, names, note),
                inputs,
                outputs,
                question,
                timeout_s=model.batcher.timeout_s,
            )
        except UnexplainableError as error:
            raise Problem("not-explainable", str(error)) from None
        told = _BITS * found.attributions.size
        await decision.charge_bits(lambda: told + told_by(zip(outputs, arrays)))
        tensors = tensors_of(found)
        as_bytes = bool((document.get("parameters") or {}).get("binary_data_output"))
        return await encode_answer(
            [*zip(outputs, arrays), *tensors.items()],
            binary={**asked.outputs, **dict.fromkeys(tensors, as_bytes)},
            model=model.manifest.name,
            version=model.manifest.version,
            identifier=document.get("id"),
            parameters=parameters_of(found, explainer, question, price),
        )


def question_of(document: Mapping[str, Any], explainer: Explainer) -> Question:
    """What a request asks.

    Args:
        document: its JSON.
        explainer: of the model.

    Raises:
        TensorError: a parameter is not as above.
    """
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise TensorError("request: parameters are not an object")
    method = parameters.get("method", "shapley")
    if method not in _METHODS:
        raise TensorError(f"method: one of {', '.join(_METHODS)}")
    return Question(
        method,
        _count(parameters, "pairs", _PAIRS, Question.pairs),
        _class(parameters.get("class"), explainer),
        _count(parameters, "samples", _SAMPLES, Question.samples),
    )


def priced(explainer: Explainer, rows: int, question: Question) -> int:
    """How many rows of input an explanation of so many counts as.

    Raises:
        TensorError: more than a request may ask.
    """
    most = MAX_NEARBY_VALUES // len(explainer.names)
    if question.method == "local" and question.samples > most:
        raise TensorError(f"samples: at most {most} of so many columns")
    price = explainer.price(rows, question)
    if price > MAX_EVALUATIONS:
        raise TensorError(
            f"{rows} rows would take {price} evaluations, at most {MAX_EVALUATIONS} "
            "allowed: ask about fewer rows, or for fewer pairs or samples"
        )
    return price


def tensors_of(found: Explanation) -> dict[str, Array]:
    """An explanation as tensors, by name."""
    made: dict[str, Array] = {
        "attributions": found.attributions,
        "errors": found.errors,
        "value": found.values,
        "reference": found.references,
    }
    if found.classes is not None:
        made["class"] = found.classes.astype(np.int64)
    if found.fits is not None:
        made["fit"] = found.fits
    return {f"explanation.{name}": array for name, array in made.items()}


def parameters_of(
    found: Explanation, explainer: Explainer, question: Question, evaluations: int
) -> dict[str, Any]:
    """What the answer says of an explanation beside its tensors."""
    reading = explainer.reading
    made: dict[str, Any] = {
        "method": found.method,
        "exact": found.method in ("trees", "additive"),
        "quantity": reading.quantity,
        "output": reading.output,
        "columns": explainer.names,
        "references": "manifest" if explainer.given_references else "midpoints",
        "evaluations": evaluations,
    }
    if reading.labels:
        made["labels"] = list(reading.labels)
    if found.method == "permutations":
        made["pairs"] = question.pairs if explainer.method == found.method else 1
    return made


def _count(
    parameters: Mapping[str, Any], name: str, ends: tuple[int, int], default: int
) -> int:
    value = parameters.get(name, default)
    if type(value) is not int or not ends[0] <= value <= ends[1]:
        raise TensorError(f"{name}: expected {ends[0]} to {ends[1]}")
    return value


def _class(asked: Any, explainer: Explainer) -> int | None:
    """The place of a class among the scores."""
    if asked is None:
        return None
    reading = explainer.reading
    if isinstance(asked, str) and asked in reading.labels:
        return reading.labels.index(asked)
    if isinstance(asked, str) and re.fullmatch("[0-9]{1,9}", asked):
        asked = int(asked)
    if type(asked) is int and 0 <= asked < reading.classes:
        return asked
    known = f"0 to {reading.classes - 1}, or its name" if reading.classes else "none"
    raise TensorError(f"class: expected {known}")
