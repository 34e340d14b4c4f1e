"""What a training has cost so far, for whoever watches it."""

from __future__ import annotations

from opacus.accountants.analysis import rdp

from security.training.accounting import RDP_ORDERS, Mechanism, quiet

__all__ = ["Curve"]


class Curve:
    """About how much epsilon a number of steps has cost, quickly enough for a display.

    Rényi's curve, bent to end at the target: the claim is never made from it.
    """

    def __init__(self, mechanism: Mechanism, delta: float, target: float) -> None:
        self._delta, self._steps = delta, mechanism.steps
        with quiet():
            self._one = rdp.compute_rdp(
                q=mechanism.sample_rate,
                noise_multiplier=mechanism.noise_multiplier,
                steps=1,
                orders=RDP_ORDERS,
            )
        self._scale = 1.0
        self._scale = target / self(mechanism.steps)

    def __call__(self, steps: int) -> float:
        """Epsilon after so many steps, at least one."""
        with quiet():
            epsilon, _ = rdp.get_privacy_spent(
                orders=RDP_ORDERS, rdp=self._one * steps, delta=self._delta
            )
        return float(epsilon) * self._scale
