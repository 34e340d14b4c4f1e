"""The names of metrics, by kind of evidence and by what measures them: one table.

`policy check` says which names of a policy nothing here writes, and `assess --policy`
runs the checks that a policy's metrics come from. A name may have a group after a slash
(``mae/sex=F``), which is not part of it here; ``*`` stands for the name of a column.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

__all__ = ["METRICS", "check_of", "kind_of", "known", "names_of"]

_BOTH_NORMS = ("robust_accuracy", "radius")
_CHANGES = (
    *("stable_share", "mean_largest_change", "relative_change", "largest_change"),
    "attacked_mae",
)
_RATES = ("selection_rate", "tpr", "fpr", "accuracy", "calibration")
_MEMBERSHIP = ("auc", "tpr_at_fpr_1pct", "tpr_at_fpr_0.1pct")
_ATTACKS = ("loss", "rule", "learned", "lira", "rmia", "label_only", "residual")

METRICS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "quality": {
        "quality": (
            *("accuracy", "auc", "log_loss", "calibration_error"),
            *("missing_failed", "missing_changed"),
            *("out_of_range_failed", "out_of_range_changed"),
            *("mae", "rmse", "r2", "median_absolute_error", "mean_error"),
            *("coverage", "interval_width", "interval_width_scaled"),
            *("set_size", "abstention", "answered_accuracy"),
        ),
    },
    "fairness": {
        "fairness": (
            *_RATES,
            *(f"{rate}_difference" for rate in _RATES),
            *(f"{rate}_ratio" for rate in ("selection_rate", "tpr", "fpr")),
            *("mae", "mean_error"),
            *("mae_difference", "mean_error_difference", "mae_ratio"),
        ),
    },
    "robustness": {
        "evasion": (
            *(name + end for name in _BOTH_NORMS for end in ("", "_linf", "_l2")),
            *(name + end for name in _CHANGES for end in ("", "_linf", "_l2")),
            *(f"verified_accuracy{end}" for end in ("", "_linf")),
            *(f"largest_change_bound{end}" for end in ("", "_linf")),
            *("clean_accuracy", "clean_mae", "tolerance", "parity_difference"),
            *("beside_clean_accuracy", "beside_robust_accuracy"),
            *("beside_clean_mae", "beside_attacked_mae"),
        ),
        "evasion-cost": ("robust_accuracy_cost", "max_cost"),
        "edits": ("robust_accuracy_edits", "edits"),
        "smoothing": ("certified_accuracy", "smoothed_accuracy"),
        "corruption": ("corruption_drop", "corruption_rise"),
    },
    "membership": {
        "membership": (
            *_MEMBERSHIP,
            *(f"all_scores_{rate}" for rate in _MEMBERSHIP),
            *(f"{attack}_{rate}" for attack in _ATTACKS for rate in _MEMBERSHIP),
        ),
        "canaries": ("epsilon_at_least_*",),
        "attributes": ("*_advantage", "*_with_model", "*_without_model"),
    },
    "parity": {
        "": ("max_abs_difference", "label_agreement", "max_abs_difference_holdout"),
    },
    "privacy": {
        "": (
            *("epsilon", "epsilon_pld", "epsilon_rdp", "epsilon_dp_accounting_rdp"),
            *("delta", "noise_multiplier", "noise_deficit_detectable"),
            *("clamped_targets", "clamped_targets_noise"),
        ),
    },
    "comparison": {"": ("worse", "*_loss")},
    "agreement": {
        "": (
            *("disagreement", "failed", "skipped", "latency_ratio"),
            *("latency_ms", "default_latency_ms"),
        ),
    },
    "monitoring": {"": ("drift_alarms", "psi", "accuracy", "coverage", "epsilon")},
    "provenance": {
        "": (
            *("accuracy_before", "accuracy_after", "comparison_p_value"),
            *("mae_before", "mae_after"),
        ),
    },
    "reference": {"": ("events", "epsilon", "delta", "sigma")},
    "structure": {
        "": (
            *("errors", "warnings", "notes", "model_bytes"),
            *("nodes", "initializers", "functions"),
        ),
    },
}
"""Kind of evidence, the check of the engine that measures it ("" for none), names."""


def check_of(kind: str, metric: str) -> str | None:
    """The check of the engine that measures a metric; None where there is none.

    >>> check_of("robustness", "robust_accuracy_cost"), check_of("privacy", "epsilon")
    ('evasion-cost', None)
    """
    name = metric.partition("/")[0]
    for check, names in METRICS.get(kind, {}).items():
        if _in(name, names):
            return check or None
    return None


def kind_of(check: str) -> str | None:
    """The kind of evidence that a check's metrics belong to; None where to none.

    >>> kind_of("smoothing"), kind_of("extraction")
    ('robustness', None)
    """
    for kind, checks in METRICS.items():
        if check in checks:
            return kind
    return None


def known(kind: str, metric: str) -> bool:
    """Whether something here writes a metric of this name into that kind's report.

    >>> known("quality", "mae/sex=F"), known("quality", "robust_accuracy")
    (True, False)
    """
    name = metric.partition("/")[0]
    return any(_in(name, names) for names in METRICS.get(kind, {}).values())


def names_of(kind: str) -> list[str]:
    """All names of a kind, for who looks for the one that was meant."""
    return sorted(name for names in METRICS.get(kind, {}).values() for name in names)


def _in(name: str, names: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, item) for item in names)
