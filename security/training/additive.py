"""DP-EBM: boosted one-column models under differential privacy, by InterpretML.

Nori, Caruana, Bu, Shen and Kulkarni 2021, "Accuracy, Interpretability, and Differential
Privacy via Explainable Boosting". Two kinds of queries touch the rows: the histogram of
each column, once, and in each round and for each term the sums of residuals in the few
leaves of a random split. One row is in one bin and one leaf, and a residual of a
probability is below 1: each query is a Gaussian mechanism of sensitivity 1 for a row
that is added or removed.

What the library leaves to its caller is settled here:

- bounds are those of the public schema, and rows are clipped to them;
- categories are the schema's, in its order, with one more for what is none of them.
  InterpretML takes those that it finds, so rows that nobody owns, of next to no weight,
  hold each once, and each class;
- its noise, one floating-point Gaussian of a 64-bit generator, is replaced by that of
  `noise`, and each deviation it asks for is held to the plan;
- its sums of residuals are of double precision: of single precision, as its vector
  units make them, rounding alone can move a sum of a million rows by more than one row
  does. What double precision may round is added to the noise (`rounding_of`);
- its budget is split so that both kinds of queries have the same noise: then all of
  them together are one Gaussian mechanism in ``terms * (rounds + 1)`` steps, which GDP
  accounts for exactly (`composed`), the ledger adds up, and PLD recomputes.

The number of rows is public, as everywhere here: it decides which bins are merged.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from interpret import develop
from interpret.privacy import DPExplainableBoostingClassifier
from interpret.utils._native import Native
from numpy.typing import NDArray

from models.additive import AdditiveClassifier
from security.admission.trained_ebm import rounding_of
from security.errors import TrainingError
from security.training.accounting import Mechanism
from security.training.composed import delta_gdp, epsilon_of
from security.training.config_sections import BoostingConfig
from security.training.mechanism import Conformance
from security.training.noise import Randomness, gaussian

__all__ = ["fit"]

Floats = NDArray[np.float64]

# Of a row that nobody owns, beside 1 of each private one.
_NO_WEIGHT = 1e-9
# Between a deviation that InterpretML finds by bisection and the planned one.
_SLACK = 1e-6
_UNITS = "acceleration"  # which vector units InterpretML uses
# The generator belongs to the process, and so does how sums are made.
_ALONE = threading.Lock()


def fit(
    module: AdditiveClassifier,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    boosting: BoostingConfig,
    mechanism: Mechanism,
    randomness: Randomness,
) -> Conformance:
    """Train a model in place.

    Args:
        module: sets the columns, and takes the cuts and scores.
        inputs: what its `network_input` gives, ``(n, terms)``.
        labels: 0 or 1, ``(n,)``.
        boosting: how.
        mechanism: noise, and a step for each term and round, and for its histogram.
        randomness: of the noise; which leaves are split is public.

    Returns:
        The record of the noise.

    Raises:
        TrainingError: InterpretML did something else than was planned. Nothing is then
            to be released.
    """
    terms = _Terms(module)
    rows, given, weights = terms.rows(inputs.double().numpy(), labels.numpy())
    epsilon, share, delta = _budget(mechanism, terms.count)
    noise = _Noise(mechanism, boosting, terms.count, len(labels), randomness)
    model = DPExplainableBoostingClassifier(
        feature_names=terms.names,
        feature_types=terms.types,
        privacy_bounds=dict.fromkeys(terms.names, (0.0, 1.0)),
        max_bins=boosting.bins,
        max_rounds=boosting.rounds,
        max_leaves=boosting.leaves,
        learning_rate=boosting.learning_rate,
        epsilon=epsilon,
        delta=2 * delta,
        bin_budget_frac=share,
        composition="gdp",
        outer_bags=1,
        validation_size=0,
        n_jobs=1,
    )
    with noise.in_place(), warnings.catch_warnings():
        # A warning is of something that was left to the rows.
        warnings.simplefilter("error")
        try:
            model.fit(rows, given, sample_weight=weights)
        except (ValueError, RuntimeError, Warning) as error:
            raise TrainingError(f"InterpretML: {error}") from None
    noise.check()
    terms.take(model)
    return noise.record


def _budget(mechanism: Mechanism, terms: int) -> tuple[float, float, float]:
    """The budget that InterpretML needs to be given, and what share is for binning.

    It finds its noise for two parts, at half of delta each; the claim is of both at
    once, at the delta of the plan, so these numbers are nobody's guarantee. Its search
    is precise where epsilon is small: so delta is half of what the part with the
    smaller cost has at an epsilon of 0, and is told too, of each part.
    """
    bound = mechanism.noise_multiplier
    parts = [count**0.5 / bound for count in (terms, mechanism.steps - terms)]
    delta = delta_gdp(min(parts), 0.0) / 2
    binning, boosting = (epsilon_of(part, delta) for part in parts)
    if not 0 < binning <= boosting:
        raise TrainingError(
            f"noise of {bound:g} in {mechanism.steps} queries is more than InterpretML "
            "can be told to add: take fewer rounds, or a larger epsilon"
        )
    return binning + boosting, binning / (binning + boosting), delta


class _Noise:
    """Noise in the place of InterpretML's own, each number of the planned deviation."""

    def __init__(
        self,
        mechanism: Mechanism,
        boosting: BoostingConfig,
        terms: int,
        rows: int,
        randomness: Randomness,
    ) -> None:
        self.record, self.asked = Conformance(), 0
        self._mechanism, self._terms = mechanism, terms
        self._rate, self._randomness = boosting.learning_rate, randomness
        self._rows, self._room = rows, 1 + rounding_of(rows)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While this holds, InterpretML's only source of Gaussian noise is here.

        And without vector units it adds up in double precision.
        """
        with _ALONE:
            native = Native.get_native_singleton()
            before = develop.get_option(_UNITS)
            native.generate_gaussian_random = self._draw
            develop.set_option(_UNITS, Native.AccelerationFlags_NONE)
            try:
                yield
            finally:
                del native.generate_gaussian_random
                develop.set_option(_UNITS, before)

    def check(self) -> None:
        """Refuse another number of queries than was planned.

        Raises:
            TrainingError: says both.
        """
        if self.asked != self._mechanism.steps:
            raise TrainingError(
                f"InterpretML asked for noise {self.asked} times, "
                f"{self._mechanism.steps} were planned"
            )

    def _draw(self, rng: Any, stddev: float, count: int) -> Floats:
        """As `Native.generate_gaussian_random`."""
        del rng
        # Residuals are summed times the learning rate, and so is their noise.
        scale = 1.0 if self.asked < self._terms else self._rate
        planned = self._mechanism.noise_multiplier * scale
        if not abs(stddev - planned) <= _SLACK * planned:
            raise TrainingError(
                f"InterpretML asked for noise of {stddev:g}, {planned:g} was planned"
            )
        self.asked += 1
        self.record.saw_coins(self._rows, self._rows)
        drawn = gaussian(self._randomness, count)
        self.record.saw_noise(torch.from_numpy(drawn))
        return drawn * (planned * self._room)


class _Terms:
    """A model's terms as InterpretML's features, and back."""

    def __init__(self, module: AdditiveClassifier) -> None:
        self._module = module
        self._columns = module.columns
        self.count = module.width
        self.names = [f"t{place}" for place in range(self.count)]
        # How many codes each term has; 0 for a number. Flags have two.
        coded = [
            len(item.categories) + 1 if item.categories else 0 for item in self._columns
        ]
        self._codes = coded + [2] * (self.count - len(coded))
        self.types = ["nominal" if codes else "continuous" for codes in self._codes]

    def rows(
        self, inputs: Floats, labels: NDArray[Any]
    ) -> tuple[Floats, NDArray[Any], Floats]:
        """Rows, labels and weights, with rows that nobody owns at the end."""
        width = len(self._columns)
        numbers = [place for place in range(width) if not self._codes[place]]
        scaled = inputs.copy()
        scaled[:, numbers] = self._module.scaled(inputs[:, :width])[:, numbers]
        places = np.arange(max(2, *self._codes))
        nobody = np.stack([places % max(codes, 1) for codes in self._codes], axis=1)
        return (
            np.concatenate([scaled, nobody]),
            np.concatenate([labels, places % 2]),
            np.concatenate([np.ones(len(labels)), np.full(len(places), _NO_WEIGHT)]),
        )

    def take(self, model: DPExplainableBoostingClassifier) -> None:
        """Put cuts and scores of a fitted model into the module.

        Raises:
            TrainingError: it has other terms, or a score is not finite.
        """
        if sorted(model.term_features_) != [(place,) for place in range(self.count)]:
            raise TrainingError("InterpretML gave other terms than one for each column")
        body = self._module.body
        cuts, scores = torch.zeros_like(body.cuts), torch.zeros_like(body.scores)
        for (place,), found in zip(model.term_features_, model.term_scores_):
            own, each = self._term(place, model.bins_[place][0], found)
            own, each = _within(own, each, model.bin_weights_[place], cuts.shape[1])
            cuts[place] = self._beyond(place)
            cuts[place, : len(own)] = torch.from_numpy(own)
            scores[place, : len(each)] = torch.from_numpy(each)
            scores[place, len(each) :] = float(each[-1])
        if not bool(torch.isfinite(scores).all()):
            raise TrainingError("InterpretML gave a score that is not finite")
        with torch.no_grad():
            body.cuts.copy_(cuts)
            body.scores.copy_(scores)
            body.intercept.fill_(float(np.ravel(model.intercept_)[0]))

    def _term(
        self, place: int, bins: Any, found: Floats
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cuts in the column's own unit, and a score for each bin between them.

        InterpretML's first score is of what is missing, and its last of categories that
        it merged or has not seen.
        """
        if self._codes[place]:
            codes = range(self._codes[place])
            each = np.array([found[bins.get(str(code), -1)] for code in codes])
            return np.arange(0.5, len(each) - 1, dtype=np.float32), each.astype("f4")
        own = np.array([self._raw(place, cut) for cut in bins], dtype=np.float32)
        return own, found[1:-1].astype(np.float32)

    def _beyond(self, place: int) -> float:
        """A cut that no value reaches."""
        if self._codes[place]:
            return float(self._codes[place])
        column = self._columns[place]
        return 2 * column.high - column.low

    def _raw(self, place: int, cut: float) -> np.float32:
        """The smallest float32 number of a column whose scaled value reaches a cut.

        So a row is in the bin that it was trained in, to the last bit.
        """
        width = len(self._columns)

        def scaled(number: np.float32) -> float:
            row = np.full((1, width), float(number))
            return float(self._module.scaled(row)[0, place])

        shares = np.full((1, width), cut)
        number = np.float32(self._module.unscaled(shares)[0, place])
        return _smallest(number, lambda one: scaled(one) >= cut)


def _within(
    own: NDArray[np.float32], each: NDArray[np.float32], weights: Floats, most: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """At most so many cuts: neighbouring bins join, by their noisy weights.

    Where noise is more than there are rows, InterpretML makes up to twice as many bins
    of numbers as were asked for. It is all made private before.
    """
    if len(own) <= most:
        return own, each
    firsts = np.arange(most + 1) * len(each) // (most + 1)
    counts = np.maximum(weights[1 : len(each) + 1], 1e-9)
    sums = np.add.reduceat(each * counts, firsts)
    joined = sums / np.add.reduceat(counts, firsts)
    return own[firsts[1:] - 1], joined.astype(np.float32)


def _smallest(number: np.float32, reaches: Callable[[np.float32], bool]) -> np.float32:
    """The smallest float32 that reaches something, from one that is close to it."""
    low, high = np.float32(-np.inf), np.float32(np.inf)
    while reaches(number):
        number = np.nextafter(number, low)
    while not reaches(number):
        number = np.nextafter(number, high)
    return number
