"""Load by wrk: requests come from files, each played once where it must be."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("wrk.lua")
# A request that takes longer counts as failed.
TIMEOUT_S = 10


@dataclass(frozen=True)
class Load:
    """What one run of the load generator measured.

    Attributes:
        requests: answers.
        duration_s: of the run.
        p50_s: median of the times from a request to its answer.
        p99_s: their 99th percentile.
        failures: answers with another status than 2xx or 3xx, and broken connections.
        client_s: CPU time of the load generator itself.
    """

    requests: int
    duration_s: float
    p50_s: float
    p99_s: float
    failures: int
    client_s: float = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.requests / self.duration_s


def require_wrk() -> None:
    """Stop with one line where there is no load generator."""
    if shutil.which("wrk") is None:
        raise SystemExit(
            "error: wrk is not on this machine: apt-get install wrk, "
            "brew install wrk, or https://github.com/wg/wrk"
        )


def http_request(
    path: str, body: bytes, headers: Mapping[str, str], *, host: str
) -> bytes:
    """A POST as it goes over the connection.

    >>> http_request("/x", b"{}", {}, host="h")
    b'POST /x HTTP/1.1\\r\\nHost: h\\r\\nContent-Length: 2\\r\\n\\r\\n{}'
    """
    fields = {"Host": host, **headers, "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def write_requests(path: Path, requests: Iterable[bytes]) -> None:
    """Write requests as wrk.lua reads them."""
    with path.open("wb") as file:
        for request in requests:
            file.write(b"%d\n" % len(request))
            file.write(request)


def play(
    url: str, files: Sequence[Path], *, connections: int, seconds: float, once: bool
) -> Load:
    """Play requests from files for some seconds, or until they are used up."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [
        "wrk",
        "--threads=1",
        f"--connections={connections}",
        f"--duration={max(1, round(seconds))}s",
        f"--timeout={TIMEOUT_S}s",
        f"--script={SCRIPT}",
        url,
        "--",
        "once" if once else "again",
        *map(str, files),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        raise SystemExit(f"error: wrk: {result.stderr.strip() or result.stdout}")
    client_s = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return parse(result.stdout, client_s=client_s)


def parse(text: str, *, client_s: float = 0.0) -> Load:
    """The last line that wrk.lua prints.

    >>> times = '{"requests":10,"duration_us":2000000,"p50_us":100,"p99_us":300,'
    >>> errors = '"status":1,"connect":0,"read":2,"write":0,"timeout":0}'
    >>> parse("Running…\\n" + times + errors).failures
    3
    """
    lines = text.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise SystemExit(f"error: wrk gave no result: {text.strip()[-200:]}")
    found = json.loads(lines[-1])
    return Load(
        requests=found["requests"],
        duration_s=found["duration_us"] / 1e6,
        p50_s=found["p50_us"] / 1e6,
        p99_s=found["p99_us"] / 1e6,
        failures=sum(
            found[kind] for kind in ("status", "connect", "read", "write", "timeout")
        ),
        client_s=client_s,
    )
