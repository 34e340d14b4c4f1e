"""service.inference.lineup: a canary or a shadow that cannot answer harms nobody."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from security.admission.lifecycle import State, Warm
from service.inference.lineup import Lineup
from service.inference.served import Entry, Served
from tests.support.bundles import NAME, manifest, onnx_model
from tests.support.rooms import admitted, request, token, unverified, wire

FAILS = 9.0


def picky_model() -> bytes:
    """The toy model, but it fails if its largest feature is 3 or more."""
    model = onnx.load_from_string(onnx_model())
    nodes = [
        helper.make_node("ReduceMax", ["features"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["weights", "index"], ["row"]),
        helper.make_node("Sub", ["row", "row"], ["zeros"]),
        helper.make_node("Add", ["logits", "zeros"], ["sums"]),
    ]
    first, softmax, last = model.graph.node
    softmax.input[0] = "sums"
    del model.graph.node[:]
    model.graph.node.extend([first, *nodes, softmax, last])
    return bytes(model.SerializeToString())


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    """A server whose lineup can be rearranged; nothing runs beside it."""
    return wire(
        tmp_path / "rooms",
        admissions=[
            admitted(tmp_path / "1"),
            unverified(tmp_path / "2", picky_model(), manifest("2.0.0")),
        ],
        require_sealed=False,
    )


def arranged(lineup: Lineup, **trial: State[Served]) -> None:
    entry = lineup.table[NAME]
    lineup.switch({NAME: Entry({**entry.states, "2.0.0": trial["trial"]})})


def ask(scene: Any, value: float = 1.0, path: str = "") -> tuple[int, str]:
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 3]}
    body = json.dumps({"inputs": [tensor | {"data": [value, 1, 1]}]}).encode()
    asked = request(
        "POST", f"/v2/models/{NAME}{path}/infer", bearer=token("infer:toy"), body=body
    )

    async def answered() -> Any:
        answer = await scene.routes.answer(asked, sealed=False)
        beside = asyncio.all_tasks() - {asyncio.current_task()}
        if beside:
            await asyncio.wait(beside, timeout=60)
        return answer

    answer = asyncio.run(answered())
    return answer.status, json.loads(bytes(answer.body)).get("model_version", "")


def trial(scene: Any) -> Warm[Served]:
    state = scene.routes.lineup.table[NAME].states["2.0.0"]
    assert isinstance(state, Warm)
    return state


def test_a_canary_answers_its_share(scene: Any) -> None:
    arranged(scene.routes.lineup, trial=trial(scene).try_as_canary(100))
    assert ask(scene) == (200, "2.0.0")


@pytest.mark.parametrize("why", ["withdrawn", "expired"])
def test_a_canary_that_may_not_answer_leaves_it_to_the_default(
    scene: Any, why: str
) -> None:
    canary: State[Served] = trial(scene).try_as_canary(100)
    if why == "withdrawn":
        canary = canary.withdraw("a key was revoked")
    else:
        canary.content.expires_at = time.time() - 1
    arranged(scene.routes.lineup, trial=canary)
    assert {ask(scene) for _ in range(4)} == {(200, "1.0.0")}
    # Who names it is told.
    assert ask(scene, path="/versions/2.0.0")[0] == 503


def test_a_canary_that_fails_leaves_it_to_the_default(scene: Any) -> None:
    lineup = scene.routes.lineup
    arranged(lineup, trial=trial(scene).try_as_canary(100))
    for path, answer in (("/versions/2.0.0", (500, "")), ("", (200, "1.0.0"))):
        assert ask(scene, path=path, value=FAILS) == answer
    root = lineup.table[NAME].default.content.admission.bundle.subject.root_sha256
    last = json.loads(scene.records.splitlines()[-1])
    assert (last["outcome"], last["model_sha256"]) == ("allow", root)
    assert ask(scene) == (200, "2.0.0")


def test_a_shadow_that_fails_is_counted_and_nothing_else(scene: Any) -> None:
    lineup = scene.routes.lineup
    arranged(lineup, trial=trial(scene).try_as_shadow(100))
    assert {ask(scene, value=FAILS) for _ in range(3)} == {(200, "1.0.0")}
    text = lineup._metrics.text().decode()
    assert 'kind="shadow",model="toy",result="failed",tried="2.0.0"' in text


@pytest.mark.parametrize("kind", ["shadow", "canary"])
def test_a_trial_is_tallied_by_digest_and_time(scene: Any, kind: str) -> None:
    lineup = scene.routes.lineup
    warm = trial(scene)
    on = warm.try_as_shadow(100) if kind == "shadow" else warm.try_as_canary(100)
    arranged(lineup, trial=on)
    assert lineup.trials[0]["last"] == 0
    for value in (1.0, 1.0, 2.0):
        ask(scene, value=value)
    (tally,) = lineup.trials
    roots = [
        state.content.admission.bundle.subject.root_sha256
        for state in lineup.table[NAME].states.values()
    ]
    assert [tally["beside_sha256"], tally["root_sha256"]] == roots
    assert (tally["kind"], tally["same"] + tally["different"]) == (kind, 3)
    assert 0 < tally["since"] <= tally["last"]
    # Of each request both times, whoever ran first.
    assert min(tally["default_s"], tally["tried_s"]) > 0
    assert tally["log_ratio"] ** 2 <= 3 * tally["log_ratio_squares"] + 1e-9
    # Arranged again it goes on; ended, it is gone.
    arranged(lineup, trial=on)
    assert lineup.trials == [tally]
    arranged(lineup, trial=warm)
    assert lineup.trials == []
