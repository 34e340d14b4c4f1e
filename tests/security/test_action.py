"""The steps of action.yml, run by bash as a runner runs them, but for installing."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.security.inspection.test_inspect_command import backdoored
from tests.security.inspection.test_structure import model
from tests.support.actions import ACTION, STEPS, Runner
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
