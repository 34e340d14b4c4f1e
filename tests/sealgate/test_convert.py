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
            'input "features", column "b", row 0: \'x\' is not a number',
        ),
        (
            frame(a=[1], b=[1e300]),
            'input "features", column "b", row 0: a value is out of range for FP32',
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


def column(datatype: str, **parameters):
    tensor = {"name": "x", "datatype": datatype, "shape": [-1, 1]}
    columns = [{"name": "a", **parameters}]
    return {"inputs": [tensor | {"parameters": {"columns": columns}}]}


NAMES = {"categories": ["no", "yes"]}
NUMBERED = {"categories": ["2", "4"]}


@pytest.mark.parametrize(
    ("values", "metadata", "wanted"),
    [
        (pandas.array([1, 2], dtype="Int64"), column("INT32"), [1, 2]),
        (pandas.array([2**62 + 1], dtype="Int64"), column("INT64"), [2**62 + 1]),
        (pandas.array([1, None], dtype="Int64"), column("FP32"), [1, None]),
        ([3.0, 4.0], column("INT8"), [3, 4]),
        (pandas.array([1.5, None], dtype="Float64"), column("FP32"), [1.5, None]),
        (pandas.array([True, False], dtype="boolean"), column("BOOL"), [True, False]),
        (pandas.array([True, False], dtype="boolean"), column("INT8"), [1, 0]),
        (pandas.array(["no", "yes"], dtype="str"), column("FP32", **NAMES), [0, 1]),
        (pandas.array(["yes"], dtype="string"), column("INT64", **NAMES), [1]),
        (pandas.array(["yes", None], dtype="str"), column("FP32", **NAMES), [1, None]),
        (pandas.Categorical(["yes", "no"]), column("FP32", **NAMES), [1, 0]),
        # By value, as a file's cells are: not as codes.
        ([4, 2], column("FP32", **NUMBERED), [1, 0]),
        ([4.0, 2.0], column("FP32", **NUMBERED), [1, 0]),
        (pandas.Categorical([4, 2]), column("INT64", **NUMBERED), [1, 0]),
        (pandas.array(["a", "é"], dtype="str"), column("BYTES"), ["a", "é"]),
        (pandas.Categorical(["a", "b"]), column("BYTES"), ["a", "b"]),
    ],
)
def test_columns_of_every_kind(values, metadata, wanted):
    rows = pandas.DataFrame({"a": values})
    array = to_arrays(rows, metadata)["x"]
    got = [None if pandas.isna(value) else value for value in array[:, 0].tolist()]
    assert got == wanted


@pytest.mark.parametrize(
    ("values", "kind", "datatype"),
    [
        ([1, 2, None], "int64[pyarrow]", "FP32"),
        (["1.5", "2", None], "string[pyarrow]", "FP64"),
        ([True, False, True], "bool[pyarrow]", "BOOL"),
    ],
)
def test_arrow_backed_columns(values, kind, datatype):
    pytest.importorskip("pyarrow")
    rows = pandas.DataFrame({"a": pandas.array(values, dtype=kind)})
    array = to_arrays(rows, column(datatype))["x"]
    assert [float(v) for v in array[:2, 0]] == [float(v) for v in values[:2]]


MIDNIGHT = pandas.Timestamp("2026-11-30")


@pytest.mark.parametrize(
    ("values", "datatype", "message"),
    [
        ([MIDNIGHT], "FP32", "points in time cannot be sent; send numbers"),
        ([MIDNIGHT.tz_localize("UTC")], "INT64", "points in time cannot be sent"),
        ([MIDNIGHT.date()], "BYTES", "points in time cannot be sent"),
        ([MIDNIGHT - MIDNIGHT], "FP32", "points in time cannot be sent"),
        (
            pandas.array([1, None], dtype="Int64"),
            "INT64",
            "row 1: an empty cell is not",
        ),
        (pandas.array([True, None], dtype="boolean"), "BOOL", "row 1: an empty cell"),
        (pandas.array(["a", None], dtype="str"), "BYTES", "row 1: an empty cell is no"),
        ([1, 300], "INT8", "row 1: a value is out of range for INT8"),
        (["1", "300"], "INT8", "row 1: '300' is out of range, -128 to 127"),
        (["1", "1.5"], "INT8", "row 1: '1.5' is not a whole number"),
        (["true", "2"], "BOOL", "row 1: '2' is neither true nor false"),
    ],
)
def test_cells_that_cannot_be_sent(values, datatype, message):
    with pytest.raises(TensorError) as caught:
        to_arrays(pandas.DataFrame({"a": values}), column(datatype))
    assert 'input "x", column "a"' in str(caught.value)
    assert message in str(caught.value)


def test_a_picture_in_columns():
    metadata = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 2, 2]}]}
    rows = frame(**{f"p{i}": [i, i + 10] for i in range(4)})
    array = to_arrays(rows, metadata)["x"]
    assert array.tolist() == [[[[0, 1], [2, 3]]], [[[10, 11], [12, 13]]]]
