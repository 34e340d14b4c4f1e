"""`mlflow log`: a bundle's evidence and verdict, written to MLflow."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BundleError
from security.commands.options import (
    Subparsers,
    add_admission,
    add_tracking,
    admission_settings,
)
from security.commands.stages import Stages
from security.errors import TrackingError
from security.settings.admission import AdmissionSettings

if TYPE_CHECKING:
    from models.bundle import Bundle
    from security.admission.gate import Admission
    from security.tracking.addresses import ModelVersion
    from security.tracking.client import Client

__all__ = ["add_parser", "run"]

ALIAS = "admitted"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "mlflow",
        help="write a bundle's evidence and verdict to MLflow",
        description="What MLflow is told of a bundle. Models come from there by "
        "`import mlflow:URI`, trainings go there by `train --mlflow`.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    log = actions.add_parser(
        "log",
        help="metrics, tags, artifacts, and the alias of an admitted version",
        description="Write a bundle's metrics, its digests and its evidence to a run, "
        "or to a version of a registered model and the run that it is from. The "
        "version's ONNX file must be the bundle's. Where the bundle has a verdict, the "
        "gate verifies it first: only then the version gets the alias.",
    )
    log.add_argument("bundle", type=Path, metavar="BUNDLE")
    log.add_argument(
        "--to",
        required=True,
        metavar="URI",
        help="models:/NAME/VERSION or runs:/RUN_ID",
    )
    log.add_argument(
        "--alias",
        default=ALIAS,
        metavar="NAME",
        help=f"what an admitted version is called (default: {ALIAS})",
    )
    add_tracking(log)
    add_admission(log)
    log.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify, compare and write; returns the exit code."""
    from models.bundle import read_bundle  # noqa: PLC0415
    from security.documents.facts import read_facts  # noqa: PLC0415
    from security.tracking.addresses import (  # noqa: PLC0415
        ModelVersion,
        RunPath,
        parse_address,
    )
    from security.tracking.client import connect  # noqa: PLC0415

    address = parse_address(args.to)
    run_itself = isinstance(address, RunPath) and not address.path
    if not run_itself and not (isinstance(address, ModelVersion) and address.version):
        raise TrackingError(
            f"{args.to}: give models:/NAME/VERSION, since an alias may move, or "
            "runs:/RUN_ID"
        )
    bundle = read_bundle(args.bundle)
    read_facts(bundle)  # refuses reports about another model
    admission, tags = _decided(bundle, admission_settings(args))
    client = connect(args.tracking_uri)
    with Stages():
        if isinstance(address, ModelVersion):
            run_id = _to_version(client, bundle, address, tags)
            if admission is not None:
                client.set_alias(address, args.alias)
        else:
            run_id = address.uri.removeprefix("runs:/")
            _to_run(client, bundle, run_id, tags)
    print(f"logged {bundle.manifest.tag} to {address.uri}, run {run_id}")
    print(f"verdict: {tags['sealgate.verdict']}")
    if admission is not None and isinstance(address, ModelVersion):
        print(f"alias {args.alias} names {address.uri}")
    return 0


def _decided(
    bundle: Bundle, settings: AdmissionSettings
) -> tuple[Admission | None, dict[str, str]]:
    """The verdict, verified here and now, and the tags that tell of it.

    Raises:
        AdmissionRefused: there is one, and it does not hold.
    """
    from models.bundle import VERDICT_FILE  # noqa: PLC0415
    from security.admission.doors import verify_with  # noqa: PLC0415
    from security.admission.policy import load_policy  # noqa: PLC0415
    from security.admission.trust_store import load_trust  # noqa: PLC0415
    from security.tracking.logged import tags_of  # noqa: PLC0415

    if VERDICT_FILE not in bundle.files:
        return None, tags_of(bundle, None)
    policy = load_policy(settings.policy)
    admission = verify_with(
        bundle, policy, load_trust(settings.trust), now=datetime.now(UTC)
    )
    return admission, tags_of(bundle, admission, policy.resource.sha256)


def _to_version(
    client: Client, bundle: Bundle, address: ModelVersion, tags: dict[str, str]
) -> str:
    """Write to a version and to its run, once its model is the bundle's.

    Returns:
        The run's id; of a new one, where the version is of no run.
    """
    from security.assessment import imported  # noqa: PLC0415  (onnxruntime)
    from security.tracking.fetched import fetch_onnx  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        fetched = fetch_onnx(client, address, Path(name))
        # As `import` took it: weights beside the file are embedded.
        model, _ = imported.inspected(fetched.model, Path(name))
    sha256 = hashlib.sha256(model).hexdigest()
    if sha256 != bundle.subject.onnx_sha256:
        raise BundleError(
            f"{address.uri} has another model: sha256:{sha256}, and the bundle is "
            f"about sha256:{bundle.subject.onnx_sha256}"
        )
    found = fetched.registered
    run_id = found.run_id if found is not None else ""
    new = not run_id
    if new:
        run_id = client.create_run(bundle.manifest.tag)
    _to_run(client, bundle, run_id, tags, found.model_id if found is not None else "")
    if new:
        client.end_run(run_id)
    client.tag_version(address, tags)
    return run_id


def _to_run(
    client: Client,
    bundle: Bundle,
    run_id: str,
    tags: dict[str, str],
    model_id: str = "",
) -> None:
    from security.tracking.logged import metrics_of, write_evidence  # noqa: PLC0415

    client.log(run_id, metrics=metrics_of(bundle), tags=tags, model_id=model_id)
    with tempfile.TemporaryDirectory() as name:
        write_evidence(bundle, Path(name))
        client.log_files(run_id, Path(name), "sealgate")
