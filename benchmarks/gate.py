"""Reading and verifying a bundle: what every start pays.

Beside the verification of statements that P-256 signed alone stands, in the same run,
that of the same statements with ML-DSA-65 signatures beside them. 100 MB must be read
and hashed at 1 GB/s or more, once. That both signatures cost at most 1.3 times as much
as one holds from a model of a few MB on: an ML-DSA-65 signature takes 0.16 ms to verify
where a P-256 one takes 0.07, and the smallest bundle takes 2 ms in all.
"""

import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.timing import alternate, table
from models.bundle import MODEL_FILE, VERDICT_FILE, Bundle, mldsa_file, read_bundle
from models.files import write_atomic
from sealgate.protocol import dsse
from security.admission import gate
from security.admission.policy import Policy
from security.admission.timestamps import make_request
from security.admission.trust import TimestampAuthority, TrustRoot
from security.admission.verification import verify
from tests.support import bundles
from tests.support.timestamps import time_authority

MODEL_BYTES = {"350 B": 0, "10 MB": 10 << 20, "100 MB": 100 << 20}


def run() -> None:
    """Print the tables."""
    keys = bundles.Keys.generate(mldsa=("trainer", "assessor", "release"))
    rows, sizes = [], []
    for name, size in MODEL_BYTES.items():
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            one = _bundles(place, keys, size)
            sizes = _sizes(place / "two")
            rows.append((name, *_measure(place, one, size)))
    table(
        ("model", "read, ms", "gate, ms", "MB/s", "P-256, ms", "both, ms", "ratio"),
        rows,
    )
    print()
    table(("statement", "P-256, bytes", "ML-DSA-65, bytes"), sizes)
    with tempfile.TemporaryDirectory() as folder:
        stamps = _stamps(Path(folder), keys)
    print()
    table(("time stamps", "gate, ms", "signed files, bytes"), stamps)


def _bundles(place: Path, keys: bundles.Keys, size: int) -> bundles.Keys:
    """The same bundle with one signature, and with two; returns who made the one."""
    one = bundles.Keys(
        keys.trainer, keys.assessor, keys.privacy_officer, keys.release, keys.monitor
    )
    write_atomic(place / "policy.toml", bundles.POLICY)
    for name, signers in (("one", one), ("two", keys)):
        folder = bundles.write_bundle(place / name, signers, admit=False)
        if size:
            zeros = np.zeros((3, size // 12), np.float32)
            write_atomic(folder / MODEL_FILE, bundles.onnx_model(zeros))
            subject = read_bundle(folder).subject
            for kind in bundles.KINDS:
                bundles.rewrite_report(folder, kind, subject=subject)
                bundles.attest(folder, kind, signers.signers(signers.role(kind)))
        bundles.sign(folder, signers)
        write_atomic(place / f"{name}.json", signers.trust.to_json())
    return one


def _sizes(folder: Path) -> list[tuple[str, str, str]]:
    files = {
        **{kind: f"attestations/{kind}.sigstore.json" for kind in bundles.KINDS},
        "verdict": VERDICT_FILE,
    }
    return [
        (what, *(f"{(folder / n).stat().st_size}" for n in (name, mldsa_file(name))))
        for what, name in files.items()
    ]


def _measure(place: Path, one: bundles.Keys, size: int) -> tuple[str, ...]:
    bundle, policy, trust = read_bundle(place / "one"), bundles.policy(), one.trust

    def whole(name: str) -> object:
        trust, policy = place / f"{name}.json", place / "policy.toml"
        return verify(place / name, trust=trust, policy=policy)

    medians = alternate(
        {
            "read": lambda: read_bundle(place / "one"),
            "gate": lambda: gate.verify(bundle, policy, trust, now=datetime.now(UTC)),
            "one": lambda: whole("one"),
            "two": lambda: whole("two"),
        },
        rounds=7,
        repeat=1 if size else 50,
    )
    read, checked = medians["read"], medians["gate"]
    return (
        f"{read * 1e3:.2f}",
        f"{checked * 1e3:.2f}",
        f"{size / (read + checked) / 1e6:.0f}" if size else "",
        f"{medians['one'] * 1e3:.2f}",
        f"{medians['two'] * 1e3:.2f}",
        f"{medians['two'] / medians['one']:.2f}",
    )


def _stamps(folder: Path, keys: bundles.Keys) -> list[tuple[str, ...]]:
    """A bundle without time stamps, with one on each statement, on each signature."""
    tsa = time_authority(folder / "tsa")
    authority = TimestampAuthority(tsa.name, tsa.certificates)
    trust = replace(keys.trust, timestamp_authorities=(authority,))
    bundle = read_bundle(bundles.write_bundle(folder / "bundle", keys))
    stamped = {
        name: dsse.stamped(data, tsa.answer(_request(data)))
        for name, data in _signed(bundle).items()
    }
    first = {name: data for name, data in stamped.items() if "mldsa" not in name}
    cases = {
        "none": bundle,
        f"{len(first)}, on P-256": replace(bundle, files={**bundle.files, **first}),
        f"{len(stamped)}, on both": replace(bundle, files={**bundle.files, **stamped}),
    }
    policy = bundles.policy()
    medians = alternate(
        {name: partial(_verify, case, policy, trust) for name, case in cases.items()},
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
