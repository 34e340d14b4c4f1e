"""Packages that are not installed: which extra of the toolkit brings each.

The extras are those of packaging/toolkit/pyproject.toml; a test holds the two together.
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["EXTRAS", "needed", "require"]

# The names that each extra's packages are imported by; of two that bring the same, the
# smaller first. The first brings what the toolkit always has.
EXTRAS = {
    "": ("jwt", "orjson"),
    "inspect": ("onnx",),
    "verify": ("rfc3161_client", "yaml"),
    "serve": (
        *("attrs", "bentoml", "_bentoml_sdk", "httptools", "onnxruntime", "redis"),
        *("rfc3161_client", "uv", "uvloop"),
    ),
    "assess": (
        *("art", "dp_accounting", "fairlearn", "interpret", "jinja2", "matplotlib"),
        *(
            "multiprocess",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "opacus",
            "pandas",
            "PIL",
            "pyarrow",
        ),
        *("scipy", "securesystemslib", "sklearn", "statsmodels", "torch"),
    ),
}
# What a command needs in the end, where it is not all of [assess].
_WANTED = {"inspect": "inspect", "verify": "verify", "serve": "serve", "store": "serve"}
_OURS = ("models", "sealgate", "security", "service")


def needed(error: ModuleNotFoundError, command: str) -> str:
    """What to install for a command, in one line.

    Args:
        error: of an import.
        command: the subcommand that was asked for.

    Raises:
        ModuleNotFoundError: the same, if it is no package of others that is missing:
            that is a bug.
    """
    name = (error.name or "").partition(".")[0]
    if not name or name in _OURS or name in sys.stdlib_module_names:
        raise error
    extras = [extra for extra, names in EXTRAS.items() if name in names]
    if not extras:
        return f"needs {name}, which is not installed"
    wanted = _WANTED.get(command, "assess")
    extra = wanted if wanted in extras else extras[0]
    return (
        f'needs {name}: pip install "sealgate-toolkit{f"[{extra}]" if extra else ""}"'
    )


def require(*names: str) -> None:
    """Look for packages before anything is done that another process goes on with.

    Raises:
        ModuleNotFoundError: the first that is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
