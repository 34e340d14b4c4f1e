"""Split conformal prediction: the member ``conformal`` of a manifest.

A quantile of held-out rows' scores, found once, gives every later answer an interval or
a set of classes that holds the truth with a stated probability (Vovk, Gammerman and
Shafer 2005; Lei et al. 2018, theorem 2.2). That probability is marginal: over rows that
are exchangeable with those it was calibrated on, all together. It says nothing of one
group, of one row, or of a world that has changed.

Numbers: the score is how far the truth is from the answer on a transformed scale, so
that an interval is wider where answers are larger. Classes: one less the probability of
the true class (LAC of Sadinle, Lei and Wasserman 2019), which gives the smallest sets
on average, and the same one whenever the same row is asked about.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ManifestError

__all__ = [
    "CLASS_SCALES",
    "MIN_EVALUATED",
    "NUMBER_SCALES",
    "Conformal",
    "class_scores",
    "is_calibrating",
    "key_of",
    "keyed",
    "probabilities",
    "quantile",
    "rank",
    "residuals",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

NUMBER_SCALES = ("identity", "sqrt", "log")
CLASS_SCALES = ("probability", "softmax")
# Of rows that measure coverage: fewer say nothing.
MIN_EVALUATED = 30
MAX_ROWS = 1 << 40
MAX_REASON = 200
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{32}")

# log(1 + x), not log(x): counts have zeros.
_FORWARD: Mapping[str, Callable[[Floats], Floats]] = {
    "identity": lambda x: x,
    "sqrt": np.sqrt,
    "log": np.log1p,
}
_BACKWARD: Mapping[str, Callable[[Floats], Floats]] = {
    "identity": lambda x: x,
    "sqrt": np.square,
    "log": np.expm1,
}


@dataclass(frozen=True)
class Conformal:
    """How a model's answers are widened.

    Attributes:
        output: that answers: a number for each row, or scores of classes.
        scale: of numbers "identity", "sqrt" or "log" (of one more), which takes what is
            below 0 as 0; of classes what makes probabilities of the scores.
        coverage: above 0 and below 1: how often the truth shall be inside.
        quantile: of the scores, on the scale: half an interval's width; at least 0.
        rows: that it was calibrated on; with noise where ``epsilon`` is stated.
        rows_sha256: digest of these rows.
        split_key, split_share: which rows may calibrate, see `is_calibrating`: no other
            rows measure coverage. The key is drawn, or is `key_of` all rows.
        decimals: that answers had when it was calibrated; None for all.
        epsilon, delta: what the quantile costs of its rows' privacy; None where it is
            not private.
        waiver: then, why it need not be.
        decisions: "places" where whole numbers that decide count classes from 0, though
            these have numbers for names; None where they say the names.
    """

    output: str
    scale: str
    coverage: float
    quantile: float
    rows: int
    rows_sha256: str
    split_key: str
    split_share: float
    decimals: int | None = None
    epsilon: float | None = None
    delta: float | None = None
    waiver: str | None = None
    decisions: str | None = None

    @property
    def of_classes(self) -> bool:
        """Whether it makes sets of classes, not intervals of numbers."""
        return self.scale in CLASS_SCALES

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs that it adds."""
        ends = ("set",) if self.of_classes else ("lower", "upper")
        return tuple(f"{self.output}_{end}" for end in ends)

    @property
    def sha256(self) -> str:
        """Digest of all of it, by which evidence says what it measured."""
        told = "\n".join(f"{k}={v!r}" for k, v in sorted(self.to_object().items()))
        return hashlib.sha256(told.encode()).hexdigest()

    def ends(
        self, numbers: NDArray[Any], bounds: tuple[float, float] | None = None
    ) -> tuple[Floats, Floats]:
        """Both ends of each number's interval, of the same shape; NaN of a NaN.

        Args:
            numbers: answers.
            bounds: public range that no end leaves; the truth is known to be in it.

        >>> ten = Conformal("y", "sqrt", 0.9, 1.0, 99, "", "", 0.5)
        >>> [end.tolist() for end in ten.ends(np.array([0.0, 16.0]), (0.0, 20.0))]
        [[0.0, 9.0], [1.0, 20.0]]
        """
        middle = _on_scale(numbers, self.scale)
        low, high = middle - self.quantile, middle + self.quantile
        if self.scale != "identity":
            low = np.maximum(low, 0.0)
        back = _BACKWARD[self.scale]
        with np.errstate(over="ignore"):
            lower, upper = back(low), back(high)
        if bounds is not None:
            # Not np.clip, which takes three times as long for a few numbers.
            least, most = bounds
            lower = np.minimum(np.maximum(lower, least), most)
            upper = np.minimum(np.maximum(upper, least), most)
        return lower, upper

    def sets(self, scores: NDArray[Any]) -> Mask:
        """The classes that are in each row's set, shape ``(n, classes)``.

        Of a row with a score that is no number, none.

        >>> lac = Conformal("p", "probability", 0.9, 0.7, 99, "", "", 0.5)
        >>> lac.sets(np.array([[0.6, 0.4], [0.9, 0.1]])).tolist()
        [[True, True], [True, False]]
        """
        chances = probabilities(scores, self.scale)
        known = np.isfinite(chances).all(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            return np.asarray((1.0 - chances <= self.quantile) & known)

    def to_object(self) -> dict[str, Any]:
        """As JSON values; `from_object` gives it back."""
        return {name: item for name, item in vars(self).items() if item is not None}

    @classmethod
    def from_object(cls, value: Any, where: str) -> Conformal:
        """Read one.

        Raises:
            ManifestError: a member is unknown, missing or out of range. The message
                names it.
        """
        if not isinstance(value, Mapping):
            raise ManifestError(f"{where}: expected an object")
        if unknown := value.keys() - _MEMBERS.keys():
            raise ManifestError(f"{where}: unknown field {min(unknown)!r}")
        if missing := _MEMBERS.keys() - _OPTIONAL - value.keys():
            raise ManifestError(f"{where}: missing {', '.join(sorted(missing))}")
        for name, item in value.items():
            fits, expected = _MEMBERS[name]
            if not fits(item):
                raise ManifestError(f"{where}.{name}: expected {expected}")
        if ("epsilon" in value) != ("delta" in value):
            raise ManifestError(f"{where}: epsilon and delta go together")
        if ("epsilon" in value) == ("waiver" in value):
            raise ManifestError(
                f"{where}: a quantile is private (epsilon), or says why not (waiver)"
            )
        floats = {name: float(value[name]) for name in _FLOATS & value.keys()}
        return cls(**{**value, **floats})


def _within(low: float, high: float) -> Callable[[Any], bool]:
    # By comparison: float() fails on an integer beyond a double.
    return lambda item: type(item) in (int, float) and low < item < high


def _text(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda item: isinstance(item, str) and bool(pattern.fullmatch(item))


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda item: type(item) is int and low <= item <= high


_MEMBERS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "output": (
        lambda item: isinstance(item, str) and 1 <= len(item) <= 240,
        "the name of an output, of at most 240 characters",
    ),
    "scale": (
        lambda item: item in NUMBER_SCALES + CLASS_SCALES,
        f"one of {', '.join(NUMBER_SCALES + CLASS_SCALES)}",
    ),
    "coverage": (_within(0.0, 1.0), "a number above 0 and below 1"),
    "quantile": (
        lambda item: type(item) in (int, float) and 0.0 <= item < 1e300,
        "a number, not below 0",
    ),
    "rows": (_whole(1, MAX_ROWS), f"1 to {MAX_ROWS}"),
    "rows_sha256": (_text(_SHA256), "64 hexadecimal digits"),
    "split_key": (_text(_KEY), "32 hexadecimal digits"),
    "split_share": (_within(0.0, 1.0), "a number above 0 and below 1"),
    "decimals": (_whole(-9, 9), "-9 to 9"),
    "epsilon": (_within(0.0, 1e6), "a number above 0"),
    "delta": (_within(0.0, 1.0), "a number above 0 and below 1"),
    "waiver": (
        lambda item: isinstance(item, str) and 1 <= len(item) <= MAX_REASON,
        f"1 to {MAX_REASON} characters",
    ),
    "decisions": (lambda item: item == "places", '"places"'),
}
_OPTIONAL = {"decimals", "decisions", "epsilon", "delta", "waiver"}
_FLOATS = {"coverage", "quantile", "split_share", "epsilon", "delta"}


def rank(rows: int, coverage: float) -> int:
    """Which of so many scores, the smallest first, is the quantile.

    It is ceil((rows + 1) * coverage), in exact arithmetic of the decimal fraction.

    >>> rank(99, 0.9), rank(9, 0.9)
    (90, 9)

    Raises:
        ManifestError: the coverage is none, or the rows are too few for it.
    """
    if not 0.0 < coverage < 1.0:
        raise ManifestError(f"coverage {coverage:g} is not above 0 and below 1")
    place = math.ceil((rows + 1) * Fraction(repr(float(coverage))))
    if place > rows:
        part = Fraction(repr(float(coverage)))
        least = math.ceil(part / (1 - part))
        raise ManifestError(
            f"{rows} rows are too few for a coverage of {coverage:g}: it takes {least}"
        )
    return place


def quantile(scores: Floats, coverage: float) -> float:
    """The score that at least the stated part of exchangeable new ones is not above.

    Args:
        scores: ``(n,)``; a NaN is a row that nothing covers.
        coverage: above 0 and below 1.

    >>> quantile(np.arange(1.0, 100.0), 0.9)
    90.0

    Raises:
        ManifestError: as `rank`; or too many rows have no usable answer.
    """
    place = rank(len(scores), coverage)
    ordered = np.sort(np.where(np.isnan(scores), np.inf, scores))
    found = float(ordered[place - 1])
    if not math.isfinite(found):
        lost = int(np.isinf(ordered).sum())
        raise ManifestError(
            f"{lost} of {len(scores)} rows have no usable answer or truth: no interval "
            f"covers {coverage:g}"
        )
    return found


def residuals(
    numbers: Floats,
    truth: Floats,
    scale: str,
    bounds: tuple[float, float] | None = None,
) -> Floats:
    """How far the truth is from answers on a scale ``(n,)``.

    It is infinite where there is no answer, and where the truth is outside of what an
    interval can have: the public range, or of a scale numbers from 0.
    """
    low, high = bounds or (-math.inf, math.inf)
    if scale != "identity":
        low = max(low, 0.0)
    far = np.abs(_on_scale(numbers, scale) - _on_scale(truth, scale))
    usable = np.isfinite(far) & (truth >= low) & (truth <= high)
    return np.where(usable, far, np.inf)


def class_scores(scores: NDArray[Any], truth: NDArray[np.int64], scale: str) -> Floats:
    """One less the probability of the true class ``(n,)``; infinite of a NaN."""
    chances = probabilities(scores, scale)
    own = 1.0 - chances[np.arange(len(truth)), truth]
    return np.where(np.isfinite(chances).all(axis=1), own, np.inf)


def probabilities(scores: NDArray[Any], scale: str) -> Floats:
    """Scores as probabilities, in double precision."""
    wide = scores.astype(np.float64)
    if scale == "probability":
        return wide
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def is_calibrating(rows: Iterable[bytes], key: str, share: float) -> Mask:
    """Which rows may calibrate; of the others coverage is measured.

    A row's side depends on the key and on its own values alone, so that none can be on
    both, whichever files they come from, and equal rows are on one side.

    Args:
        rows: the values of each, as bytes.
        key: public.
        share: of all rows, expected.
    """
    return keyed(rows, key) < share


def keyed(rows: Iterable[bytes], key: str) -> Floats:
    """A number from 0 to 1 of each row, which the key and its values decide."""
    tags = (hmac.digest(key.encode(), row, "sha256")[:8] for row in rows)
    return np.array([int.from_bytes(tag, "big") / 2**64 for tag in tags], np.float64)


def key_of(rows: Iterable[bytes]) -> str:
    """The one key of some rows, whatever their order and however often each is there.

    Who calibrates on them again divides them as before, and finds what was found.
    """
    every = sorted({hashlib.sha256(row).digest() for row in rows})
    return hashlib.sha256(b"sealgate calibration\0" + b"".join(every)).hexdigest()[:32]


def _on_scale(values: NDArray[Any], scale: str) -> Floats:
    wide = values.astype(np.float64)
    if scale == "identity":
        return wide
    return _FORWARD[scale](np.maximum(wide, 0.0))
