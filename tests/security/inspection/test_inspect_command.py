"""`python -m security inspect`: what it prints, and its exit codes."""

from __future__ import annotations

import argparse
import json

import pytest
from onnx import helper

from security.commands import inspect
from security.errors import AssessmentError
from security.inspection.findings import RULES
from tests.security.inspection.test_backdoor import BACKDOORS, graph
from tests.security.inspection.test_structure import model


@pytest.fixture
def command(capsys, tmp_path):
    parser = argparse.ArgumentParser()
    inspect.add_parser(parser.add_subparsers())

    def run(made, *options):
        path = tmp_path / "m.onnx"
        path.write_bytes(made.SerializeToString())
        args = parser.parse_args(["inspect", str(path), *options])
        return args.run(args), capsys.readouterr().out

    return run


def backdoored():
    _, body, extra = BACKDOORS["Equal to Where"]
    return graph(body, **extra)


def test_clean(command):
    code, text = command(model())
    assert code == 0
    assert text.splitlines() == [
        "model       graph g, ir version 10, model version 0",
        "opsets      ai.onnx 20",
        "operators   Relu 1",
        "inputs      x  FLOAT[n, 2]",
        "outputs     y  FLOAT[n, 2]",
        "0 findings; 1 nodes, 0 initializers, 0 functions",
    ]


def test_a_warning(command):
    code, text = command(backdoored())
    assert code == 0
    first, second, third, *rest = text.splitlines()
    assert first.startswith("warning     branch-select         graph/node[5]: Where")
    assert second.strip().startswith("Trigger: input 'x' -> Slice")
    assert third.strip() == RULES["branch-select"].remedy
    assert rest[-1].startswith("1 findings; 6 nodes")
    assert command(backdoored(), "--strict")[0] == 1


def test_an_error(command):
    code, text = command(model(ir=99))
    assert code == 1
    assert text.startswith("error       ir-version            -: IR version 99")


def test_json(command):
    code, text = command(backdoored(), "--json")
    answer = json.loads(text)
    assert code == 0
    assert answer["counts"]["nodes"] == 6
    assert [item["rule"] for item in answer["findings"]] == ["branch-select"]
    assert set(answer["findings"][0]) == {
        *("severity", "rule", "where", "message", "explanation", "remedy")
    }
    assert answer["description"]["operators"]["Where"] == 1


def test_a_bundle(bundle_folder, command, capsys):
    args = argparse.Namespace(model=bundle_folder, json=True, strict=False)
    code = inspect.run(args)
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert code == int(any(item["severity"] == "error" for item in findings))


@pytest.mark.parametrize("name", ["nothing.onnx", "folder"])
def test_no_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    args = argparse.Namespace(model=tmp_path / name, json=False, strict=False)
    with pytest.raises(AssessmentError, match=r"nothing|model\.onnx"):
        inspect.run(args)


def test_a_hostile_name_stays_on_one_line(command):
    node = helper.make_node("Relu\n\x1b[2Jerror", ["x"], ["y"])
    _, text = command(model([node]))
    assert "\x1b" not in text
    assert all(line.isprintable() for line in text.splitlines())
    assert "operators   Relu\\n\\x1b[2Jerror 1" in text.splitlines()


def test_texts_that_nobody_runs_are_shown(command):
    made = model()
    made.producer_name, made.producer_version = "exporter", "2.1"
    made.graph.doc_string = "call me\n"
    made.metadata_props.add(key="author", value="ida" * 100)
    made.graph.node[0].attribute.append(helper.make_attribute("note", "z" * 101))
    made.graph.input[0].doc_string = "pixels"
    _, text = command(made)
    lines = text[text.index("strings  ") :].splitlines()
    assert [line[12:] for line in lines[:-1]] == [
        f"model metadata 'author'  300 characters: '{('ida' * 100)[:60]}'",
        "graph doc_string  8 characters: 'call me\\n'",
        "graph input 'x' doc_string  6 characters: 'pixels'",
        f"graph/node[0]/note  101 characters: b'{'z' * 60}'",
    ]
    assert "producer exporter 2.1" in text


def test_what_is_refused_is_described_too_and_in_bounds(command):
    many = [helper.make_node(f"Op{i}", ["x"], ["y"]) for i in range(200)]
    made = model(many)
    for i in range(200):
        made.metadata_props.add(key=f"k{i}", value="v")
    code, text = command(made, "--json")
    described = json.loads(text)["description"]
    assert code == 1
    assert len(described["operators"]) == 50
    assert described["strings"]["and more"] == "150 texts"


def test_a_color_for_each_severity(command, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[33mwarning" in command(backdoored())[1]
    assert "\x1b[1;31merror" in command(model(ir=99))[1]
    assert "\x1b" not in command(backdoored(), "--no-color")[1]
