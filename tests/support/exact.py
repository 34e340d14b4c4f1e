"""Small models whose robustness is decided, not attacked: an oracle for tests.

A row's exact distance to another class is proven, so that it stands below it and falls
just above. Of networks a mixed-integer program has it (`relu_networks`); of a few small
trees, which have no gradient, all boxes are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from onnx import helper
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from tests.support.relu_networks import RELU, Dense, Layer, answers, closest
from tests.support.scanned import FLOAT, onnx_model, to_onnx

__all__ = ["Forest", "ReluNet", "distance"]


@dataclass(frozen=True, eq=False)
class ReluNet:
    """Linear layers with ReLU between."""

    layers: list[Layer]

    @classmethod
    def stack(cls, *pairs: tuple[np.ndarray, np.ndarray]) -> ReluNet:
        """Of weights ``(out, in)`` and biases."""
        made: list[Layer] = [layer for pair in pairs for layer in (Dense(*pair), RELU)]
        return cls(made[:-1])

    @classmethod
    def of(cls, model: nn.Sequential) -> ReluNet:
        """The linear layers of a torch model that has nothing else but ReLU."""
        linear = [layer for layer in model if isinstance(layer, nn.Linear)]
        return cls.stack(
            *(
                tuple(item.detach().double().numpy() for item in (one.weight, one.bias))
                for one in linear
            )
        )

    def scores(self, points: np.ndarray) -> np.ndarray:
        """Scores ``(n, classes)`` in double precision."""
        return answers(self.layers, points)

    def onnx(self, **more) -> bytes:
        """The same as a file."""
        made: list[nn.Module] = []
        for one in self.layers[::2]:
            layer = nn.Linear(one.weight.shape[1], one.weight.shape[0])
            layer.weight.data = torch.as_tensor(one.weight, dtype=torch.float32)
            layer.bias.data = torch.as_tensor(one.bias, dtype=torch.float32)
            made += [layer, nn.ReLU()]
        width = self.layers[0].weight.shape[1]
        return to_onnx(nn.Sequential(*made[:-1]), [width], **more)


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
    row = np.asarray(row, np.float64)
    box = np.maximum(row - reach, low), np.minimum(row + reach, high)
    classes = np.eye(len(net.layers[-1].bias))
    return min(
        closest(net.layers, row, box, classes[target] - classes[label])
        for target in range(len(classes))
        if target != label
    )
