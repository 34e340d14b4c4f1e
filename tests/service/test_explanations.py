"""POST …/explain: who may, what is asked, what comes, what it costs."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.explanations import Explanations
from models.manifest import Column, Manifest, Tensor
from models.output_policy import OutputPolicy
from sealgate.protocol.tensors import TensorSpec
from security.access.quota_table import Limits
from service.inference.served import Served
from tests.support.ensembles import boosted, forest
from tests.support.patience import in_time, once
from tests.support.rooms import (
    INPUT,
    Rooms,
    centring_model,
    log_model,
    request,
    token,
    unverified,
    wire,
)

WIDTH = 8
COLUMNS = tuple(Column(f"c{i}", -4.0, 4.0) for i in range(WIDTH))
ROW = np.random.default_rng(2).normal(size=(1, WIDTH)).astype(np.float32)


def described(name: str, classes: int, width: int = WIDTH, **changes: Any) -> Manifest:
    columns = COLUMNS[:width] if width <= WIDTH else ()
    inputs = (Tensor(TensorSpec("features", "FP32", (-1, width)), columns=columns),)
    labels = tuple("abcdef"[:classes])
    outputs = (
        Tensor(TensorSpec("scores", "FP32", (-1, classes)), labels=labels),
        Tensor(TensorSpec("label", "INT64", (-1,))),
    )
    return replace(Manifest(name, "1.0.0", inputs, outputs, 64), **changes)


def perceptron(classes: int, width: int = WIDTH, *, softmax: bool = True) -> bytes:
    """features FP32[-1, width] -> scores, label; columns interact."""
    source = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(source.normal(size=shape).astype(np.float32), name)
        for name, shape in (("w1", (width, 16)), ("w2", (16, classes)))
    ]
    last = "Softmax" if softmax else "Identity"
    options = {"axis": 1} if softmax else {}
    nodes = [
        helper.make_node("MatMul", ["features", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["z"]),
        helper.make_node(last, ["z"], ["scores"], **options),
        helper.make_node("ArgMax", ["z"], ["label"], axis=1, keepdims=0),
    ]
    kinds = (("features", width), ("scores", classes))
    features, scores = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
        for name, size in kinds
    )
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"])
    graph = helper.make_graph(nodes, "mlp", [features], [scores, label], weights)
    opset = helper.make_opsetid("", 17)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return bytes(made.SerializeToString())


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    """The toy model, which is linear, and models of every kind."""
    folder = tmp_path_factory.mktemp("explained")
    models = {
        "mlp": (perceptron(3), described("mlp", 3)),
        "logits": (perceptron(3, softmax=False), described("logits", 3)),
        "boosted": (boosted(20, 3, WIDTH)[0], described("boosted", 2)),
        "forest": (forest(20, 4, WIDTH)[0], described("forest", 3)),
        "wide": (perceptron(2, 784), described("wide", 2, 784)),
        "silent": (
            perceptron(3),
            described("silent", 3, output_policy=OutputPolicy(explanations=False)),
        ),
        "labels": (
            perceptron(3),
            described("labels", 3, output_policy=OutputPolicy(label_only=True)),
        ),
        "compared": (
            perceptron(3),
            described(
                "compared",
                3,
                explanations=Explanations(((0.5,) * WIDTH, (-1.0,) * WIDTH)),
            ),
        ),
    }
    admissions = []
    for name, (data, manifest) in models.items():
        (folder / name).mkdir()
        admissions.append(unverified(folder / name, data, manifest))
    return wire(folder / "rooms", admissions=admissions)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    return wire(tmp_path_factory.mktemp("toy"))


def served(rooms: Rooms, name: str) -> Served:
    state = rooms.routes.lineup.find(name)
    assert state is not None
    return state.content


def ask(
    rooms: Rooms,
    model: str,
    rows: np.ndarray = ROW,
    *,
    path: str = "/v2/models/{}/explain",
    scope: str = "explain:{}",
    **parameters: Any,
) -> tuple[int, dict[str, Any]]:
    body = {
        "inputs": [
            {
                "name": "features",
                "datatype": "FP32",
                "shape": list(rows.shape),
                "data": rows.tolist(),
            }
        ],
        "parameters": parameters,
    }
    asked = request(
        "POST",
        path.format(model),
        bearer=token(scope.format(model)),
        body=json.dumps(body).encode(),
    )
    response = asyncio.run(rooms.routes.answer(asked, sealed=True))
    return response.status, json.loads(response.body)


def parts(document: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        item["name"].removeprefix("explanation."): np.reshape(
            item["data"], item["shape"]
        )
        for item in document["outputs"]
    }


def problem(document: dict[str, Any]) -> str:
    return document["type"].rpartition("/")[2]


def values_of(rooms: Rooms, model: str, rows: np.ndarray, which: int) -> np.ndarray:
    """The explained quantity, computed here from what the session gives."""
    import onnxruntime as ort

    (scores,) = served(rooms, model).model.run(
        {"features": rows}, ["scores"], ort.RunOptions()
    )
    wide = scores.astype(np.float64)
    others = np.delete(wide, which, axis=1).sum(axis=1)
    return np.log(wide[:, which]) - np.log(others)


def enumerated(rooms: Rooms, model: str, which: int, reference: float) -> np.ndarray:
    """Shapley values by their definition, over all 2^8 coalitions."""
    masks = np.array(list(itertools.product([False, True], repeat=WIDTH)))
    values = values_of(rooms, model, np.where(masks, ROW, np.float32(reference)), which)
    found = np.zeros(WIDTH)
    for place, mask in enumerate(masks):
        share = 1 / (WIDTH * math.comb(WIDTH - 1, int(mask.sum()) % WIDTH))
        for column in np.flatnonzero(~mask):
            found[column] += share * (
                values[place + (1 << (WIDTH - 1 - column))] - values[place]
            )
    return found


# What comes.


def test_the_answer_and_why(rooms: Rooms) -> None:
    status, document = ask(rooms, "mlp", pairs=100)
    assert status == 200
    found, said = parts(document), document["parameters"]
    which = int(found["class"][0])
    assert which == found["label"][0] == found["scores"].argmax()
    assert (said["method"], said["quantity"], said["exact"]) == (
        "permutations",
        "log_odds",
        False,
    )
    assert said["columns"] == [column.name for column in COLUMNS]
    exact = enumerated(rooms, "mlp", which, 0.0)
    off = np.abs(found["attributions"][0] - exact)
    assert (off <= 5 * found["errors"][0] + 1e-6).all()
    assert 0 < found["errors"].max() < np.abs(exact).max() / 5
    assert said["evaluations"] == 1 + 100 * 2 * (WIDTH - 1)


@pytest.mark.parametrize("model", ["mlp", "logits", "boosted", "forest", "compared"])
def test_additivity(rooms: Rooms, model: str) -> None:
    rows = np.random.default_rng(5).normal(size=(6, WIDTH)).astype(np.float32)
    found = parts(ask(rooms, model, rows)[1])
    total = found["attributions"].sum(axis=1)
    difference = found["value"] - found["reference"]
    assert np.abs(total - difference).max() <= 1e-6


def test_trees_are_exact(rooms: Rooms) -> None:
    document = ask(rooms, "boosted")[1]
    found, said = parts(document), document["parameters"]
    assert (said["method"], said["exact"], said["quantity"]) == (
        "trees",
        True,
        "log_odds",
    )
    exact = enumerated(rooms, "boosted", int(found["class"][0]), 0.0)
    np.testing.assert_allclose(found["attributions"][0], exact, atol=1e-4)
    assert not found["errors"].any()


def test_a_forest_is_explained_in_what_it_adds_up(rooms: Rooms) -> None:
    document = ask(rooms, "forest")[1]
    found, said = parts(document), document["parameters"]
    assert (said["method"], said["quantity"]) == ("trees", "score")
    which = int(found["class"][0])
    assert found["value"][0] == pytest.approx(found["scores"][0, which], abs=1e-5)


def test_a_linear_model_is_exact(toy: Rooms) -> None:
    rows = np.array([[1, 2, 3]], np.float32)
    document = ask(toy, "toy", rows)[1]
    found, said = parts(document), document["parameters"]
    assert (said["method"], said["exact"]) == ("additive", True)
    # The difference of the weights of "yes" and "no", times the distance from 0.
    np.testing.assert_allclose(found["attributions"], [[-2, -0.5, 12]], atol=1e-5)
    assert found["errors"].max() < 1e-5


def test_scores_that_are_no_probabilities(rooms: Rooms) -> None:
    document = ask(rooms, "logits")[1]
    found = parts(document)
    assert document["parameters"]["quantity"] == "score"
    which = int(found["class"][0])
    assert found["value"][0] == pytest.approx(found["scores"][0, which])


@pytest.mark.parametrize("chosen", ["b", 1, "1"])
def test_a_chosen_class(rooms: Rooms, chosen: object) -> None:
    found = parts(ask(rooms, "mlp", **{"class": chosen})[1])
    assert found["class"].tolist() == [1]
    assert found["value"][0] == pytest.approx(values_of(rooms, "mlp", ROW, 1)[0])


def test_the_same_question_has_the_same_answer(rooms: Rooms) -> None:
    assert ask(rooms, "mlp") == ask(rooms, "mlp")


def test_references_of_the_manifest(rooms: Rooms) -> None:
    document = ask(rooms, "compared", pairs=100)[1]
    found = parts(document)
    assert document["parameters"]["references"] == "manifest"
    which = int(found["class"][0])
    both = [enumerated(rooms, "compared", which, value) for value in (0.5, -1.0)]
    off = np.abs(found["attributions"][0] - np.mean(both, axis=0))
    assert (off <= 5 * found["errors"][0] + 1e-6).all()


def test_a_local_model(rooms: Rooms) -> None:
    document = ask(rooms, "mlp", method="local", samples=2000)[1]
    found = parts(document)
    assert document["parameters"]["method"] == "local"
    assert 0 < found["fit"][0] <= 1
    assert document["parameters"]["evaluations"] == 2001


def test_values_that_are_missing(rooms: Rooms) -> None:
    from sealgate.protocol import binary_tensors

    rows = ROW.copy()
    rows[0, 3] = np.nan
    document, tensors = binary_tensors.encode_request({"features": rows})
    head = json.dumps(document).encode()
    asked = request(
        "POST",
        "/v2/models/boosted/explain",
        bearer=token("explain:boosted"),
        headers=((binary_tensors.HEADER_LENGTH, str(len(head)).encode()),),
        body=b"".join((head, *tensors)),
    )
    response = asyncio.run(rooms.routes.answer(asked, sealed=True))
    assert response.status == 200
    lengths = [v for n, v in response.headers if n == binary_tensors.HEADER_LENGTH]
    head, tail = binary_tensors.split(response.body, lengths)
    found = binary_tensors.decode_response(json.loads(bytes(head)), tail)
    total = found["explanation.attributions"].sum()
    difference = found["explanation.value"] - found["explanation.reference"]
    assert total == pytest.approx(float(difference[0]), abs=1e-6)


def mixed_inputs() -> tuple[bytes, Manifest]:
    """codes INT64[-1,2], size FP32[-1] -> number FP32[-1]: a product, and a sum."""
    nodes = [
        helper.make_node("Cast", ["codes"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceProd", ["numbers"], ["product"], axes=[1], keepdims=0),
        helper.make_node("Add", ["product", "size"], ["number"]),
    ]
    infos = [
        helper.make_tensor_value_info("codes", TensorProto.INT64, ["rows", 2]),
        helper.make_tensor_value_info("size", TensorProto.FLOAT, ["rows"]),
        helper.make_tensor_value_info("number", TensorProto.FLOAT, ["rows"]),
    ]
    graph = helper.make_graph(nodes, "mixed", infos[:2], infos[2:])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    kinds = tuple(Column(name, 0.0, 3.0, tuple("pqrs")) for name in "ab")
    inputs = (
        Tensor(TensorSpec("codes", "INT64", (-1, 2)), columns=kinds),
        Tensor(TensorSpec("size", "FP32", (-1,)), bounds=(0.0, 4.0)),
    )
    outputs = (Tensor(TensorSpec("number", "FP32", (-1,))),)
    return model.SerializeToString(), Manifest("mixed", "1.0.0", inputs, outputs, 64)


@pytest.mark.parametrize(
    ("rows", "status"), [((1, 1), 200), ((2, 2), 200), ((0, 0), 400), ((1, 2), 400)]
)
def test_several_inputs_and_a_number(
    tmp_path: Path, rows: tuple[int, int], status: int
) -> None:
    (tmp_path / "m").mkdir()
    admission = unverified(tmp_path / "m", *mixed_inputs())
    rooms = wire(tmp_path / "rooms", admissions=[admission])
    inputs = [
        {
            "name": "codes",
            "datatype": "INT64",
            "shape": [rows[0], 2],
            "data": [3, 2] * rows[0],
        },
        {
            "name": "size",
            "datatype": "FP32",
            "shape": [rows[1]],
            "data": [5.0] * rows[1],
        },
    ]
    asked = request(
        "POST",
        "/v2/models/mixed/explain",
        bearer=token("explain:mixed"),
        body=json.dumps({"inputs": inputs, "parameters": {"pairs": 50}}).encode(),
    )
    response = asyncio.run(rooms.routes.answer(asked, sealed=True))
    assert response.status == status
    if status != 200:
        return
    document = json.loads(response.body)
    found, said = parts(document), document["parameters"]
    assert said["columns"] == ["a", "b", "size"]
    assert "class" not in found
    # Against codes 1, 1 and 2: 3 * 2 + 5 less 1 * 1 + 2; the product is shared.
    assert found["value"][0] - found["reference"][0] == 8
    assert found["attributions"][0, 2] == pytest.approx(3, abs=1e-5)
    assert found["attributions"][0].sum() == pytest.approx(8, abs=1e-6)
    exact = [(2 + 4) / 2, (1 + 3) / 2]
    off = np.abs(found["attributions"][0, :2] - exact)
    assert (off <= 5 * found["errors"][0, :2]).all()


def test_one_column(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    manifest = described("one", 2, 1)
    admission = unverified(tmp_path / "m", perceptron(2, 1), manifest)
    rooms = wire(tmp_path / "rooms", admissions=[admission])
    status, document = ask(rooms, "one", np.ones((3, 1), np.float32))
    found = parts(document)
    assert (status, document["parameters"]["exact"]) == (200, True)
    difference = found["value"] - found["reference"]
    np.testing.assert_allclose(found["attributions"][:, 0], difference)


def beyond(nodes: list[Any], before: str) -> list[Any]:
    """What adds the product of the first two columns, where that is above 16."""
    return [
        *nodes,
        helper.make_node("Gather", ["features", "first"], ["x0"], axis=1),
        helper.make_node("Gather", ["features", "second"], ["x1"], axis=1),
        helper.make_node("Mul", ["x0", "x1"], ["product"]),
        helper.make_node("Sub", ["product", "most"], ["above"]),
        helper.make_node("Relu", ["above"], ["excess"]),
        helper.make_node("Add", [before, "excess"], ["number"]),
    ]


def strange(kind: str) -> bytes:
    """Trees, or a sum, within the public ranges; something else beyond them."""
    first = helper.make_node("Gather", ["features", "first"], ["sum"], axis=1)
    if kind == "trees":
        first = helper.make_node(
            "TreeEnsembleRegressor",
            ["features"],
            ["sum"],
            domain="ai.onnx.ml",
            n_targets=1,
            nodes_treeids=[0, 0, 0],
            nodes_nodeids=[0, 1, 2],
            nodes_featureids=[2, 0, 0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
            nodes_values=[0.5, 0.0, 0.0],
            nodes_truenodeids=[1, 0, 0],
            nodes_falsenodeids=[2, 0, 0],
            target_treeids=[0, 0],
            target_nodeids=[1, 2],
            target_ids=[0, 0],
            target_weights=[-1.0, 2.0],
        )
    nodes = beyond([first], "sum")
    stored = [
        numpy_helper.from_array(np.array([0]), "first"),
        numpy_helper.from_array(np.array([1]), "second"),
        numpy_helper.from_array(np.array([16], np.float32), "most"),
    ]
    features, number = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
        for name, width in (("features", WIDTH), ("number", 1))
    )
    graph = helper.make_graph(nodes, "strange", [features], [number], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("kind", ["additive", "trees"])
def test_no_answer_is_called_exact_that_is_not(tmp_path: Path, kind: str) -> None:
    """The first runs were within public ranges, and showed what is not so beyond."""
    inputs = (Tensor(TensorSpec("features", "FP32", (-1, WIDTH)), columns=COLUMNS),)
    outputs = (Tensor(TensorSpec("number", "FP32", (-1, 1))),)
    manifest = Manifest("strange", "1.0.0", inputs, outputs, 64)
    (tmp_path / "m").mkdir()
    admission = unverified(tmp_path / "m", strange(kind), manifest)
    rooms = wire(tmp_path / "rooms", admissions=[admission])
    inside = ask(rooms, "strange")[1]["parameters"]
    assert (inside["method"], inside["exact"]) == (kind, True)
    status, document = ask(rooms, "strange", np.full((1, WIDTH), 10, np.float32))
    found, said = parts(document), document["parameters"]
    assert (status, said["method"], said["exact"]) == (200, "permutations", False)
    assert said["pairs"] == 1
    total = found["attributions"].sum()
    assert total == pytest.approx(float(found["value"][0] - found["reference"][0]))
    assert found["errors"][0, :2].min() > 1


# Who may.


@pytest.mark.parametrize(
    ("scope", "status", "code"),
    [
        ("infer:{}", 403, "insufficient-scope"),
        ("metadata:{}", 403, "insufficient-scope"),
        ("explain:other", 404, "not-found"),
        ("explain:*", 200, ""),
    ],
)
def test_needs_its_own_scope(rooms: Rooms, scope: str, status: int, code: str) -> None:
    answered, document = ask(rooms, "mlp", scope=scope)
    assert answered == status
    assert not code or problem(document) == code


def test_its_scope_infers_nothing(rooms: Rooms) -> None:
    path = "/v2/models/{}/infer"
    status, document = ask(rooms, "mlp", path=path)
    assert (status, problem(document)) == (403, "insufficient-scope")


def test_a_version_by_name(rooms: Rooms) -> None:
    assert ask(rooms, "mlp", path="/v2/models/{}/versions/1.0.0/explain")[0] == 200
    assert ask(rooms, "mlp", path="/v2/models/{}/versions/2.0.0/explain")[0] == 404


@pytest.mark.parametrize("model", ["silent", "labels"])
def test_an_output_policy_forbids_it(rooms: Rooms, model: str) -> None:
    status, document = ask(rooms, model)
    assert (status, problem(document)) == (403, "explanations-forbidden")


def test_its_record_says_explain_and_what_it_counted_as(rooms: Rooms) -> None:
    document = ask(rooms, "mlp")[1]
    record = json.loads(rooms.records.splitlines()[-1])
    text = json.dumps(record)
    assert '"explain"' in text
    assert str(document["parameters"]["evaluations"]) in text
    totals = rooms.routes.metrics.totals()
    assert totals["sealgate_requests", "mlp", "1.0.0", "explain", "200"][0] >= 1


# What cannot be explained, or asked.


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"method": "guess"}, "method: one of"),
        ({"method": ["shapley"]}, "method: one of"),
        ({"pairs": 1}, "pairs: expected 2 to 100"),
        ({"pairs": 10**30}, "pairs: expected"),
        ({"pairs": True}, "pairs: expected"),
        ({"pairs": 2.0}, "pairs: expected"),
        ({"samples": 0}, "samples: expected"),
        ({"class": "z"}, "class: expected"),
        ({"class": 3}, "class: expected"),
        ({"class": -1}, "class: expected"),
        ({"class": "9" * 5000}, "class: expected"),
        ({"class": {}}, "class: expected"),
    ],
)
def test_malformed_questions(
    rooms: Rooms, parameters: dict[str, Any], words: str
) -> None:
    status, document = ask(rooms, "mlp", **parameters)
    assert status == 400
    assert words in document["detail"]


def test_more_than_one_request_may_ask(rooms: Rooms) -> None:
    rows = np.zeros((64, WIDTH), np.float32)
    status, document = ask(rooms, "mlp", rows, pairs=100)
    assert status == 400
    assert "at most 65536" in document["detail"]


def test_nearby_rows_are_bounded_by_their_values(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    columns = tuple(Column(f"c{i}", -4.0, 4.0) for i in range(200))
    manifest = described("broad", 2, 200)
    inputs = (replace(manifest.inputs[0], columns=columns),)
    manifest = replace(manifest, inputs=inputs)
    admission = unverified(tmp_path / "m", perceptron(2, 200), manifest)
    rooms = wire(tmp_path / "rooms", admissions=[admission])
    row = np.zeros((1, 200), np.float32)
    assert ask(rooms, "broad", row, method="local", samples=2600)[0] == 200
    status, document = ask(rooms, "broad", row, method="local", samples=2700)
    assert (status, document["detail"]) == (
        400,
        "samples: at most 2621 of so many columns",
    )


def test_an_image_has_too_many_values(rooms: Rooms) -> None:
    status, document = ask(rooms, "wide", np.zeros((1, 784), np.float32))
    assert (status, problem(document)) == (400, "not-explainable")
    assert "784 values in a row, at most 256" in document["detail"]


@pytest.mark.parametrize(
    ("make", "words"),
    [(log_model, "no reference row"), (centring_model, "change each other's")],
)
def test_models_that_cannot_be(tmp_path: Path, make: Any, words: str) -> None:
    admission = make(tmp_path)
    if make is centring_model:
        manifest = admission.bundle.manifest
        bundle = replace(
            admission.bundle,
            manifest=replace(manifest, explanations=Explanations(((0.0, 0.0, 0.0),))),
        )
        admission = replace(admission, bundle=bundle)
    rooms = wire(tmp_path / "rooms", admissions=[admission])
    error = served(rooms, "odd").explainer
    assert isinstance(error, Exception)
    assert words in str(error)


def test_texts_are_not_explained(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("features", TensorProto.STRING, ["rows"])
    y = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])
    node = helper.make_node(
        "LabelEncoder",
        ["features"],
        ["scores"],
        domain="ai.onnx.ml",
        keys_strings=["a"],
        values_floats=[1.0],
    )
    graph = helper.make_graph([node], "text", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    manifest = Manifest(
        "text",
        "1.0.0",
        (Tensor(TensorSpec("features", "BYTES", (-1,))),),
        (Tensor(TensorSpec("scores", "FP32", (-1,))),),
        64,
    )
    admission = unverified(tmp_path, model.SerializeToString(), manifest)
    rooms = wire(tmp_path / "rooms", admissions=[admission])
    assert "only numbers and codes" in str(served(rooms, "text").explainer)


# What it costs.


def test_evaluations_are_rows_of_a_quota(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    admission = unverified(tmp_path / "m", perceptron(3), described("mlp", 3))
    limits = Limits(
        requests_per_minute=10**6,
        requests_per_day=10**6,
        rows_per_minute=300,
        rows_per_day=10**9,
        concurrent_requests=10,
    )
    rooms = wire(tmp_path / "rooms", admissions=[admission], limits=limits)
    # 141 each: two are paid for, a third is not.
    assert [ask(rooms, "mlp")[0] for _ in range(3)] == [200, 200, 429]
    status, document = ask(rooms, "mlp", pairs=100)
    assert (status, document["detail"]) == (
        429,
        "this request is larger than the quota: rows-per-minute",
    )


def test_no_request_holds_the_event_loop(rooms: Rooms) -> None:
    """The largest one of each kind, beside a clock that ticks."""
    once(lambda: held_by_the_largest(rooms))


def held_by_the_largest(rooms: Rooms) -> None:
    rows = np.random.default_rng(0).normal(size=(46, WIDTH)).astype(np.float32)
    gaps: list[float] = []

    async def tick(stop: asyncio.Event) -> None:
        last = time.perf_counter()
        while not stop.is_set():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    async def run() -> None:
        stop = asyncio.Event()
        ticking = asyncio.create_task(tick(stop))
        for model, parameters in largest():
            content = json.dumps(
                {
                    "inputs": [
                        {
                            "name": "features",
                            "datatype": "FP32",
                            "shape": list(rows.shape),
                            "data": rows.tolist(),
                        }
                    ],
                    "parameters": parameters,
                }
            ).encode()
            asked = request(
                "POST",
                f"/v2/models/{model}/explain",
                bearer=token(f"explain:{model}"),
                body=content,
            )
            response = await rooms.routes.answer(asked, sealed=True)
            assert response.status == 200, response.body
        stop.set()
        await ticking

    def largest() -> Iterator[tuple[str, dict[str, Any]]]:
        yield "mlp", {"pairs": 100}
        yield "mlp", {"method": "local", "samples": 1400}
        yield "boosted", {}

    asyncio.run(run())
    # Of a busy machine the median is not ours; the 95th percentile of gaps would be.
    in_time(0.0, 0.05, now=sorted(gaps)[int(len(gaps) * 0.95)])


def test_the_plain_input_of_other_tests(toy: Rooms) -> None:
    """What infer takes, explain takes."""
    asked = request(
        "POST",
        "/v2/models/toy/explain",
        bearer=token("explain:toy"),
        body=json.dumps({"id": "7", "inputs": [INPUT]}).encode(),
    )
    response = asyncio.run(toy.routes.answer(asked, sealed=True))
    document = json.loads(response.body)
    assert (response.status, document["id"]) == (200, "7")
