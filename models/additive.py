"""Additive models as torch modules: each column's bin has a score, and scores add up.

A model of this kind is its own explanation: the log-odds of the second class are the
intercept and one contribution per column, which the graph gives beside the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.architectures import TabularClassifier
from models.manifest import Column

__all__ = ["AdditiveBody", "AdditiveClassifier"]


class AdditiveBody(nn.Module):
    """Bins by comparison with cuts, then the score of the one that a value is in.

    What trains it sets every parameter at once (`security.training.additive`); noisy
    gradients do not. A term's bin is how many of its cuts a value reaches. The bin is
    picked by a product with 0 and 1, which is exact, and not by its number: attacks
    that give a comparison a gradient can follow it (`OnnxModule`, ``soft``).

    Attributes:
        cuts: float32 ``(terms, bins - 1)``, rising along each row.
        scores: float32 ``(terms, bins)``, contributions to the log-odds of the second
            class.
        intercept: float32 ``(1,)``.
    """

    def __init__(self, terms: int, bins: int) -> None:
        """Start at zero, with so many terms, of so many bins at most."""
        super().__init__()
        self.cuts = nn.Parameter(torch.zeros(terms, bins - 1))
        self.scores = nn.Parameter(torch.zeros(terms, bins))
        self.intercept = nn.Parameter(torch.zeros(1))

    def contributions(self, inputs: Tensor) -> Tensor:
        """Of each term ``(n, terms)``, to the log-odds of the second class."""
        reached = (inputs.unsqueeze(2) >= self.cuts).float()
        # Rising cuts: 1 up to the bin, then 0. Less the same moved by one: its place.
        ends = torch.zeros_like(inputs).unsqueeze(2)
        chosen = torch.cat([ends + 1.0, reached], 2) - torch.cat([reached, ends], 2)
        return (chosen * self.scores).sum(dim=2)

    def logits(self, contributions: Tensor) -> Tensor:
        """Of both classes ``(n, 2)``; the first one's are 0."""
        odds = contributions.sum(dim=1, keepdim=True) + self.intercept
        return torch.cat([torch.zeros_like(odds), odds], dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """What `AdditiveClassifier.network_input` gives, to logits ``(n, 2)``."""
        return self.logits(self.contributions(inputs))

    def curve(self, term: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A term's cuts and the scores of its bins."""
        return self.cuts[term].detach().numpy(), self.scores[term].detach().numpy()


class AdditiveClassifier(TabularClassifier):
    """A classifier of rows into two classes that gives contributions beside its answer.

    Numbers are compared with cuts as they come, in their own unit: nothing is computed
    of them first, so that no rounding moves a row into another bin.

    Attributes:
        body: an `AdditiveBody`.
        columns: the ``d`` columns.
        centres: float32 ``(d,)``, what stands for a missing number: the value that
            `scale` maps to `centre`.
    """

    body: AdditiveBody
    columns: tuple[Column, ...]
    centres: Tensor
    coded: Tensor
    owners: Tensor

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        bins: int,
        missing_flags: bool = False,
        centre: float = 0.5,
        logs: Collection[str] = (),
    ) -> None:
        numeric = [i for i, column in enumerate(columns) if not column.categories]
        flagged = numeric if missing_flags else []
        most = max([bins, *(len(column.categories) + 1 for column in columns)])
        super().__init__(
            columns,
            AdditiveBody(len(columns) + len(flagged), most),
            missing_flags=missing_flags,
            centre=centre,
            logs=logs,
        )
        self.width = len(columns) + len(flagged)
        self.columns = tuple(columns)
        self.register_buffer(
            "coded", torch.tensor([bool(item.categories) for item in columns])
        )
        middle = self.unscaled(np.full((1, len(columns)), centre))
        self.register_buffer("centres", torch.from_numpy(middle[0]).float())
        if self._flags:  # whose each flag is
            owners = torch.eye(len(columns))[torch.tensor(flagged)]
            self.register_buffer("owners", owners)

    def network_input(self, features: Tensor) -> Tensor:
        """Numbers within their ranges, codes from 1, then flags: ``(n, terms)``.

        What is missing or infinite becomes the column's centre; a category that is
        missing, or none of the known ones, 0.
        """
        high = self.low + self.span
        finite = torch.isfinite(features)
        kept = torch.clamp(features, self.low, high)
        numbers = torch.where(finite, kept, self.centres)
        # A code beyond the last, or between two, is clipped or rounded to another.
        known = finite & (features == torch.round(kept))
        codes = torch.where(known, kept + 1.0, 0.0)
        inputs = torch.where(self.coded, codes, numbers)
        if not self._flags:
            return inputs
        raw = torch.index_select(features, 1, self.numeric)
        return torch.cat([inputs, 1.0 - torch.isfinite(raw).float()], dim=1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities ``(n, 2)``, labels ``(n,)``, contributions ``(n, d)``."""
        contributions = self.body.contributions(self.network_input(features))
        if self._flags:
            width = len(self.columns)
            flags = torch.matmul(contributions[:, width:], self.owners)
            contributions = contributions[:, :width] + flags
        probabilities = torch.softmax(self.body.logits(contributions), dim=-1)
        return probabilities, torch.argmax(probabilities, dim=-1), contributions

    def scaled(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """As `scale`, of finite numbers within their ranges, in double precision.

        Args:
            numbers: ``(n, d)``; what becomes of codes means nothing.
        """
        low, span, growth = self._constants()
        share = np.clip((numbers - low) / span, 0.0, 1.0)
        factors = np.log1p(growth * share) / np.log1p(np.maximum(growth, 1e-6))
        return np.where(growth > 0, factors, share)

    def unscaled(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """The numbers that `scaled` maps to these."""
        low, span, growth = self._constants()
        some = np.maximum(growth, 1e-6)
        factors = np.expm1(shares * np.log1p(some)) / some
        return low + span * np.where(growth > 0, factors, shares)

    def _constants(self) -> tuple[NDArray[np.float64], ...]:
        low = self.low.double().numpy()
        growth = self.growth.double().numpy() if self._logs else np.zeros_like(low)
        return low, self.span.double().numpy(), growth
