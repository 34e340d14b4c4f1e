"""Train the next version, and say whether it is better: on the same held-out rows.

The comparison is McNemar's exact test: of the rows on which the two versions disagree
about being right, how many each has for itself. Of a number it is the exact sign test:
of the rows that one version predicts more closely, how many each has. Either reads
held-out rows, which the guarantee does not cover; the evidence says so.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from models.bundle import Bundle, read_bundle, report_file
from models.data.datasets import AnyDataset
from models.data.identity import CURRENT
from models.export import predict_onnx, run_onnx
from models.files import write_atomic
from models.report import Metric, Report
from models.restriction import restrict
from sealgate.protocol import strict_json
from security.errors import TrainingError
from security.training.config import parse_object
from security.training.config_sections import TrainingConfig
from security.training.data import load_split
from security.training.ledger import Ledger
from security.training.run import train_bundle

__all__ = ["Comparison", "compare_models", "next_version", "recorded_config", "retrain"]

ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two versions on the same rows.

    Attributes:
        rows: how many.
        before, after: share of them that each version gets right; of a number, its mean
            absolute error.
        only_before, only_after: rows that only that version gets right, or gets closer.
        p_value: two-sided, exact, of as uneven a split by chance.
        number: whether a number is predicted.
    """

    rows: int
    before: float
    after: float
    only_before: int
    only_after: int
    p_value: float
    number: bool = False

    @property
    def measure(self) -> str:
        """What is compared, as evidence calls it."""
        return "mae" if self.number else "accuracy"

    @property
    def test(self) -> str:
        """By which test, as evidence calls it."""
        return "sign_exact_two_sided" if self.number else "mcnemar_exact_two_sided"

    @property
    def verdict(self) -> str:
        """One of better, worse, no_difference_shown."""
        if self.p_value >= ALPHA:
            return "no_difference_shown"
        return "better" if self.only_after > self.only_before else "worse"

    def line(self) -> str:
        """The comparison, for people."""
        what = "mean absolute error" if self.number else "accuracy"
        test = "sign test" if self.number else "McNemar"
        return (
            f"{what} {self.before:.3f} before, {self.after:.3f} now on {self.rows} "
            f"held-out rows; {test} p={self.p_value:.3g}: "
            f"{self.verdict.replace('_', ' ')}"
        )


def retrain(
    current: Path,
    source: str,
    out: Path,
    progress: Callable[..., None],
    *,
    ledger: Ledger,
    base: Path,
    stop: threading.Event | None = None,
) -> Comparison:
    """Train the next version of a bundle on new data, and compare the two.

    Args:
        current: the bundle's folder.
        source: of the new data; empty for the same source, read again.
        out: the new bundle's folder, which must not exist.
        progress: as of `run.train_bundle`.
        ledger: as of `run.train_bundle`; the declared name is the same, so what was
            spent before counts.
        base: the folder that relative paths start from.
        stop: as of `run.train_bundle`.

    Raises:
        TrainingError: the bundle does not say how it was trained, or training failed.
        LedgerError: the remaining budget does not allow it.
        DatasetError: the data is not what the configuration says.
        BundleError: the bundle cannot be read, or ``out`` exists.
    """
    old = read_bundle(current)
    config = recorded_config(old)
    data = replace(config.data, source=source) if source else config.data
    if data.holdout_source:
        # Its file says which rows are held out, under any version; by the newest,
        # fewer rows that only look different are trained on.
        data = replace(data, row_identity=CURRENT)
    model = replace(config.model, version=next_version(config.model.version))
    changed = replace(config, data=data, model=model, _base=base)
    _, holdout = load_split(changed)
    _check_schema(old, holdout)
    train_bundle(changed, out, progress, ledger=ledger, stop=stop)
    # What may leave of answers is no more than of the version before, save that it
    # answers every row: sets are the model's own, and it has none yet.
    new = restrict(out, replace(old.manifest.output_policy, abstain=False))
    if old.manifest.conformal is not None:
        progress("intervals", 1.0, "none yet: `calibrate` the new version")
    comparison = compare_models(old.model, new.model, holdout)
    progress("comparison", 1.0, comparison.line())
    _record(out, old, new, comparison)
    return comparison


def next_version(version: str) -> str:
    """The version after one.

    >>> next_version("1.0.9")
    '1.0.10'
    """
    head, dot, last = version.rpartition(".")
    return f"{head}{dot}{int(last) + 1}"


def recorded_config(bundle: Bundle) -> TrainingConfig:
    """The configuration that a bundle says it was trained under.

    Raises:
        TrainingError: its provenance does not say, or not about this model.
    """
    report = bundle.report("provenance")
    if report.subject != bundle.subject:
        raise TrainingError("the provenance report is about another model")
    value: Any = report.details.get("config")
    if not isinstance(value, dict):
        raise TrainingError("the bundle does not say under which configuration")
    digest = hashlib.sha256(strict_json.dumps(value)).hexdigest()
    if digest != report.conditions.get("config_sha256"):
        raise TrainingError(
            "the bundle's configuration is not the one it was made with"
        )
    return parse_object(value, where="the bundle's configuration")


def compare_models(old: bytes, new: bytes, holdout: AnyDataset) -> Comparison:
    """Two exported models on the same rows, by an exact test of pairs."""
    if holdout.target is not None:
        errors = [
            np.abs(predict_onnx(model, holdout.features) - holdout.labels)
            for model in (old, new)
        ]
        return _signs(errors[0], errors[1])
    right = [
        run_onnx(model, holdout.features)[1] == holdout.labels for model in (old, new)
    ]
    return _mcnemar(right[0], right[1])


def _mcnemar(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Comparison:
    return _compared(before, after, before & ~after, after & ~before)


def _signs(before: NDArray[np.float64], after: NDArray[np.float64]) -> Comparison:
    """By the absolute errors of each version."""
    return _compared(before, after, before < after, after < before, number=True)


def _compared(
    before: NDArray[Any],
    after: NDArray[Any],
    *better: NDArray[np.bool_],
    number: bool = False,
) -> Comparison:
    """Of the rows on which one version alone is better: the former's, the latter's."""
    only_before, only_after = (int(rows.sum()) for rows in better)
    return Comparison(
        rows=len(before),
        before=float(before.mean()),
        after=float(after.mean()),
        only_before=only_before,
        only_after=only_after,
        p_value=_uneven(only_before, only_after),
        number=number,
    )


def _uneven(first: int, second: int) -> float:
    """How likely chance splits rows as unevenly."""
    differ = first + second
    return float(stats.binomtest(second, differ, 0.5).pvalue) if differ else 1.0


def _check_schema(old: Bundle, holdout: AnyDataset) -> None:
    number, target = old.manifest.number, holdout.target
    if target is not None or number is not None:
        ends = None if target is None else (target.low, target.high)
        if number is None or number.bounds != ends:
            raise TrainingError("the new data has another target than this version")
        return
    labels = next(item.labels for item in old.manifest.outputs if item.labels)
    if labels != holdout.classes:
        raise TrainingError("the new data has other classes than the current version")


def _record(out: Path, old: Bundle, new: Bundle, comparison: Comparison) -> None:
    """Add the comparison to the new bundle's provenance, before anybody signs it."""
    report = new.report("provenance")
    metrics = {
        **report.metrics,
        f"{comparison.measure}_before": Metric(comparison.before, n=comparison.rows),
        f"{comparison.measure}_after": Metric(comparison.after, n=comparison.rows),
        "comparison_p_value": Metric(comparison.p_value, n=comparison.rows),
    }
    conditions = {
        **report.conditions,
        "compared_with": old.manifest.version,
        "compared_with_sha256": old.subject.root_sha256,
        "comparison_test": comparison.test,
        "comparison": comparison.verdict,
        "comparison_covered_by_epsilon": False,
    }
    details = {
        **report.details,
        "comparison": {
            "only_before": comparison.only_before,
            "only_after": comparison.only_after,
        },
    }
    written: Report = replace(
        report, metrics=metrics, conditions=conditions, details=details
    )
    write_atomic(out / report_file("provenance"), written.to_json())
