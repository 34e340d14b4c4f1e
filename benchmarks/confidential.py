"""A sealed model at each door, and opened: version 2 (X-Wing) beside version 1."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.timing import alternate, table
from models.bundle import MODEL_FILE, read_bundle
from models.files import write_atomic
from sealgate.protocol import sealedfile
from sealgate.protocol.kem import KEM_X25519, KEM_XWING
from security.admission.attest import Signers
from security.admission.confidential import check_sealed, open_bundle, seal_model
from security.admission.model_keys import ModelKey
from security.hpke_keys import fresh_hpke_key
from tests.support import bundles

MODEL_BYTES = 100 << 20
VERSIONS = {"1, X25519": KEM_X25519, "2, X-Wing": KEM_XWING}
RECIPIENTS = (1, 8, 64)


def run() -> None:
    """Print the tables."""
    _headers()
    print()
    with tempfile.TemporaryDirectory() as folder:
        _doors(Path(folder) / "bundle")


def _headers() -> None:
    rows = []
    for name, kem_id in VERSIONS.items():
        keys = [fresh_hpke_key(kem_id) for _ in range(max(RECIPIENTS))]
        public = [key.public_bytes for key in keys]
        files = {
            count: b"".join(sealedfile.seal_chunks(b"", public[:count]))
            for count in RECIPIENTS
        }
        # Of the longest header: it is parsed, and its last recipient unwrapped.
        last, most = keys[-1], max(RECIPIENTS)
        call = {
            "first": lambda keys=keys, data=files[1]: _opened(data, keys[0]),
            "last": lambda last=last, data=files[most]: _opened(data, last),
        }
        medians = alternate(call, rounds=7, repeat=20)
        sizes = (f"{sealedfile.parse_header(data)[1]:,}" for data in files.values())
        micros = (f"{medians[which] * 1e6:.0f}" for which in call)
        rows.append((name, *sizes, *micros))
    sizes = tuple(f"header for {count}, bytes" for count in RECIPIENTS)
    table(("version", *sizes, "open empty, 1, µs", "open empty, 64, µs"), rows)


def _opened(data: bytes, key: ModelKey) -> bytes:
    return b"".join(sealedfile.open_chunks(data, key))


def _doors(folder: Path) -> None:
    """What a model of 100 MB costs: in the clear, and sealed either way."""
    signing = bundles.Keys.generate()
    weights = np.random.default_rng(0).random((3, MODEL_BYTES // 12), np.float32)
    bundles.write_bundle(folder, signing, admit=False)
    write_atomic(folder / MODEL_FILE, bundles.onnx_model(weights))
    plain = read_bundle(folder)
    steps: dict[str, Callable[[], object]] = {
        "in the clear read": lambda: read_bundle(folder)
    }
    for name, kem_id in VERSIONS.items():
        key = fresh_hpke_key(kem_id)
        files = seal_model(plain, [key.public_bytes], Signers(signing.release))
        place = folder.with_name(f"v{kem_id}")
        for path, data in {**plain.files, **files}.items():
            if path != MODEL_FILE:
                write_atomic(place / path, data)
        scene = bundles.scene_of(read_bundle(place), signing.trust)
        steps[f"{name} read"] = partial(read_bundle, place)
        steps[f"{name} check"] = partial(check_sealed, scene)
        steps[f"{name} open"] = partial(open_bundle, scene.bundle, key)
    medians = alternate(steps, rounds=7, repeat=1)
    table(
        ("100 MB", "read, ms", "check 24, ms", "open, ms", "opened, MB/s"),
        [_row(name, medians) for name in ("in the clear", *VERSIONS)],
    )
    first, second = (medians[f"{name} open"] for name in VERSIONS)
    print(f"\nOpening version 2 takes {second / first:.3f} of version 1.")


def _row(name: str, medians: Mapping[str, float]) -> tuple[str, ...]:
    times = [medians.get(f"{name} {step}") for step in ("read", "check", "open")]
    opening = times[-1]
    rate = "" if opening is None else f"{MODEL_BYTES / opening / 1e6:.0f}"
    return (name, *("" if t is None else f"{t * 1e3:.0f}" for t in times), rate)
