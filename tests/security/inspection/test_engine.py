"""The constants of security.inspection.engine are the installed onnxruntime's."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as engine

from models.errors import SessionError
from models.sessions import make_session
from security.inspection.engine import MAX_ELEMENT_TYPE, MAX_IR_VERSION, OPERATOR_SETS
from tests.security.inspection.test_structure import (
    bomb,
    function,
    model,
    value,
    with_functions,
    within_if,
)
from tests.support.inspecting import examine, inspect


def loads(**changes) -> bool:
    try:
        make_session(model(**changes).SerializeToString())
    except SessionError:
        return False
    return True


def test_the_newest_ir_version():
    assert loads(ir=MAX_IR_VERSION)
    assert not loads(ir=MAX_IR_VERSION + 1)


@pytest.mark.parametrize(("kind", "known"), [(0, True), (1, False)])
def test_the_newest_element_type(kind, known):
    tensor = TensorProto(name="w", data_type=MAX_ELEMENT_TYPE + kind, dims=[0])
    assert loads(initializers=[tensor]) == known


@pytest.mark.parametrize("domain", OPERATOR_SETS)
def test_the_newest_operator_sets(domain):
    newest = OPERATOR_SETS[domain]
    others = (("", 20),) if domain else ()
    assert loads(opsets=(*others, (domain, newest)))
    assert not loads(opsets=(*others, (domain, newest + 1)))


def test_every_domain_with_operators_is_known():
    domains = {schema.domain for schema in engine.get_all_operator_schema()}
    assert domains <= OPERATOR_SETS.keys()


def test_the_reason_names_the_limit():
    (finding,) = examine(model(ir=MAX_IR_VERSION + 1).SerializeToString()).refused
    assert finding.message == "IR version 14, onnxruntime loads 3 to 13"
    newer = model(opsets=(("", OPERATOR_SETS[""] + 1),))
    (finding,) = examine(newer.SerializeToString()).refused
    assert finding.message == "ai.onnx 27, onnxruntime loads 1 to 26"


def test_a_function_in_its_own_domain_is_another_for_the_engine():
    """The file shows Neg; onnxruntime runs its own Gelu."""
    shown = function("Gelu", [helper.make_node("Neg", ["a"], ["b"])])
    shown.domain = "com.microsoft"
    made = with_functions(shown, call="Gelu")
    made.graph.node[0].domain = "com.microsoft"
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    data = made.SerializeToString()
    (y,) = make_session(data).run(None, {"x": np.ones((1, 2), np.float32)})
    assert (y > 0.8).all()  # Neg would give -1
    assert "function-name" in [item.rule for item in examine(data).refused]


def test_functions_that_differ_in_their_overload_only():
    negative = function("f", [helper.make_node("Neg", ["a"], ["b"])])
    absolute = function("f", [helper.make_node("Abs", ["a"], ["b"])])
    absolute.overload = "b"
    made = with_functions(negative, absolute)
    made.graph.node[0].overload = "b"
    data = made.SerializeToString()
    (y,) = make_session(data).run(None, {"x": -np.ones((1, 2), np.float32)})
    assert (y == 1).all()
    (finding,) = inspect(data)
    assert finding.rule == "function-unused"


# Rightful files that were refused once: what ONNX's full check and onnxruntime take.
def unsorted():
    nodes = [
        helper.make_node("Abs", ["t"], ["y"]),
        helper.make_node("Relu", ["x"], ["t"]),
    ]
    return model(nodes)


def unsorted_around_a_branch():
    made = model([within_if([helper.make_node("Neg", ["t"], ["z"])])])
    made.graph.node[0].output[:] = ["y"]
    made.graph.node.append(helper.make_node("Relu", ["x"], ["t"]))
    made.graph.input.append(value("c", (), TensorProto.BOOL))
    return separate(made)


def separate(made):
    """Each branch with names of its own, as onnxruntime wants it."""
    (other,) = [a.g for a in made.graph.node[0].attribute if a.name == "else_branch"]
    other.node[0].output[:] = ["z2"]
    other.output[0].name = "z2"
    return made


def repeats_an_outer_name():
    made = model([within_if([helper.make_node("Neg", ["t"], ["z"])])])
    made.graph.node[0].output[:] = ["y"]
    made.graph.node.insert(0, helper.make_node("Relu", ["x"], ["t"]))
    made.graph.input.append(value("c", (), TensorProto.BOOL))
    for attribute in made.graph.node[1].attribute:
        attribute.g.value_info.append(value("t"))
    made.graph.node[1].attribute[1].g.output[0].name = "z2"
    for attribute in made.graph.node[1].attribute:
        attribute.g.node[0].output[:] = [attribute.g.output[0].name]
    return made


def without_inference(outer: str, **attributes):
    nodes = [
        helper.make_node(
            "Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0]
        ),
        helper.make_node(outer, ["s"], ["y"], **attributes),
    ]
    return model(nodes, opsets=(("", 20), ("ai.onnx.ml", 3)))


RIGHTFUL = {
    "unsorted": (unsorted, {"node-order"}),
    "unsorted around a branch": (unsorted_around_a_branch, {"node-order", "branch-if"}),
    "a branch repeats an outer name": (repeats_an_outer_name, {"branch-if"}),
    "no inference before Concat": (lambda: without_inference("Concat", axis=1), set()),
    "no inference before Identity": (lambda: without_inference("Identity"), set()),
    "an operator set twice": (
        lambda: model(opsets=(("", 20), ("ai.onnx", 20))),
        {"opset-twice"},
    ),
}


@pytest.mark.parametrize("name", RIGHTFUL)
def test_rightful_files(name):
    make, expected = RIGHTFUL[name]
    data = make().SerializeToString()
    make_session(data)
    assert {item.rule for item in inspect(data)} == expected


def test_nodes_that_need_each_other_stay_refused():
    nodes = [
        helper.make_node("Abs", ["t"], ["y"]),
        helper.make_node("Relu", ["y"], ["t"]),
    ]
    (finding,) = inspect(model(nodes).SerializeToString())
    assert finding.rule == "checker"


def test_sizes_are_bounded_beside_operators_without_inference():
    """What inference can know is still held to the limit."""
    made = bomb()
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    made.graph.node.append(
        helper.make_node(
            "Scaler", ["x"], ["s2"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0]
        )
    )
    made.graph.node.append(helper.make_node("Identity", ["s2"], ["unused"]))
    assert [f.rule for f in examine(made.SerializeToString()).refused] == ["dimension"]


@pytest.mark.slow
def test_shared_cases(shared_data):
    folder = shared_data.parent / "cases" / "models"
    if not folder.is_dir():
        pytest.skip("the shared cases are not here")
    refused = {
        path.name: [item.rule for item in examine(path.read_bytes()).refused]
        for path in sorted(folder.rglob("*.onnx"))
    }
    expected = {"ir.onnx": ["ir-version", "opset-version"]}
    expected["model.onnx"] = ["external-data"] * 2  # until `import` embeds it
    assert {name: rules for name, rules in refused.items() if rules} == expected
    found = inspect((folder / "trainmode.onnx").read_bytes())
    assert [item.rule for item in found] == ["operator-random"]
