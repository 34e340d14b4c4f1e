"""What a graph itself says of an output: its classes, and what its scores are.

Followed backwards from the output through steps that change no value, to the operator
that made it. Nothing is run; what the graph does not say stays empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

__all__ = ["Declared", "class_text", "declared_outputs", "is_number", "sorted_classes"]

_UNCHANGED = frozenset(
    ("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
)
_TRUE_OR_FALSE = frozenset(
    (
        *("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not"),
        *("Or", "Xor"),
    )
)
_CLASS_LISTS = ("classlabels_ints", "classlabels_int64s", "classlabels_strings")
# Steps back, over all branches: a graph may be made to have more paths than atoms.
_MAX_STEPS = 64
_MAX_CLASSES = 65536
_TO_PROBABILITY = frozenset((b"LOGISTIC", b"PROBIT", b"SOFTMAX", b"SOFTMAX_ZERO"))


@dataclass(frozen=True)
class Declared:
    """What is known of one output.

    Attributes:
        classes: as `class_text` writes them, in the order of the scores; or none.
        form: "probabilities", "scores" (no probabilities), "number" (of a regressor),
            or "" for not known.
        swapped: of two classes, the first score is the second class's: onnxruntime's
            SVMClassifier without probabilities.
        columns: the stated size of the second axis, or None.
    """

    classes: tuple[str, ...] = ()
    form: str = ""
    swapped: bool = False
    columns: int | None = None


def class_text(item: Any) -> str:
    """A class as text: 1, 1.0, True and b"1" are "1".

    >>> class_text(True), class_text(-1.0), class_text("yes")
    ('1', '-1', 'yes')
    """
    if isinstance(item, bytes):
        return item.decode("utf-8", "replace")
    return item if isinstance(item, str) else str(int(item))


def sorted_classes(classes: Iterable[str]) -> list[str]:
    """Each class once, by number where all are whole numbers, else by text.

    >>> sorted_classes(["10", "-1", "2", "2"])
    ['-1', '2', '10']
    """
    distinct = set(classes)
    numeric = all(is_number(item) for item in distinct)
    return sorted(distinct, key=int if numeric else None)


def is_number(text: str) -> bool:
    """Whether a class is a whole number, as `class_text` writes one."""
    return re.fullmatch(r"-?[0-9]{1,19}", text) is not None


def declared_outputs(model: bytes) -> dict[str, Declared]:
    """By name, what the graph says of each output.

    Args:
        model: an ONNX file that passed structural inspection.
    """
    graph = onnx.load_model_from_string(model).graph
    return {
        item.name: replace(_Trace(graph).of(item.name), columns=_columns(item))
        for item in graph.output
    }


def _columns(output: onnx.ValueInfoProto) -> int | None:
    sizes = output.type.tensor_type.shape.dim
    return sizes[1].dim_value or None if len(sizes) == 2 else None


class _Trace:
    """One graph, followed backwards."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._made = {name: node for node in graph.node for name in node.output}
        self._stored = {item.name: item for item in graph.initializer}
        self._left = _MAX_STEPS

    def of(self, value: str) -> Declared:
        """What is known of a value."""
        while self._left and (node := self._made.get(value)) is not None:
            self._left -= 1
            if node.op_type not in _UNCHANGED:
                return self._made_by(node, value)
            value = node.input[0]
        return Declared()

    def _made_by(self, node: NodeProto, value: str) -> Declared:
        match node.op_type:
            case "LinearClassifier" | "SVMClassifier" | "TreeEnsembleClassifier":
                return _of_classifier(node, scores=value != node.output[0])
            case "LinearRegressor" | "SVMRegressor" | "TreeEnsembleRegressor":
                return _of_regressor(node)
            case "ZipMap":
                return replace(self.of(node.input[0]), classes=_class_list(node))
            case "ArrayFeatureExtractor" | "Gather":
                return self._picked(node)
            case "Where":
                return self._either(node)
            case "Sigmoid" | "Softmax":
                return Declared(form="probabilities")
            case "Conv" | "Gemm" | "LogSoftmax" | "MatMul":
                return self._linear(node)
            case "Add" | "Sub":
                return self._moved(node)
            case operator if operator in _TRUE_OR_FALSE:
                return Declared(("0", "1"))
        return Declared()

    def _constant(self, name: str) -> onnx.TensorProto | None:
        made = self._made.get(name)
        if made is not None and made.op_type == "Constant":
            given = _attributes(made).get("value")
            return given if isinstance(given, onnx.TensorProto) else None
        return self._stored.get(name)

    def _computed(self, node: NodeProto) -> list[str]:
        return [name for name in node.input if name and self._constant(name) is None]

    def _picked(self, node: NodeProto) -> Declared:
        """One of a stored list of classes; or some of another value's columns."""
        stored = self._constant(node.input[0])
        if stored is not None:
            return Declared(_values(stored))
        return Declared(form=self.of(node.input[0]).form)

    def _either(self, node: NodeProto) -> Declared:
        """`Where` of two stored classes."""
        stored = [self._constant(name) for name in node.input[1:]]
        both = [_values(item) for item in stored if item is not None]
        if len(both) != 2 or any(len(values) != 1 for values in both):
            return Declared()
        return Declared(tuple(sorted_classes([*both[0], *both[1]])))

    def _linear(self, node: NodeProto) -> Declared:
        """A sum of products has no bounds, unless it is of probabilities."""
        inputs = self._computed(node)
        mixed = any(self.of(name).form == "probabilities" for name in inputs)
        return Declared() if mixed else Declared(form="scores")

    def _moved(self, node: NodeProto) -> Declared:
        """A stored offset on something else: as linear as that is."""
        inputs = self._computed(node)
        form = self.of(inputs[0]).form if len(inputs) == 1 else ""
        return Declared(form=form if form in ("number", "scores") else "")


def _of_classifier(node: NodeProto, *, scores: bool) -> Declared:
    given, classes = _attributes(node), _class_list(node)
    if not scores:
        return Declared(classes)
    machine = node.op_type == "SVMClassifier"
    likely = given.get("post_transform") in _TO_PROBABILITY or "prob_a" in given
    # The leaves of trees may hold anything: shares of a class, or parts of a logit.
    plain = "" if node.op_type == "TreeEnsembleClassifier" else "scores"
    swapped = machine and len(classes) == 2 and not likely
    return Declared(classes, "probabilities" if likely else plain, swapped)


def _of_regressor(node: NodeProto) -> Declared:
    """A number, unless it is squashed to a probability or tells outliers apart."""
    given = _attributes(node)
    plain = given.get("post_transform", b"NONE") == b"NONE"
    return Declared(form="number" if plain and not given.get("one_class") else "")


def _class_list(node: NodeProto) -> tuple[str, ...]:
    given = _attributes(node)
    found = next((given[name] for name in _CLASS_LISTS if given.get(name)), ())
    return tuple(class_text(item) for item in found)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _values(tensor: onnx.TensorProto) -> tuple[str, ...]:
    """Stored classes; none where they are fractions, or too many to be classes."""
    if np.prod(tensor.dims, dtype=np.float64) > _MAX_CLASSES:
        return ()
    array = np.asarray(numpy_helper.to_array(tensor)).reshape(-1)
    whole = array.dtype.kind != "f" or bool((array == np.round(array)).all())
    return tuple(class_text(item) for item in array.tolist()) if whole else ()
