"""One module per subcommand of `python -m security`, and the dispatcher.

`sealgate-toolkit` is the same command, where it was installed from its wheel.

Exit codes: 0 done; 1 refused, or findings; 2 wrong usage, or an error. An error is one
line on standard error, without a traceback; so is a package that is not installed.

keygen, keys, sealing_keys, model_key  keys that sign, that open requests, and models
trust, trust_versions                  who says which keys those are, version by version
tpm                                    a TPM's keys, what is measured, what is sealed
token, profile, access, access_issuer  who calls, and what they may
init, init_model                       a first configuration
check, train, retrain                  training
ledger, canaries                       what it spends, and whether that holds
reference                              what a deployed model is held against
import_model, inspect                  models from elsewhere
mlflow                                 what a tracking server is told of a bundle
outputs                                what may leave of their answers
assess, scan, scan_training, rows      what a model withstands, on which rows
report, compare                        what was found, in other formats and between two
sign, waive, timestamp, admit, verify  evidence, its signatures, the verdict
admit_rows                             what it claims is proved, recomputed
upgrade_evidence                       the same in today's form, without a new claim
policy, policy_new                     what is demanded of it
documents, seal, store, history        what is done with a bundle, and versions of it
registry                               to and from registries: push, pull
package                                all of these, from an assessed bundle to a Bento
image, containers                      a Bento's container image, and what builds it
serve, models, config                  a server that runs, and its settings
agreement, promote                     a trial's figures, and the default they lead to
audit, audit_table, audit_witnesses    its log
witness                                cosigns logs, of others too
feedback                               labels of earlier answers
batch                                  rows of large files, answered here
monitor, watch, events                 what becomes of what is served, and who is told
missing                                packages that are not installed
authorities                            whose stamps of time are believed: of keys
deciding, options, screen, signing, stages, stamping, standing, wanted  for several
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from models.errors import BundleError
from sealgate.errors import SealgateError
from sealgate.version import PrintVersion
from security.commands.missing import needed
from security.errors import AdmissionRefused, HostileModel, TrustRefused

__all__ = ["COMMANDS", "build_parser", "main"]

_PROG = "python -m security"

# Name of each subcommand, in the order of the help, and its module. Only the one that
# is asked for is imported: most start in a third of the time that all of them take.
COMMANDS = {
    "keygen": "keygen",
    "keys": "keys",
    "trust": "trust",
    "tpm": "tpm",
    "serve": "serve",
    "models": "models",
    "agreement": "agreement",
    "promote": "promote",
    "monitor": "monitor",
    "feedback": "feedback",
    "batch": "batch",
    "init": "init",
    "check": "check",
    "train": "train",
    "ledger": "ledger",
    "import": "import_model",
    "mlflow": "mlflow",
    "outputs": "outputs",
    "assess": "assess",
    "scan": "scan",
    "canaries": "canaries",
    "reference": "reference",
    "report": "report",
    "retrain": "retrain",
    "compare": "compare",
    "inspect": "inspect",
    "sign": "sign",
    "waive": "waive",
    "timestamp": "timestamp",
    "upgrade-evidence": "upgrade_evidence",
    "admit": "admit",
    "package": "package",
    "image": "image",
    "verify": "verify",
    "policy": "policy",
    "documents": "documents",
    "sbom": "documents",
    "seal": "seal",
    "store": "store",
    "push": "registry",
    "pull": "registry",
    "history": "history",
    "token": "token",
    "profile": "profile",
    "access": "access",
    "audit": "audit",
    "witness": "witness",
    "config": "config",
}


def build_parser(only: str = "", *, prog: str = _PROG) -> argparse.ArgumentParser:
    """The parser of the whole command, or of it with one subcommand.

    Args:
        only: that subcommand.
        prog: how the command was called.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train, assess, sign and admit models; manage keys and tokens.",
        epilog="Exit codes: 0 done; 1 refused, or findings; 2 usage or error.",
    )
    parser.add_argument(
        "--version", action=PrintVersion, nargs=0, help="print it and end"
    )
    parser.set_defaults(prog=prog)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    modules = [COMMANDS[only]] if only in COMMANDS else [*COMMANDS.values()]
    for module in dict.fromkeys(modules):
        import_module(f"security.commands.{module}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None, *, prog: str = _PROG) -> int:
    """Run a subcommand; returns the exit code.

    Args:
        arguments: the command line's by default.
        prog: how the command was called.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else ""
    if command and not command.startswith("-") and command not in COMMANDS:
        _refuse(command, prog)
    try:
        args = build_parser(command, prog=prog).parse_args(arguments)
        return int(args.run(args))
    except (AdmissionRefused, BundleError, HostileModel, TrustRefused) as error:
        return _fail("refused", error, 1)
    except SealgateError as error:
        return _fail("error", error, 2)
    except ModuleNotFoundError as error:
        return _fail("error", needed(error, command), 2)
    except BrokenPipeError:
        # Whoever reads our output has enough of it. Nothing may be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail("error", error, 2)
    except KeyboardInterrupt:
        return _fail("error", "interrupted", 130)


def _refuse(name: str, prog: str) -> NoReturn:
    """What is no command, without importing those that there are."""
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"one of {', '.join(COMMANDS)}"
    parser = argparse.ArgumentParser(prog, usage=f"{prog} [-h] COMMAND ...")
    parser.error(f"no command {name!r}; {hint}")


def _fail(prefix: str, error: object, code: int) -> int:
    line = " ".join(str(error).split())
    print(f"{prefix}: {line}", file=sys.stderr)
    return code
