"""Shadow models of a model that predicts a number, on random halves of the rows.

Where the training's configuration is given, shadows follow its recipe. Of trees that
were grown elsewhere the file shows how many there are and how deep: shadows are grown
alike, by scikit-learn. Of any other model nothing is known that could be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper

from security.assessment.checks.privacy.shadows import random_halves, train_shadows
from security.assessment.checks.privacy.trained import KnownRows
from security.assessment.plan.context import Context

__all__ = [
    "ShadowNumbers",
    "Trees",
    "how_many",
    "kind_of",
    "shadow_numbers",
    "trees_of",
]

# More trees answer alike; deeper ones than boosting takes are grown to the end.
_MOST_TREES = 100
_BOOSTED_DEPTH = 8
_FEWEST = 16


@dataclass(frozen=True, eq=False)
class ShadowNumbers:
    """What shadows answer.

    Attributes:
        included: ``(models, n)``: which rows each was trained on.
        numbers: ``(models, n)``, in the number's own unit.
    """

    included: NDArray[np.bool_]
    numbers: NDArray[np.float64]


@dataclass(frozen=True)
class Trees:
    """How the trees of a file were grown, as far as it shows.

    Attributes:
        count: of trees.
        depth: of the deepest; of what is deeper than boosting takes, just more.
    """

    count: int
    depth: int


def kind_of(context: Context, known: KnownRows) -> str:
    """Which shadows there can be: "same_recipe", "trees_alike", or "" for none."""
    if known.training is not None and known.training.recipe is not None:
        return "same_recipe"
    return "trees_alike" if _trees(context) is not None else ""


def how_many(context: Context) -> int:
    """Shadows of a scan; some also where the profile makes none of classifiers: without
    them, what a model of numbers learnt by heart is hardly seen.
    """
    return context.job.options.effort.shadows or _FEWEST


def shadow_numbers(
    context: Context, known: KnownRows, first: int, count: int, *, seed: int
) -> ShadowNumbers:
    """Train some of a scan's shadows.

    Args:
        context: of the scan.
        known: the rows.
        first: number of the first one.
        count: how many, at most.
        seed: of their weights or trees.
    """
    every = random_halves(
        how_many(context),
        len(known.labels),
        context.random("membership/halves"),
    )
    included = every[first : first + count]
    trees = _trees(context)
    if kind_of(context, known) == "same_recipe":
        return ShadowNumbers(included, _by_recipe(known, included, seed))
    if trees is None:
        raise TypeError("no shadows of a model of which nothing is known")
    grown = [
        _grown(trees, known, own, (seed + place) % (1 << 32))
        for place, own in enumerate(included)
    ]
    return ShadowNumbers(included, np.stack(grown))


def _by_recipe(
    known: KnownRows, included: NDArray[np.bool_], seed: int
) -> NDArray[np.float64]:
    training = known.training
    if training is None or training.recipe is None or training.target is None:
        raise TypeError("no recipe of a regression")
    shares = training.target.shares(known.labels).astype(np.float32)
    made = train_shadows(training.inputs, shares, included, training.recipe, seed=seed)
    learnt = torch.sigmoid(torch.from_numpy(made.logits[..., 0]).double())
    return training.target.values(learnt.numpy())


def _grown(
    trees: Trees, known: KnownRows, own: NDArray[np.bool_], seed: int
) -> NDArray[np.float64]:
    """What trees answer that learnt the chosen rows, as many and as deep."""
    from sklearn import ensemble  # noqa: PLC0415  (seconds)

    count = min(trees.count, _MOST_TREES)
    if trees.depth <= _BOOSTED_DEPTH:
        model: Any = ensemble.GradientBoostingRegressor(
            n_estimators=count, max_depth=trees.depth, random_state=seed
        )
    else:
        model = ensemble.RandomForestRegressor(n_estimators=count, random_state=seed)
    rows = np.nan_to_num(known.rows.astype(np.float64))
    model.fit(rows[own], known.labels[own])
    return np.asarray(model.predict(rows), np.float64)


def _trees(context: Context) -> Trees | None:
    if "trees" not in context.cache:
        context.cache["trees"] = trees_of(context.job.source.model)
    found: Trees | None = context.cache["trees"]
    return found


def trees_of(model: bytes) -> Trees | None:
    """The trees of a file that predicts by them; None of an endpoint or another model.

    Args:
        model: an ONNX file that passed structural inspection; empty for none.
    """
    if not model:
        return None
    nodes = onnx.load_model_from_string(model).graph.node
    found = [node for node in nodes if node.op_type == "TreeEnsembleRegressor"]
    if len(found) != 1:
        return None
    given = {item.name: helper.get_attribute_value(item) for item in found[0].attribute}
    names = ("treeids", "nodeids", "truenodeids", "falsenodeids")
    lists: list[list[int]] = [list(given.get(f"nodes_{name}", [])) for name in names]
    leaf = [mode == b"LEAF" for mode in given.get("nodes_modes", [])]
    if not leaf or any(len(item) != len(leaf) for item in lists):
        return None
    return Trees(len({*lists[0]}), _depth(lists, leaf))


def _depth(lists: list[list[int]], leaf: list[bool]) -> int:
    """Tests on the longest way to a leaf, or as many as tell how trees were grown.

    Args:
        lists: of every node its tree, its number, and those of its two children.
        leaf: whether a node is one.
    """
    trees, nodes, true, false = lists
    pairs = list(zip(trees, nodes))
    children = {
        (tree, node): [(tree, yes), (tree, no)]
        for tree, node, yes, no, end in zip(trees, nodes, true, false, leaf)
        if not end
    }
    below = {child for both in children.values() for child in both}
    level, depth = set(pairs) - below, 0
    while level and depth <= _BOOSTED_DEPTH:
        level = {child for pair in level for child in children.get(pair, ())}
        depth += bool(level)
    return max(1, depth)
