"""Open Inference Protocol v2 tensors: datatypes, messages, hostile values."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sealgate.errors import TensorError
from sealgate.protocol.datatypes import narrow, numbers
from sealgate.protocol.tensors import (
    DATATYPES,
    TensorSpec,
    decode_response,
    encode_request,
)
from tests.support.tensors import decode_request, encode_response

SPEC = TensorSpec("x", "FP32", (-1, 3))
INTEGERS = [name for name, dtype in DATATYPES.items() if dtype.kind in "iu"]
FLOATS = [name for name, dtype in DATATYPES.items() if dtype.kind == "f"]


def tensor(**changes):
    fields = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2.5, -3]}
    return {k: v for k, v in (fields | changes).items() if v is not ...}


def decode(*tensors, spec=SPEC, max_rows=4):
    return decode_request({"inputs": list(tensors)}, [spec], max_rows=max_rows)


def decode_one(datatype, data):
    """A vector of one datatype, as a request's input."""
    spec = TensorSpec("x", datatype, (-1,))
    given = tensor(datatype=datatype, shape=[len(data)], data=data)
    return decode(given, spec=spec, max_rows=100)["x"]


@pytest.mark.parametrize("name", DATATYPES)
def test_every_datatype_round_trips(name):
    dtype = DATATYPES[name]
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        values = np.array([[info.min, info.max], [0, 1]], dtype=dtype)
    elif dtype.kind == "f":
        info = np.finfo(dtype)
        values = np.array([[info.min, info.max], [info.tiny, 0.1]], dtype=dtype)
    elif name == "BF16":
        values = narrow(np.array([[3.1e38, -1.0], [1e-38, 0.1]]))
    elif name == "BYTES":
        values = np.array([["", "a\0"], ["é", "\U0001f600"]], dtype=object)
    else:
        values = np.array([[True, False], [False, False]])
    sent = json.loads(json.dumps(encode_request({"x": values})))
    assert sent["inputs"][0]["datatype"] == name
    spec = TensorSpec("x", name, (2, 2))
    result = decode_request(sent, [spec], max_rows=2)["x"]
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, values)


def test_nested_and_flat_data_are_the_same():
    flat = decode(tensor(shape=[2, 3], data=[1, 2, 3, 4, 5, 6]))["x"]
    nested = decode(tensor(shape=[2, 3], data=[[1, 2, 3], [4, 5, 6]]))["x"]
    deeper = decode(tensor(shape=[2, 3], data=[[[1], [2], [3]], [[4], [5], [6]]]))["x"]
    assert flat.tolist() == nested.tolist() == deeper.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_no_rows():
    assert decode(tensor(shape=[0, 3], data=[]))["x"].shape == (0, 3)
    assert decode(tensor(shape=[0, 3], data=[[], []]))["x"].shape == (0, 3)


def test_scalars_have_an_empty_shape():
    spec = TensorSpec("x", "INT64", ())
    result = decode(tensor(datatype="INT64", shape=[], data=[7]), spec=spec)["x"]
    assert result.shape == ()
    assert result == 7


def test_large_unsigned_beside_small_values():
    values = [2**64 - 1, 0, 2**63, 5]
    assert decode_one("UINT64", values).tolist() == values


REFUSED = {
    "not an object": ([], "request: expected a JSON object"),
    "no inputs": ({}, 'request: expected an array "inputs"'),
    "inputs is an object": ({"inputs": {}}, 'request: expected an array "inputs"'),
    "tensor is not an object": (
        {"inputs": [1]},
        'a tensor is not an object with a "name"',
    ),
    "tensor without name": (
        {"inputs": [tensor(name=...)]},
        'a tensor is not an object with a "name"',
    ),
    "name is a number": (
        {"inputs": [tensor(name=1)]},
        'a tensor is not an object with a "name"',
    ),
    "missing": ({"inputs": []}, 'input "x": missing, expected FP32[-1,3]'),
    "unknown": (
        {"inputs": [tensor(name="y")]},
        'input "y": unknown, expected "x"',
    ),
    "long unknown": (
        {"inputs": [tensor(name="y" * 1000)]},
        f'input "{"y" * 64}…": unknown, expected "x"',
    ),
    "twice": ({"inputs": [tensor(), tensor()]}, 'input "x": given twice'),
    "no datatype": (
        {"inputs": [tensor(datatype=...)]},
        'input "x": expected FP32[-1,3], got no datatype[1,3]',
    ),
    "datatype is a list": (
        {"inputs": [tensor(datatype=["FP32"])]},
        'input "x": expected FP32[-1,3], got no datatype[1,3]',
    ),
    "other datatype": (
        {"inputs": [tensor(datatype="FP64")]},
        'input "x": expected FP32[-1,3], got FP64[1,3]',
    ),
    "long datatype": (
        {"inputs": [tensor(datatype="F" * 1000)]},
        f'input "x": expected FP32[-1,3], got {"F" * 64}…[1,3]',
    ),
    "other width": (
        {"inputs": [tensor(shape=[1, 4])]},
        'input "x": expected FP32[-1,3], got FP32[1,4]',
    ),
    "other rank": (
        {"inputs": [tensor(shape=[3])]},
        'input "x": expected FP32[-1,3], got FP32[3]',
    ),
    "no shape": (
        {"inputs": [tensor(shape=...)]},
        'input "x": expected an array "shape" of sizes',
    ),
    "negative size": (
        {"inputs": [tensor(shape=[-1, 3])]},
        'input "x": expected an array "shape" of sizes',
    ),
    "size is a float": (
        {"inputs": [tensor(shape=[1.0, 3])]},
        'input "x": expected an array "shape" of sizes',
    ),
    "size is a boolean": (
        {"inputs": [tensor(shape=[True, 3])]},
        'input "x": expected an array "shape" of sizes',
    ),
    "huge size": (
        {"inputs": [tensor(shape=[1 << 40, 3])]},
        'input "x": expected an array "shape" of sizes',
    ),
    "seventeen dimensions": (
        {"inputs": [tensor(shape=[1] * 17)]},
        'input "x": expected an array "shape" of sizes',
    ),
    "too many rows": (
        {"inputs": [tensor(shape=[5, 3], data=[0] * 15)]},
        'input "x": 5 rows, at most 4 allowed',
    ),
    "no data": ({"inputs": [tensor(data=...)]}, 'input "x": expected an array "data"'),
    "data is text": (
        {"inputs": [tensor(data="123")]},
        'input "x": expected an array "data"',
    ),
    "too few values": (
        {"inputs": [tensor(data=[1, 2])]},
        'input "x": expected 3 values for shape [1, 3], got 2',
    ),
    "too many values": (
        {"inputs": [tensor(data=[1, 2, 3, 4])]},
        'input "x": expected 3 values for shape [1, 3], got 4',
    ),
    "ragged": (
        {"inputs": [tensor(shape=[2, 3], data=[[1, 2], [3, 4, 5, 6]])]},
        'input "x": data is ragged or nested too deeply',
    ),
    "rows beside numbers": (
        {"inputs": [tensor(data=[1, [2], 3])]},
        'input "x": data is ragged or nested too deeply',
    ),
    "null": ({"inputs": [tensor(data=[1, None, 3])]}, 'input "x": values are not FP32'),
    "text": ({"inputs": [tensor(data=[1, "2", 3])]}, 'input "x": values are not FP32'),
    "object": ({"inputs": [tensor(data=[1, {}, 3])]}, 'input "x": values are not FP32'),
    "all booleans": (
        {"inputs": [tensor(data=[True, False, True])]},
        'input "x": values are not FP32',
    ),
    "a boolean among numbers": (
        {"inputs": [tensor(data=[1.5, True, 2])]},
        'input "x": values are not FP32',
    ),
    "overflow": (
        {"inputs": [tensor(data=[1, 1e39, 3])]},
        'input "x": a value is out of range for FP32',
    ),
    "integer overflow": (
        {"inputs": [tensor(data=[1, 10**400, 3])]},
        'input "x": a value is out of range for FP32',
    ),
    "NaN": (
        {"inputs": [tensor(data=[1, float("nan"), 3])]},
        'input "x": a value is out of range for FP32',
    ),
    "infinity": (
        {"inputs": [tensor(data=[1, float("-inf"), 3])]},
        'input "x": a value is out of range for FP32',
    ),
}


@pytest.mark.parametrize(("request_", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_requests(request_, message):
    with pytest.raises(TensorError) as caught:
        decode_request(request_, [SPEC], max_rows=4)
    assert str(caught.value) == message


def test_nesting_is_bounded():
    data = [1, 2, 3]
    for _ in range(5000):
        data = [data]
    with pytest.raises(TensorError, match='"x": data is ragged or nested too deeply'):
        decode(tensor(data=data))


def test_a_long_text_among_values_costs_no_memory():
    data = ["x" * 1_000_000, *[""] * 1_000_000]
    given = tensor(shape=[4, 3], data=data)
    tracemalloc.start()
    try:
        with pytest.raises(TensorError):
            decode(given)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_out_of_range(name):
    info = np.iinfo(DATATYPES[name])
    for value in (int(info.min) - 1, int(info.max) + 1, 10**30):
        with pytest.raises(TensorError) as caught:
            decode_one(name, [0, value])
        assert str(caught.value) == f'input "x": a value is out of range for {name}'


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", [1.0, 1.5, True, "1", None])
def test_only_integers_are_integers(name, value):
    with pytest.raises(TensorError, match=f"values are not {name}"):
        decode_one(name, [0, value])


@pytest.mark.parametrize("value", [0, 1, 1.0, "true", None])
def test_only_booleans_are_booleans(value):
    with pytest.raises(TensorError, match="values are not BOOL"):
        decode_one("BOOL", [True, value])


@pytest.mark.parametrize("name", FLOATS)
def test_integers_are_floats_too(name):
    assert decode_one(name, [1, -2, 0.5]).tolist() == [1.0, -2.0, 0.5]


def test_fp16_overflow():
    for value in (65520, 70000.0):
        with pytest.raises(TensorError, match="out of range for FP16"):
            decode_one("FP16", [value])


def test_several_inputs():
    specs = [SPEC, TensorSpec("mask", "BOOL", (2,))]
    mask = {"name": "mask", "datatype": "BOOL", "shape": [2], "data": [True, False]}
    result = decode_request({"inputs": [mask, tensor()]}, specs, max_rows=4)
    assert result["mask"].tolist() == [True, False]
    with pytest.raises(TensorError) as caught:
        decode_request({"inputs": [tensor(name="z")]}, specs, max_rows=4)
    assert str(caught.value) == 'input "z": unknown, expected "x", "mask"'
    with pytest.raises(TensorError, match=r'input "mask": missing, expected BOOL\[2\]'):
        decode_request({"inputs": [tensor()]}, specs, max_rows=4)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (None, "response: expected an object"),
        ([], "response: expected an object"),
        ({}, "response: expected an object"),
        ({"outputs": None}, "response: expected an object"),
        ({"outputs": [None]}, "a tensor is not an object"),
        ({"outputs": [tensor(datatype=...)]}, 'output "x": unknown datatype'),
        ({"outputs": [tensor(datatype="TEXT")]}, 'output "x": unknown datatype'),
        ({"outputs": [tensor(datatype=["FP32"])]}, 'output "x": unknown datatype'),
        ({"outputs": [tensor(), tensor()]}, 'output "x": given twice'),
        ({"outputs": [tensor(data=[1])]}, 'output "x": expected 3 values'),
        (
            {"outputs": [tensor(shape=[0, 1 << 39, 1 << 39], data=[])]},
            'output "x": the shape is too large',
        ),
    ],
)
def test_refused_responses(response, message):
    with pytest.raises(TensorError, match=message):
        decode_response(response)


def test_response_document():
    outputs = [("label", np.array([1, 0])), ("p", np.array([[0.5]], dtype=np.float32))]
    document = encode_response(outputs, model="m", version="1.0.0")
    assert document == {
        "model_name": "m",
        "model_version": "1.0.0",
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [2], "data": [1, 0]},
            {"name": "p", "datatype": "FP32", "shape": [1, 1], "data": [0.5]},
        ],
    }
    assert list(decode_response(document)) == ["label", "p"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([object()]), '"x": values are not BYTES'),
        (np.array(["a", None]), '"x": values are not BYTES'),
        (np.array([0], "M8[s]"), '"x": v2 JSON has no datatype for datetime64[s]'),
        (np.array([1j]), '"x": v2 JSON has no datatype for complex128'),
        (np.array([np.nan]), '"x": JSON carries neither NaN nor infinities'),
        (np.array([np.inf]), '"x": JSON carries neither NaN nor infinities'),
    ],
)
def test_arrays_that_cannot_be_sent(array, message):
    with pytest.raises(TensorError) as caught:
        encode_request({"x": array})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("datatype", "shape", "accepted"),
    [
        ("FP32", (4, 3), True),
        ("FP32", (0, 3), True),
        ("FP64", (4, 3), False),
        ("FP32", (4, 2), False),
        ("FP32", (4,), False),
        ("FP32", (4, 3, 1), False),
    ],
)
def test_accepts(datatype, shape, accepted):
    assert SPEC.accepts(datatype, shape) is accepted


@given(
    st.sampled_from(sorted(set(DATATYPES) - {"BF16", "BYTES"})).flatmap(
        lambda name: arrays.arrays(
            DATATYPES[name],
            arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
            elements={"allow_nan": False, "allow_infinity": False}
            if name in FLOATS
            else None,
        )
    )
)
@settings(deadline=None, max_examples=150)
def test_arrays_round_trip(array):
    sent = json.loads(json.dumps(encode_request({"x": array})))
    result = decode_response({"outputs": sent["inputs"]})["x"]
    assert result.dtype == array.dtype
    assert result.shape == array.shape
    assert result.tobytes() == np.ascontiguousarray(array).tobytes()


NAMES = st.sampled_from(["x", "y", "", "FP32", "INT8", "UINT64", "BOOL", "BYTES"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-1, 3)
    | st.floats()
    | NAMES
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=12,
)
SIZES = st.integers(0, 3) | st.sampled_from([1 << 20, (1 << 40) - 1])
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES | JSON,
        "datatype": st.sampled_from(sorted(DATATYPES)) | JSON,
        "shape": st.lists(SIZES, max_size=4) | JSON,
        "data": st.lists(st.integers(-2, 300) | st.floats() | JSON, max_size=6) | JSON,
    },
)
SPECS = st.builds(
    TensorSpec,
    st.just("x"),
    st.sampled_from(sorted(DATATYPES)),
    st.lists(st.sampled_from([-1, 1, 2]), max_size=3).map(tuple),
)


@given(JSON | st.lists(TENSORS | JSON, max_size=3), SPECS)
@settings(deadline=None, max_examples=300)
def test_arbitrary_values_only_raise_tensor_error(value, spec):
    for message in (value, {"inputs": value, "outputs": value}):
        _check(lambda m=message: decode_request(m, [spec], max_rows=2))
        _check(lambda m=message: decode_response(m))


def _check(call) -> None:
    try:
        result = call()
    except TensorError:
        return
    for array in result.values():
        assert array.dtype in DATATYPES.values()
        wide = numbers(array)
        assert wide.dtype.kind != "f" or np.isfinite(wide).all()


@given(
    st.fixed_dictionaries(
        {
            "name": st.just("x"),
            "datatype": st.sampled_from(sorted(DATATYPES)),
            "shape": st.lists(SIZES, max_size=3),
            "data": st.lists(
                st.integers(-2, 300)
                | st.integers()
                | st.floats()
                | st.booleans()
                | st.text(max_size=3),
                max_size=4,
            ),
        }
    )
)
@settings(deadline=None, max_examples=300)
def test_plausible_values_only_raise_tensor_error(tensor_):
    _check(lambda: decode_response({"outputs": [tensor_]}))
