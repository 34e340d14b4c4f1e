"""models.trees and models.graph: exact, and nothing that is no tree gets through."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from onnx import helper, load_model_from_string

from models import graph
from models.sessions import make_session
from models.trees import TreeEnsemble, compile_trees
from tests.support.ensembles import boosted, forest, onnx_trees

COLUMNS = 8


@pytest.fixture(scope="module")
def boosting() -> bytes:
    return boosted(12, 3, COLUMNS)[0]


def enumerated(ensemble: TreeEnsemble, row, reference, weights) -> np.ndarray:
    """By the definition, over all 2^8 coalitions."""

    def value(mixed) -> float:
        return float(weights[ensemble.reached(ensemble.passed(mixed))].sum())

    columns = range(COLUMNS)
    values = {
        which: value(np.where(np.isin(columns, which), row, reference))
        for size in range(COLUMNS + 1)
        for which in itertools.combinations(columns, size)
    }
    found = np.zeros(COLUMNS)
    for which, before in values.items():
        share = 1 / (COLUMNS * math.comb(COLUMNS - 1, len(which) % COLUMNS))
        for column in set(columns) - {*which}:
            found[column] += share * (values[tuple(sorted((*which, column)))] - before)
    return found


def explained(ensemble: TreeEnsemble, row, reference, weights) -> np.ndarray:
    passed, others = ensemble.passed(row), ensemble.passed(reference)
    return ensemble.attributions(passed, others, weights)


@pytest.mark.parametrize("make", [boosted, forest])
def test_equals_enumeration(make) -> None:
    ensemble = compile_trees(make(8, 4, COLUMNS)[0], COLUMNS)
    source = np.random.default_rng(3)
    for target in range(ensemble.leaves.shape[1]):
        weights = ensemble.leaves[:, target]
        row, reference = source.normal(size=(2, COLUMNS)).astype(np.float32)
        row[5] = np.nan
        np.testing.assert_allclose(
            explained(ensemble, row, reference, weights),
            enumerated(ensemble, row, reference, weights),
            atol=1e-12,
        )


def test_equals_the_library_shap(boosting: bytes) -> None:
    shap = pytest.importorskip("shap")
    data, model = boosted(12, 3, COLUMNS)
    ensemble = compile_trees(data, COLUMNS)
    source = np.random.default_rng(4)
    rows, reference = source.normal(size=(5, COLUMNS)), np.zeros((1, COLUMNS))
    theirs = shap.TreeExplainer(
        model, data=reference, feature_perturbation="interventional"
    ).shap_values(rows)
    ours = [
        explained(ensemble, *np.float32([row, reference[0]]), ensemble.leaves[:, 0])
        for row in rows
    ]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_sums_are_the_models() -> None:
    data, model = boosted(12, 3, COLUMNS)
    ensemble = compile_trees(data, COLUMNS)
    rows = np.random.default_rng(5).normal(size=(50, COLUMNS)).astype(np.float32)
    sums = [
        ensemble.leaves[ensemble.reached(ensemble.passed(row))].sum() for row in rows
    ]
    theirs = model.decision_function(rows)
    np.testing.assert_allclose(sums - theirs, (sums - theirs)[0], atol=1e-6)


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE"])
def test_regressors(aggregate: str) -> None:
    from sklearn.tree import DecisionTreeRegressor

    source = np.random.default_rng(6)
    rows = source.normal(size=(200, COLUMNS)).astype(np.float32)
    trees = [
        DecisionTreeRegressor(max_depth=4, random_state=i).fit(rows, rows[:, i] ** 2)
        for i in range(3)
    ]
    data = onnx_trees(
        [tree.tree_ for tree in trees],
        columns=COLUMNS,
        weights=lambda tree, leaf: [(0, tree.value[leaf, 0, 0])],
        targets=1,
        aggregate=aggregate,
    )
    ensemble = compile_trees(data, COLUMNS)
    (given,) = make_session(data).run(None, {"features": rows})
    sums = [
        ensemble.leaves[ensemble.reached(ensemble.passed(row))].sum() for row in rows
    ]
    np.testing.assert_allclose(sums, given[:, 0], atol=1e-5)


# What is no ensemble over raw columns is none; it is explained otherwise.


def changed(data: bytes, name: str, values) -> bytes:
    model = load_model_from_string(data)
    (node,) = model.graph.node
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if values is not None:
        node.attribute.append(helper.make_attribute(name, values))
    return model.SerializeToString()


def stated(data: bytes, name: str) -> list:
    (node,) = load_model_from_string(data).graph.node
    (found,) = (item for item in node.attribute if item.name == name)
    return list(helper.get_attribute_value(found))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("nodes_values", lambda old: None),
        ("nodes_values", lambda old: old[1:]),
        ("nodes_modes", lambda old: ["BRANCH_XOR", *old[1:]]),
        ("nodes_featureids", lambda old: [COLUMNS, *old[1:]]),
        ("nodes_featureids", lambda old: [-1, *old[1:]]),
        ("nodes_truenodeids", lambda old: [10**6, *old[1:]]),
        ("nodes_truenodeids", lambda old: [0, *old[1:]]),
        ("nodes_nodeids", lambda old: [old[1], *old[1:]]),
        ("class_weights", lambda old: old[1:]),
        ("class_weights", lambda old: None),
        ("nodes_modes", lambda old: ["LEAF"] * len(old)),
    ],
)
def test_refuses_what_is_no_tree(boosting: bytes, name: str, change) -> None:
    data = changed(boosting, name, change(stated(boosting, name)))
    assert compile_trees(data, COLUMNS) is None


def test_nodes_that_share_children_do_not_multiply() -> None:
    # Each node's children are both the next one: 2^40 paths in 40 nodes.
    depth = 40
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        nodes_treeids=[0] * (depth + 1),
        nodes_nodeids=list(range(depth + 1)),
        nodes_featureids=[0] * (depth + 1),
        nodes_modes=["BRANCH_LEQ"] * depth + ["LEAF"],
        nodes_values=[0.0] * (depth + 1),
        nodes_truenodeids=[*range(1, depth + 1), 0],
        nodes_falsenodeids=[*range(1, depth + 1), 0],
        target_treeids=[0],
        target_nodeids=[depth],
        target_ids=[0],
        target_weights=[1.0],
    )
    made = helper.make_model(helper.make_graph([node], "dag", [], []))
    assert compile_trees(made.SerializeToString(), 1) is None


def test_no_bytes_make_the_reader_fail(boosting: bytes) -> None:
    source = random.Random(7)
    for _ in range(300):
        data = bytearray(boosting)
        for _ in range(source.randint(1, 8)):
            data[source.randrange(len(data))] = source.randrange(256)
        end = source.choice([len(data), source.randrange(len(data))])
        compile_trees(bytes(data[:end]), COLUMNS)
    assert graph.nodes(b"\xff" * 64) == []
    assert graph.nodes(b"") == []


def test_reads_what_onnx_reads(boosting: bytes) -> None:
    (node,) = graph.nodes(boosting)
    (theirs,) = load_model_from_string(boosting).graph.node
    assert (node.operator, node.inputs) == (theirs.op_type, tuple(theirs.input))
    assert node.outputs == tuple(theirs.output)
    for item in theirs.attribute:
        value = helper.get_attribute_value(item)
        ours = graph.attributes(node)[item.name]
        assert ours == (value if isinstance(value, int | bytes) else list(value))
