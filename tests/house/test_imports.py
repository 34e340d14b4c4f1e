"""The walls: import-linter's contracts hold, and each fails on a planted violation."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.servers import ROOT, environment

PACKAGES = ("sealgate", "service", "security", "models")
TOOLKIT = (
    "art", "dp_accounting", "onnx", "onnxscript", "opacus", "pandas", "scipy",
    "sklearn", "torch",
)  # fmt: skip


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command as c; c()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder,
        env=environment(folder) | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages and their contracts, for new modules."""
    return copied(tmp_path_factory.mktemp("walls"))


def copied(folder: Path) -> Path:
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def contracts() -> list[str]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [item["name"] for item in document["tool"]["importlinter"]["contracts"]]


def broken(result: subprocess.CompletedProcess[str]) -> set[str]:
    return {name for name in contracts() if f"\n{name} BROKEN" in result.stdout}


def kept(result: subprocess.CompletedProcess[str]) -> set[str]:
    return {name for name in contracts() if f"\n{name} KEPT" in result.stdout}


def test_the_contracts_hold(packages: Path) -> None:
    result = lint(packages)
    assert result.returncode == 0, result.stdout + result.stderr
    assert kept(result) == set(contracts())


# One planted line for each contract; together in one run, since each takes seconds.
PLANTED = {
    "rooms of the registry": (
        "security/registry/images.py",
        "import security.registry.transfer",
    ),
    "service over security over models over sealgate": (
        "models/files.py",
        "import security.errors",
    ),
    "rooms of security: commands on top, the rest side by side": (
        "security/access/issuer.py",
        "import security.audit.log",
    ),
    "rooms of service": ("service/problems.py", "import service.guard"),
    "rooms of service.http": (
        "service/http/exchange.py",
        "import service.http.intake",
    ),
    "rooms of service.inference": (
        "service/inference/batching.py",
        "import service.inference.lineup",
    ),
    "rooms of service.telemetry": (
        "service/telemetry/tracing.py",
        "import service.telemetry.metrics",
    ),
    "settings: one module for each table": (
        "security/settings/tls.py",
        "import security.settings.loading",
    ),
    "rooms of sealgate.rpc": (
        "sealgate/rpc/messages.py",
        "import sealgate.rpc.listener",
    ),
    "rooms of stores": (
        "security/stores/local.py",
        "import security.stores.shared",
    ),
    "rooms of attestation": (
        "security/attestation/tools.py",
        "import security.attestation.quotes",
    ),
    "rooms of monitoring": (
        "security/monitoring/windows.py",
        "import security.monitoring.ledger",
    ),
    "rooms of batch jobs": (
        "security/batch/writing.py",
        "import security.batch.work",
    ),
    "rooms of bounds": (
        "security/bounds/values.py",
        "import security.bounds.proofs",
    ),
    "bounds need onnx and numpy alone": ("security/bounds/crown.py", "import torch"),
    "rooms of inspection": (
        "security/inspection/findings.py",
        "import security.inspection.structure",
    ),
    "rooms of assessment": (
        "security/assessment/targets/space.py",
        "import security.assessment.checks.measures",
    ),
    "rooms of assessment: what it asks": (
        "security/assessment/checks/evasion/plan.py",
        "import security.assessment.checks.privacy.curves",
    ),
    "rooms of models.data": (
        "models/data/columns.py",
        "import models.data.sources",
    ),
    "rooms of models": ("models/report.py", "import models.bundle"),
    "rooms of sealgate": ("sealgate/passport.py", "import sealgate.client"),
    "rooms of the protocol": (
        "sealgate/protocol/bhttp.py",
        "import sealgate.protocol.ohttp",
    ),
    "drafts of the protocol": (
        "sealgate/protocol/drafts/xwing.py",
        "import sealgate.protocol.drafts.chunked",
    ),
    "the protocol does no I/O": ("sealgate/protocol/hpke.py", "import socket"),
    "the runtime never reaches the toolkit's libraries": (
        "security/admission/store.py",
        "import onnx",
    ),
    "who verifies needs no BentoML": (
        "security/admission/lineage.py",
        "import bentoml",
    ),
    "only training imports opacus": ("security/commands/token.py", "import opacus"),
    "only training imports interpret": ("models/report.py", "import interpret"),
    "only assessment imports art": ("security/training/noise.py", "import art"),
}


def test_every_contract_is_tried_below() -> None:
    assert set(PLANTED) == set(contracts())


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the linter lists under each broken contract, with all lines planted."""
    folder = copied(tmp_path_factory.mktemp("planted"))
    for path, line in PLANTED.values():
        file = folder / path
        file.write_text(f"{file.read_text()}\n{line}\n")
    result = lint(folder)
    assert result.returncode == 1, result.stderr
    listed = result.stdout.partition("\nBroken contracts\n")[2]
    # Each part begins with the contract's name, underlined.
    parts = re.split(r"\n\n(.+)\n-+\n", listed)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_import_breaks_its_contract(
    planted: dict[str, str], name: str
) -> None:
    """By that very import: another one's line may break it, too."""
    path, line = PLANTED[name]
    module = path.removesuffix(".py").replace("/", ".")
    found = rf"\b{module} -> {line.removeprefix('import ')} \(l\.\d+"
    assert re.search(found, planted[name])


@pytest.mark.slow
def test_a_new_module_fails_until_it_is_placed(packages: Path) -> None:
    folders = (
        "security",
        "service",
        "models",
        "sealgate",
        "sealgate/protocol",
        "sealgate/protocol/drafts",
        "sealgate/rpc",
        "service/http",
        "service/inference",
        "service/telemetry",
        "security/settings",
        "security/stores",
        "security/attestation",
        "security/monitoring",
        "security/inspection",
        "security/assessment",
        "security/assessment/checks",
        "models/data",
    )
    added = [packages / folder / "unplaced.py" for folder in folders]
    try:
        for path in added:
            path.write_text('"""Nobody said where this belongs."""\n')
        result = lint(packages)
    finally:
        for path in added:
            path.unlink()
    assert result.returncode == 1
    assert broken(result) == {
        "rooms of security: commands on top, the rest side by side",
        "rooms of service",
        "rooms of models",
        "rooms of stores",
        "rooms of attestation",
        "rooms of monitoring",
        "rooms of sealgate",
        "rooms of sealgate.rpc",
        "rooms of the protocol",
        "drafts of the protocol",
        "rooms of service.http",
        "rooms of service.inference",
        "rooms of service.telemetry",
        "settings: one module for each table",
        "rooms of inspection",
        "rooms of assessment",
        "rooms of assessment: what it asks",
        "rooms of models.data",
    }


def test_importing_the_service_brings_no_toolkit(tmp_path: Path) -> None:
    code = (
        "import service.app, sys, json;"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "service" in result.stdout
    loaded = set(result.stdout.strip().strip("[]").replace('"', "").split(", "))
    assert not loaded & set(TOOLKIT)


def test_importing_the_sdk_brings_no_server(tmp_path: Path) -> None:
    code = (
        "from sealgate import *; import sealgate.cli, sys;"
        "print(Client, AsyncClient); print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    others = {"service", "security", "models", "bentoml", "onnxruntime", "jwt"}
    assert not loaded & (set(TOOLKIT) | others)


@pytest.mark.parametrize("module", ["sealgate.errors", "security.commands"])
def test_what_is_cheap_brings_no_http_client(module: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys; print(*sys.modules)"],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert not loaded & {"httpx", "numpy", "jwt"}
