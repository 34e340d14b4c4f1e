"""models.sessions: what decides how a model is read is stated, never guessed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from models.errors import ProviderError, SessionError
from models.sessions import make_session
from tests.conftest import working_directory
from tests.support.bundles import WEIGHTS, onnx_model
from tests.support.polyglots import in_ort_format
from tests.support.servers import ROOT

ROWS = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
NOWHERE = "http://127.0.0.1:9"


def with_metadata(key: str, value: str) -> bytes:
    from onnx import load_model_from_string

    model = load_model_from_string(onnx_model())
    helper.set_model_props(model, {key: value})
    return model.SerializeToString()


def test_runs_an_onnx_file():
    session = make_session(onnx_model())
    (label,) = session.run(["label"], {"features": ROWS})
    assert label == (ROWS @ WEIGHTS).argmax(axis=1)
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_refuses_the_other_format_that_onnxruntime_would_guess():
    model = in_ort_format(onnx_model())
    # What a session makes of it that is not pinned: this is the attack.
    guessed = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert guessed.get_inputs()[0].name == "features"
    with pytest.raises(SessionError, match=r"refuses the model: .*INVALID_PROTOBUF"):
        make_session(model)


def test_takes_no_options_from_the_model(monkeypatch):
    hidden = json.dumps({"session_options": {"intra_op_num_threads": 3}})
    model = with_metadata("ort_config", hidden)
    options = make_session(model).get_session_options()
    assert options.intra_op_num_threads == options.inter_op_num_threads == 1
    # Where the environment asks for it, nothing is loaded at all.
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    with pytest.raises(SessionError, match="ORT_LOAD_CONFIG_FROM_MODEL is set"):
        make_session(onnx_model())


def test_reads_no_weights_from_the_working_directory(tmp_path):
    from onnx import load_model_from_string
    from onnx.external_data_helper import set_external_data

    model = load_model_from_string(onnx_model())
    (tensor,) = model.graph.initializer
    (tmp_path / "weights.bin").write_bytes(tensor.raw_data)
    set_external_data(tensor, "weights.bin", length=len(tensor.raw_data))
    tensor.ClearField("raw_data")
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.graph_optimization_level = level
    with working_directory(tmp_path):
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        with pytest.raises(SessionError, match="refuses the model"):
            make_session(model.SerializeToString())


def test_unreleased_operator_sets_stay_unreleased(monkeypatch):
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["y"])], "g", [value], [out]
    )
    opset = helper.make_opsetid("", 30)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    with pytest.raises(SessionError, match="refuses the model"):
        make_session(model.SerializeToString())


def test_has_no_fallback(capfd):
    with pytest.raises(ProviderError, match="CUDAExecutionProvider is not installed"):
        make_session(onnx_model(), providers=["CUDAExecutionProvider"])
    with pytest.raises(SessionError):
        make_session(b"not a model")
    assert capfd.readouterr() == ("", "")


def test_importing_it_loads_no_engine():
    import subprocess

    code = "import sys, models.sessions; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "reports"),
    [
        ("import os", True),
        ("import models", False),
        ("import service.inference.batching", False),
    ],
)
def test_onnxruntime_reports_to_nobody(
    tmp_path: Path, first: str, reports: bool
) -> None:
    """By the file that it keeps its reports in until it has sent them."""
    done = subprocess.run(
        [sys.executable, "-c", f"{first}; import onnxruntime"],
        # Little of the environment: it also looks whether this is a build.
        env={"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "HTTPS_PROXY": NOWHERE},
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert any(tmp_path.rglob("onnxruntime.db")) is reports
