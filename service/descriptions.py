"""What is told of the server and of a model: metadata, and the passport.

Configuration, statistics and the index of the repository are not in the protocol: they
are what Triton answers, as far as it means something here. Its clients ask for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.bundle import VERDICT_FILE, mldsa_file, report_file
from models.conformal import Conformal
from models.manifest import Tensor
from sealgate.protocol import binary_tensors
from sealgate.protocol.dsse import unstamped
from security.admission.attest import signature_files, waiver_file
from security.admission.gate import Admission
from security.admission.lifecycle import State
from service.inference.served import Served, answers_now

__all__ = [
    "model_config",
    "model_metadata",
    "model_statistics",
    "passport",
    "repository_entry",
    "server_metadata",
]

SERVER_NAME = "sealgate"
SERVER_VERSION = "0.1.0"
_EXTENSIONS = [binary_tensors.EXTENSION]


def server_metadata() -> dict[str, Any]:
    """Of the protocol's ``GET /v2``."""
    return {"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": _EXTENSIONS}


def model_metadata(model: Served, versions: list[str]) -> dict[str, Any]:
    """Of the protocol's ``GET /v2/models/{model}``, with what the manifest adds."""
    manifest = model.manifest
    policy = manifest.output_policy.to_object()
    added = {spec.name for spec in manifest.release.added}
    return {
        "name": manifest.name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [tensor.described() for tensor in manifest.inputs],
        "outputs": [
            _made_from(tensor.described(), manifest.conformal, added)
            for tensor in manifest.served
        ],
        "parameters": {
            "max_rows": manifest.max_rows,
            **({"output_policy": policy} if policy else {}),
        },
    }


def _made_from(
    described: dict[str, Any], conformal: Conformal | None, added: set[str]
) -> dict[str, Any]:
    """An output; of an end or a set, also which one it is made from."""
    if conformal is None or described["name"] not in added:
        return described
    told = {**described.get("parameters", {}), "made_from": conformal.output}
    return {**described, "parameters": told}


def passport(admission: Admission) -> dict[str, Any]:
    """The passport: the signed verdict, and for each kind its attestation and report.

    They travel as text, since digests are over their very bytes: the statements and
    waivers without time stamps, which the verdict's digests of them leave out.
    """
    files = admission.bundle.files
    second = files.get(mldsa_file(VERDICT_FILE))
    return {
        "verdict": files[VERDICT_FILE].decode(),
        **({} if second is None else {"verdict_mldsa": second.decode()}),
        "evidence": {kind: _evidence(files, kind) for kind in admission.reports},
        "waivers": {
            kind: unstamped(files[waiver_file(kind)]).decode()
            for kind in admission.waivers
        },
    }


def _evidence(files: Mapping[str, bytes], kind: str) -> dict[str, Any]:
    signed = [unstamped(files[name]).decode() for name in signature_files(files, kind)]
    return {
        "attestation": signed[0],
        "further": signed[1:],
        "report": files[report_file(kind)].decode(),
    }


def model_config(model: Served) -> dict[str, Any]:
    """Triton's configuration of a model, by which its clients shape requests.

    Where every tensor has rows, ``max_batch_size`` is how many a request may have, and
    ``dims`` are those of one row. Otherwise it is 0, and ``dims`` are the whole shape.
    """
    manifest = model.manifest
    tensors = (*manifest.inputs, *manifest.outputs)
    batched = all(tensor.spec.shape[:1] == (-1,) for tensor in tensors)
    return {
        "name": manifest.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": manifest.max_rows if batched else 0,
        "input": [_tensor_config(tensor, batched) for tensor in manifest.inputs],
        "output": [_tensor_config(tensor, batched) for tensor in model.manifest.served],
    }


def _tensor_config(tensor: Tensor, batched: bool) -> dict[str, Any]:
    kind, dims = tensor.spec.datatype, list(tensor.spec.shape[int(batched) :])
    config = {
        "name": tensor.spec.name,
        "data_type": "TYPE_STRING" if kind == "BYTES" else f"TYPE_{kind}",
        "dims": dims or [1],
    }
    # Triton has no empty dims: it says that a row is one number in this way.
    return config if dims else config | {"reshape": {"shape": []}}


def repository_entry(state: State[Served]) -> dict[str, Any]:
    """A version in Triton's index of the model repository."""
    manifest, ready = state.content.manifest, answers_now(state)
    return {
        "name": manifest.name,
        "version": manifest.version,
        "state": "READY" if ready else "UNAVAILABLE",
        "reason": "" if ready else "not admitted now",
    }


def model_statistics(
    model: Served, totals: Mapping[tuple[str, ...], Sequence[float]]
) -> dict[str, Any]:
    """Triton's statistics of a version, since the server's start, by all workers.

    Triton counts durations by request, we by run: ``queue`` is how long the oldest
    request of each run waited, ``success`` has the sum of waiting and running.
    """
    name, version = model.manifest.name, model.manifest.version
    answered = {
        key[4]: values[0]
        for key, values in totals.items()
        if key[:4] == ("sealgate_requests", name, version, "infer")
    }
    queue, run = (
        _duration(totals.get(("sealgate_stage_seconds", stage, name, version), ()))
        for stage in ("queue", "run")
    )
    failed = sum(count for status, count in answered.items() if status[0] == "5")
    nothing = {"count": 0, "ns": 0}
    return {
        "name": name,
        "version": version,
        "inference_count": int(_first(totals, "sealgate_rows", name, version)),
        "execution_count": run["count"],
        "inference_stats": {
            "success": {
                "count": int(answered.get("200", 0)),
                "ns": queue["ns"] + run["ns"],
            },
            "fail": {"count": int(failed), "ns": 0},
            "queue": queue,
            "compute_input": nothing,
            "compute_infer": run,
            "compute_output": nothing,
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [],
    }


def _first(totals: Mapping[tuple[str, ...], Sequence[float]], *key: str) -> float:
    return totals[key][0] if key in totals else 0.0


def _duration(values: Sequence[float]) -> dict[str, int]:
    """A histogram of seconds as a count, and a sum in nanoseconds."""
    seconds = values[0] if values else 0.0
    return {"count": int(sum(values[1:])), "ns": round(seconds * 1e9)}
