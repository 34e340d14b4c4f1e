"""What an audit record and quotas add to a request: CPU of all threads, per request.

The disk's own time is not in it: records that wait for it cost no CPU. Beside each
figure stands the group it was taken with, since groups share a write to disk, and a
block of a quota shares a step to the store.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.timing import table
from sealgate.protocol.notes import Signer
from security.access.quota_stores import LocalQuotaStore
from security.access.quota_table import Limits, QuotaTable
from security.access.quotas import Quotas
from security.access.tokens import Principal
from security.audit.group import GroupLog
from security.audit.log import AuditLog, LogLimits
from security.audit.verify import verify_log
from security.errors import QuotaError
from service.telemetry.recorder import Decision, Recorder

ROUNDS = 9
REQUESTS = 3200
WHO = Principal(
    "alice@example.org", "app", "9b1f0c", frozenset(), 2_000_000_000, "https://issuer"
)
TARGET_US = 15

One = Callable[[], Awaitable[None]]


def run() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        rows = _audit(Path(folder))
    table(
        ("audit record", "in work at once", "µs of CPU", "records per write to disk"),
        rows,
    )
    print()
    with tempfile.TemporaryDirectory() as folder:
        rows = _quotas(Path(folder))
    table(("quotas, per request with one row", "µs of CPU"), rows)
    print(f"\nBoth have a target of {TARGET_US} µs, amortised.")


def _audit(folder: Path) -> list[tuple[str, ...]]:
    signer = Signer("benchmark", Ed25519PrivateKey.generate())
    rows: list[tuple[str, ...]] = []
    for sync in (True, False):
        name = "on disk before the answer" if sync else "with the operating system"
        for together in (1, 16, 64, 256):
            log = _Counted(
                folder / f"{sync}-{together}",
                writer="w",
                signer=signer,
                limits=LogLimits(sync=sync),
            )
            group = GroupLog(log)
            recorder = Recorder(group, key=b"k" * 32)
            cost = _cost(lambda: _record(recorder), together)  # noqa: B023
            writes = log.writes
            group.close()
            verify_log([folder / f"{sync}-{together}"], verifier=signer.verifier)
            per_write = REQUESTS * ROUNDS / writes
            rows.append((name, str(together), f"{cost:.1f}", f"{per_write:.0f}"))
    return rows


class _Counted(AuditLog):
    """A log that knows how often it wrote."""

    writes = 0

    def write(self, records: list[bytes]) -> None:  # type: ignore[override]
        self.writes += 1
        super().write(records)


async def _record(recorder: Recorder) -> None:
    decision = Decision(sealed=True, started=time.perf_counter(), principal=WHO)
    decision.model, decision.digest, decision.action = "toy", "5" * 64, "infer"
    decision.rows = decision.request_bytes = 100
    await recorder.record(decision, status=200, reason=None, response_bytes=300)


def _quotas(folder: Path) -> list[tuple[str, ...]]:
    cases = {
        "the delivered limits, each minute's budget spent": Limits(),
        "100,000 a minute": Limits(100_000, 10**8, 10**8, 10**9, 1000),
        "20 a minute: every request asks the store": Limits(20, 10**8, 20, 10**8, 3),
        "unlimited": Limits(None, None, None, None, None),
    }
    rows = []
    for number, (name, limits) in enumerate(cases.items()):
        counted, clock = _counted(folder / str(number), limits)
        cost = _cost(lambda: _enter(counted, clock, limits), 16)  # noqa: B023
        rows.append((name, f"{cost:.1f}"))
    spent, _ = _counted(folder / "spent", Limits(1, None, None, None, None))
    cost = _cost(lambda: _try(spent), 16)
    rows.append(("refused: the budget is spent", f"{cost:.1f}"))
    return rows


class _Clock:
    """Days of minutes in which a budget's number of requests comes."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.count = 0

    def __call__(self) -> float:
        return self.now


def _counted(folder: Path, limits: Limits) -> tuple[Quotas, _Clock]:
    clock = _Clock()
    store = LocalQuotaStore(folder, max_entries=1 << 20, clock=clock)
    return Quotas(QuotaTable(limits), store, key=b"k" * 32, clock=clock), clock


async def _enter(counted: Quotas, clock: _Clock, limits: Limits) -> None:
    clock.count += 1
    if limits.requests_per_minute and clock.count % limits.requests_per_minute == 0:
        clock.now += 60
    try:
        ticket = await counted.enter(WHO, "toy")
    except QuotaError:
        return  # of sixteen at once some find no slot where there are three
    await ticket.charge_rows(1)
    ticket.leave()


async def _try(counted: Quotas) -> None:
    try:
        (await counted.enter(WHO, "toy")).leave()
    except QuotaError:
        return


def _cost(one: One, together: int) -> float:
    """Microseconds of CPU for one, when so many are in work; without the loop's own."""

    async def nothing() -> None:
        await asyncio.sleep(0)

    costs, floors = [], []
    for _ in range(ROUNDS):
        floors.append(asyncio.run(_drive(nothing, together)))
        costs.append(asyncio.run(_drive(one, together)))
    return statistics.median(costs) - statistics.median(floors)


async def _drive(one: One, together: int) -> float:
    async def several() -> None:
        for _ in range(REQUESTS // together):
            await one()

    began = time.process_time()
    await asyncio.gather(*(several() for _ in range(together)))
    return (time.process_time() - began) / REQUESTS * 1e6
