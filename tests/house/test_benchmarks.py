"""The benchmarks' own parts, and one short run beside a bare Starlette."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET  # (of our own plot)
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks import calls, comparisons, history, models, soak, timing
from benchmarks.peers import contenders, load, report, run
from benchmarks.peers.sealer import Order, Sealer
from sealgate.errors import SealgateError
from sealgate.protocol import bhttp, keyconfig, ohttp
from sealgate.protocol.hpke import PrivateKey
from sealgate.protocol.kem import KEM_NAMES
from sealgate.protocol.keyconfig import KeyConfig
from tests.support.bundles import NAME
from tests.support.servers import ROOT, environment

needs_wrk = pytest.mark.skipif(
    shutil.which("wrk") is None, reason="wrk is not on this machine"
)


def row(contender: str, **changes: object) -> report.Row:
    fields = {
        "workload": "mlp",
        "workers": 1,
        "connections": 16,
        "contender": contender,
        "rate": 1234.5,
        "p50_s": 0.002,
        "p99_s": 0.0041,
        "cpu_s": 81e-6,
        "rss_bytes": 120e6,
        "client_s": 5e-6,
        "failures": 0,
    }
    return report.Row(**(fields | changes))


def results(*rows: report.Row, **left_out: str) -> report.Results:
    return report.Results("2 cores", 1.0, 1, 1, left_out, list(rows))


def test_the_table() -> None:
    text = report.markdown(
        results(
            row("a", connections=1, rate=99.6),
            row("a"),
            row("b", workload="image", failures=3),
            c="it did not start",
        )
    )
    assert "**MLP 30-64-2, JSON, 1 worker**" in text
    assert "| a | 100 | 2.00, 4.10 | 1,234 | 2.00, 4.10 | 81 | 120 |" in text
    assert "| b |  |  | 1,234 (3 failed!) |" in text
    assert text.endswith("Left out:\n\n- c: it did not start")
    assert text.index("MLP") < text.index("602 KB")


def test_a_cell_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    report.merge(path, results(row("a"), row("b"), row("a", workers=2)))
    merged = report.merge(path, results(row("a", rate=5.0)))
    assert [(r.workers, r.rate) for r in merged.rows] == [(2, 1234.0), (1, 5.0)]
    assert report.load_results(path) == merged


def test_documents_have_their_places(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- peers -->\nold\n<!-- end peers -->\nafter\n")
    report.replace(path, "peers", "new")
    assert path.read_text() == (
        "before\n<!-- peers -->\n\nnew\n\n<!-- end peers -->\nafter\n"
    )
    with pytest.raises(SystemExit, match=r"page\.md has no place for soak"):
        report.replace(path, "soak", "new")


def test_the_plot_is_readable_on_any_ground(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    report.plot(results(row("Sealgate, X25519"), row("b", workload="image")), path)
    text = path.read_text()
    ET.fromstring(text)  # noqa: S314
    assert "Sealgate, X25519" in text
    assert not re.search(r"fill: (#ffffff|#000000|white|black)", text)


@needs_wrk
def test_a_base_that_is_no_checkout_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no checkout"):
        run.main(["--base", str(tmp_path)])


def test_no_wrk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"^error: wrk is not .*apt-get install wrk"):
        load.require_wrk()


@pytest.mark.parametrize("text", ["", "unable to connect", "{}x\nnothing"])
def test_wrk_without_a_result_is_an_error(text: str) -> None:
    with pytest.raises(SystemExit, match="error: wrk gave no result"):
        load.parse(text)


def test_refused_answers_are_counted_inside_the_seal_too() -> None:
    text = (
        'sealgate_requests_total{action="infer",model="m",status="200"} 7.0\n'
        'sealgate_requests_total{action="infer",model="m",status="503"} 2.0\n'
        'sealgate_refusals_total{reason="date"} 1.0\n'
    )
    assert contenders.count_refused(text) == 3


def test_the_slope_of_memory() -> None:
    sizes = [900, 1000, 1010, 1020, 1030]
    slices = [
        soak.Slice(100 * (n + 1), size, 0.001, 0.002, 0) for n, size in enumerate(sizes)
    ]
    assert soak.slope(slices) == pytest.approx(0.1)
    assert "+0.1 bytes per request" in soak.markdown(slices)


def entry(
    commit: str = "a" * 40, **ratios: tuple[float, float, float]
) -> history.Entry:
    spreads = {
        name: timing.Spread(median, least, most, 5)
        for name, (median, least, most) in ratios.items()
    }
    versions = {"python": "3.11.7", "numpy": "2.4.1"}
    date = "2026-11-30T12:00:00+00:00"
    return history.Entry(commit, False, date, "2 cores, x86_64", versions, spreads)


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    assert history.load(path) == []
    entries = [entry("a" * 40, b=(0.5, 0.25, 1.0)), entry("b" * 40)]
    history.save(path, entries)
    written = path.read_bytes()
    assert history.load(path) == entries
    history.save(path, history.load(path))
    assert path.read_bytes() == written
    # Four digits, and so nothing that a line of a diff would change for.
    history.save(path, [entry(b=(1 / 3, 0.1 + 0.2, 123.456))])
    assert b'"median": 0.3333,' in path.read_bytes()
    assert history.load(path)[0].ratios["b"].most == 123.5


def test_a_history_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    history.save(path, [entry(f"{n:040}") for n in range(history.MAX_ENTRIES + 5)])
    kept = history.load(path)
    assert len(kept) == history.MAX_ENTRIES
    assert kept[-1].commit == f"{history.MAX_ENTRIES + 4:040}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "list indices"),
        ('{"version": 2, "entries": []}', "version 2 is not known"),
        ('{"version": 1}', "entries"),
        ('{"version": 1, "entries": [{"ratios": {}}]}', "missing"),
        ('{"version": 1, "entries": [{"ratios": {"a": {"median": 1}}}]}', "min"),
        ('{"version": 1, "entries": [{"ratios": {}, "more": 1}]}', "more"),
    ],
)
def test_what_is_no_history_is_one_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "history.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=f"error: .*no history of benchmarks: .*{why}"):
        history.main(["--show", "--file", str(path)])
    assert path.read_text() == text


def test_a_history_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.write_bytes(b" " * (history.MAX_BYTES + 1))
    with pytest.raises(SystemExit, match="no history of benchmarks: more than"):
        history.load(path)


def test_what_moved_beyond_its_spread_is_marked() -> None:
    before = [entry(a=(1, 0.8, 1), b=(1, 1, 1), c=(2, 1.5, 9)) for _ in range(2)]
    before.append(entry(a=(4, 3, 5), b=(1, 1, 9), c=(2, 2, 2)))
    now = entry(a=(1.1, 0.9, 1.3), b=(1.2, 1.1, 1.3), c=(1, 0.5, 1.4), d=(1, 1, 1))
    assert history.rows(before, now) == [
        ("a", "1", "1.1", "0.9, 1.3", "+10%", ""),
        ("b", "1", "1.2", "1.1, 1.3", "+20%", "**worse**"),
        ("c", "2", "1", "0.5, 1.4", "-50%", "better"),
        ("d", "", "1", "1, 1", "", "new"),
    ]


def test_the_history_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.json"
    history.main(["--show", "--file", str(path)])
    assert capsys.readouterr().out == "no entries yet\n"
    newer = replace(entry("b" * 40, a=(3, 2, 4)), versions={"python": "3.12.1"})
    history.save(path, [entry(a=(1, 1, 1)), replace(newer, dirty=True)])
    history.main(["--show", "--file", str(path)])
    shown = capsys.readouterr().out
    assert shown.startswith("bbbbbbbbbbbb, with changes, 2026-11-30T12:00:00+00:00, 2")
    assert "| a | 1 | 3 | 2, 4 | +200% | **worse** |" in shown
    assert "numpy 2.4.1 to none, python 3.11.7 to 3.12.1" in shown


def test_the_one_of_this_tree_can_be_read() -> None:
    assert history.load(history.HISTORY)


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not here")


@needs_git
def test_changes_are_those_beyond_the_history(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=n", "-c", "user.email=e")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    with pytest.raises(SystemExit, match="error: no commit"):
        history.tree(tmp_path)
    git("init", "-q")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "history.json").write_text("1")
    (tmp_path / "code.py").write_text("1")
    git("add", "-A")
    git("commit", "-q", "-m", "m")
    commit, dirty = history.tree(tmp_path)
    assert (len(commit), dirty) == (40, False)
    (tmp_path / "benchmarks" / "history.json").write_text("2")
    assert history.tree(tmp_path) == (commit, False)
    (tmp_path / "new.py").write_text("1")
    assert history.tree(tmp_path) == (commit, True)


@needs_git
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no working copy of git")
def test_a_run_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.json"
    flags = ["--only", "gate", "--rounds", "2", "--file", str(path)]
    for number in (1, 2):
        history.main([*flags, "--dirty"])
        assert len(history.load(path)) == number
    (ratio,) = history.load(path)[-1].ratios.values()
    assert ratio.rounds == 2
    assert 0 < ratio.least <= ratio.median <= ratio.most
    assert "| gate: verify, over P-256 |" in capsys.readouterr().out
    # Verifying a bundle takes more than the verification of one signature: once in ten
    # tries, since whatever else this process does may run beside either.
    tries = (comparisons.gated(2)["gate: verify, over P-256"] for _ in range(10))
    assert any(min(ratios) > 1 for ratios in tries)


def test_the_caller_calls_by_the_build_that_is_named(server, token) -> None:
    place = {
        "url": server.url,
        "token": token,
        "models": {NAME: {"features": [1, 3]}},
    }
    with calls.calling(ROOT, place) as caller:
        for kem_id in KEM_NAMES:
            for kind in calls.KINDS:
                assert caller.call(calls.Case(kem_id, kind, NAME), 2) > 0
        with pytest.raises(SystemExit, match="error: the caller ended"):
            caller.call(calls.Case(0, "httpx", "no-such-model"), 1)


def test_sealed_requests_are_unique_and_open(tmp_path: Path) -> None:
    key = PrivateKey.generate()
    config = KeyConfig(1, key.kem_id, key.public_bytes)
    order = Order(
        keyconfig.encode_list([config]),
        key.kem_id,
        "http://127.0.0.1:1",
        "token",
        "/v2/models/m/infer",
        b'{"inputs":[]}',
        {"Content-Type": "application/json"},
    )
    with Sealer(processes=2) as sealer:
        files = sealer.write(tmp_path, [order], 10)
    requests = [request for path in files for request in read_requests(path)]
    bodies = [request.partition(b"\r\n\r\n")[2] for request in requests]
    assert len(bodies) == len(set(bodies)) == 10
    for body in bodies:
        message, _ = ohttp.open_request(body, key)
        inner = bhttp.decode_request(message)
        assert inner.body == b'{"inputs":[]}'
        assert dict(inner.headers)[b"authorization"] == b"Bearer token"


def read_requests(path: Path) -> list[bytes]:
    found = []
    with path.open("rb") as file:
        while line := file.readline():
            found.append(file.read(int(line)))
    return found


class Recorder(ThreadingHTTPServer):
    """A server that keeps what it is sent; every fifth request is refused."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.bodies: list[bytes] = []


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Recorder)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(body)
        self.send_response(500 if body.endswith(b"0") else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@needs_wrk
def test_each_request_is_played_once(tmp_path: Path) -> None:
    server = Recorder()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        host = f"127.0.0.1:{server.server_address[1]}"
        parts = []
        for part in range(2):
            bodies = [b"body %d" % n for n in range(100 * part, 100 * part + 100)]
            parts.append(tmp_path / f"part-{part}")
            load.write_requests(
                parts[-1], (load.http_request("/x", b, {}, host=host) for b in bodies)
            )
        # The run ends when all are used up, long before its time.
        found = load.play(
            f"http://{host}", parts, connections=2, seconds=120, once=True
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    # What is under way when they are used up may be lost; nothing comes twice.
    assert 196 <= len(server.bodies) == len(set(server.bodies)) <= 200
    assert 190 <= found.requests <= 200
    assert 15 <= found.failures <= 20
    assert 0 < found.p50_s <= found.p99_s


@needs_wrk
@pytest.mark.slow
def test_a_short_run_beside_starlette(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    flags = "--seconds 1 --rounds 1 --workload mlp --workers 1 --connections 16"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "peers", *flags.split()),
            *("--only", "starlette", "sealgate", "--json", str(path)),
        ],
        cwd=ROOT,
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = {row.contender: row for row in report.load_results(path).rows}
    assert found.keys() == {"Starlette, uvicorn", contenders.OURS, *contenders.SEALED}
    for one in found.values():
        assert one.failures == 0
        assert one.rate > 0
        assert 0 < one.p50_s <= one.p99_s
        assert one.cpu_s > 0
        assert one.rss_bytes > 1 << 20


# What privacy and robustness cost.


def compared(**changes: object) -> models.Row:
    fields = {
        "data": "digits",
        "model": "linear, DP-SGD",
        "epsilon": 2.994,
        "measure": "accuracy",
        "quality": models.Figure(0.934, 0.903, 0.955, 361),
        "radius": 0.02,
        "verified": models.Figure(0.88, n=361),
        "attacked": models.Figure(0.9, n=361),
        "membership": None,
        "train_s": 2.2,
        "assess_s": 11.0,
        "missing": {"membership": "no rows"},
    }
    return models.Row(**(fields | changes))


def test_the_page_has_the_figures_that_are_kept() -> None:
    page = models.PAGE.read_text()
    assert models.load(), "nothing was measured"
    assert models.written(page, models.load()) == page
    assert models.markdown(models.load()) in page


def test_models_are_compared_in_a_table() -> None:
    shown = models.markdown([compared(), compared(model="MLP", epsilon=None)])
    assert "| model | epsilon | accuracy | verified at 0.02 | attacked |" in shown
    assert "| linear, DP-SGD | 2.99 | 0.934 [0.903, 0.955] | 0.880 | 0.900 |" in shown
    assert "| 0.900 | - | 2 + 11 s |" in shown
    assert "| MLP | - |" in shown


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    models.save(tmp_path / "figures.json", [compared()])
    assert models.load(tmp_path / "figures.json") == [compared()]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 2, "rows": []}', '{"format": 1, "rows": [{}]}']
)
def test_what_are_no_figures_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "figures.json").write_text(text)
    with pytest.raises(SealgateError, match=r"figures\.json"):
        models.load(tmp_path / "figures.json")


def test_a_model_is_trained_assessed_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = models.DATA["digits"]
    linear = replace(digits, variants=digits.variants[1:2])
    monkeypatch.setattr(models, "DATA", {"digits": linear})
    models.main(["--only", "digits", "--file", str(tmp_path / "figures.json")])
    (row,) = models.load(tmp_path / "figures.json")
    assert row.epsilon == pytest.approx(3, abs=0.05)
    assert row.attacked is not None
    assert 0.5 < row.attacked.value <= row.quality.value
    assert row.membership is not None
    assert min(row.train_s, row.assess_s) > 0
    assert "linear, DP-SGD" in capsys.readouterr().out
