"""What traces cost: CPU per request of the real server without them, and by share.

Servers that differ in nothing else, in front of one receiver, in alternating rounds, as
`benchmarks.server` measures. Requests name no trace, so the sampler's share decides.
The thread that sends is part of the server's CPU.

A busy machine hides differences of a few microseconds. So what a request's span takes,
from its first step to its JSON, is measured alone, too, in this process.
"""

import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.server import CONNECTIONS, Case, measure, same, sealer
from benchmarks.timing import table
from sealgate.protocol.kem import KEM_X25519
from service.telemetry.export_settings import Sampling
from service.telemetry.otlp import Span, encode_spans
from service.telemetry.recorder import Decision
from service.telemetry.spans import Steps, Tracer
from tests.conftest import make_deployment, mint, toy_settings
from tests.support.bundles import NAME
from tests.support.receivers import receiver
from tests.support.servers import Server, serve

REQUESTS = 20_000
BATCH = 512
ROUNDS = 9
SHARES = {"off": None, "0%": "0", "1%": "0.01", "100%": "1"}


def run() -> None:
    """Print the tables."""
    shares = {name: share for name, share in SHARES.items() if share is not None}
    rounds = [
        [_alone(float(share)) * 1e6 for share in shares.values()] for _ in range(ROUNDS)
    ]
    medians = [f"{statistics.median(column):.2f}" for column in zip(*rounds)]
    table(("sampled", "µs of CPU, alone"), list(zip(shares, medians)))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        make_deployment(home)
        token = mint(home, f"infer:{NAME}")
        url = stack.enter_context(receiver()).url
        cases: dict[str, Case] = {}
        for name, share in SHARES.items():
            own = Path(shutil.copytree(home, Path(folder) / name.strip("%")))
            server = stack.enter_context(_serve(own, url, share))
            cases |= _cases(name, server, token)
        columns = [measure(cases, connections) for connections in CONNECTIONS]
    rows = []
    for name in cases:
        off = name.partition(",")[0] + ", off"
        cells = []
        for column in columns:
            micros = statistics.median(column[name]) * 1e6
            more = [(a - b) * 1e6 for a, b in zip(column[name], column[off])]
            cells.append(f"{micros:.0f} | {statistics.median(more):+.1f}")
        rows.append((name, *cells))
    table(("request", *(f"µs, {n} connections | more" for n in CONNECTIONS)), rows)


def _alone(share: float) -> float:
    """Seconds of CPU for one request's steps, its span if it has one, and the JSON."""
    spans: list[Span] = []
    tracer = Tracer(Sampling(share=share), spans.append, strangers=lambda: True)
    decision = Decision(sealed=True, started=0.0, action="infer", model=NAME)
    decision.method, decision.version, decision.rows = b"POST", "1.0.0", 1
    began = time.process_time()
    for _ in range(REQUESTS):
        steps = Steps()
        for name in ("open", "verify", "quotas", "run", "seal"):
            steps.add(name, steps.began)
        decision.trace = None
        tracer.decide(steps, decision, status=200, reason=None)
        tracer.end(steps)
        if len(spans) >= BATCH:
            encode_spans(spans, {"service.name": "sealgate"})
            spans.clear()
    return (time.process_time() - began) / REQUESTS


def _serve(home: Path, url: str, share: str | None):
    extra = toy_settings(home) | {"SEALGATE_SEALING_REQUIRE_SEALED": "false"}
    if share is not None:
        extra |= {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{url}/v1/traces",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": share,
        }
    return serve("service.app:Sealgate", home, extra=extra)


def _cases(name: str, server: Server, token: str) -> dict[str, Case]:
    def case(make) -> Case:
        return Case(server.url, server.pid, make)

    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {token}",
    }
    path = f"/v2/models/{NAME}/infer"
    return {
        f"plaintext, {name}": case(same("POST", path, headers)),
        f"sealed (X25519), {name}": case(sealer(server, token, KEM_X25519)),
    }
