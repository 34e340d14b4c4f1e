"""From a target to a plan, and from what was done to what can be claimed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import dp_accounting
from dp_accounting import pld

from security.errors import TrainingError
from security.training import accounting, composed
from security.training.accounting import Mechanism
from security.training.config_sections import TrainingConfig
from security.training.selection import Selection
from security.training.trainer import Outcome

__all__ = [
    "Guarantee",
    "Plan",
    "Verdicts",
    "check_verdicts",
    "claims",
    "make_additive_plan",
    "make_plan",
    "privacy_curve",
    "selection_of",
    "state_guarantee",
]

# The evidence tells whether the noise looked right. That bit depends on the noise, on
# which the guarantee rests on; this share of delta pays for it: see `Plan.level`.
VERDICT_SHARE = 1e-3


@dataclass(frozen=True)
class Plan:
    """What is going to be done.

    Attributes:
        mechanism: sampling rate, noise, steps.
        delta: of the whole claim.
        group: rows that one owner has at most, where rows are sampled; otherwise 1.
        units: how many are sampled from, public.
        target: epsilon.
        selection: how the best of several tries is chosen; None for one training.
        exact: whether each step asks all rows: GDP then adds them up exactly.
    """

    mechanism: Mechanism
    delta: float
    group: int
    units: int
    target: float
    selection: Selection | None = None
    exact: bool = False

    @property
    def mechanism_delta(self) -> float:
        """What of delta is left for the mechanism."""
        return self.delta * (1 - VERDICT_SHARE)

    @property
    def level(self) -> float:
        """At which the verdicts on the mechanism are made.

        An output that is withheld with a probability below a in every world is
        (epsilon, delta + a e^epsilon) private if it was (epsilon, delta) before. A
        selection is withheld if any try fails: their expected number, times a.
        """
        tries = 1.0 if self.selection is None else self.selection.tries
        return self.delta * VERDICT_SHARE * math.exp(-self.target) / tries


@dataclass(frozen=True)
class Verdicts:
    """Whether what was done is what was planned.

    Attributes:
        noise, norms, rate: chi-square on the noise that was added, longest clipped
            gradient, inclusion rate of the sampler.
        draws: numbers of noise that the first rests on.
        deficit: smallest missing share of the noise that it would have found.
    """

    noise: bool
    norms: bool
    rate: bool
    draws: int
    deficit: float


@dataclass(frozen=True)
class Guarantee:
    """What was spent, by each accountant, at one delta.

    Attributes:
        delta: the claim's.
        claim: epsilon: PRV's upper bound; PLD's for groups, RDP's for a selection, and
            where each step asks all rows GDP's, which is exact.
        rdp: by Rényi divergence, which does not do groups.
        second: by dp-accounting: PLD, or for a selection its own Rényi divergence.
        group: see `Plan.group`.
        verdicts: on the mechanism.
        level: at which they were made.
        selection: see `Plan.selection`.
        exact: see `Plan.exact`.
    """

    delta: float
    claim: float
    rdp: float | None
    second: float
    group: int
    verdicts: Verdicts
    level: float
    selection: Selection | None = None
    exact: bool = False

    @property
    def mechanism_delta(self) -> float:
        """What of delta the mechanism was accounted at."""
        return self.delta * (1 - VERDICT_SHARE)

    @property
    def accountant(self) -> str:
        """Which one the claim is from."""
        if self.selection is not None:
            return "rdp"
        if self.exact:
            return "gdp"
        return "prv" if self.group == 1 else "pld"

    @property
    def second_accountant(self) -> str:
        """Which one, of another library, recomputed the claim."""
        return "pld" if self.selection is None else "dp_accounting_rdp"

    def line(self, mechanism: Mechanism) -> str:
        """The claim with its assumptions, for people."""
        taken = f"{mechanism.steps} steps"
        how = "all rows" if self.exact else f"Poisson q={mechanism.sample_rate:g}"
        groups = f", groups of {self.group} rows" if self.group > 1 else ""
        return (
            f"epsilon {self.claim:.2f} at delta {self.delta:.1e} "
            f"({self.accountant.upper()}, {how}, {taken}{groups}{self._tries}; "
            f"{self.second_accountant.upper()} {self.second:.2f})"
        )

    @property
    def _tries(self) -> str:
        if self.selection is None:
            return ""
        return f", the best of about {self.selection.tries:g} tries"


def make_plan(config: TrainingConfig, units: int, *, group: int = 1) -> Plan:
    """Find the noise for the target.

    Args:
        config: of a private training.
        units: how many are sampled from.
        group: rows that one owner has at most, where rows are sampled.

    Raises:
        TrainingError: no noise reaches the target, or delta is too large.
    """
    privacy = config.privacy
    delta = privacy.delta or accounting.default_delta(units)
    accounting.check_delta(delta, units)
    inner = delta * (1 - VERDICT_SHARE)
    selection = selection_of(config)
    noise = accounting.find_noise_multiplier(
        epsilon=privacy.epsilon,
        delta=inner,
        sample_rate=privacy.sampling_rate,
        steps=privacy.steps,
        group=group,
        selection=selection,
    )
    mechanism = Mechanism(privacy.sampling_rate, noise, privacy.steps)
    return Plan(mechanism, delta, group, units, privacy.epsilon, selection)


def make_additive_plan(config: TrainingConfig, units: int, *, terms: int) -> Plan:
    """Find the noise of an "ebm" for the target.

    Args:
        config: of the training.
        units: how many rows there are, public.
        terms: of the model.

    Raises:
        TrainingError: no noise reaches the target, or so much that a bin is lost in it;
            or delta is too large.
    """
    privacy, boosting = config.privacy, config.boosted
    delta = privacy.delta or accounting.default_delta(units)
    accounting.check_delta(delta, units)
    steps = terms * (boosting.rounds + 1)
    inner = delta * (1 - VERDICT_SHARE)
    noise = composed.find_noise(privacy.epsilon, inner, steps)
    share = units / boosting.bins
    if noise > share:
        raise TrainingError(
            f"epsilon {privacy.epsilon:g} needs noise of {noise:.3g} rows in each of "
            f"{steps} queries ({terms} terms, {boosting.rounds} rounds), more than the "
            f"{share:.3g} rows that one of {boosting.bins} bins has on average: take "
            "fewer columns, rounds or bins, or a larger epsilon"
        )
    mechanism = Mechanism(1.0, noise, steps)
    return Plan(mechanism, delta, 1, units, privacy.epsilon, exact=True)


def selection_of(config: TrainingConfig) -> Selection | None:
    """How the best of several tries is chosen; None without a search."""
    search = config.search
    if search is None:
        return None
    return Selection(search.tries, search.distribution, search.score_noise)


def state_guarantee(plan: Plan, outcome: Outcome) -> Guarantee:
    """What may be claimed of a training that is done.

    Raises:
        TrainingError: the accountants disagree, the target is missed, or the mechanism
            was not what was planned. The model is then not to be released.
    """
    claim, second = claims(plan)
    guarantee = Guarantee(
        delta=plan.delta,
        claim=claim,
        rdp=_renyi(plan),
        second=second,
        group=plan.group,
        verdicts=_verdicts(plan, outcome),
        level=plan.level,
        selection=plan.selection,
        exact=plan.exact,
    )
    _check(guarantee, plan.target)
    return guarantee


def claims(plan: Plan) -> tuple[float, float]:
    """Epsilon of a plan that is carried out, by both accountants."""
    mechanism = plan.mechanism
    second = accounting.recompute_epsilon(
        mechanism.sample_rate,
        mechanism.noise_multiplier,
        mechanism.steps,
        plan.mechanism_delta,
        group=plan.group,
        selection=plan.selection,
    )
    return _claim(plan, second), second


def _claim(plan: Plan, second: float) -> float:
    if plan.selection is not None:
        return accounting.epsilon_selected(
            plan.mechanism, plan.selection, plan.mechanism_delta
        )
    if plan.exact:
        return composed.epsilon_gdp(plan.mechanism, plan.mechanism_delta)
    if plan.group > 1:
        return second
    return accounting.epsilon_prv(plan.mechanism, plan.mechanism_delta)


def _renyi(plan: Plan) -> float | None:
    if plan.group > 1 or plan.selection is not None or plan.exact:
        return None
    return accounting.epsilon_rdp(plan.mechanism, plan.mechanism_delta)


def _verdicts(plan: Plan, outcome: Outcome) -> Verdicts:
    record, level = outcome.record, plan.level / 2
    return Verdicts(
        noise=record.noise_conforms(level),
        norms=record.norms_conform(),
        rate=record.rate_conforms(plan.mechanism.sample_rate, level),
        draws=record.draws,
        deficit=record.detectable_deficit(level),
    )


def _check(guarantee: Guarantee, target: float) -> None:
    claim, second = guarantee.claim, guarantee.second
    first_name, name = guarantee.accountant.upper(), guarantee.second_accountant.upper()
    if claim > target or second > target:
        raise TrainingError(
            f"epsilon is {claim:.4f} by {first_name} and {second:.4f} by {name}, above "
            f"the target {target:g}"
        )
    if abs(claim - second) > accounting.AGREEMENT_SLACK:
        raise TrainingError(
            f"accountants disagree: {first_name} {claim:.4f}, {name} {second:.4f}"
        )
    _check_verdicts(guarantee.verdicts)


def check_verdicts(plan: Plan, outcome: Outcome) -> None:
    """Refuse a try of a selection whose mechanism was not what was planned.

    Raises:
        TrainingError: nothing is then to be released.
    """
    _check_verdicts(_verdicts(plan, outcome))


def _check_verdicts(verdicts: Verdicts) -> None:
    for name in ("noise", "norms", "rate"):
        if not getattr(verdicts, name):
            raise TrainingError(
                f"the mechanism was not what was planned: its {name} did not conform; "
                "nothing was released"
            )


def privacy_curve(mechanism: Mechanism, epsilons: Sequence[float]) -> tuple[float, ...]:
    """The smallest delta of a mechanism at each epsilon, by PLD, rounded up.

    >>> [round(d, 3) for d in privacy_curve(Mechanism(1.0, 10.0, 100), (0.0, 1.0))]
    [0.383, 0.127]
    """
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    event = dp_accounting.PoissonSampledDpEvent(
        mechanism.sample_rate,
        dp_accounting.GaussianDpEvent(mechanism.noise_multiplier),
    )
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, mechanism.steps))
    return tuple(float(accountant.get_delta(epsilon)) for epsilon in epsilons)
