"""Strict JSON: what json.loads lets through, refused; bounds; round trips."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import JsonError
from sealgate.protocol.strict_json import dumps, loads, loads_object

MAX = 1 << 20

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4)
    ),
    max_leaves=20,
)

FAULTS = {
    b"": "not JSON",
    b"{": "not JSON",
    b"{} {}": "not JSON",
    b"{'a': 1}": "not JSON",
    b"[1,]": "not JSON",
    b"[01]": "not JSON",
    b'"\n"': "not JSON",
    b"\xef\xbb\xbf{}": "not JSON",
    b'"\xff"': "invalid UTF-8 at byte 1",
    b'"\xed\xa0\x80"': "invalid UTF-8 at byte 1",
    b'{"a": 1, "a": 1}': "an object repeats a key",
    b'[{"b": {"a": 1, "\\u0061": 2}}]': "an object repeats a key",
    b"NaN": "NaN is not JSON",
    b"[Infinity]": "Infinity is not JSON",
    b"[-Infinity]": "-Infinity is not JSON",
    b"1e999": "a number is too large for a double",
    b"-1e999": "a number is too large for a double",
    b"9" * 5000: "not JSON: Exceeds the limit",
    b'"\\ud800"': "half a surrogate pair is not a character",
    b'{"\\udc00": 1}': "half a surrogate pair is not a character",
    b'["\\udc00\\ud800"]': "half a surrogate pair is not a character",
    b"[" * 34 + b"]" * 34: "nested more than 32 levels deep",
    b"[" * 500_000: "nested too deeply",
    b'{"a":' * 500_000: "nested too deeply",
}


@pytest.mark.parametrize(
    ("data", "message"), FAULTS.items(), ids=[repr(data[:30]) for data in FAULTS]
)
def test_refused(data, message):
    with pytest.raises(JsonError) as caught:
        loads(data, max_bytes=MAX * 8)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_size_is_checked_before_anything_else():
    assert loads(b"[1]", max_bytes=3) == [1]
    with pytest.raises(JsonError, match="document has 4 bytes, at most 3 allowed"):
        loads(b"\xff\xff\xff\xff", max_bytes=3)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("depth", [1, 2, 7])
def test_depth_limit_is_exact(opening, closing, depth):
    def nested(levels: int) -> bytes:
        return (opening * levels + "0" + closing * levels).encode()

    loads(nested(depth), max_bytes=MAX, max_depth=depth)
    with pytest.raises(JsonError, match=f"nested more than {depth} levels deep"):
        loads(nested(depth + 1), max_bytes=MAX, max_depth=depth)


def test_a_scalar_has_no_depth():
    assert loads(b"1", max_bytes=MAX, max_depth=0) == 1
    with pytest.raises(JsonError, match="nested more than 0 levels"):
        loads(b"[]", max_bytes=MAX, max_depth=0)


def test_depth_of_the_deepest_branch_counts():
    with pytest.raises(JsonError, match="nested more than 2 levels"):
        loads(b'[1, [2], {"a": {"b": 1}}]', max_bytes=MAX, max_depth=2)


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"{}"'])
def test_object_expected(data):
    with pytest.raises(JsonError, match="top level is not an object"):
        loads_object(data, max_bytes=MAX)


def test_escaped_pairs_and_escaped_backslashes_are_characters():
    assert loads(b'"\\ud83d\\ude00"', max_bytes=MAX) == "\N{GRINNING FACE}"
    assert loads(rb'"\\ud800"', max_bytes=MAX) == r"\ud800"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "cannot be written as JSON"),
        (float("inf"), "cannot be written as JSON"),
        ({1, 2}, "cannot be written as JSON"),
        ({"a": b"bytes"}, "cannot be written as JSON"),
        ({"a": 1, 2: 3}, "cannot be written as JSON"),
        ("\ud800", "half a surrogate pair"),
    ],
)
def test_not_writable(value, message):
    with pytest.raises(JsonError, match=message):
        dumps(value)


def test_a_value_that_holds_itself_is_not_writable():
    value: list[object] = []
    value.append(value)
    with pytest.raises(JsonError, match="cannot be written as JSON"):
        dumps(value)


def test_equal_values_have_equal_bytes():
    assert dumps({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()
    assert dumps({"x": 1, "y": 2}) == dumps({"y": 2, "x": 1})


@given(VALUES)
@settings(deadline=None)
def test_round_trip(value):
    data = dumps(value)
    assert loads(data, max_bytes=MAX) == value
    assert dumps(loads(data, max_bytes=MAX)) == data
    # The same document with every character escaped, as another writer might.
    assert loads(json.dumps(value).encode(), max_bytes=MAX) == value


@given(st.binary(max_size=64) | st.text('{}[]",:\\ud8019eE+-.NaI tru', max_size=40))
@settings(deadline=None, max_examples=300)
def test_arbitrary_input_only_raises_json_error(data):
    if isinstance(data, str):
        data = data.encode()
    try:
        value = loads(data, max_bytes=60)
    except JsonError:
        return
    assert loads(dumps(value), max_bytes=MAX) == value
