"""Answers as tables: every output has its columns, whatever the others are called."""

from __future__ import annotations

from typing import Any

import numpy as np

from sealgate.output import format_table, named_outputs

CLASSES = ["no", "yes"]


def output(name: str, *labels: str) -> dict[str, Any]:
    return {"name": name, "parameters": {"labels": list(labels)}}


SCORED = {
    "outputs": [output("label"), output("p", *CLASSES), output("p_set", *CLASSES)]
}
ANSWER = {
    "label": np.array([1, -1]),
    "p": np.array([[0.1, 0.9], [0.0, 0.0]]),
    "p_set": np.array([[False, True], [True, True]]),
}


def test_a_set_of_classes_stands_beside_their_scores() -> None:
    head, first, _ = (line.split() for line in format_table(ANSWER, SCORED).split("\n"))
    assert head == ["row", "label", "no", "yes", "no_set", "yes_set"]
    assert first == ["0", "1", "0.1000", "0.9000", "False", "True"]


def test_decisions_are_named_though_two_outputs_have_the_names() -> None:
    table = named_outputs(ANSWER, SCORED, {"yes": ["kept", "too"]})
    names = ["yes", "label", "no", "predicted_yes", "no_set", "yes_set"]
    assert list(table) == names
    assert table["label"].tolist() == ["yes", "-1"]
    assert table["predicted_yes"].tolist() == [0.9, 0.0]
    assert table["yes_set"].tolist() == [True, True]


def test_outputs_that_are_only_called_so_are_none() -> None:
    alone = {"outputs": [output("label"), output("p", *CLASSES), output("p_set", "a")]}
    answer = {**ANSWER, "p_set": np.array([[1.5], [2.5]])}
    table = named_outputs(answer, alone, {})
    assert list(table) == ["label", "no", "yes", "a"]
    # Of two outputs with different names nobody knows whose class is decided.
    assert table["label"].tolist() == [1, -1]
