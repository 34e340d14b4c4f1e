"""Small ReLU networks whose robustness is decided, not attacked: an oracle for tests.

A row's exact distance to another class is a mixed-integer program (Tjeng, Xiao, Tedrake
2019): each ReLU that may be on or off is one binary. HiGHS solves it to optimality, so
a row is proven to stand below its distance, and to fall just above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array
from torch import nn

from tests.support.scanned import to_onnx

__all__ = ["ReluNet", "distance"]


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


def distance(
    net: ReluNet, row: np.ndarray, label: int, reach: float, *, low=0.0, high=1.0
) -> float:
    """The L-infinity distance of the closest point of another class; inf for none.

    Args:
        net: the network.
        row: ``(d,)``, inside its range.
        label: its class.
        reach: no further than this is looked.
        low, high: the range of every column.
    """
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
