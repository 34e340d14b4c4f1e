"""The steps of action.yml, run by bash as a runner runs them, but for installing."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from onnx import helper

from security.commands import main
from tests.security.inspection.test_inspect_command import backdoored
from tests.security.inspection.test_structure import model
from tests.support.actions import ACTION, STEPS, Runner, blocks
from tests.support.servers import ROOT


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A checkout with three models, where the toolkit is this tree's."""
    workspace = tmp_path / "workspace"
    for name, made in (
        ("a.onnx", model()),
        ("sub/b c.onnx", backdoored()),
        ("bad/c.onnx", model(ir=99)),
    ):
        path = workspace / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.SerializeToString())
    (workspace / ".git").mkdir()
    command = tmp_path / "temp" / "sealgate" / "bin" / "sealgate-toolkit"
    command.parent.mkdir(parents=True)
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m security "$@"\n'
    )
    command.chmod(0o755)
    return Runner(workspace, tmp_path / "temp")


def test_models_that_are_in_order(runner: Runner) -> None:
    result, outputs = runner.step("Inspect", {"model": "models/*.onnx\nmodels/sub/*\n"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert outputs == {"sarif": "inspection.sarif"}
    (run,) = json.loads((runner.workspace / "inspection.sarif").read_text())["runs"]
    places = [item["location"]["uri"] for item in run["artifacts"]]
    assert places == ["models/a.onnx", "models/sub/b%20c.onnx"]
    assert [item["ruleId"] for item in run["results"]] == ["branch-select"]


@pytest.mark.parametrize(("fail_on", "code"), [("error", 1), ("never", 0)])
def test_findings_fail_as_asked_and_are_written(
    runner: Runner, fail_on: str, code: int
) -> None:
    inputs = {"model": "models/**/*.onnx", "fail-on": fail_on, "sarif": "out/m.sarif"}
    result, outputs = runner.step("Inspect", inputs)
    assert result.returncode == code
    assert outputs == {"sarif": "out/m.sarif"}
    (run,) = json.loads((runner.workspace / "out" / "m.sarif").read_text())["runs"]
    assert {item["level"] for item in run["results"]} == {"error", "warning"}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"model": "models/none/*.onnx"}, "there is no models/none/*.onnx"),
        ({"model": "models/a.onnx\nnone.onnx"}, "there is no none.onnx"),
        ({"model": "\n"}, "the input model names nothing"),
        ({"model": "$(touch pwned).onnx"}, "there is no $(touch pwned).onnx"),
        ({"model": '"; touch pwned; "'}, "there is no"),
        ({"model": "models/a.onnx", "policy": "p"}, "policy and trust come together"),
        ({"model": "models/a.onnx", "trust": "t"}, "policy and trust come together"),
        (
            {"model": "models/a.onnx", "policy": "p", "trust": "t"},
            "policy and trust are for bundles",
        ),
        ({"model": "models/a.onnx", "fail-on": "$(touch pwned)"}, ""),
    ],
)
def test_what_cannot_be_done_is_no_success(
    runner: Runner, inputs: dict[str, str], message: str
) -> None:
    result, outputs = runner.step("Inspect", inputs)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stdout
    assert outputs == {}
    assert not list(runner.workspace.rglob("pwned"))


def test_a_name_like_an_option_is_a_name(runner: Runner) -> None:
    (runner.workspace / "--version").write_bytes(model(ir=99).SerializeToString())
    result, _ = runner.step("Inspect", {"model": "--version*"})
    assert result.returncode == 1
    assert "ir-version" in result.stdout


def test_no_file_hides_behind_the_names_of_others(runner: Runner) -> None:
    """A name with a newline in it was taken for two, of which there were two."""
    hidden = runner.workspace / "models/a.onnx\nmodels/a.onnx"
    hidden.parent.mkdir()
    hidden.write_bytes(model(ir=99).SerializeToString())
    shutil.rmtree(runner.workspace / "models" / "bad")
    result, _ = runner.step("Inspect", {"model": "models/**/*.onnx"})
    assert result.returncode == 1
    assert "ir-version" in result.stdout


def test_no_name_in_a_model_is_a_command_to_the_runner(runner: Runner) -> None:
    """Runners heed `::set-output …` on any line, blanks before it or not."""
    hostile = "::set-output name=sarif::/etc/passwd"
    made = model()
    made.graph.output.append(helper.make_tensor_value_info(hostile, 1, [1, 2]))
    (runner.workspace / "h.onnx").write_bytes(made.SerializeToString())
    result, _ = runner.step("Inspect", {"model": "h.onnx"})
    lines = [line.strip() for line in result.stdout.splitlines()]
    commands = [line for line in lines if line.startswith("::")]
    assert any(hostile in line for line in commands)
    stop, *_, end = commands
    mark = stop.removeprefix("::stop-commands::")
    assert re.fullmatch("[0-9a-f]{32}", mark)
    assert end == f"::{mark}::"
    assert lines[-1] == end
    again, _ = runner.step("Inspect", {"model": "h.onnx"})
    assert mark not in again.stdout


def test_an_older_file_is_not_the_result(runner: Runner) -> None:
    (runner.workspace / "inspection.sarif").write_text("{}")
    inputs = {"model": "models/a.onnx", "fail-on": "nonsense"}
    result, outputs = runner.step("Inspect", inputs)
    assert (result.returncode, outputs) == (2, {})


def test_nothing_of_the_checkout_is_imported(runner: Runner, tmp_path: Path) -> None:
    """`python -m` looks for modules where it runs: in whoever's pull request."""
    for name in ("venv", "pip", "ensurepip", "secrets"):
        (runner.workspace / f"{name}.py").write_text("open('pwned', 'w')")
    runner = Runner(runner.workspace, tmp_path / "fresh", tmp_path / "no-action")
    runner.temp.mkdir()
    result, _ = runner.step("Install", {"python": sys.executable})
    assert "requirements/scanner.txt" in result.stderr  # it went as far as that
    assert not list(runner.workspace.rglob("pwned"))


def test_the_hook_takes_files_for_files(capsys: pytest.CaptureFixture[str]) -> None:
    """pre-commit appends names; one may look like an option."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    shown = yaml.safe_load(blocks("ci.md")[".pre-commit-config.yaml"])
    (used,) = shown["repos"][0]["hooks"]
    for given in (hook["args"], used["args"]):
        arguments = [*hook["entry"].split()[1:], *given, "--sarif=none.onnx"]
        assert main(arguments) == 2
        assert "--sarif=none.onnx" in capsys.readouterr().err


def test_a_bundle_must_meet_the_policy(runner: Runner, pristine: Path) -> None:
    shutil.copytree(pristine / "bundle", runner.workspace / "toy")
    for name in ("policy.toml", "trust.json"):
        shutil.copy(pristine / name, runner.workspace)
    inputs = {"model": "toy", "policy": "policy.toml", "trust": "trust.json"}
    result, _ = runner.step("Inspect", inputs | {"fail-on": "never"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert "verified toy:1.0.0" in result.stdout
    (runner.workspace / "toy" / "model.onnx").write_bytes(b"another")
    result, _ = runner.step("Inspect", inputs | {"fail-on": "never"})
    assert result.returncode == 1
    assert "about other bytes [check 3]" in result.stderr


def test_no_input_is_text_of_a_script() -> None:
    for step in STEPS.values():
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"
        assert "uses" not in step
    asked = {
        name
        for step in STEPS.values()
        for name in re.findall(r"inputs\.([a-z-]+)", " ".join(step["env"].values()))
    }
    assert asked == set(ACTION["inputs"])
