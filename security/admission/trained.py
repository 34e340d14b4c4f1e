"""Part of check 27: what a training under DP-SGD wrote, field by field. No I/O.

A training says most things twice: in its configuration, in the conditions, in a metric.
Whoever changes one of these, with the trainer's key, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.report import Report
from security.admission.clamped import clamped_contradictions
from security.admission.regression import REGRESSION
from security.admission.stated import Found, differ, number
from security.admission.trained_ebm import EBM_MECHANISM, ebm_contradictions

__all__ = ["Training", "training_contradictions"]

# How far an accountant's claim may be from the second one's.
_AGREEMENT = 0.03
# Delta's share that pays for the verdicts on the mechanism.
_VERDICT_SHARE = 1e-3
_METHODS = ("bookkeeping", "functorch", "ghost", "hooks", "vmap")
_CHECKS = {
    *("accountants-agree", "target-kept", "noise-conforms", "clipping-conforms"),
    "sampler-conforms",
}
# What each of these says in every report that a training writes.
_CONSTANTS: Mapping[str, Any] = {
    "accountant_bound": "upper",
    "covers_holdout": False,
    "noise_floating_point": "sum_of_four_gaussians",
    "normalisation": "public_constant",
    "preprocessing": "public_ranges",
    "row_count": "public",
    "verdicts_cover": "every_step_in_the_weights",
}
_SEARCH: Mapping[str, Any] = {
    "search_bound": "papernot_steinke_2022",
    "search_drawn": "uniformly_with_replacement",
    "search_released": "best_try_alone",
}
_LISTS = (
    *("centre", "clipping", "ema", "expected_batch", "hidden", "learning_rate"),
    *("max_grad_norm", "momentum", "schedule"),
)


@dataclass(frozen=True)
class Training:
    """What a training wrote, as far as a policy asks for it.

    Attributes:
        privacy: a report that states an epsilon.
        config: the configuration that it carries.
    """

    privacy: Report
    config: Mapping[str, Any]

    def section(self, name: str) -> Mapping[str, Any]:
        """A table of the configuration; empty if there is none."""
        value = self.config.get(name)
        return value if isinstance(value, dict) else {}

    @property
    def owned(self) -> bool:
        """Whether persons, of several rows each, are protected."""
        return bool(self.section("data").get("unit"))

    @property
    def grouped(self) -> bool:
        """Whether rows are sampled, and persons accounted for as groups of them."""
        return self.owned and self.section("privacy").get("unit_bound") == "group"


def training_contradictions(privacy: Report) -> Found:
    """Every field against the configuration, and against each other."""
    config = privacy.details["config"]
    if not isinstance(config, dict):
        yield "privacy: the configuration is not a table"
        return
    yield from clamped_contradictions(privacy, config)
    told = Training(privacy, config)
    if privacy.conditions.get("mechanism") == "none":
        personal = told.section("data").get("personal")
        yield from differ("privacy", privacy.conditions, {"personal_data": personal})
        if told.section("privacy").get("mechanism") != "none":
            yield "privacy: the configuration asks for a mechanism"
        return
    if privacy.conditions.get("mechanism") == EBM_MECHANISM:
        yield from ebm_contradictions(privacy, config)
        return
    yield from differ("privacy", privacy.conditions, _expected(told))
    origins = _origins(told)
    if origins.keys() & privacy.conditions.keys():  # release 0.1 states none of them
        yield from differ("privacy", privacy.conditions, origins)
    yield from _ranges(told)
    yield from _metrics(privacy)
    ids = [check.id for check in privacy.checks]
    if set(ids) != _CHECKS or len(ids) != len(_CHECKS):
        yield f"privacy: its checks are not {', '.join(sorted(_CHECKS))}"


def _expected(told: Training) -> dict[str, Any]:
    """What each condition must be, given the configuration."""
    asked, search = told.section("privacy"), told.section("search")
    owner = told.owned
    sampled = "unit" if owner and not told.grouped else "row"
    heard = bool(asked.get("loss_share")) and not search
    values = {name: item.value for name, item in told.privacy.metrics.items()}
    group = told.section("data").get("max_rows_per_unit") if told.grouped else 1
    expected = {
        **_CONSTANTS,
        "accountant": _accountant(told),
        "accountant_version": told.privacy.tools.get("opacus"),
        "clipping": f"per_{sampled}_{asked.get('clipping')}_l2",
        "delta": asked.get("delta") or values.get("delta"),
        "group_size": group,
        "hyperparameters": "private_selection" if search else "fixed_in_configuration",
        "max_grad_norm": asked.get("max_grad_norm"),
        "noise_multiplier": values.get("noise_multiplier"),
        "normalisation_constant": asked.get("expected_batch"),
        "personal_data": told.section("data").get("personal"),
        "precision": told.section("compute").get("precision"),
        "sample_rate": asked.get("sampling_rate"),
        "sampled": sampled,
        "steps": asked.get("steps"),
        "target_epsilon": asked.get("epsilon"),
        "training_loss": "noisy_in_mechanism" if heard else "not_told",
        "unit": "owner" if owner else "row",
    }
    if search:
        expected |= {
            **_SEARCH,
            "search_score": _score(told),
            "search_candidates": _product(search),
            "search_distribution": search.get("distribution"),
            "search_expected_tries": search.get("tries"),
            "search_score_noise": search.get("score_noise"),
        }
    return expected


def _score(told: Training) -> str:
    number = told.section("data").get("task") == REGRESSION
    right = "share_of_range" if number else "units"
    return f"{right}_right_in_training_rows"


def _origins(told: Training) -> dict[str, Any]:
    """Where everything began that noisy gradients did not move."""
    stated, details = told.privacy.conditions, told.privacy.details
    model, drawn = told.section("model"), details.get("initial_weights")
    outside = details.get("outside_mechanism")
    named = outside if isinstance(outside, list) else []
    names = [item.get("name") for item in named if isinstance(item, dict)]
    brought = any(str(name).startswith("body.") for name in names)
    public = model.get("initial_weights") == "public"
    digest = stated.get("initial_weights_sha256")
    seed = drawn.get("seed") if isinstance(drawn, dict) else None
    honest = public or (seed is not None and seed == model.get("seed"))
    return {
        "initial_weights": f"public:{digest}" if public else "random",
        "initial_weights_sha256": digest if digest and honest else "the seed's",
        "ledger": "booked" if stated.get("personal_data") else "not_booked",
        "outside_mechanism": "public_preprocessing"
        + ("_and_network" if brought else ""),
        "outside_mechanism_sha256": stated.get("outside_mechanism_sha256")
        or "a digest",
    }


def _accountant(told: Training) -> str:
    if told.section("search"):
        return "rdp"
    return "pld" if told.privacy.conditions.get("group_size", 1) != 1 else "prv"


def _product(search: Mapping[str, Any]) -> int:
    """How many candidates a search has."""
    count = 1
    for name in _LISTS:
        values = search.get(name)
        count *= len(values) if isinstance(values, list) and values else 1
    return count


def _ranges(told: Training) -> Found:
    """Conditions that the configuration leaves open, within what can be."""
    stated = told.privacy.conditions
    rows = sum(item.rows for item in told.privacy.datasets)
    units, steps = stated.get("units"), stated.get("steps_in_weights")
    if type(units) is not int or not 1 <= units <= rows:
        yield f"privacy: {units} units in {rows} rows"
    elif units != rows and not (told.owned and not told.grouped):
        yield f"privacy: units are rows, yet {units} is not {rows}"
    elif not 0 < number(stated.get("delta")) < 1 / units:
        yield "privacy: delta is not below one over the number of units"
    planned = stated.get("steps")
    if type(steps) is not int or not 1 <= steps <= number(planned):
        yield f"privacy: {steps} of {planned} steps are in the weights"
    processes = stated.get("processes")
    if type(processes) is not int or processes < 1:
        yield "privacy: processes is not a count"
    method, asked = stated.get("gradient_method"), told.section("compute")
    if method not in _METHODS or asked.get("gradients") not in ("auto", method):
        yield f"privacy: gradient_method {method!r} is not the configuration's"
    secure = told.section("privacy").get("secure")
    if not stated.get("noise_generator"):
        yield "privacy: noise_generator is not stated"
    if stated.get("noise_generator") == "os_urandom" and secure is not True:
        yield "privacy: the noise was not to come from the operating system"
    share, delta = (number(stated.get(n)) for n in ("delta_for_verdicts", "delta"))
    if not abs(share - delta * _VERDICT_SHARE) <= delta * 1e-9:
        yield "privacy: delta_for_verdicts is not a thousandth of delta"


def _metrics(privacy: Report) -> Found:
    """The claim, what the other accountants say, and what the verdicts rest on."""
    metrics, stated = privacy.metrics, privacy.conditions
    searched = stated.get("hyperparameters") == "private_selection"
    second = "epsilon_dp_accounting_rdp" if searched else "epsilon_pld"
    names = {
        *("epsilon", second, "delta", "noise_multiplier", "noise_deficit_detectable"),
        *(("epsilon_rdp",) if stated.get("accountant") == "prv" else ()),
    }
    if missing := names - metrics.keys():
        yield f"privacy: {min(missing)} is not in the report"
        return
    claim = metrics["epsilon"].value
    if not abs(claim - metrics[second].value) <= _AGREEMENT:
        yield f"privacy: epsilon and {second} do not agree"
    if "epsilon_rdp" in names and not metrics["epsilon_rdp"].value >= claim:
        yield "privacy: epsilon_rdp is below epsilon, which is tighter"
    found = metrics["noise_deficit_detectable"]
    steps, draws = stated.get("steps_in_weights"), found.n
    # Each step draws one number for each weight.
    if not draws or type(steps) is not int or steps < 1 or draws % steps:
        yield "privacy: the verdict on the noise rests on other steps than the weights"
    if not 0 <= found.value < 1:
        yield "privacy: noise_deficit_detectable is not a share"
