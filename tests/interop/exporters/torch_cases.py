"""torch by both of its exporters, and onnxruntime's quantisers on what they give."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from cases import Case, Made, Split, classes, numbers
from torch import nn

TWO = partial(classes, 0, 1)
THREE = partial(classes, 0, 1, 2)


class Decided(nn.Module):
    """Probabilities, and the class."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares = torch.softmax(self.layers(rows), dim=1)
        return shares, shares.argmax(dim=1)


class Threshold(nn.Module):
    """One probability, and a class above 0.2."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        share = torch.sigmoid(self.layers(rows))
        return share, (share[:, 0] > 0.2).to(torch.int64)


def layers(width: int, *, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """A small perceptron."""
    torch.manual_seed(0)
    steps: list[nn.Module] = [nn.Linear(6, 32)]
    steps += [nn.BatchNorm1d(32)] if norm else []
    steps += [nn.ReLU()] + ([nn.Dropout(dropout)] if dropout else [])
    return nn.Sequential(*steps, nn.Linear(32, width))


def convolution(width: int) -> nn.Sequential:
    """The six columns as a picture of 2 x 3."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 8, 2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, width),
    )


def fit(module: nn.Module, data: Split, loss: nn.Module) -> None:
    """A few hundred steps on all rows."""
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    steps = torch.optim.Adam(module.parameters(), 0.02)
    module.train()
    for _ in range(150):
        steps.zero_grad()
        out = module(x)
        y = y if out.shape[1] > 1 else y.reshape(-1, 1).to(out.dtype)
        loss(out, y).backward()
        steps.step()


def export(module: nn.Module, *, dynamo: bool) -> bytes:
    """By one of the two exporters, with any number of rows."""
    row = (torch.zeros(2, 6),)
    if dynamo:
        rows = ({0: torch.export.Dim("rows")},)
        with tempfile.TemporaryDirectory() as folder:
            made = torch.onnx.export(
                module, row, dynamo=True, dynamic_shapes=rows, verbose=False
            )
            path = Path(folder) / "model.onnx"
            made.save(path, external_data=False)
            return path.read_bytes()
    file = io.BytesIO()
    torch.onnx.export(
        module,
        row,
        file,
        dynamo=False,
        input_names=["rows"],
        dynamic_axes={"rows": {0: "rows"}},
        opset_version=17,
    )
    return file.getvalue()


def by_default(module: nn.Module) -> tuple[bytes, Mapping[str, bytes]]:
    """As `torch.onnx.export(model, example, "model.onnx")` writes it: two files."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, (torch.zeros(2, 6),), path, verbose=False)
        found = {item.name: item.read_bytes() for item in Path(folder).iterdir()}
    return found.pop("model.onnx"), found


def answers(module: nn.Module, rows: np.ndarray, form: str) -> dict[str, np.ndarray]:
    """What the module itself answers, in evaluation mode."""
    with torch.no_grad():
        out = module.eval()(torch.from_numpy(rows))
    if isinstance(out, tuple):
        shares, label = (item.numpy() for item in out)
        one = {"probability": shares[:, 0]} if shares.shape[1] == 1 else {}
        many = {f"probability:{i}": shares[:, i] for i in range(shares.shape[1])}
        return {"prediction": label} | (one or many)
    found = out.numpy()
    if form == "value":
        return {"value": found[:, 0]}
    if found.shape[1] == 1:
        return {form: found[:, 0]}
    scores = {f"{form}:{i}": found[:, i] for i in range(found.shape[1])}
    return {"prediction": found.argmax(axis=1)} | scores


KINDS: dict[str, tuple[str, Callable[[], tuple[nn.Module, Split, str]]]] = {}


def _kind(name: str, shown: str) -> Callable[[Any], Any]:
    def keep(make: Any) -> Any:
        KINDS[name] = (shown, make)
        return make

    return keep


@_kind("logits", "Perceptron, 3 logits")
def _logits() -> tuple[nn.Module, Split, str]:
    data, module = THREE(), layers(3, norm=True, dropout=0.2)
    fit(module, data, nn.CrossEntropyLoss())
    return module, data, "score"


@_kind("softmax", "Perceptron, softmax")
def _softmax() -> tuple[nn.Module, Split, str]:
    module, data, _ = _logits()
    return nn.Sequential(module, nn.Softmax(dim=1)), data, "probability"


@_kind("decided", "Perceptron, probabilities and label")
def _decided() -> tuple[nn.Module, Split, str]:
    module, data, _ = _logits()
    return Decided(module), data, "probability"


@_kind("sigmoid", "Perceptron, one sigmoid")
def _sigmoid() -> tuple[nn.Module, Split, str]:
    data, module = TWO(), layers(1)
    fit(module, data, nn.BCEWithLogitsLoss())
    return nn.Sequential(module, nn.Sigmoid()), data, "probability"


@_kind("logit", "Perceptron, one logit")
def _logit() -> tuple[nn.Module, Split, str]:
    module, data, _ = _sigmoid()
    return module[0], data, "score"  # type: ignore[index]


@_kind("threshold", "Perceptron, probability and label above 0.2")
def _threshold() -> tuple[nn.Module, Split, str]:
    module, data, _ = _logit()
    return Threshold(module), data, "probability"


@_kind("convolution", "Convolution, 3 logits")
def _convolution() -> tuple[nn.Module, Split, str]:
    data, module = THREE(), convolution(3)
    fit(module, data, nn.CrossEntropyLoss())
    return module, data, "score"


@_kind("regressor", "Perceptron, a number")
def _regressor() -> tuple[nn.Module, Split, str]:
    data, module = numbers(), layers(1)
    fit(module, data, nn.MSELoss())
    return module, data, "value"


def plain(name: str, *, dynamo: bool) -> Made:
    """A module of `KINDS`, exported in evaluation mode."""
    module, data, form = KINDS[name][1]()
    said = answers(module, data.rows, form)
    return Made(export(module, dynamo=dynamo), data.rows, data.truth, said)


def _default() -> Made:
    module, data, form = _logits()
    said = answers(module, data.rows, form)
    model, files = by_default(module)
    return Made(model, data.rows, data.truth, said, files)


def _training(*, dynamo: bool) -> Made:
    """Somebody forgot `eval()`."""
    module, data, form = _logits()
    said = answers(module, data.rows, form)
    module.train()
    if dynamo:
        return Made(export(module, dynamo=True), data.rows, data.truth, said)
    file = io.BytesIO()
    torch.onnx.export(
        module,
        (torch.zeros(2, 6),),
        file,
        dynamo=False,
        input_names=["rows"],
        dynamic_axes={"rows": {0: "rows"}},
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    return Made(file.getvalue(), data.rows, data.truth, said)


def _quantised(name: str, how: Callable[[Path, Path, np.ndarray], None]) -> Made:
    """The file that a quantiser makes of an export, beside the module's answers."""
    made = plain(name, dynamo=False)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        before.write_bytes(made.model)
        how(before, after, np.asarray(made.rows))
        return Made(after.read_bytes(), made.rows, made.truth, made.answers)


def _dynamic(before: Path, after: Path, rows: np.ndarray) -> None:
    from onnxruntime.quantization import quantize_dynamic

    del rows
    quantize_dynamic(before, after)


def _static(before: Path, after: Path, rows: np.ndarray, *, form: str) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        left = iter(np.split(rows, 10))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.left, None)
            return None if part is None else {"rows": part}

    quantization.quantize_static(
        before, after, Reader(), quant_format=quantization.QuantFormat[form]
    )


def _half(before: Path, after: Path, rows: np.ndarray, *, keep: bool) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    del rows
    made = convert_float_to_float16(onnx.load(before), keep_io_types=keep)
    onnx.save(made, after)


def _exported(name: str, shown: str, *, dynamo: bool) -> Case:
    exporter = f"torch.onnx, dynamo={dynamo}"
    return Case(exporter, shown, ("torch", "onnx"), partial(plain, name, dynamo=dynamo))


QUANTISER = ("onnxruntime", "torch", "onnx")
CASES = {
    **{
        f"torch-{name}": _exported(name, shown, dynamo=True)
        for name, (shown, _) in KINDS.items()
    },
    **{
        f"torchscript-{name}": _exported(name, shown, dynamo=False)
        for name, (shown, _) in KINDS.items()
    },
    "torch-default": Case(
        "torch.onnx, dynamo=True",
        "Perceptron, with nothing said: weights in a second file",
        ("torch", "onnx"),
        _default,
    ),
    "torch-training": Case(
        "torch.onnx, dynamo=True",
        "Perceptron with dropout, left in training mode",
        ("torch", "onnx"),
        partial(_training, dynamo=True),
    ),
    "torchscript-training": Case(
        "torch.onnx, dynamo=False",
        "Perceptron with dropout, left in training mode",
        ("torch", "onnx"),
        partial(_training, dynamo=False),
    ),
    "quantised-dynamic": Case(
        "onnxruntime, quantize_dynamic",
        "Perceptron, probabilities and label",
        QUANTISER,
        partial(_quantised, "decided", _dynamic),
    ),
    "quantised-qdq": Case(
        "onnxruntime, quantize_static (QDQ)",
        "Convolution, 3 logits",
        QUANTISER,
        partial(_quantised, "convolution", partial(_static, form="QDQ")),
    ),
    "quantised-operators": Case(
        "onnxruntime, quantize_static (QOperator)",
        "Perceptron, 3 logits",
        QUANTISER,
        partial(_quantised, "logits", partial(_static, form="QOperator")),
    ),
    "half": Case(
        "onnxruntime, float16",
        "Perceptron, softmax",
        QUANTISER,
        partial(_quantised, "softmax", partial(_half, keep=True)),
    ),
    "half-inputs": Case(
        "onnxruntime, float16 of inputs too",
        "Perceptron, softmax",
        QUANTISER,
        partial(_quantised, "softmax", partial(_half, keep=False)),
    ),
}
