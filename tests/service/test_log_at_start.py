"""A log that can be signed no more: no server starts on it. How a key is changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from security.audit.journal import generate_checkpoint_key
from tests.conftest import check_security, run_security, toy_settings
from tests.support.servers import serve

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment that has served once."""
    home = tmp_path_factory.mktemp("served") / "home"
    shutil.copytree(pristine, home)
    with serve("", home, extra=toy_settings(home), alone=True):
        pass
    return home


@pytest.fixture
def home(served: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(served, tmp_path / "home"))


def other_key(home: Path) -> None:
    (home / "keys/checkpoint.pem").unlink()
    generate_checkpoint_key(home / "keys/checkpoint.pem")


def no_checkpoint(home: Path) -> None:
    (home / "audit/log.checkpoint").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_key, "log.checkpoint: no trusted key signed the checkpoint"),
        (no_checkpoint, "log.checkpoint: is missing, and there are leaves"),
    ],
)
def test_no_server_starts_on_it(home: Path, change: object, message: str) -> None:
    """It would record what nobody could verify, and give no receipts."""
    change(home)  # type: ignore[operator]
    before = {path.name: path.read_bytes() for path in home.glob("audit/*")}
    with (
        pytest.raises(AssertionError, match=message),
        serve("", home, extra=toy_settings(home), alone=True),
    ):
        pass
    assert {path.name: path.read_bytes() for path in home.glob("audit/*")} == before


def test_a_command_adds_no_checkpoint_of_another_key(home: Path) -> None:
    checkpoints = (home / "audit/checkpoints").read_bytes()
    other_key(home)
    run_security(home, "keys", "rotate", "--role", "sealing")
    assert (home / "audit/checkpoints").read_bytes() == checkpoints


def test_the_key_is_changed_as_the_page_says(home: Path) -> None:
    """A new name, a new folder, new keys; what was signed before still verifies."""
    (home / "audit").rename(home / "audit-2026")
    shutil.copy(home / "audit.vkey", home / "audit-2026.vkey")
    shutil.copy(home / "audit.mldsa.vkey", home / "audit-2026.mldsa.vkey")
    for name in ("keys/checkpoint.pem", "keys/checkpoint.mldsa.pem"):
        (home / name).unlink()
    for name in ("audit.vkey", "audit.mldsa.vkey"):
        (home / name).unlink()
    named = toy_settings(home) | {"SEALGATE_AUDIT_NAME": "sealgate.invalid/audit-2027"}
    check_security(home, "keygen", **named)
    assert (home / "audit.vkey").read_text().startswith("sealgate.invalid/audit-2027+")
    with serve("", home, extra=named, alone=True):
        pass
    check_security(home, "audit", "verify", **named)
    old = ("audit", "verify", str(home / "audit-2026"))
    check_security(home, *old, "--key", str(home / "audit-2026.vkey"), **named)
