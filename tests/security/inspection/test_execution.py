"""Loops, random numbers, integer divisions: found through calls and references.

The files are inspected only. None is run with what would end a process.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from security.inspection.execution import RANDOM
from tests.security.inspection.test_structure import (
    changed,
    loop,
    model,
    value,
    with_functions,
)
from tests.support.inspecting import examine, inspect

INT64 = TensorProto.INT64


def constant(name: str, array) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def reference(kind: str, name: str, output: str, number: int):
    node = helper.make_node("Constant", [], [output])
    node.attribute.add(name=kind, ref_attr_name=name, type=number)
    return node


def looping_function(*, default: int | None = None, **attributes: int):
    """A Loop whose rounds are an attribute of the function that holds it."""
    body = loop(np.array(1)).graph.node[0].attribute[0]
    node = helper.make_node("Loop", ["k", "", "a"], ["b"])
    node.attribute.append(body)
    kind = onnx.AttributeProto.INT
    made = helper.make_function(
        "mine",
        "f",
        ["a"],
        ["b"],
        [reference("value_int", "rounds", "k", kind), node],
        [helper.make_opsetid("", 20)],
        attributes=[] if default is not None else ["rounds"],
        attribute_protos=(
            [] if default is None else [helper.make_attribute("rounds", default)]
        ),
    )
    result = with_functions(made)
    for name, number in attributes.items():
        result.graph.node[0].attribute.append(helper.make_attribute(name, number))
    return result


def rules(made) -> list[str]:
    return [item.rule for item in inspect(made.SerializeToString())]


def test_a_bound_in_a_function_attribute():
    assert rules(looping_function(rounds=3)) == []
    assert rules(looping_function(rounds=1 << 62)) == ["loop-bound"]


def test_a_bound_in_an_attribute_that_has_a_default():
    assert rules(looping_function(default=3)) == []
    assert rules(looping_function(default=1 << 62)) == ["loop-bound"]
    assert rules(looping_function(default=3, rounds=1 << 62)) == ["loop-bound"]


def test_a_bound_through_two_functions():
    made = looping_function()
    call = helper.make_node("f", ["a"], ["b"], domain="mine")
    kind = onnx.AttributeProto.INT
    call.attribute.add(name="rounds", ref_attr_name="times", type=kind)
    opsets = [helper.make_opsetid("mine", 1)]
    outer = helper.make_function(
        "mine", "g", ["a"], ["b"], [call], opsets, attributes=["times"]
    )
    made.functions.append(outer)
    made.graph.node[0].op_type = "g"
    made.graph.node[0].attribute.append(helper.make_attribute("times", 1 << 62))
    assert rules(made) == ["loop-bound"]


def test_a_bound_that_no_call_gives_is_open():
    made = looping_function()
    found = {item.rule for item in inspect(made.SerializeToString())}
    assert found & {"loop-open", "checker"}, found


# --- random numbers


def dropout(mode=True, ratio=0.5, **parts):
    node = helper.make_node("Dropout", ["x", "ratio", "mode"], ["y"])
    initializers = [constant("ratio", np.float32(ratio)), constant("mode", mode)]
    return model([node], initializers=initializers, **parts)


def test_dropout_in_training_mode():
    (finding,) = inspect(dropout().SerializeToString())
    assert (finding.rule, finding.where) == ("operator-random", "graph/node[0]")
    assert finding.message == "Dropout in training mode"


@pytest.mark.parametrize(
    "made",
    [
        dropout(mode=False),
        dropout(ratio=0.0),
        model([helper.make_node("Dropout", ["x"], ["y"])]),
        model(
            [helper.make_node("Dropout", ["x"], ["y"], ratio=0.5)], opsets=(("", 7),)
        ),
    ],
    ids=["inference", "nothing dropped", "no switch", "before set 12"],
)
def test_dropout_that_draws_nothing(made):
    assert rules(made) == []


def test_dropout_that_a_caller_switches():
    made = dropout()
    del made.graph.initializer[1]
    made.graph.input.append(value("mode", (), TensorProto.BOOL))
    assert "operator-random" in rules(made)


def test_dropout_whose_switch_a_function_hides():
    nodes = [
        reference("value", "mode", "mode", onnx.AttributeProto.TENSOR),
        helper.make_node("Constant", [], ["ratio"], value_float=0.5),
        helper.make_node("Dropout", ["a", "ratio", "mode"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 20)]
    hidden = helper.make_function(
        "mine", "f", ["a"], ["b"], nodes, opsets, attributes=["mode"]
    )
    for mode, expected in ((True, ["operator-random"]), (False, [])):
        made = with_functions(hidden)
        attribute = helper.make_attribute("mode", constant("", np.array(mode)))
        made.graph.node[0].attribute.append(attribute)
        assert rules(made) == expected


def test_the_random_operators_are_onnx_s():
    declared = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.node_determinism
        == onnx.defs.OpSchema.NodeDeterminism.NonDeterministic
    }
    # These run graphs, which are inspected themselves; AffineGrid holds an If.
    declared -= {"If", "Loop", "Scan", "SequenceMap", "AffineGrid"}
    assert declared == RANDOM | {"Dropout"}


# --- integer division


def divides(divisor, *, op="Div", kind=INT64, before=(), **attributes):
    """``x op d``, where ``d`` is an array, or comes with the request for None."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    given = [] if divisor is None else [constant("d", np.asarray(divisor, dtype))]
    last = before[-1].output[0] if before else "d"
    nodes = [*before, helper.make_node(op, ["x", last], ["y"], **attributes)]
    made = model(nodes, initializers=given)
    inputs = [
        value("x", kind=kind),
        *([value("d", kind=kind)] if divisor is None else []),
    ]
    del made.graph.input[:], made.graph.output[:]
    made.graph.input.extend(inputs)
    made.graph.output.append(value("y", kind=kind))
    return made


def floor(op: str):
    inputs = ["d", "one"] if op == "Max" else ["d", "one", ""]
    return (
        helper.make_node("Constant", [], ["one"], value=constant("", np.int64(1))),
        helper.make_node(op, inputs, ["e"]),
    )


WARNED = {
    "a caller's divisor": divides(None),
    "a caller's modulus": divides(None, op="Mod"),
    "unsigned": divides(None, kind=TensorProto.UINT32),
    "a constant 0": divides([3, 0]),
    "a constant -1": divides([-1, 2]),
    "through other steps": divides(
        None, before=[helper.make_node("Abs", ["d"], ["e"])]
    ),
    "of a cast": divides(
        None,
        before=[
            helper.make_node("Cast", ["d"], ["f"], to=1),
            helper.make_node("Ceil", ["f"], ["g"]),
            helper.make_node("Cast", ["g"], ["e"], to=INT64),
        ],
    ),
    "a default that a caller may replace": changed(
        divides([2, 3]), lambda m: m.graph.input.append(value("d", [2], INT64))
    ),
}

FINE = {
    "floating": divides(None, kind=TensorProto.FLOAT),
    "floating remainder": divides(None, op="Mod", kind=TensorProto.FLOAT, fmod=1),
    "a constant": divides([2, 3]),
    "unsigned by its largest": divides([(1 << 32) - 1], kind=TensorProto.UINT32),
    "kept above 0 by Max": divides(None, before=floor("Max")),
    "kept above 0 by Clip": divides(None, before=floor("Clip")),
}


@pytest.mark.parametrize("name", WARNED)
def test_divisions_that_a_caller_decides(name):
    found = examine(WARNED[name].SerializeToString())
    assert "integer-division" in [item.rule for item in found.findings]
    assert not found.refused


@pytest.mark.parametrize("name", FINE)
def test_divisions_that_cannot_trap(name):
    assert "integer-division" not in rules(FINE[name])


def test_a_division_within_a_function():
    opsets = [helper.make_opsetid("", 20)]
    inner = helper.make_function(
        "mine",
        "f",
        ["a", "c"],
        ["b"],
        [helper.make_node("Div", ["a", "c"], ["b"])],
        opsets,
    )
    made = divides(None)
    made.functions.append(inner)
    made.opset_import.append(helper.make_opsetid("mine", 1))
    made.graph.node[0].op_type, made.graph.node[0].domain = "f", "mine"
    (finding,) = [
        item
        for item in inspect(made.SerializeToString())
        if item.rule == "integer-division"
    ]
    assert "a caller's input decides the divisor" in finding.message
