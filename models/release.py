"""A manifest's outputs, as its policy lets them leave.

The server applies a release to every answer, and attacks meet the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from models.conformal import Conformal
from models.conforming import Conforming, Output, withheld_rows
from models.errors import ManifestError
from models.output_policy import OutputPolicy, rounded, scores_left
from sealgate.protocol.datatypes import narrow, numbers
from sealgate.protocol.tensors import Array, TensorSpec

__all__ = ["Output", "Release"]

# Bits that tell a number of a type apart from others of its size: its significand's.
_SIGNIFICAND = {"BF16": 8, "FP16": 11, "FP32": 24, "FP64": 53, "BOOL": 1}


class Release:
    """A manifest's outputs, as its policy lets them leave.

    Attributes:
        policy: the policy.
        names: of the outputs that leave, in the manifest's order; then those that
            `models.conforming` adds.
        added: what the latter are.
        as_it_is: every output leaves as the model gives it, and none is added.
    """

    def __init__(
        self,
        policy: OutputPolicy,
        outputs: Sequence[Output],
        conformal: Conformal | None = None,
        *,
        explaining: str | None = None,
    ) -> None:
        """Say which outputs leave, and as what.

        Args:
            policy: the policy.
            outputs: of the manifest.
            conformal: of the manifest, if it has one.
            explaining: name of one that leaves only where explanations do.

        Raises:
            ManifestError: none would leave, or the policy or the quantile is not one
                for these.
        """
        self.policy, self._explaining = policy, explaining
        self._conforming = None if conformal is None else Conforming(conformal, outputs)
        self._check_abstaining()
        scores = [item for item in outputs if item.labels]
        # What nobody has named is class scores, if it is the only thing that can be.
        scores = scores or _unnamed_scores(outputs, policy)
        self._kinds = {item.spec.name: _kind(item, scores) for item in outputs}
        self._types = {item.spec.name: item.spec.datatype for item in outputs}
        self._classes = max((_width(item) for item in scores), default=0)
        _check(policy, scores, self._kinds)
        self.names = [
            item.spec.name for item in outputs if self._leaves(item.spec.name)
        ]
        if not self.names:
            raise ManifestError(f"output_policy: {policy}: no output would be left")
        self._changes = {name: self._change(name) for name in self.names}
        every = len(self.names) == len(outputs)
        self.added = self._added()
        self.names += [spec.name for spec in self.added]
        self.as_it_is = every and not policy.withholds and not self.added

    def _check_abstaining(self) -> None:
        policy, known = self.policy, self._conforming
        if policy.abstain and (known is None or not known.conformal.of_classes):
            raise ManifestError(
                "output_policy.abstain: there is no `conformal` for classes; "
                "`python -m security calibrate` makes one"
            )
        if known is not None and known.conformal.decimals != policy.decimals:
            raise ManifestError(
                "conformal: it was calibrated on answers of other decimals; calibrate "
                "again"
            )

    def _added(self) -> tuple[TensorSpec, ...]:
        """The outputs that conformal prediction adds, as far as they may leave."""
        known = self._conforming
        if known is None:
            return ()
        if known.conformal.of_classes:
            # Of a few scores, or none, the set would tell what is not among them.
            return known.specs if self.policy.tells_sets else ()
        if known.conformal.output not in self.names:
            raise ManifestError(f"conformal: {known.conformal.output!r} does not leave")
        return known.specs

    def _leaves(self, name: str) -> bool:
        if name == self._explaining and not self.policy.explains:
            return False
        if not self.policy.withholds:
            return True
        known = self._conforming
        can_say_none = known is not None and name in known.deciding
        if self.policy.abstain and self._kinds[name] == "decision" and not can_say_none:
            return False
        kinds = set(self._kinds.values())
        match self._kinds[name]:
            case "scores":
                # A second view of a decision may say more than the decision.
                return not (self.policy.label_only and "decision" in kinds)
            case "decision":
                return True
        rounded = self.policy.top_k is None and not self.policy.label_only
        return rounded and "scores" not in kinds

    def leave(self, name: str, array: Array) -> Array:
        """What leaves of an output: an array of the same shape and type.

        Raises:
            KeyError: nothing does.
        """
        change = self._changes[name]
        return array if change is None else change(array)

    def sources(self, names: Sequence[str]) -> list[str]:
        """The model's own outputs that answers are made from."""
        known, added = self._conforming, {spec.name for spec in self.added}
        found = [name for name in names if name not in added]
        if known is not None and (self.policy.abstain or len(found) < len(names)):
            found.append(known.conformal.output)
            found += known.deciding if self.policy.abstain else ()
        return list(dict.fromkeys(found))

    def answer(self, names: Sequence[str], given: Mapping[str, Array]) -> list[Array]:
        """What leaves of a run, in the order of the names.

        Args:
            names: of outputs that leave.
            given: the model's outputs, of `sources`.

        Raises:
            KeyError: nothing leaves of one.
        """
        known, hidden, added = self._conforming, None, {}
        if known is not None and known.conformal.output in given:
            base = self._base(given[known.conformal.output])
            if self.added and not {*names} <= given.keys():
                added = known.added(base)
            if self.policy.abstain:
                decided = {name: given[name] for name in known.deciding}
                hidden = known.abstaining(base, decided)
        found = []
        for name in names:
            if name in added:
                found.append(added[name])
                continue
            array = self.leave(name, given[name])
            if hidden is not None:
                decides = self._kinds[name] == "decision"
                array = withheld_rows(array, hidden, decision=decides)
            found.append(array)
        return found

    def _base(self, array: Array) -> Array:
        """What intervals and sets are made from: an answer, rounded as it leaves."""
        decimals = self.policy.decimals
        return array if decimals is None else rounded(array, decimals)

    def _change(self, name: str) -> Callable[[Array], Array] | None:
        policy, kind, datatype = self.policy, self._kinds[name], self._types[name]
        if not policy.withholds or datatype in ("BOOL", "BYTES"):
            return None
        change = partial(scores_left, policy)
        if kind != "scores":
            decimals = policy.decimals
            if decimals is None or (decimals >= 0 and "INT" in datatype):
                return None
            change = partial(rounded, decimals=decimals)
        return partial(_of_bf16, change) if datatype == "BF16" else change

    def bits(self, name: str, array: Array) -> float:
        """How much an output tells at most, in bits, as it left.

        - a decision, or all of a row of which only the class is left: log2 of the
          classes where they are known, otherwise the width of its type;
        - a number: its type's significand; rounded, log2 of how many values there are
          between the lowest and the highest in this answer, as far apart as 0 and 1 at
          least;
        - of the k highest of n scores, log2 of n over k beside them.
        """
        if name not in self._kinds:
            return self._added_bits(name, array)
        size, none = array.size, float(len(array)) if self.policy.abstain else 0.0
        return none + self._own_bits(self._kinds[name], name, array, size)

    def told(self, answers: Iterable[tuple[str, Array]]) -> float:
        """How much an answer tells at most, in bits: its outputs together.

        Both ends of an interval follow from its number, and each from the other; a set
        from all scores.
        """
        left, known = dict(answers), self._conforming
        if known is not None:
            first = [known.conformal.output, *known.conformal.names]
            if known.conformal.of_classes and self.policy.abstain:
                first = []
            for name in [item for item in first if item in left][1:]:
                del left[name]
        return math.fsum(self.bits(*item) for item in left.items())

    def _added_bits(self, name: str, array: Array) -> float:
        known = self._conforming
        if known is None:
            raise KeyError(name)
        each = 1 if known.conformal.of_classes else _SIGNIFICAND[self._type_of(name)]
        return float(array.size * each)

    def _type_of(self, added: str) -> str:
        return next(spec.datatype for spec in self.added if spec.name == added)

    def _own_bits(self, kind: str, name: str, array: Array, size: int) -> float:
        if kind == "decision" and self._classes > 1:
            return size * math.log2(self._classes)
        if array.dtype.kind == "O":
            return 8.0 * sum(len(str(item).encode()) for item in array.reshape(-1))
        datatype = self._types[name]
        width = _SIGNIFICAND.get(datatype) or 8.0 * array.dtype.itemsize
        if kind == "scores" and self.policy.withholds:
            return self._score_bits(array, width)
        if kind == "number" and self.policy.decimals is not None:
            return size * min(width, _values(array, self.policy.decimals))
        return size * width

    def _score_bits(self, array: Array, width: float) -> float:
        classes = array.shape[-1] if array.ndim else 1
        rows = array.size // max(classes, 1)
        if self.policy.label_only:
            return rows * math.log2(max(classes, 2))
        if self.policy.decimals is not None:
            width = min(width, _values(array, self.policy.decimals))
        kept = min(self.policy.top_k or classes, classes)
        return rows * (math.log2(math.comb(classes, kept)) + kept * width)


def _real(output: Output) -> bool:
    return output.spec.datatype in ("FP16", "FP32", "FP64", "BF16")


def _width(output: Output) -> int:
    return output.spec.shape[-1] if output.spec.shape else 1


def _unnamed_scores(outputs: Sequence[Output], policy: OutputPolicy) -> list[Output]:
    if policy.top_k is None and not policy.label_only:
        return []
    wide = [o for o in outputs if _real(o) and len(o.spec.shape) > 1 and _width(o) > 1]
    return wide if len(wide) == 1 else []


def _kind(output: Output, scores: Sequence[Output]) -> str:
    """What an output holds: scores, a decision, numbers, or anything else."""
    if output in scores and output.spec.datatype not in ("BOOL", "BYTES"):
        return "scores"
    if _real(output):
        return "number"
    one = all(size == 1 for size in output.spec.shape[1:])
    return "decision" if one else "other"


def _check(
    policy: OutputPolicy, scores: Sequence[Output], kinds: Mapping[str, str]
) -> None:
    """Refuse a policy that means nothing for a model, or not what it says."""
    if not policy.withholds:
        return
    if len(scores) > 1:
        raise ManifestError(
            "output_policy: several outputs have labels; together they say more than "
            "each"
        )
    if policy.top_k is not None and "scores" not in kinds.values():
        raise ManifestError("output_policy.top_k: no output has labels")
    if scores and (policy.decimals or 0) < 0:
        raise ManifestError("output_policy.decimals: below 0 nothing is left of scores")


def _of_bf16(change: Callable[[Array], Array], array: Array) -> Array:
    """A change of numbers whose type numpy does not know."""
    return narrow(change(numbers(array)))


def _values(array: Array, decimals: int) -> float:
    """log2 of how many rounded numbers there are between an array's ends."""
    wide = numbers(array)
    finite = wide[np.isfinite(wide)]
    high, low = (finite.max(initial=0.0), finite.min(initial=0.0))
    span = max(float(high) - float(low), 1.0)
    return math.log2(span * 10.0**decimals + 1)
