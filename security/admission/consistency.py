"""Check 27 of the gate: reports that contradict themselves or each other. No I/O.

A key vouches for a report; it cannot vouch for two that say different things. What a
training writes says most things twice: in the configuration, in the conditions, in a
metric, in the report beside it. Each field is held to every other place that says the
same, so that whoever changes one, with the trainer's key, is refused.

Who changes all of them alike is not: docs/threat-model.md lists what such a trainer can
claim, and what else would show it.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from models.bundle import MODEL_FILE, Bundle
from models.report import Dataset, Report
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.admission.coverage import coverage_contradictions
from security.admission.rules import Requirement
from security.admission.steps import Steps
from security.errors import AdmissionRefused, MonitoringError
from security.monitoring.reference import reference_of

__all__ = ["CONTRADICTION_CHECK", "contradiction_steps", "initial_weights"]

CONTRADICTION_CHECK = 27

# Both reports are written at the end of one training.
_TOGETHER = timedelta(minutes=10)
# How far an accountant's claim may be from the second one's.
_AGREEMENT = 0.03
# Delta's share that pays for the verdicts on the mechanism.
_VERDICT_SHARE = 1e-3
_INITIAL_WEIGHTS = re.compile(r"random|public:[0-9a-f]{64}")
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
    "search_score": "units_right_in_training_rows",
}
# What measures a model on rows says what it predicts: one thing.
_NORMS = ("", "_linf", "_l2")
_OF_ROWS = ("quality", "fairness", "robustness", "membership")
_LISTS = (
    *("centre", "clipping", "ema", "expected_batch", "hidden", "learning_rate"),
    *("max_grad_norm", "momentum", "schedule"),
)

Found = Iterator[str]


@dataclass(frozen=True)
class _Training:
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


def initial_weights(privacy: Report) -> str | None:
    """Where a training started from; None in reports of releases that did not say."""
    stated = privacy.conditions.get("initial_weights")
    return None if stated is None else str(stated)


def contradiction_steps(
    bundle: Bundle, reports: Mapping[str, Report], required: Mapping[str, Requirement]
) -> Steps[None]:
    """Check 27, over the reports that a policy asks for, whose keys were checked."""
    for message in _contradictions(bundle, reports, required):
        yield AdmissionRefused(CONTRADICTION_CHECK, message)


def _contradictions(
    bundle: Bundle, reports: Mapping[str, Report], required: Mapping[str, Requirement]
) -> Found:
    privacy, provenance = reports.get("privacy"), reports.get("provenance")
    yield from _one_set_of_rows(reports)
    yield from _predicted(bundle, reports)
    yield from coverage_contradictions(bundle.manifest.conformal, reports)
    if "structure" in reports and not bundle.sealed:
        stated = reports["structure"].metrics.get("model_bytes")
        if stated is not None and stated.value != len(bundle.files[MODEL_FILE]):
            yield "structure: model_bytes is another file's"
    if privacy is not None:
        yield from _declared_public(privacy, required["privacy"])
        yield from _numbers(privacy)
    if "reference" in reports:
        yield from _reference(bundle, reports["reference"], privacy)
    if provenance is not None:
        yield from _provenance(bundle, provenance)
    if "parity" in reports and provenance is not None:
        yield from _original(reports["parity"], provenance)
    if privacy is not None and provenance is not None:
        yield from _side_by_side(privacy, provenance)
    if privacy is not None and "config" in privacy.details:
        yield from _training(privacy)


def _one_set_of_rows(reports: Mapping[str, Report]) -> Found:
    """Training rows are the same rows, whoever looked at them."""
    seen: dict[str, tuple[str, Dataset]] = {}
    for kind, report in reports.items():
        for item in report.datasets:
            if item.role == "train":
                first, rows = seen.setdefault(item.name, (kind, item))
                if rows != item:
                    yield f"{kind}: other training rows than the {first} report's"


def _predicted(bundle: Bundle, reports: Mapping[str, Report]) -> Found:
    """A model predicts a number or decides among classes; figures fit each other."""
    told = {
        kind: reports[kind].conditions.get("predicts") == "number"
        for kind in _OF_ROWS
        if kind in reports
    }
    first = next(iter(told), "")
    for kind, number in told.items():
        if number is not told[first]:
            yield f"{kind}: what the model predicts is not what the {first} report says"
        if number and any(item.labels for item in bundle.manifest.outputs):
            yield f"{kind}: the model predicts a number, and its manifest names classes"
        if number:
            yield from _ordered(kind, reports[kind])


def _ordered(kind: str, report: Report) -> Found:
    """Of each two figures the first cannot be above the second."""
    values = {name: item.value for name, item in report.metrics.items()}
    pairs = (
        *(("mae", "rmse"), ("clean_mae", "attacked_mae")),
        *((f"mean_largest_change{end}", f"largest_change{end}") for end in _NORMS),
    )
    for small, large in pairs:
        low, high = values.get(small), values.get(large)
        if low is not None and high is not None and not low <= high * (1 + 1e-9):
            yield f"{kind}: {small} is above {large}, which it cannot be"
    if not values.get("r2", 1.0) <= 1:
        yield f"{kind}: r2 is above 1, which it cannot be"


def _declared_public(privacy: Report, requirement: Requirement) -> Found:
    """Data that is declared public is booked in no ledger: its epsilon adds up nowhere.

    A policy that takes such data says so: ``personal_data = false``.
    """
    public = privacy.conditions.get("personal_data") is False
    asked = requirement.conditions.get("personal_data") is False
    if public and "epsilon" in privacy.metrics and not asked:
        yield (
            "privacy: the data was declared public, so its epsilon was booked nowhere; "
            "the policy does not ask for public data"
        )


def _reference(bundle: Bundle, report: Report, privacy: Report | None) -> Found:
    """A reference is of this model, and has noise where its data is personal."""
    try:
        reference_of(report, bundle.manifest)
    except MonitoringError as error:
        yield str(error)
    told = {} if privacy is None else privacy.conditions
    same = {name: told[name] for name in ("personal_data",) if name in told}
    yield from _differ("reference", report.conditions, same)


def _numbers(privacy: Report) -> Found:
    """What a report says twice by itself, whoever made it."""
    stated = privacy.conditions
    for name in ("delta", "noise_multiplier"):
        metric = privacy.metrics.get(name)
        if name in stated and metric is not None and stated[name] != metric.value:
            yield f"privacy: the report states two values of {name}"
    epsilon = privacy.metrics.get("epsilon")
    target = stated.get("target_epsilon")
    if epsilon and target is not None and not epsilon.value <= _number(target):
        yield "privacy: epsilon is above its own target"
    start = initial_weights(privacy)
    if start is not None and not _INITIAL_WEIGHTS.fullmatch(start):
        yield f"privacy: initial_weights {start!r} is neither random nor public:DIGEST"
    clipping, sampled = stated.get("clipping"), stated.get("sampled")
    known = clipping is not None and sampled is not None
    if known and not str(clipping).startswith(f"per_{sampled}_"):
        yield "privacy: what is clipped is not what is sampled"


def _provenance(bundle: Bundle, provenance: Report) -> Found:
    details, stated = provenance.details, provenance.conditions
    config = details.get("config")
    if config is None and "config_sha256" not in stated:
        return  # an imported model: nothing is known of its training
    if not isinstance(config, dict) or stated.get("config_sha256") != _digest(config):
        yield "provenance: config_sha256 is not that of the configuration"
        return
    found = (config.get(name) for name in ("model", "data", "privacy"))
    model, data, asked = (item if isinstance(item, dict) else {} for item in found)
    manifest = bundle.manifest
    private = asked.get("mechanism") != "none"
    split = "keyed_hash_of_owner" if data.get("unit") else "keyed_hash_of_row"
    yield from _differ(
        "provenance",
        {"name": model.get("name"), "version": model.get("version")},
        {"name": manifest.name, "version": manifest.version},
    )
    yield from _differ(
        "provenance",
        stated,
        {
            "architecture": model.get("architecture"),
            "differentially_private": private,
            "personal_data": data.get("personal"),
            "split": split,
        },
    )
    yield from _schema(bundle, details)
    if [(item.name, item.role) for item in provenance.datasets] != [
        (data.get("name"), "train")
    ]:
        yield "provenance: the training rows are not those of the configuration"


def _original(parity: Report, provenance: Report) -> Found:
    """A module that was trained here, or answers of a model that came from elsewhere.

    The latter were all compared on the rows that the report names.
    """
    imported = provenance.conditions.get("imported") is True
    given = parity.conditions.get("reference") == "answers_of_the_original"
    if imported is not given:
        yield "parity: provenance says otherwise about where the model comes from"
    rows = {item.rows for item in parity.datasets}
    if given and {metric.n for metric in parity.metrics.values()} - rows:
        yield "parity: not measured on the rows that it names"


def _schema(bundle: Bundle, details: Mapping[str, Any]) -> Found:
    """The manifest's columns and labels are those that were trained."""
    columns = [c.to_object() for item in bundle.manifest.inputs for c in item.columns]
    labels = [label for item in bundle.manifest.outputs for label in item.labels]
    if columns and details.get("columns") != columns:
        yield "provenance: columns are not the manifest's"
    if labels and details.get("classes") != labels:
        yield "provenance: classes are not the manifest's"


def _side_by_side(privacy: Report, provenance: Report) -> Found:
    """Both were written by one training, at its end."""
    if privacy.details.get("config") != provenance.details.get("config"):
        yield "privacy: another configuration than the provenance report's"
    if "config" not in provenance.details:
        return
    if privacy.datasets != provenance.datasets:
        yield "privacy: other training rows than the provenance report's"
    if privacy.tools != provenance.tools:
        yield "privacy: other tools than the provenance report's"
    if abs(privacy.created_at - provenance.created_at) > _TOGETHER:
        yield "privacy: not written together with the provenance report"
    private = provenance.conditions.get("differentially_private")
    if private is not (privacy.conditions.get("mechanism") != "none"):
        yield "privacy: provenance says otherwise about differential privacy"


def _training(privacy: Report) -> Found:
    """Every field against the configuration, and against each other."""
    config = privacy.details["config"]
    if not isinstance(config, dict):
        yield "privacy: the configuration is not a table"
        return
    told = _Training(privacy, config)
    if privacy.conditions.get("mechanism") == "none":
        personal = told.section("data").get("personal")
        yield from _differ("privacy", privacy.conditions, {"personal_data": personal})
        if told.section("privacy").get("mechanism") != "none":
            yield "privacy: the configuration asks for a mechanism"
        return
    yield from _differ("privacy", privacy.conditions, _expected(told))
    origins = _origins(told)
    if origins.keys() & privacy.conditions.keys():  # release 0.1 states none of them
        yield from _differ("privacy", privacy.conditions, origins)
    yield from _ranges(told)
    yield from _metrics(privacy)
    ids = [check.id for check in privacy.checks]
    if set(ids) != _CHECKS or len(ids) != len(_CHECKS):
        yield f"privacy: its checks are not {', '.join(sorted(_CHECKS))}"


def _expected(told: _Training) -> dict[str, Any]:
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
            "search_candidates": _product(search),
            "search_distribution": search.get("distribution"),
            "search_expected_tries": search.get("tries"),
            "search_score_noise": search.get("score_noise"),
        }
    return expected


def _origins(told: _Training) -> dict[str, Any]:
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


def _accountant(told: _Training) -> str:
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


def _ranges(told: _Training) -> Found:
    """Conditions that the configuration leaves open, within what can be."""
    stated = told.privacy.conditions
    rows = sum(item.rows for item in told.privacy.datasets)
    units, steps = stated.get("units"), stated.get("steps_in_weights")
    if type(units) is not int or not 1 <= units <= rows:
        yield f"privacy: {units} units in {rows} rows"
    elif units != rows and not (told.owned and not told.grouped):
        yield f"privacy: units are rows, yet {units} is not {rows}"
    elif not 0 < _number(stated.get("delta")) < 1 / units:
        yield "privacy: delta is not below one over the number of units"
    planned = stated.get("steps")
    if type(steps) is not int or not 1 <= steps <= _number(planned):
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
    share, delta = (_number(stated.get(n)) for n in ("delta_for_verdicts", "delta"))
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


def _differ(kind: str, stated: Mapping[str, Any], wanted: Mapping[str, Any]) -> Found:
    for name, value in wanted.items():
        given = stated.get(name)
        if given != value or isinstance(given, bool) != isinstance(value, bool):
            yield f"{kind}: {name} is {given!r}, where {value!r} must stand"


def _number(value: object) -> float:
    """NaN, which compares false, for what is no number that a double holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) <= sys.float_info.max else math.nan


def _digest(config: Mapping[str, Any]) -> str | None:
    try:
        return hashlib.sha256(strict_json.dumps(config)).hexdigest()
    except JsonError:
        return None
