"""A program that calls a server by the SDK that it imports, and says what that took.

Run by `benchmarks.calls`, under the PYTHONPATH of the build that is measured: it
imports nothing else of ours. It reads JSON lines: first where to call, then how often
in which case; it answers each with the seconds of CPU that the calls took, of all its
threads. Case "httpx" is the same in plaintext, by httpx and JSON: what people write.
"""

import asyncio
import json
import sys
import time

import httpx
import numpy as np

from sealgate import AsyncClient, Client, Options
from sealgate.protocol import keyconfig


def main() -> None:
    place = json.loads(sys.stdin.readline())
    inputs = {
        model: {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        for model, shapes in place["models"].items()
    }
    with Client(place["url"], token=place["token"]) as client:
        offered = keyconfig.decode_list(client.keys())
    loop = asyncio.new_event_loop()
    clients = {}
    for config in offered:
        options = Options(key_configs=keyconfig.encode_list([config]))
        for kind in (Client, AsyncClient):
            found = kind(place["url"], token=place["token"], options=options)
            clients[config.kem_id, kind.__name__] = found
    headers = {"authorization": f"Bearer {place['token']}"}
    plain = httpx.Client(base_url=place["url"], headers=headers)
    print("ready", flush=True)
    for line in sys.stdin:
        kem_id, kind, model, count = json.loads(line)
        client, rows = clients.get((kem_id, kind)), inputs[model]
        began = time.process_time()
        if kind == "AsyncClient":
            loop.run_until_complete(_asked(client, model, rows, count))
        else:
            for _ in range(count):
                client.infer(model, rows) if client else _plain(plain, model, rows)
        print(time.process_time() - began, flush=True)


async def _asked(client: AsyncClient, model: str, rows: dict, count: int) -> None:
    for _ in range(count):
        await client.infer(model, rows)


def _plain(client: httpx.Client, model: str, rows: dict) -> list:
    inputs = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": list(array.shape),
            "data": array.ravel().tolist(),
        }
        for name, array in rows.items()
    ]
    answer = client.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
    return [np.array(tensor["data"]) for tensor in answer.json()["outputs"]]


if __name__ == "__main__":
    main()
