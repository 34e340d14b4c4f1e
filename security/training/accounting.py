"""What a training costs: epsilon from (sampling rate, noise, steps, delta), three ways.

The claim is PRV's upper bound (Gopi, Lee and Wutschitz 2021, in Opacus). RDP bounds it
from above, loosely, and `recompute_epsilon` (Google's dp-accounting, privacy loss
distributions) is another implementation of another method: the two must agree. Opacus'
``gdp`` accountant is not used: its approximation understates epsilon, 4.0 as 3.0.

All are for the Poisson-subsampled Gaussian mechanism and neighbours that differ by one
unit added or removed. Where rows are sampled but an owner has up to k of them, the
neighbours differ by k rows, of which a binomial number is in a batch: a mixture of
Gaussians (Choquette-Choo, Ganesh, Steinke and Thakurta 2024), which PLD accounts for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import dp_accounting
import numpy as np
from dp_accounting import pld
from dp_accounting import rdp as dp_rdp
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis import rdp
from scipy import stats

from security.errors import TrainingError
from security.training.selection import Selection

__all__ = [
    "AGREEMENT_SLACK",
    "Mechanism",
    "Spent",
    "check_delta",
    "compose",
    "default_delta",
    "epsilon_prv",
    "epsilon_rdp",
    "epsilon_selected",
    "find_noise_multiplier",
    "recompute_epsilon",
]

# PRV's upper bound adds its own error of 0.01 to the estimate; PLD rounds up by less.
AGREEMENT_SLACK = 0.03
MAX_GROUP = 64
# dp-accounting's own; for groups wider, still rounded up, and ten times faster.
_PLD_INTERVAL = 1e-4
_GROUP_INTERVAL = 1e-3
_MAX_NOISE = 10_000.0
_NOISE_DIGITS = 4
_TARGET_SLACK = 2e-3
_SLOPE = 1.2  # of epsilon by noise, both as logarithms, to begin with
# Whole ones, at which both libraries add up a finite sum: others may not converge.
_WHOLE_ORDERS = [
    float(order) for order in (*range(2, 65), *(2**k for k in range(7, 13)))
]
# Each takes up to seconds, and the same is asked by the plan, the claim and the ledger.
# By type, too: 1.0 steps are refused where 1 is answered.
_once = lru_cache(maxsize=256, typed=True)
RDP_ORDERS = [*RDPAccountant.DEFAULT_ALPHAS, *(float(2**k) for k in range(6, 13))]


@dataclass(frozen=True)
class Spent:
    """Steps that were taken, or are held: what a ledger adds up.

    Attributes:
        rate, noise: of each step.
        steps: how many; may be 0.
        group: rows that an owner has at most.
        selection: how the best of several tries is chosen, each of so many steps.
    """

    rate: float
    noise: float
    steps: int
    group: int = 1
    selection: Selection | None = None


@dataclass(frozen=True)
class Mechanism:
    """What was done to the data, as far as the guarantee depends on it.

    Attributes:
        sample_rate: chance of each row to be in a batch, above 0, at most 1.
        noise_multiplier: standard deviation of the noise over the clipping norm.
        steps: how often, at least 1.

    Raises:
        TrainingError: a value out of range, or not finite.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:  # NaN compares false
            raise TrainingError(f"sampling rate {self.sample_rate} is not in (0, 1]")
        if not 0 < self.noise_multiplier < math.inf:
            raise TrainingError(
                f"noise multiplier {self.noise_multiplier} is not positive and finite"
            )
        if type(self.steps) is not int or self.steps < 1:
            raise TrainingError(f"{self.steps} steps: at least one is needed")


def default_delta(rows: int) -> float:
    """1/n^1.1, rounded down to two significant digits.

    >>> default_delta(455)
    0.0011
    """
    if rows < 2:
        raise TrainingError(f"{rows} rows cannot be trained on with a guarantee")
    exact = rows**-1.1
    unit = 10.0 ** (math.floor(math.log10(exact)) - 1)
    return float(f"{math.floor(exact / unit) * unit:.1e}")


def check_delta(delta: float, rows: int) -> None:
    """Refuse a delta that lets a whole row be published.

    Raises:
        TrainingError: delta is not in (0, 1/n).
    """
    _check_probability(delta)
    if delta * rows >= 1:
        raise TrainingError(f"delta {delta:g} is not below 1/n for n = {rows}")


@_once
def find_noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    group: int = 1,
    selection: Selection | None = None,
) -> float:
    """The smallest noise, within 0.1%, whose epsilon stays at or below a target.

    By PRV for one unit, by PLD for groups, by Rényi divergence for a selection.

    Raises:
        TrainingError: impossible arguments, or no noise is enough.
    """
    if not 0 < epsilon < math.inf:
        raise TrainingError(f"epsilon {epsilon} is not positive and finite")

    noise = _smallest_noise(
        Spent(sample_rate, 1.0, steps, group, selection), epsilon, delta
    )
    # Rounded up, so that the number in the evidence is the number that was used.
    return math.ceil(noise * 10**_NOISE_DIGITS) / 10**_NOISE_DIGITS


def _smallest_noise(item: Spent, epsilon: float, delta: float) -> float:
    """Between too little and enough, along the curve's slope.

    Each question takes up to seconds, so the search begins where Rényi's bound, which
    is quick, meets the target.
    """

    def spent(noise: float) -> float:
        return _alone(replace(item, noise=noise), delta)

    low, high, slope = 0.0, math.inf, _SLOPE
    noise = _renyi_noise(item, epsilon, delta)
    before: tuple[float, float] | None = None
    while True:
        cost = spent(noise)
        low, high = (noise, high) if cost > epsilon else (low, noise)
        if low >= _MAX_NOISE:
            why = ": choosing alone costs more" if item.selection else ""
            raise TrainingError(f"no noise reaches epsilon {epsilon:g}{why}")
        if epsilon * (1 - _TARGET_SLACK) <= cost <= epsilon or high - low <= 1e-3 * low:
            return high
        if before is not None and cost != before[1]:
            slope = math.log(before[1] / cost) / math.log(noise / before[0])
        before = (noise, cost)
        # A little below the target: what is to be found is on that side.
        aim = epsilon * (1 - _TARGET_SLACK / 2)
        noise *= min(4.0, max(0.25, (cost / aim) ** (1 / max(slope, 0.5))))
        if not low * 1.0004 < noise < high * 0.9996:
            noise = (low + high) / 2 if math.isfinite(high) else 2 * low


def _renyi_noise(item: Spent, epsilon: float, delta: float) -> float:
    """About the noise at which Rényi's bound meets the target."""
    low, high = 0.1, _MAX_NOISE
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        meets = _from_divergence([replace(item, noise=middle)], delta) <= epsilon
        low, high = (low, middle) if meets else (middle, high)
    return high


@_once
def epsilon_prv(mechanism: Mechanism, delta: float) -> float:
    """Upper bound of epsilon by Opacus' PRV accountant: the claim.

    >>> round(epsilon_prv(Mechanism(0.5, 5.0, 100), 1e-3), 2)
    3.21
    """
    _check_probability(delta)
    accountant = PRVAccountant()
    accountant.history = [_history(mechanism)]
    with quiet():
        return _finite(accountant.get_epsilon(delta))


def epsilon_rdp(mechanism: Mechanism, delta: float) -> float:
    """Upper bound of epsilon by Rényi differential privacy: simpler, and looser."""
    _check_probability(delta)
    accountant = RDPAccountant()
    accountant.history = [_history(mechanism)]
    with quiet():
        return _finite(accountant.get_epsilon(delta, alphas=RDP_ORDERS))


def epsilon_selected(mechanism: Mechanism, selection: Selection, delta: float) -> float:
    """Upper bound of epsilon of the best of several tries, each scored with noise.

    Opacus' Rényi divergence of one try, and the bound of Papernot and Steinke.

    >>> often = Selection(8.0, "geometric", 10.0)
    >>> round(epsilon_selected(Mechanism(0.5, 10.0, 100), often, 1e-3), 2)
    3.74
    """
    _check_probability(delta)
    item = Spent(
        mechanism.sample_rate,
        mechanism.noise_multiplier,
        mechanism.steps,
        selection=selection,
    )
    return _from_divergence([item], delta)


def _divergence(item: Spent, orders: Sequence[float]) -> NDArray[np.float64]:
    """Rényi divergence of what was spent, at each order."""
    mechanism = _enclosing(item)
    step = _divergence_of_step(
        mechanism.sample_rate, mechanism.noise_multiplier, tuple(orders)
    )
    # Not a number at an order that overflows: no bound there.
    taken = np.nan_to_num(np.array(step) * mechanism.steps, nan=math.inf)
    if item.selection is None:
        return taken
    scored = np.array(orders) / (2 * item.selection.score_noise**2)
    return item.selection.bound(orders, taken + scored)


@_once
def _divergence_of_step(
    rate: float, noise: float, orders: tuple[float, ...]
) -> tuple[float, ...]:
    """Of one step; those of several are added up."""
    with quiet():
        found = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=orders)
    return tuple(np.asarray(found, dtype=np.float64).tolist())


def _from_divergence(items: Sequence[Spent], delta: float) -> float:
    """Epsilon of all of them, from the sum of their divergences."""
    selected = any(item.selection is not None for item in items)
    orders = _WHOLE_ORDERS if selected else RDP_ORDERS
    total = np.sum([_divergence(item, orders) for item in items], axis=0)
    with quiet():
        epsilon, _ = rdp.get_privacy_spent(
            orders=orders, rdp=total.tolist(), delta=delta
        )
    return _finite(max(0.0, float(epsilon)))


@_once
def recompute_epsilon(
    sample_rate: float,
    noise_multiplier: float,
    steps: int,
    delta: float,
    *,
    group: int = 1,
    selection: Selection | None = None,
) -> float:
    """Epsilon by an accountant that shares no code with the one that made the claim.

    Privacy loss distributions of dp-accounting, one unit added or removed, or one
    group of rows; for a selection, its Rényi divergence and its own form of the bound.

    Args:
        sample_rate: as of `Mechanism`.
        noise_multiplier: as of `Mechanism`.
        steps: as of `Mechanism`.
        delta: above 0, below 1.
        group: rows that an owner has at most, each sampled and clipped by itself.
        selection: how the best of several tries was chosen; not with groups.

    Raises:
        TrainingError: impossible arguments.

    >>> round(recompute_epsilon(0.5, 5.0, 100, 1e-3), 2)
    3.2
    """
    mechanism = Mechanism(sample_rate, noise_multiplier, steps)
    _check_probability(delta)
    if type(group) is not int or not 1 <= group <= MAX_GROUP:
        raise TrainingError(
            f"groups of {group} rows: 1 to {MAX_GROUP} can be accounted"
        )
    if selection is not None:
        if group > 1:
            raise TrainingError("a selection cannot be accounted for groups of rows")
        return _recompute_selected(mechanism, selection, delta)
    if group == 1:
        event: dp_accounting.DpEvent = dp_accounting.PoissonSampledDpEvent(
            mechanism.sample_rate,
            dp_accounting.GaussianDpEvent(mechanism.noise_multiplier),
        )
    else:
        event = _group_event(mechanism, group)
    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=_PLD_INTERVAL if group == 1 else _GROUP_INTERVAL,
    )
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, mechanism.steps))
    return _finite(accountant.get_epsilon(delta))


def _recompute_selected(
    mechanism: Mechanism, selection: Selection, delta: float
) -> float:
    step = dp_accounting.PoissonSampledDpEvent(
        mechanism.sample_rate, dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
    )
    once = dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(step, mechanism.steps),
            dp_accounting.GaussianDpEvent(selection.score_noise),
        ]
    )
    accountant = dp_rdp.RdpAccountant(
        _WHOLE_ORDERS, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    accountant.compose(
        dp_accounting.dp_event.RepeatAndSelectDpEvent(
            once, selection.tries, selection.shape
        )
    )
    return _finite(accountant.get_epsilon(delta))


def _group_event(mechanism: Mechanism, group: int) -> dp_accounting.DpEvent:
    """A step for neighbours that differ by a group: how many of it are in the batch."""
    counts = np.arange(group + 1)
    chances = stats.binom(group, mechanism.sample_rate).pmf(counts)
    keep = chances > 0
    return dp_accounting.dp_event.MixtureOfGaussiansDpEvent(
        mechanism.noise_multiplier,
        counts[keep].astype(float).tolist(),
        (chances[keep] / chances[keep].sum()).tolist(),
    )


def compose(spent: Sequence[Spent], delta: float) -> float:
    """Upper bound of epsilon of several trainings on the same data.

    One alone costs what it claims. Several were chosen one after another, each perhaps
    because of what the ones before gave; for that, adding up Rényi divergences is valid
    (Feldman and Zrnic 2021), and so is not every composition by privacy loss.

    >>> once = Spent(0.5, 5.0, 100)
    >>> round(compose([once], 1e-3), 2), round(compose([once, once], 1e-3), 2)
    (3.21, 5.25)
    >>> compose([], 1e-3)
    0.0
    """
    taken = [item for item in spent if item.steps]
    if not taken:
        return 0.0
    if len(taken) == 1:
        return _alone(taken[0], delta)
    _check_probability(delta)
    return _from_divergence(taken, delta)


def _alone(item: Spent, delta: float) -> float:
    mechanism = Mechanism(item.rate, item.noise, item.steps)
    if item.selection is not None:
        return _from_divergence([item], delta)
    if item.group == 1:
        return epsilon_prv(mechanism, delta)
    return recompute_epsilon(item.rate, item.noise, item.steps, delta, group=item.group)


def _enclosing(item: Spent) -> Mechanism:
    """A mechanism for one unit that is no more private than this one for a group.

    A group is in a batch in part; here it is in it whole, as often as any of it is.
    """
    rate = -math.expm1(item.group * math.log1p(-item.rate)) if item.rate < 1 else 1.0
    return Mechanism(rate, item.noise / item.group, item.steps)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence two remarks that alter no bound.

    PRV takes log(0) where the rate is 1, and masks it. RDP, which PRV also asks for the
    size of its domain, may find its best order at the end of its list: a looser bound.
    """
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield


def _history(mechanism: Mechanism) -> tuple[float, float, int]:
    return mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps


def _check_probability(delta: float) -> None:
    if not 0 < delta < 1:
        raise TrainingError(f"delta {delta} is not between 0 and 1")


def _finite(epsilon: float) -> float:
    if not 0 <= epsilon < math.inf:
        raise TrainingError("this mechanism has no finite epsilon at this delta")
    return float(epsilon)
