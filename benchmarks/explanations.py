"""What an explanation of one row costs: CPU of all threads, through the worker's rooms.

Beside the sampled one stands a loop over permutations outside of any server, which has
neither token, quota nor record.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import table
from models import shapley
from models.architectures import NetworkSpec, TabularClassifier, build_network
from models.export import export_onnx
from models.manifest import Column, Manifest, Tensor
from models.sessions import Session, make_session
from sealgate.protocol.tensors import TensorSpec
from tests.support.ensembles import boosted
from tests.support.rooms import Rooms, request, token, unverified, wire

ROUNDS, REPEAT = 9, 5
COLUMNS, PAIRS = 30, 10


def run() -> None:
    """Print the table."""
    row = np.random.default_rng(0).normal(size=(1, COLUMNS)).astype(np.float32)
    perceptron, lines = _perceptron(), []
    with tempfile.TemporaryDirectory() as folder:
        own = _asked(Path(folder) / "mlp", perceptron, "probabilities", row)
        plain = _cpu(lambda: _pair_by_pair(perceptron, row))
        name = f"MLP of 32, {COLUMNS} columns, {PAIRS} pairs"
        lines.append((name, f"{own:.2f}", f"{plain:.1f}", "6"))
        for depth in (3, 6):
            model = boosted(100, depth, COLUMNS)[0]
            own = _asked(Path(folder) / f"trees{depth}", model, "scores", row)
            lines.append((f"100 trees of depth {depth}", f"{own:.2f}", "", "5"))
    table(("explained row", "ms of CPU", "in a plain loop", "target"), lines)


def _perceptron() -> bytes:
    torch.manual_seed(0)
    network = build_network("mlp", NetworkSpec((COLUMNS,), 2, hidden=(32,)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return export_onnx(TabularClassifier(_columns(), network), _columns())


def _columns() -> tuple[Column, ...]:
    return tuple(Column(f"c{i}", -4.0, 4.0) for i in range(COLUMNS))


def _asked(folder: Path, model: bytes, output: str, row: np.ndarray) -> float:
    """A request in the worker's rooms: token, quotas, record, runs and answer."""
    inputs = (
        Tensor(TensorSpec("features", "FP32", (-1, COLUMNS)), columns=_columns()),
    )
    outputs = (
        Tensor(TensorSpec(output, "FP32", (-1, 2)), labels=("no", "yes")),
        Tensor(TensorSpec("label", "INT64", (-1,))),
    )
    folder.mkdir()
    manifest = Manifest("m", "1.0.0", inputs, outputs, 1024)
    rooms = wire(folder / "rooms", admissions=[unverified(folder, model, manifest)])
    return asyncio.run(_answered(rooms, row))


async def _answered(rooms: Rooms, row: np.ndarray) -> float:
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, COLUMNS]}
    body = json.dumps({"inputs": [tensor | {"data": row.tolist()}]}).encode()
    asked = request(
        "POST", "/v2/models/m/explain", bearer=token("explain:m"), body=body
    )
    samples = []
    for _ in range(ROUNDS + 1):
        began = time.process_time()
        for _ in range(REPEAT):
            response = await rooms.routes.answer(asked, sealed=True)
            assert response.status == 200, bytes(response.body)
        samples.append((time.process_time() - began) / REPEAT * 1e3)
    return statistics.median(samples[1:])


def _cpu(call: Callable[[], object]) -> float:
    samples = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(REPEAT):
            call()
        samples.append((time.process_time() - began) / REPEAT * 1e3)
    return statistics.median(samples)


def _pair_by_pair(model: bytes, row: np.ndarray) -> np.ndarray:
    """Each permutation's mixtures made one by one, and run by themselves."""
    session = _session(model)
    random, found = np.random.default_rng(0), np.zeros(COLUMNS)
    for _ in range(PAIRS):
        order = random.permutation(COLUMNS)
        for each in (order, order[::-1]):
            mixed = np.zeros((COLUMNS + 1, COLUMNS), np.float32)
            for place, column in enumerate(each, start=1):
                mixed[place:, column] = row[0, column]
            (chances,) = session.run(["probabilities"], {"features": mixed})
            odds = shapley.log_odds(chances, np.ones(len(mixed), np.intp))
            found[each] += np.diff(odds)
    return found / (2 * PAIRS)


_SESSIONS: dict[bytes, Session] = {}


def _session(model: bytes) -> Session:
    return _SESSIONS.setdefault(model, make_session(model))
