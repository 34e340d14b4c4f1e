"""The mechanism: Poisson sampling, Gaussian noise, and a record of what it really did.

Opacus' optimizer and accountant are used one by one, not through make_private: that
rounds the sampling rate to 1/len(loader) and divides by a batch size taken from the
number of private rows (opacus#819). Here both are what the configuration says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from opacus.accountants import PRVAccountant
from opacus.optimizers import DPOptimizer
from scipy import stats
from torch import Tensor

from security.errors import TrainingError
from security.training.accounting import Mechanism
from security.training.gradients import Clipped
from security.training.noise import Randomness, gaussian

__all__ = ["Conformance", "Noise", "NoisyOptimizer", "check_history", "poisson"]

_NORM_SLACK = 1e-4  # of float32 sums


class Conformance:
    """Counts what was done, to compare it with what was planned.

    Only verdicts leave this class, never the statistics: a sum of squares of the noise
    is also a sum of squares of (released minus private) gradients, and would tell one
    training set from its neighbour exactly. A checkpoint holds them while a training is
    interrupted, so that the verdicts cover what was done before, too.
    """

    def __init__(self, counts: Sequence[float] = (0.0,) * 7) -> None:
        """Begin, or go on from the counts of a record before."""
        self._longest, steps, self._squares, self._total, *rest = counts
        self._steps = int(steps)
        self._draws, self._coins, self._taken = (int(value) for value in rest)

    def counts(self) -> tuple[float, ...]:
        """What it holds, for a checkpoint; not for anything that is released."""
        sums = (self._squares, self._total, self._draws, self._coins, self._taken)
        return (self._longest, self._steps, *sums)

    @property
    def steps(self) -> int:
        """How many steps were seen."""
        return self._steps

    @property
    def draws(self) -> int:
        """How many numbers of noise were seen."""
        return self._draws

    def saw_noise(self, standardised: Tensor) -> None:
        """Noise divided by its planned deviation."""
        flat = standardised.flatten()
        self._squares += float(flat @ flat)
        self._total += float(standardised.sum())
        self._draws += standardised.numel()

    def saw_norms(self, longest: float, most: float) -> None:
        """The longest clipped gradient beside the longest allowed."""
        self._longest = max(self._longest, longest / most)

    def saw_coins(self, coins: int, taken: int) -> None:
        """Of a step, how many units were asked, and how many came into the batch."""
        self._steps += 1
        self._coins += coins
        self._taken += taken

    def noise_conforms(self, level: float) -> bool:
        """Chi-square on the variance and a normal test on the mean, at a level."""
        if not self._draws:
            return False
        spread = stats.chi2(self._draws)
        p_spread = 2 * min(spread.cdf(self._squares), spread.sf(self._squares))
        p_mean = 2 * stats.norm.sf(abs(self._total) / math.sqrt(self._draws))
        return bool(min(p_spread, p_mean) >= level / 2)

    def norms_conform(self) -> bool:
        """Whether no clipped gradient was longer than allowed."""
        return self._longest <= 1 + _NORM_SLACK

    def rate_conforms(self, rate: float, level: float) -> bool:
        """Two-sided binomial test on how many units came into batches."""
        if rate >= 1:
            return self._taken == self._coins
        binomial = stats.binom(self._coins, rate)
        low, high = binomial.cdf(self._taken), binomial.sf(self._taken - 1)
        return bool(2 * min(low, high) >= level)

    def detectable_deficit(self, level: float) -> float:
        """The smallest missing share of the noise's deviation found 999 times in 1000.

        It depends on the number of draws alone.
        """
        spread = stats.chi2(max(self._draws, 1))
        needed = spread.ppf(level / 4)
        return float(max(0.0, 1 - math.sqrt(needed / spread.ppf(0.999))))


@dataclass(frozen=True)
class Noise:
    """What is added to a step's sum.

    Attributes:
        multiplier: deviation over the clipping norm.
        max_grad_norm: the clipping norm, of everything one unit adds.
        expected_batch: public divisor.
    """

    multiplier: float
    max_grad_norm: float
    expected_batch: int

    @property
    def deviation(self) -> float:
        """Of each number of noise."""
        return self.multiplier * self.max_grad_norm


class NoisyOptimizer(DPOptimizer):
    """Opacus' optimizer around a plain one that it keeps and guards.

    Calling the original optimizer's step by mistake trains without clipping or noise
    and raises nothing. So it refuses to step unless noise has just been added.

    Beside the gradient it tells, with the same noise, what has a share of the norm:
    `noisy_loss` and `noisy_clamped`; None where nothing is told.
    """

    def __init__(
        self,
        plain: torch.optim.Optimizer,
        noise: Noise,
        *,
        randomness: Randomness,
        record: Conformance,
        loss_norm: float = 0.0,
        clamped_norm: float = 0.0,
    ) -> None:
        """Take over a plain optimizer.

        Args:
            plain: nobody else may hold it.
            noise: what is added.
            randomness: where from.
            record: told of the noise that was added.
            loss_norm: what one unit's loss adds to the sum at most; 0 to tell none.
            clamped_norm: the same of a unit's clamped targets.
        """
        self._armed = False
        self._randomness, self._record = randomness, record
        # Coordinates beside the gradient: the loss, and clamped targets.
        self._norms = (loss_norm, clamped_norm)
        self._sums = [0.0, 0.0]
        self._told: list[float | None] = [None, None]
        self._whole_batch = noise.expected_batch
        plain.register_step_pre_hook(self._guard)
        super().__init__(
            plain,
            noise_multiplier=noise.multiplier,
            max_grad_norm=noise.max_grad_norm,
            expected_batch_size=noise.expected_batch,
        )

    @property
    def noisy_loss(self) -> float | None:
        """The mean loss of the last step from 0 to 1, with noise."""
        told = self._told[0]
        return None if told is None else told / self._whole_batch

    @property
    def noisy_clamped(self) -> float | None:
        """How many units' targets were clamped in the last step, with noise."""
        return self._told[1]

    @property
    def accumulated_iterations(self) -> int:
        """One: physical batches of one step are added up, not steps."""
        return 1

    def account(self, accountant: PRVAccountant, rate: float) -> None:
        """Have every step recorded."""
        self.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=rate))

    def accumulate(self, clipped: Clipped, loss_share: Tensor) -> None:
        """Add a physical batch to this step's sum.

        Args:
            clipped: what a gradient method made.
            loss_share: of each unit, its loss from 0 to 1.
        """
        for parameter, total in zip(self.params, clipped.sums):
            if parameter.summed_grad is None:
                parameter.summed_grad = total
            else:
                parameter.summed_grad = parameter.summed_grad + total
        self._sums[0] += self._norms[0] * float(loss_share.clamp(0, 1).sum())

    def count_clamped(self, shares: Tensor) -> None:
        """Add units' clamped targets to this step's sum.

        Args:
            shares: of each unit in the batch, from 0 to 1.
        """
        self._sums[1] += self._norms[1] * float(shares.clamp(0, 1).sum())

    def add_noise(self) -> None:
        """Opacus' add_noise, with the mechanism's own randomness, in float64."""
        deviation = self.noise_multiplier * self.max_grad_norm
        sums = [p.summed_grad for p in self.params]
        if any(t is None or getattr(t, "_processed", False) for t in sums):
            raise TrainingError("a sum without a batch, or used twice")
        # All parameters at once: drawing, checking and adding cost little per call.
        wide = torch.cat([total.detach().flatten() for total in sums]).cpu().double()
        drawn = torch.from_numpy(gaussian(self._randomness, len(wide)))
        result = drawn.mul_(deviation).add_(wide).to(sums[0].dtype)
        self._record.saw_noise((result.double() - wide) / deviation)
        sizes = [parameter.numel() for parameter in self.params]
        for parameter, total, piece in zip(
            self.params, sums, torch.split(result, sizes)
        ):
            parameter.grad = piece.to(parameter.device).view_as(parameter)
            total._processed = True  # noqa: SLF001  (Opacus' own mark)
        self._tell(deviation)

    def pre_step(self, closure: Any = None) -> bool:
        """Noise, scaling, accounting; clipping was done by the gradient method."""
        del closure
        self.add_noise()
        self.scale_grad()
        if self.step_hook:
            self.step_hook(self)
        return True

    def step(self, closure: Any = None) -> Any:
        """Add noise, record the step with the accountant, then descend."""
        del closure
        if self.step_hook is None:
            raise TrainingError("no accountant records this step")
        self._armed = True
        try:
            self.pre_step()
            return self.original_optimizer.step()
        finally:
            self._armed = False
            self._clear()

    def _clear(self) -> None:
        for parameter in self.params:
            parameter.summed_grad = parameter.grad = None
        self._sums = [0.0, 0.0]

    def _tell(self, deviation: float) -> None:
        """Further coordinates of the same noisy sum, each in units of its own norm."""
        for place, norm in enumerate(self._norms):
            if norm:
                drawn = gaussian(self._randomness, 1)
                self._record.saw_noise(torch.from_numpy(drawn))
                noisy = self._sums[place] + float(drawn[0]) * deviation
                self._told[place] = noisy / norm

    def _guard(self, *_: object) -> None:
        if not self._armed:
            raise TrainingError("a step without clipping and noise was attempted")


def poisson(units: int, rate: float, randomness: Randomness) -> Tensor:
    """Every unit by its own coin: the batch's size is random, and may be 0."""
    coins = np.ascontiguousarray(randomness.uniform(units) < rate)
    return torch.from_numpy(coins)


def check_history(history: Sequence[Iterable[float]], planned: Mechanism) -> None:
    """Refuse a training whose accountant recorded something else than was planned.

    Raises:
        TrainingError: says both.
    """
    wanted = (planned.noise_multiplier, planned.sample_rate, planned.steps)
    if [tuple(entry) for entry in history] != [wanted]:
        raise TrainingError(f"the accountant recorded {history}, planned was {wanted}")
