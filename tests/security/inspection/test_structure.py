"""Structural inspection: one crafted file per rule, and files made by others."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from security.inspection.findings import StructureLimits
from security.inspection.rules import walk_model
from security.inspection.structure import examine, inspect
from tests.support import inspecting

LIMITS = StructureLimits()


def value(name, shape=("n", 2), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes=None, *, opsets=(("", 20),), ir=10, initializers=(), **graph):
    nodes = [helper.make_node("Relu", ["x"], ["y"])] if nodes is None else nodes
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [value("x")],
            [value("y")],
            initializer=list(initializers),
            **graph,
        ),
        opset_imports=[helper.make_opsetid(*item) for item in opsets],
        ir_version=ir,
    )


def external() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="etc/passwd")
    return tensor


def branch(nodes, name="b", **graph):
    return helper.make_graph(nodes, name, [], [value("z")], **graph)


def within_if(nodes, depth=1, **graph):
    """Nodes inside the branches of Ifs within Ifs."""
    inner = branch(nodes, **graph)
    for level in range(depth):
        node = helper.make_node(
            "If", ["c"], ["z"], then_branch=inner, else_branch=inner
        )
        inner = branch([node], name=f"level{level}")
    return inner.node[0]


def function(name="f", nodes=None, domain="mine"):
    nodes = nodes or [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    return helper.make_function(domain, name, ["a"], ["b"], nodes, opsets)


def with_functions(*functions, call="f"):
    result = model(
        [helper.make_node(call, ["x"], ["y"], domain="mine")],
        opsets=(("", 20), ("mine", 1)),
    )
    result.functions.extend(functions)
    return result


def changed(result, change: Callable[[object], object]):
    change(result)
    return result


def raw(dims, data=b"", kind=TensorProto.FLOAT):
    return TensorProto(name="w", data_type=kind, dims=dims, raw_data=data)


def constant(tensor):
    return helper.make_node("Constant", [], ["z"], value=tensor)


def loop(count: np.ndarray):
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["on"]),
            helper.make_node("Identity", ["carried"], ["out"]),
        ],
        "body",
        [
            value("i", (), TensorProto.INT64),
            value("going", (), TensorProto.BOOL),
            value("carried"),
        ],
        [value("on", (), TensorProto.BOOL), value("out")],
    )
    return model(
        [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)],
        initializers=[numpy_helper.from_array(count, "trips")],
    )


def sparse():
    result = model()
    result.graph.sparse_initializer.add(
        values=external(), indices=raw([1], b"\0" * 8, TensorProto.INT64), dims=[4]
    )
    return result


def bomb():
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape")
    return model(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["s"]),
            helper.make_node("Add", ["x", "s"], ["y"]),
        ],
        initializers=[shape],
    )


def nodes_of(count):
    names = ["x", *(f"v{index}" for index in range(count - 1)), "y"]
    return [
        helper.make_node("Relu", [left], [right])
        for left, right in itertools.pairwise(names)
    ]


FAULTS: dict[str, tuple[str, Callable[[], object]]] = {
    "no graph": ("parse", lambda: onnx.ModelProto(ir_version=10)),
    "name that is no text": (
        "parse",
        lambda: onnx.ModelProto.FromString(
            model().SerializeToString().replace(b"Relu", b"Re\x80u")
        ),
    ),
    "old IR": ("ir-version", lambda: model(ir=2)),
    "future IR": ("ir-version", lambda: model(ir=99)),
    "no operator set": ("opset-missing", lambda: model(opsets=())),
    "imported twice": (
        "opset-missing",
        lambda: model(opsets=(("", 20), ("ai.onnx", 13))),
    ),
    "future operator set": ("opset-version", lambda: model(opsets=(("", 314159),))),
    "operator set 0": ("opset-version", lambda: model(opsets=(("", 0),))),
    "external initializer": (
        "external-data",
        lambda: model(initializers=[external()]),
    ),
    "external, undeclared": (
        "external-data",
        lambda: model(
            initializers=[changed(external(), lambda t: t.ClearField("data_location"))]
        ),
    ),
    "external sparse": ("external-data", sparse),
    "external attribute": ("external-data", lambda: model([constant(external())])),
    "external in a branch": (
        "external-data",
        lambda: model([within_if([constant(external())], 2)]),
    ),
    "external initializer in a branch": (
        "external-data",
        lambda: model([within_if([], 2, initializer=[external()])]),
    ),
    "external in a function": (
        "external-data",
        lambda: with_functions(function(nodes=[constant(external())])),
    ),
    "foreign domain": (
        "domain",
        lambda: model(
            [helper.make_node("Evil", ["x"], ["y"], domain="com.evil")],
            opsets=(("", 20), ("com.evil", 1)),
        ),
    ),
    "foreign domain in a branch": (
        "domain",
        lambda: model(
            [
                within_if(
                    [helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft")]
                )
            ]
        ),
    ),
    "preview training": (
        "domain",
        lambda: model(
            [helper.make_node("Adam", ["x"], ["y"], domain="ai.onnx.preview.training")]
        ),
    ),
    "unknown operator": (
        "operator",
        lambda: model([helper.make_node("Foo", [], ["y"])]),
    ),
    "operator from later": (
        "operator",
        lambda: model([helper.make_node("Gelu", ["x"], ["y"])], opsets=(("", 13),)),
    ),
    "image decoder": (
        "operator",
        lambda: model([helper.make_node("ImageDecoder", ["x"], ["y"])]),
    ),
    "compiled context": (
        "ep-context",
        lambda: model(
            [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")]
        ),
    ),
    "session options": (
        "session-options",
        lambda: changed(
            model(), lambda m: m.metadata_props.add(key="ort_config", value="{}")
        ),
    ),
    "training graph": (
        "training-graph",
        lambda: changed(model(), lambda m: m.training_info.add()),
    ),
    "too many nodes": ("node-count", lambda: model(nodes_of(LIMITS.max_nodes + 1))),
    "too many initializers": (
        "initializer-count",
        lambda: model(
            initializers=[
                TensorProto(name=f"w{i}", data_type=1, dims=[0])
                for i in range(LIMITS.max_initializers + 1)
            ]
        ),
    ),
    "too many functions": (
        "function-count",
        lambda: with_functions(
            *(function(f"f{i}") for i in range(LIMITS.max_functions + 1)), call="f0"
        ),
    ),
    "function twice": ("function-name", lambda: with_functions(function(), function())),
    "function over an operator": (
        "function-name",
        lambda: changed(
            model(), lambda m: m.functions.append(function("Relu", domain=""))
        ),
    ),
    "function calls itself": (
        "function-cycle",
        lambda: with_functions(
            function(nodes=[helper.make_node("f", ["a"], ["b"], domain="mine")])
        ),
    ),
    "functions in a circle": (
        "function-cycle",
        lambda: with_functions(
            function("f", [helper.make_node("g", ["a"], ["b"], domain="mine")]),
            function("g", [helper.make_node("f", ["a"], ["b"], domain="mine")]),
        ),
    ),
    "calls too deep": (
        "nesting",
        lambda: with_functions(
            *(
                function(
                    f"f{i}",
                    [helper.make_node(f"f{i + 1}", ["a"], ["b"], domain="mine")],
                )
                for i in range(LIMITS.max_depth)
            ),
            function(f"f{LIMITS.max_depth}"),
            call="f0",
        ),
    ),
    "graphs too deep": (
        "nesting",
        lambda: model([within_if([constant(raw([0]))], LIMITS.max_depth)]),
    ),
    "negative dimension": ("dimension", lambda: model(initializers=[raw([-1])])),
    "overflowing product": (
        "dimension",
        lambda: model(initializers=[raw([1 << 62, 1 << 62])]),
    ),
    "product that wraps to 0": (
        "dimension",
        lambda: model(initializers=[raw([1 << 32, 1 << 32])]),
    ),
    "large declared input": (
        "dimension",
        lambda: changed(model(), lambda m: m.graph.input.append(value("k", [1 << 40]))),
    ),
    "large inferred tensor": ("dimension", bomb),
    "unknown element type": (
        "tensor-type",
        lambda: model(initializers=[raw([1], b"\0" * 4, 99)]),
    ),
    "fewer bytes": ("tensor-bytes", lambda: model(initializers=[raw([4], b"\0" * 12)])),
    "more bytes": ("tensor-bytes", lambda: model(initializers=[raw([4], b"\0" * 20)])),
    "no bytes": ("tensor-bytes", lambda: model([constant(raw([1 << 20]))])),
    "two stores": (
        "tensor-bytes",
        lambda: model(
            initializers=[
                changed(raw([1], b"\0" * 4), lambda t: t.float_data.append(1))
            ]
        ),
    ),
    "segment": (
        "tensor-bytes",
        lambda: model(
            initializers=[
                changed(raw([1], b"\0" * 4), lambda t: setattr(t.segment, "end", 9))
            ]
        ),
    ),
    "endless loop": ("loop-bound", lambda: loop(np.array(1 << 62))),
    "undefined input": (
        "checker",
        lambda: model([helper.make_node("Relu", ["nowhere"], ["y"])]),
    ),
    "shapes that do not fit": (
        "checker",
        lambda: model(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            initializers=[raw([3, 2], b"\0" * 24)],
        ),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault):
    rule, make = FAULTS[fault]
    findings = inspecting.inspect(make().SerializeToString())
    refused = [item for item in findings if item.severity == "error"]
    assert rule in [item.rule for item in refused], findings
    assert all(item.message.isascii() and len(item.message) < 400 for item in findings)


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (
            "operator-random",
            lambda: model([helper.make_node("RandomNormalLike", ["x"], ["y"])]),
        ),
        ("domain-unused", lambda: model(opsets=(("", 20), ("com.microsoft", 1)))),
    ],
)
def test_what_is_only_noted(rule, make):
    inspection = inspecting.examine(make().SerializeToString())
    assert [item.rule for item in inspection.findings] == [rule]
    assert not inspection.refused


@pytest.mark.parametrize(
    "make",
    [
        model,
        lambda: with_functions(function()),
        lambda: loop(np.array(3)),
        lambda: model(opsets=(("ai.onnx", 20),)),
    ],
)
def test_good(make):
    assert inspecting.inspect(make().SerializeToString()) == ()


@pytest.mark.parametrize(
    "kind",
    ["FLOAT16", "BFLOAT16", "INT4", "UINT2", "FLOAT8E4M3FN", "BOOL", "COMPLEX64"],
)
@pytest.mark.parametrize("packed", [True, False])
def test_tensors_of_every_width(kind, packed):
    number = getattr(TensorProto, kind)
    tensor = helper.make_tensor("w", number, [5], [1, 0, 1, 0, 1])
    if packed:
        bits = {"INT4": 4, "UINT2": 2, "FLOAT8E4M3FN": 8, "BOOL": 8, "COMPLEX64": 64}
        tensor = raw([5], b"\0" * math.ceil(5 * bits.get(kind, 16) / 8), number)
    assert walk_model(model(initializers=[tensor]), LIMITS)[0] == ()


def test_counts():
    inspection = examine(
        model(nodes_of(5), initializers=[raw([0])]).SerializeToString()
    )
    assert inspection.counts == {"nodes": 5, "initializers": 1, "functions": 0}


def test_size_is_checked_before_anything_else():
    limits = dataclasses.replace(LIMITS, max_model_bytes=10)
    assert [item.rule for item in inspect(b"x" * 11, limits)] == ["file-size"]


@pytest.mark.parametrize(
    "limits",
    [
        dataclasses.replace(LIMITS, wall_s=0.05),
        dataclasses.replace(LIMITS, memory_bytes=60 << 20),
        dataclasses.replace(LIMITS, cpu_s=0),
    ],
    ids=["wall", "memory", "cpu"],
)
def test_limits_of_the_process(limits):
    findings = inspect(model().SerializeToString(), limits)
    assert [item.rule for item in findings] == ["inspection-limits"]


def test_the_process_sees_no_files_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "onnx.py").write_text("raise SystemExit(3)")
    assert inspect(model().SerializeToString()) == ()
    assert os.listdir(tmp_path) == ["onnx.py"]


@given(st.binary(max_size=200))
@settings(max_examples=15, deadline=None)
def test_any_bytes(data):
    assert any(item.severity == "error" for item in inspect(data))


@given(position=st.floats(0, 0.999), byte=st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_breaks_no_rule_of_ours(position, byte):
    # In process: the walk itself must survive whatever still parses.
    data = bytearray(model(initializers=[raw([2], b"\0" * 8)]).SerializeToString())
    data[int(position * len(data))] = byte
    try:
        changed_model = onnx.ModelProto.FromString(bytes(data))
    except DecodeError:
        return
    walk_model(changed_model, LIMITS)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.onnx"))}


@pytest.mark.slow
def test_valid_but_awkward(shared_data):
    found = {
        name: inspect(data) for name, data in files(shared_data / "onnx-edge").items()
    }
    refused = {
        name: [item.rule for item in findings if item.severity == "error"]
        for name, findings in found.items()
    }
    assert refused.pop("external_matmul.onnx") == ["external-data"]
    assert refused
    assert not any(refused.values()), refused


def test_hostile(shared_data):
    found = {
        name: examine(d) for name, d in files(shared_data / "onnx-hostile").items()
    }
    assert found
    assert all(inspection.refused for inspection in found.values()), found
