"""Reading and verifying a bundle: what every start pays."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.timing import alternate, table
from models.bundle import MODEL_FILE, read_bundle
from models.files import write_atomic
from security.admission import gate
from tests.support import bundles

MODEL_BYTES = {"350 B": 0, "100 MB": 100 << 20}


def run() -> None:
    """Print the table."""
    rows = []
    for name, size in MODEL_BYTES.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append((name, *_measure(Path(folder) / "bundle", size)))
    table(("model", "read and hash, ms", "verify, ms", "MB/s"), rows)


def _measure(folder: Path, size: int) -> tuple[str, str, str]:
    keys = bundles.Keys.generate()
    bundles.write_bundle(folder, keys, admit=False)
    if size:
        weights = np.zeros((3, size // 12), np.float32)
        write_atomic(folder / MODEL_FILE, bundles.onnx_model(weights))
        for kind in bundles.KINDS:
            subject = read_bundle(folder).subject
            bundles.rewrite_report(folder, kind, subject=subject)
            bundles.attest(folder, kind, keys.signer(kind))
    bundles.sign(folder, keys)
    bundle, policy, trust = read_bundle(folder), bundles.policy(), keys.trust

    def verify() -> object:
        return gate.verify(bundle, policy, trust, now=datetime.now(UTC))

    medians = alternate(
        {"read": lambda: read_bundle(folder), "verify": verify},
        rounds=7,
        repeat=1 if size else 50,
    )
    total = sum(medians.values())
    return (
        f"{medians['read'] * 1e3:.2f}",
        f"{medians['verify'] * 1e3:.2f}",
        f"{size / total / 1e6:.0f}" if size else "",
    )
