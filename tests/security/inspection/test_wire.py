"""What parsers skip, merge or drop: refused, whoever would have read it."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from models.sessions import make_session
from security.inspection.wire import check_wire
from tests.security.inspection.test_structure import model, raw, within_if
from tests.support.inspecting import examine, inspect
from tests.support.polyglots import in_ort_format, varint


def part(number: int, data: bytes, *, longer: int = 0) -> bytes:
    return varint(number << 3 | 2) + varint(len(data), longer=longer) + data


def check(data: bytes):
    parsed = onnx.ModelProto()
    parsed.ParseFromString(data)
    return check_wire(data, parsed)


MODEL = model(initializers=[raw([2], b"\0" * 8)])
GOOD = MODEL.SerializeToString()
GRAPH = MODEL.graph.SerializeToString()
OTHER = model([helper.make_node("Neg", ["x"], ["y"])]).graph.SerializeToString()
HEAD = b"\x08\x0a" + part(8, MODEL.opset_import[0].SerializeToString())
NODE = MODEL.graph.node[0].SerializeToString()

TWO_TYPES = part(1, b"\x08\x01") + part(4, b"")

REFUSED = {
    "a field of nobody": (GOOD + part(99, b"data"), "unknown-field"),
    "a field of nobody that is a number": (GOOD + b"\xf8\x06\x01", "unknown-field"),
    "a group": (GOOD + b"\xfb\x06\xfc\x06", "unknown-field"),
    "a field that was reserved": (
        HEAD + part(7, GRAPH + part(3, b"old")),
        "unknown-field",
    ),
    "a field of another type": (GOOD + part(1, b"\x0a"), "unknown-field"),
    "a field of nobody in a node": (
        HEAD + part(7, part(1, NODE + part(88, b"data"))),
        "unknown-field",
    ),
    "a value without a name": (
        HEAD + part(7, part(1, NODE + part(5, part(1, b"a") + b"\xa0\x01\x63"))),
        "unknown-field",
    ),
    "two graphs": (GOOD + part(7, OTHER), "field-twice"),
    "the IR version twice": (GOOD + b"\x08\x09", "field-twice"),
    "an operator's name twice": (
        HEAD + part(7, part(1, NODE + part(4, b"Neg"))),
        "field-twice",
    ),
    "a type that is two": (
        HEAD + part(7, GRAPH + part(11, part(1, b"k") + part(2, TWO_TYPES))),
        "field-twice",
    ),
    # Packed sizes take fewer bytes than canonical ones: the length alone tells nothing.
    "a name twice, a list packed": (
        HEAD
        + part(7, GRAPH + part(5, part(1, b"\1" * 9) + part(8, b"a") + part(8, b"b"))),
        "field-twice",
    ),
}  # fmt: skip

ACCEPTED = {
    "canonical": GOOD,
    "another order": part(7, GRAPH) + HEAD,
    "numbers in more bytes": HEAD + part(7, GRAPH, longer=2),
    "a packed list": HEAD
    + part(7, GRAPH + part(5, part(1, b"\x01") + b"\x10\x01" + part(9, b"\0" * 4))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    data, rule = REFUSED[name]
    problem = check(data)
    assert problem is not None
    assert problem[0] == rule
    (finding,) = examine(data).refused
    assert finding.rule == rule
    assert finding.message.isascii()


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name):
    assert check(ACCEPTED[name]) is None


def test_the_place_is_named():
    data = HEAD + part(7, part(1, NODE + part(88, b"data")))
    assert check(data) == ("unknown-field", "graph/node", "field 88 of NodeProto")


def test_parsers_merge_two_graphs():
    """Why `field-twice` refuses: the file shows Relu first, and Neg besides."""
    parsed = onnx.ModelProto()
    parsed.ParseFromString(GOOD + part(7, OTHER))
    assert [node.op_type for node in parsed.graph.node] == ["Relu", "Neg"]


@given(st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=3))
@settings(max_examples=200, deadline=None)
def test_any_bytes_that_parse_are_walked_to_the_end(changes):
    """The walk agrees with protobuf on what is unknown, and never fails."""
    data = bytearray(ACCEPTED["another order"])
    for position, byte in changes:
        data[int(position * len(data))] = byte
    parsed = onnx.ModelProto()
    try:
        parsed.ParseFromString(bytes(data))
    except DecodeError:
        return
    size = parsed.ByteSize()
    problem = check_wire(bytes(data), parsed)
    if parsed.ByteSize() < size:  # something was unknown
        assert problem is not None


def test_the_other_format_is_refused():
    (finding,) = inspect(in_ort_format(model().SerializeToString()))
    assert finding.rule == "format"


def test_a_file_of_both_formats_is_refused():
    """ONNX for the server, and for a session that guesses onnxruntime's own format."""
    made = model()
    made.producer_name = "ORTM by chance"
    data = made.SerializeToString()
    make_session(data)  # it is a rightful file for a session that knows the format
    with pytest.raises(Exception, match="ORT model verification failed"):
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (finding,) = inspect(data)
    assert finding.rule == "format"


def test_deep_messages_need_no_recursion():
    deep = within_if([helper.make_node("Neg", ["x"], ["z"])], 6)
    data = HEAD + part(7, part(1, deep.SerializeToString()) + part(2, b"g"))
    assert check(data) is None


def test_large_tensors_are_stepped_over():
    tensor = TensorProto(name="w", data_type=1, dims=[1 << 20])
    tensor.raw_data = bytes(4 << 20)
    made = model(initializers=[tensor])
    data = part(7, made.graph.SerializeToString()) + HEAD
    assert check(data) is None
