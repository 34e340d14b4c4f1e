"""`config`: the effective settings, without secrets."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict

from security.commands.options import Subparsers
from security.settings.loading import load_settings

__all__ = ["add_parser", "run"]

# Where a URL may hold a password: in front of the host, and in Redis's options.
_USERINFO = re.compile(r"//.*@", re.DOTALL)
_OPTIONS = re.compile(r"[?#].*", re.DOTALL)


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "config",
        help="print the effective settings",
        description="Print the effective settings as JSON: service.toml, and what "
        "SEALGATE_... variables change. Keys appear as paths, never as contents.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print; returns the exit code."""
    del args
    settings = asdict(load_settings())
    for table, key in (
        ("sealing", "replay_store"),
        ("access", "revocation_store"),
        ("quotas", "store"),
        ("monitoring", "store"),
    ):
        settings[table][key] = _without_secrets(settings[table][key])
        del settings[table]["redis"]  # a table of its own
    source = settings["admission"]["model_key"]
    if isinstance(source, str) and source.startswith("exec:"):  # it has arguments
        settings["admission"]["model_key"] = "exec:***"
    print(json.dumps(settings, indent=2, default=str))
    return 0


def _without_secrets(url: str) -> str:
    """A URL without user, password and options.

    >>> _without_secrets("rediss://name:secret@cache:6379/0?password=secret")
    'rediss://***@cache:6379/0?***'
    """
    return _OPTIONS.sub("?***", _USERINFO.sub("//***@", url))
