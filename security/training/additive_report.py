"""What the evidence says of an "ebm": its mechanism, its checks, its curves."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from models.additive import AdditiveClassifier
from models.export import CONTRIBUTIONS
from models.manifest import Tensor
from models.report import Check, Condition
from sealgate.protocol.tensors import TensorSpec
from security.admission.trained_ebm import rounding_of
from security.training import accounting
from security.training.accounting import Mechanism
from security.training.config_sections import TrainingConfig
from security.training.guarantee import Guarantee

__all__ = [
    "additive_checks",
    "additive_conditions",
    "additive_output",
    "additive_tools",
    "curves",
]


def additive_output(columns: int) -> Tensor:
    """What each column adds to the log-odds of the second class."""
    return Tensor(TensorSpec(CONTRIBUTIONS, "FP32", (-1, columns)))


def additive_tools() -> dict[str, str]:
    """Versions of what no other training uses: the booster, and what GDP rests on."""
    names = ("interpret-core", "scipy")
    return {name: importlib.metadata.version(name) for name in names}


def additive_conditions(
    config: TrainingConfig, mechanism: Mechanism, guarantee: Guarantee, units: int
) -> Mapping[str, Condition]:
    """What was done to the rows; with delta and units, epsilon follows from it.

    One row adds at most 1 to one bin of each histogram, and a residual below 1 to one
    leaf of each split, so the noise is in units of a query's sensitivity; what sums may
    round is added to it, and stated as a share of it. Splits are
    drawn by InterpretML, from what is public or has been made private.
    """
    boosting = config.boosted
    return {
        "mechanism": "dp_ebm_gaussian",
        "neighbouring": "add_or_remove_one",
        "sampling": "all_rows",
        "sample_rate": mechanism.sample_rate,
        "noise_multiplier": mechanism.noise_multiplier,
        "sensitivity": 1.0,
        "sums": "float64",
        "rounding": rounding_of(units),
        "steps": mechanism.steps,
        "steps_in_weights": mechanism.steps,
        "rounds": boosting.rounds,
        "terms": mechanism.steps // (boosting.rounds + 1),
        "bags": 1,
        "rows_per_unit": 1,
        "learning_rate": boosting.learning_rate,
        "bins": boosting.bins,
        "leaves": boosting.leaves,
        "categories": "public_schema",
        "target_epsilon": config.privacy.epsilon,
        "delta": guarantee.delta,
        "delta_for_verdicts": guarantee.delta - guarantee.mechanism_delta,
        "accountant": guarantee.accountant,
        "accountant_version": importlib.metadata.version("scipy"),
        "accountant_bound": "exact",
        "preprocessing": "public_ranges",
        "hyperparameters": "fixed_in_configuration",
        "training_loss": "not_told",
        "row_count": "public",  # it decides delta, and which bins are merged
        "noise_floating_point": "sum_of_four_gaussians",
        "split_generator": "interpret",
        "verdicts_cover": "every_step_in_the_weights",
        "covers_holdout": False,
    }


def additive_checks(guarantee: Guarantee, target: float) -> tuple[Check, ...]:
    """What was tried of the mechanism."""
    slack, verdicts = accounting.AGREEMENT_SLACK, guarantee.verdicts
    agree = abs(guarantee.claim - guarantee.second) <= slack
    kept = max(guarantee.claim, guarantee.second) <= target
    return (
        Check("accountants-agree", agree, f"gdp and pld differ by at most {slack:g}"),
        Check("target-kept", kept, f"target epsilon {target:g}"),
        Check(
            "noise-conforms",
            verdicts.noise,
            f"chi-square on {verdicts.draws} numbers of the noise that InterpretML was "
            f"given, at level {guarantee.level:.1e}",
        ),
    )


def curves(module: AdditiveClassifier) -> dict[str, Any]:
    """Every number of the model, column by column: it is its own explanation.

    A number's score is ``scores[i]`` where it reaches i of the cuts; a category's
    stands in the order of the schema, after that of what is none of them.
    """
    terms = []
    for place, column in enumerate(module.columns):
        cuts, scores = module.body.curve(place)
        count = len(column.categories)
        if column.categories:
            own = {"none": float(scores[0]), "scores": scores[1 : count + 1].tolist()}
        else:
            inside = cuts[cuts <= column.high]
            own = {
                "cuts": inside.tolist(),
                "scores": scores[: len(inside) + 1].tolist(),
            }
        terms.append({"column": column.name, **own})
    intercept = float(module.body.intercept.detach()[0])
    return {"intercept": intercept, "terms": terms, **_flags(module)}


def _flags(module: AdditiveClassifier) -> dict[str, Any]:
    """What a missing number adds beside the score of its column's centre."""
    width, numeric = len(module.columns), []
    if module.width > width:
        numeric = [item.name for item in module.columns if not item.categories]
    found = {}
    for place, name in enumerate(numeric, start=width):
        _, scores = module.body.curve(place)
        found[name] = [float(scores[0]), float(scores[1])]
    return {"missing": found} if found else {}
