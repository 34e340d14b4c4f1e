"""security.admission.loaded: whatever runs a model gets what may leave, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from models.manifest import Manifest, Tensor
from models.output_policy import OutputPolicy
from sealgate.protocol.datatypes import narrow, numbers
from sealgate.protocol.tensors import TensorSpec
from security.admission.lifecycle import Planned
from security.admission.loaded import LoadedModel
from security.errors import AdmissionRefused
from service.inference.batching import InferenceFailedError
from service.inference.lineup import Lineup
from service.inference.served import Entry, check_alike
from service.inference.warmup import warm_up
from tests.support.bundles import manifest, onnx_model
from tests.support.rooms import centring_model, serving, unverified
from tests.support.zoo import echo_model, maps_model

LABEL_ONLY = OutputPolicy(label_only=True)
ONE = OutputPolicy(top_k=1)
TENTH = OutputPolicy(decimals=1)
ROWS = np.array([[1.0, 2.0, 3.0], [0.2, 0.1, 0.0]], dtype=np.float32)


def run(model: LoadedModel, names: Sequence[str], **inputs: np.ndarray) -> list:
    return model.run(inputs, names, ort.RunOptions())


def toy(folder: Path, policy: OutputPolicy, version: str = "1.0.0") -> LoadedModel:
    own = manifest(version, leaving=policy)
    return LoadedModel(unverified(folder, onnx_model(), own))


@pytest.mark.parametrize("policy", [TENTH, ONE, OutputPolicy(top_k=1, decimals=0)])
def test_scores_are_left_as_the_policy_says(
    tmp_path: Path, policy: OutputPolicy
) -> None:
    model = toy(tmp_path, policy)
    whole, label = model.run_whole({"features": ROWS}, ort.RunOptions())
    left, same = run(model, ["probabilities", "label"], features=ROWS)
    assert left.tobytes() == model.release.leave("probabilities", whole).tobytes()
    assert left.tobytes() != whole.tobytes()
    assert same.tolist() == label.tolist()


def test_what_is_withheld_fails(tmp_path: Path) -> None:
    model = toy(tmp_path, LABEL_ONLY)
    assert model.release.names == ["label"]
    with pytest.raises(InferenceFailedError, match="withheld"):
        run(model, ["label", "probabilities"], features=ROWS)


def test_maps_are_scores(tmp_path: Path) -> None:
    own = Manifest(
        "maps",
        "1.0.0",
        (Tensor(TensorSpec("x", "FP32", (-1, 3))),),
        (
            Tensor(
                TensorSpec("scores", "FP32", (-1, 3)),
                labels=("maybe", "no", "sí"),
                form="maps",
            ),
        ),
        max_rows=8,
        output_policy=ONE,
    )
    model = LoadedModel(unverified(tmp_path, maps_model(), own))
    (left,) = run(model, ["scores"], x=np.array([[0.5, 0.2, 0.3]], np.float32))
    assert left.tolist() == [[0, 0, 0.5]]


def test_of_bf16_too(tmp_path: Path) -> None:
    spec = TensorSpec("iBF16", "BF16", (-1, 2))
    own = Manifest(
        "half",
        "1.0.0",
        (Tensor(spec),),
        (Tensor(replace(spec, name="oBF16"), labels=("a", "b")),),
        max_rows=8,
        output_policy=LABEL_ONLY,
    )
    model = LoadedModel(unverified(tmp_path, echo_model(["BF16"]), own))
    (left,) = run(model, ["oBF16"], iBF16=narrow(np.array([[0.3, 0.7]])))
    assert numbers(left).tolist() == [[0, 1]]


def test_shared_runs_are_no_way_round(tmp_path: Path) -> None:
    admission = unverified(tmp_path, onnx_model(), manifest(leaving=ONE))
    lineup = serving([admission], timeout_s=10)
    (state,) = lineup.table["toy"].states.values()

    async def together() -> list:
        asked = [
            lineup.infer(
                state.content, {"features": ROWS[i : i + 1]}, ["probabilities"]
            )
            for i in (0, 1, 0, 1)
        ]
        return await asyncio.gather(*asked)

    for (left,) in asyncio.run(together()):
        assert (left == 0).sum() == 1


def test_what_is_learned_of_a_model_is_learned_of_all_it_gives(tmp_path: Path) -> None:
    """One-hot answers of a model that mixes rows look as if it did not."""
    admission = centring_model(tmp_path)
    whole = admission.bundle.manifest
    hidden = unverified(
        tmp_path, admission.bundle.model, replace(whole, output_policy=LABEL_ONLY)
    )
    lesson = warm_up(LoadedModel(hidden), inline_s=1, max_batch_rows=8)
    assert not lesson.rows_apart


def versions(folder: Path, default: OutputPolicy, trial: OutputPolicy) -> list:
    lineup = Lineup(timeout_s=10)
    found = []
    for number, policy in enumerate((default, trial), start=1):
        own = manifest(f"{number}.0.0", leaving=policy)
        admission = unverified(folder / str(number), onnx_model(), own)
        found.append(lineup.load(Planned(0).admit(admission)))
    return found


@pytest.mark.parametrize(
    ("default", "trial", "check"),
    [
        (TENTH, OutputPolicy(), 29),
        (TENTH, OutputPolicy(decimals=2), 29),
        (ONE, TENTH, 29),
        (TENTH, LABEL_ONLY, 17),
        (LABEL_ONLY, TENTH, 17),
        (OutputPolicy(explanations=False), OutputPolicy(), 29),
        (OutputPolicy(), TENTH, None),
        (TENTH, OutputPolicy(decimals=0), None),
    ],
    ids=str,
)
def test_trials(
    tmp_path: Path, default: OutputPolicy, trial: OutputPolicy, check: int | None
) -> None:
    first, second = versions(tmp_path, default, trial)
    canary = second.try_as_canary(100)
    entry = Entry({"1.0.0": first.promote(), "2.0.0": canary})
    if check is None:
        check_alike(first.content, canary.content)
        Lineup(timeout_s=10).switch({"toy": entry})
        return
    with pytest.raises(AdmissionRefused) as caught:
        Lineup(timeout_s=10).switch({"toy": entry})
    assert caught.value.check == check
