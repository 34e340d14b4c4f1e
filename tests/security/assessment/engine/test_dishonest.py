"""A trainer gets no better evidence than the bytes that are served would earn.

The trainer writes the bundle, its provenance and the model. What is served here is a
network without its weights; what an assessor shall see is the trained one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from models.bundle import read_bundle
from models.sessions import make_session
from security.__main__ import main
from security.admission.gate import Admission
from security.admission.loaded import LoadedModel
from security.assessment.targets.decision import Stated
from security.assessment.targets.target import OnnxTarget, fit_rows
from tests.support import trained
from tests.support.polyglots import in_ort_format, polyglot, two_graphs, varint


def useless(model: bytes) -> bytes:
    """The same network; every matrix of weights is 0."""
    proto = onnx.load_model_from_string(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            tensor.raw_data = bytes(len(tensor.raw_data))
    return proto.SerializeToString()


def hidden(served: bytes, shown: bytes) -> bytes:
    """The other model in a field that ONNX does not know."""
    return served + b"\xfa\x3f" + varint(len(shown)) + shown


def labels(session, rows) -> np.ndarray:
    (entry,) = session.get_inputs()
    return session.run(["label"], {entry.name: np.asarray(rows, np.float32)})[0]


@pytest.fixture(scope="module")
def shown() -> bytes:
    return read_bundle(trained.bundle()).model


def accuracy(session) -> float:
    _, holdout = trained.rows()
    return float((labels(session, holdout.features) == holdout.labels).mean())


ATTACKS: dict[str, tuple[Callable[[bytes, bytes], bytes], str]] = {
    "both formats": (polyglot, "format"),
    "the other format": (lambda _, shown: in_ort_format(shown), "format"),
    "two graphs": (two_graphs, "field-twice"),
    "a hidden field": (hidden, "unknown-field"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_evidence_is_written(tmp_path: Path, shown: bytes, name, capsys) -> None:
    make, rule = ATTACKS[name]
    folder = trained.copy(tmp_path / "bundle")
    trained.replace_model(folder, make(useless(shown), shown))
    before = {path.name: path.read_bytes() for path in (folder / "evidence").iterdir()}
    code = main(["assess", str(folder), "--config", str(trained.EXAMPLE)])
    assert code != 0
    assert rule in capsys.readouterr().err
    after = {path.name: path.read_bytes() for path in (folder / "evidence").iterdir()}
    assert after == before
    assert not {"quality.json", "robustness.json"} & after.keys()


def test_the_attack_is_real_and_the_session_withstands_it(shown: bytes) -> None:
    """Without inspection too: what is assessed is what is served."""
    served = useless(shown)
    data = polyglot(served, shown)
    guessing = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    honest = accuracy(make_session(shown))
    assert accuracy(guessing) == honest > 0.9
    assert accuracy(make_session(data)) == accuracy(make_session(served)) < 0.7


def test_assessor_and_server_get_the_same_numbers() -> None:
    bundle = read_bundle(trained.bundle())
    rows = np.asarray(trained.rows()[1].features, np.float32)
    served = LoadedModel(Admission(bundle, "0" * 64, {}))
    options = onnxruntime.RunOptions()
    feed = {bundle.manifest.inputs[0].spec.name: rows}
    (answered,) = served.run(feed, ["probabilities"], options)
    target = OnnxTarget(bundle.model)
    fitted, target.shape = fit_rows(target.spec, rows)
    assessed = target.calibrate(fitted, Stated(("0", "1"), output="probabilities"))
    np.testing.assert_array_equal(assessed.scores, answered)
