"""`package`: from an assessed bundle to a Bento that serves it, by one command."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import sealgate
from models.errors import BundleError
from security.commands.admit_rows import GivenRows, add_rows, given_rows
from security.commands.missing import require
from security.commands.options import (
    Subparsers,
    add_admission,
    admission_settings,
    variables,
)
from security.commands.signing import add_passphrase, role_signers
from security.commands.stages import Stages
from security.errors import AdmissionRefused, KeyFileError, SettingsError
from security.settings.admission import AdmissionSettings
from security.settings.loading import Settings, load_settings

if TYPE_CHECKING:  # the modules take long to import
    from security.admission.gate import Admission
    from security.commands.admit import Admitted
    from security.commands.stamping import Stamping

__all__ = ["add_parser", "run"]

_ROOT = Path(__file__).resolve().parents[2]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    from security.commands.stamping import add_timestamp_url  # noqa: PLC0415

    parser = subparsers.add_parser(
        "package",
        help="sign, admit, store and build: from an assessed bundle to a Bento",
        description="Take a bundle through all that is left to do, one line per step: "
        "sign its reports with the role keys that are here, evaluate the policy and "
        "sign the verdict, write its documents, store it, and build the Bento that "
        "serves it. What is admitted already is not signed again, unless --rows are "
        "given and its verdict recomputed nothing. In development, keys that are "
        "missing are made. In production no key is made, and the keys of several roles "
        "in one place are refused: then each role runs `sign` or "
        "`admit`, and this builds.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    add_passphrase(parser)
    add_timestamp_url(parser)
    add_rows(parser)
    add_admission(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Package; returns the exit code."""
    from models.bundle import read_bundle  # noqa: PLC0415
    from security.commands.stamping import stamping  # noqa: PLC0415

    require("bentoml")
    settings, admission = load_settings(), admission_settings(args)
    rows = given_rows(args)
    # Before anything is made for what is no bundle.
    tag = read_bundle(args.bundle).manifest.tag
    _say("keys", _keys(settings, args.passphrase_file))
    stamp = stamping(args.timestamp_url, admission.trust)
    for step, text in _admit(
        args.bundle, settings, admission, args.passphrase_file, stamp, rows=rows
    ):
        _say(step, text)
    from security.admission.store import store_bundle  # noqa: PLC0415  (bentoml)

    with Stages() as stages:
        stages("storing", 0.0)
        _, stored = store_bundle(args.bundle)
    _say("stored", tag if stored else f"{tag} already, with these contents")
    _say("names", f"{tag} for the service: SEALGATE_SERVICE_MODELS={tag}")
    with Stages() as stages:
        stages("building", 0.0)
        bento = _build(tag, variables(args, settings))
    policy = f" --policy {args.policy}" if args.policy else ""
    _say("built", f"{bento}; next: {args.prog} serve {bento}{policy}")
    return 0


def _say(step: str, text: str) -> None:
    print(f"{step:<10}{text}", flush=True)


def _keys(settings: Settings, passphrase: Path | None) -> str:
    """Make what is missing in development; refuse several roles' keys in production.

    Raises:
        SettingsError: in production, the keys of several roles are in one hand.
    """
    from security.commands.keygen import make_keys  # noqa: PLC0415  (slow)

    if settings.service.environment != "production":
        made = [x for x in make_keys(settings, passphrase) if not x.startswith("kept")]
        where = settings.home / "keys"
        return f"made {len(made)} that were missing in {where}" if made else "kept"
    roles = list(_role_keys(settings))
    if len(roles) > 1:
        raise SettingsError(
            f"production: the keys of {', '.join(roles)} are in one hand, "
            f"{settings.home / 'keys'}; each role runs `sign` or `admit` with its own"
        )
    return f"of {roles[0]}" if roles else "none, so that nothing is signed"


def _role_keys(settings: Settings) -> dict[str, Path]:
    """The roles whose signing keys are here, with the keys' files."""
    from security.admission.trust import ROLES  # noqa: PLC0415

    files = {role: settings.home / "keys" / f"{role}.pem" for role in ROLES}
    return {role: path for role, path in files.items() if path.exists()}


def _admit(
    folder: Path,
    settings: Settings,
    admission: AdmissionSettings,
    passphrase: Path | None,
    stamp: Stamping | None,
    *,
    rows: GivenRows | None,
) -> Iterator[tuple[str, str]]:
    """Sign what the keys may and admit, unless the bundle is admitted already.

    Raises:
        KeyFileError: a verdict is missing, and no key is here that may sign it.
        AdmissionRefused, BundleError: as the gate says.
    """
    from models.bundle import read_bundle  # noqa: PLC0415
    from security.admission.doors import verify_bundle  # noqa: PLC0415
    from security.admission.policy import load_policy  # noqa: PLC0415
    from security.commands.admit import admit_bundle  # noqa: PLC0415  (slow)
    from security.commands.sign import sign_reports  # noqa: PLC0415

    bundle, verified = read_bundle(folder), None
    # What is missing follows, or the same refusal by `admit`.
    with suppress(AdmissionRefused):
        verified = verify_bundle(bundle, admission)
    if verified is not None and not _adds(rows, verified):
        yield "admitted", f"{bundle.manifest.tag} already"
        yield "verdict", f"sha256:{verified.verdict_sha256}"
        yield from _proofs(verified.recomputed)
        return
    from security.admission.store import refuse_stored  # noqa: PLC0415  (bentoml)

    refuse_stored(bundle)  # before a verdict is signed that could not be stored
    policy, keys = load_policy(admission.policy), _role_keys(settings)
    signers = {
        role: replace(role_signers(settings, role, passphrase=passphrase), stamp=stamp)
        for role in keys
    }
    for role, key in signers.items() if verified is None else ():
        kinds = sign_reports(folder, role, key, policy)
        if kinds:
            yield "signed", f"{', '.join(kinds)} as {role}"
    judge = next((role for role in signers if role in policy.verdict_signers), None)
    if judge is None:
        roles, where = " or ".join(policy.verdict_signers), settings.home / "keys"
        raise KeyFileError(
            f"no key of {roles} is in {where}: whoever has it runs `admit`, then run "
            "this again"
        )
    yield from _told(admit_bundle(folder, signers[judge], admission, rows=rows))


def _adds(rows: GivenRows | None, verified: Admission) -> bool:
    """Whether rows may say more than the verdict, if only that they have no use."""
    again = verified.recomputed
    return rows is not None and not (again and all(again.values()))


def _proofs(recomputed: Mapping[str, bool]) -> Iterator[tuple[str, str]]:
    """What is said of claims that something is proved."""
    for kind, again in recomputed.items():
        done = (
            "recomputed from its rows" if again else "NOT recomputed: give its --rows"
        )
        yield "proved", f"{kind}: {done}"


def _told(admitted: Admitted) -> Iterator[tuple[str, str]]:
    for waiver in admitted.waivers:
        yield "waiver", waiver
    yield "admitted", f"{admitted.tag} under policy sha256:{admitted.policy_sha256}"
    yield "verdict", f"sha256:{admitted.verdict_sha256}"
    yield from _proofs(admitted.recomputed)
    if admitted.signed < admitted.signers:
        raise KeyFileError(
            f"the verdict has {admitted.signed} of {admitted.signers} signers: the "
            "others run `admit`, then run this again"
        )
    names = ", ".join(admitted.documents)
    yield "documents", f"wrote {names}" if names else "kept"


def _build(tag: str, named: Mapping[str, str]) -> str:
    """Build the Bento of one model; returns its tag.

    Args:
        tag: of the model.
        named: variables that name the settings.

    Raises:
        BundleError: `bentoml build` refused it.
    """
    from bentoml._internal.configuration.containers import (  # noqa: PLC0415  (slow)
        BentoMLContainer,
    )

    with _source() as folder:
        result = subprocess.run(
            [sys.executable, "-m", "bentoml", "build", "--output", "tag"],
            cwd=folder,
            env={
                **os.environ,
                **named,
                "BENTOML_HOME": str(BentoMLContainer.bentoml_home.get()),
                "SEALGATE_SERVICE_MODELS": tag,
            },
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["it says nothing"]
        raise BundleError(f"bentoml build: {lines[-1].removeprefix('Error: ')}")
    return result.stdout.strip().rpartition("__tag__:")[2]


@contextmanager
def _source() -> Iterator[Path]:
    """The source tree of a Bento: this one; with the client, where that lies elsewhere.

    The wheel of the toolkit has no client in it: it needs that of the same version.
    """
    if (_ROOT / "sealgate").is_dir():
        yield _ROOT
        return
    ignore = shutil.ignore_patterns("__pycache__")
    with tempfile.TemporaryDirectory(prefix="sealgate-source-") as name:
        folder = Path(name) / "source"
        shutil.copytree(_ROOT, folder, ignore=ignore)
        client = Path(sealgate.__file__).parent
        shutil.copytree(client, folder / "sealgate", ignore=ignore)
        yield folder
