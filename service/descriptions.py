"""What is told of the server and of a model: metadata, and the passport."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.bundle import VERDICT_FILE, report_file
from models.manifest import Tensor
from sealgate.protocol import binary_tensors
from security.admission.attest import signature_files, waiver_file
from service.inference.lineup import Served

__all__ = ["model_metadata", "passport", "server_metadata"]

SERVER_NAME = "sealgate"
SERVER_VERSION = "0.1.0"
_EXTENSIONS = [binary_tensors.EXTENSION]


def server_metadata() -> dict[str, Any]:
    """Of the protocol's ``GET /v2``."""
    return {"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": _EXTENSIONS}


def model_metadata(model: Served, versions: list[str]) -> dict[str, Any]:
    """Of the protocol's ``GET /v2/models/{model}``, with what the manifest adds."""
    manifest = model.manifest
    return {
        "name": manifest.name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor_metadata(tensor) for tensor in manifest.inputs],
        "outputs": [_tensor_metadata(tensor) for tensor in manifest.outputs],
    }


def _tensor_metadata(tensor: Tensor) -> dict[str, Any]:
    result = {
        "name": tensor.spec.name,
        "datatype": tensor.spec.datatype,
        "shape": list(tensor.spec.shape),
    }
    parameters: dict[str, Any] = {}
    if tensor.columns:
        parameters["columns"] = [column.to_object() for column in tensor.columns]
    if tensor.labels:
        parameters["labels"] = list(tensor.labels)
    return result | ({"parameters": parameters} if parameters else {})


def passport(model: Served) -> dict[str, Any]:
    """The passport: the signed verdict, and for each kind its attestation and report.

    They travel as text, since digests are over their very bytes.
    """
    files = model.admission.bundle.files
    return {
        "verdict": files[VERDICT_FILE].decode(),
        "evidence": {kind: _evidence(files, kind) for kind in model.admission.reports},
        "waivers": {
            kind: files[waiver_file(kind)].decode() for kind in model.admission.waivers
        },
    }


def _evidence(files: Mapping[str, bytes], kind: str) -> dict[str, Any]:
    signed = [files[name].decode() for name in signature_files(files, kind)]
    return {
        "attestation": signed[0],
        "further": signed[1:],
        "report": files[report_file(kind)].decode(),
    }
