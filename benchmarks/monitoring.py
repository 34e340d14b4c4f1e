"""What monitoring costs, and what it finds on real streams, at which epsilon.

Costs: counting a request of 30 columns, a release of them, memory of a full table.
Power: weeks of electricity, months of bicycles, and Adult with a shift made here; each
row is one subject's event, the noise is that of a real release.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import secrets
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.timing import table
from models.manifest import Column, Manifest, Tensor
from sealgate.protocol.tensors import TensorSpec
from security.monitoring.counts import Counts, Sealer
from security.monitoring.drift import Finding, Reference, find_drift
from security.monitoring.guarantee import rho_of, sigma_of
from security.monitoring.keeping import LocalCountStore
from security.monitoring.layout import Layout, layout_of
from security.monitoring.ledger import Budget, LocalLedger
from security.monitoring.monitor import Monitor
from security.monitoring.noise import RoundedGaussian, rounded_gaussian
from security.monitoring.reference import season_keys
from security.monitoring.release import About, Release, release
from security.monitoring.windows import Window, window_at, window_named
from security.settings.monitoring import MonitoringSettings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SCORES = Tensor(TensorSpec("p", "FP32", (-1, 2)), labels=("no", "yes"))
THIRTY = tuple(Column(f"c{n}", 0.0, 1.0) for n in range(30))


def model(columns: Sequence[Column], *outputs: Tensor) -> Manifest:
    spec = TensorSpec("x", "FP32", (-1, len(columns)))
    given = Tensor(spec, columns=tuple(columns))
    return Manifest("bench", "1.0.0", (given,), outputs or (given,), 64)


def run() -> None:
    """Print the tables."""
    _costs()
    print()
    if not DATA.is_dir():
        print(f"{DATA} is not on this machine")
        return
    rows = [*_electricity(), *_bicycles(), *_adult()]
    head = ("stream", "windows", "epsilon a window", "what", "found")
    table(head, rows)


def _cpu_us(action, times: int) -> float:
    best = math.inf
    for _ in range(5):
        began = time.process_time()
        for number in range(times):
            action(number)
        best = min(best, (time.process_time() - began) / times * 1e6)
    return best


def _costs() -> None:
    manifest = model(THIRTY, SCORES)
    layout, random = layout_of(manifest), np.random.default_rng(0)
    given = {"x": random.random((1, 30), dtype=np.float32)}
    answer = {"p": np.array([[0.25, 0.75]], dtype=np.float32)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ledger = LocalLedger(Path(folder) / "monitoring")
        ledger.start()
        settings = MonitoringSettings(enabled=True)
        monitor = Monitor(
            settings,
            store=LocalCountStore(Path(folder) / "monitoring"),
            ledger=ledger,
            sealer=Sealer(secrets.token_bytes(32)),
            versions=lambda: [manifest],
        )
        for subjects in (1, 16, 200, 2000):
            names = [secrets.token_hex(16) for _ in range(subjects)]
            ask = 20_000 // subjects

            def count(number: int, names=names, ask=ask) -> None:
                name = names[number // ask % len(names)]
                monitor.count("bench:1.0.0", name, 1, given, answer)

            cost = _cpu_us(count, ask * subjects)
            what = f"count, {subjects} subjects of {ask} requests"
            rows.append((what, f"{cost:.2f} µs"))
        first = _first(layout, given, answer)
        rows.append(("a subject's first event", f"{first:.1f} µs"))
        rows.append(("release of 30 columns", f"{_release(layout, ledger):.1f} ms"))
    sigma = sigma_of(0.0221 * 0.8 * 0.95, layout.sensitivity)
    began = time.process_time()
    RoundedGaussian(sigma)
    made = (time.process_time() - began) * 1e3
    rows.append((f"its table, once, sigma {sigma:.0f}", f"{made:.0f} ms"))
    rows.append(("a full table of 65,536 subjects", _memory(layout, given, answer)))
    table(("monitoring, 30 columns, class and score", "CPU time, memory"), rows)


def _first(layout: Layout, given, answer) -> float:
    names = [f"{number:032x}" for number in range(4000)]
    counts = Counts(layout, max_subjects=1 << 20)
    began = time.process_time()
    for name in names:
        counts.add(name, 1, given, answer)
    return (time.process_time() - began) / len(names) * 1e6


def _release(layout: Layout, ledger: LocalLedger) -> float:
    budget = Budget(8.0, 1e-6)
    counts = {item.name: np.full(item.size, 300) for item in layout.histograms}
    window, best = window_named("2026-W01"), math.inf
    for _ in range(6):
        window = window.next
        began = time.perf_counter()
        release(
            ledger,
            budget,
            About("drift", "bench", "1.0.0", window),
            counts,
            rho=budget.per_window("weekly"),
            sensitivity=layout.sensitivity,
            contribution="one event",
            subjects=4000,
            min_subjects=200,
            max_subjects=65_536,
            now=float(window.end),
        )
        best = min(best, time.perf_counter() - began)
    return best * 1e3


def _memory(layout: Layout, given, answer) -> str:
    tracemalloc.start()
    counts = Counts(layout, max_subjects=1 << 16)
    for number in range(1 << 16):
        counts.add(f"{number:032x}", 1, given, answer)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return f"{used / 1e6:.1f} MB, {used / (1 << 16):.0f} bytes each"


def _counts(layout: Layout, rows: np.ndarray) -> dict[str, np.ndarray]:
    given = {"x": rows.astype(np.float32)}
    return layout.counts(layout.codes(given, given, slice(0, len(rows))))


def _made(layout: Layout, rows: np.ndarray, window: Window, epsilon: float) -> Release:
    """A release as the server would make it, at an epsilon of its own."""
    sigma = 0.0
    if epsilon:
        sigma = sigma_of(rho_of(epsilon, 1e-6), layout.sensitivity)
    counts = _counts(layout, rows)
    if sigma:
        noise = rounded_gaussian(sigma)
        counts = {name: item + noise.sample(len(item)) for name, item in counts.items()}
    return Release(
        About("drift", "bench", "1.0.0", window),
        window.end,
        counts={name: tuple(map(int, item)) for name, item in counts.items()},
        sigma=sigma,
        details={"histograms": layout.describe()},
    )


def _alarms(made: Sequence[Release], reference: Reference) -> list[list[Finding]]:
    """The alarms after each window."""
    return [
        [item for item in find_drift(made[: n + 1], reference) if item.alarm]
        for n in range(len(made))
    ]


def _reference(layout: Layout, rows: np.ndarray, keys: np.ndarray, season: str):
    parts = {k: _counts(layout, rows[keys == k]) for k in season_keys(season)}
    return Reference(season, parts, 0.0)  # type: ignore[arg-type]


def _electricity() -> list[tuple[str, ...]]:
    """Weeks of half hours; from row 17,423 on, 2 May 1997, Victoria's data is there."""
    with gzip.open(DATA / "electricity" / "elec2_data.dat.gz", "rt") as file:
        values = np.array([line.split() for line in file if line.strip()], float)[:, 3:]
    names = ("nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
    layout = layout_of(model([Column(name, 0.0, 1.0) for name in names], SCORES_OFF))
    reference = _reference(layout, values[: 8 * 336], np.full(8 * 336, ""), "none")
    changed, rows = (17_423 - 1) // 336, []
    for epsilon in (2.0, 0.88, 0.5):
        window, made = window_at("weekly", 831_427_200), []
        for start in range(0, len(values) - 336, 336):
            made.append(_made(layout, values[start : start + 336], window, epsilon))
            window = window.next
        alarms = _alarms(made, reference)
        for name in names:
            hit = [any(a.histogram == f"input/{name}" for a in one) for one in alarms]
            before, after = np.mean(hit[8:changed]), np.mean(hit[changed:])
            first = next((n for n in range(changed, len(hit)) if hit[n]), None)
            late = "never" if first is None else f"week {first - changed + 1}"
            found = f"{before:.0%} of weeks before, {after:.0%} after, from {late}"
            rows.append(("electricity", "336 a week", _word(epsilon), name, found))
    return rows


SCORES_OFF = Tensor(TensorSpec("y", "FP32", (-1, 1)))


def _bicycles() -> list[tuple[str, ...]]:
    """Months of 2012 against all of 2011, and against the same month."""
    archive = zipfile.ZipFile(DATA / "bike-sharing" / "bike_sharing_dataset.zip")
    with archive.open("hour.csv") as file:
        found = list(csv.DictReader(io.TextIOWrapper(file)))
    columns = [
        *(Column("hr", 0.0, 23.0), Column("temp", 0.0, 1.0), Column("hum", 0.0, 1.0)),
        *(Column("windspeed", 0.0, 1.0), Column("registered", 0.0, 1000.0)),
    ]
    values = np.array([[float(row[c.name]) for c in columns] for row in found])
    year = np.array([int(row["yr"]) for row in found])
    month = np.array([f"{int(row['mnth']):02}" for row in found])
    layout, rows = layout_of(model(columns, SCORES_OFF)), []
    before = year == 0
    for season in ("none", "month"):
        keys = month[before] if season == "month" else np.full(before.sum(), "")
        reference = _reference(layout, values[before], keys, season)
        for epsilon in (0.0, 1.97, 1.0):
            window, made = window_named("2012-01"), []
            for key in season_keys("month"):
                chosen = values[(year == 1) & (month == key)]
                made.append(_made(layout, chosen, window, epsilon))
                window = window.next
            alarms = _alarms(made, reference)
            shown = []
            for column in columns:
                name = f"input/{column.name}"
                hits = sum(any(a.histogram == name for a in one) for one in alarms)
                shown.append(f"{column.name} {hits}")
            what = "against all of 2011" if season == "none" else "the same month"
            alarmed = f"of 12 months: {', '.join(shown)}"
            rows.append(("bicycles", "740 a month", _word(epsilon), what, alarmed))
    return rows


def _adult() -> list[tuple[str, ...]]:
    """Weeks of Adult's rows; from one week on everybody is older, or in Federal-gov."""
    values = np.array(_adult_rows())
    columns = (
        *(Column("age", 17.0, 90.0), Column("education", 1.0, 16.0)),
        *(Column("hours", 1.0, 99.0), Column("gain", 0.0, 1.0, ("no", "yes"))),
        Column("federal", 0.0, 1.0, ("no", "yes")),
    )
    layout = layout_of(model(columns, SCORES_OFF))
    random, deviation, rows = np.random.default_rng(1), values[:, 0].std(), []
    reference = _reference(layout, values, np.full(len(values), ""), "none")
    for size in (1000, 2000):
        for epsilon in (2.0, 0.88, 0.5):
            quiet = _weeks(layout, values, size, epsilon, number=100, random=random)
            false = sum(map(len, _alarms(quiet, reference)))
            told = f"{false} alarms in 100 weeks of 5 columns"
            what = (f"{size} a week", _word(epsilon), "no shift")
            rows.append(("adult", *what, told))
            for shift, name in ((0.25, "age"), (0.1, "age"), (0.03, "federal")):
                waits = []
                for _ in range(12):
                    moved = _moved(values, name, shift, deviation, random)
                    some = _weeks(layout, moved, size, epsilon, number=8, random=random)
                    alarms = _alarms(some, reference)
                    hit = [any(name in a.histogram for a in one) for one in alarms]
                    waits.append(hit.index(True) + 1 if any(hit) else math.inf)
                middle = float(np.median(waits))
                late = "not in 8 weeks" if middle == math.inf else f"week {middle:g}"
                all_found = sum(wait < math.inf for wait in waits)
                word = f"{name} +{shift:g}" + (" sd" if name == "age" else " of share")
                text = f"median {late}; {all_found} of 12 within 8"
                rows.append(("adult", f"{size} a week", _word(epsilon), word, text))
    return rows


def _adult_rows() -> list[list[float]]:
    rows = []
    with gzip.open(DATA / "adult" / "adult.data.gz", "rt") as file:
        for line in file:
            cells = [cell.strip() for cell in line.split(",")]
            if len(cells) == 15:
                gain, federal = float(cells[10]) > 0, cells[1] == "Federal-gov"
                numbers = [float(cells[at]) for at in (0, 4, 12)]
                rows.append([*numbers, float(gain), float(federal)])
    return rows


def _moved(values: np.ndarray, name: str, shift: float, deviation: float, random):
    moved = values.copy()
    if name == "age":
        moved[:, 0] = np.clip(moved[:, 0] + shift * deviation, 17, 90)
    else:
        moved[random.random(len(moved)) < shift, 4] = 1.0
    return moved


def _weeks(layout: Layout, values, size: int, epsilon: float, *, number: int, random):
    window, made = window_named("2026-W01"), []
    for _ in range(number):
        chosen = values[random.choice(len(values), size, replace=False)]
        made.append(_made(layout, chosen, window, epsilon))
        window = window.next
    return made


def _word(epsilon: float) -> str:
    return f"{epsilon:g}" if epsilon else "none"


if __name__ == "__main__":
    run()
