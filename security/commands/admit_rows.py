"""`admit --rows`: the certified end of robustness, recomputed from the signed graph.

1. the robustness report claims a certificate, by a method that is known here;
2. the rows are those whose digest the report names, and their space is its own;
3. the same rows of them are taken: all, or those that the report's seed draws;
4. the bounds come out again, from code that the report's author did not run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from security.commands.rows import (
    add_data_config,
    configured_rows,
    data_config,
    file_rows,
)
from security.errors import AdmissionRefused, AssessmentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.bundle import Bundle
    from models.data.held_out import Holdout
    from models.report import Report
    from security.assessment.plan.options import Options
    from security.assessment.targets.dataconfig import DataConfig

__all__ = ["GivenRows", "add_rows", "given_rows", "recompute"]

_CHECK = 10
_MAX_RADII = 8


class GivenRows:
    """What --rows and --data-config name."""

    def __init__(self, path: Path, config: DataConfig, decision: str | None) -> None:
        self.path, self.config, self.decision = path, config, decision

    def load(self, folder: Path, bundle: Bundle) -> Holdout:
        """The held-out rows of a file, or of a training configuration."""
        from models.data.held_out import holdout_of  # noqa: PLC0415  (numpy)

        if self.path.suffix == ".toml":
            return holdout_of(configured_rows(self.path, folder)[1])
        manifest = bundle.manifest
        return file_rows(self.path, self.config, manifest.columns, manifest.text)


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Add --rows, and what says how they are read."""
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="HOLDOUT",
        help="the held-out rows of the robustness report, as `assess` had them: a "
        "file, or the training configuration; what it claims is proved is recomputed",
    )
    add_data_config(parser)


def given_rows(args: argparse.Namespace) -> GivenRows | None:
    """What the options name; None without --rows."""
    if args.rows is None:
        return None
    return GivenRows(args.rows, data_config(args), args.decision)


def recompute(
    folder: Path, bundle: Bundle, report: Report | None, rows: GivenRows | None
) -> dict[str, float] | None:
    """The certified figures that come out again; None where there are none, or no rows.

    Raises:
        AdmissionRefused: the rows, their space or the model are not the report's.
        DatasetError: the rows cannot be read.
    """
    from security.admission.certified import claimed  # noqa: PLC0415

    if rows is None or report is None:
        return None
    names = claimed(report)
    if not names:
        raise AdmissionRefused(
            _CHECK, "robustness: nothing is claimed to be proved; --rows has no use"
        )
    if report.conditions.get("certificate") != "crown":
        raise AdmissionRefused(_CHECK, "robustness: an unknown kind of certificate")
    holdout = rows.load(folder, bundle)
    try:
        return _again(bundle, report, holdout, rows, names)
    except AssessmentError as error:
        raise AdmissionRefused(
            _CHECK, f"robustness: nothing can be recomputed: {error}"
        ) from None


def _again(
    bundle: Bundle,
    report: Report,
    holdout: Holdout,
    rows: GivenRows,
    names: dict[str, float],
) -> dict[str, float]:
    """Steps 2 to 4."""
    import numpy as np  # noqa: PLC0415  (half a second with what follows)

    from security.assessment.checks.evasion.certified import (  # noqa: PLC0415
        AGAIN,
        prover_of,
        space_digest,
    )
    from security.assessment.checks.evasion.plan import bearable  # noqa: PLC0415
    from security.assessment.plan.context import Context, prepare  # noqa: PLC0415
    from security.assessment.plan.source import TargetSource  # noqa: PLC0415

    radii = _radii(report, names)
    options = _options(report, tuple(radii.values()), rows.decision)
    job, target = prepare(TargetSource.of(bundle), holdout, options, rows.config)
    context = Context(job, target)
    _check_rows(report, job.dataset.sha256, space_digest(job))
    number = job.reading.number
    every: NDArray[np.int64] = np.arange(len(job.rows))
    if number:
        every = np.flatnonzero(np.isfinite(job.clean.numbers))
    places = bearable(context, every)
    if any(report.metrics[name].n != len(places) for name in names):
        raise AdmissionRefused(_CHECK, "robustness: its figures are of other rows")
    prover, order = prover_of(job), sorted({*radii.values()})
    if number:
        most = prover.changes(places, order, safety=AGAIN).max(axis=1)
        found = {radius: float(value) for radius, value in zip(order, most)}
    else:
        shares = prover.proved(places, order, safety=AGAIN).mean(axis=0)
        found = {radius: float(value) for radius, value in zip(order, shares)}
    return {name: found[radius] for name, radius in radii.items()}


def _radii(report: Report, names: dict[str, float]) -> dict[str, float]:
    """The radius that each figure is of."""
    stated: Any = report.conditions.get("radius")
    found = {}
    for name in names:
        text = name.partition("/")[2]
        try:
            found[name] = float(text or stated)
        except (TypeError, ValueError):
            raise AdmissionRefused(
                _CHECK, f"robustness: {name} has no radius"
            ) from None
    if len({*found.values()}) > _MAX_RADII:
        raise AdmissionRefused(_CHECK, "robustness: too many radii")
    return found


def _options(report: Report, radii: tuple[float, ...], decision: str | None) -> Options:
    """How the report's author chose rows: its profile and its seed."""
    from security.assessment.plan.options import Options  # noqa: PLC0415

    profile, seed = (report.conditions.get(name) for name in ("profile", "seed"))
    if type(seed) is not int or not isinstance(profile, str):
        raise AdmissionRefused(
            _CHECK, "robustness: it does not say which rows it is of"
        )
    return Options(
        profile=profile,
        seed=seed,
        checks=("evasion",),
        radius_linf=tuple(dict.fromkeys(radii)),
        decision=decision,
    )


def _check_rows(report: Report, digest: str, space: str) -> None:
    stated = [item.sha256 for item in report.datasets if item.role == "holdout"]
    if stated != [digest]:
        raise AdmissionRefused(
            _CHECK, "robustness: the rows given are not those that the report names"
        )
    if report.conditions.get("space_sha256") != space:
        raise AdmissionRefused(
            _CHECK,
            "robustness: rows move in another space than the report's: --data-config "
            "is not the one that it was assessed with",
        )
