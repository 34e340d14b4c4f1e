"""Results as JSON, as a Markdown table, and as a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path(__file__).with_name("results.json")
PLOT = ROOT / "docs" / "peers.svg"
TITLES = {
    "mlp": "MLP 30-64-2, JSON",
    "image": "602 KB image",
    "tensor": "10 MB tensor",
}
# As dark as must be on white, as light as must be on black.
_INK = "#767676"
OURS, _PEERS, _LIMIT = "#2a8fbd", "#b07d48", "#8c8c8c"


@dataclass(frozen=True)
class Sample:
    """One run of one contender; of several, the medians.

    Attributes:
        rate: answers per second.
        p50_s: median of the times from a request to its answer.
        p99_s: their 99th percentile.
        cpu_s: CPU time of all the server's processes per request.
        rss_bytes: their resident memory afterwards.
        client_s: CPU time of the load generator per request.
        failures: answers other than 200, and broken connections; inside the seal too.
    """

    rate: float
    p50_s: float
    p99_s: float
    cpu_s: float
    rss_bytes: float
    client_s: float
    failures: float


@dataclass(frozen=True)
class Row(Sample):
    """One contender in one cell: a workload, workers, connections."""

    workload: str
    workers: int
    connections: int
    contender: str

    @property
    def cell(self) -> tuple[str, int, int]:
        """What is comparable with each other."""
        return self.workload, self.workers, self.connections


@dataclass(frozen=True)
class Results:
    """Of one run, or of several that measured different cells.

    Attributes:
        machine: cores and Python.
        load: the machine's load average over fifteen minutes, afterwards.
        seconds: of each run of the load generator.
        rounds: that the medians are over.
        left_out: reasons, by contender.
        rows: the figures.
    """

    machine: str
    load: float
    seconds: int
    rounds: int
    left_out: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def to_json(self) -> str:
        """As `load_results` reads it."""
        document: dict[str, Any] = asdict(self)
        document["rows"] = [
            {name: _short(value) for name, value in row.items()}
            for row in document["rows"]
        ]
        return json.dumps(document, indent=1) + "\n"


def load_results(path: Path) -> Results:
    """Read what `Results.to_json` wrote."""
    document = json.loads(path.read_text())
    rows = [Row(**row) for row in document.pop("rows")]
    return Results(**document, rows=rows)


def merge(path: Path, new: Results) -> Results:
    """Replace the cells that were measured now, keep the others, write the file.

    A cell is replaced as a whole: within it all figures are of one run.
    """
    measured = {row.cell for row in new.rows}
    old = load_results(path) if path.exists() else new
    kept = [row for row in old.rows if row.cell not in measured]
    result = Results(
        machine=new.machine,
        load=new.load,
        seconds=new.seconds,
        rounds=new.rounds,
        left_out={**old.left_out, **new.left_out},
        rows=[*kept, *new.rows],
    )
    path.write_text(result.to_json())
    return result


def markdown(results: Results) -> str:
    """A table for each workload and number of workers."""
    parts = []
    groups = sorted({(row.workload, row.workers) for row in results.rows}, key=_order)
    for workload, workers in groups:
        rows = [
            row
            for row in results.rows
            if (row.workload, row.workers) == (workload, workers)
        ]
        plural = "" if workers == 1 else "s"
        title = f"{TITLES[workload]}, {workers} worker{plural}"
        parts.append(f"**{title}**\n\n{_table(rows)}")
    reasons = [f"- {name}: {why}" for name, why in results.left_out.items()]
    if reasons:
        parts.append("Left out:\n\n" + "\n".join(reasons))
    return "\n\n".join(parts)


def _table(rows: list[Row]) -> str:
    header = (
        "| | req/s, 1 conn. | p50, p99, ms | req/s, 16 conn. | p50, p99, ms "
        "| CPU, µs/request | RSS, MB |"
    )
    lines = [header, "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row.contender for row in rows):
        by = {row.connections: row for row in rows if row.contender == name}
        last = by[max(by)]
        cells = [name]
        for connections in (1, 16):
            row = by.get(connections)
            cells += ["", ""] if row is None else [_rate(row), _times(row)]
        cells += [f"{last.cpu_s * 1e6:,.0f}", f"{last.rss_bytes / 1e6:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rate(row: Row) -> str:
    """Answers per second; a run with failures is marked."""
    failed = f" ({row.failures:.0f} failed!)" if row.failures else ""
    return f"{row.rate:,.0f}{failed}"


def _times(row: Row) -> str:
    digits = 3 if row.p50_s < 1e-4 else 2 if row.p50_s < 1e-2 else 1
    return f"{row.p50_s * 1e3:.{digits}f}, {row.p99_s * 1e3:.{digits}f}"


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _order(group: tuple[str, int]) -> tuple[int, int]:
    return list(TITLES).index(group[0]), group[1]


def short_table(results: Results) -> str:
    """For README: one worker, sixteen connections, of each workload."""
    chosen = [row for row in results.rows if row.workers == 1 and row.connections == 16]
    names = list(dict.fromkeys(row.contender for row in chosen))
    works = [name for name in TITLES if any(row.workload == name for row in chosen)]
    by = {(row.workload, row.contender): row for row in chosen}
    heads = [f"{TITLES[name]}, req/s" for name in works]
    lines = [
        "| | " + " | ".join([*heads, "CPU, µs/request (MLP)", "p99, ms (MLP)"]) + " |",
        "|---" * (len(works) + 3) + "|",
    ]
    for name in names:
        rates = [_rate(by[w, name]) if (w, name) in by else "-" for w in works]
        row = by.get(("mlp", name))
        more = ["-", "-"]
        if row is not None:
            more = [f"{row.cpu_s * 1e6:,.0f}", f"{row.p99_s * 1e3:.3g}"]
        lines.append("| " + " | ".join([name, *rates, *more]) + " |")
    return "\n".join(lines)


@contextmanager
def canvas() -> Iterator[Any]:
    """matplotlib, in colours that are readable on white and on black."""
    import matplotlib as mpl  # noqa: PLC0415  (only where a plot is wanted)

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "sealgate",
        "text.color": _INK,
        "axes.facecolor": "none",
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "font.size": 9,
    }
    with mpl.rc_context(settings):
        yield plt


def plot(results: Results, path: Path) -> None:
    """Bars of the requests per second, one worker, sixteen connections."""
    rows = [row for row in results.rows if row.workers == 1 and row.connections == 16]
    works = [name for name in TITLES if any(row.workload == name for row in rows)]
    parts = {name: [row for row in rows if row.workload == name] for name in works}
    panels(parts, lambda axis, name: _bars(axis, parts[name], TITLES[name]), path)


def panels(
    parts: Mapping[str, Sequence[object]],
    draw: Callable[[Any, str], None],
    path: Path,
) -> None:
    """Plots below each other, a line of each for every one of its rows, as one SVG."""
    heights = [len(rows) for rows in parts.values()]
    with canvas() as plt:
        figure, axes = plt.subplots(
            len(parts),
            1,
            figsize=(7.6, 0.27 * sum(heights) + 0.75 * len(parts)),
            height_ratios=heights,
            squeeze=False,
        )
        for axis, name in zip(axes[:, 0], parts):
            draw(axis, name)
            axis.tick_params(left=False)
            for side in ("top", "right", "left"):
                axis.spines[side].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def _bars(axis: Any, rows: list[Row], title: str) -> None:
    rows = sorted(rows, key=lambda row: row.rate)
    names = [row.contender for row in rows]
    axis.barh(
        names, [row.rate for row in rows], color=[_colour(n) for n in names], height=0.7
    )
    for place, row in enumerate(rows):
        axis.annotate(
            f"{row.rate:,.0f}",
            (row.rate, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.set_xscale("log")
    axis.margins(x=0.12)
    axis.set_title(f"{title}: requests per second, log scale", loc="left", fontsize=9)


def _colour(name: str) -> str:
    if name.startswith("Sealgate"):
        return OURS
    return _LIMIT if "in process" in name else _PEERS


def write(results: Results) -> None:
    """Put the tables and the plot where the documents have them."""
    plot(results, PLOT)
    replace(ROOT / "docs" / "performance.md", "peers", markdown(results))
    replace(ROOT / "README.md", "peers", short_table(results))


def replace(path: Path, name: str, text: str) -> None:
    """Replace what stands between two comments, ``<!-- name -->`` and its end."""
    document = path.read_text()
    start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = document.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"error: {path.name} has no place for {name}")
    path.write_text(f"{before}{start}\n{text}\n\n{end}{after}")
