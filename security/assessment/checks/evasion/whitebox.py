"""The graph in torch, in attack coordinates: what gradient attacks follow.

The last steps that only squash or round the scores (softmax, sigmoid, temperature,
rounding) are left out: they keep the order of the classes, so they change no decision,
and they are where gradients are lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from security.assessment.checks.evasion.ledger import parts
from security.assessment.plan.context import Context
from security.assessment.targets.answers import Reading
from security.assessment.torch_graph.layers import QUANTISED
from security.assessment.torch_graph.module import Node, OnnxModule, read_nodes
from security.assessment.torch_graph.steps import stepped
from security.errors import AssessmentError

__all__ = ["WhiteBox", "is_quantised", "open_white_box"]

_TOLERANCE = 1e-4
_PARITY_ROWS = 64
# Of rows near a step of the graph a rounding error may decide; most must agree.
_MIN_AGREEING = 0.95
# A quantised graph's twin must decide this share of them alike.
_MIN_ALIKE = 0.9

_KEEPS_ORDER = frozenset(
    (
        *("Ceil", "Exp", "Floor", "Identity", "Log", "Round", "Sigmoid", "Softplus"),
        *(
            "Sqrt",
            "Tanh",
            "ZipMap",
            "Cast",
            "Dropout",
            "Erf",
            "Softsign",
            "HardSigmoid",
        ),
        *("Clip", "DequantizeLinear", "QuantizeLinear"),
    )
)
# TensorProto's float, uint8, int8, int32, int64 and double.
_NUMBERS = (1, 2, 3, 6, 7, 11)
_SCALES = frozenset(("Add", "Sub", "Mul", "Div"))


@dataclass(frozen=True, eq=False)
class WhiteBox:
    """The model as gradient attacks see it.

    Attributes:
        model: attack coordinates ``(n, d)`` to scores ``(n, classes)``, of which the
            largest is the decision.
        dtype: that it computes in.
        difference: the largest from onnxruntime, on rows that agree.
        compared: rows that were compared.
        operators: of the graph.
    """

    model: nn.Module
    dtype: torch.dtype
    difference: float
    compared: int
    operators: frozenset[str] = frozenset()

    @property
    def twin(self) -> bool:
        """Whether it only resembles what is served: the engine has the last word."""
        return isinstance(self.model, _Twin)

    def tensor(self, values: Any) -> Tensor:
        """Numbers as the model takes them."""
        return torch.as_tensor(np.asarray(values), dtype=self.dtype)


def open_white_box(context: Context) -> WhiteBox:
    """Convert the graph, and compare it with onnxruntime.

    Raises:
        AssessmentError: an endpoint, a graph that does not convert, or one that
            computes something else.
    """
    if context.job.remote:
        raise AssessmentError("an endpoint gives no gradients")
    if context.job.spec.parts:
        raise AssessmentError("several inputs, or texts, are not followed by gradient")
    if context.job.reading.form == "labels":
        raise AssessmentError("labels have no gradient")
    model = context.job.source.model
    nodes = read_nodes(onnx.load_model_from_string(model))
    convolves = any("Conv" in node.op for node in nodes)
    wide = context.job.spec.dtype == "float64" or not convolves
    dtype = torch.float64 if wide else torch.float32
    reason = ""
    for soft in (True, False):
        try:
            return _checked(context, nodes, dtype, soft=soft)
        except AssessmentError as error:
            reason = str(error)
        except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as error:
            reason = f"the graph does not run in torch: {str(error).splitlines()[0]}"
    raise AssessmentError(reason[:200])


def is_quantised(model: bytes) -> bool:
    """Whether a graph rounds inside: what only asks it meets stairs, and no slope."""
    return any(
        node.op in QUANTISED for node in read_nodes(onnx.load_model_from_string(model))
    )


def _checked(
    context: Context, nodes: Sequence[Node], dtype: torch.dtype, *, soft: bool
) -> WhiteBox:
    job = context.job
    output = job.reading.output
    cut = output  # of a number the value counts, not an order
    if not job.reading.number:
        cut = _before_squashing(nodes, output, job.source.model, job.reading)
    graph = OnnxModule(job.source.model, outputs=(output, cut), dtype=dtype, soft=soft)
    rows = _parity_rows(context)
    z = torch.as_tensor(job.space.to_z(rows), dtype=dtype)
    whole = _Scores(context, graph, output, dtype)
    with torch.no_grad():
        mine = whole(z).numpy().astype(np.float64)
    graph.narrow((cut,))  # squashing is of no more use, and takes as long as a layer
    answers = context.target.ask(rows)
    served = _centred(answers.scores, job.reading)
    scale = max(1.0, float(np.abs(served[np.isfinite(served)]).max(initial=0)))
    gaps = np.abs(mine - served).max(axis=1)
    agree = gaps <= _TOLERANCE * scale
    if any(node.op in QUANTISED for node in nodes):
        return _twin(context, graph, cut, (mine.argmax(axis=1), answers.labels, gaps))
    if agree.mean() < _MIN_AGREEING:
        raise AssessmentError(
            f"the torch graph differs from onnxruntime by {np.nanmedian(gaps):.1e}"
        )
    if not job.reading.number:
        _check_decided(mine, answers.labels, agree, 2 * _TOLERANCE * scale)
    return WhiteBox(
        _Scores(context, graph, cut, dtype),
        dtype,
        float(gaps[agree].max()),
        len(rows),
        frozenset(node.op for node in nodes),
    )


def _check_decided(mine: Any, labels: Any, agree: Any, close: float) -> None:
    """Rows near a tie aside, the largest score must be what is decided."""
    second, first = np.sort(mine, axis=1)[:, -2:].T
    clear = agree & (labels >= 0) & (first - second > close)
    if (mine.argmax(axis=1) != labels)[clear].any():
        raise AssessmentError("labels are decided otherwise than by the largest score")


def _twin(
    context: Context, graph: OnnxModule, cut: str, compared: tuple[Any, Any, Any]
) -> WhiteBox:
    """A quantised graph: its kernels round otherwise than torch, now and then.

    It is taken where it mostly decides alike; attacks then ask onnxruntime, too,
    before they call a row broken.
    """
    mine, served, gaps = compared
    alike = (mine == served) | (served < 0)
    if alike.mean() < _MIN_ALIKE:
        raise AssessmentError(
            f"the quantised graph decides {alike.mean():.0%} of rows alike in torch"
        )
    model = _Twin(context, graph, cut, graph.dtype)
    return WhiteBox(model, graph.dtype, float(np.nanmax(gaps)), len(mine))


def _parity_rows(context: Context) -> Any:
    """Real rows, and random ones from the whole range, so that each branch is seen."""
    job = context.job
    real = job.rows[:_PARITY_ROWS]
    random = context.random("evasion/parity")
    z = job.space.to_z(real)
    noise = job.space.to_z(job.space.low + random.random(z.shape) * _width(context))
    share = random.random((len(z), 1))
    mixed = job.space.repair(z + share * (noise - z), real, "linf", np.inf)
    # What is missing goes to the middle: where the attacks, too, see it.
    rows = np.concatenate([real, mixed])
    middle = (job.space.low + job.space.high) / 2
    return np.where(np.isfinite(rows), rows, middle).astype(rows.dtype)


def _width(context: Context) -> Any:
    return context.job.space.high - context.job.space.low


class _Scores(nn.Module):
    """Attack coordinates to one score per class."""

    low: Tensor
    scale: Tensor
    high: Tensor
    codes: Tensor

    def __init__(
        self, context: Context, graph: OnnxModule, value: str, dtype: torch.dtype
    ) -> None:
        super().__init__()
        space, self._reading = context.job.space, context.job.reading
        self._graph, self._value = graph, value
        self._shape = context.job.shape
        self._table = space.table
        for name in ("low", "scale", "high"):
            array = torch.as_tensor(getattr(space, name), dtype=dtype)
            self.register_buffer(name, array)
        self._plain = bool((space.low == 0).all() and (space.scale == 1).all())
        codes = [
            rule.kind == "category" and all(v.is_integer() for v in rule.values)
            for rule in space.rules
        ]
        self._coded = any(codes)
        self.register_buffer("codes", torch.tensor(codes))
        threshold = self._reading.threshold
        squashed = value == self._reading.output
        if not squashed and self._reading.form == "probabilities":
            threshold = math.log(threshold / (1 - threshold)) if threshold else 0.0
        self._squashed, self._threshold = squashed, threshold

    def forward(self, z: Tensor) -> Tensor:
        """``(n, d)``, or any shape that flattens to it, to ``(n, classes)``."""
        z = z.reshape(len(z), -1)
        raw = z if self._plain else self.low + z * self.scale
        if self._coded:  # scaling there and back leaves a code beside itself
            raw = torch.where(self.codes, torch.round(raw), raw)
        if self._table:
            raw = self._inside(raw)
        value = self._graph(raw.reshape(len(z), *self._shape))[self._value]
        scores = value.reshape(len(z), -1).to(raw.dtype)
        if not scores.requires_grad and z.requires_grad:
            # A graph of comparisons has no path for the gradient: give it one, of 0.
            # The attacks then find what their random starts find, and a check says so.
            scores = scores + 0.0 * z.sum(dim=1, keepdim=True)
        if self._reading.single:
            # Of two columns: logits, of which the difference is the probability's.
            second, wide = scores[:, -1:], scores.shape[1] == 2
            if wide and not self._squashed:
                second = second - scores[:, :1]
            second = second - self._threshold
            return torch.cat([-second, second], dim=1)
        return scores.flip(1) if self._reading.swapped else scores

    def _inside(self, raw: Tensor) -> Tensor:
        """Rounding may step over a range's end, where clipping would cut the gradient.

        Clipped in value, by a hair only, and straight through for the gradient.
        """
        clipped = torch.minimum(torch.maximum(raw, self.low), self.high)
        if torch.equal(clipped, raw):
            return raw
        near = (raw - clipped).abs() <= 1e-6 * self.scale
        return stepped(raw, torch.where(near, clipped, raw))


class _Twin(_Scores):
    """Scores and gradients of the twin; what is broken, onnxruntime says."""

    def __init__(self, context: Context, *graph: Any) -> None:
        super().__init__(context, *graph)
        self._context = context

    def confirm(self, points: Tensor, labels: Tensor) -> Tensor:
        """Rows ``(n, d)`` that the model as served gives another class ``(n,)``."""
        space = self._context.job.space
        raw = space.to_raw(points.detach().double().numpy())
        rows = np.clip(raw, space.low, space.high)
        rows = np.where(space.integer, np.round(rows), rows).astype(space.dtype)
        own, wrong = labels.numpy(), np.zeros(len(rows), dtype=bool)
        alone = bool(self._context.cache.get("random"))
        for part in parts(self._context, np.arange(len(rows)), alone=alone):
            wrong[part] = self._context.target.ask(rows[part]).wrong(own[part])
        return torch.as_tensor(wrong)


def _centred(scores: Any, reading: Reading) -> Any:
    """Scores as `_Scores` gives them: of two classes, beside the threshold."""
    if not reading.single:
        return scores
    second = scores[:, 1] - reading.threshold
    return np.stack([-second, second], axis=1)


def _before_squashing(
    nodes: Sequence[Node], output: str, model: bytes, reading: Reading
) -> str:
    """The name of the value that decides, before steps that keep the order of classes.

    For a single score only a final sigmoid or softmax is left out: what else is done
    to it moves the threshold.
    """
    made = {name: node for node in nodes for name in node.outputs}
    stored = _scalars(model, nodes)
    value = output
    while (node := made.get(value)) is not None:
        if reading.single:
            squashes = node.op in ("Sigmoid", "Softmax")
            if squashes and reading.form == "probabilities":
                return _keeps_order(node, stored) or value
            if node.op not in ("Identity", "Cast"):
                return output if value != output else value
        following = _keeps_order(node, stored)
        if following is None:
            return value
        value = following
    return value


def _keeps_order(node: Node, stored: Mapping[str, float]) -> str | None:
    """The input whose order of classes is the output's, or None."""
    if node.op in ("Softmax", "LogSoftmax"):
        return node.inputs[0] if node.attributes.get("axis", -1) in (-1, 1) else None
    if node.op in _KEEPS_ORDER:
        return (
            node.inputs[0] if len(set(node.inputs) - set(stored) - {""}) == 1 else None
        )
    if node.op in _SCALES and len(node.inputs) == 2:
        left, right = node.inputs
        if right in stored:
            keeps = node.op in ("Add", "Sub") or stored[right] > 0
            return left if keeps else None
        if left in stored and node.op in ("Add", "Mul"):
            return right if node.op == "Add" or stored[left] > 0 else None
    return None


def _scalars(model: bytes, nodes: Sequence[Node]) -> dict[str, float]:
    """Stored values of one element."""
    graph = onnx.load_model_from_string(model).graph
    found = {
        item.name: float(onnx.numpy_helper.to_array(item).reshape(-1)[0])
        for item in graph.initializer
        if int(np.prod(item.dims)) == 1 and item.data_type in _NUMBERS
    }
    for node in nodes:
        value = node.attributes.get("value")
        if node.op == "Constant" and isinstance(value, Tensor) and value.numel() == 1:
            found[node.outputs[0]] = float(value)
    return found
