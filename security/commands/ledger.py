"""`ledger`: what trainings have spent of each data set's budget, and its cap."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from security.commands.options import Subparsers
from security.commands.stages import Stages
from security.errors import LedgerError
from security.settings.loading import load_settings

if TYPE_CHECKING:  # the module imports torch
    from security.training.ledger import Account, Ledger

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "ledger",
        help="show or cap what trainings spend of a data set's privacy budget",
        description="The privacy ledger adds up what all trainings on one data set "
        "have spent, by the data's declared name and by the digest of its rows. It "
        "lies in SEALGATE_HOME/ledger.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="list the data sets and their trainings")
    show.add_argument("name", nargs="?", metavar="DATA", help="only this data set")
    show.set_defaults(run=run, action="show")
    cap = actions.add_parser("cap", help="set what may be spent on a data set")
    cap.add_argument("name", metavar="DATA", help="declared name of the data set")
    cap.add_argument("--epsilon", type=float, required=True, help="at most this much")
    cap.add_argument(
        "--delta",
        type=float,
        help="at this delta (default: the smallest of a training)",
    )
    cap.set_defaults(run=run, action="cap")


def run(args: argparse.Namespace) -> int:
    """Show or set; returns the exit code."""
    if args.action == "cap":
        _check_cap(args)
    with Stages():
        from security.training.ledger import Ledger  # noqa: PLC0415  (imports torch)

        ledger = Ledger(load_settings().home / "ledger")
        if args.action == "cap":
            return _cap(ledger, args)
        accounts = [
            account
            for account in ledger.accounts()
            if args.name is None or args.name in account.names
        ]
    if args.name is not None and not accounts:
        raise LedgerError(f"the ledger has no data set {args.name!r}")
    for account in accounts:
        _print(account)
    if not accounts:
        print("nothing was spent")
    return 0


def _check_cap(args: argparse.Namespace) -> None:
    if not 0 < args.epsilon < math.inf:
        raise LedgerError("--epsilon must be positive and finite")
    if args.delta is not None and not 0 < args.delta < 1:
        raise LedgerError("--delta must be between 0 and 1")


def _cap(ledger: Ledger, args: argparse.Namespace) -> int:
    ledger.set_cap(args.name, args.epsilon, args.delta)
    print(f"{args.name}: epsilon at most {args.epsilon:g}")
    return 0


def _print(account: Account) -> None:
    kind = "default cap" if account.cap_is_default else "cap"
    held = account.held - account.spent
    reserved = f", {held:.2f} reserved" if held > 0 else ""
    print(
        f"{', '.join(account.names)}: epsilon {account.spent:.2f} spent{reserved}, "
        f"{kind} {account.cap:g}, at delta {account.delta:.1e}"
    )
    for entry in account.entries:
        asked = entry.request
        chosen = asked.selection
        tries = "" if chosen is None else f", the best of about {chosen.tries:g} tries"
        print(
            f"  {entry.id}  {entry.created_at}  {asked.model}  {entry.state}  "
            f"{entry.spent} of {asked.steps} steps, q={asked.rate:g}, "
            f"noise {asked.noise:g}, per {asked.unit}{tries}"
        )
