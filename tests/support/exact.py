"""Small models whose robustness is decided, not attacked: an oracle for tests.

A row's exact distance to another class is a mixed-integer program (Tjeng, Xiao, Tedrake
2019): each ReLU that may be on or off is one binary. HiGHS solves it to optimality, so
a row is proven to stand below its distance, and to fall just above. Of a few small
trees, which have no gradient, all boxes are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from onnx import helper
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from tests.support.scanned import FLOAT, onnx_model, to_onnx

__all__ = ["Forest", "ReluNet", "distance"]


@dataclass(frozen=True, eq=False)
class ReluNet:
    """Linear layers with ReLU between: weights ``(out, in)`` and biases."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def of(cls, model: nn.Sequential) -> ReluNet:
        """The linear layers of a torch model that has nothing else but ReLU."""
        linear = [layer for layer in model if isinstance(layer, nn.Linear)]
        return cls(
            tuple(
                (
                    item.weight.detach().double().numpy(),
                    item.bias.detach().double().numpy(),
                )
                for item in linear
            )
        )

    def scores(self, points: np.ndarray) -> np.ndarray:
        """Scores ``(n, classes)`` in double precision."""
        value = np.asarray(points, np.float64)
        for weight, bias in self.layers[:-1]:
            value = np.maximum(value @ weight.T + bias, 0)
        weight, bias = self.layers[-1]
        return value @ weight.T + bias

    def onnx(self, **more) -> bytes:
        """The same as a file."""
        made: list[nn.Module] = []
        for weight, bias in self.layers:
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data = torch.as_tensor(weight, dtype=torch.float32)
            layer.bias.data = torch.as_tensor(bias, dtype=torch.float32)
            made += [layer, nn.ReLU()]
        return to_onnx(nn.Sequential(*made[:-1]), [self.layers[0][0].shape[1]], **more)


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees of scikit-learn, with thresholds in single precision as a file has them."""

    trees: tuple

    @classmethod
    def of(cls, model: RandomForestClassifier) -> Forest:
        return cls(tuple(item.tree_ for item in model.estimators_))

    def _leaves(self, tree):
        """Each leaf: its box, low excluded, and the classes' shares."""
        width = tree.n_features
        todo = [(0, np.full(width, -np.inf), np.full(width, np.inf))]
        while todo:
            node, low, high = todo.pop()
            column = tree.feature[node]
            if column < 0:
                yield low, high, tree.value[node][0].astype(np.float32)
                continue
            cut = float(np.float32(tree.threshold[node]))
            left, right = high.copy(), low.copy()
            left[column], right[column] = min(left[column], cut), max(low[column], cut)
            todo.append((tree.children_left[node], low, left))
            todo.append((tree.children_right[node], right, high))

    def scores(self, points: np.ndarray) -> np.ndarray:
        points = np.asarray(points, np.float64)
        total = np.zeros((len(points), self.trees[0].n_classes[0]))
        for tree in self.trees:
            for low, high, share in self._leaves(tree):
                total[((points > low) & (points <= high)).all(axis=1)] += share
        return total

    def distance(self, row: np.ndarray, label: int, reach: float) -> float:
        """As `distance`, of boxes that leaves of all trees share."""
        width = len(row)
        low, high = np.full((1, width), -np.inf), np.full((1, width), np.inf)
        total = np.zeros((1, self.trees[0].n_classes[0]))
        for tree in self.trees:
            parts = [
                (np.maximum(low, a), np.minimum(high, b), total + share)
                for a, b, share in self._leaves(tree)
            ]
            low, high, total = (np.concatenate(item) for item in zip(*parts))
            far = np.maximum(np.maximum(low - row, row - high), 0).max(axis=1)
            kept = (low < high).all(axis=1) & (far <= reach)
            low, high, total, far = low[kept], high[kept], total[kept], far[kept]
        own = total[:, label].copy()
        total[:, label] = -np.inf
        return float(far[total.max(axis=1) > own + 1e-6].min(initial=np.inf))

    def onnx(self) -> bytes:
        """The same as a file."""
        nodes: dict[str, list] = {}
        for place, tree in enumerate(self.trees):
            for node in range(tree.node_count):
                leaf = tree.feature[node] < 0
                for name, value in (
                    ("nodes_treeids", place),
                    ("nodes_nodeids", node),
                    ("nodes_featureids", max(0, int(tree.feature[node]))),
                    ("nodes_modes", "LEAF" if leaf else "BRANCH_LEQ"),
                    ("nodes_values", 0.0 if leaf else float(tree.threshold[node])),
                    ("nodes_truenodeids", max(0, int(tree.children_left[node]))),
                    ("nodes_falsenodeids", max(0, int(tree.children_right[node]))),
                ):
                    nodes.setdefault(name, []).append(value)
                for number, share in enumerate(tree.value[node][0]) if leaf else ():
                    for name, value in (
                        ("class_treeids", place),
                        ("class_nodeids", node),
                        ("class_ids", number),
                        ("class_weights", float(share)),
                    ):
                        nodes.setdefault(name, []).append(value)
        made = helper.make_node(
            *("TreeEnsembleClassifier", ["x"], ["label", "scores"]),
            domain="ai.onnx.ml",
            classlabels_int64s=list(range(int(self.trees[0].n_classes[0]))),
            post_transform="NONE",
            **nodes,
        )
        width = [int(self.trees[0].n_features)]
        more = {"domains": [("ai.onnx.ml", 3)], "outputs": {"scores": FLOAT}}
        return onnx_model([made], {}, shape=width, **more)


def distance(
    net: ReluNet | Forest,
    row: np.ndarray,
    label: int,
    reach: float,
    *,
    low=0.0,
    high=1.0,
) -> float:
    """The L-infinity distance of the closest point of another class; inf for none.

    Args:
        net: the network.
        row: ``(d,)``, inside its range.
        label: its class.
        reach: no further than this is looked.
        low, high: the range of every column.
    """
    if isinstance(net, Forest):
        return net.distance(np.asarray(row, np.float64), label, reach)
    classes = len(net.layers[-1][1])
    found = [
        _towards(net, row, label, target, (reach, low, high))
        for target in range(classes)
        if target != label
    ]
    return min(found)


def _towards(net, row, label, target, where) -> float:
    reach, low, high = where
    row = np.asarray(row, np.float64)
    program = _Program(row, np.maximum(row - reach, low), np.minimum(row + reach, high))
    for weight, bias in net.layers[:-1]:
        program.relu(weight, bias)
    weight, bias = net.layers[-1]
    program.require(weight[target] - weight[label], bias[target] - bias[label])
    return program.shortest(row, reach)


class _Program:
    """Variables: the radius, the point, then what each layer gives, then binaries."""

    def __init__(self, row, low, high) -> None:
        self.low, self.high, self.whole = (
            [0.0, *low],
            [np.inf, *high],
            [0] * (1 + len(row)),
        )
        self.rows: list[tuple[dict[int, float], float]] = []  # sum <= bound
        self.values = list(range(1, 1 + len(row)))
        for place, own in zip(self.values, row):
            self.rows += [({place: 1.0, 0: -1.0}, own), ({place: -1.0, 0: -1.0}, -own)]

    def _new(self, low, high, whole=0) -> int:
        self.low.append(low), self.high.append(high), self.whole.append(whole)
        return len(self.low) - 1

    def _sum(self, weights) -> dict[int, float]:
        return {v: float(w) for v, w in zip(self.values, weights) if w}

    def relu(self, weight, bias) -> None:
        low = np.array([self.low[v] for v in self.values])
        high = np.array([self.high[v] for v in self.values])
        least = np.minimum(weight * low, weight * high).sum(axis=1) + bias
        most = np.maximum(weight * low, weight * high).sum(axis=1) + bias
        made = []
        for own, shift, below, above in zip(weight, bias, least, most):
            value = self._new(max(below, 0.0), max(above, 0.0))
            made.append(value)
            if above <= 0:
                continue
            total = self._sum(own)
            under = total | {value: -1.0}
            self.rows.append((under, -shift))  # value >= sum
            over = {v: -w for v, w in total.items()} | {value: 1.0}
            if below >= 0:
                self.rows.append((over, shift))
                continue
            on = self._new(0.0, 1.0, 1)
            self.rows.append((over | {on: -below}, shift - below))
            self.rows.append(({value: 1.0, on: -above}, 0.0))
        self.values = made

    def require(self, weight, bias) -> None:
        """``weight * values + bias >= 0``."""
        self.rows.append(({v: -w for v, w in self._sum(weight).items()}, bias))

    def shortest(self, row, reach) -> float:
        matrix = lil_array((len(self.rows), len(self.low)))
        for place, (terms, _) in enumerate(self.rows):
            for variable, factor in terms.items():
                matrix[place, variable] = factor
        bounds = np.array([bound for _, bound in self.rows])
        aim = np.zeros(len(self.low))
        aim[0] = 1.0
        self.high[0] = reach
        result = milp(
            aim,
            constraints=LinearConstraint(matrix.tocsr(), -np.inf, bounds),
            bounds=Bounds(np.array(self.low), np.array(self.high)),
            integrality=np.array(self.whole),
            options={"mip_rel_gap": 1e-4},
        )
        if result.status == 2:  # proven: there is none
            return np.inf
        if result.status != 0:
            raise AssertionError(f"the oracle could not decide: {result.message}")
        return float(result.mip_dual_bound)
