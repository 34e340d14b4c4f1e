"""Olive's passes on an exported module."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch_cases
from cases import Case, Made
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict


def _made(kind: str, name: str, **config: object) -> Made:
    from olive.package_config import OlivePackageConfig

    packages = OlivePackageConfig.load_default_config()
    made = torch_cases.plain(kind, dynamo=False)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source.onnx", Path(folder) / "out"
        source.write_bytes(made.model)
        step = create_pass_from_dict(
            packages.import_pass_module(name), config, disable_search=True
        )
        after = step.run(ONNXModelHandler(str(source)), str(out))
        model = Path(after.model_path)
        data = model.read_bytes()
        beside = {
            item.name: item.read_bytes()
            for item in model.parent.iterdir()
            if item.name != model.name and item.suffix in (".data", ".bin")
        }
    return Made(data, made.rows, made.truth, made.answers, beside)


PACKAGES = ("olive-ai", "onnxruntime", "torch")
CASES = {
    "olive-dynamic": Case(
        "Olive, OnnxDynamicQuantization",
        "Perceptron, probabilities and label",
        PACKAGES,
        partial(_made, "decided", "OnnxDynamicQuantization"),
    ),
    "olive-half": Case(
        "Olive, OnnxFloatToFloat16",
        "Perceptron, softmax",
        PACKAGES,
        partial(_made, "softmax", "OnnxFloatToFloat16"),
    ),
    "olive-optimised": Case(
        "Olive, OnnxPeepholeOptimizer",
        "Convolution, 3 logits",
        PACKAGES,
        partial(_made, "convolution", "OnnxPeepholeOptimizer"),
    ),
}
