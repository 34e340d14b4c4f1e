"""From a target to a plan, and from what was done to what can be claimed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from security.errors import TrainingError
from security.training import accounting
from security.training.accounting import Mechanism
from security.training.config import TrainingConfig
from security.training.trainer import Outcome

__all__ = ["Guarantee", "Plan", "Verdicts", "make_plan", "state_guarantee"]

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
    """

    mechanism: Mechanism
    delta: float
    group: int
    units: int
    target: float

    @property
    def mechanism_delta(self) -> float:
        """What of delta is left for the mechanism."""
        return self.delta * (1 - VERDICT_SHARE)

    @property
    def level(self) -> float:
        """At which the verdicts on the mechanism are made.

        An output that is withheld with a probability below a in every world is
        (epsilon, delta + a e^epsilon) private if it was (epsilon, delta) before.
        """
        return self.delta * VERDICT_SHARE * math.exp(-self.target)


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
        claim: epsilon: PRV's upper bound; PLD's for groups.
        rdp, pld: by the other accountants; RDP does not do groups.
        group: see `Plan.group`.
        verdicts: on the mechanism.
        level: at which they were made.
    """

    delta: float
    claim: float
    rdp: float | None
    pld: float
    group: int
    verdicts: Verdicts
    level: float

    @property
    def mechanism_delta(self) -> float:
        """What of delta the mechanism was accounted at."""
        return self.delta * (1 - VERDICT_SHARE)

    @property
    def accountant(self) -> str:
        """Which one the claim is from."""
        return "prv" if self.group == 1 else "pld"

    def line(self, mechanism: Mechanism) -> str:
        """The claim with its assumptions, for people."""
        groups = f", groups of {self.group} rows" if self.group > 1 else ""
        return (
            f"epsilon {self.claim:.2f} at delta {self.delta:.1e} "
            f"({self.accountant.upper()}, Poisson q={mechanism.sample_rate:g}, "
            f"{mechanism.steps} steps{groups}; PLD {self.pld:.2f})"
        )


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
    noise = accounting.find_noise_multiplier(
        epsilon=privacy.epsilon,
        delta=inner,
        sample_rate=privacy.sampling_rate,
        steps=privacy.steps,
        group=group,
    )
    mechanism = Mechanism(privacy.sampling_rate, noise, privacy.steps)
    return Plan(mechanism, delta, group, units, privacy.epsilon)


def state_guarantee(plan: Plan, outcome: Outcome) -> Guarantee:
    """What may be claimed of a training that is done.

    Raises:
        TrainingError: the accountants disagree, the target is missed, or the mechanism
            was not what was planned. The model is then not to be released.
    """
    inner, mechanism = plan.mechanism_delta, plan.mechanism
    pld = accounting.recompute_epsilon(
        mechanism.sample_rate,
        mechanism.noise_multiplier,
        mechanism.steps,
        inner,
        group=plan.group,
    )
    single = plan.group == 1
    guarantee = Guarantee(
        delta=plan.delta,
        claim=accounting.epsilon_prv(mechanism, inner) if single else pld,
        rdp=accounting.epsilon_rdp(mechanism, inner) if single else None,
        pld=pld,
        group=plan.group,
        verdicts=_verdicts(plan, outcome),
        level=plan.level,
    )
    _check(guarantee, plan.target)
    return guarantee


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
    claim, pld = guarantee.claim, guarantee.pld
    if claim > target or pld > target:
        raise TrainingError(
            f"epsilon is {claim:.4f} by {guarantee.accountant.upper()} and {pld:.4f} "
            f"by PLD, above the target {target:g}"
        )
    if abs(claim - pld) > accounting.AGREEMENT_SLACK:
        raise TrainingError(f"accountants disagree: PRV {claim:.4f}, PLD {pld:.4f}")
    for name in ("noise", "norms", "rate"):
        if not getattr(guarantee.verdicts, name):
            raise TrainingError(
                f"the mechanism was not what was planned: its {name} did not conform; "
                "nothing was released"
            )
