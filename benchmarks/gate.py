"""Reading and verifying a bundle: what every start pays."""

import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.timing import alternate, table
from models.bundle import MODEL_FILE, Bundle, read_bundle
from models.files import write_atomic
from sealgate.protocol import dsse
from security.admission import gate
from security.admission.policy import Policy
from security.admission.timestamps import make_request
from security.admission.trust import TimestampAuthority, TrustRoot
from tests.support import bundles
from tests.support.timestamps import time_authority

MODEL_BYTES = {"350 B": 0, "100 MB": 100 << 20}


def run() -> None:
    """Print the tables."""
    rows = []
    for name, size in MODEL_BYTES.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append((name, *_measure(Path(folder) / "bundle", size)))
    table(("model", "read and hash, ms", "verify, ms", "MB/s"), rows)
    with tempfile.TemporaryDirectory() as folder:
        rows = _stamps(Path(folder))
    print()
    table(("time stamps", "verify, ms", "signed files, bytes"), rows)


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

    medians = alternate(
        {
            "read": lambda: read_bundle(folder),
            "verify": partial(_verify, bundle, policy, trust),
        },
        rounds=7,
        repeat=1 if size else 50,
    )
    total = sum(medians.values())
    return (
        f"{medians['read'] * 1e3:.2f}",
        f"{medians['verify'] * 1e3:.2f}",
        f"{size / total / 1e6:.0f}" if size else "",
    )


def _stamps(folder: Path) -> list[tuple[str, str, str]]:
    """A bundle without time stamps, and with one on each of its four signatures."""
    keys = bundles.Keys.generate()
    tsa = time_authority(folder / "tsa")
    authority = TimestampAuthority(tsa.name, tsa.certificates)
    trust = replace(keys.trust, timestamp_authorities=(authority,))
    bundles.write_bundle(folder / "bundle", keys)
    plain = read_bundle(folder / "bundle")
    stamped = {
        name: dsse.stamped(data, tsa.answer(_request(data)))
        for name, data in _signed(plain).items()
    }
    cases = {
        "none": plain,
        "one on each": replace(plain, files={**plain.files, **stamped}),
    }
    policy = bundles.policy()
    medians = alternate(
        {
            name: partial(_verify, bundle, policy, trust)
            for name, bundle in cases.items()
        },
        rounds=7,
        repeat=50,
    )
    return [
        (name, f"{medians[name] * 1e3:.2f}", str(sum(map(len, _signed(it).values()))))
        for name, it in cases.items()
    ]


def _signed(bundle: Bundle) -> dict[str, bytes]:
    named = bundle.files.items()
    return {name: data for name, data in named if name.startswith("attestations/")}


def _request(signed: bytes) -> bytes:
    return make_request(dsse.read_signature(signed)).as_bytes()


def _verify(bundle: Bundle, policy: Policy, trust: TrustRoot) -> object:
    return gate.verify(bundle, policy, trust, now=datetime.now(UTC))
