"""`history`: the stored versions of a model, who signed them, and what changed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from security.admission.trust import TrustRoot, load_trust
from security.commands.options import Subparsers, add_admission, admission_settings

if TYPE_CHECKING:  # the module imports bentoml
    from security.admission.lineage import Version

__all__ = ["add_parser", "run"]

HINT_CHARACTERS = 16


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "history",
        help="list the stored versions of a model and what changed between them",
        description="List the versions of a model in the store: verdict, signers by "
        "role and key, and every metric beside that of the version before.",
    )
    parser.add_argument("model", help="name of the model")
    add_admission(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List; returns the exit code."""
    settings = admission_settings(args)
    trust = load_trust(settings.trust)
    from security.admission.lineage import history  # noqa: PLC0415  (bentoml)

    versions = history(args.model, settings)
    for version in versions:
        _print_version(version, trust)
    _print_metrics(versions)
    return 0


def _print_version(version: Version, trust: TrustRoot) -> None:
    state = "admitted" if version.refusal is None else f"refused: {version.refusal}"
    print(f"{version.tag}  {state}")
    print(f"  root     sha256:{version.root_sha256}")
    print(f"  verdict  sha256:{version.verdict_sha256}  {version.verified_at}")
    for name, hint in version.signed.items():
        revoked = "  revoked" if hint in trust.revoked else ""
        role = trust.role_of(hint) or "-"
        print(f"  {name:<12} {role:<15} {hint[:HINT_CHARACTERS]}{revoked}")


def _print_metrics(versions: Sequence[Version]) -> None:
    """One line per metric: its value in each version, and the change from the last."""
    names = sorted(
        {
            (kind, metric)
            for version in versions
            for kind, report in version.reports.items()
            for metric in report.metrics
        }
    )
    width = max((len(f"{kind} {metric}") for kind, metric in names), default=0)
    header = "".join(f"{item.tag.partition(':')[2]:>22}" for item in versions)
    print(f"{'':<{width}}{header}")
    for kind, metric in names:
        cells = _cells([_value(item, kind, metric) for item in versions])
        print(f"{f'{kind} {metric}':<{width}}{''.join(f'{c:>22}' for c in cells)}")


def _value(version: Version, kind: str, metric: str) -> float | None:
    report = version.reports.get(kind)
    found = report.metrics.get(metric) if report else None
    return None if found is None else found.value


def _cells(values: Sequence[float | None]) -> list[str]:
    cells, previous = [], None
    for value in values:
        change = ""
        if value is not None and previous is not None and value != previous:
            change = f" ({value - previous:+.4g})"
        cells.append("-" if value is None else f"{value:.4g}{change}")
        previous = value if value is not None else previous
    return cells
