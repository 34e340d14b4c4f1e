"""`access`: why a request would be allowed or refused, and what is revoked."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from security.access.permissions import ACTIONS, MODEL_ACTIONS
from security.access.revocation import Revocations, subject_name
from security.access.revocation_stores import Revocation, RevocationStore, open_store
from security.audit.journal import record_operation
from security.audit.records import token_hash
from security.commands import access_issuer
from security.commands.options import Subparsers
from security.errors import RevocationStoreError, SettingsError
from security.key_files import read_secret
from security.settings.loading import Settings, load_settings

__all__ = ["add_parser"]

MAX_TOKEN_CHARACTERS = 64 << 10
_HELP = "the token; @FILE reads it from a file, - from standard input"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand and its own."""
    parser = subparsers.add_parser(
        "access",
        help="explain decisions, revoke tokens, serve the development keys",
        description="Say why a request would be allowed or refused; revoke tokens, "
        "subjects and clients, on every worker within a second; serve the keys of the "
        "development issuer.",
    )
    own = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_explain(own)
    _add_revoke(own)
    _add_restore(own)
    listed = own.add_parser(
        "revoked",
        help="list what is revoked",
        description="List what is revoked, one line each.",
    )
    listed.set_defaults(run=_list)
    access_issuer.add_parser(own)


def _add_explain(own: Subparsers[argparse.ArgumentParser]) -> None:
    parser = own.add_parser(
        "explain",
        help="say why a request would be allowed or refused",
        description="Take the steps of the server for a token and a model, and print "
        "each with its outcome. Exit code 0 if it would be allowed, 1 if not. What is "
        "asked with `--action metrics` is about the server.",
    )
    parser.add_argument("--token", required=True, help=_HELP)
    parser.add_argument("--model", help="name of the model")
    parser.add_argument(
        "--model-version", metavar="VERSION", help="default: whatever is served"
    )
    parser.add_argument(
        "--action", choices=ACTIONS, default="infer", help="default: %(default)s"
    )
    parser.set_defaults(run=_explain)


def _add_target(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    target = parser.add_mutually_exclusive_group(required=required)
    target.add_argument("--token", help=_HELP)
    target.add_argument("--token-id", metavar="JTI", help="a token's identifier")
    target.add_argument("--subject", help="all tokens of a subject")
    target.add_argument("--client", help="all tokens through a client")
    parser.add_argument(
        "--issuer", default="", help="only of this issuer (default: of any)"
    )


def _add_revoke(own: Subparsers[argparse.ArgumentParser]) -> None:
    parser = own.add_parser(
        "revoke",
        help="refuse a token, a subject or a client from now on",
        description="Refuse a token, or all tokens of a subject or through a client, "
        "on every worker within a second, until `access restore`.",
    )
    _add_target(parser, required=False)
    parser.add_argument(
        "--new-list",
        action="store_true",
        help="make the list first, where there is none: after it was lost, revoke anew "
        "what it held",
    )
    parser.add_argument(
        "--issued-until-now",
        action="store_true",
        help="of a subject or client, only tokens issued until now: who signs in again "
        "is let in",
    )
    parser.set_defaults(run=_revoke)


def _add_restore(own: Subparsers[argparse.ArgumentParser]) -> None:
    parser = own.add_parser(
        "restore",
        help="take a revocation back",
        description="Take a revocation back. Exit code 1 if there was none.",
    )
    _add_target(parser)
    parser.set_defaults(run=_restore)


def _explain(args: argparse.Namespace) -> int:
    settings = load_settings()
    if args.action in MODEL_ACTIONS and args.model is None:
        raise SettingsError(f"--action {args.action} is about a --model")
    from security.access.explain import (  # noqa: PLC0415  (not for --help)
        Question,
        explain,
    )

    question = Question(args.model, args.model_version, args.action)
    token = _token(args.token)
    steps = explain(
        settings.access,
        token,
        question,
        revoked=_read_list(settings),
        certificates=settings.tls.client_certificates != "off",
        now=time.time(),
    )
    for step in steps:
        print(f"{'ok  ' if step.passed else 'no  '}  {step.text}")
    allowed = all(step.passed for step in steps)
    print("allowed" if allowed else "refused")
    return 0 if allowed else 1


def _read_list(settings: Settings) -> Revocations | RevocationStoreError:
    try:
        with closing(open_store(settings.access)) as store:
            entries = store.entries()
    except RevocationStoreError as error:
        return error
    return Revocations(entries, key=read_secret(settings.audit.pseudonym_key))


def _revoke(args: argparse.Namespace) -> int:
    settings = load_settings()
    named = args.token or args.token_id or args.subject or args.client
    if not named and not args.new_list:
        raise SettingsError("one of --token, --token-id, --subject, --client")
    with closing(open_store(settings.access)) as store:
        if args.new_list:
            store.new_list()
            made = {"action": "revocation", "reason": "list-made"}
            record_operation(settings.audit, [made])
            print("made a list of revocations, with nothing on it")
        if named:
            _add(args, settings, store)
    return 0


def _add(args: argparse.Namespace, settings: Settings, store: RevocationStore) -> None:
    now = int(time.time())
    entry = _target(args, settings, now)[0]
    if args.issued_until_now:
        if entry.kind == "token":
            raise SettingsError("--issued-until-now is about a subject or a client")
        entry = replace(entry, issued_until=now)
    store.add(entry)
    _record(args, settings, entry, "revoked")
    print(f"revoked {_named(args, entry)}")


def _restore(args: argparse.Namespace) -> int:
    settings = load_settings()
    lines = _target(args, settings, int(time.time()))
    with closing(open_store(settings.access)) as store:
        found = sum(store.remove(line) for line in lines)
    if found:
        _record(args, settings, lines[0], "restored")
    said = "restored" if found else "was not revoked:"
    print(f"{said} {_named(args, lines[0])}")
    return 0 if found else 1


def _record(
    args: argparse.Namespace, settings: Settings, entry: Revocation, what: str
) -> None:
    """Whom it concerns stands in the record as it does in those of requests."""
    kind = "subject" if entry.kind == "pseudonym" else entry.kind
    operation = {"action": "revocation", "reason": f"{kind}-{what}"}
    if kind == "token":
        operation["token"] = token_hash(entry.value)
    elif kind == "client":
        operation["client"] = entry.value
    else:
        issuer = entry.issuer or settings.access.issuer
        key = read_secret(settings.audit.pseudonym_key)
        operation["subject"] = subject_name(key, args.subject, issuer)
    record_operation(settings.audit, [operation])


def _list(args: argparse.Namespace) -> int:
    del args
    with closing(open_store(load_settings().access)) as store:
        for entry in store.entries():
            print(_shown(entry))
    return 0


def _target(args: argparse.Namespace, settings: Settings, now: int) -> list[Revocation]:
    """What is to be revoked or restored, as lines of the list.

    The first is this release's; another is what an earlier one wrote.
    """
    issuers = {issuer.issuer: issuer for issuer in settings.access.all_issuers}
    if args.issuer and args.issuer not in issuers:
        raise SettingsError(f"{args.issuer!r} is no issuer of the settings")
    if args.subject:
        key = read_secret(settings.audit.pseudonym_key)
        name = subject_name(key, args.subject, args.issuer)
        return [
            Revocation("pseudonym", name, args.issuer, revoked_at=now),
            Revocation("subject", args.subject, args.issuer),
        ]
    if args.client:
        return [Revocation("client", args.client, args.issuer, revoked_at=now)]
    longest = max((one.max_lifetime_s for one in issuers.values()), default=0)
    # No token that is valid now is valid then: the line may go.
    expires_at = now + longest + 2 * settings.access.leeway_s + 1
    if args.token_id:
        issuer, identifier = args.issuer, args.token_id
    else:
        # Only a token of an issuer of ours: a mistake is seen now, not in an attack.
        from security.access.tokens import Verifier  # noqa: PLC0415  (as above)

        principal = Verifier(settings.access).verify_waiting(
            _token(args.token), now=now
        )
        issuer, identifier = principal.issuer, principal.token_id
    line = Revocation(
        "token", identifier, issuer, expires_at=expires_at, revoked_at=now
    )
    return [line]


def _token(given: str) -> str:
    """The token itself: on a command line every user of the machine can read it."""
    if given == "-":
        return sys.stdin.read(MAX_TOKEN_CHARACTERS).strip()
    if given.startswith("@"):
        try:
            with Path(given[1:]).open(encoding="ascii") as file:
                return file.read(MAX_TOKEN_CHARACTERS).strip()
        except UnicodeDecodeError:
            raise SettingsError(f"{given[1:]}: holds no token") from None
    return given


def _named(args: argparse.Namespace, entry: Revocation) -> str:
    """As it was given on the command line."""
    if args.subject:
        entry = replace(entry, kind="subject", value=args.subject)
    return _shown(entry)


def _shown(entry: Revocation) -> str:
    issuer = f" of {entry.issuer}" if entry.issuer else ""
    until = _time(entry.issued_until)
    since = f", issued until {until}" if entry.issued_until else ""
    return f"{entry.kind} {entry.value!r}{issuer}{since}"


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
