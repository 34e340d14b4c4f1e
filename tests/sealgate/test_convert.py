"""Data frames and arrays into what a model takes."""

from __future__ import annotations

import numpy as np
import pytest

from sealgate.convert import to_arrays
from sealgate.errors import TensorError
from sealgate.protocol.datatypes import numbers

pandas = pytest.importorskip("pandas", reason="pandas is not installed")

TABLE = {
    "inputs": [
        {
            "name": "features",
            "datatype": "FP32",
            "shape": [-1, 2],
            "parameters": {"columns": [{"name": "a"}, {"name": "b"}]},
        }
    ]
}
NAMED = {
    "inputs": [
        {"name": "age", "datatype": "INT64", "shape": [-1, 1]},
        {"name": "income", "datatype": "FP32", "shape": [-1]},
    ]
}
PLAIN = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}


def frame(**columns):
    return pandas.DataFrame(columns)


def test_columns_are_matched_by_name():
    rows = frame(target=["x", "y"], b=[3, 4], a=[1.5, 2])
    for inputs in (rows, {"features": rows}):
        array = to_arrays(inputs, TABLE)["features"]
        assert array.dtype == np.float32
        assert array.tolist() == [[1.5, 3], [2, 4]]


def test_an_input_per_column():
    arrays = to_arrays(frame(income=[1.5, 2], age=[30, 40]), NAMED)
    assert arrays["age"].tolist() == [[30], [40]]
    assert arrays["income"].tolist() == [1.5, 2]


def test_a_model_that_names_no_columns():
    array = to_arrays(frame(p=[1, 2], q=[3, 4]), PLAIN)["x"]
    assert array.tolist() == [[1, 3], [2, 4]]


def test_no_rows():
    assert to_arrays(frame(a=[], b=[]), TABLE)["features"].shape == (0, 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (frame(a=[1]), 'input "features": column "b" is missing'),
        (
            pandas.DataFrame([[1, 2, 3]], columns=["a", "a", "b"]),
            'input "features": column "a" is given twice',
        ),
        (
            frame(a=[1], b=["x"]),
            'input "features" column "b": object cannot be sent as FP32',
        ),
        (
            frame(a=[1], b=[1e300]),
            'input "features" column "b": a value is out of range for FP32',
        ),
    ],
)
def test_frames_that_do_not_fit(rows, message):
    with pytest.raises(TensorError) as caught:
        to_arrays(rows, TABLE)
    assert str(caught.value) == message


def test_large_integers_keep_their_value_beside_floats():
    rows = frame(age=[2**62 + 1], income=[0.5])
    assert to_arrays(rows, NAMED)["age"].tolist() == [[2**62 + 1]]


@pytest.mark.parametrize("inputs", [None, 1, "x", [[1, 2]], np.zeros((1, 2))])
def test_inputs_have_names(inputs):
    with pytest.raises(TensorError, match="expected a mapping by name, or a data fr"):
        to_arrays(inputs, TABLE)


def test_unknown_names_are_the_servers_to_refuse():
    assert to_arrays({"z": [1, 2]}, PLAIN)["z"].tolist() == [1, 2]


TEXTS = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1]}]}
HALVES = {"inputs": [{"name": "x", "datatype": "BF16", "shape": [-1]}]}


@pytest.mark.parametrize(
    "value",
    [
        ["a", "é"],
        [b"a", "é".encode()],
        np.array(["a", "é"], dtype=object),
        frame(x=["a", "é"]),
    ],
)
def test_texts(value):
    array = to_arrays({"x": value}, TEXTS)["x"]
    assert (array.dtype, array.tolist()) == (object, ["a", "é"])


@pytest.mark.parametrize("value", [[1, 2], [None], [b"\xff"], [["a"], "b"]])
def test_what_is_no_text(value):
    with pytest.raises(TensorError, match='input "x"'):
        to_arrays({"x": value}, TEXTS)


def test_numbers_become_bf16():
    array = to_arrays({"x": [1, 2.5, -3e38]}, HALVES)["x"]
    assert numbers(array).tolist()[:2] == [1, 2.5]
    assert to_arrays({"x": array}, HALVES)["x"] is array
    for value in ([3.4e38], [1e39], ["a"]):
        with pytest.raises(TensorError, match='input "x"'):
            to_arrays({"x": value}, HALVES)
