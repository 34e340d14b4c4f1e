"""security.admission.loaded: what runs is what was checked, until a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pytest

from models.manifest import Manifest, Tensor
from sealgate.protocol.tensors import TensorSpec
from security.admission.loaded import LoadedModel
from security.admission.signature import ShapeError
from security.errors import AdmissionRefused
from service.inference.batching import InferenceFailedError, InferenceTimeoutError
from service.inference.lineup import Lineup
from tests.conftest import working_directory
from tests.support.bundles import WEIGHTS, manifest, onnx_model
from tests.support.patience import SpoiledError, in_time, once
from tests.support.rooms import (
    admitted,
    endless_model,
    external_model,
    gathering_model,
    log_model,
    misdeclared_model,
    reshape_model,
    serving,
    unverified,
)

T = TypeVar("T")
ROWS = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]], dtype=np.float32)


def expected(rows: np.ndarray) -> np.ndarray:
    logits = np.exp(rows @ WEIGHTS)
    return logits / logits.sum(axis=1, keepdims=True)


def infer(runtime: Lineup, name: str, inputs: dict, outputs: list[str]) -> list:
    model = runtime.find(name)
    assert model is not None
    return asyncio.run(runtime.infer(model.content, inputs, outputs))


def test_runs_what_numpy_computes(tmp_path: Path) -> None:
    runtime = serving([admitted(tmp_path)], timeout_s=10)
    outputs = infer(runtime, "toy", {"features": ROWS}, ["label", "probabilities"])
    np.testing.assert_allclose(outputs[1], expected(ROWS), rtol=1e-5)
    np.testing.assert_array_equal(outputs[0], expected(ROWS).argmax(axis=1))


def test_the_bytes_that_run_are_the_bytes_that_were_checked(tmp_path: Path) -> None:
    admission = admitted(tmp_path)
    (tmp_path / "model.onnx").write_bytes(onnx_model(-WEIGHTS))
    runtime = serving([admission], timeout_s=10)
    (tmp_path / "model.onnx").unlink()
    (probabilities,) = infer(runtime, "toy", {"features": ROWS}, ["probabilities"])
    np.testing.assert_allclose(probabilities, expected(ROWS), rtol=1e-5)


def test_finds_one_version_only(tmp_path: Path) -> None:
    runtime = serving([admitted(tmp_path)], timeout_s=10)
    assert runtime.find("toy") is runtime.find("toy", "1.0.0") is not None
    for name, version in (("toy", "1.0.1"), ("toy", "1"), ("toy", ""), ("other", None)):
        assert runtime.find(name, version) is None


def _with(part: str, *specs: TensorSpec) -> Manifest:
    return replace(manifest(), **{part: tuple(map(Tensor, specs))})


FEATURES = TensorSpec("features", "FP32", (-1, 3))
PROBABILITIES = TensorSpec("probabilities", "FP32", (-1, 2))
LABEL = TensorSpec("label", "INT64", (-1,))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (_with("inputs", replace(FEATURES, name="x")), "tensors are not the manifest"),
        (_with("inputs", FEATURES, LABEL), "tensors are not the manifest's"),
        (_with("outputs", PROBABILITIES), "tensors are not the manifest's"),
        (_with("inputs", replace(FEATURES, datatype="FP64")), "'features' is tensor"),
        (_with("inputs", replace(FEATURES, shape=(-1, 4))), "'features' is tensor"),
        (_with("inputs", replace(FEATURES, shape=(1, 3))), "'features' is tensor"),
        (_with("inputs", replace(FEATURES, shape=(-1,))), "'features' is tensor"),
        (
            _with("outputs", PROBABILITIES, replace(LABEL, datatype="INT32")),
            r"'label' is tensor\(int64\)\[-1\], not INT32\[-1\]",
        ),
    ],
)
def test_refuses_a_manifest_that_is_not_the_models(
    tmp_path: Path, declared: Manifest, message: str
) -> None:
    with pytest.raises(AdmissionRefused, match=message) as caught:
        LoadedModel(unverified(tmp_path, onnx_model(), declared))
    assert caught.value.check == 17


@pytest.mark.parametrize("data", [b"", b"not a model", onnx_model()[:-20]])
def test_refuses_what_onnxruntime_cannot_load(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(
        AdmissionRefused, match="onnxruntime refuses the model"
    ) as caught:
        LoadedModel(unverified(tmp_path, data, manifest()))
    assert caught.value.check == 17


@pytest.mark.parametrize("location", ["weights.bin", "{}/weights.bin"])
def test_refuses_weights_in_another_file(tmp_path: Path, location: str) -> None:
    weights = tmp_path / "weights.bin"
    location = location.format(tmp_path)
    admission = external_model(tmp_path / "bundle", weights, location)
    # Not even where onnxruntime would look for it.
    with (
        working_directory(tmp_path),
        pytest.raises(AdmissionRefused, match="onnxruntime refuses the model"),
    ):
        LoadedModel(admission)


def test_the_deadline_stops_a_model_that_never_ends(tmp_path: Path) -> None:
    admissions = [endless_model(tmp_path / "odd"), admitted(tmp_path / "toy")]
    runtime = serving(admissions, timeout_s=0.3)

    def scene() -> None:
        started = time.monotonic()
        with pytest.raises(InferenceTimeoutError, match="stopped at the deadline"):
            infer(runtime, "odd", {"x": ROWS}, ["y"])
        assert time.monotonic() - started >= 0.3
        in_time(started, 2)

    once(scene)
    # The thread is free again, and the next model runs.
    assert len(unspoiled(lambda: infer(runtime, "toy", {"features": ROWS}, ["label"])))


def unspoiled(run: Callable[[], T]) -> T:
    """A run that is short, unless the machine has other things to do."""

    def scene() -> T:
        try:
            return run()
        except InferenceTimeoutError as error:
            raise SpoiledError from error

    return once(scene)


def test_a_stopped_run_gives_its_memory_back(tmp_path: Path) -> None:
    runtime = serving([gathering_model(tmp_path)], timeout_s=3.0)
    served = runtime.find("odd")
    assert served is not None
    process = psutil.Process()

    async def stopped() -> tuple[int, int]:
        before = process.memory_info().rss
        with pytest.raises(InferenceTimeoutError):
            await runtime.infer(
                served.content, {"x": np.full((1, 3), 1e9, np.float32)}, ["y"]
            )
        most = process.memory_info().rss
        tidying = served.content.batcher._tidying
        assert tidying is not None
        await asyncio.wait_for(tidying, timeout=10)
        return most - before, process.memory_info().rss - before

    def scene() -> tuple[int, int]:
        taken, left = asyncio.run(stopped())
        if taken <= 20 << 20:
            raise SpoiledError(f"in its three seconds it took {taken} bytes")
        return taken, left

    taken, left = once(scene)
    assert left < taken / 2


def test_one_run_does_not_stop_another(tmp_path: Path) -> None:
    runtime = serving([admitted(tmp_path)], timeout_s=0.2)

    async def twice() -> None:
        model = runtime.find("toy")
        assert model is not None
        await runtime.infer(model.content, {"features": ROWS}, ["label"])
        await asyncio.sleep(0.3)
        await runtime.infer(model.content, {"features": ROWS}, ["label"])

    unspoiled(lambda: asyncio.run(twice()))


def test_a_failing_model_says_nothing_of_its_input(tmp_path: Path) -> None:
    runtime = serving([reshape_model(tmp_path)], timeout_s=10)
    assert len(infer(runtime, "odd", {"x": ROWS}, ["y"])) == 1
    with pytest.raises(InferenceFailedError) as caught:
        infer(runtime, "odd", {"x": ROWS[:1]}, ["y"])
    assert str(caught.value) == "onnxruntime failed"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_nan_is_the_callers_to_judge(tmp_path: Path) -> None:
    runtime = serving([log_model(tmp_path)], timeout_s=10)
    (logs,) = infer(runtime, "odd", {"x": -abs(ROWS)}, ["y"])
    assert np.isnan(logs).any()


def test_only_the_cpu_is_used(tmp_path: Path) -> None:
    model = LoadedModel(admitted(tmp_path))
    assert model._session.get_providers() == ["CPUExecutionProvider"]


def test_no_rows_have_the_shape_that_the_manifest_says(tmp_path: Path) -> None:
    runtime = serving([admitted(tmp_path)], timeout_s=10)
    outputs = infer(runtime, "toy", {"features": ROWS[:0]}, ["label", "probabilities"])
    assert [array.shape for array in outputs] == [(0,), (0, 2)]


def test_the_manifest_says_the_shapes_that_come(tmp_path: Path) -> None:
    # Declared is [-1, 2]; whoever signs another shape is held to it, as to any.
    other = _with("outputs", replace(PROBABILITIES, shape=(-1, 5)), LABEL)
    runtime = serving([unverified(tmp_path, onnx_model(), other)], timeout_s=10)
    with pytest.raises(ShapeError):
        infer(runtime, "toy", {"features": ROWS}, ["probabilities"])
    (label,) = infer(runtime, "toy", {"features": ROWS}, ["label"])
    assert label.shape == (2,)


def test_a_model_that_gives_other_shapes_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = serving([misdeclared_model(tmp_path)], timeout_s=10)
    assert "odd:1.0.0: output 'y' has shape [1, 9]" in caplog.text
    assert "the manifest says [-1, 3]" in caplog.text
    with pytest.raises(ShapeError):
        infer(runtime, "odd", {"x": ROWS}, ["y"])
