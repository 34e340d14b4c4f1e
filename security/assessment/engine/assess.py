"""`assess`, a profile of the engine: what a bundle's evidence says of its model.

1. what is called training rows is what the provenance says was trained on;
2. no held-out row is among them;
3. the engine measures, structure first; a model beside it is attacked alike;
4. the reports are written: all of them, or none.

Without training rows, as of a model that was made elsewhere, steps 1 and 2 have nothing
to compare: the quality report says that the rows are held out ``as_given``, and there
is no membership report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle, read_bundle, report_file
from models.data import datasets
from models.data.datasets import AnyDataset, TabularDataset
from models.data.held_out import Holdout, holdout_of
from models.errors import BundleError
from models.files import write_atomic
from models.report import Condition, Metric, Report
from security.assessment.engine.run import Scan, ScanRequest, run_scan
from security.assessment.plan.options import Options
from security.assessment.plan.rows import class_indices
from security.assessment.plan.source import TargetSource
from security.assessment.results.result import CheckResult, ScanFinding
from security.assessment.targets.dataconfig import DataConfig
from security.errors import AssessmentError, HostileModel

__all__ = ["OPTIONS", "AssessRequest", "Assessed", "Progress", "Rows", "assess_bundle"]

# Called with a stage's name, the share of it that is done, its result at the end, and
# while it runs perhaps a note and how many seconds it still takes.
Progress = Callable[..., None]
Rows = AnyDataset | Holdout

OPTIONS = Options(
    profile="assess",
    checks=("quality", "fairness", "evasion", "membership"),
    radius_linf=0.02,
)
_KINDS = ("structure", "quality", "fairness", "robustness", "membership")
# Without these an assessment says nothing; the others need groups, gradients, rows.
_NEEDED = ("quality", "membership")
# What two models are compared by: classes, or a number.
_BESIDE = {
    False: ("clean_accuracy", "robust_accuracy"),
    True: ("clean_mae", "attacked_mae"),
}


@dataclass(frozen=True, eq=False)
class AssessRequest:
    """What is asked for.

    Attributes:
        bundle: the bundle's folder, hostile.
        holdout: rows that the model never saw.
        train: the rows it was trained on; None where they are not known.
        config: of the rows, where they are not a training configuration's.
        options: how hard to try.
        beside: another bundle that was trained on the same rows, to show what one
            gained and lost against the other.
        extras: for checks that need more than rows, by name.
    """

    bundle: Path
    holdout: Rows
    train: Rows | None = None
    config: DataConfig = field(default_factory=DataConfig)
    options: Options = OPTIONS
    beside: Path | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Assessed:
    """What came out.

    Attributes:
        reports: as written.
        missing: why there is no report, by kind; or no figure, by check.
        findings: rules that do not hold.
        lines: each report in a line, by kind; and how another model compares.
    """

    reports: tuple[Report, ...]
    missing: Mapping[str, str]
    findings: tuple[ScanFinding, ...] = ()
    lines: Mapping[str, str] = field(default_factory=dict)


def assess_bundle(
    request: AssessRequest, progress: Progress = lambda *_: None
) -> Assessed:
    """Assess a bundle and write its reports.

    Raises:
        HostileModel: structure refuses the model.
        AssessmentError: the rows are not what they must be, or quality or membership
            cannot be concluded; nothing was written.
        BundleError: a bundle cannot be read.
    """
    bundle = read_bundle(request.bundle)
    scan = _scanned(bundle, request, request.options.checks, progress)
    results = {item.name: item for item in scan.report.results}
    for name in _NEEDED:
        if name in results and results[name].status != "done":
            raise AssessmentError(f"{name}: {results[name].reason}")
    reports = {item.kind: item for item in scan.evidence}
    line = ""
    if request.beside is not None and "robustness" in reports:
        shown, line = _beside(bundle, request, reports["robustness"], progress)
        reports["robustness"] = shown
    written = tuple(reports[kind] for kind in _KINDS if kind in reports)
    for report in written:
        write_atomic(request.bundle / report_file(report.kind), report.to_json())
    lines = {report.kind: _LINES[report.kind](report) for report in written}
    if line:
        lines["trade-off"] = line
    missing = {name: results[name].reason for name in _unmeasured(request, results)}
    if "robustness" not in reports and "evasion" in results:
        missing["robustness"] = results["evasion"].reason
    return Assessed(written, missing, tuple(scan.report.findings), lines)


def _unmeasured(
    request: AssessRequest, results: Mapping[str, CheckResult]
) -> Iterator[str]:
    """Checks that evidence needs beside the usual ones, and that do not apply."""
    for name in _more(request):
        if results[name].status != "done":
            yield name


def _more(request: AssessRequest) -> list[str]:
    """Checks that evidence needs beside the usual ones."""
    return [name for name in request.options.wanted if name not in OPTIONS.checks]


def _scanned(
    bundle: Bundle, request: AssessRequest, checks: tuple[str, ...], progress: Progress
) -> Scan:
    """Steps 1 to 3 for one model.

    Structure is told first: whatever else is wrong, a hostile file is that.
    """
    source = TargetSource.of(bundle)
    extras = {**request.extras}
    if request.train is not None:
        extras["training data"] = _plain(request.train)
    trained = request.train is not None
    chosen = [name for name in checks if trained or name != "membership"]
    scan = ScanRequest(
        source=source,
        holdout=_plain(request.holdout),
        options=replace(
            request.options,
            checks=tuple(chosen),
            # Of the usual ones it is known already which apply; of a model beside it
            # nothing more is needed than what it is compared by.
            wanted=tuple(_more(request)) if checks == request.options.checks else (),
        ),
        config=request.config,
        subject=bundle.subject,
        compared=trained,
        extras=extras,
        before=lambda: _check_rows(bundle, request),
    )
    found = run_scan(
        scan,
        lambda now: progress(
            "measuring", now.done / now.total, "", now.running, now.left_s
        ),
    )
    if found.refused:
        first = found.report.findings[0]
        place = f" at {first.where}" if first.where else ""
        raise HostileModel(
            f"structure refuses the model: {first.rule}{place}: {first.message}"
        )
    return found


def _plain(rows: Rows) -> Holdout:
    return rows if isinstance(rows, Holdout) else holdout_of(rows)


def _check_rows(bundle: Bundle, request: AssessRequest) -> None:
    """Steps 1 and 2."""
    train, holdout = request.train, request.holdout
    for rows in (train, holdout):
        if rows is not None and not isinstance(rows, Holdout):
            _check_fits(bundle, rows)
    if train is None:
        return
    stated = _trained_on(bundle)
    if stated != [_digest(bundle, train)] and not _made_elsewhere(bundle, stated):
        raise AssessmentError("the model was trained on other rows than these")
    common = _common_rows(train, holdout)
    if common:
        raise AssessmentError(f"{common} held-out rows are among the training rows")


def _trained_on(bundle: Bundle) -> list[str]:
    provenance = bundle.report("provenance")
    if provenance.subject != bundle.subject:
        raise AssessmentError("the provenance report is about another model")
    return [item.sha256 for item in provenance.datasets if item.role == "train"]


def _made_elsewhere(bundle: Bundle, stated: list[str]) -> bool:
    """Whether nobody has recorded what it was trained on: it was imported."""
    return not stated and bundle.report("provenance").conditions.get("imported") is True


def _digest(bundle: Bundle, train: Rows) -> str:
    if not isinstance(train, Holdout):
        return datasets.digest(train.features, train.labels)
    classes = TargetSource.of(bundle).classes or train.classes
    if not classes:
        return ""
    return datasets.digest(train.features, class_indices(train, classes))


def _common_rows(train: Rows, holdout: Rows) -> int:
    if not isinstance(train, Holdout) and not isinstance(holdout, Holdout):
        return datasets.common_rows(train, holdout)
    known = {row.tobytes() for row in _values(train)}
    return sum(row.tobytes() in known for row in _values(holdout))


def _values(rows: Rows) -> NDArray[np.float64]:
    # Adding 0.0 turns -0.0 into 0.0: equal numbers must have equal bytes.
    flat = rows.features.reshape(len(rows), -1).astype(np.float64)
    return np.ascontiguousarray(flat + 0.0)


def _check_fits(bundle: Bundle, dataset: AnyDataset) -> None:
    """Refuse a data set whose columns, images or classes are not the model's."""
    given, name = bundle.manifest.inputs[0], dataset.name
    if isinstance(dataset, TabularDataset):
        fits, what = tuple(given.columns) == dataset.columns, "columns and ranges"
    else:
        shape = (-1, *dataset.features.shape[1:])
        fits = (given.spec.shape, given.bounds) == (shape, dataset.bounds)
        what = "image shape and pixel range"
    if not fits:
        raise AssessmentError(f"data set {name!r} does not have the model's {what}")
    if TargetSource.of(bundle).classes != dataset.classes:
        raise AssessmentError(f"data set {name!r} does not have the model's classes")


# A model beside it: what robustness costs. Adversarial training buys accuracy under
# attack with accuracy, and privacy costs both; who decides needs both models' figures.


def _beside(
    bundle: Bundle, request: AssessRequest, report: Report, progress: Progress
) -> tuple[Report, str]:
    """The robustness report with the other model's figures, and a line for people."""
    if request.beside is None:
        raise TypeError("no other bundle is given")
    other = read_bundle(request.beside)
    if not _trained_on(bundle) or _trained_on(other) != _trained_on(bundle):
        raise AssessmentError(f"{other.manifest.tag} was trained on other rows")
    own, its = _training(bundle), _training(other)
    attacked = _evasion(_scanned(other, request, ("evasion",), progress))
    conditions: dict[str, Condition] = {
        "beside": other.manifest.tag,
        "beside_sha256": other.subject.root_sha256,
        **own,
        **{f"beside_{name}": value for name, value in its.items()},
    }
    names = _BESIDE[bundle.manifest.number is not None]
    if names[0] not in attacked.metrics:
        raise AssessmentError(f"{other.manifest.tag} predicts something else")
    metrics = {f"beside_{name}": attacked.metrics[name] for name in names}
    shown = replace(
        report,
        conditions={**report.conditions, **conditions},
        metrics={**report.metrics, **metrics},
    )
    line = (
        f"{_say(report.metrics, own)}; {other.manifest.tag}, "
        f"{_say(attacked.metrics, its)}; Linf {report.metrics['radius'].value:g}"
    )
    return shown, line


def _evasion(scan: Scan) -> CheckResult:
    (result,) = (item for item in scan.report.results if item.name == "evasion")
    if result.status != "done":
        raise AssessmentError(f"the model beside it: {result.reason}")
    return result


def _training(bundle: Bundle) -> dict[str, Condition]:
    """Whether it was trained against attacks, and its epsilon, as its reports say."""
    config = bundle.report("provenance").details.get("config")
    chosen = config.get("adversarial") if isinstance(config, dict) else None
    method = chosen.get("method") if isinstance(chosen, dict) else None
    found: dict[str, Condition] = {"adversarial_training": str(method or "none")}
    try:
        epsilon = bundle.report("privacy").metrics.get("epsilon")
    except BundleError:
        epsilon = None
    found["epsilon"] = "none" if epsilon is None else epsilon.value
    return found


def _say(metrics: Mapping[str, Metric], training: Mapping[str, Condition]) -> str:
    names = _BESIDE["clean_mae" in metrics]
    clean, robust = (metrics[name].value for name in names)
    epsilon = training["epsilon"]
    shown = epsilon if isinstance(epsilon, str) else f"{epsilon:.2f}"
    what = "mean absolute error" if "clean_mae" in names else "accuracy"
    return (
        f"{what} {clean:.3f}, under attack {robust:.3f} "
        f"(adversarial training {training['adversarial_training']}, epsilon {shown})"
    )


# One line per report, for people.


def _structure_line(report: Report) -> str:
    figures = report.metrics
    found = sum(figures[name].value for name in ("errors", "warnings", "notes"))
    rules, nodes = report.conditions["rules"], figures.get("nodes", Metric(0.0))
    return f"{nodes.value:.0f} nodes, {rules} rules, {found:.0f} findings"


def _quality_line(report: Report) -> str:
    number = report.conditions.get("predicts") == "number"
    name, title = ("mae", "mean absolute error") if number else ("accuracy",) * 2
    line = _show(title, report.metrics[name])
    covered = report.metrics.get("coverage")
    stated = report.conditions.get("coverage_stated")
    return (
        line
        if covered is None
        else f"{line}; {_show('coverage', covered)}, {stated} stated"
    )


def _robustness_line(report: Report) -> str:
    failed = [check.id for check in report.checks if not check.passed]
    doubt = f"; NOT RELIABLE: {', '.join(failed)}" if failed else ""
    if report.conditions.get("predicts") == "number":
        stable = _show("answers that stay", report.metrics["stable_share"])
        return f"{stable} at Linf {report.metrics['radius'].value:g}{doubt}"
    line = _show("robust accuracy", report.metrics["robust_accuracy"])
    attacks = str(report.conditions["attacks"]).count(",") + 1
    radius = report.metrics["radius"].value
    proved = report.metrics.get("verified_accuracy")
    least = "; nothing is proved" if proved is None else f"; proved {proved.value:.3f}"
    return f"{line} at Linf {radius:g} (worst of {attacks} attacks){least}{doubt}"


def _membership_line(report: Report) -> str:
    rate = report.metrics["tpr_at_fpr_1pct"].value
    return f"{_show('attack AUC', report.metrics['auc'])}, TPR {rate:.3f} at 1% FPR"


def _fairness_line(report: Report) -> str:
    errors = [n for n in report.metrics if n.startswith("mae_difference/")]
    if errors:
        name = max(errors, key=lambda item: report.metrics[item].value)
        title = f"error differs by {name.partition('/')[2]} by"
        return _show(title, report.metrics[name])
    gaps = [n for n in report.metrics if n.startswith("selection_rate_difference/")]
    if not gaps:
        return "no two groups are large enough to compare"
    worst = max(gaps, key=lambda name: report.metrics[name].value)
    _, _, attribute = worst.partition("/")
    return _show(f"selection rate differs by {attribute} by", report.metrics[worst])


def _show(name: str, metric: Metric) -> str:
    if metric.low is None:
        return f"{name} {metric.value:.3f}, n={metric.n}"
    return (
        f"{name} {metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}], n={metric.n}"
    )


_LINES: Mapping[str, Callable[[Report], str]] = {
    "structure": _structure_line,
    "quality": _quality_line,
    "fairness": _fairness_line,
    "robustness": _robustness_line,
    "membership": _membership_line,
}
