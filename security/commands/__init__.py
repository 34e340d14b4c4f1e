"""One module per subcommand of `python -m security`, and the dispatcher.

Exit codes: 0 done; 1 refused, or findings; 2 wrong usage, or an error. An error is one
line on standard error, without a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from models.errors import BundleError
from sealgate.errors import SealgateError
from security.commands import (
    access,
    admit,
    assess,
    audit,
    canaries,
    compare,
    config,
    documents,
    history,
    import_model,
    inspect,
    keygen,
    keys,
    ledger,
    models,
    policy,
    profile,
    report,
    retrain,
    scan,
    seal,
    sign,
    store,
    token,
    train,
    verify,
    waive,
)
from security.errors import AdmissionRefused, HostileModel

__all__ = ["build_parser", "main"]

_COMMANDS = (
    keygen,
    keys,
    models,
    train,
    ledger,
    import_model,
    assess,
    scan,
    canaries,
    report,
    retrain,
    compare,
    inspect,
    sign,
    waive,
    admit,
    verify,
    policy,
    documents,
    seal,
    store,
    history,
    token,
    profile,
    access,
    audit,
    config,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="python -m security",
        description="Train, assess, sign and admit models; manage keys and tokens.",
        epilog="Exit codes: 0 done; 1 refused, or findings; 2 usage or error.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except (AdmissionRefused, BundleError, HostileModel) as error:
        return _fail("refused", error, 1)
    except SealgateError as error:
        return _fail("error", error, 2)
    except BrokenPipeError:
        # Whoever reads our output has enough of it. Nothing may be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail("error", error, 2)
    except KeyboardInterrupt:
        return _fail("error", "interrupted", 130)


def _fail(prefix: str, error: object, code: int) -> int:
    line = " ".join(str(error).split())
    print(f"{prefix}: {line}", file=sys.stderr)
    return code
