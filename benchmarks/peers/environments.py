"""Virtual environments of the peers, made once and kept under `.cache`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).parent
CACHE = FOLDER.parent.parent / ".cache" / "benchmarks"
INSTALL_TIMEOUT_S = 1200


class LeftOut(Exception):  # noqa: N818  (no error: the others are measured)
    """Why a contender takes no part."""


def environment(name: str, *, shared_libpython: bool = False) -> Path:
    """The interpreter of an environment with ``requirements/<name>.txt`` in it.

    Args:
        name: of the requirements.
        shared_libpython: as programs need that load Python into themselves: the
            system's interpreter is taken, if it is of the same version.

    Raises:
        LeftOut: it cannot be made. The message is the last line that pip said.
    """
    requirements = FOLDER / "requirements" / f"{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    folder = CACHE / name
    python = folder / "bin" / "python"
    stamp = folder / f".{digest}"
    if stamp.exists():
        return python
    print(f"installing {name}", flush=True)
    base = _with_libpython() if shared_libpython else sys.executable
    _run([base, "-m", "venv", "--clear", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)])
    stamp.touch()
    return python


def _with_libpython() -> str:
    # The system's first: its library is the one that is found when one is loaded.
    system = Path("/usr/bin") / f"python3.{sys.version_info.minor}"
    question = "import sysconfig; print(sysconfig.get_config_var('Py_ENABLE_SHARED'))"
    if system.exists() and _run([str(system), "-c", question]).strip() == "1":
        return str(system)
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return sys.executable
    raise LeftOut(f"needs a Python 3.{sys.version_info.minor} with a shared libpython")


def _run(command: list[str]) -> str:
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LeftOut(str(error)) from None
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["failed"]
        raise LeftOut(lines[-1][:200])
    return result.stdout
