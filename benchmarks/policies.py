"""What an output policy adds to an answer: CPU of one inference, in process.

Token, permissions, quotas and audit record included; no socket, one row of JSON at a
time. Beside it the policy alone, hot, for scores of ten classes.
"""

import asyncio
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.timing import alternate, table
from models.manifest import Tensor
from models.output_policy import ALL_SCORES, OutputPolicy
from models.release import Release
from sealgate.protocol.tensors import TensorSpec
from tests.support import rooms
from tests.support.bundles import manifest, onnx_model

POLICIES = (
    ALL_SCORES,
    OutputPolicy(decimals=2),
    OutputPolicy(top_k=1),
    OutputPolicy(decimals=2, top_k=1),
    OutputPolicy(label_only=True),
)
REQUESTS = 100


def run() -> None:
    """Print the table."""
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as folder:
        cases = {str(p): _inferences(Path(folder), p, loop) for p in POLICIES}
        whole = alternate(cases, rounds=21, repeat=1)
    for task in asyncio.all_tasks(loop):  # what gives back slots of quotas
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    alone = alternate({str(p): _alone(p) for p in POLICIES}, rounds=21, repeat=500)
    first = whole[str(ALL_SCORES)]
    table(
        ("what leaves", "µs of an inference", "beside all scores", "policy alone, µs"),
        [
            (
                name,
                f"{seconds / REQUESTS * 1e6:.0f}",
                f"{(seconds - first) / REQUESTS * 1e6:+.0f}",
                f"{alone[name] * 1e6:.1f}",
            )
            for name, seconds in whole.items()
        ],
    )


def _inferences(folder: Path, policy: OutputPolicy, loop: asyncio.AbstractEventLoop):
    place = folder / str(policy).replace(" ", "-")
    admission = rooms.unverified(place, onnx_model(), manifest(leaving=policy))
    wired = rooms.wire(place / "rooms", admissions=[admission], require_sealed=False)
    body = json.dumps({"inputs": [rooms.INPUT]}).encode()
    path, bearer = "/v2/models/toy/infer", rooms.token("infer:toy")
    request = rooms.request("POST", path, bearer=bearer, body=body)

    async def ask() -> None:
        for _ in range(REQUESTS):
            answer = await wired.routes.answer(request, sealed=False)
            assert answer.status == 200

    return lambda: loop.run_until_complete(ask())


def _alone(policy: OutputPolicy):
    names = tuple(map(str, range(10)))
    scores = Tensor(TensorSpec("scores", "FP32", (-1, 10)), labels=names)
    release, row = Release(policy, (scores,)), np.full((1, 10), 0.1, np.float32)
    return lambda: release.leave("scores", row)
