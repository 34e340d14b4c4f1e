"""What a kubelet does with a pod, as far as folders can show it: mounts, scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["mount", "moved", "once", "script_of", "shell"]

# Where containers of our manifests find things.
_PLACES = r"(?<![\w./])/(state|secrets|trust|config|models|client-ca|redis-ca)\b"


def mount(source: Path, target: Path) -> None:
    """Show a folder's files as those of a Secret, or what it has become.

    They are links behind one link, which changes in one step, and a group reads them.
    """
    target.mkdir(parents=True, exist_ok=True)
    hidden = target / f"..{len(list(target.iterdir()))}"
    shutil.copytree(source, hidden)
    for path in hidden.iterdir():
        path.chmod(0o440)
    (target / "..new").symlink_to(hidden.name)
    (target / "..new").replace(target / "..data")
    for path in target.iterdir():
        if not path.name.startswith("..") and not path.exists():
            path.unlink()
    for path in hidden.iterdir():
        if not (target / path.name).is_symlink():
            (target / path.name).symlink_to(f"..data/{path.name}")


def moved(text: str, folder: Path) -> str:
    """A text of a manifest, with the pod's folders below another one."""
    return re.sub(_PLACES, rf"{folder}/\1", text)


def script_of(container: dict[str, Any]) -> str:
    """The script that a container gives its shell."""
    (script,) = container["args"]
    return str(script)


def once(container: dict[str, Any]) -> str:
    """One turn of a container's loop, without its wait."""
    head, found, loop = script_of(container).partition("while true; do\n")
    assert found
    (wait,) = [line for line in loop.splitlines() if "sleep" in line]
    return head + loop.replace(wait, "").replace("done", "", 1)


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with the pod's folders below another one."""
    command = ["/bin/sh", "-ec", moved(script, folder)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=20
    )
