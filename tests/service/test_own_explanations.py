"""POST …/explain of a model that gives contributions beside its answer."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.additive import AdditiveClassifier
from models.errors import ManifestError
from models.explanations import Explanations
from models.export import export_onnx
from models.manifest import Manifest
from models.output_policy import OutputPolicy
from tests.support.additive import COLUMNS, additive_model, made_up
from tests.support.rooms import Rooms, request, token, unverified, wire

ROWS = np.array([[33, 500, 1], [71, 9999, 0], [5, 20, 7]], dtype=np.float32)
REFERENCE = (50.0, 5000.0, 2.0)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    folder = tmp_path_factory.mktemp("own")
    data, manifest = additive_model()
    named = Explanations((REFERENCE,), contributions="contributions")
    models = {
        "own": manifest,
        "named": replace(manifest, name="named", explanations=named),
        "silent": replace(
            manifest, name="silent", output_policy=OutputPolicy(explanations=False)
        ),
        "rounded": replace(
            manifest, name="rounded", output_policy=OutputPolicy(decimals=2)
        ),
    }
    admissions = []
    for name, described in models.items():
        (folder / name).mkdir()
        admissions.append(unverified(folder / name, data, described))
    return wire(folder / "rooms", admissions=admissions)


def ask(
    rooms: Rooms, model: str, verb: str = "explain", **more: Any
) -> tuple[int, dict[str, Any]]:
    values = {"datatype": "FP32", "shape": list(ROWS.shape), "data": ROWS.tolist()}
    body = {"inputs": [{"name": "features", **values}], **more}
    asked = request(
        "POST",
        f"/v2/models/{model}/{verb}",
        bearer=token(f"{verb}:{model}"),
        body=json.dumps(body).encode(),
    )
    response = asyncio.run(rooms.routes.answer(asked, sealed=True))
    return response.status, json.loads(response.body)


def tensors(document: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {
        item["name"]: np.reshape(item["data"], item["shape"])
        for item in document["outputs"]
    }


def contributions(rows: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        _, _, found = made_up()(torch.tensor(rows, dtype=torch.float32))
    return found.numpy().astype(np.float64)


@pytest.mark.parametrize("which", [0, 1])
def test_exact_and_for_no_more_than_the_answer(rooms: Rooms, which: int) -> None:
    status, document = ask(rooms, "named", parameters={"class": which})
    assert status == 200
    said, found = document["parameters"], tensors(document)
    assert (said["method"], said["exact"], said["evaluations"]) == ("additive", True, 3)
    sign = 1 if which else -1
    wanted = sign * (contributions(ROWS) - contributions([REFERENCE]))
    given = found["explanation.attributions"]
    assert np.allclose(given, wanted, atol=1e-6)
    assert not found["explanation.errors"].any()
    gap = found["explanation.value"] - found["explanation.reference"]
    assert np.abs(given.sum(axis=1) - gap).max() < 1e-9
    odds = np.log(
        found["probabilities"][:, which] / found["probabilities"][:, 1 - which]
    )
    assert np.allclose(found["explanation.value"], odds, atol=1e-4)


def test_against_midpoints_too(rooms: Rooms) -> None:
    status, document = ask(rooms, "own")
    assert status == 200
    assert document["parameters"]["references"] == "midpoints"
    assert document["parameters"]["evaluations"] == 3


def test_inference_gives_them_beside_the_answer(rooms: Rooms) -> None:
    status, document = ask(rooms, "own", "infer")
    assert status == 200
    found = tensors(document)
    odds = np.log(found["probabilities"][:, 1] / found["probabilities"][:, 0])
    assert np.allclose(found["contributions"].sum(axis=1) + 0.25, odds, atol=1e-5)


@pytest.mark.parametrize("model", ["silent", "rounded"])
def test_they_leave_nowhere_where_explanations_do_not(rooms: Rooms, model: str) -> None:
    status, document = ask(rooms, model, "infer")
    assert status == 200
    assert set(tensors(document)) == {"probabilities", "label"}
    asked = [{"name": "contributions"}]
    assert ask(rooms, model, "infer", outputs=asked)[0] == 400
    status, document = ask(rooms, model)
    assert (status, document["type"].rpartition("/")[2]) == (
        403,
        "explanations-forbidden",
    )


def test_a_manifest_that_names_what_is_none(tmp_path: Path) -> None:
    _, manifest = additive_model()
    assert Manifest.from_json(manifest.to_json()) == manifest
    for name, why in (("more", "not one of"), ("label", "not a number for each")):
        wrong = replace(manifest, explanations=Explanations(contributions=name))
        with pytest.raises(ManifestError, match=why):
            Manifest.from_json(wrong.to_json())


class Lying(AdditiveClassifier):
    """Says twice what it adds."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        probabilities, label, contributions = super().forward(features)
        return probabilities, label, 2 * contributions


def test_contributions_that_do_not_add_up_are_not_believed(tmp_path: Path) -> None:
    """Answers are asked for instead, which costs a pair of permutations."""
    lying = Lying(COLUMNS, bins=9)
    lying.load_state_dict(made_up().state_dict())
    _, manifest = additive_model("lying")
    (tmp_path / "m").mkdir()
    made = unverified(tmp_path / "m", export_onnx(lying, COLUMNS), manifest)
    rooms = wire(tmp_path / "rooms", admissions=[made])
    status, document = ask(rooms, "lying")
    assert status == 200
    assert document["parameters"]["method"] == "additive"
    assert document["parameters"]["evaluations"] == 3 * (1 + 2 * 2)
    middles = [[50.0, 5000.5, 1.0]]
    wanted = contributions(ROWS) - contributions(middles)
    found = tensors(document)
    sign = 2 * found["explanation.class"][:, None] - 1
    given = sign * found["explanation.attributions"]
    assert np.allclose(given, wanted, atol=1e-4)
