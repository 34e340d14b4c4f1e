"""MLmodel: which file of a model of MLflow is the ONNX file.

MLflow's own reader would load the model with the code that the file names. Here it
gives the name of one file and where the model is from; everything else is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import BundleError
from security.errors import YamlError

__all__ = [
    "MAX_MLMODEL_BYTES",
    "MLMODEL_FILE",
    "LoggedOnnx",
    "is_plain",
    "parse_mlmodel",
]

MLMODEL_FILE = "MLmodel"
MAX_MLMODEL_BYTES = 256 << 10

# Names that are the same in a URI, in a folder and on a terminal.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,199}")
_ORIGIN = {
    "run_id": re.compile(r"\w{1,64}"),
    "model_id": re.compile(r"[\w-]{1,64}"),
    "mlflow_version": re.compile(r"[\w.+-]{1,64}"),
}
_MAX_SHOWN = 5


@dataclass(frozen=True)
class LoggedOnnx:
    """What an MLmodel says of its ONNX file.

    Attributes:
        file: its name, in the folder of MLmodel.
        origin: of run_id, model_id and mlflow_version those that are given.
    """

    file: str
    origin: Mapping[str, str]


def is_plain(name: str) -> bool:
    """Whether a name is a file's in the same folder, whatever reads it."""
    return _PLAIN.fullmatch(name) is not None


def parse_mlmodel(data: bytes) -> LoggedOnnx:
    """Read the file.

    Args:
        data: whoever logged the model may be hostile.

    Raises:
        BundleError: not plain YAML, no flavour ``onnx``, or a name that is no plain
            file's beside it.
    """
    # The list of commands needs no PyYAML, which not every machine has.
    from security import strict_yaml  # noqa: PLC0415

    try:
        found = strict_yaml.load_mapping(data, max_bytes=MAX_MLMODEL_BYTES)
    except YamlError as error:
        raise BundleError(f"{MLMODEL_FILE}: {error}") from None
    flavors = found.get("flavors")
    if not isinstance(flavors, dict) or not flavors:
        raise BundleError(f"{MLMODEL_FILE}: names no flavours")
    onnx = flavors.get("onnx")
    if not isinstance(onnx, dict):
        raise BundleError(
            f"{MLMODEL_FILE}: no ONNX model, but {_names(flavors)}: these are loaded "
            "with code or pickle, which is not done here; export it, for instance by "
            "skl2onnx.to_onnx, and log that with mlflow.onnx.log_model"
        )
    file = onnx.get("data")
    if not isinstance(file, str) or not is_plain(file):
        raise BundleError(f"{MLMODEL_FILE}: flavors.onnx.data is no file beside it")
    return LoggedOnnx(file, _origin(found))


def _origin(found: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value
        for name, form in _ORIGIN.items()
        if isinstance(value := found.get(name), str) and form.fullmatch(value)
    }


def _names(flavors: Mapping[str, Any]) -> str:
    names = sorted(name if is_plain(name) else "?" for name in flavors)
    return ", ".join(names[:_MAX_SHOWN])
