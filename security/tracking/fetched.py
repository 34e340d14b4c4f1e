"""A model's ONNX file, from MLflow, within bounds.

Only MLmodel, the file that it names, and the weights that this file names are
downloaded. MLflow loads nothing, and no pickle, environment or code of the model is
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from models.errors import BundleError
from models.files import read_regular
from models.report import Condition
from security.tracking.addresses import ModelVersion
from security.tracking.client import Address, Client, Registered
from security.tracking.mlmodel import (
    MAX_MLMODEL_BYTES,
    MLMODEL_FILE,
    is_plain,
    parse_mlmodel,
)

__all__ = ["FetchLimits", "Fetched", "fetch_onnx"]


@dataclass(frozen=True)
class FetchLimits:
    """Bounds on what is downloaded.

    Attributes:
        max_model_bytes: of the ONNX file.
        max_total_bytes: of it and its weights.
        max_files: in the model's folder.
    """

    max_model_bytes: int = 512 << 20
    max_total_bytes: int = 1 << 30
    max_files: int = 256


@dataclass(frozen=True)
class Fetched:
    """A model that was downloaded. Nothing of it was inspected.

    Attributes:
        model: the ONNX file's bytes.
        origin: what MLflow says of where it is from, for a provenance report.
        registered: the version, if it is one of a registered model.
    """

    model: bytes = field(repr=False)
    origin: Mapping[str, Condition]
    registered: Registered | None


def fetch_onnx(
    client: Client, address: Address, folder: Path, limits: FetchLimits = FetchLimits()
) -> Fetched:
    """Download a model's ONNX file, with the weights beside it.

    Args:
        client: whoever runs its server, or logged the model, may be hostile.
        address: of the model; an alias is looked up once, so that what comes is of one
            version.
        folder: an empty one, of this user alone. Weights lie in it afterwards.
        limits: on sizes and counts.

    Raises:
        BundleError: not a model with an ONNX file, or one beyond the limits.
        TrackingError: MLflow refuses, or cannot be reached.
    """
    registered, alias = None, ""
    if isinstance(address, ModelVersion):
        registered, alias = client.registered(address), address.alias
        address = registered.address
    source = _Source(client, address, client.files(address), folder)
    if len(source.files) > limits.max_files:
        raise BundleError(f"{address.uri}: more than {limits.max_files} files")
    if MLMODEL_FILE not in source.files:
        raise BundleError(f"{address.uri}: no {MLMODEL_FILE}: not a model of MLflow")
    file = source.take(MLMODEL_FILE, limits.max_model_bytes)
    told = parse_mlmodel(read_regular(file, max_bytes=MAX_MLMODEL_BYTES))
    model = _downloaded(source, told.file, limits)
    stated = {"mlflow_server": client.server, "mlflow_uri": address.uri}
    stated |= {"mlflow_version": told.origin.get("mlflow_version", "")}
    stated |= _origin(alias, registered, told.origin)
    return Fetched(model, {k: v for k, v in stated.items() if v}, registered)


@dataclass(frozen=True)
class _Source:
    """A folder of artifacts, and where its files go."""

    client: Client
    address: Address
    files: Mapping[str, int]
    into: Path

    def take(self, name: str, most: int) -> Path:
        """Download a file of at most so many bytes."""
        if name not in self.files:
            raise BundleError(f"{self.address.uri}: {name} is missing")
        if self.files[name] > most:
            raise BundleError(
                f"{name}: {self.files[name]} bytes, at most {most} allowed"
            )
        return self.client.download(self.address, name, self.into, most)


def _downloaded(source: _Source, name: str, limits: FetchLimits) -> bytes:
    """The ONNX file; beside it, in the folder, the weights that it names."""
    path = source.take(name, limits.max_model_bytes)
    model = read_regular(path, max_bytes=limits.max_model_bytes)
    left = limits.max_total_bytes - len(model)
    # A file of weights has its name in the model, and nothing need parse it here.
    for other in filter(is_plain, source.files):
        if other not in (name, MLMODEL_FILE) and other.encode() in model:
            left -= source.take(other, left).stat().st_size
    return model


def _origin(
    alias: str, registered: Registered | None, told: Mapping[str, str]
) -> dict[str, str]:
    """The registry's word before that of MLmodel, which came with the model."""
    run_id, model_id = told.get("run_id", ""), told.get("model_id", "")
    if registered is None:
        return {"mlflow_run_id": run_id, "mlflow_model_id": model_id}
    return {
        "mlflow_model": registered.address.name,
        "mlflow_model_version": registered.address.version,
        "mlflow_alias": alias,
        "mlflow_run_id": registered.run_id or run_id,
        "mlflow_model_id": registered.model_id or model_id,
    }
