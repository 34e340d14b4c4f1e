"""Many models of others, through the commands' door, in one deployment."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from models.bundle import read_bundle, report_file
from models.files import write_atomic
from security.commands import main
from tests.support.bundles import report
from tests.support.servers import ROOT, environment

POLICY = b"""
version = 1
[verdict]
signers = ["release"]
max_age_days = 30
[require.structure]
signers = ["assessor"]
max_age_days = 30
[require.structure.metrics]
errors = { max = 0 }
"""

# Everything that requests can carry: v2's name, and ONNX's.
KINDS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}


def settings(home: Path, names: Iterable[str]) -> dict[str, str]:
    return {
        "SEALGATE_SERVICE_MODELS": ",".join(f"{name}:1.0.0" for name in names),
        "SEALGATE_ADMISSION_POLICY": str(home / "policy.toml"),
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
    }


def admit_all(home: Path, models: Mapping[str, bytes]) -> dict[str, tuple[int, str]]:
    """Import, sign, admit and store each; exit code and what was said, by name."""
    home.mkdir(parents=True)
    (home / "policy.toml").write_bytes(POLICY)
    for name, data in models.items():
        (home / f"{name}.onnx").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.zoo", str(home), *models],
        cwd=ROOT,
        env=environment(home, settings(home, [])),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return {
        name: (code, said)
        for name, (code, said) in json.loads(done.stdout.splitlines()[-1]).items()
    }


def _admit(home: Path, name: str) -> tuple[int, str]:
    folder, said = home / name, io.StringIO()
    source = str(home / f"{name}.onnx")
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        arguments = ["import", source, "--name", name, "--version", "1.0.0"]
        code = main([*arguments, "--out", str(folder)])
        if code == 0:
            found = report("structure", read_bundle(folder).subject)
            write_atomic(folder / report_file("structure"), found.to_json())
            for step in (
                ["sign", str(folder), "--role", "assessor"],
                ["admit", str(folder)],
                ["store", str(folder)],
            ):
                code = code or main(step)
    return code, said.getvalue()


def _model(nodes, inputs, outputs, *, domains=(("", 17),), initializers=()) -> bytes:
    graph = helper.make_graph(nodes, "odd", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid(*domain) for domain in domains]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()


def echo_model(kinds: Iterable[str], *, width: int = 2) -> bytes:
    """One input and one output of every datatype; each output is its input."""
    infos = {
        side: [
            helper.make_tensor_value_info(f"{side}{name}", KINDS[name], ["n", width])
            for name in kinds
        ]
        for side in "io"
    }
    nodes = [helper.make_node("Identity", [f"i{k}"], [f"o{k}"]) for k in kinds]
    return _model(nodes, infos["i"], infos["o"])


def maps_model() -> bytes:
    """Scores by class name, as a converter of a classifier of texts emits them."""
    zipmap = helper.make_node(
        "ZipMap",
        ["x"],
        ["scores"],
        domain="ai.onnx.ml",
        classlabels_strings=["sí", "no", "maybe"],
    )
    key, value = TensorProto.STRING, helper.make_tensor_type_proto(1, None)
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(key, value))
    return _model(
        [zipmap],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_value_info("scores", maps)],
        domains=(("", 17), ("ai.onnx.ml", 3)),
    )


def sequence_model() -> bytes:
    """The rows of a table, one tensor each."""
    rows = helper.make_node("SplitToSequence", ["x"], ["rows"], axis=0, keepdims=0)
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    return _model(
        [rows],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_value_info("rows", helper.make_sequence_type_proto(element))],
    )


def misdeclared_model() -> bytes:
    """One label and two scores are declared; as many labels as rows, one score come."""
    classifier = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", "unread"],
        domain="ai.onnx.ml",
        classlabels_ints=[1, 2],
        coefficients=[1.0, 2.0, -1.0, 0.5],
        intercepts=[0.0, 0.5],
    )
    scores = helper.make_node(
        "LinearRegressor",
        ["x"],
        ["scores"],
        domain="ai.onnx.ml",
        coefficients=[1.0, -1.0],
        intercepts=[0.5],
    )
    return _model(
        [classifier, scores],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2]),
        ],
        domains=(("", 17), ("ai.onnx.ml", 3)),
    )


def example(node: object, rng: np.random.Generator, *, rows: int = 2) -> np.ndarray:
    """Values that an input of an onnxruntime session takes."""
    shape = [size if isinstance(size, int) else rows for size in node.shape]
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if kind == "string":
        # Triton's string model adds them as numbers.
        return rng.integers(0, 99, shape).astype(str).astype(object)
    if kind == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    names = {"float": "float32", "double": "float64"}
    if kind.startswith(("int", "uint")):
        return rng.integers(0, 50, shape).astype(kind)
    return rng.random(shape).astype(names.get(kind, kind))


def as_table(value: object, keys: Iterable[object] = ()) -> np.ndarray:
    """What onnxruntime gave, as the server presents it."""
    if isinstance(value, list):
        if value and isinstance(value[0], dict):
            return np.array([[row[key] for key in row] for row in value], np.float32)
        return np.stack(value)
    return np.asarray(value)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    assert main(["keygen"]) == 0
    print(json.dumps({name: _admit(home, name) for name in sys.argv[2:]}))
