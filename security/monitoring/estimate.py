"""Accuracy without labels: what it would be if scores still meant what they did.

The accuracy of a window is estimated by the shares of the score's bins in it, each
times the accuracy that held-out rows of that bin had. Guillory et al. (2021) and Garg
et al. (2022) compare such estimates; bins need no mid-points and are as good as an
isotonic fit of exact scores.

It follows from this that the estimate sees answers that became less sure, and nothing
else. Where inputs mean other labels than they did, it stays as it was or points the
wrong way: on a stream of electricity prices its correlation with the truth is -0.69. So
it is shown beside the drift alarm and labels only, it is withheld where rows lie where
the reference has none, and no decision takes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Manifest, Tensor
from models.report import Metric
from sealgate.protocol.tensors import TensorSpec
from security.monitoring.layout import Histogram, layout_of

__all__ = ["BLIND", "CONFIDENCE", "SCORE", "ScoreBins", "estimated_accuracy"]

# What the layout calls the histogram of scores.
SCORE = "answer/score"

BLIND = (
    "assumes that answers of a score are right as often as held-out ones were; it "
    "cannot see a changed relation between inputs and labels"
)
CONFIDENCE = 0.95
_Z = 1.959964
# Rows that each bin has beside its own, as accurate as all of them.
_PSEUDO_ROWS = 2
# Events, in deviations of their noise, below which shares are mostly noise.
_LEAST = 5.0
_MAX_CODES = 256


@dataclass(frozen=True)
class ScoreBins:
    """How accurate held-out rows were, by the code that their score has.

    Attributes:
        low, high: of the range that the bins share, as the model's layout has it.
        rows: held-out rows of each code of `layout`, the first being "missing".
        right: of those, rows that were answered rightly.
    """

    low: float
    high: float
    rows: tuple[int, ...]
    right: tuple[int, ...]

    def to_object(self) -> dict[str, Any]:
        """As quality evidence has it, in ``details["score_bins"]``."""
        return {
            "low": self.low,
            "high": self.high,
            "rows": list(self.rows),
            "right": list(self.right),
        }

    @classmethod
    def of_rows(
        cls, scores: NDArray[np.float64], right: NDArray[np.bool_]
    ) -> ScoreBins | None:
        """Count rows by the bins that a server counts answers in.

        >>> bins = ScoreBins.of_rows(np.array([[0.1, 0.9]]), np.array([True]))
        >>> sum(bins.rows), sum(bins.right)
        (1, 1)

        Args:
            scores: ``(n, classes)``, two classes or more.
            right: ``(n,)``, whether the model's answer was.

        Returns:
            None where there are more classes than a server counts scores of.
        """
        labels = tuple(map(str, range(scores.shape[1])))
        spec = TensorSpec("scores", "FP64", (-1, len(labels)))
        tensor = Tensor(spec, labels=labels)
        layout = layout_of(Manifest("held-out", "1", (), (tensor,), 1))
        names = [item.name for item in layout.histograms]
        if SCORE not in names:
            return None
        codes = layout.codes({}, {"scores": scores}, slice(0, len(scores)))
        histogram = layout.histograms[names.index(SCORE)]
        own = codes[:, names.index(SCORE)]
        rows, hits = (
            np.bincount(item, minlength=histogram.size) for item in (own, own[right])
        )
        low, high = histogram.low, histogram.high
        return cls(low, high, tuple(rows.tolist()), tuple(hits.tolist()))

    @classmethod
    def from_details(cls, details: Mapping[str, Any]) -> ScoreBins | None:
        """What a quality report holds; None if it has none, or none that can be.

        >>> bins = ScoreBins(0.5, 1.0, (0, 0, 8, 0), (0, 0, 6, 0))
        >>> ScoreBins.from_details({"score_bins": bins.to_object()}) == bins
        True
        """
        found = details.get("score_bins")
        if not isinstance(found, Mapping):
            return None
        ends: list[Any] = [found.get("low"), found.get("high")]
        counts: list[Any] = [found.get("rows"), found.get("right")]
        if not (all(map(_is_number, ends)) and all(map(_are_counts, counts))):
            return None
        rows, right = map(tuple, counts)
        if len(rows) != len(right) or any(a < b for a, b in zip(rows, right)):
            return None
        low, high = map(float, ends)
        can_be = low < high and sum(rows[1:]) > 0
        return cls(low, high, rows, right) if can_be else None

    def fits(self, histogram: Histogram) -> bool:
        """Whether a released histogram has these very bins."""
        ends = histogram.low, histogram.high
        return ends == (self.low, self.high) and histogram.size == len(self.rows)


def estimated_accuracy(
    bins: ScoreBins, counts: Sequence[int], sigma: float
) -> Metric | None:
    """The accuracy of a window, estimated from the shares of its scores.

    Args:
        bins: of held-out rows.
        counts: of the window, noisy, one for each code. Events without a score, the
            first code, are left out.
        sigma: the noise's deviation, of each count.

    Returns:
        Of the window's own rows, with an interval that accounts for noise, for them and
        for the held-out ones. None if noise hides the shares.
    """
    given = np.array(counts[1:], dtype=np.float64)
    rows = np.array(bins.rows[1:], dtype=np.float64)
    right = np.array(bins.right[1:], dtype=np.float64)
    total = float(given.sum())
    if total <= max(1.0, _LEAST * sigma * math.sqrt(len(given))):
        return None
    overall = right.sum() / rows.sum()
    accuracy = (right + _PSEUDO_ROWS * overall) / (rows + _PSEUDO_ROWS)
    share = given / total
    value = float(share @ accuracy)
    # A ratio of noisy sums, by the delta method; a bin's rows are counted with noise.
    counted = np.maximum(given, 0.0) + sigma**2
    drawn = float(((accuracy - value) ** 2) @ counted) / total**2
    # Of each bin's accuracy: the posterior's, with the pseudo-rows as its prior.
    known = accuracy * (1.0 - accuracy) / (rows + _PSEUDO_ROWS + 1.0)
    # And of the window's own rows some more or fewer were right than that, by chance.
    chance = max(0.0, float(share @ (accuracy * (1.0 - accuracy)))) / total
    reach = _Z * math.sqrt(drawn + float(share**2 @ known) + chance)
    return Metric(
        value=min(1.0, max(0.0, value)),
        n=round(total),
        low=min(1.0, max(0.0, value - reach)),
        high=min(1.0, max(0.0, value + reach)),
        confidence=CONFIDENCE,
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_counts(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and 1 < len(value) <= _MAX_CODES
        and all(type(item) is int and item >= 0 for item in value)
    )
