"""Gateway work per request: open it, parse it, write the answer, seal that.

Beside it the floor, `hpke.Suite.decrypt` of the same bytes alone; then what the replay
window adds, what garbage costs, and how many copies of a large payload are alive.
"""

import asyncio
import itertools
import os
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import hpke as library

from benchmarks.timing import alternate, table
from sealgate.errors import DecryptionError
from sealgate.protocol import bhttp, ohttp
from sealgate.protocol.bhttp import Request, Response
from sealgate.protocol.drafts import chunked
from sealgate.protocol.hpke import HybridPrivateKey, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.ohttp_stream import RequestReceiver
from sealgate.protocol.padding import pad, padded_size
from security.sealing.freshness import Freshness, http_date
from security.sealing.replay import LocalReplayStore

SIZES = {"1 KB": (1 << 10, 200), "600 KB": (600 << 10, 20), "10 MB": (10 << 20, 3)}
# What one read of a connection gives.
PORTION_BYTES = 256 << 10
DATE = (b"date", http_date(1_800_000_000))
HEADERS = ((b"authorization", b"Bearer " + b"x" * 600), DATE)
KEYS = {"X25519": PrivateKey.generate(), "X-Wing": HybridPrivateKey.generate()}
FLOORS = {
    "X25519": (library.KEM.X25519, KEYS["X25519"].key),
    "X-Wing": (
        library.KEM.MLKEM768_X25519,
        library.MLKEM768X25519PrivateKey(
            KEYS["X-Wing"].mlkem, KEYS["X-Wing"].x25519.key
        ),
    ),
}


def run() -> None:
    """Print the tables."""
    rows = [
        row
        for name, (size, repeat) in SIZES.items()
        for row in _exchanges(name, size=size, repeat=repeat)
    ]
    table(
        (
            "body",
            "KEM",
            "gateway, µs of CPU",
            "`hpke.Suite.decrypt` alone, µs",
            "ratio",
            "garbage refused, µs",
        ),
        rows,
    )
    print()
    table(("replay window", "µs of CPU per request"), _replay())
    print()
    table(("10 MB, copies alive at most", "AES-128-GCM"), _copies())


def message_of(size: int) -> bytes:
    """A padded request with so many random bytes."""
    body = os.urandom(size)
    request = Request(b"POST", b"https", b"h", b"/v2/models/m/infer", HEADERS, body)
    return pad(bhttp.encode_request(request))


def _exchanges(name: str, *, size: int, repeat: int) -> list[tuple[str, ...]]:
    """Both KEMs in the same rounds, so that neither is always first."""
    answer = os.urandom(size)
    message = message_of(size)
    cases = {
        f"{kem} {case}": call
        for kem in KEYS
        for case, call in cases_of(kem, message, answer).items()
    }
    medians = alternate(cases, rounds=15, repeat=repeat)
    rows = []
    for kem in KEYS:
        gateway, floor, garbage = (
            medians[f"{kem} {case}"] for case in ("gateway", "floor", "garbage")
        )
        micros = [f"{value * 1e6:.0f}" for value in (gateway, floor, garbage)]
        rows.append((name, kem, *micros[:2], f"{gateway / floor:.2f}", micros[2]))
    return rows


def cases_of(
    kem: str, message: bytes, answer: bytes
) -> dict[str, Callable[[], object]]:
    """The gateway's work, the floor beside it, and what garbage costs."""
    key = KEYS[kem]
    config = KeyConfig(1, key.kem_id, key.public_bytes)
    sealed, _ = ohttp.seal_request(config, message)
    # A header that names the key, then noise: it costs a decapsulation to see that.
    garbage = sealed[:-1] + bytes([sealed[-1] ^ 1])
    kem_id, private = FLOORS[kem]
    suite = library.Suite(kem_id, library.KDF.HKDF_SHA256, library.AEAD.AES_128_GCM)
    floor = suite.encrypt(message, private.public_key(), info=b"")
    return {
        "gateway": lambda: _gateway(sealed, key, answer),
        "floor": lambda: suite.decrypt(floor, private, info=b""),
        "garbage": lambda: _refuse(garbage, key),
    }


def _gateway(sealed: bytes, key: PrivateKey | HybridPrivateKey, answer: bytes) -> int:
    """What service.gateway does, but for the answer itself and the replay window."""
    message, context = _opened(sealed, key)
    bhttp.decode_request(message)
    parts = bhttp.response_parts(Response(200, (), answer))
    size = sum(map(len, parts))
    return len(context.seal_parts([*parts, bytes(padded_size(size) - size)]))


def _opened(
    sealed: bytes, key: PrivateKey | HybridPrivateKey
) -> tuple[bytes | memoryview, ohttp.ResponseContext]:
    """As service.guard chooses: large requests are decrypted as they arrive."""
    if len(sealed) < 64 << 10:
        ohttp.parse_header(sealed)
        return ohttp.open_request(sealed, key)
    receiver = RequestReceiver(len(sealed), lambda _: key)
    with memoryview(sealed) as view:
        for start in range(0, len(view), PORTION_BYTES):
            receiver.feed(view[start : start + PORTION_BYTES])
    return receiver.finish()


def _refuse(garbage: bytes, key: PrivateKey | HybridPrivateKey) -> None:
    try:
        _opened(garbage, key)
    except DecryptionError:
        return
    raise SystemExit("garbage was opened")


def _replay() -> list[tuple[str, ...]]:
    """The check of a Date and a new entry, among 200,000 others."""
    with tempfile.TemporaryDirectory() as folder:
        store = LocalReplayStore(Path(folder), max_entries=1 << 20, share=1 << 20)
        freshness = Freshness(
            store,
            key=bytes(32),
            window_s=120,
            require_date=True,
            clock=lambda: 1_800_000_000.0,
        )
        counter = itertools.count()

        async def check(count: int) -> None:
            for _ in range(count):
                enc = next(counter).to_bytes(32, "big")
                unseen = freshness.check(HEADERS, enc, key_id=1, live_ids=(1, 2))
                await unseen("issuer\0subject")

        asyncio.run(check(200_000))
        medians = alternate(
            {"local": lambda: asyncio.run(check(2000))}, rounds=9, repeat=1
        )
        store.close()
    return [("SQLite, one transaction each", f"{medians['local'] / 2000 * 1e6:.1f}")]


def _copies() -> list[tuple[str, ...]]:
    """Peak of traced memory over the payload's size, the input's own copy included."""
    size = 10 << 20
    key = KEYS["X25519"]
    config = KeyConfig(1, key.kem_id, key.public_bytes)
    sealed, _ = ohttp.seal_request(config, message_of(size))
    _, gateway = ohttp.open_request(sealed, key)
    answer = os.urandom(size)
    parts = bhttp.response_parts(Response(200, (), answer))
    sealer, _ = chunked.seal_chunked_request(config)
    return [
        ("request, opened and parsed", _peak(lambda: _open(sealed, key), size)),
        (
            "response, written and sealed",
            _peak(lambda: gateway.seal_parts(parts), size),
        ),
        (
            "response, chunk by chunk",
            _peak(
                lambda: [
                    len(sealer.seal(memoryview(answer)[i : i + 16384]))
                    for i in range(0, size, 16384)
                ],
                size,
            ),
        ),
    ]


def _open(sealed: bytes, key: PrivateKey) -> Request:
    return bhttp.decode_request(_opened(sealed, key)[0])


def _peak(call: Callable[[], object], size: int) -> str:
    tracemalloc.start()
    kept = call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return f"{1 + peak / size:.2f}"
