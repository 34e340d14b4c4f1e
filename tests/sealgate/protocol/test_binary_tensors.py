"""Triton's binary tensors: round trips, mixtures, and every lie about a length."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import TensorError
from sealgate.protocol.binary_tensors import (
    decode_response,
    encode_request,
    encode_response,
    requested_outputs,
    split,
)
from sealgate.protocol.datatypes import narrow, numbers
from sealgate.protocol.tensors import DATATYPES, TensorSpec
from tests.support.tensors import decode_request

X = TensorSpec("x", "FP32", (-1, 3))
Y = TensorSpec("y", "INT64", (-1,))
BYTES = np.array([[1, 2.5, -3]], dtype="<f4").tobytes()


def tensor(**changes):
    fields = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
    fields |= {"parameters": {"binary_data_size": 12}} | changes
    return {k: v for k, v in fields.items() if v is not ...}


def decode(*tensors, tail=BYTES, specs=(X,), max_rows=4):
    document = {"inputs": list(tensors)}
    return decode_request(document, specs, max_rows=max_rows, tail=tail)


@pytest.mark.parametrize("name", DATATYPES)
def test_every_datatype_round_trips(name):
    values = np.array([[0, 1], [1, 0]])
    if name == "BYTES":
        values = values.astype(str).astype(object)
    else:
        values = narrow(values) if name == "BF16" else values.astype(DATATYPES[name])
    document, parts = encode_request({"x": values})
    tail = b"".join(parts)
    assert document["inputs"][0]["parameters"] == {"binary_data_size": len(tail)}
    assert document["parameters"] == {"binary_data_output": True}
    spec = TensorSpec("x", name, (2, 2))
    sent = json.loads(json.dumps(document))
    result = decode_request(sent, [spec], max_rows=2, tail=tail)["x"]
    assert result.dtype == values.dtype
    np.testing.assert_array_equal(result, values)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2],
        np.zeros((0, 3), dtype=np.float32),
        np.array([[np.nan, np.inf, -np.inf]], dtype=np.float32),
    ],
    ids=["big endian", "fortran", "strided", "empty", "not finite"],
)
def test_arrays_of_other_layouts(array):
    document, parts = encode_request({"x": array})
    tail = memoryview(b"".join(parts))
    result = decode_request(document, [X], max_rows=4, tail=tail)["x"]
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, array)


def test_scalars():
    document, parts = encode_request({"y": np.array(7, dtype=np.int64)})
    spec = TensorSpec("y", "INT64", ())
    result = decode_request(document, [spec], max_rows=1, tail=parts[0])["y"]
    assert (result.shape, result) == ((), 7)


def test_nothing_is_copied_where_the_bytes_are_aligned():
    tail = np.arange(3, dtype=np.float32)
    array = decode(tensor(), tail=tail.data.cast("B"))["x"]
    assert np.shares_memory(array, tail)


def test_unaligned_bytes_are_copied():
    body = bytearray(b"\x00" + BYTES)
    array = decode(tensor(), tail=memoryview(body)[1:])["x"]
    assert array.flags.aligned
    assert array.tolist() == [[1, 2.5, -3]]


def test_json_and_bytes_may_be_mixed():
    json_y = {"name": "y", "datatype": "INT64", "shape": [2], "data": [8, 9]}
    for order in ([tensor(), json_y], [json_y, tensor()]):
        arrays = decode(*order, specs=(X, Y))
        assert arrays["x"].tolist() == [[1, 2.5, -3]]
        assert arrays["y"].tolist() == [8, 9]


def test_the_order_is_that_of_the_json():
    y = {"name": "y", "datatype": "INT64", "shape": [1]}
    y |= {"parameters": {"binary_data_size": 8}}
    tail = (5).to_bytes(8, "little") + BYTES
    arrays = decode(y, tensor(), tail=tail, specs=(X, Y))
    assert arrays["y"].tolist() == [5]


@pytest.mark.parametrize(
    ("changes", "tail", "message"),
    [
        ({}, BYTES[:-1], 'input "x": expected 12 bytes, the body has 11'),
        ({}, b"", 'input "x": expected 12 bytes, the body has 0'),
        ({}, BYTES + b"\0", "1 bytes follow the last tensor"),
        ({"shape": [2, 3]}, BYTES, "expected 24 bytes for shape [2, 3], got 12"),
        ({"shape": [0, 3]}, BYTES, "expected 0 bytes for shape [0, 3], got 12"),
        ({"data": [1, 2, 3]}, BYTES, 'has "data" and binary_data_size both'),
        ({"parameters": {}}, BYTES, 'expected an array "data"'),
        ({"parameters": []}, BYTES, "parameters are not an object"),
        ({"parameters": "x"}, BYTES, "parameters are not an object"),
        ({"name": "z"}, BYTES, 'input "z": unknown, expected "x"'),
        ({"datatype": "FP64"}, BYTES, "expected FP32[-1,3], got FP64[1,3]"),
        ({"datatype": "BYTES"}, BYTES, "expected FP32[-1,3], got BYTES[1,3]"),
        ({"datatype": ...}, BYTES, "expected FP32[-1,3], got no datatype[1,3]"),
        ({"shape": [1, 4]}, BYTES, "expected FP32[-1,3], got FP32[1,4]"),
        ({"shape": [5, 3]}, BYTES, "5 rows, at most 4 allowed"),
        ({"shape": [1 << 39, 3]}, BYTES, "rows, at most 4 allowed"),
        ({"shape": [-1, 3]}, BYTES, 'expected an array "shape" of sizes'),
    ],
)
def test_lies(changes, tail, message):
    with pytest.raises(TensorError) as caught:
        decode(tensor(**changes), tail=tail)
    assert message in str(caught.value)


@pytest.mark.parametrize("size", [-1, 11, 13, 12.0, "12", True, None, [12], 1 << 70])
def test_sizes_that_are_none(size):
    with pytest.raises(TensorError):
        decode(tensor(parameters={"binary_data_size": size}))


def test_a_tensor_given_twice():
    with pytest.raises(TensorError, match='input "x": given twice'):
        decode(tensor(), tensor(), tail=BYTES * 2)


def test_a_third_boolean():
    spec = TensorSpec("x", "BOOL", (-1,))
    given_ = tensor(datatype="BOOL", shape=[2], parameters={"binary_data_size": 2})
    assert decode(given_, tail=b"\1\0", specs=[spec])["x"].tolist() == [True, False]
    with pytest.raises(TensorError, match="values are not BOOL"):
        decode(given_, tail=b"\1\2", specs=[spec])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([b"7"], "7 bytes of JSON in a body of 6"),
        ([b"2", b"2"], "expected one length"),
        ([b"-1"], "expected one length"),
        ([b"+2"], "expected one length"),
        ([b"2,2"], "expected one length"),
        ([b" 2"], "expected one length"),
        ([b""], "expected one length"),
        ([b"\xb2"], "expected one length"),
        ([b"9" * 5000], "expected one length"),
    ],
)
def test_head_lengths(lengths, message):
    with pytest.raises(TensorError, match=message):
        split(b"{}1234", lengths)


def test_split():
    assert [bytes(part) for part in split(b"{}12", [])] == [b"{}12", b""]
    assert [bytes(part) for part in split(b"{}12", [b"4"])] == [b"{}12", b""]
    assert [bytes(part) for part in split(b"{}12", [b"0"])] == [b"", b"{}12"]


KNOWN = ("p", "label")


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ({}, {"p": False, "label": False}),
        ({"parameters": None}, {"p": False, "label": False}),
        (
            {"parameters": {"binary_data_output": True}},
            {"p": True, "label": True},
        ),
        ({"outputs": [{"name": "label"}]}, {"label": False}),
        (
            {"outputs": [{"name": "label", "parameters": {"binary_data": True}}]},
            {"label": True},
        ),
        (
            {
                "parameters": {"binary_data_output": True, "other": 1},
                "outputs": [
                    {"name": "label", "parameters": {"binary_data": False}},
                    {"name": "p"},
                ],
            },
            {"label": False, "p": True},
        ),
    ],
)
def test_which_outputs_and_how(request_, wanted):
    assert requested_outputs(request_, KNOWN) == wanted
    assert list(requested_outputs(request_, KNOWN)) == list(wanted)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"outputs": []}, "outputs: expected names among p, label, once each"),
        ({"outputs": {}}, "once each"),
        ({"outputs": [{}]}, "once each"),
        ({"outputs": ["p"]}, "once each"),
        ({"outputs": [{"name": "q"}]}, "once each"),
        ({"outputs": [{"name": ["p"]}]}, "once each"),
        ({"outputs": [{"name": "p"}, {"name": "p"}]}, "once each"),
        ({"parameters": 1}, "request: parameters are not an object"),
        (
            {"parameters": {"binary_data_output": 1}},
            "request: binary_data_output is not a boolean",
        ),
        (
            {"outputs": [{"name": "p", "parameters": {"binary_data": "yes"}}]},
            'output "p": binary_data is not a boolean',
        ),
        (
            {"outputs": [{"name": "p", "parameters": {"classification": 2}}]},
            'output "p": classification is not supported',
        ),
        (
            {"outputs": [{"name": "p", "parameters": {"shared_memory_region": "r"}}]},
            'output "p": shared_memory_region is not supported',
        ),
    ],
)
def test_outputs_that_cannot_be_had(request_, message):
    with pytest.raises(TensorError) as caught:
        requested_outputs(request_, KNOWN)
    assert message in str(caught.value)


def test_responses():
    p = np.array([[0.5, np.nan]], dtype=np.float32)
    label = np.array([1], dtype=np.int64)
    document, parts = encode_response(
        [("p", p), ("label", label)], binary={"p"}, model="m", version="1"
    )
    assert (document["model_name"], document["model_version"]) == ("m", "1")
    assert document["outputs"][1]["data"] == [1]
    arrays = decode_response(document, memoryview(b"".join(parts)))
    np.testing.assert_array_equal(arrays["p"], p)
    assert arrays["label"].tolist() == [1]
    with pytest.raises(TensorError, match="bytes, the body has 0"):
        decode_response(document, memoryview(b""))


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_null_stands_for_what_json_has_no_word_for(datatype):
    wide = np.array([np.nan, 1.5, np.inf, -np.inf], dtype=np.float32)
    p = narrow(wide) if datatype == "BF16" else wide.astype(DATATYPES[datatype])
    document, _ = encode_response([("p", p)], binary=(), model="m", version="1")
    assert document["outputs"][0]["data"] == [None, 1.5, None, None]
    answer = json.loads(json.dumps(document, allow_nan=False))
    got = numbers(decode_response(answer, memoryview(b""))["p"])
    np.testing.assert_array_equal(got, np.array([np.nan, 1.5, np.nan, np.nan]))
    # A request has to say what it means.
    spec = TensorSpec("p", datatype, (-1,))
    with pytest.raises(TensorError, match="values are not"):
        decode_request({"inputs": answer["outputs"]}, [spec], max_rows=9)


def test_dtypes_that_v2_does_not_have():
    with pytest.raises(TensorError, match="no datatype for complex128"):
        encode_request({"x": np.array([1j])})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "data", "parameters", "datatype", "outputs"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("x") | JSON,
            "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
            "datatype": st.sampled_from([*DATATYPES]) | JSON,
            "data": JSON,
            "parameters": st.fixed_dictionaries(
                {"binary_data_size": st.integers(0, 24) | JSON}
            )
            | JSON,
        },
    ),
    st.binary(max_size=24),
)
@settings(deadline=None, max_examples=300)
def test_arbitrary_tensors_only_raise_tensor_error(value, tail):
    with contextlib.suppress(TensorError):
        decode(value, tail=tail)
    with contextlib.suppress(TensorError):
        decode_response({"outputs": [value]}, memoryview(tail))


@given(JSON)
@settings(deadline=None, max_examples=200)
def test_arbitrary_requests_only_raise_tensor_error(value):
    with contextlib.suppress(TensorError):
        requested_outputs({"outputs": value, "parameters": value}, KNOWN)
