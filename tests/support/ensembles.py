"""Tree ensembles of scikit-learn as ONNX, as converters write them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper


def onnx_trees(
    trees: list[Any],
    *,
    columns: int,
    weights: Any,
    targets: int,
    base: list[float] | None = None,
    transform: str = "NONE",
    labels: int = 0,
    aggregate: str = "SUM",
) -> bytes:
    """A model features FP32[-1, columns] -> label and scores, or predictions.

    Args:
        trees: ``tree_`` of fitted estimators.
        columns: of a row.
        weights: given a tree and a leaf, pairs of target and weight.
        targets: sums that leaves add to.
        base: of each sum.
        transform: of the scores.
        labels: classes; none for a regressor.
        aggregate: of a regressor.
    """
    kind = "class" if labels else "target"
    held: dict[str, list[Any]] = {}

    def add(name: str, *values: Any) -> None:
        held.setdefault(name, []).extend(values)

    for index, tree in enumerate(trees):
        for node in range(tree.node_count):
            leaf = tree.children_left[node] < 0
            add("nodes_treeids", index)
            add("nodes_nodeids", node)
            add("nodes_featureids", 0 if leaf else int(tree.feature[node]))
            add("nodes_modes", "LEAF" if leaf else "BRANCH_LEQ")
            # Above the threshold in 64 bits is above it in 32: round down.
            add("nodes_values", 0.0 if leaf else _below(tree.threshold[node]))
            add("nodes_truenodeids", 0 if leaf else int(tree.children_left[node]))
            add("nodes_falsenodeids", 0 if leaf else int(tree.children_right[node]))
            add("nodes_missing_value_tracks_true", int(not leaf and node % 2))
            for target, weight in weights(tree, node) if leaf else ():
                add(f"{kind}_treeids", index)
                add(f"{kind}_nodeids", node)
                add(f"{kind}_ids", target)
                add(f"{kind}_weights", float(weight))
    if base is not None:
        held["base_values"] = base
    if labels:
        held["classlabels_int64s"] = list(range(labels))
        node = helper.make_node(
            "TreeEnsembleClassifier",
            ["features"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            post_transform=transform,
            **held,
        )
        outputs = [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info(
                "scores", TensorProto.FLOAT, ["rows", labels]
            ),
        ]
    else:
        node = helper.make_node(
            "TreeEnsembleRegressor",
            ["features"],
            ["predictions"],
            domain="ai.onnx.ml",
            n_targets=targets,
            aggregate_function=aggregate,
            **held,
        )
        outputs = [
            helper.make_tensor_value_info(
                "predictions", TensorProto.FLOAT, ["rows", targets]
            )
        ]
    features = helper.make_tensor_value_info(
        "features", TensorProto.FLOAT, ["rows", columns]
    )
    graph = helper.make_graph([node], "trees", [features], outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(made.SerializeToString())


def boosted(count: int, depth: int, columns: int, seed: int = 0) -> tuple[bytes, Any]:
    """A boosted classifier of two classes, and scikit-learn's own."""
    from sklearn.ensemble import GradientBoostingClassifier

    random = np.random.default_rng(seed)
    rows = random.normal(size=(500, columns)).astype(np.float32)
    labels = (rows[:, 0] * rows[:, 1] + rows[:, 2] > 0).astype(int)
    model = GradientBoostingClassifier(
        n_estimators=count, max_depth=depth, random_state=seed
    ).fit(rows, labels)
    share = float(labels.mean())
    data = onnx_trees(
        [tree[0].tree_ for tree in model.estimators_],
        columns=columns,
        weights=lambda tree, leaf: [(0, 0.1 * tree.value[leaf, 0, 0])],
        targets=1,
        base=[float(np.log(share / (1 - share)))],
        transform="LOGISTIC",
        labels=2,
    )
    return data, model


def forest(count: int, depth: int, columns: int, classes: int = 3) -> tuple[bytes, Any]:
    """A random forest, whose scores are the means of its leaves' shares."""
    from sklearn.ensemble import RandomForestClassifier

    random = np.random.default_rng(1)
    rows = random.normal(size=(400, columns)).astype(np.float32)
    labels = np.digitize(rows[:, 0] + rows[:, 1] * rows[:, 2], [-0.5, 0.5])
    labels = np.minimum(labels, classes - 1)
    model = RandomForestClassifier(
        n_estimators=count, max_depth=depth, random_state=0
    ).fit(rows, labels)
    data = onnx_trees(
        [tree.tree_ for tree in model.estimators_],
        columns=columns,
        weights=lambda tree, leaf: [
            (i, share / count) for i, share in enumerate(tree.value[leaf, 0])
        ],
        targets=classes,
        labels=classes,
    )
    return data, model


def _below(threshold: float) -> float:
    rounded = np.float32(threshold)
    return float(
        np.nextafter(rounded, np.float32(-np.inf)) if rounded > threshold else rounded
    )
