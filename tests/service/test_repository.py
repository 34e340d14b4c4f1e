"""service.repository: what callers are told of all models, and who is told what."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.bundle import read_bundle
from security.access.permissions import Grant, Permissions
from security.admission.gate import Admission, verify
from tests.support.bundles import Keys, policy, write_bundle
from tests.support.rooms import Rooms, lookup_model, request, token, wire

INPUT = {"name": "features", "datatype": "FP32", "shape": [2, 3], "data": [1] * 6}


def versions(folder: Path) -> list[Admission]:
    """Two versions of toy, and a model of another name."""
    keys, found = Keys.generate(), []
    for name, version in (("toy", "1.0.0"), ("toy", "2.0.0"), ("other", "1.0.0")):
        place = folder / f"{name}-{version}"
        bundle = read_bundle(write_bundle(place, keys, name=name, version=version))
        found.append(verify(bundle, policy(), keys.trust, now=datetime.now(UTC)))
    return found


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    folder = tmp_path_factory.mktemp("repository")
    grant = Grant(
        "reads one version",
        scopes=frozenset({"reader"}),
        models=frozenset({"toy"}),
        versions=frozenset({"1.*"}),
        actions=frozenset({"metadata"}),
    )
    permissions = Permissions(grants=(grant,))
    return wire(folder, admissions=versions(folder), permissions=permissions)


def ask(
    rooms: Rooms, method: str, path: str, *scopes: str, body: bytes = b""
) -> tuple[int, Any]:
    asked = request(method, path, bearer=token(*scopes), body=body)
    response = asyncio.run(rooms.routes.answer(asked, sealed=True))
    return response.status, json.loads(response.body or b"null")


@pytest.mark.parametrize(
    ("scopes", "names", "tags"),
    [
        (("infer:*",), ["toy", "other"], ["toy:1.0.0", "toy:2.0.0", "other:1.0.0"]),
        (("metadata:other",), ["other"], ["other:1.0.0"]),
        (("infer:toy",), ["toy"], ["toy:1.0.0", "toy:2.0.0"]),
        (("reader",), ["toy"], ["toy:1.0.0"]),
        (("metrics",), [], []),
        (("infer:none",), [], []),
    ],
)
def test_callers_are_told_of_what_they_may_use(
    rooms: Rooms, scopes: tuple[str, ...], names: list[str], tags: list[str]
) -> None:
    assert ask(rooms, "GET", "/v2/models", *scopes) == (200, {"models": names})
    status, index = ask(rooms, "POST", "/v2/repository/index", *scopes)
    assert status == 200
    assert [f"{item['name']}:{item['version']}" for item in index] == tags
    assert all((item["state"], item["reason"]) == ("READY", "") for item in index)


def test_the_index_can_leave_out_what_is_not_ready(
    rooms: Rooms, tmp_path: Path
) -> None:
    path = "/v2/repository/index"
    assert len(ask(rooms, "POST", path, "infer:*", body=b'{"ready":true}')[1]) == 3
    lineup = rooms.routes.lineup
    before = lineup.table
    entry = before["toy"]
    withdrawn = entry.states["2.0.0"].withdraw("its key was revoked")
    lineup.switch({**before, "toy": type(entry)({**entry.states, "2.0.0": withdrawn})})
    try:
        _, index = ask(rooms, "POST", path, "infer:toy")
        assert [(i["version"], i["state"], i["reason"]) for i in index] == [
            ("1.0.0", "READY", ""),
            # Why is the operator's to know.
            ("2.0.0", "UNAVAILABLE", "not admitted now"),
        ]
        assert len(ask(rooms, "POST", path, "infer:*", body=b'{"ready":true}')[1]) == 2
    finally:
        lineup.switch(before)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[]", "malformed-json"),
        (b'{"ready":1}', "invalid-request"),
        (b"{" + b" " * 5000 + b"}", "malformed-json"),
    ],
)
def test_an_index_that_nobody_can_ask_for(rooms: Rooms, body: bytes, code: str) -> None:
    status, document = ask(rooms, "POST", "/v2/repository/index", "infer:*", body=body)
    assert (status, document["type"].rpartition("/")[2]) == (400, code)


def test_methods(rooms: Rooms) -> None:
    assert ask(rooms, "POST", "/v2/models", "infer:*")[0] == 405
    assert ask(rooms, "GET", "/v2/repository/index", "infer:*")[0] == 405
    assert ask(rooms, "POST", "/v2/models/toy/config", "infer:*")[0] == 405
    assert ask(rooms, "POST", "/v2/models/toy/stats", "metrics")[0] == 405
    assert ask(rooms, "HEAD", "/v2/models", "infer:*")[0] == 200


@pytest.mark.parametrize("action", ["load", "unload"])
def test_loading_is_the_operators(rooms: Rooms, action: str) -> None:
    path = f"/v2/repository/models/toy/{action}"
    status, document = ask(rooms, "POST", path, "infer:*", "metrics", body=b"{}")
    assert (status, document["detail"]) == (
        404, "models are loaded by the operator's command",
    )  # fmt: skip


def test_configuration(rooms: Rooms) -> None:
    status, config = ask(rooms, "GET", "/v2/models/toy/config", "metadata:toy")
    assert status == 200
    assert (config["name"], config["backend"]) == ("toy", "onnxruntime")
    assert config["max_batch_size"] == 64
    assert config["input"] == [
        {"name": "features", "data_type": "TYPE_FP32", "dims": [3]}
    ]
    assert config["output"] == [
        {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [2]},
        {
            "name": "label",
            "data_type": "TYPE_INT64",
            "dims": [1],
            "reshape": {"shape": []},
        },
    ]
    path = "/v2/models/toy/versions/2.0.0/config"
    assert ask(rooms, "GET", path, "infer:toy")[0] == 200
    assert ask(rooms, "GET", path, "reader")[0] == 404
    assert ask(rooms, "GET", "/v2/models/toy/config", "infer:other")[0] == 404


def test_statistics_count_what_was_answered(tmp_path: Path) -> None:
    rooms = wire(tmp_path, admissions=versions(tmp_path))
    body = json.dumps({"inputs": [INPUT]}).encode()
    bad = json.dumps({"inputs": [{**INPUT, "datatype": "FP64"}]}).encode()
    for _ in range(3):
        assert (
            ask(rooms, "POST", "/v2/models/toy/infer", "infer:toy", body=body)[0] == 200
        )
    assert ask(rooms, "POST", "/v2/models/toy/infer", "infer:toy", body=bad)[0] == 400

    status, document = ask(rooms, "GET", "/v2/models/toy/stats", "metrics")
    assert status == 200
    first, second = document["model_stats"]
    assert (first["version"], second["version"]) == ("1.0.0", "2.0.0")
    assert (first["inference_count"], first["execution_count"]) == (6, 3)
    assert second["inference_count"] == 0
    stats = first["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (3, 0)
    assert stats["compute_infer"]["count"] == 3
    assert 0 < stats["compute_infer"]["ns"] <= stats["success"]["ns"] < 10**10

    path = "/v2/models/toy/versions/2.0.0/stats"
    assert ask(rooms, "GET", path, "metrics")[1]["model_stats"] == [second]
    _, document = ask(rooms, "GET", "/v2/models/stats", "metrics")
    assert [item["name"] for item in document["model_stats"]] == ["toy", "toy", "other"]


def test_statistics_take_the_right_to_metrics(rooms: Rooms) -> None:
    """Of a model that is there and of one that is not, the same answer."""
    for path in ("toy/stats", "none/stats", "stats", "toy/versions/9/stats"):
        status, document = ask(rooms, "GET", f"/v2/models/{path}", "infer:*")
        assert (status, document["type"].rpartition("/")[2]) == (
            403, "insufficient-scope",
        )  # fmt: skip
    assert ask(rooms, "GET", "/v2/models/none/stats", "metrics")[0] == 404
    assert ask(rooms, "GET", "/v2/models/toy/versions/9/stats", "metrics")[0] == 404


def test_each_is_recorded(tmp_path: Path) -> None:
    rooms = wire(tmp_path)
    ask(rooms, "GET", "/v2/models", "infer:toy")
    ask(rooms, "POST", "/v2/repository/index", "infer:toy")
    ask(rooms, "GET", "/v2/models/toy/config", "infer:toy")
    ask(rooms, "GET", "/v2/models/toy/stats", "infer:toy")
    records = [
        json.loads(line)
        for path in sorted((tmp_path / "audit").rglob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]
    wanted = ("list", "index", "config", "stats")
    told = [
        (record["action"], record.get("model"), record["status"])
        for record in records
        if record.get("action") in wanted
    ]
    assert told == [
        ("list", None, 200), ("index", None, 200),
        ("config", "toy", 200), ("stats", "toy", 403),
    ]  # fmt: skip


def test_a_model_whose_rows_are_numbers(tmp_path: Path) -> None:
    rooms = wire(tmp_path, admissions=[lookup_model(tmp_path / "odd")])
    name = rooms.admission.bundle.manifest.name
    _, config = ask(rooms, "GET", f"/v2/models/{name}/config", "infer:*")
    assert config["input"][0]["reshape"] == {"shape": []}
