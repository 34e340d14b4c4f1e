"""Tree ensembles of an ONNX graph, compiled for exact Shapley values.

The game is the interventional one with one reference row: a coalition's columns are the
row's, all others the reference's. A leaf is reached by the coalitions that hold every
column whose tests only the row passes, and none whose tests only the reference passes.
With u and v such columns, a leaf of weight w gives each of the u ``w / (u C(u+v, u))``,
and takes from each of the v ``w / (v C(u+v, v))``; summed over leaves that is exact
(Lundberg et al., "From local explanations to global understanding with explainable AI
for trees", 2020, appendix). A leaf's tests lie side by side in arrays, by column, so
that a row takes a few operations of numpy and no loop over leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import graph

__all__ = ["TreeEnsemble", "compile_trees"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Tests over all leaves: a second or two to compile, some milliseconds for a row.
MAX_TESTS = 1 << 16
_MAX_DEPTH = 64
_OPERATORS = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")
_TESTS: Mapping[bytes, Callable[..., Any]] = {
    b"BRANCH_LEQ": np.less_equal,
    b"BRANCH_LT": np.less,
    b"BRANCH_GTE": np.greater_equal,
    b"BRANCH_GT": np.greater,
    b"BRANCH_EQ": np.equal,
    b"BRANCH_NEQ": np.not_equal,
}
_PER_NODE = (
    "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_values",
    "nodes_truenodeids", "nodes_falsenodeids",
)  # fmt: skip


def _counts(groups: Mask, starts: NDArray[np.intp]) -> NDArray[np.intp]:
    """How many groups of each leaf are so."""
    return np.asarray(np.add.reduceat(groups.astype(np.intp), starts))


def _shares() -> Floats:
    """``[u, v]``: what each of u columns gets of a leaf that v others would leave."""
    table = np.zeros((_MAX_DEPTH + 1, _MAX_DEPTH + 1))
    for u in range(1, _MAX_DEPTH + 1):
        for v in range(_MAX_DEPTH + 1):
            table[u, v] = 1 / (u * math.comb(u + v, u))
    return table


_SHARES = _shares()


@dataclass(frozen=True, eq=False)
class TreeEnsemble:
    """Sums of leaves, and the tests on the way to each.

    Attributes:
        columns: of a row.
        leaves: ``(leaves, targets)``, what each leaf adds to each sum.
    """

    columns: int
    leaves: Floats
    _column: NDArray[np.intp]
    _value: NDArray[np.float32]
    _passes: Mask
    _missing: Mask
    _modes: Sequence[tuple[Callable[..., Any], NDArray[np.intp]]]
    # Tests of one column and leaf are a group; groups of one leaf stand together.
    _groups: NDArray[np.intp]
    _group_column: NDArray[np.intp]
    _group_leaf: NDArray[np.intp]
    _leaf_groups: NDArray[np.intp]

    @property
    def tests(self) -> int:
        """How many there are: what a row costs is proportional to it."""
        return len(self._column)

    def passed(self, row: NDArray[np.floating]) -> Mask:
        """Which groups of tests a row ``(columns,)`` passes ``(groups,)``."""
        values = row[self._column]
        passed = np.empty(len(values), bool)
        for test, where in self._modes:
            passed[where] = test(values[where], self._value[where])
        if self._missing.any():
            passed |= self._missing & np.isnan(values)
        return np.logical_and.reduceat(passed == self._passes, self._groups)

    def reached(self, passed: Mask) -> Mask:
        """Which leaves a row reaches ``(leaves,)``, by what it passes."""
        return np.logical_and.reduceat(passed, self._leaf_groups)

    def attributions(self, row: Mask, reference: Mask, weights: Floats) -> Floats:
        """Exact Shapley values ``(columns,)``.

        Args:
            row: what it passes, of `passed`.
            reference: likewise.
            weights: ``(leaves,)``, what the explained sum has of each leaf.
        """
        ours, theirs = row & ~reference, reference & ~row
        starts = self._leaf_groups
        alive = np.logical_and.reduceat(row | reference, starts)
        u, v = _counts(ours, starts), _counts(theirs, starts)
        live = np.where(alive, weights, 0.0)
        gained, lost = live * _SHARES[u, v], live * _SHARES[v, u]
        leaf = self._group_leaf
        shares = np.where(ours, gained[leaf], 0.0) - np.where(theirs, lost[leaf], 0.0)
        found = np.bincount(self._group_column, shares, minlength=self.columns)
        return np.asarray(found, np.float64)


def compile_trees(model: bytes, columns: int) -> TreeEnsemble | None:
    """The one tree ensemble of a model that takes its raw columns, if there is one.

    Args:
        model: the bytes of an ONNX file.
        columns: of its only input.

    Returns:
        None where there is none, several, a form that is not compiled here (values in
        tensors, ``TreeEnsemble`` of operator set 5, MIN and MAX), or too large a one.
    """
    found = [node for node in graph.nodes(model) if node.operator in _OPERATORS]
    if len(found) != 1:
        return None
    try:
        stated = graph.attributes(found[0])
        return _Compiler(stated, columns).compiled()
    except (ValueError, KeyError, IndexError, TypeError):
        return None


class _Compiler:
    """Walks each tree once, from its root, and lays down its leaves' tests."""

    def __init__(self, stated: Mapping[str, Any], columns: int) -> None:
        """Index the nodes.

        Raises:
            ValueError, KeyError: the attributes are no trees over so many columns.
        """
        self._columns = columns
        lists = [stated[name] for name in _PER_NODE]
        count = len(lists[0])
        if not count or any(len(item) != count for item in lists):
            raise ValueError("lists of different lengths")
        self._nodes = {(item[0], item[1]): item[2:] for item in zip(*lists)}
        if len(self._nodes) != count:
            raise ValueError("a node twice")
        missing = stated.get("nodes_missing_value_tracks_true") or [0] * count
        self._missing = dict(zip(self._nodes, missing))
        self._weights, self._targets = _weights(stated)
        trees = {tree for tree, _ in self._nodes}
        aggregate = stated.get("aggregate_function", b"SUM")
        if aggregate not in (b"SUM", b"AVERAGE"):
            raise ValueError("neither sums nor means")
        self._scale = 1 / len(trees) if aggregate == b"AVERAGE" else 1.0
        self._trees, self._visited = len(trees), 0
        self._tests: list[tuple[int, bytes, float, bool, bool]] = []
        self._groups: list[tuple[int, int, int]] = []  # start, column, leaf
        self._leaves: list[Floats] = []

    def compiled(self) -> TreeEnsemble:
        """All of it, in arrays.

        Raises:
            ValueError: no trees after all, or too many tests.
        """
        for root in self._roots():
            self._walk(root)
        if self._visited != len(self._nodes):
            raise ValueError("nodes that no root leads to")
        column, mode, value, passes, missing = map(np.array, zip(*self._tests))
        starts, group_column, group_leaf = (
            np.array(item, np.intp) for item in zip(*self._groups)
        )
        modes = [(_TESTS[name], np.flatnonzero(mode == name)) for name in set(mode)]
        first = np.flatnonzero(np.diff(group_leaf, prepend=-1))
        return TreeEnsemble(
            self._columns,
            np.array(self._leaves) * self._scale,
            column.astype(np.intp),
            value.astype(np.float32),
            passes.astype(bool),
            missing.astype(bool),
            modes,
            starts,
            group_column,
            group_leaf,
            first,
        )

    def _roots(self) -> list[tuple[int, int]]:
        children = set()
        for (tree, _), (_, mode, _, *both) in self._nodes.items():
            if mode != b"LEAF":
                if mode not in _TESTS:
                    raise ValueError("an unknown test")
                children |= {(tree, child) for child in both}
        roots = [key for key in self._nodes if key not in children]
        if len(roots) != self._trees:
            raise ValueError("trees without a root, or with several")
        return roots

    def _walk(self, root: tuple[int, int]) -> None:
        """Down to every leaf; in a tree there is one way to each node."""
        tree = root[0]
        waiting: list[tuple[int, tuple[Any, ...]]] = [(root[1], ())]
        while waiting:
            name, path = waiting.pop()
            self._visited += 1
            if self._visited > len(self._nodes):
                raise ValueError("no tree")
            column, mode, value, *both = self._nodes[tree, name]
            if mode == b"LEAF":
                self._leaf((tree, name), path)
                continue
            if not 0 <= column < self._columns or len(path) >= _MAX_DEPTH:
                raise ValueError("a column that is none, or too deep")
            missing = bool(self._missing[tree, name])
            for child, passes in zip(both, (True, False)):
                waiting.append((child, (*path, (column, mode, value, passes, missing))))

    def _leaf(self, key: tuple[int, int], path: tuple[Any, ...]) -> None:
        """Its tests by column. A tree that is one leaf adds the same to every row."""
        own = self._weights.get(key)
        if not path or own is None:
            return
        leaf, before = len(self._leaves), -1
        for test in sorted(path, key=lambda test: test[0]):
            if test[0] != before:
                before = test[0]
                self._groups.append((len(self._tests), before, leaf))
            self._tests.append(test)
        weights = np.zeros(len(self._targets))
        for target, weight in own:
            weights[self._targets[target]] += weight
        self._leaves.append(weights)
        if len(self._tests) > MAX_TESTS:
            raise ValueError("too large")


def _weights(
    stated: Mapping[str, Any],
) -> tuple[dict[tuple[int, int], list[tuple[int, float]]], dict[int, int]]:
    """What leaves add, by tree and node, and the places of the targets."""
    kind = "class" if "class_ids" in stated else "target"
    names = ("treeids", "nodeids", "ids", "weights")
    lists = [stated[f"{kind}_{name}"] for name in names]
    if not lists[0] or len(set(map(len, lists))) != 1:
        raise ValueError("lists of different lengths")
    found: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for tree, node, target, weight in zip(*lists):
        found.setdefault((tree, node), []).append((target, weight))
    return found, {target: i for i, target in enumerate(sorted(set(lists[2])))}
