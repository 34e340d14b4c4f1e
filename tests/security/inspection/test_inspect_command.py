"""`python -m security inspect`: what it prints, and its exit codes."""

from __future__ import annotations

import argparse
import json

import pytest
from onnx import helper

from security.commands import inspect
from security.errors import AssessmentError
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
    assert text == "0 findings; 1 nodes, 0 initializers, 0 functions\n"


def test_a_warning(command):
    code, text = command(backdoored())
    assert code == 0
    first, second, _ = text.splitlines()
    assert first.startswith("warning branch-select         graph/node[5]: Where")
    assert second.strip().startswith("Trigger: input 'x' -> Slice")
    assert command(backdoored(), "--strict")[0] == 1


def test_an_error(command):
    code, text = command(model(ir=99))
    assert code == 1
    assert text.startswith("error   ir-version            -: IR version 99")


def test_json(command):
    code, text = command(backdoored(), "--json")
    answer = json.loads(text)
    assert code == 0
    assert answer["counts"]["nodes"] == 6
    assert [item["rule"] for item in answer["findings"]] == ["branch-select"]
    assert set(answer["findings"][0]) == {
        *("severity", "rule", "where", "message", "explanation")
    }


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
    assert len(text.splitlines()) == 2
