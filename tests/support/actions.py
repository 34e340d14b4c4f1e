"""The composite action (action.yml) by its own steps, as a runner executes them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.servers import ROOT

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}


@dataclass(frozen=True)
class Runner:
    """A job of a workflow.

    Attributes:
        workspace: its checkout, where the steps run.
        temp: its temporary folder, which the steps share.
        action: the checkout of the action.
    """

    workspace: Path
    temp: Path
    action: Path = ROOT

    def step(
        self, name: str, inputs: Mapping[str, str], **extra: str
    ) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
        """Run a step, by `shell: bash`; its end, and its outputs."""
        given = {key: item.get("default") for key, item in ACTION["inputs"].items()}
        given |= inputs
        outputs = self.temp / "outputs"
        outputs.write_text("")
        step = STEPS[name]
        variables = {
            key: _filled(value, given) for key, value in step.get("env", {}).items()
        }
        result = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.workspace,
            env={
                **{
                    k: v
                    for k, v in os.environ.items()
                    if k.startswith(("PIP_", "PATH"))
                },
                "HOME": str(self.temp),
                "RUNNER_TEMP": str(self.temp),
                "GITHUB_WORKSPACE": str(self.workspace),
                "GITHUB_ACTION_PATH": str(self.action),
                "GITHUB_OUTPUT": str(outputs),
                **variables,
                **extra,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        pairs = (line.partition("=") for line in outputs.read_text().splitlines())
        return result, {key: value for key, _, value in pairs}


def _filled(text: str, inputs: Mapping[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda m: inputs[m[1]], text)


def blocks(page: str) -> dict[str, str]:
    """YAML files that a page shows, by the name in their first line."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"```yaml\n(?:# (\S+)\n)?(.*?)```", text, re.DOTALL)
    return {name or "workflow.yml": body for name, body in found}
