"""sealgate.protocol.datatypes: BF16 and BYTES, which numpy has not."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import TensorError
from sealgate.protocol import binary_tensors, tensors
from sealgate.protocol.datatypes import (
    BFLOAT16,
    BYTES,
    MAX_ELEMENT_BYTES,
    MAX_ELEMENTS,
    narrow,
    numbers,
    pack_strings,
    strings,
    unpack_strings,
)
from sealgate.protocol.tensors import TensorSpec
from tests.support.tensors import decode_request

TEXTS = TensorSpec("x", "BYTES", (-1,))


def read(tensor):
    return tensors.decode_values(tensor, tensors.read_head(tensor, "input"))


def test_bf16_rounds_as_ml_dtypes_does() -> None:
    import ml_dtypes

    rng = np.random.default_rng(7)
    bits = rng.integers(0, 1 << 32, 20_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    ties = (np.arange(-300, 300, dtype=np.float32) / 256 + 1).astype(np.float32)
    for given_values in (values, ties, np.array([0.0, -0.0, 3.4e38, np.inf])):
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = given_values.astype(ml_dtypes.bfloat16).astype(np.float32)
        got = numbers(narrow(given_values))
        np.testing.assert_array_equal(got, wanted)
        assert (np.signbit(got) == np.signbit(wanted))[~np.isnan(wanted)].all()


def test_bf16_keeps_shapes_and_layouts() -> None:
    for array in (np.float32(1.5), np.zeros((0, 3)), np.arange(6).reshape(2, 3).T):
        values = np.asarray(array)
        assert numbers(narrow(values)).shape == values.shape
        np.testing.assert_array_equal(numbers(narrow(values)), values)


def test_bf16_in_json_is_bounded() -> None:
    tensor = {"name": "x", "datatype": "BF16", "shape": [1], "data": [3.3961775e38]}
    with pytest.raises(TensorError, match="out of range for BF16"):
        read(tensor)
    tensor["data"] = [3.38e38]
    assert read(tensor).dtype == BFLOAT16


def test_infinite_bf16_cannot_be_json() -> None:
    with pytest.raises(TensorError, match="neither NaN nor infinities"):
        tensors.encode_tensor("y", narrow(np.array([np.inf])))


@given(st.lists(st.text(max_size=8), max_size=8))
@settings(deadline=None)
def test_texts_round_trip(texts: list[str]) -> None:
    array = np.array([*texts, ""], dtype=object)[:-1]
    packed = pack_strings(array, "x")
    assert unpack_strings(memoryview(packed), len(texts), "x").tolist() == texts
    sent = json.loads(json.dumps(tensors.encode_tensor("x", array)))
    assert read(sent).tolist() == texts


@given(st.binary(max_size=40), st.integers(0, 9))
@settings(deadline=None, max_examples=300)
def test_arbitrary_bytes_only_raise_tensor_error(data: bytes, count: int) -> None:
    try:
        array = unpack_strings(memoryview(data), count, "x")
    except TensorError:
        return
    assert pack_strings(array, "x") == data


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (b"\1\0\0", 1, "cannot hold 1 elements"),
        (b"\2\0\0\0a", 1, "element 0 is cut"),
        (b"\xff\xff\xff\xffa", 1, "element 0 is cut, or too long"),
        (b"\1\0\0\0a", 0, "bytes follow its last"),
        (b"\1\0\0\0ab", 1, "bytes follow its last"),
        (b"\1\0\0\0\xff", 1, "not UTF-8"),
        (b"\3\0\0\0\xed\xa0\x80", 1, "not UTF-8"),
        (b"", MAX_ELEMENTS + 1, "at most 1048576 elements"),
    ],
)
def test_malformed_texts(data: bytes, count: int, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        unpack_strings(memoryview(data), count, "x")


def test_long_texts_are_refused_both_ways() -> None:
    long = "é" * (MAX_ELEMENT_BYTES // 2 + 1)
    packed = len(long.encode()).to_bytes(4, "little") + long.encode()
    with pytest.raises(TensorError, match="cut, or too long"):
        unpack_strings(memoryview(packed), 1, "x")
    for role in (pack_strings, strings):
        with pytest.raises(TensorError, match="longer than 1048576 bytes"):
            role(np.array([long], dtype=object), "x")
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "data": [long]}
    with pytest.raises(TensorError, match="longer than"):
        read(tensor)
    fits = np.array([long[:-1]], dtype=object)
    assert unpack_strings(memoryview(pack_strings(fits, "x")), 1, "x") == fits


def test_a_shape_that_is_a_bomb_costs_nothing() -> None:
    tensor = {
        "name": "x",
        "datatype": "BYTES",
        "shape": [(1 << 40) - 1],
        "parameters": {"binary_data_size": 8},
    }
    tracemalloc.start()
    with pytest.raises(TensorError):
        decode_request({"inputs": [tensor]}, [TEXTS], max_rows=1 << 41, tail=b"\0" * 8)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "é"]),
        np.array([b"a", "é".encode()]),
        np.array([b"a", "é"], dtype=object),
    ],
)
def test_numpys_own_strings_are_texts(array: np.ndarray) -> None:
    document, parts = binary_tensors.encode_request({"x": array})
    assert document["inputs"][0]["datatype"] == "BYTES"
    tail = b"".join(parts)
    (got,) = decode_request(document, [TEXTS], max_rows=4, tail=tail).values()
    assert (got.dtype, got.tolist()) == (BYTES, ["a", "é"])
    assert tensors.encode_tensor("x", array)["data"] == ["a", "é"]


@pytest.mark.parametrize("value", [1, None, 1.5, ["a"], "\ud800", b"\xff"])
def test_other_objects_are_refused(value: object) -> None:
    array = np.empty(1, dtype=object)
    array[0] = value
    with pytest.raises(TensorError):
        pack_strings(array, "x")
    with pytest.raises(TensorError):
        tensors.encode_tensor("x", array)
