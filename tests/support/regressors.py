"""Models that predict a number, fitted by scikit-learn and written as ONNX."""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import helper
from sklearn.datasets import load_diabetes
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge

from tests.support.scanned import onnx_model

ML = [("ai.onnx.ml", 3)]
TRAINED = 242


@cache
def diabetes() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Features, the disease's progression, and the columns; in a random order."""
    data = load_diabetes(scaled=False)
    order = np.random.default_rng(0).permutation(len(data.data))
    names = tuple(data.feature_names)
    return data.data[order].astype(np.float32), data.target[order], names


@cache
def ridge() -> Ridge:
    x, y, _ = diabetes()
    return Ridge().fit(x[:TRAINED], y[:TRAINED])


@cache
def boosted() -> GradientBoostingRegressor:
    x, y, _ = diabetes()
    model = GradientBoostingRegressor(n_estimators=40, random_state=0)
    return model.fit(x[:TRAINED], y[:TRAINED])


def linear_regressor(weights, bias) -> bytes:
    """As exporters write a linear model: the operator itself says what it is."""
    weights = np.asarray(weights, float)
    made = helper.make_node(
        "LinearRegressor",
        ["x"],
        ["variable"],
        domain="ai.onnx.ml",
        coefficients=weights.tolist(),
        intercepts=[float(bias)],
    )
    return onnx_model(
        [made], {}, shape=[len(weights)], outputs=("variable",), domains=ML
    )


@cache
def forest() -> RandomForestRegressor:
    """Trees that are grown to the end: they know their rows by heart."""
    x, y, _ = diabetes()
    model = RandomForestRegressor(n_estimators=60, random_state=0)
    return model.fit(x[:TRAINED], y[:TRAINED])


def tree_regressor(model: GradientBoostingRegressor | RandomForestRegressor) -> bytes:
    """The trees of a boosted regression or a forest, as one operator."""
    boosts = isinstance(model, GradientBoostingRegressor)
    share = model.learning_rate if boosts else 1 / len(model.estimators_)
    base = float(model.init_.constant_[0, 0]) if boosts else 0.0
    columns = ("treeids", "nodeids", "featureids", "values", "modes")
    nodes: dict[str, list] = {f"nodes_{name}": [] for name in columns}
    nodes |= {"nodes_truenodeids": [], "nodes_falsenodeids": []}
    leaves: dict[str, list] = {
        f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")
    }
    for number, estimator in enumerate(np.ravel(model.estimators_)):
        tree = estimator.tree_
        for place in range(tree.node_count):
            leaf = tree.children_left[place] < 0
            nodes["nodes_treeids"].append(number)
            nodes["nodes_nodeids"].append(place)
            nodes["nodes_featureids"].append(0 if leaf else int(tree.feature[place]))
            nodes["nodes_values"].append(0.0 if leaf else float(tree.threshold[place]))
            nodes["nodes_modes"].append("LEAF" if leaf else "BRANCH_LEQ")
            true, false = tree.children_left[place], tree.children_right[place]
            nodes["nodes_truenodeids"].append(0 if leaf else int(true))
            nodes["nodes_falsenodeids"].append(0 if leaf else int(false))
            if leaf:
                leaves["target_treeids"].append(number)
                leaves["target_nodeids"].append(place)
                leaves["target_ids"].append(0)
                value = float(tree.value[place, 0, 0]) * share
                leaves["target_weights"].append(value)
    made = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["variable"],
        domain="ai.onnx.ml",
        n_targets=1,
        base_values=[base],
        **nodes,
        **leaves,
    )
    width = model.n_features_in_
    return onnx_model([made], {}, shape=[width], outputs=("variable",), domains=ML)
