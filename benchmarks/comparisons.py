"""Short versions of the main comparisons, for `benchmarks.history`.

Each gives ratios of CPU time, of two sides that ran in the same round: smaller is
better, and a busy machine disturbs both. What they stand beside does not change with
this project, so that a ratio that grows is ours.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from benchmarks import calls, sealing, server
from benchmarks.server import PATH, READY, Case, same
from benchmarks.timing import cpu_rounds
from models.bundle import read_bundle
from security.admission import gate
from tests.conftest import make_deployment, mint, toy_settings
from tests.support import bundles
from tests.support.servers import ROOT, serve

__all__ = ["COMPARISONS", "Ratios"]

# By name, a ratio for each round.
Ratios = dict[str, list[float]]
_CONNECTIONS = 16


def requests(rounds: int) -> Ratios:
    """CPU per request of the worker, beside the bare handler's inference."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        make_deployment(home)
        token = mint(home, f"infer:{bundles.NAME}")
        extra = toy_settings(home) | {"SEALGATE_SEALING_REQUIRE_SEALED": "false"}
        ours = stack.enter_context(serve("service.app:Sealgate", home, extra=extra))
        url, pid = stack.enter_context(server.bare(home / "bundle" / "model.onnx"))
        json = {"content-type": "application/json"}
        cases = {
            name.partition(",")[0]: case
            for name, case in server.cases_of(ours, token).items()
            if not name.startswith("refused")
        }
        cases["bare health"] = Case(url, pid, same("GET", READY))
        cases["bare"] = Case(url, pid, same("POST", PATH, json))
        found = server.measure(cases, _CONNECTIONS, rounds=rounds)
    bare, health = found.pop("bare"), found.pop("bare health")
    return {
        f"request: {name}": _over(values, health if name == "health" else bare)
        for name, values in found.items()
    }


def sealed(rounds: int) -> Ratios:
    """A gateway's work on 1 KB, beside `hpke.Suite.decrypt` of the same."""
    size, repeat = sealing.SIZES["1 KB"]
    message = sealing.message_of(size)
    found = cpu_rounds(
        {
            (kem, case): call
            for kem in sealing.KEYS
            for case, call in sealing.cases_of(kem, message, message).items()
        },
        rounds=rounds,
        repeat=repeat,
    )
    return {
        f"sealing: gateway, {kem}": _over(found[kem, "gateway"], found[kem, "floor"])
        for kem in sealing.KEYS
    }


def gated(rounds: int) -> Ratios:
    """The gate over the smallest bundle, beside one verification by P-256."""
    keys = bundles.Keys.generate()
    with tempfile.TemporaryDirectory() as folder:
        bundle = read_bundle(bundles.write_bundle(Path(folder) / "bundle", keys))
    policy, now = bundles.policy(), datetime.now(UTC)
    found = cpu_rounds(
        {
            "gate": lambda: gate.verify(bundle, policy, keys.trust, now=now),
            "P-256": _p256(),
        },
        rounds=rounds,
        repeat=50,
    )
    return {"gate: verify, over P-256": _over(found["gate"], found["P-256"])}


def _p256() -> Callable[[], object]:
    key, scheme = ec.generate_private_key(ec.SECP256R1()), ec.ECDSA(SHA256())
    signature, public = key.sign(b"message", scheme), key.public_key()
    return lambda: public.verify(signature, b"message", scheme)


def trained(rounds: int) -> Ratios:
    """A private step on an MLP, beside Opacus' own with hooks."""
    # torch and Opacus take seconds to import, which the others need not wait for.
    from benchmarks.training import steps  # noqa: PLC0415

    with warnings.catch_warnings():
        # Opacus says that its noise is not from the operating system, which ours is.
        warnings.simplefilter("ignore")
        found = cpu_rounds(steps(), rounds=rounds, repeat=1)
    return {"training: step, over Opacus": _over(found["ours"], found["Opacus"])}


def called(rounds: int) -> Ratios:
    """A sealed call by the SDK, the client's CPU, beside plaintext JSON by httpx."""
    cases = [case for case in calls.CASES if case.model == "mlp"]
    found = calls.measure({"now": ROOT}, cases, rounds=rounds)
    plain = found["now", calls.PLAIN]
    return {
        f"SDK call: {case}": _over(found["now", case], plain)
        for case in cases
        if case != calls.PLAIN
    }


COMPARISONS: Mapping[str, Callable[[int], Ratios]] = {
    "requests": requests,
    "sealing": sealed,
    "gate": gated,
    "training": trained,
    "calls": called,
}


def _over(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value / other for value, other in zip(values, others)]
