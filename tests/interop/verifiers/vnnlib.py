"""Questions to verifiers: VNN-LIB files, and what a network may not answer in a box.

A file asserts things of inputs X and outputs Y; the network is safe where nothing makes
all of them true. Of the format, what the competition's files of 2021 use: comparisons
of a variable with a number or another variable, `and`, `or`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_TOKEN = re.compile(r"[()]|[^\s()]+")
_COMMENT = re.compile(r";[^\n]*")


@dataclass(frozen=True, eq=False)
class Case:
    """One way to be unsafe: a box of inputs, and outputs with ``weights @ y <= most``.

    Attributes:
        low, high: ``(inputs,)``.
        weights: ``(conditions, outputs)``; all conditions hold at once.
        most: ``(conditions,)``.
    """

    low: np.ndarray
    high: np.ndarray
    weights: np.ndarray
    most: np.ndarray


def cases_of(text: str) -> list[Case]:
    """Every way to be unsafe that a file asserts."""
    inputs = len(re.findall(r"declare-const\s+X_\d+", text))
    outputs = len(re.findall(r"declare-const\s+Y_\d+", text))
    asserted = [
        _ways(item[1]) for item in _parsed(text) if item and item[0] == "assert"
    ]
    return [
        _case(list(itertools.chain(*chosen)), inputs, outputs)
        for chosen in itertools.product(*asserted)
    ]


def _parsed(text: str) -> list[Any]:
    stack: list[list[Any]] = [[]]
    for token in _TOKEN.findall(_COMMENT.sub("", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    (result,) = stack
    return result


def _ways(item: Any) -> list[list[Any]]:
    """Sets of comparisons, one of which holds."""
    if item[0] == "or":
        return [way for part in item[1:] for way in _ways(part)]
    if item[0] == "and":
        parts = [_ways(part) for part in item[1:]]
        return [list(itertools.chain(*way)) for way in itertools.product(*parts)]
    if item[0] not in ("<=", ">="):
        raise ValueError(f"{item[0]} is not read here")
    return [[item]]


def _case(comparisons: list[Any], inputs: int, outputs: int) -> Case:
    low, high = np.full(inputs, -np.inf), np.full(inputs, np.inf)
    weights, most = [], []
    for operator, first, second in comparisons:
        less, more = (first, second) if operator == "<=" else (second, first)
        if "X_" in less + more:
            end, name, number = (
                (high, less, more) if less[0] == "X" else (low, more, less)
            )
            place = int(name[2:])
            keep = min if end is high else max
            end[place] = keep(end[place], float(number))
            continue
        row, number = np.zeros(outputs), 0.0
        for sign, word in ((1.0, less), (-1.0, more)):
            if word[0] == "Y":
                row[int(word[2:])] += sign
            else:
                number -= sign * float(word)
        weights.append(row)
        most.append(number)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and weights):
        raise ValueError("an input without a range, or nothing said of outputs")
    return Case(low, high, np.array(weights), np.array(most))


def asked(model: bytes, weights: np.ndarray) -> bytes:
    """The network with one more layer, ``asked``: weighted sums of its outputs."""
    proto = onnx.load_model_from_string(model)
    stored = numpy_helper.from_array(weights.T.astype(np.float32), "asked_weights")
    proto.graph.initializer.append(stored)
    given = [proto.graph.output[0].name, "asked_weights"]
    proto.graph.node.append(helper.make_node("MatMul", given, ["asked"]))
    return proto.SerializeToString()


def halves(low: np.ndarray, high: np.ndarray, whole: np.ndarray) -> Iterator[Any]:
    """Boxes ``(n, d)``, each cut in two where it is widest beside the whole."""
    share = (high - low) / np.where(whole > 0, whole, np.inf)
    place, rows = share.argmax(axis=1), np.arange(len(low))
    middle = (low[rows, place] + high[rows, place]) / 2
    upper, lower = low.copy(), high.copy()
    upper[rows, place] = middle
    lower[rows, place] = middle
    yield np.concatenate([low, upper]), np.concatenate([lower, high])
