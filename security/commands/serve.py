"""`serve`: bundles from folders, a Bento or the store, through the same gate."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.names import is_tag
from sealgate.errors import SealgateError
from security.commands.missing import require
from security.commands.options import (
    Subparsers,
    add_admission,
    admission_settings,
    count,
    variables,
)
from security.errors import SettingsError
from security.settings.admission import AdmissionSettings
from security.settings.loading import Settings, load_settings

__all__ = ["add_parser", "run"]

_ROOT = Path(__file__).resolve().parents[2]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help="serve bundles from folders, a Bento, or models of the store",
        description="Serve admitted models: every one is verified and loaded before a "
        "port is open, and any refusal ends the start. A TARGET is the folder of a "
        "bundle, of bundles, or of an OCI layout that holds one; name:version in the "
        "model store; or, alone, a Bento: its folder, or sealgate:VERSION. Without a "
        "target it serves what `service.models` names. In development it also writes "
        "the profile that clients read.",
    )
    parser.add_argument("targets", metavar="TARGET", nargs="*")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument(
        "--port", type=count(65_535), default=3000, help="default: %(default)s"
    )
    parser.add_argument(
        "--workers",
        type=count(1024),
        default=1,
        metavar="N",
        help="processes that answer (default: 1)",
    )
    add_admission(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Become `python -m service`; returns only if it cannot."""
    require("bentoml", "httptools", "onnxruntime", "orjson")
    settings = replace(load_settings(), admission=admission_settings(args))
    source, tags = _ROOT, _targets(args.targets, settings)
    environment = {**os.environ, **variables(args, settings)}
    if args.targets:
        _refuse_plan(settings, args.prog)
        bento = _bento(args.targets)
        if bento is not None:
            source = bento / "src"
            if not (source / "service" / "__main__.py").is_file():
                raise SettingsError(
                    f"{bento}: this Bento was built before `serve` could serve it: "
                    f"build it again (`package`), or run `bentoml serve {bento}`"
                )
        else:
            environment["SEALGATE_SERVICE_MODELS"] = ",".join(tags)
    config = environment.get("SEALGATE_CONFIG") or source / "deploy" / "service.toml"
    # As the server will read them: a Bento has a policy of its own.
    there = load_settings({**environment, "SEALGATE_CONFIG": str(config)})
    _write_profile(args, there, source, tags)
    if home := os.environ.get("BENTOML_HOME"):
        environment["BENTOML_HOME"] = str(Path(home).absolute())
    command = [sys.executable, "-m", "service", "--host", args.host]
    command += ["--port", str(args.port), "--workers", str(args.workers)]
    sys.stdout.flush()
    # `security` may not import `service`, and nothing of this process is needed there.
    os.chdir(source)
    os.execve(sys.executable, command, environment)  # noqa: S606  (no shell is wanted)


def _targets(targets: Sequence[str], settings: Settings) -> list[str]:
    """What `service.models` would name; of a Bento nothing, since its lock does."""
    if _bento(targets) is not None:
        return []
    return [_entry(target) for target in targets] or list(settings.service.models)


def _entry(target: str) -> str:
    """An entry of `service.models`.

    Raises:
        SettingsError: neither a folder nor a full tag.
    """
    folder = Path(target)
    if folder.is_dir():
        if "," in str(folder.absolute()):
            raise SettingsError(f"{target}: a comma separates models")
        return f"path:{folder.absolute()}"
    if is_tag(target):
        return target
    raise SettingsError(
        f"{target} is no folder, and no full tag like name:1.0.0 or sealgate:latest"
    )


def _bento(targets: Sequence[str]) -> Path | None:
    """The folder of the Bento that is named, if one is.

    Raises:
        SettingsError: it is not there, or not named alone.
    """
    bentos = [target for target in targets if _is_bento(target)]
    if not bentos:
        return None
    if len(targets) > 1:
        raise SettingsError("a Bento holds its own models: name it alone")
    if Path(bentos[0]).is_dir():
        return Path(bentos[0]).absolute()
    import bentoml  # noqa: PLC0415  (slow)
    from bentoml.exceptions import BentoMLException  # noqa: PLC0415

    try:
        return Path(bentoml.bentos.get(bentos[0]).path)
    except BentoMLException as error:
        raise SettingsError(f"{bentos[0]}: {error}") from None


def _is_bento(target: str) -> bool:
    """Whether it is a Bento's folder, or a tag that no model's version can be."""
    folder = Path(target)
    if folder.exists():
        return (folder / "bento.yaml").is_file()
    return ":" in target and not is_tag(target)


def _refuse_plan(settings: Settings, prog: str) -> None:
    """Refuse to be told what the operator's plan decides.

    Raises:
        SettingsError: there is a plan.
    """
    from security.admission.plan import PlanFolder  # noqa: PLC0415

    folder = PlanFolder(settings.deployment.directory)
    plan = folder.read()
    if plan is not None:
        raise SettingsError(
            f"{folder.path} decides what is served ({plan.change}): change it by "
            f"`{prog} models`, or name no target"
        )


def _write_profile(
    args: argparse.Namespace, settings: Settings, source: Path, tags: Sequence[str]
) -> None:
    """In development, what clients on this machine need; nothing if the gate refuses.

    Raises:
        SettingsError, BundleError: what is to be served cannot be told.
    """
    from security.access.issuer import DEVELOPMENT_ISSUER  # noqa: PLC0415  (slow)
    from security.admission.contents import read_lock  # noqa: PLC0415  (slow)
    from security.admission.sources import served_tags  # noqa: PLC0415
    from security.commands.profile import write_profile  # noqa: PLC0415  (slow)

    found = list(served_tags(tags) if source == _ROOT else read_lock(source))
    development = settings.service.environment == "development"
    if not found or not development or settings.access.issuer != DEVELOPMENT_ISSUER:
        return
    if not _admitted(found, tags, settings.admission):
        return
    scheme = "https" if settings.tls.enabled else "http"
    host = f"[{args.host}]" if ":" in args.host else args.host
    path = write_profile(
        settings,
        url=f"{scheme}://{host}:{args.port}",
        models=list(dict.fromkeys(tag.partition(":")[0] for tag in found)),
        lifetime_s=settings.access.max_lifetime_s,
    )
    print(f"wrote {path}, token valid for {settings.access.max_lifetime_s} s")


def _admitted(
    tags: Sequence[str], models: Sequence[str], admission: AdmissionSettings
) -> bool:
    """Whether the server will admit these; where it refuses, it says so and why."""
    from security.admission.doors import verify_bundle  # noqa: PLC0415  (slow)
    from security.admission.sources import read_served  # noqa: PLC0415  (bentoml)

    try:
        for tag in tags:
            verify_bundle(read_served(tag, models), admission)
    except SealgateError:
        return False
    return True
