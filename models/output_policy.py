"""What may leave of a model's answers: the member ``output_policy`` of its manifest.

Scores may be rounded, all but the highest withheld, or every one of them, so that the
label alone is answered. There is no noise: whoever asks nearly the same question n
times averages it away. `models.release` applies a policy to the outputs of a
manifest; the server and the attacks of an assessment use this one.

An output that a policy says nothing of does not leave: beside class scores, or where
scores are withheld, only decisions do, of which there is one in each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.errors import ManifestError
from sealgate.protocol.tensors import Array

__all__ = ["ALL_SCORES", "OutputPolicy", "rounded", "scores_left"]

MAX_DECIMALS = 9
MAX_TOP_K = 1 << 20
_ONE = "the highest score"
_MEMBERS = ("decimals", "top_k", "label_only", "explanations", "abstain")


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

    @property
    def tells_sets(self) -> bool:
        """Whether sets of classes may leave: every score does, if only rounded."""
        return self.top_k is None and not self.label_only

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
        # Kept beside `abstain`, which is taken back without a word of explanations.
        if not self.explanations and (self.abstain or not self.withholds):
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
    return scores if policy.decimals is None else rounded(scores, policy.decimals)


def _above(own: int | None, demanded: int | None) -> bool:
    return demanded is not None and (own is None or own > demanded)


def rounded(values: Array, decimals: int) -> Array:
    """Numbers to so many decimals, in their own type; what is not finite stays.

    >>> rounded(np.array([-0.04, 1.26]), 1)
    array([0. , 1.3])
    """
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
