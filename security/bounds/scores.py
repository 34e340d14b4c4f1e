"""What a model decides by: the layer before softmax, and when a class is decided."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from security.bounds.boxes import BINARY, UNARY
from security.bounds.files import Graph, Node
from security.errors import UnboundedModel

__all__ = ["Rule", "head_of", "number_of"]

Floats = NDArray[np.float64]

# Kernels of softmax and of the logistic function are off by some ulps of 2^-24: two
# scores that are nearer than this, or a score to its threshold, may come out equal.
_FLOOR = 1e-5
_PLAIN = frozenset(("Identity", "Dropout"))
_ALIKE = frozenset(("ai.onnx.ml.ZipMap", "Softmax", "LogSoftmax"))
_BY_ITSELF = frozenset(
    (*BINARY, *UNARY, *("Clip", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze"))
) | {"Identity", "Where"}
_SOFT = frozenset((b"NONE", b"SOFTMAX", b"SOFTMAX_ZERO", b"LOGISTIC"))


@dataclass(frozen=True)
class Rule:
    """When a class is decided, in terms of the values of one layer.

    Attributes:
        value: name of the layer's values.
        single: two classes are told by one value: the second above `threshold`.
        threshold: in terms of that value, or, of two values, of how far the second
            must be above the first.
        swapped: the first value is the second class's, and the other way round.
        floor: nearer than this is not decided.
    """

    value: str
    single: bool = False
    threshold: float = 0.0
    swapped: bool = False
    floor: float = _FLOOR

    def specs(
        self, labels: NDArray[np.int64], width: int
    ) -> tuple[Floats, NDArray[np.float64]]:
        """By how much each row's class leads, as functions of the values.

        Returns:
            Coefficients ``(n, specs, width)``, and what is added to each.

        Raises:
            UnboundedModel: the layer has not as many values as there are classes.
        """
        sign = np.where(labels == 1, 1.0, -1.0)
        shift = -sign * self.threshold
        if self.single:
            if width != 1:
                raise UnboundedModel(f"{width} scores for two classes")
            return sign[:, None, None], shift[:, None]
        places = width - 1 - labels if self.swapped else labels
        if width < 2 or places.min(initial=0) < 0 or places.max(initial=0) >= width:
            raise UnboundedModel(f"a layer of {width} values decides other classes")
        eye = np.eye(width)
        others = np.stack(
            [np.delete(np.arange(width), place) for place in range(width)]
        )
        specs = eye[places][:, None, :] - eye[others[places]]
        shifts = np.zeros(specs.shape[:2])
        if self.threshold:
            shifts = np.broadcast_to(shift[:, None], shifts.shape)
        return specs, shifts


def head_of(
    graph: Graph,
    output: str,
    *,
    label: str | None,
    lead: float,
    single: bool,
    swapped: bool = False,
    probabilities: bool = False,
) -> Rule:
    """The rule of a graph's outputs, as the assessment reads them.

    Args:
        graph: the graph.
        output: with scores.
        label: with the decision, or None where scores decide.
        lead: what the second of two classes' score must be ahead by.
        single: two classes are told by one score.
        swapped: the first score is the second class's.
        probabilities: scores are read as such.

    Raises:
        UnboundedModel: outputs are made in a way of which no bound is known.
    """
    made = graph.made_by()
    value, last = _before(graph, made, output)
    classifier = made.get(value)
    one_row = False
    if classifier is not None and classifier.operator.endswith("LinearClassifier"):
        one_row = _one_row(classifier)
        if label is None and not one_row and last == "LOGISTIC":
            raise UnboundedModel("logistic scores of several classes may be equal")
        last = last or str(classifier.attributes.get("post_transform", b"NONE"), "utf8")
        if label is not None and _label_node(graph, made, label) is classifier:
            return Rule(value, one_row, 0.0, swapped)
        if last == "SOFTMAX_ZERO":  # a score of 0 has no share, even the largest
            raise UnboundedModel("SOFTMAX_ZERO does not keep the order of scores")
    if label is not None:
        _check_label(graph, made, label, value)
        return Rule(value, False, 0.0, swapped)
    if not single and not one_row:
        if last == "Sigmoid":
            raise UnboundedModel("logistic scores of several classes may be equal")
        return Rule(value, False, 0.0, swapped)
    return _threshold(
        value, last, lead, one=one_row or _one(single, last), p=probabilities
    )


def _one(single: bool, last: str) -> bool:
    return single and last not in ("Softmax", "SOFTMAX")


def _threshold(value: str, last: str, lead: float, *, one: bool, p: bool) -> Rule:
    if not p:
        if last:
            raise UnboundedModel("a threshold on transformed scores has no bound here")
        return Rule(value, one, lead / 2 if one else lead)
    if last not in ("Sigmoid", "LOGISTIC", "Softmax", "SOFTMAX"):
        raise UnboundedModel("a threshold on such probabilities has no bound here")
    share = (1 + lead) / 2
    odds = math.log(share / (1 - share))
    return Rule(value, one, odds, floor=_FLOOR / (4 * share * (1 - share)))


def number_of(graph: Graph, output: str) -> str:
    """The network's last value, of which a predicted number is made value by value."""
    made, varies = graph.made_by(), {graph.input}
    for node in graph.nodes:
        if varies.intersection(node.inputs):
            varies.update(node.outputs)
    name = output
    while name in made:
        node = made[name]
        varying = varies.intersection(node.inputs)
        if node.operator not in _BY_ITSELF or len(varying) != 1:
            break
        (name,) = varying
    return name


def _before(graph: Graph, made: dict[str, Node], output: str) -> tuple[str, str]:
    """What scores are made of, and by what last, if that is not plain."""
    del graph
    name, last = output, ""
    while name in made:
        node = made[name]
        if _plain(node) or _keeps(node):
            name = node.inputs[0]
        elif node.operator in _ALIKE or node.operator == "Sigmoid":
            if "axis" in node.attributes and node.attributes["axis"] not in (-1, 1):
                raise UnboundedModel("softmax along another axis has no bound here")
            if not node.operator.endswith("ZipMap"):
                last = _only(last, node.operator)
            name = node.inputs[0]
        elif node.operator.endswith("LinearClassifier"):
            kind = node.attributes.get("post_transform", b"NONE")
            if kind not in _SOFT:
                raise UnboundedModel(f"post_transform {kind!r} has no bound here")
            return name, last if kind == b"NONE" else _only(last, kind.decode())
        else:
            break
    return name, last


def _only(before: str, operator: str) -> str:
    """The one operator that squashes scores.

    Raises:
        UnboundedModel: there is another, so that a threshold is elsewhere, and scores
            that differ may come out equal.
    """
    if before:
        raise UnboundedModel(f"{before} of {operator} has no bound here")
    return operator


def _plain(node: Node) -> bool:
    """Whether it gives what it is given: dropout that cannot be told to draw, too."""
    return node.operator in _PLAIN and len(node.inputs) < 3


def _keeps(node: Node) -> bool:
    """Whether it keeps the order of scores: a cast of floats, division by their sum."""
    if node.operator == "Cast":
        return node.attributes["to"] in (1, 11)
    return node.operator == "ai.onnx.ml.Normalizer" and (
        node.attributes.get("norm", b"MAX") == b"L1"
    )


def _one_row(node: Node) -> bool:
    shifts = node.attributes.get("intercepts", ())
    labels = node.attributes.get("classlabels_ints") or node.attributes.get(
        "classlabels_strings", ()
    )
    return len(shifts) == 1 and len(labels) == 2


def _label_node(graph: Graph, made: dict[str, Node], label: str) -> Node | None:
    del graph
    node = made.get(label)
    while node is not None and (_plain(node) or node.operator == "Cast"):
        node = made.get(node.inputs[0])
    return node


def _check_label(graph: Graph, made: dict[str, Node], label: str, value: str) -> None:
    """A label is the place of the largest of the same scores."""
    node = _label_node(graph, made, label)
    if (
        node is None
        or node.operator != "ArgMax"
        or node.attributes.get("axis", 0) not in (-1, 1)
    ):
        raise UnboundedModel("the label is not the place of the largest score")
    if (
        node.attributes.get("select_last_index")
        or _before(graph, made, node.inputs[0])[0] != value
    ):
        raise UnboundedModel("the label is not the place of the largest score")
    if _before(graph, made, node.inputs[0])[1] == "Sigmoid":
        raise UnboundedModel("logistic scores of several classes may be equal")
