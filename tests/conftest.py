"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from unittest import mock

import hypothesis
import pytest

from tests.support import warm
from tests.support.authorities import share_authorities
from tests.support.bundles import NAME, POLICY, VERSION, Keys, write_bundle
from tests.support.in_process import security_result
from tests.support.patience import clear_of_midnight, clear_of_sunday_night
from tests.support.servers import ROOT, Server, environment, serve

TAG = f"{NAME}:{VERSION}"


# The same examples in each run, however long each takes: `--hypothesis-profile=default`
# draws others, to look for more.
hypothesis.settings.register_profile(
    "same",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")


def pytest_configure() -> None:
    """Let children take Ctrl-C: a shell has its background jobs ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    share_authorities()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Modules, tests and libraries are there for good: garbage is not looked for there.

    Neither while they are collected, nor each time that something is after it.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """The same noise in each run of a test: else one in so many would fail by chance.

    Of this process alone, and not that of keys: OpenSSL and `secrets` ask elsewhere.
    """
    with mock.patch.object(os, "urandom", Random(item.nodeid).randbytes):
        return (yield)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Data that lies beside the project where it is developed; not in every clone."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not on this machine")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: small tensors only wait for a second one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def keys() -> Keys:
    return Keys.generate()


@pytest.fixture
def bundle_folder(tmp_path: Path, keys: Keys) -> Path:
    """An admitted bundle that a test may break."""
    return write_bundle(tmp_path / "bundle", keys)


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def security(tmp_path: Path) -> Command:
    """Run `python -m security …` with its own SEALGATE_HOME, under tmp_path."""

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return run_security(tmp_path / "home", *arguments, **extra)

    return run


# Commands that need no process of their own: nothing stays of them but files. BentoML
# keeps the first home that it sees, for as long as a process lives.
_IN_PROCESS = frozenset(
    {
        *("access", "admit", "assess", "audit", "config", "documents", "import"),
        *("canaries", "check", "compare", "init", "inspect", "keygen", "keys"),
        *("ledger", "mlflow", "policy", "profile", "report", "retrain", "scan"),
        *("pull", "push", "seal", "sign", "timestamp", "token", "train", "waive"),
    }
)


def run_security(
    home: Path, *arguments: str, **extra: str
) -> subprocess.CompletedProcess[str]:
    """A command's end; on standard error, what it said beside its progress.

    How often that is told depends on how busy the machine is.
    """
    # To revoke a key is to look through BentoML's store for what it signed.
    if arguments[:2] != ("keys", "revoke") and {*arguments[:1]} & _IN_PROCESS:
        return security_result(home, *arguments, extra=extra)
    done = warm.run(
        [sys.executable, "-m", "security", *arguments],
        cwd=ROOT,
        env=environment(home, extra),
        timeout=300,
    )
    said = done.stderr.splitlines(keepends=True)
    done.stderr = "".join(line for line in said if " s so far" not in line)
    return done


def check_security(home: Path, *arguments: str, **extra: str) -> str:
    result = run_security(home, *arguments, **extra)
    assert result.returncode == 0, result.stderr
    return result.stdout


def toy_settings(home: Path) -> dict[str, str]:
    """Settings of a deployment that serves the toy model."""
    return {
        "SEALGATE_SERVICE_MODELS": TAG,
        "SEALGATE_ADMISSION_POLICY": str(home / "policy.toml"),
        "SEALGATE_QUOTAS_TABLE": str(ROOT / "tests" / "support" / "quotas.toml"),
    }


def make_deployment(home: Path) -> None:
    """Keys by `keygen`, the toy bundle admitted by the commands, and stored."""
    home.mkdir(parents=True)
    (home / "policy.toml").write_bytes(POLICY)
    settings = toy_settings(home)
    check_security(home, "keygen", **settings)
    folder = home / "bundle"
    write_bundle(folder, Keys.generate(), admit=False)
    for role in ("trainer", "assessor"):
        check_security(home, "sign", str(folder), "--role", role, **settings)
    check_security(home, "admit", str(folder), **settings)
    check_security(home, "store", str(folder), **settings)


def contents(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in files}


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SEALGATE_HOME with the toy model that nothing has run on, to be copied."""
    home = tmp_path_factory.mktemp("pristine") / "home"
    make_deployment(home)
    before = contents(home)
    yield home
    assert contents(home) == before, "a test has changed what others copy"


@pytest.fixture(scope="session")
def deployment(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SEALGATE_HOME that the servers below share, and others may run on.

    What is in its log, its quotas and its lists depends on which tests ran before:
    a test that asks about those copies `pristine`.
    """
    folder = tmp_path_factory.mktemp("deployment") / "home"
    return Path(shutil.copytree(pristine, folder))


@pytest.fixture(scope="session")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SEALGATE_HOME that counts, with three quiet weeks released; to be copied."""
    from tests.support import released

    clear_of_sunday_night()  # until the last test that copies it
    home = tmp_path_factory.mktemp("monitored") / "home"
    released.make_monitored(home)
    released.put_weeks(home, released.usual, 4, 3, 2)
    return home


@pytest.fixture(scope="session")
def server(deployment: Path) -> Iterator[Server]:
    """One sealed-only server for all tests that do not change it."""
    extra = toy_settings(deployment)
    with serve("service.app:Sealgate", deployment, extra=extra, alone=True) as s:
        yield s


@pytest.fixture(scope="session")
def open_server(deployment: Path) -> Iterator[Server]:
    """A server that also answers in plaintext."""
    extra = toy_settings(deployment) | {"SEALGATE_SEALING_REQUIRE_SEALED": "false"}
    with serve("service.app:Sealgate", deployment, extra=extra, alone=True) as s:
        yield s


@pytest.fixture(scope="session")
def token(deployment: Path) -> str:
    """A token for the toy model."""
    return mint(deployment, f"infer:{NAME}")


def mint(home: Path, *scopes: str) -> str:
    flags = [part for scope in scopes for part in ("--scope", scope)]
    return check_security(home, "token", *flags, "--lifetime", "3600").strip()


@pytest.fixture(scope="module")
def within_a_day() -> None:
    """For a module whose tests count, or look, within the same day."""
    clear_of_midnight()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SEALGATE_"):
            monkeypatch.delenv(name)


@contextlib.contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    with contextlib.chdir(folder):
        yield


@pytest.fixture(autouse=True)
def _no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a command would tell how it gets on, in any test."""
    monkeypatch.setattr("security.commands.stages._EVERY_S", 3600.0)
