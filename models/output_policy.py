"""What may leave of a model's answers: the member ``output_policy`` of its manifest.

Scores may be rounded, all but the highest withheld, or every one of them, so that the
label alone is answered. There is no noise: whoever asks nearly the same question n
times averages it away. `Release` applies a policy to the outputs of a manifest; the
server and the attacks of an assessment use this one.

An output that a policy says nothing of does not leave: beside class scores, or where
scores are withheld, only decisions do, of which there is one in each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from models.conformal import Conformal
from models.conforming import Conforming, Output, withheld_rows
from models.errors import ManifestError
from sealgate.protocol.datatypes import narrow, numbers
from sealgate.protocol.tensors import Array, TensorSpec

__all__ = ["ALL_SCORES", "Output", "OutputPolicy", "Release", "scores_left"]

MAX_DECIMALS = 9
MAX_TOP_K = 1 << 20
_ONE = "the highest score"
_MEMBERS = ("decimals", "top_k", "label_only", "explanations", "abstain")
# Bits that tell a number of a type apart from others of its size: its significand's.
_SIGNIFICAND = {"BF16": 8, "FP16": 11, "FP32": 24, "FP64": 53, "BOOL": 1}


@dataclass(frozen=True)
class OutputPolicy:
    """How much of each answer a caller gets; by default all of it.

    Attributes:
        decimals: that scores and predicted numbers are rounded to, -9 to 9; below 0 to
            tens, hundreds, and so on.
        top_k: how many scores of each row leave, the highest. In the place of others
            is 0, or a number below all of these where one of them is not above 0.
        label_only: no score leaves, only which class is decided.
        explanations: attributions may leave. They add up to the score, so they never do
            where a score does not leave in full.
        abstain: a row is answered only where its conformal set is one class.
    """

    decimals: int | None = None
    top_k: int | None = None
    label_only: bool = False
    explanations: bool = True
    abstain: bool = False

    @property
    def withholds(self) -> bool:
        """Whether an answer is less than what the model gave."""
        some = (self.decimals, self.top_k) != (None, None)
        return self.label_only or self.abstain or some

    @property
    def explains(self) -> bool:
        """Whether attributions may leave."""
        return self.explanations and not self.withholds

    def __str__(self) -> str:
        """For people, and in evidence; other policies have other texts.

        >>> str(OutputPolicy(decimals=2, top_k=3)), str(OutputPolicy(label_only=True))
        ('the 3 highest scores, of 2 decimals', 'label only')
        >>> str(OutputPolicy()), str(OutputPolicy(explanations=False))
        ('all scores', 'all scores, no explanations')
        """
        abstains = ", or none" if self.abstain else ""
        if self.label_only:
            return "label only" + abstains
        some = "all scores"
        if self.top_k is not None:
            some = f"the {self.top_k} highest scores" if self.top_k > 1 else _ONE
        count = "decimal" if self.decimals == 1 else "decimals"
        rounded = "" if self.decimals is None else f", of {self.decimals} {count}"
        silent = not (self.withholds or self.explanations)
        return some + rounded + abstains + (", no explanations" if silent else "")

    def wider_than(self, demanded: OutputPolicy) -> list[str]:
        """What this lets leave and another does not; none if it is as strict.

        >>> OutputPolicy(decimals=3).wider_than(OutputPolicy(decimals=2, top_k=1))
        ['decimals', 'top_k']
        """
        found = []
        if not self.label_only:
            found = [
                name
                for name in ("decimals", "top_k")
                if _above(getattr(self, name), getattr(demanded, name))
            ]
            found += ["label_only"] if demanded.label_only else []
        found += ["abstain"] if demanded.abstain and not self.abstain else []
        wider = self.explains and not demanded.explains
        return found + (["explanations"] if wider else [])

    def to_object(self) -> dict[str, Any]:
        """As JSON values; `from_object` gives it back."""
        value: dict[str, Any] = {}
        for name in ("decimals", "top_k"):
            if getattr(self, name) is not None:
                value[name] = getattr(self, name)
        for name in ("label_only", "abstain"):
            if getattr(self, name):
                value[name] = True
        if not self.explanations and not self.withholds:
            value["explanations"] = False
        return value

    @classmethod
    def from_object(cls, value: Any, where: str) -> OutputPolicy:
        """Read one.

        Raises:
            ManifestError: an unknown member, a value out of range, or members that
                contradict each other.
        """
        for key, message in cls.mistakes(value):
            raise ManifestError(f"{where}{key and '.' + key}: {message}")
        return cls(**value)

    @staticmethod
    def mistakes(value: Any) -> Iterator[tuple[str, str]]:
        """What is wrong with JSON or TOML values: the member or "", and what."""
        if not isinstance(value, Mapping):
            yield "", "expected an object"
            return
        for key in value.keys() - set(_MEMBERS):
            yield "", f"unknown field {key!r}"
        bounds = {"decimals": (-MAX_DECIMALS, MAX_DECIMALS), "top_k": (1, MAX_TOP_K)}
        for key, (low, high) in bounds.items():
            number = value.get(key, low)
            if type(number) is not int or not low <= number <= high:
                yield key, f"expected {low} to {high}"
        for key in ("label_only", "explanations", "abstain"):
            if not isinstance(value.get(key, True), bool):
                yield key, "expected true or false"
        scores = value.keys() & {"decimals", "top_k"}
        if value.get("label_only") is True and scores:
            yield "label_only", f"no scores are left for {min(scores)}"
        less = scores or value.get("label_only") or value.get("abstain")
        if value.get("explanations") is True and less:
            yield "explanations", "attributions add up to the score that is withheld"


ALL_SCORES = OutputPolicy()


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
            whole = self.policy.top_k is None and not self.policy.label_only
            return known.specs if whole else ()
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
        return array if decimals is None else _rounded(array, decimals)

    def _change(self, name: str) -> Callable[[Array], Array] | None:
        policy, kind, datatype = self.policy, self._kinds[name], self._types[name]
        if not policy.withholds or datatype in ("BOOL", "BYTES"):
            return None
        change = partial(scores_left, policy)
        if kind != "scores":
            decimals = policy.decimals
            if decimals is None or (decimals >= 0 and "INT" in datatype):
                return None
            change = partial(_rounded, decimals=decimals)
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


def scores_left(policy: OutputPolicy, scores: Array) -> Array:
    """What a policy leaves of class scores ``(…, classes)``.

    >>> scores_left(OutputPolicy(top_k=1), np.array([[0.7, 0.2, 0.1]]))
    array([[0.7, 0. , 0. ]])
    >>> scores_left(OutputPolicy(label_only=True), np.array([-3.0, -1.0]))
    array([0., 1.])
    """
    if policy.label_only:
        return _decided(scores)
    if policy.top_k is not None and policy.top_k < scores.shape[-1]:
        scores = _highest(scores, policy.top_k)
    return scores if policy.decimals is None else _rounded(scores, policy.decimals)


def _above(own: int | None, demanded: int | None) -> bool:
    return demanded is not None and (own is None or own > demanded)


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


def _rounded(values: Array, decimals: int) -> Array:
    # In double precision, where 10^9 times a smaller number is one. Adding 0 makes -0 a
    # 0: its sign would tell on which side of it a number was.
    wide = values.astype(np.float64)
    if values.dtype != np.float64:
        small: Array = (wide.round(decimals) + 0.0).astype(values.dtype)
        return small
    with np.errstate(over="ignore", invalid="ignore"):
        near = wide.round(decimals) + 0.0
    result: Array = np.where(np.isfinite(near), near, wide)
    return result


def _highest(scores: Array, count: int) -> Array:
    flat = scores.reshape(-1, scores.shape[-1])
    if count == 1:
        places = flat.argmax(axis=1)[:, None]
    else:
        order = np.argsort(-flat.astype(np.float64), axis=1, kind="stable")
        places = order[:, :count]
    rows = np.arange(len(flat))[:, None]
    kept = flat[rows, places]
    lowest = kept if count == 1 else kept.min(axis=1, keepdims=True)
    result = np.zeros(flat.shape, flat.dtype)
    if not (lowest > 0).all():
        result += np.where(lowest > 0, 0, _below(lowest)).astype(flat.dtype)
    result[rows, places] = kept
    return result.reshape(scores.shape)


def _below(lowest: Array) -> Array:
    """A number below each, which follows from it alone."""
    if lowest.dtype.kind != "f":
        return np.full_like(lowest, np.iinfo(lowest.dtype).min)
    with np.errstate(over="ignore"):
        below: Array = lowest - np.maximum(1, np.abs(lowest))
    return below


def _decided(scores: Array) -> Array:
    """1 for the highest, 0 for the others; 0 for all where one is no number."""
    flat = scores.reshape(-1, scores.shape[-1])
    result = np.zeros(flat.shape, flat.dtype)
    rows = np.arange(len(flat))
    result[rows, flat.argmax(axis=1)] = np.isfinite(flat).all(axis=1)
    return result.reshape(scores.shape)


def _values(array: Array, decimals: int) -> float:
    """log2 of how many rounded numbers there are between an array's ends."""
    wide = numbers(array)
    finite = wide[np.isfinite(wide)]
    high, low = (finite.max(initial=0.0), finite.min(initial=0.0))
    span = max(float(high) - float(low), 1.0)
    return math.log2(span * 10.0**decimals + 1)
