"""Every rule has a file that breaks it; the documented table is the code's."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from security.commands.missing import needed
from security.inspection import confined, structure
from security.inspection.findings import RULES, SEVERITIES, Finding, StructureLimits
from security.inspection.structure import inspect
from tests.security.inspection import test_backdoor
from tests.security.inspection.test_structure import (
    FAULTS,
    changed,
    external,
    function,
    loop,
    model,
    raw,
    value,
    with_functions,
    within_if,
)
from tests.support import inspecting
from tests.support.servers import ROOT

DOCS = ROOT / "docs" / "structure.md"


def many_calls():
    """Eight functions, each calling the next ten times: 10^8 nodes."""
    chain = []
    for level in range(8):
        names = ["a", *(f"v{i}" for i in range(9)), "b"]
        kind = {"op_type": f"f{level + 1}", "domain": "mine"}
        if level == 7:
            kind = {"op_type": "Neg"}
        nodes = [
            helper.make_node(inputs=[names[i]], outputs=[names[i + 1]], **kind)
            for i in range(10)
        ]
        chain.append(function(f"f{level}", nodes))
    return with_functions(*chain, call="f0")


def twice_attribute():
    node = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.1)
    node.attribute.add().CopyFrom(helper.make_attribute("alpha", 9.0))
    return model([node])


def nested_loops():
    outer = loop(np.array(1000))
    inner = loop(np.array(1000)).graph.node[0]
    inner.input[:] = ["trips", "", "carried"]
    inner.output[:] = ["out"]
    for name, new in (("i", "i2"), ("going", "g2"), ("carried", "c2")):
        for entry in inner.attribute[0].g.input:
            entry.name = new if entry.name == name else entry.name
        for node in inner.attribute[0].g.node:
            node.input[:] = [new if n == name else n for n in node.input]
    for old, new in (("on", "on2"), ("out", "out2")):
        for entry in inner.attribute[0].g.output:
            entry.name = new if entry.name == old else entry.name
        for node in inner.attribute[0].g.node:
            node.output[:] = [new if n == old else n for n in node.output]
    body = outer.graph.node[0].attribute[0].g
    body.node[1].CopyFrom(inner)
    return outer


def hidden_trips():
    """A branch names a constant as the graph names an input: it is another value."""
    result = loop(np.array(3))
    result.graph.initializer.pop()
    result.graph.input.append(value("trips", (), TensorProto.INT64))
    trips = numpy_helper.from_array(np.array(3), "trips")
    node = within_if([helper.make_node("Neg", ["x"], ["z"])], initializer=[trips])
    node.output[:] = ["unused"]
    result.graph.input.append(value("c", (), TensorProto.BOOL))
    result.graph.node.insert(0, node)
    return result


def default_trips():
    """A default is no constant: the caller may send another."""
    result = loop(np.array(3))
    result.graph.input.append(value("trips", (), TensorProto.INT64))
    return result


def marked(location):
    tensor = external()
    tensor.external_data[0].value = location
    return tensor


MORE_FAULTS = {
    "functions that multiply": ("expansion", many_calls),
    "an attribute twice": ("attribute-twice", twice_attribute),
    "an output twice": (
        "output",
        lambda: changed(model(), lambda m: m.graph.output.append(value("y"))),
    ),
    "no output": ("output", lambda: changed(model(), lambda m: m.graph.output.pop())),
    "an output without a name": (
        "output",
        lambda: changed(model(), lambda m: m.graph.output.append(value(""))),
    ),
    "an output twice in a branch": (
        "output",
        lambda: model(
            [
                changed(
                    within_if([helper.make_node("Neg", ["x"], ["z"])]),
                    lambda n: n.attribute[0].g.output.append(value("z")),
                )
            ]
        ),
    ),
    "devices": (
        "device-configuration",
        lambda: changed(model(), lambda m: m.configuration.add(name="d")),
    ),
    "a node's device": (
        "device-configuration",
        lambda: changed(
            model(),
            lambda m: m.graph.node[0].device_configurations.add(configuration_id="d"),
        ),
    ),
    "loops in loops": ("loop-bound", nested_loops),
    "the loader's own memory": (
        "external-data",
        lambda: model(initializers=[marked("*/_ORT_MEM_ADDR_/*")]),
    ),
    "external in a list of tensors": (
        "external-data",
        lambda: changed(
            model(),
            lambda m: (
                m.graph.node[0]
                .attribute.add(name="t", type=9)
                .tensors.append(external())
            ),
        ),
    ),
    "external in a sparse attribute": (
        "external-data",
        lambda: changed(
            model(),
            lambda m: (
                m.graph.node[0]
                .attribute.add(name="s", type=11)
                .sparse_tensor.values.CopyFrom(external())
            ),
        ),
    ),
    "external in a function nobody calls": (
        "external-data",
        lambda: with_functions(
            function(),
            function("g", [helper.make_node("Constant", [], ["b"], value=external())]),
        ),
    ),
    "a default of a function": (
        "external-data",
        lambda: with_functions(
            changed(
                function(),
                lambda f: f.attribute_proto.append(
                    helper.make_attribute("t", external())
                ),
            )
        ),
    ),
    "a foreign operator in a function nobody calls": (
        "domain",
        lambda: with_functions(
            function(), function("g", [helper.make_node("E", ["a"], ["b"], domain="e")])
        ),
    ),
    "a large element of a sequence": (
        "dimension",
        lambda: changed(
            model(),
            lambda m: m.graph.value_info.append(
                helper.make_tensor_sequence_value_info("s", 1, [1 << 40])
            ),
        ),
    ),
    "session options by another name": (
        "session-options",
        lambda: changed(model(), lambda m: m.metadata_props.add(key="ORT_config")),
    ),
}

WARNED = {
    "function-unused": lambda: with_functions(function(), function("g")),
    "loop-open": hidden_trips,
    "weights-overridable": lambda: changed(
        model(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            initializers=[raw([2], b"\0" * 8)],
        ),
        lambda m: m.graph.input.append(value("w", [2])),
    ),
}


@pytest.mark.parametrize("fault", MORE_FAULTS)
def test_faults(fault):
    rule, make = MORE_FAULTS[fault]
    refused = inspecting.examine(make().SerializeToString()).refused
    assert rule in [item.rule for item in refused], refused


@pytest.mark.parametrize("rule", WARNED)
def test_warnings(rule):
    inspection = inspecting.examine(WARNED[rule]().SerializeToString())
    assert rule in [item.rule for item in inspection.findings]
    assert not inspection.refused


def test_a_default_is_no_trip_count():
    findings = inspect(default_trips().SerializeToString())
    assert "loop-open" in [item.rule for item in findings]


def test_every_rule_has_a_file():
    tested = {rule for rule, _ in (FAULTS | MORE_FAULTS).values()} | WARNED.keys()
    tested |= {rule for rule, _, _ in test_backdoor.BACKDOORS.values()}
    for expected, _, _ in test_backdoor.BENIGN.values():
        tested |= set(expected)
    tested |= {
        "dead-code",
        "input-unused",
    }  # tests/security/inspection/test_backdoor.py
    tested |= {
        "file-size",
        "inspection-limits",
    }  # tests/security/inspection/test_structure.py
    tested |= {"format", "unknown-field", "field-twice"}  # test_wire.py
    tested |= {"opset-twice", "node-order"}  # test_engine.py
    tested |= {"integer-division"}  # test_execution.py
    tested |= {
        "operator-random",
        "domain-unused",
    }  # tests/security/inspection/test_structure.py
    assert tested == set(RULES)
    assert {rule.severity for rule in RULES.values()} == set(SEVERITIES)


def table() -> str:
    rows = [
        f"| `{name}` | {rule.severity} | {rule.title} | {rule.why} | {rule.remedy} |"
        for name, rule in RULES.items()
    ]
    head = (
        "| rule | severity | what must hold | why | what to do |\n" + "|---" * 5 + "|\n"
    )
    return head + "\n".join(rows) + "\n"


def test_the_documented_table_is_the_code():
    assert table() in DOCS.read_text()


def test_the_documented_limits_are_the_code():
    text = DOCS.read_text()
    for field in dataclasses.fields(StructureLimits):
        assert f"`{field.name}` {field.default:,}" in text, field.name


def test_the_documented_warnings_are_tested():
    """Each innocent graph that is warned about is named in the documentation."""
    text = re.sub(r"\s+", " ", DOCS.read_text())
    for name, (expected, _, _) in test_backdoor.BENIGN.items():
        if any(RULES[rule].severity == "warning" for rule in expected):
            assert name in text, name


def child(monkeypatch, tmp_path, code):
    """A process that has been taken over, in place of the real one."""
    package = tmp_path / "taken_over.py"
    package.write_text(code)
    monkeypatch.setattr(structure, "_CHILD", "taken_over")
    monkeypatch.setattr(confined, "_ROOT", tmp_path)


def test_an_answer_without_end(monkeypatch, tmp_path):
    child(monkeypatch, tmp_path, "while True: print('x' * 65536)")
    assert [item.rule for item in inspect(b"x")] == ["inspection-limits"]


def test_a_child_that_neither_reads_nor_writes(monkeypatch, tmp_path):
    child(monkeypatch, tmp_path, "import time; time.sleep(60)")
    limits = dataclasses.replace(StructureLimits(), wall_s=0.5)
    assert [item.rule for item in inspect(b"x" * (1 << 20), limits)] == [
        "inspection-limits"
    ]


MISSES = """
import sys
from security.inspection.confined import load
def libraries():
    raise ModuleNotFoundError("none", name={name!r})
load(libraries)
"""


def misses(monkeypatch, tmp_path, name):
    for room in ("security", "sealgate"):
        (tmp_path / room).symlink_to(ROOT / room)
    child(monkeypatch, tmp_path, MISSES.format(name=name))


def test_a_library_that_is_missing_is_no_finding(monkeypatch, tmp_path):
    misses(monkeypatch, tmp_path, "onnx.checker")
    with pytest.raises(ModuleNotFoundError) as caught:
        inspect(b"x")
    assert caught.value.name == "onnx.checker"
    install = 'pip install "sealgate-toolkit[inspect]"'
    assert needed(caught.value, "inspect") == f"needs onnx: {install}"


@pytest.mark.parametrize("name", ["", "a\x1b[2J", "x y", "n." * 60])
def test_no_name_of_a_library_is_a_finding(monkeypatch, tmp_path, name):
    misses(monkeypatch, tmp_path, name)
    assert [item.rule for item in inspect(b"x")] == ["inspection-limits"]


CONFINED = """
import json, os, socket, sys
from security.inspection import child
def tries():
    for name, attempt in {
        "read": lambda: open("/etc/passwd"),
        "write": lambda: open("out", "w"),
        "socket": socket.socket,
        "pipe": os.pipe,
    }.items():
        try:
            attempt()
        except OSError:
            continue
        yield name
def inspect(tools, limits, stream):
    done = [*tries(), *(key for key in os.environ if key.startswith("SECRET"))]
    return tuple(child.Finding("parse", name) for name in done), {}, {}
child._inspect = inspect
child._main()
"""


def test_the_child_can_open_nothing(monkeypatch, tmp_path):
    (tmp_path / "security").symlink_to(ROOT / "security")
    (tmp_path / "sealgate").symlink_to(ROOT / "sealgate")
    monkeypatch.setenv("SECRET", "1")
    child(monkeypatch, tmp_path, CONFINED)
    assert inspect(b"x") == ()


def test_large_weights_are_not_copied():
    """40 MB of weights within an allowance that their copies would exceed."""
    weights = raw([10 << 20], bytes(40 << 20))
    made = model([helper.make_node("Identity", ["w"], ["y"])], initializers=[weights])
    made.graph.output[0].CopyFrom(value("y", [10 << 20]))
    data = made.SerializeToString()
    assert {item.rule for item in inspect(data)} == {"input-unused", "output-constant"}


def test_explanations_are_bounded_and_ascii():
    name = "n" * 5000 + "é"
    nodes = [
        helper.make_node("Equal", ["x", "w"], ["c"], name=name),
        helper.make_node("ReduceMax", ["f"], ["m"], keepdims=0),
        helper.make_node("Where", ["b", "x", "w"], ["y"], name=name),
    ]
    nodes.insert(1, helper.make_node("Cast", ["c"], ["f"], to=1))
    nodes.insert(3, helper.make_node("Cast", ["m"], ["b"], to=9))
    made = model(nodes, initializers=[raw([2], b"\0" * 8)])
    (finding,) = inspect(made.SerializeToString())
    assert finding.rule == "branch-select"
    assert finding.explanation.isascii()
    assert len(finding.explanation) <= 1500
    assert isinstance(finding, Finding)
