"""Where a training stands, in a file that is read without running anything.

An npz archive of plain arrays and one JSON document: no pickle. The ledger knows the
digest of the only file that may be taken up, so a changed or copied one is refused. It
holds no state of a random generator: noise and batches after a resume are new. It does
hold the record of the mechanism, which is not private: it is for its owner alone, and
removed when the training is done.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import BundleError
from models.files import read_regular, write_atomic
from security.errors import TrainingError
from security.training.loop import State
from security.training.mechanism import Conformance

__all__ = ["Checkpoint", "read_checkpoints", "write_checkpoint"]

MAX_BYTES = 8 << 30
_META = "meta"


@dataclass(frozen=True)
class Checkpoint:
    """A state, and which training it belongs to.

    Attributes:
        training: id in the ledger; empty for public data, which has no budget.
        config_sha256: of the configuration.
        data_sha256: of the data.
        bound_sha256: of what training began with and does not change; empty in files of
            an earlier version.
        state: weights, averages, momentum, step.
        digest: of the file.
    """

    training: str
    config_sha256: str
    data_sha256: str
    state: State
    bound_sha256: str = ""
    digest: str = ""


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> tuple[Path, str]:
    """Write a checkpoint under a name of its own; returns it and its digest."""
    state = checkpoint.state
    arrays = {f"body/{name}": value for name, value in state.body.items()}
    arrays |= {f"average/{i}": value for i, value in enumerate(state.average)}
    for number, values in state.optimizer.items():
        arrays |= {f"optimizer/{number}/{k}": v for k, v in values.items()}
    meta = {
        "training": checkpoint.training,
        "config_sha256": checkpoint.config_sha256,
        "data_sha256": checkpoint.data_sha256,
        "bound_sha256": checkpoint.bound_sha256,
        "step": state.step,
        "loss": state.loss,
        "clamped": state.clamped,
        "record": state.record,
        "nonce": secrets.token_hex(16),  # the same state twice is two checkpoints
    }
    buffer = io.BytesIO()
    plain: dict[str, Any] = {name: v.cpu().numpy() for name, v in arrays.items()}
    plain[_META] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    np.savez(buffer, **plain)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"{digest[:32]}.npz"
    write_atomic(path, data, mode=0o600)
    return path, digest


def read_checkpoints(folder: Path) -> dict[str, Checkpoint]:
    """Every checkpoint of a folder, by its digest.

    Raises:
        TrainingError: one is not a checkpoint.
    """
    found = {}
    for path in sorted(folder.glob("*.npz")):
        checkpoint = _read(path)
        found[checkpoint.digest] = checkpoint
    return found


def _read(path: Path) -> Checkpoint:
    try:
        data = read_regular(path, max_bytes=MAX_BYTES)
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            arrays = {name: np.array(loaded[name]) for name in loaded.files}
        meta = json.loads(arrays.pop(_META).tobytes())
        return Checkpoint(
            training=str(meta["training"]),
            config_sha256=str(meta["config_sha256"]),
            data_sha256=str(meta["data_sha256"]),
            state=_state(arrays, meta),
            bound_sha256=str(meta.get("bound_sha256", "")),
            digest=hashlib.sha256(data).hexdigest(),
        )
    except (
        BundleError,
        KeyError,
        OSError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        raise TrainingError(f"{path.name}: not a checkpoint") from None


def _state(arrays: dict[str, Any], meta: dict[str, Any]) -> State:
    body: dict[str, Tensor] = {}
    average: dict[int, Tensor] = {}
    optimizer: dict[int, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        tensor = torch.from_numpy(array)
        if kind == "body":
            body[rest] = tensor
        elif kind == "average":
            average[int(rest)] = tensor
        else:
            number, _, key = rest.partition("/")
            optimizer.setdefault(int(number), {})[key] = tensor
    loss = meta["loss"]
    return State(
        step=int(meta["step"]),
        body=body,
        average=[average[i] for i in range(len(average))],
        optimizer=optimizer,
        loss=None if loss is None else float(loss),
        clamped=float(meta.get("clamped", 0.0)),
        record=_record(meta["record"]),
    )


def _record(values: Any) -> tuple[float, ...]:
    record = tuple(float(value) for value in values)
    if len(record) != len(Conformance().counts()):
        raise ValueError("not a record")
    return record
