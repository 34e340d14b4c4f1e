"""`audit verify --witnesses`, `audit cosign`: what witnesses of the log have seen."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sealgate.protocol.notes import parse_checkpoint, split_note
from security.audit.journal import load_log, load_verifier
from security.audit.tree_log import TreeLog
from security.audit.verify_tree import Demand, TreeReport
from security.audit.witnesses import MAX_WITNESSES, load_quorum, read_witnesses
from security.commands.options import count
from security.errors import SettingsError
from security.settings.audit import AuditSettings, WitnessSettings
from security.settings.loading import load_settings

__all__ = ["add_cosign", "add_witnesses", "demanded", "print_tree"]

MAX_GRACE_S = 10**9


def add_witnesses(parser: argparse.ArgumentParser) -> None:
    """Add what `demanded` reads."""
    parser.add_argument(
        "--witnesses",
        type=Path,
        metavar="FILE",
        help="verifier keys, one a line, or `witness` lines of a tlog-policy; enough "
        "of these must have cosigned the log (default: audit.witnesses of the "
        "settings, unless --key is given)",
    )
    parser.add_argument(
        "--required",
        type=count(MAX_WITNESSES),
        metavar="M",
        help="how many of them must have",
    )
    parser.add_argument(
        "--grace",
        type=count(MAX_GRACE_S),
        metavar="SECONDS",
        help="how old a writer's checkpoint may be before they have seen it "
        "(default: audit.witnesses.grace_s)",
    )
    parser.add_argument(
        "--ask",
        action="store_true",
        help="ask them what they saw last: all of that must be there",
    )


def add_cosign(parser: argparse.ArgumentParser) -> None:
    """Describe `audit cosign`."""
    parser.description = (
        "Have the newest checkpoint of the log, and of the log of offers where there "
        "is one, cosigned by the witnesses of the settings, as a running server does "
        "over and over. Exit code 1 if fewer than required have cosigned it."
    )
    parser.set_defaults(run=_cosign)


def demanded(args: argparse.Namespace, key: Path) -> tuple[Demand | None, list[bytes]]:
    """What witnesses must have seen, and what they say that they did.

    Args:
        args: of `audit verify`.
        key: file of the log's verifier key.

    Raises:
        AuditError: they cannot be known, or too few say anything.
        SettingsError: the options make no sense.
    """
    from security.audit.asking import ask_latest  # noqa: PLC0415  (not for --help)

    settings = WitnessSettings()
    if args.witnesses is None and args.key is None:
        settings = load_settings().audit.witnesses
    elif args.witnesses is not None:
        if args.required is None:
            raise SettingsError("--witnesses: --required M says how many")
        settings = replace(settings, witness=read_witnesses(args.witnesses))
    settings = replace(
        settings,
        required=args.required or settings.required,
        grace_s=args.grace or settings.grace_s,
    )
    quorum = load_quorum(settings)
    if quorum is None:
        if args.required or args.ask:
            raise SettingsError("no witnesses are named: --witnesses, audit.witnesses")
        return None, []
    seen: list[bytes] = []
    if args.ask:
        seen = ask_latest(settings, load_verifier(key))
    return Demand(quorum, time.time(), settings.grace_s), seen


def print_tree(tree: TreeReport | None) -> None:
    """Say how much of the log witnesses have seen."""
    if tree is None:
        print("no log of all writers' checkpoints: nothing that witnesses could see")
        return
    line = f"log of {tree.size} checkpoints"
    if tree.witnessed_s is not None:
        seen = datetime.fromtimestamp(tree.witnessed_s, UTC).isoformat()
        line += f"; enough witnesses saw {tree.cosigned_size} of them, last at {seen}"
    elif tree.cosigned_size:
        line += f"; cosigned over {tree.cosigned_size}, no witness was asked for"
    print(line)


def _cosign(args: argparse.Namespace) -> int:
    from security.audit.offers import load_offers  # noqa: PLC0415  (not for --help)

    del args
    settings = load_settings().audit
    if not settings.witnesses.witness:
        raise SettingsError("audit.witnesses names no witness")
    enough = _cosigned(settings, load_log(settings), "checkpoints")
    offers = load_offers(settings)
    if offers is not None and offers.log.size:
        enough &= _cosigned(settings, offers.log, "offers")
    return 0 if enough else 1


def _cosigned(settings: AuditSettings, log: TreeLog, what: str) -> bool:
    """Have one log cosigned; whether enough witnesses have."""
    from security.audit.asking import Asker  # noqa: PLC0415  (not for --help)

    outcomes: dict[str, str] = {}
    size = log.size
    since = Asker(settings, log, report=outcomes.__setitem__).round()
    for witness, outcome in sorted(outcomes.items()):
        print(f"{witness}  {outcome}")
    # A server may add to it meanwhile.
    note = log.cosigned()
    seen = 0 if note is None else parse_checkpoint(split_note(note)[0]).size
    if since is None or seen < size:
        print(f"refused: too few witnesses cosigned {size} {what}", file=sys.stderr)
        return False
    print(f"cosigned {seen} {what}")
    return True
