"""Finding the quantile that makes intervals, or sets of classes, of a model's answers.

1. the rows are fitted to the model, and their answers read, as any assessment does;
2. a key says of each row whether it may calibrate; the others are left, so that
   coverage can be measured on rows that had no part in it. Where nothing is paid for
   the rows' privacy, the key is made of all of them: however often they calibrate, the
   quantile is the same. Where that is paid for, it is drawn, since a key of the rows
   would change with any of them, and each time is booked;
3. of each owner one row is kept, as the key says;
4. scores are those of answers as they leave: of the policy's decimals, in the output's
   own type;
5. the quantile is the scores' own, or of a histogram with noise that hides any owner.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.conformal import (
    NUMBER_SCALES,
    Conformal,
    class_scores,
    is_calibrating,
    key_of,
    keyed,
    quantile,
    rank,
    residuals,
)
from models.data import datasets
from models.data.held_out import Holdout
from models.errors import ManifestError
from models.manifest import Manifest, Tensor
from models.output_policy import OutputPolicy, scores_left
from sealgate.protocol.datatypes import DATATYPES
from sealgate.protocol.tensors import Array
from security.assessment.plan.context import Job, prepare
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.targets.dataconfig import DataConfig
from security.assessment.targets.target import OnnxTarget, Target
from security.errors import AssessmentError
from security.monitoring.guarantee import rho_of
from security.monitoring.noise import rounded_gaussian

__all__ = [
    "BINS",
    "Calibration",
    "Wanted",
    "calibrate",
    "evaluated_rows",
    "left_answers",
    "noisy_quantile",
    "split_of",
    "values_of",
]

Floats = NDArray[np.float64]
BINS = 50
_KEY_BYTES = 16
# One row more is one more in its bin, and of all.
_SENSITIVITY = math.sqrt(2.0)
# Of what may miss, the part that pays for the chance that noise is larger than allowed.
_FAILING = 0.05
# A score beyond its bound is beyond by more than rounding.
_SLACK = 1e-9


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        coverage: above 0 and below 1.
        share: of the rows that may calibrate, above 0 and below 1.
        scale: of numbers; empty for what fits the output.
        output, decision: as of `Options`.
        bounds: public range of a number whose manifest states none: no interval leaves
            it, and scores are counted within it.
        epsilon, delta: what the quantile may cost; None for one that is not private.
        waiver: why it need not be.
        policy: that the bundle shall have with it; None for its own.
    """

    coverage: float = 0.9
    share: float = 0.5
    scale: str = ""
    output: str | None = None
    decision: str | None = None
    bounds: tuple[float, float] | None = None
    epsilon: float | None = None
    delta: float = 1e-6
    waiver: str = ""
    policy: OutputPolicy | None = None


@dataclass(frozen=True)
class Calibration:
    """What came out.

    Attributes:
        conformal: for the manifest.
        answer: the output, with what the manifest has to say of it.
        left: rows that are left to measure coverage on.
        owners: rows of other rows' owners that were left out.
        abstained: of the calibrating rows, the share that a model gives no answer to
            which abstains; None of numbers.
    """

    conformal: Conformal
    answer: Tensor
    left: int
    owners: int
    abstained: float | None


def calibrate(
    bundle: Bundle,
    holdout: Holdout,
    wanted: Wanted,
    *,
    config: DataConfig = DataConfig(),
    units: NDArray[np.str_] | None = None,
    book: Callable[[float], None] = lambda noise: None,
) -> Calibration:
    """Find a bundle's quantile.

    Args:
        bundle: unsigned; nothing of it is changed.
        holdout: rows that the model never saw, with the truth.
        wanted: what is asked for.
        config: of the rows.
        units: whose each row is, ``(n,)``; None where each is its own.
        book: is told how much noise each owner's count gets, in units of it, before
            any is drawn; refuses by raising.

    Raises:
        AssessmentError: the rows do not fit the model, or its answers are no numbers
            and no named scores.
        ManifestError: too few rows for the coverage, or for the noise; or the model
            cannot have such sets or intervals, or abstain by them.
    """
    if not (0 < wanted.coverage < 1 and 0 < wanted.share < 1):
        raise AssessmentError("coverage and share are above 0 and below 1")
    options = Options(profile="assess", output=wanted.output, decision=wanted.decision)
    job, target = prepare(TargetSource.of(bundle), holdout, options, config)
    target.close()
    answer = _bounded(_answering(bundle.manifest, job), wanted.bounds)
    every = row_bytes(job)
    private = wanted.epsilon is not None
    key = secrets.token_hex(_KEY_BYTES) if private else key_of(every)
    mask = is_calibrating(every, key, wanted.share)
    # Of equal rows the truth decides, not which the file has first.
    order = np.lexsort((job.labels, keyed(every, f"{key} of an owner")))
    kept = _one_of_each(mask, None if units is None else units[job.places], order)
    rank(int(kept.sum()), wanted.coverage)
    scale = _scale(job, answer, wanted.scale)
    made = Conformal(
        output=answer.spec.name,
        scale=scale,
        coverage=wanted.coverage,
        quantile=0.0,
        rows=int(kept.sum()),
        rows_sha256=rows_digest(job, kept),
        split_key=key,
        split_share=wanted.share,
        decimals=bundle.manifest.output_policy.decimals,
    )
    given = left_answers(job, answer, bundle.manifest.output_policy)
    # Before anything is booked: a budget is not spent on what nobody could serve.
    served = _served(bundle.manifest, made, answer, wanted.policy)
    decided = {} if job.reading.number else values_of(job, target, served)
    made = replace(made, decisions=_decisions(served, given, decided))
    scores = _scores(made, given[kept], job.labels[kept], answer.bounds)
    found = _found(made, scores, wanted, answer.bounds, book)
    return Calibration(
        found,
        answer,
        left=int((~mask).sum()),
        owners=int(mask.sum() - kept.sum()),
        abstained=_abstained(
            replace(served, conformal=found),
            given[kept],
            {name: item[kept] for name, item in decided.items()},
        ),
    )


def values_of(job: Job, target: Target, served: Manifest) -> dict[str, Array]:
    """What whole numbers and texts beside scores say of a job's rows, by output."""
    known = served.conforming
    if known is None or not isinstance(target, OnnxTarget) or not known.deciding:
        return {}
    found = target.outputs(job.rows, list(known.deciding))
    return {name: np.asarray(found[name]).reshape(-1) for name in known.deciding}


def _served(
    manifest: Manifest, made: Conformal, answer: Tensor, policy: OutputPolicy | None
) -> Manifest:
    """A manifest with a quantile, of whatever size.

    Raises:
        ManifestError: there can be none.
    """
    own = answer.spec.name
    outputs = tuple(answer if o.spec.name == own else o for o in manifest.outputs)
    policy = manifest.output_policy if policy is None else policy
    served = replace(manifest, outputs=outputs, conformal=made, output_policy=policy)
    _ = served.release
    return served


def _decisions(
    served: Manifest, given: NDArray[np.generic], decided: Mapping[str, Array]
) -> str | None:
    """Whether decisions are places of classes, or names.

    Raises:
        AssessmentError: they are never for the highest score's class by either.
    """
    if not decided or served.conformal is None:
        return None
    best, shares = given.argmax(axis=1), {}
    for said in (None, "places"):
        own = replace(served, conformal=replace(served.conformal, decisions=said))
        if own.conforming is not None and own.conforming.deciding == (*decided,):
            shares[said] = own.conforming.agreeing(best, decided).mean()
    found = max(shares, key=lambda said: shares[said])
    if served.output_policy.abstain and not shares[found]:
        names = ", ".join(map(repr, decided))
        raise AssessmentError(
            f"decisions ({names}) are never for the class with the highest score: no "
            "row would be answered"
        )
    return found


def row_bytes(job: Job) -> list[bytes]:
    """What tells rows of a job apart: their values, and of texts the texts."""
    if job.texts:
        return [
            repr([*map(job.cell, range(len(row)), row)]).encode() for row in job.rows
        ]
    # Adding 0 makes -0 a 0: equal numbers have equal bytes.
    wide = np.ascontiguousarray(job.rows.astype(np.float64) + 0.0)
    return [row.tobytes() for row in wide]


def rows_digest(job: Job, chosen: NDArray[np.bool_]) -> str:
    """Digest of some rows of a job, with their truth."""
    if job.texts:
        named = [item for item, own in zip(row_bytes(job), chosen.tolist()) if own]
        rows = np.frombuffer(b"".join(named), np.uint8)
        return datasets.digest(rows, job.labels[chosen])
    return datasets.digest(job.rows[chosen], job.labels[chosen])


def evaluated_rows(job: Job, conformal: Conformal) -> NDArray[np.bool_]:
    """The rows that may measure coverage: those that cannot have calibrated."""
    sides = conformal.split_key, conformal.split_share
    return ~is_calibrating(row_bytes(job), *sides)


def split_of(job: Job, conformal: Conformal) -> str:
    """Whether the key that divides rows is the one of a job's rows.

    It is "drawn" where the quantile is private; else "of_these_rows", or
    "of_other_rows": then who calibrated chose among sets of rows, perhaps, or had
    some of these more than once.
    """
    if conformal.epsilon is not None:
        return "drawn"
    every = row_bytes(job)
    most = int(is_calibrating(every, conformal.split_key, conformal.split_share).sum())
    own = key_of(every) == conformal.split_key and conformal.rows <= most
    return "of_these_rows" if own else "of_other_rows"


def left_answers(job: Job, answer: Tensor, policy: OutputPolicy) -> NDArray[np.generic]:
    """Answers about a job's rows, rounded as they leave, in the output's own type.

    Returns:
        Numbers ``(n,)``, or scores ``(n, classes)``.
    """
    given = job.clean.numbers if job.reading.number else job.clean.scores
    own = given.astype(DATATYPES[answer.spec.datatype])
    if policy.decimals is None:
        return own
    return scores_left(OutputPolicy(decimals=policy.decimals), own)


def _answering(manifest: Manifest, job: Job) -> Tensor:
    """The output whose answers are widened.

    Raises:
        AssessmentError: it is neither a number, nor scores with names.
    """
    reading = job.reading
    found = next(item for item in manifest.outputs if item.spec.name == reading.output)
    name = found.spec.name
    if reading.number:
        if found.labels:
            raise AssessmentError(
                f"output {name!r} has labels, and is read as a number"
            )
        return found
    if reading.single or reading.swapped:
        raise AssessmentError(f"output {name!r} has its classes in another order")
    # What a manifest does not name is named as the graph, or the data, names it.
    labels = found.labels or reading.classes
    scores = reading.form != "labels" and found.spec.shape == (-1, len(labels))
    if not scores or len(labels) != job.clean.scores.shape[1]:
        raise AssessmentError(
            f"output {name!r} has no score with a name for each class, of which sets "
            "are made"
        )
    return replace(found, labels=tuple(labels))


def _bounded(answer: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """With a public range that the manifest does not state.

    Raises:
        AssessmentError: it states another one, or the output has classes.
    """
    if bounds is None or bounds == answer.bounds:
        return answer
    if answer.labels:
        raise AssessmentError("--range is for a number")
    if answer.bounds is not None:
        low, high = answer.bounds
        raise AssessmentError(f"--range: the manifest says {low:g} to {high:g}")
    return replace(answer, bounds=bounds)


def _scale(job: Job, answer: Tensor, asked: str) -> str:
    """As asked for, if it is one for the output."""
    if not job.reading.number:
        chances = job.reading.form == "probabilities"
        scale = "probability" if chances else "softmax"
        if asked not in ("", scale):
            raise AssessmentError(f"--scale: of classes it is {scale} here")
        return scale
    if asked and asked not in NUMBER_SCALES:
        raise AssessmentError(f"--scale: of a number it is {', '.join(NUMBER_SCALES)}")
    if asked in ("sqrt", "log") and (job.labels < 0).any():
        below = int((job.labels < 0).sum())
        raise AssessmentError(
            f"--scale {asked} takes numbers from 0; {below} rows have a truth below"
        )
    return asked or "identity"


def _one_of_each(
    mask: NDArray[np.bool_], units: NDArray[np.str_] | None, order: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """The calibrating rows, of each owner the first in some order."""
    if units is None:
        return mask
    order = order[mask[order]]
    _, first = np.unique(units[order], return_index=True)
    kept = np.zeros_like(mask)
    kept[order[first]] = True
    return kept


def _scores(
    made: Conformal,
    given: NDArray[np.generic],
    truth: NDArray[np.generic],
    bounds: tuple[float, float] | None,
) -> Floats:
    if made.of_classes:
        return class_scores(given, truth.astype(np.int64), made.scale)
    numbers = given.astype(np.float64)
    return residuals(numbers, truth.astype(np.float64), made.scale, bounds)


def _found(
    made: Conformal,
    scores: Floats,
    wanted: Wanted,
    bounds: tuple[float, float] | None,
    book: Callable[[float], None],
) -> Conformal:
    """Step 5."""
    if wanted.epsilon is None:
        exact = quantile(scores, wanted.coverage)
        return replace(made, quantile=exact, waiver=wanted.waiver)
    edges = _edges(made, bounds)
    noise = 1.0 / math.sqrt(2.0 * rho_of(wanted.epsilon, wanted.delta))
    table = rounded_gaussian(noise * _SENSITIVITY)
    book(noise)
    places = np.minimum(np.searchsorted(edges, scores, side="left"), BINS)
    exact_counts = np.bincount(places, minlength=BINS + 1)
    # The last count is of all: it moves with each owner, as one bin does.
    counts = np.append(exact_counts, len(scores)) + table.sample(BINS + 2)
    place = noisy_quantile(counts.astype(np.float64), table.sigma, wanted.coverage)
    return replace(
        made,
        quantile=float(edges[place]),
        rows=max(1, int(counts[-1])),
        epsilon=wanted.epsilon,
        delta=wanted.delta,
    )


def _edges(made: Conformal, bounds: tuple[float, float] | None) -> Floats:
    """Upper ends of the histogram's bins, which nothing private decides.

    Raises:
        AssessmentError: a number has no public range.
    """
    if made.of_classes:
        most = 1.0
    else:
        if bounds is None:
            raise AssessmentError(
                f"output {made.output!r} has no public range: --range LOW HIGH states "
                "one, in which scores are counted"
            )
        ends = np.array(bounds, dtype=np.float64)
        scaled = residuals(ends[1:], ends[:1], "identity")
        if made.scale != "identity":
            scaled = residuals(ends[1:], np.maximum(ends[:1], 0.0), made.scale)
        most = float(scaled[0])
    return np.linspace(0.0, most * (1 + _SLACK), BINS + 1)[1:]


def noisy_quantile(counts: Floats, sigma: float, coverage: float) -> int:
    """The bin whose upper end is a quantile, from counts with noise.

    The chance that noise is larger than what is allowed for is a part of what may miss:
    the coverage holds over rows and noise together. A sum of weighted draws is below
    ``(sigma + 1/2) |w| sqrt(2 ln(bins / chance))``: a draw is a normal variable and
    what it was rounded by, at most 1/2, so that it is sub-Gaussian with their sum.

    Args:
        counts: ``(bins + 2,)``: of each bin, of scores beyond all, and of all rows.
        sigma: of the noise of each.
        coverage: above 0 and below 1.

    Raises:
        ManifestError: no bin is surely high enough.
    """
    chance = (1.0 - coverage) * _FAILING
    aim = coverage + chance
    bins = len(counts) - 2
    # Row j: what lies above bin j, less what may, which is a part of all.
    above = np.arange(bins + 1)[None, :] > np.arange(bins)[:, None]
    weights = np.where(above, aim, aim - 1.0)
    # All rows are the sum of the bins, too: of both the mixture with the least noise.
    mixed = weights.sum(axis=1, keepdims=True) / (bins + 2)
    weights = np.hstack([weights - mixed, mixed])
    length = np.linalg.norm(weights, axis=1)
    allowed = (sigma + 0.5) * length * math.sqrt(2.0 * math.log(bins / chance))
    enough = np.flatnonzero(weights @ counts + aim + allowed <= 0.0)
    if not len(enough):
        raise ManifestError(
            f"about {max(0, int(counts[-1]))} rows are too few for a coverage of "
            f"{coverage:g} with so much noise: give more rows, or a larger epsilon "
            "(this one is spent)"
        )
    return int(enough[0])


def _abstained(
    served: Manifest, given: NDArray[np.generic], decided: Mapping[str, Array]
) -> float | None:
    known = served.conforming
    if known is None or not known.conformal.of_classes:
        return None
    return float(known.abstaining(given, decided).mean())
