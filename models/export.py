"""Torch to ONNX: the same bytes every time, nothing of the machine in them, checked.

The exporter writes a stack trace with local paths into every node. What is signed and
shipped must not tell where it was made, and must not change when nothing did.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from models.architectures import TabularRegressor
from models.errors import ExportError
from models.manifest import Column
from models.messages import messages
from models.sessions import make_session

__all__ = [
    "CONTRIBUTIONS",
    "IMAGES",
    "INPUT",
    "LABEL",
    "OPSET",
    "PROBABILITIES",
    "VALUE",
    "Parity",
    "export_onnx",
    "exported",
    "parity",
    "predict_onnx",
    "recorded",
    "run_onnx",
]

INPUT = "features"
IMAGES = "images"
PROBABILITIES = "probabilities"
LABEL = "label"
# Of additive models alone.
CONTRIBUTIONS = "contributions"
VALUE = "value"

# Stated, so that another torch does not silently move it; onnxruntime runs up to 26.
OPSET = 20
_CHUNK = 4096
_DEBUGGING = frozenset({"doc_string", "metadata_props"})
_ROWS = ({0: torch.export.Dim("rows")},)


@dataclass(frozen=True)
class Parity:
    """How far an export is from the module it came from.

    Attributes:
        rows: how many were compared.
        max_abs_difference: largest difference of a probability; of a number, as a share
            of its public range.
        label_agreement: share of rows with the same label; None where there are none.
    """

    rows: int
    max_abs_difference: float
    label_agreement: float | None

    def line(self) -> str:
        """The comparison, for people."""
        most = f"differs from torch by {self.max_abs_difference:.1e} at most"
        if self.label_agreement is None:
            return f"{most}, of the target's range, on {self.rows} rows"
        return f"{most}, same label on {self.label_agreement:.1%} of {self.rows} rows"


def export_onnx(module: nn.Module, columns: Sequence[Column]) -> bytes:
    """Export a classifier of tabular rows.

    Args:
        module: maps float32 ``(n, d)`` to probabilities and labels, as
            `architectures.TabularClassifier` does.
        columns: the ``d`` columns of its input.

    Returns:
        A model with input ``features`` FP32 [-1, d] and outputs ``probabilities`` FP32
        [-1, classes] and ``label`` INT64 [-1].

    Raises:
        ExportError: the exporter refuses the module.
    """
    return exported(recorded(module, (len(columns),)), INPUT)


def recorded(module: nn.Module, shape: tuple[int, ...]) -> ExportedProgram:
    """The graph of a classifier as it is now, with weights of its own.

    What happens to the module afterwards does not reach it.

    Args:
        module: as of `export_onnx`, or `architectures.ImageClassifier`.
        shape: of one row or image.

    Raises:
        ExportError: the module cannot be recorded.
    """
    with _quiet():
        try:
            return torch.export.export(
                copy.deepcopy(module).cpu().eval(),
                (torch.zeros(2, *shape),),
                dynamic_shapes=_ROWS,
            )
        except Exception as error:  # noqa: BLE001  (it runs the module's code)
            raise ExportError(_why(error)) from None


def exported(program: ExportedProgram, name: str) -> bytes:
    """A recorded graph as an ONNX file.

    Args:
        program: of `recorded`.
        name: of the file's input, `INPUT` or `IMAGES`.

    Returns:
        With the output `VALUE` of a regressor; else with `PROBABILITIES`, `LABEL` and,
        of an additive model, `CONTRIBUTIONS`.

    Raises:
        ExportError: the exporter refuses it.
    """
    with _quiet():
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[name],
                output_names=_outputs(program),
                dynamic_shapes=_ROWS,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(_why(error)) from None
    if made is None:
        raise ExportError("the exporter returned no program")
    model: Any = made.model_proto
    _strip(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _outputs(program: ExportedProgram) -> list[str]:
    """Names of as many outputs as it has."""
    count = len(program.graph_signature.user_outputs)
    return [VALUE] if count == 1 else [PROBABILITIES, LABEL, CONTRIBUTIONS][:count]


def _why(error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"the module cannot be exported: {first[:200]}"


def run_onnx(
    model: bytes, rows: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Run an exported classifier with onnxruntime on one thread.

    Args:
        model: the bytes of an ONNX file that has been inspected, or was made here.
        rows: raw features ``(n, d)``, or images.

    Returns:
        Probabilities ``(n, classes)`` and labels ``(n,)``.

    Raises:
        SessionError: onnxruntime refuses the model.
    """
    probabilities, label = _run(model, rows, (PROBABILITIES, LABEL))
    return probabilities, label


def predict_onnx(model: bytes, rows: NDArray[Any]) -> NDArray[np.float32]:
    """Run an exported regressor as `run_onnx` does a classifier.

    Returns:
        The numbers ``(n,)``, in their own unit.

    Raises:
        SessionError: onnxruntime refuses the model.
    """
    (numbers,) = _run(model, rows, (VALUE,))
    return numbers


def _run(
    model: bytes, rows: NDArray[Any], outputs: Sequence[str]
) -> tuple[NDArray[Any], ...]:
    session = make_session(model)
    name = session.get_inputs()[0].name
    parts = [
        session.run(
            list(outputs),
            {name: np.asarray(rows[start : start + _CHUNK], dtype=np.float32)},
        )
        for start in range(0, max(1, len(rows)), _CHUNK)
    ]
    return tuple(np.concatenate(item) for item in zip(*parts))


def parity(module: nn.Module, model: bytes, rows: NDArray[Any]) -> Parity:
    """Compare a module with its export, run by onnxruntime, on raw rows.

    Raises:
        ExportError: no rows, or one of the two returns something that is not finite.
    """
    if len(rows) == 0:
        raise ExportError("parity needs at least one row")
    if isinstance(module, TabularRegressor):
        (wanted,), got = _of_module(module, rows), predict_onnx(model, rows)
        span = module.target.high - module.target.low
        return Parity(len(rows), _largest(wanted, got) / span, None)
    got, got_labels = run_onnx(model, rows)
    wanted, labels, *_ = _of_module(module, rows)
    agreed = int((labels == got_labels).sum())
    return Parity(len(rows), _largest(wanted, got), agreed / len(rows))


def _of_module(module: nn.Module, rows: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """What a module gives about rows, a piece at a time."""
    parts = []
    for start in range(0, len(rows), _CHUNK):
        # A copy: the rows may be memory that torch may not write to.
        given = torch.from_numpy(rows[start : start + _CHUNK].astype(np.float32))
        with torch.no_grad():
            found = module.eval()(given)
        found = found if isinstance(found, tuple) else (found,)
        parts.append([item.numpy() for item in found])
    return tuple(np.concatenate(item) for item in zip(*parts))


def _largest(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    difference = float(np.abs(wanted - got).max())
    if not math.isfinite(difference):
        raise ExportError("the module or its export returns what is not finite")
    return difference


def _strip(model: Any) -> None:
    """Remove what the exporter wrote for debuggers, wherever ONNX allows it."""
    for message in messages(model):
        for name in _DEBUGGING.intersection(message.DESCRIPTOR.fields_by_name):
            message.ClearField(name)
        if isinstance(message, onnx.GraphProto):
            message.ClearField("value_info")  # inferred again where it is needed


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes from the terminal; its errors still raise.

    It logs that torchvision is absent and warns about torch's own internals: nothing a
    user could act on.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
