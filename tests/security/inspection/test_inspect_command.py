"""`python -m security inspect`: what it prints, and its exit codes."""

from __future__ import annotations

import argparse
import json

import jsonschema
import pytest
from onnx import helper

from security.commands import inspect
from security.errors import AssessmentError
from security.inspection.findings import RULES
from tests.security.inspection.test_backdoor import BACKDOORS, graph
from tests.security.inspection.test_structure import model


def arguments(*words):
    parser = argparse.ArgumentParser()
    inspect.add_parser(parser.add_subparsers())
    return parser.parse_args(["inspect", *map(str, words)])


@pytest.fixture
def command(capsys, tmp_path):
    def run(made, *options):
        path = tmp_path / "m.onnx"
        path.write_bytes(made.SerializeToString())
        args = arguments(path, *options)
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
    for more in (["--strict"], ["--fail-on", "warning"], ["--fail-on", "note"]):
        assert command(backdoored(), *more)[0] == 1


def test_an_error(command):
    code, text = command(model(ir=99))
    assert code == 1
    assert text.startswith("error       ir-version            -: IR version 99")
    assert command(model(ir=99), "--fail-on", "never")[0] == 0


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
    code = inspect.run(arguments(bundle_folder, "--json"))
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert code == int(any(item["severity"] == "error" for item in findings))


@pytest.mark.parametrize("name", ["nothing.onnx", "folder"])
def test_no_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    args = arguments(tmp_path / name)
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


@pytest.fixture
def several(tmp_path):
    """A repository with a model in order, one with a warning, and one with an error."""
    (tmp_path / ".git").mkdir()
    for name, made in (("a", model()), ("b", backdoored()), ("c", model(ir=99))):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / f"{name}.onnx").write_bytes(made.SerializeToString())
    return sorted((tmp_path / "models").iterdir())


def test_several_are_told_apart(several, capsys):
    assert inspect.run(arguments(*several)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in map(str, several)] == [*map(str, several)]
    assert inspect.run(arguments("--json", *several[:2])) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [item["model"] for item in answers] == [*map(str, several[:2])]
    assert [len(item["findings"]) for item in answers] == [0, 1]


def test_sarif_of_several_is_one_run(several, tmp_path, shared_data):
    out = tmp_path / "reports" / "models.sarif"
    assert inspect.run(arguments("--sarif", out, *several)) == 1
    sarif = json.loads(out.read_text())
    schema = shared_data / "spec-sarif" / "sarif-schema-2.1.0.json"
    jsonschema.Draft4Validator(json.loads(schema.read_text())).validate(sarif)
    (run,) = sarif["runs"]
    artifacts = [item["location"]["uri"] for item in run["artifacts"]]
    assert artifacts == [f"models/{name}.onnx" for name in "abc"]
    found = {}
    for result in run["results"]:
        (place,) = result["locations"]
        file = place["physicalLocation"]["artifactLocation"]
        assert artifacts[file["index"]] == file["uri"]
        found[file["uri"]] = (result["ruleId"], result["level"])
    assert found["models/b.onnx"] == ("branch-select", "warning")
    assert found["models/c.onnx"] == ("ir-version", "error")
    assert "models/a.onnx" not in found


def test_sarif_of_one_keeps_its_run(several, tmp_path):
    """Code scanning goes by it when it closes what was mended."""
    ids = []
    for path in (*several[:2], several[1]):
        out = tmp_path / "models.sarif"
        inspect.run(arguments("--sarif", out, "--root", path.parent, path))
        ids.append(json.loads(out.read_text())["runs"][0]["automationDetails"]["id"])
    assert ids[1] == ids[2] == "sealgate-scan/b.onnx/inspection"
    assert ids[0] == "sealgate-scan/a.onnx/inspection"


def test_a_file_that_is_missing_beside_others_is_no_finding(several, tmp_path):
    with pytest.raises(AssessmentError, match="gone"):
        inspect.run(arguments(several[0], tmp_path / "gone.onnx"))
