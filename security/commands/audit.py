"""`audit`: verify the audit log, read records out of it. Offline."""

from __future__ import annotations

import argparse
import contextlib
import heapq
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from models.errors import BundleError
from models.files import write_atomic
from security.audit.follow import Follower
from security.audit.journal import load_log_verifiers, load_verifier
from security.audit.query import FORMATS, Query, made_us, parse_time
from security.audit.records import Record
from security.audit.verify import LogReport, Told, Visit, verify_log
from security.audit.verify_tree import Demand
from security.commands.audit_witnesses import (
    add_cosign,
    add_witnesses,
    demanded,
    print_tree,
)
from security.commands.options import Subparsers, count
from security.commands.screen import add_color
from security.commands.stages import Stages
from security.errors import AuditError
from security.key_files import pseudonym, read_secret
from security.settings.loading import load_settings

__all__ = ["add_parser", "run"]

MAX_COPY_BYTES = 1 << 30
MAX_TAIL = 1_000_000
_TABLE_ROWS = 200
_POLL_S = 0.5
_EQUAL = ("action", "outcome", "reason", "model", "client", "token", "request_id")
_HELP = {"model": "a model's name, or NAME:VERSION"}


Show = Callable[[Iterable[tuple[str, Record]]], None]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "audit",
        help="verify the audit log, or read records out of it",
        description="Verify the audit log and read records out of it, offline.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, summary, add in _ACTIONS:
        add(actions.add_parser(name, help=summary))


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Verify hash chains, files, trees and signed checkpoints. Exit code 1 and one "
        "line that names the first record which was altered, dropped, added, moved or "
        "cut off, or a writer that never signed."
    )
    _add_log(parser)
    add_witnesses(parser)
    parser.set_defaults(run=run)


def _add_query(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print the records that match all of the options: on a terminal as a table, "
        "oldest first, elsewhere one JSON object a line. The log is verified on the "
        "way; exit code 1 if it does not verify."
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="JSON lines, in any case")
    kind.add_argument("--table", action="store_true", help="a table, in any case")
    parser.add_argument(
        "--tail",
        type=count(MAX_TAIL),
        metavar="N",
        help=f"the last N of them (default: all; of a table, {_TABLE_ROWS})",
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="then print what is added, held to its chain, until Ctrl-C",
    )
    add_color(parser)
    _add_filter(parser)
    _add_log(parser)
    parser.set_defaults(run=_query)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the records that match all of the options to a file, once all of the "
        "log is verified. Nothing is written if it does not verify."
    )
    parser.add_argument("--format", choices=sorted(FORMATS), default="jsonl")
    parser.add_argument(
        "--output", type=Path, required=True, help="the file; replaced if it exists"
    )
    _add_filter(parser)
    _add_log(parser)
    parser.set_defaults(run=_export)


_ACTIONS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None]], ...] = (
    ("cosign", "have witnesses cosign the log now", add_cosign),
    ("verify", "check that no record was changed", _add_verify),
    ("query", "print records, as a table or as JSON", _add_query),
    ("export", "write verified records to a file", _add_export),
)


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        type=Path,
        nargs="*",
        help="archives, and last the folder with the checkpoints "
        "(default: audit.directory of the settings)",
    )
    parser.add_argument(
        "--key",
        type=Path,
        help="file of the verifier key (default: audit.verifier_key of the settings)",
    )
    parser.add_argument(
        "--copy",
        type=Path,
        action="append",
        default=[],
        help="a copy of the checkpoints that was kept elsewhere; each must be there",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="WRITER",
        help="a writer whose files were deleted on purpose",
    )
    parser.add_argument(
        "--allow-unsigned",
        action="append",
        default=[],
        metavar="WRITER",
        help="a writer that never signed, as one that was killed while it started; "
        "whoever can write the folder could have made its records up",
    )


def _add_filter(parser: argparse.ArgumentParser) -> None:
    when = "a time like 2026-11-21T10:00 (UTC), or how long ago, like 90m"
    parser.add_argument("--since", help=when)
    parser.add_argument("--until", help=when)
    parser.add_argument(
        "--subject",
        action="append",
        default=[],
        help="a subject's name; needs the key of the pseudonyms",
    )
    parser.add_argument(
        "--issuer", help="of the subjects (default: access.issuer of the settings)"
    )
    parser.add_argument("--pseudonym", action="append", default=[])
    for name in _EQUAL:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option, action="append", default=[], dest=name, help=_HELP.get(name)
        )


def run(args: argparse.Namespace) -> int:
    """Verify; returns the exit code."""
    demand, seen = demanded(args, _key(args))
    report = _verify(args, demand=demand, seen=seen)
    if report is None:
        return 1
    for writer, size in report.records.items():
        mark = "  UNSIGNED" if writer in report.unsigned else ""
        print(f"{writer}  {size} records, {report.signed[writer]} signed{mark}")
    print_tree(report.tree)
    total, signed = sum(report.records.values()), sum(report.signed.values())
    print(
        f"verified {total} records of {len(report.records)} writers; "
        f"checkpoints cover {signed}"
    )
    return 0


def _query(args: argparse.Namespace) -> int:
    query = _parse_query(args)
    if query is None:
        return 1
    as_table = args.table or not (args.json or not sys.stdout.isatty())
    show = _rows(args) if as_table else _lines
    folders = _folders(args)
    follower = Follower(folders[-1]) if args.follow else None
    kept = _Last(args.tail or _TABLE_ROWS) if args.tail or as_table else None

    def visit(writer: str, record: Record) -> None:
        if follower is not None:
            follower.passed(writer, record)
        if query.matches(record.fields):
            if kept is None:
                show([(writer, record)])
            else:
                kept.add(writer, record)

    if _verify(args, visit, silent=kept is None and sys.stdout.isatty()) is None:
        return 1
    if kept is not None:
        show(kept.records())
        if kept.left_out and not args.tail:
            print(
                f"notice: {kept.left_out} earlier records are left out: --tail N or "
                "--json shows them",
                file=sys.stderr,
            )
    return 0 if follower is None else _follow(follower, query, show)


def _follow(follower: Follower, query: Query, show: Show) -> int:
    """Show what is added, until Ctrl-C."""
    try:
        while True:
            show(found for found in follower.read() if query.matches(found[1].fields))
            sys.stdout.flush()
            time.sleep(_POLL_S)
    except AuditError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _lines(found: Iterable[tuple[str, Record]]) -> None:
    for line in FORMATS["jsonl"](iter(found)):
        sys.stdout.write(line)


def _rows(args: argparse.Namespace) -> Show:
    from security.commands.audit_table import Table  # noqa: PLC0415  (slow)
    from security.commands.screen import Screen  # noqa: PLC0415

    table = Table(Screen(color=not args.no_color))
    return lambda found: table.show(record for _, record in found)


class _Last:
    """The last records by their time, of all writers.

    Attributes:
        left_out: how many came before them.
    """

    def __init__(self, count: int) -> None:
        self.left_out = 0
        self._count = count
        self._found: list[tuple[int, int, str, Record]] = []

    def add(self, writer: str, record: Record) -> None:
        item = (
            made_us(record.fields),
            len(self._found) + self.left_out,
            writer,
            record,
        )
        if len(self._found) < self._count:
            heapq.heappush(self._found, item)
        else:
            heapq.heappushpop(self._found, item)
            self.left_out += 1

    def records(self) -> list[tuple[str, Record]]:
        """Oldest first."""
        return [(writer, record) for *_, writer, record in sorted(self._found)]


def _export(args: argparse.Namespace) -> int:
    query = _parse_query(args)
    if query is None:
        return 1
    found: list[tuple[str, Record]] = []

    def collect(writer: str, record: Record) -> None:
        if query.matches(record.fields):
            found.append((writer, record))

    if _verify(args, collect) is None:
        return 1
    found.sort(key=lambda item: made_us(item[1].fields))
    lines: Iterator[str] = FORMATS[args.format](iter(found))
    write_atomic(args.output, "".join(lines).encode(), mode=0o600)
    print(f"exported {len(found)} records to {args.output}")
    return 0


def _parse_query(args: argparse.Namespace) -> Query | None:
    """What is asked for, or None once the refusal of the log is printed."""
    now = time.time()
    versions = _versions(args)
    if versions is None:
        return None
    equal = {name: getattr(args, name) for name in _EQUAL if getattr(args, name)}
    subjects = list(args.pseudonym)
    if args.subject:
        settings = load_settings()
        key = read_secret(settings.audit.pseudonym_key)
        issuer = args.issuer or settings.access.issuer
        subjects += [pseudonym(key, f"{issuer}\0{name}") for name in args.subject]
    if subjects:
        equal["subject"] = subjects
    return Query(
        since_us=None if args.since is None else parse_time(args.since, now=now),
        until_us=None if args.until is None else parse_time(args.until, now=now),
        equal=equal,
        versions=versions,
    )


def _versions(args: argparse.Namespace) -> dict[str, set[str]] | None:
    """The root digests that the versions asked for had; None as `_parse_query`.

    An answer's record has a name and a digest. Which digest a version had, the records
    of its admission and its loading say, and the model store.

    Raises:
        AuditError: neither knows a version.
    """
    versions: dict[str, set[str]] = {tag: set() for tag in args.model if ":" in tag}
    if not versions:
        return versions

    def learn(writer: str, record: Record) -> None:
        fields = record.fields
        if fields.get("model") in versions and fields.get("model_sha256"):
            versions[fields["model"]].add(fields["model_sha256"])

    if _verify(args, learn, quiet=True) is None:
        return None
    for tag, digests in versions.items():
        digests.update(_stored(tag))
        if not digests:
            raise AuditError(f"neither the log nor the model store knows {tag}")
    return versions


def _stored(tag: str) -> set[str]:
    from security.admission.store import read_stored  # noqa: PLC0415  (bentoml)

    try:
        return {read_stored(tag).subject.root_sha256}
    except BundleError:
        return set()


def _verify(
    args: argparse.Namespace,
    visit: Visit | None = None,
    *,
    demand: Demand | None = None,
    seen: Sequence[bytes] = (),
    quiet: bool = False,
    silent: bool = False,
) -> LogReport | None:
    """The report, or None once the refusal is printed.

    Args:
        args: of the command.
        visit: is given each record.
        demand: what witnesses must have seen.
        seen: what they showed.
        quiet: without notices.
        silent: without progress, which would be among the records on a terminal.
    """
    verifier, others = load_verifier(_key(args)), load_log_verifiers(_key(args))
    copies = [*map(_read_copy, args.copy), *seen]
    try:
        with contextlib.nullcontext() if silent else Stages() as stages:
            folders = _folders(args)
            report = verify_log(
                folders,
                verifier=verifier,
                log_verifiers=others,
                copies=copies,
                demand=demand,
                without=args.without,
                unsigned=args.allow_unsigned,
                visit=visit or (lambda writer, record: None),
                told=_told(stages, folders),
            )
    except AuditError as error:
        print(f"refused: {error}", file=sys.stderr)
        return None
    for notice in () if quiet else report.notices:
        print(f"notice: {notice}", file=sys.stderr)
    return report


def _key(args: argparse.Namespace) -> Path:
    path: Path = args.key or load_settings().audit.verifier_key
    return path


def _folders(args: argparse.Namespace) -> list[Path]:
    return args.directory or [load_settings().audit.directory]


def _told(stages: Stages | None, folders: Sequence[Path]) -> Told:
    """Progress, by how much of the files is read."""
    files = (path for folder in folders for path in folder.glob("*.jsonl"))
    total, done = sum(path.stat().st_size for path in files), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if stages is not None:
            stages("verifying", min(1.0, done / max(1, total)))

    return tell


def _read_copy(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_COPY_BYTES)
