"""`train`: a differentially private model, with the evidence of its guarantee."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BundleError
from security.commands.options import Subparsers, add_tracking, check_tracking
from security.commands.stages import Stages
from security.errors import StoppedElsewhereError, TrackingError
from security.settings.loading import load_settings
from security.training.config import check_config, load_config

if TYPE_CHECKING:
    from models.data.datasets import AnyDataset
    from security.tracking.client import Client
    from security.tracking.training_run import TrainingRun
    from security.training.config_sections import TrainingConfig

__all__ = ["add_parser", "check", "refuse_existing", "run", "stopped_by_ctrl_c"]


@contextlib.contextmanager
def stopped_by_ctrl_c() -> Iterator[threading.Event]:
    """The first Ctrl-C asks for an end at the next step; the second insists."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        del frame
        if stop.is_set():
            signal.default_int_handler(number, None)
        stop.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="train a private model and write its bundle",
        description="Train a model with DP-SGD to the guarantee that the configuration "
        "states, export it to ONNX and write a new bundle with the privacy, parity and "
        "provenance reports. What it spends is booked in the privacy ledger before it "
        "is spent. Ctrl-C stops after the step it is in. Started by `torchrun -m`, "
        "several processes train together.",
    )
    parser.add_argument("config", metavar="CONFIG.toml", type=Path)
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument("--out", metavar="DIR", type=Path, help="the new bundle's folder")
    ways.add_argument(
        "--dry-run",
        action="store_true",
        help="as `check CONFIG.toml`: say what it would be, and train nothing",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted training of this bundle",
    )
    parser.add_argument(
        "--mlflow",
        action="store_true",
        help="write the training to MLflow when it is done, as a run with the model; "
        "its experiment is that of MLFLOW_EXPERIMENT_NAME",
    )
    add_tracking(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    check_tracking(args, used=args.mlflow, by="--mlflow")
    if args.dry_run:
        return check(args.config)
    first = os.environ.get("RANK", "0") == "0"  # of those that torchrun started
    client = _client(args.tracking_uri) if args.mlflow and first else None
    with Stages() if first else contextlib.nullcontext(_unseen) as stages:
        rows = None if "RANK" in os.environ else _refused_early(args)
        # Torch takes seconds to import; `--help` and every other command go without.
        from security.training.distributed import joined, leads  # noqa: PLC0415

        with joined():
            try:
                logged = _train(args, stages, rows, client)
            except StoppedElsewhereError:
                if leads():  # whoever stopped it may be too dead to say so
                    raise
                return 2
    if first:
        print(f"{'bundle':<12}{args.out}")
    if logged is not None:
        print(f"{'mlflow':<12}run {_finished(logged, args.out)}")
    return 0


def _finished(logged: TrainingRun, out: Path) -> str:
    """The id of the run that was written.

    Raises:
        TrackingError: it was not, or not all of it.
    """
    try:
        return logged.finish(out)
    except TrackingError as error:
        raise TrackingError(
            f"{error}; {out} is whole: `mlflow log` writes it to a run"
        ) from None


def _refused_early(args: argparse.Namespace) -> tuple[AnyDataset, AnyDataset]:
    """The rows, once all is refused that can be without torch."""
    from security.training.data import load_split  # noqa: PLC0415  (not for --help)

    config = load_config(args.config)
    refuse_existing(args.out)
    return load_split(config)


def refuse_existing(out: Path) -> None:
    """Refuse a bundle's folder that is there, before torch takes seconds to import.

    Raises:
        BundleError: it is.
    """
    if out.exists():
        raise BundleError(f"{out} exists already")


def check(path: Path) -> int:
    """Say what is wrong with a configuration and its data, or what it would give.

    Returns:
        The exit code.
    """
    from security.training.data import data_faults  # noqa: PLC0415  (not for --help)

    with Stages() as stages:
        stages("reading", 0.0)
        mistakes = check_config(path, data_faults)
    for mistake in mistakes:
        print(f"error: {mistake}", file=sys.stderr)
    if mistakes:
        return 2
    with Stages() as stages:
        stages("config", 1.0, f"{path.name} has no mistake")
        from security.training.ledger import Ledger  # noqa: PLC0415  (torch, as below)
        from security.training.rehearsal import rehearse  # noqa: PLC0415

        config = load_config(path)
        ledger = Ledger(load_settings().home / "ledger")
        rehearse(config, stages, ledger=ledger)
    return 0


def _train(
    args: argparse.Namespace,
    stages: Callable[..., None],
    rows: tuple[AnyDataset, AnyDataset] | None,
    client: Client | None,
) -> TrainingRun | None:
    from security.training.distributed import everyone  # noqa: PLC0415
    from security.training.ledger import Ledger  # noqa: PLC0415
    from security.training.run import train_bundle  # noqa: PLC0415
    from security.training.session import unseen  # noqa: PLC0415

    config = everyone(lambda: load_config(args.config))
    ledger = Ledger(load_settings().home / "ledger")
    logged = None if client is None else _logged(client, config)
    with stopped_by_ctrl_c() as stop:
        train_bundle(
            config,
            args.out,
            stages,
            ledger=ledger,
            going_on=args.resume,
            stop=stop,
            rows=rows,
            seen=logged.seen if logged is not None else unseen,
        )
    return logged


def _client(tracking_uri: str | None) -> Client:
    from security.tracking.client import connect  # noqa: PLC0415  (optional)

    return connect(tracking_uri)


def _logged(client: Client, config: TrainingConfig) -> TrainingRun:
    """Where the training is to be logged, while nothing has been spent on it."""
    from security.tracking.training_run import TrainingRun  # noqa: PLC0415  (as above)

    return TrainingRun(
        client,
        steps=config.privacy.steps,
        sampling_rate=config.privacy.sampling_rate,
    )


def _unseen(*_: object) -> None:
    """The progress of a process that is not the first."""
