"""Part of check 27: what a training of an "ebm" wrote, field by field. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.manifest import Column
from models.report import Report
from security.admission.stated import Found, differ, number

__all__ = ["EBM_MECHANISM", "ebm_contradictions", "ebm_terms", "rounding_of"]

EBM_MECHANISM = "dp_ebm_gaussian"

# How far the accountants may be from each other: GDP is exact, PLD rounds up.
_AGREEMENT = 0.01
_VERDICT_SHARE = 1e-3
_OF_NOBODY = 4096
_CHECKS = ["accountants-agree", "noise-conforms", "target-kept"]
# Earlier releases stated one more, which could not fail, and left rounding out.
_EARLIER = [*_CHECKS[:2], "queries-conform", "target-kept"]
_CONSTANTS: Mapping[str, Any] = {
    "accountant": "gdp",
    "accountant_bound": "exact",
    "bags": 1,
    "categories": "public_schema",
    "covers_holdout": False,
    "group_size": 1,
    "hyperparameters": "fixed_in_configuration",
    "initial_weights": "random",
    "noise_floating_point": "sum_of_four_gaussians",
    "outside_mechanism": "public_preprocessing",
    "preprocessing": "public_ranges",
    "row_count": "public",
    "rows_per_unit": 1,
    "sample_rate": 1.0,
    "sensitivity": 1.0,
    "split_generator": "interpret",
    "training_loss": "not_told",
    "verdicts_cover": "every_step_in_the_weights",
}
_BOOSTING = ("rounds", "learning_rate", "bins", "leaves")
_METRICS = (
    *("epsilon", "epsilon_pld", "delta", "noise_multiplier"),
    "noise_deficit_detectable",
)


def ebm_contradictions(privacy: Report, config: Mapping[str, Any]) -> Found:
    """Every field against the configuration, and against each other.

    Args:
        privacy: a report that states this mechanism.
        config: the configuration that it carries.
    """
    yield from differ("privacy", privacy.conditions, _expected(privacy, config))
    yield from _terms(privacy, config)
    yield from _ranges(privacy, config)
    yield from _metrics(privacy)
    checks = sorted(check.id for check in privacy.checks)
    if checks not in (_CHECKS, _EARLIER):
        yield f"privacy: its checks are not {', '.join(_CHECKS)}"
    yield from differ("privacy", privacy.conditions, _sums(privacy, checks == _EARLIER))


def rounding_of(rows: float) -> float:
    """How far two sums of residuals may differ by rounding, in units of a sensitivity.

    A sum of n doubles below 1, in any order, is off by at most n^2 2^-53; of two data
    sets that differ by a row, each of both sums. Of rows that nobody owns, a few
    thousand are allowed for: InterpretML gets one for each category.

    >>> f"{rounding_of(30_000):.1e} {rounding_of(1_000_000):.1e}"
    '2.6e-07 2.2e-04'
    """
    count = float(rows) + _OF_NOBODY
    return 2 * count * count * 2.0**-53


def ebm_terms(privacy: Report, columns: Sequence[Column]) -> Found:
    """One term for each column of the model, and one for each number's flag.

    Args:
        privacy: of any mechanism.
        columns: of the manifest; the configuration need not list them.
    """
    if privacy.conditions.get("mechanism") != EBM_MECHANISM:
        return
    config, terms = privacy.details.get("config"), privacy.conditions.get("terms")
    if not isinstance(config, dict):
        yield "privacy: it does not carry the configuration that queries follow from"
        return
    wanted = len(columns)
    if _section(config, "model").get("missing_flags"):
        wanted += sum(not column.categories for column in columns)
    if not wanted or terms != wanted:
        yield f"privacy: {terms!r} terms of a model that has {wanted}"


def _sums(privacy: Report, earlier: bool) -> dict[str, Any]:
    """How sums were made, and what of the noise is for their rounding."""
    if earlier:
        return {"sums": None, "rounding": None}
    room = rounding_of(number(privacy.conditions.get("units")))
    return {"sums": "float64", "rounding": room}


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _expected(privacy: Report, config: Mapping[str, Any]) -> dict[str, Any]:
    """What each condition must be, given the configuration."""
    asked, data = _section(config, "privacy"), _section(config, "data")
    boosting, stated = _section(config, "boosting"), privacy.conditions
    values = {name: item.value for name, item in privacy.metrics.items()}
    personal, drawn = data.get("personal"), privacy.details.get("initial_weights")
    seed = drawn.get("seed") if isinstance(drawn, dict) else None
    digest = stated.get("initial_weights_sha256")
    honest = seed is not None and seed == _section(config, "model").get("seed")
    return {
        **_CONSTANTS,
        **{name: boosting.get(name) for name in _BOOSTING},
        "accountant_version": privacy.tools.get("scipy"),
        "delta": asked.get("delta") or values.get("delta"),
        "initial_weights_sha256": digest if digest and honest else "the seed's",
        "ledger": "booked" if personal else "not_booked",
        "noise_multiplier": values.get("noise_multiplier"),
        "outside_mechanism_sha256": stated.get("outside_mechanism_sha256")
        or "a digest",
        "personal_data": personal,
        "steps_in_weights": stated.get("steps"),
        "target_epsilon": asked.get("epsilon"),
        "unit": "owner" if data.get("unit") else "row",
    }


def _terms(privacy: Report, config: Mapping[str, Any]) -> Found:
    """As many queries as there are terms, in each round and once before."""
    stated, model = privacy.conditions, _section(config, "model")
    if model.get("architecture") != "ebm":
        yield "privacy: the configuration trains another architecture than an ebm"
    if _section(config, "privacy").get("mechanism") != "dp_ebm":
        yield "privacy: the configuration asks for another mechanism"
    counts = [stated.get(name) for name in ("steps", "rounds", "terms")]
    if any(type(count) is not int or count < 1 for count in counts):
        yield "privacy: steps, rounds and terms are not counts"
        return
    steps, rounds, terms = (int(number(count)) for count in counts)
    if steps != terms * (rounds + 1):
        yield f"privacy: {terms} terms in {rounds} rounds are not {steps} steps"


def _ranges(privacy: Report, config: Mapping[str, Any]) -> Found:
    stated = privacy.conditions
    rows, units = sum(item.rows for item in privacy.datasets), stated.get("units")
    if units != rows or type(units) is not int:
        yield f"privacy: {units!r} units in {rows} rows, of which each is one"
    elif not 0 < number(stated.get("delta")) < 1 / units:
        yield "privacy: delta is not below one over the number of units"
    generator = stated.get("noise_generator")
    if not generator:
        yield "privacy: noise_generator is not stated"
    secure = _section(config, "privacy").get("secure")
    if generator == "os_urandom" and secure is not True:
        yield "privacy: the noise was not to come from the operating system"
    share, delta = (number(stated.get(n)) for n in ("delta_for_verdicts", "delta"))
    if not abs(share - delta * _VERDICT_SHARE) <= delta * 1e-9:
        yield "privacy: delta_for_verdicts is not a thousandth of delta"


def _metrics(privacy: Report) -> Found:
    """The claim, what the other accountant says, and what the verdict rests on."""
    metrics = privacy.metrics
    if missing := set(_METRICS) - metrics.keys():
        yield f"privacy: {min(missing)} is not in the report"
        return
    gap = abs(metrics["epsilon"].value - metrics["epsilon_pld"].value)
    if not gap <= _AGREEMENT:
        yield "privacy: epsilon and epsilon_pld do not agree"
    found = metrics["noise_deficit_detectable"]
    # Each query draws a number at least.
    if not (found.n or 0) >= number(privacy.conditions.get("steps")):
        yield "privacy: the verdict on the noise rests on other steps than the weights"
    if not 0 <= found.value < 1:
        yield "privacy: noise_deficit_detectable is not a share"
