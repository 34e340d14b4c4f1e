"""Long arrays: what a parser of the whole text gives, and what it refuses."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import JsonError, TensorError
from sealgate.protocol import long_arrays
from sealgate.protocol.long_arrays import LongArray
from sealgate.protocol.tensors import TensorSpec
from tests.support.tensors import decode_request

MOST = 4096


@pytest.fixture(autouse=True)
def _short_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions of a few bytes, so that short examples have several."""
    monkeypatch.setattr(long_arrays, "_LONG_BYTES", 8)
    monkeypatch.setattr(long_arrays, "_PORTION_BYTES", 16)


def text_of(data: str, datatype: str, shape: list[int], after: str = "") -> bytes:
    stated = f'"name": "x", "datatype": "{datatype}", "shape": {json.dumps(shape)}'
    return f'{{"inputs": [{{{stated}, "data" : {data}}}]{after}}}'.encode()


def read(text: bytes, *, long: bool, datatype: str, rank: int) -> list[Any] | None:
    """The values, or None where they are refused."""
    spec = TensorSpec("x", datatype, (-1,) * rank)
    try:
        if long:
            document = long_arrays.loads(text, orjson.loads, max_other_bytes=MOST)
        else:
            document = orjson.loads(text)
        arrays = decode_request(document, [spec], max_rows=10**6)
    except (JsonError, TensorError, orjson.JSONDecodeError):
        return None
    return arrays["x"].tolist()


def agree(text: bytes, datatype: str, rank: int) -> list[Any] | None:
    whole = read(text, long=False, datatype=datatype, rank=rank)
    assert read(text, long=True, datatype=datatype, rank=rank) == whole
    return whole


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)
NUMBERS = st.integers(-(10**6), 10**6) | st.floats(width=32, allow_nan=False).filter(
    math.isfinite
)
STRINGS = st.text(max_size=30).filter(
    lambda s: s.isprintable() or not s
) | st.sampled_from(['"data":[', "]},[", "\\", '\\"', "é\n\t", "a" * 40])


@settings(max_examples=50, deadline=None, database=None)
@given(data=st.data(), shape=SHAPES, indent=st.sampled_from([None, 1]))
@pytest.mark.parametrize(
    ("datatype", "values"), [("FP64", NUMBERS), ("BYTES", STRINGS)]
)
def test_what_is_right(datatype, values, data, shape, indent) -> None:
    count = math.prod(shape)
    flat = data.draw(st.lists(values, min_size=count, max_size=count))
    array = np.array(flat, dtype=object).reshape(shape)
    for nested in (array.tolist(), flat):
        for ascii_only in (True, False):
            text = json.dumps(nested, indent=indent, ensure_ascii=ascii_only)
            found = agree(text_of(text, datatype, shape), datatype, len(shape))
            assert found == array.tolist()


@settings(max_examples=150, deadline=None, database=None)
@given(
    text=st.lists(
        st.sampled_from(
            ["1", "2.5", ",", "[", "]", " ", ",", "[1,2]", "3,4", "e", "}"]
        ),
        min_size=3,
        max_size=24,
    ).map("".join),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
)
def test_what_is_wrong_with_numbers(text: str, shape: list[int]) -> None:
    agree(text_of(f"[{text}]", "FP64", shape), "FP64", len(shape))


@settings(max_examples=150, deadline=None, database=None)
@given(
    text=st.lists(
        st.sampled_from(
            ['"a"', '"b"', ",", "[", "]", " ", ",", '"', "\\", "1", '["c"]']
        ),
        min_size=3,
        max_size=24,
    ).map("".join),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
)
def test_what_is_wrong_with_texts(text: str, shape: list[int]) -> None:
    agree(text_of(f"[{text}]", "BYTES", shape), "BYTES", len(shape))


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2[, ]3, 4, 5, 6]",
        "[1, 2, 3, 4, 5, 6, ]",
        "[, 1, 2, 3, 4, 5, 6]",
        "[[1, 2], 3, 4, 5, 6]",
        "[[1, 2, 3], [4, 5], 6]",
        "[[1, 2, 3], [4, 5, 6]",
        "[1, 2, 3][4, 5, 6]",
        "[1, 2, 3, 4, 5 6, 7]",
        "[1, 2, 3, 4, NaN, 6]",
        "[1, 2, 3, 4, 5, 06]",
        "[[], [], [], [], []]",
        "[1, 2, 3, true, 5, 6]",
        "[1, 2, 3, 1e999, 5, 6]",
    ],
)
def test_each_is_refused(text: str) -> None:
    assert agree(text_of(text, "FP64", [6]), "FP64", 1) is None


def test_other_members_stay_as_they_are() -> None:
    text = text_of(
        "[1, 2, 3, 4, 5, 6]", "FP64", [6], ', "id": "x\\"data\\":[1,2,3,4,5]"'
    )
    document = long_arrays.loads(text, orjson.loads, max_other_bytes=MOST)
    assert isinstance(document["inputs"][0]["data"], LongArray)
    assert document["id"] == 'x"data":[1,2,3,4,5]'
    assert document["inputs"][0]["shape"] == [6]


def test_what_is_beside_the_arrays_is_bounded() -> None:
    text = text_of("[1, 2, 3, 4, 5, 6]", "FP64", [6], ', "p": [' + "0," * MOST + "0]")
    with pytest.raises(JsonError, match="bytes of JSON beside arrays of values"):
        long_arrays.loads(text, orjson.loads, max_other_bytes=MOST)
    padded = text_of("[1, 2, 3, 4, 5, 6]", "FP64", [6]).ljust(10 * MOST)
    assert long_arrays.loads(padded, orjson.loads, max_other_bytes=MOST)


@pytest.mark.parametrize(
    "text",
    [
        text_of("[1, 2, 3, 4, 5, 6, ?]", "FP64", [7]),
        text_of("[1, 2, 3, 4, 5, 6]", "FP64", [6], ', "é": ?'),
        text_of("[1, 2, 3, 4, 5, 6]", "FP64", [6]).replace(b'"name"', b"?"),
    ],
    ids=["value", "behind", "before"],
)
def test_where_it_is_no_json(text: bytes) -> None:
    with pytest.raises(JsonError, match=f"not JSON at byte {text.index(b'?')}"):
        document = long_arrays.loads(text, orjson.loads, max_other_bytes=MOST)
        spec = TensorSpec("x", "FP64", (-1,))
        decode_request(document, [spec], max_rows=9)
