"""A real server, and callers who want more of an answer than may leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.output_policy import OutputPolicy
from sealgate import Client
from sealgate.errors import OverloadedError
from sealgate.options import Options
from sealgate.output import format_metadata
from sealgate.protocol import binary_tensors
from sealgate.protocol.dsse import public_pem
from sealgate.retry import RetryPolicy
from security.admission import changes
from security.admission.keys import load_signing_key
from tests.conftest import check_security, mint, toy_settings
from tests.service.test_service import document, seal
from tests.support.bundles import NAME, POLICY
from tests.support.live import add_version, change, followed, reports, wait_for
from tests.support.servers import Server, serve

WEIGHTS = np.array([[0.3, -0.3], [0.1, 0.2], [-0.4, 0.1]], dtype=np.float32)
ROW = [1.0, 2.0, 3.0]
BODY: dict[str, Any] = {
    "inputs": [
        {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": ROW},
    ]
}
# By version: one decimal, the default; everything; the label alone.
ROUNDED, WHOLE, LABEL = "1.0.0", "2.0.0", "3.0.0"
TABLE = """
[[rule]]
subjects = ["thief"]
answers_per_30_days = 5

[[rule]]
subjects = ["listener"]
answer_bits_per_30_days = 20
"""


def settings(home: Path) -> dict[str, str]:
    return toy_settings(home) | {
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
        "SEALGATE_DEPLOYMENT_POLL_S": "0.1",
        "SEALGATE_QUOTAS_TABLE": str(home / "table.toml"),
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("output-policy") / "home"
    home.mkdir()
    (home / "policy.toml").write_bytes(POLICY)
    (home / "table.toml").write_text(TABLE)
    check_security(home, "keygen", **settings(home))
    add_version(home, ROUNDED, weights=WEIGHTS, leaving=OutputPolicy(decimals=1))
    add_version(home, WHOLE, weights=WEIGHTS)
    add_version(home, LABEL, weights=WEIGHTS, leaving=OutputPolicy(label_only=True))
    change(home, lambda plan: changes.load(plan, f"{NAME}:{WHOLE}"))
    change(home, lambda plan: changes.load(plan, f"{NAME}:{LABEL}"))
    with serve(
        "service.app:Sealgate", home, extra=settings(home), alone=True
    ) as server:
        wait_for(lambda: len(reports(home)) == 1)
        yield server


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    return mint(server.home, f"infer:{NAME}")


def path(version: str | None = None, action: str = "/infer") -> str:
    named = f"/versions/{version}" if version else ""
    return f"/v2/models/{NAME}{named}{action}"


def ask(
    server: Server, token: str, version: str | None = None, **more: Any
) -> httpx.Response:
    return httpx.post(
        server.url + path(version),
        json=BODY | more,
        headers={"authorization": f"Bearer {token}"},
        timeout=60,
    )


def scores(answer: dict[str, Any]) -> list[float]:
    outputs = {item["name"]: item for item in answer["outputs"]}
    return outputs["probabilities"]["data"]


def full() -> np.ndarray:
    logits = np.array(ROW) @ WEIGHTS
    return np.exp(logits) / np.exp(logits).sum()


def assert_rounded(values: Any) -> None:
    assert np.asarray(values).ravel() == pytest.approx(full().round(1), abs=1e-6)
    assert np.abs(np.asarray(values).ravel() - full()).max() > 1e-3


def test_what_leaves_is_rounded_on_every_way(server: Server, token: str) -> None:
    assert_rounded(scores(ask(server, token).json()))
    named = [{"name": "probabilities", "parameters": {"binary_data": False}}]
    assert_rounded(scores(ask(server, token, outputs=named).json()))
    assert_rounded(scores(document(seal(server, token=token, body=BODY))))
    binary = ask(server, token, parameters={"binary_data_output": True})
    length = binary.headers["inference-header-content-length"].encode()
    head, tail = binary_tensors.split(binary.content, [length])
    decoded = binary_tensors.decode_response(json.loads(bytes(head)), tail)
    assert_rounded(decoded["probabilities"])
    with Client(server.url, token=token) as client:
        rows = np.array([ROW] * 3, np.float32)
        for row in client.infer(NAME, {"features": rows})["probabilities"]:
            assert_rounded(row)


WISHES: list[dict[str, Any]] = [
    {"outputs": [{"name": "probabilities", "parameters": {"classification": 2}}]},
    {"parameters": {"classification": 2}},
    {"outputs": [{"name": "logits"}]},
    {"outputs": [{"name": "probabilities"}, {"name": "probabilities"}]},
]


@pytest.mark.parametrize("wish", WISHES)
def test_other_ways_to_ask_are_refused(
    server: Server, token: str, wish: dict[str, Any]
) -> None:
    assert ask(server, token, **wish).status_code == 400


def test_parameters_change_nothing(server: Server, token: str) -> None:
    asked = {"output_policy": {}, "decimals": 9, "top_k": 2, "label_only": False}
    assert_rounded(scores(ask(server, token, parameters=asked).json()))
    output = {"name": "probabilities", "datatype": "FP64", "parameters": asked}
    assert_rounded(scores(ask(server, token, outputs=[output]).json()))


def test_scores_that_are_withheld_are_no_output(server: Server, token: str) -> None:
    answer = ask(server, token, LABEL).json()
    assert [item["name"] for item in answer["outputs"]] == ["label"]
    for binary in (False, True):
        output = {"name": "probabilities", "parameters": {"binary_data": binary}}
        refused = ask(server, token, LABEL, outputs=[output])
        assert refused.status_code == 400
        assert (
            refused.json()["detail"] == "outputs: expected names among label, once each"
        )
    sealed = seal(server, path=path(LABEL), token=token, body=BODY)
    assert [item["name"] for item in document(sealed)["outputs"]] == ["label"]
    headers = {"authorization": f"Bearer {token}"}
    for action in ("", "/config"):
        told = httpx.get(server.url + path(LABEL, action), headers=headers)
        assert told.status_code == 200
        assert "probabilities" not in told.text


def test_callers_are_told(server: Server, token: str) -> None:
    headers = {"authorization": f"Bearer {token}"}
    stated = {
        version: httpx.get(server.url + path(version, ""), headers=headers)
        .json()["parameters"]
        .get("output_policy")
        for version in (ROUNDED, WHOLE, LABEL)
    }
    assert stated == {
        ROUNDED: {"decimals": 1},
        WHOLE: None,
        LABEL: {"label_only": True},
    }
    key = load_signing_key(server.home / "keys" / "release.pem").public_key()
    options = Options(trusted_keys=(public_pem(key),))
    with Client(server.url, token=token, options=options) as client:
        assert client.passport(NAME).output_policy == {"decimals": 1}
        shown = format_metadata(client.metadata(NAME))
    assert "  of answers leaves decimals: 1\n" in shown
    folder, extra = server.home / f"bundle-{LABEL}", settings(server.home)
    told = check_security(server.home, "verify", str(folder), **extra)
    assert "  leaves: label only\n" in told


def test_another_version_has_its_own_policy(server: Server, token: str) -> None:
    """Each was admitted under its own; what all must withhold the policy demands."""
    assert scores(ask(server, token, WHOLE).json()) == pytest.approx(full(), abs=1e-6)
    assert_rounded(scores(ask(server, token, ROUNDED).json()))


@pytest.mark.parametrize("trial", [changes.set_canary, changes.set_shadow])
def test_no_trial_lets_more_leave_than_the_default(
    server: Server, token: str, trial: Any
) -> None:
    plan = change(server.home, lambda p: trial(p, f"{NAME}:{WHOLE}", 100))
    wait_for(lambda: followed(server.home, plan, workers=1))
    (report,) = reports(server.home)
    assert "lets more leave" in json.dumps(report)
    for _ in range(5):
        answer = ask(server, token).json()
        assert answer["model_version"] == ROUNDED
        assert_rounded(scores(answer))
    plan = change(server.home, lambda p: trial(p, f"{NAME}:{WHOLE}", 0))
    wait_for(lambda: followed(server.home, plan, workers=1))


def named(server: Server, subject: str) -> str:
    flags = ("--scope", f"infer:{NAME}", "--subject", subject, "--lifetime", "3600")
    return check_security(server.home, "token", *flags).strip()


def test_an_extraction_budget_is_spent_by_answers(server: Server) -> None:
    token = named(server, "thief")
    first = ask(server, token)
    assert (
        '"answers-per-30-days";q=5;w=2592000;sealgate-unit="answers"'
        in (first.headers["ratelimit-policy"])
    )
    assert '"answers-per-30-days";r=4;' in first.headers["ratelimit"]
    # No other version, output, way or client has a budget of its own.
    sealed = seal(server, path=path(LABEL), token=token, body=BODY)
    assert sealed.status == 200
    two = {"inputs": [BODY["inputs"][0] | {"shape": [2, 3], "data": ROW * 2}]}
    assert ask(server, token, WHOLE, **two).status_code == 200
    refused = ask(server, token, **two)
    assert refused.status_code == 429
    problem = refused.json()
    assert problem["type"] == "https://sealgate.dev/problems/extraction-budget"
    assert problem["violated-policies"] == ["answers-per-30-days"]
    assert 0 < int(refused.headers["retry-after"]) <= 30 * 86_400
    assert ask(server, token, LABEL).status_code == 200
    last = seal(server, token=token, body=BODY)
    assert (last.status, document(last)["type"]) == (429, problem["type"])
    once = Options(retry=RetryPolicy(max_retries=0))
    rows = {"features": np.zeros((1, 3), np.float32)}
    with (
        Client(server.url, token=token, options=once) as client,
        pytest.raises(OverloadedError, match="extraction budget"),
    ):
        client.infer(NAME, rows)


def test_and_by_what_they_tell(server: Server) -> None:
    token = named(server, "listener")
    # Two scores of one decimal, log2 of 11 each; a label of two classes; and up.
    assert '"answer-bits-per-30-days";r=12;' in ask(server, token).headers["ratelimit"]
    # A whole answer is 49 bits: more than there ever is. It costs nothing.
    refused = ask(server, token, WHOLE)
    assert refused.status_code == 429
    assert "retry-after" not in refused.headers
    assert refused.json()["violated-policies"] == ["answer-bits-per-30-days"]
    only = {"outputs": [{"name": "label"}]}
    left = [ask(server, token, **only).headers["ratelimit"] for _ in range(2)]
    assert ("r=11;" in left[0], "r=10;" in left[1]) == (True, True)
    assert ask(server, token).status_code == 200
    assert ask(server, token).status_code == 429
