"""What privacy and robustness cost, data set by data set, on one page.

Each model is trained as `train` does it and assessed as `assess` does it; the figures
are those of the evidence that they wrote. `python -m benchmarks models` measures, keeps
what it measured in benchmarks/models.json, and writes the tables of docs/comparison.md
from it; `--show` writes them alone, and with `--file` of other figures prints them.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.peers.report import panels
from benchmarks.recipes import EXAMPLES, SHARED
from benchmarks.variants import DATA, Data, configuration
from models.bundle import Bundle, read_bundle
from models.errors import BundleError
from models.files import write_atomic
from models.report import Metric
from sealgate.errors import SealgateError
from security.assessment.engine.assess import OPTIONS, AssessRequest, assess_bundle
from security.training.config_sections import TrainingConfig
from security.training.data import load_split
from security.training.ledger import Ledger
from security.training.run import train_bundle

__all__ = [
    "FIGURES",
    "PAGE",
    "Figure",
    "Row",
    "load",
    "main",
    "markdown",
    "plot",
    "run",
    "save",
    "written",
]

FIGURES = Path(__file__).with_name("models.json")
PAGE = EXAMPLES.parent / "docs" / "comparison.md"
PLOT = PAGE.with_suffix(".svg")
FORMAT = 1
MAX_BYTES = 1 << 20
_TABLES = re.compile(r"(?<=<!-- models -->\n).*?(?=\n<!-- end models -->)", re.DOTALL)
_NONE = "-"


@dataclass(frozen=True)
class Figure:
    """A metric with its interval, as evidence states it."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Row:
    """What is known of a model; None where nothing was measured, for the reason given.

    Attributes:
        data, model: of the tables.
        epsilon: of its guarantee; None without one.
        measure: "accuracy", or "RMSE" of a predicted number.
        quality: on held-out rows.
        radius: of the next two, as a share of each range.
        verified: share of rows that no attack can turn, proven; of a number, how far
            an attack can move an answer at most, proven.
        attacked: share that none of ours turned; of a number, how far one moved it.
        membership: AUC of the best attack.
        train_s, assess_s: CPU of both, with children.
        missing: why a figure is missing, by its name.
    """

    data: str
    model: str
    epsilon: float | None
    measure: str
    quality: Figure
    radius: float
    verified: Figure | None
    attacked: Figure | None
    membership: Figure | None
    train_s: float
    assess_s: float
    missing: Mapping[str, str] = field(default_factory=dict)


def run() -> None:
    """All of it, as `main` without options."""
    main([])


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m benchmarks models`."""
    args = _parser().parse_args(arguments)
    rows = load(args.file)
    if not args.show:
        for name in args.only or DATA:
            for row in measured(name, args.data):
                rows = [*(old for old in rows if not _same(old, row)), row]
                save(args.file, _ordered(rows))
    rows = _ordered(rows)
    if args.file == FIGURES:
        text = PAGE.read_text(encoding="utf-8")
        write_atomic(PAGE, written(text, rows).encode())
        plot(rows, PLOT)
    print(markdown(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks models", description=__doc__
    )
    parser.add_argument(
        "--data", type=Path, default=SHARED, help="a folder for each data set, by name"
    )
    parser.add_argument("--only", nargs="+", choices=DATA, help="these data sets")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--file", type=Path, default=FIGURES, help="of the figures")
    return parser


def _same(one: Row, other: Row) -> bool:
    return (one.data, one.model) == (other.data, other.model)


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """In the order of the tables; what no table names any more is left out."""
    found = {(row.data, row.model): row for row in rows}
    named = [(name, item.name) for name, data in DATA.items() for item in data.variants]
    return [found[key] for key in named if key in found]


# Measuring.


def measured(name: str, folder: Path) -> Iterator[Row]:
    """Train and assess every model of a data set; skips one whose files are absent."""
    data = DATA[name]
    if data.folder and not (folder / data.folder).is_dir():
        print(f"{name}: no {folder / data.folder}", file=sys.stderr)
        return
    for item in data.variants:
        with tempfile.TemporaryDirectory() as home:
            config = configuration(data, item, folder)
            row = _measured((name, item.name), config, data.radius, Path(home))
        print(f"{name}: {item.name}: {row.quality.value:.4f}", file=sys.stderr)
        yield row


def _measured(
    names: tuple[str, str], config: TrainingConfig, radius: float, home: Path
) -> Row:
    began = _cpu_s()
    ledger = Ledger(home / "ledger.sqlite")
    out = train_bundle(config, home / "bundle", lambda *_: None, ledger=ledger)
    trained = _cpu_s()
    train, holdout = load_split(config)
    options = replace(OPTIONS, radius_linf=radius)
    began_assessing = _cpu_s()
    made = assess_bundle(AssessRequest(out, holdout, train, options=options))
    took = trained - began, _cpu_s() - began_assessing
    return row_of(read_bundle(out), names, took, made.missing)


def _cpu_s() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(item.ru_utime + item.ru_stime for item in used)


def row_of(
    bundle: Bundle,
    names: tuple[str, str],
    took: tuple[float, float],
    missing: Mapping[str, str],
) -> Row:
    """What a bundle's evidence says."""
    metrics = {
        kind: _metrics(bundle, kind)
        for kind in ("quality", "privacy", "robustness", "membership")
    }
    number = "rmse" in metrics["quality"]
    epsilon = metrics["privacy"].get("epsilon")
    robustness = metrics["robustness"]
    radius = robustness.get("radius")
    verified = "largest_change_bound" if number else "verified_accuracy"
    attacked = "largest_change" if number else "robust_accuracy"
    return Row(
        *names,
        epsilon=None if epsilon is None else epsilon.value,
        measure="RMSE" if number else "accuracy",
        quality=_figure(metrics["quality"]["rmse" if number else "accuracy"]),
        radius=0.0 if radius is None else radius.value,
        verified=_optional(robustness.get(verified)),
        attacked=_optional(robustness.get(attacked)),
        membership=_optional(metrics["membership"].get("auc")),
        train_s=round(took[0], 1),
        assess_s=round(took[1], 1),
        missing=dict(missing),
    )


def _metrics(bundle: Bundle, kind: str) -> Mapping[str, Metric]:
    try:
        return bundle.report(kind).metrics
    except BundleError:
        return {}


def _figure(metric: Metric) -> Figure:
    return Figure(metric.value, metric.low, metric.high, metric.n)


def _optional(metric: Metric | None) -> Figure | None:
    return None if metric is None else _figure(metric)


# Keeping and showing.


def load(path: Path = FIGURES) -> list[Row]:
    """The figures of a file; none if there is no file.

    Raises:
        SealgateError: it is not such a file.
    """
    if not path.exists():
        return []
    if path.stat().st_size > MAX_BYTES:
        raise SealgateError(f"{path}: more than {MAX_BYTES} bytes")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise SealgateError(f"{path}: format {value['format']!r}, not {FORMAT}")
        return [_row(item) for item in value["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise SealgateError(f"{path}: {error}") from None


def _row(value: Mapping[str, Any]) -> Row:
    figures = {
        name: None if value[name] is None else Figure(**value[name])
        for name in ("quality", "verified", "attacked", "membership")
    }
    return Row(**{**value, **figures})


def save(path: Path, rows: Sequence[Row]) -> None:
    """Write figures, whole or not at all."""
    value = {"format": FORMAT, "rows": [asdict(row) for row in rows]}
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def written(text: str, rows: Sequence[Row]) -> str:
    """The page with these tables in it."""
    return _TABLES.sub(lambda _: markdown(rows), text)


def markdown(rows: Sequence[Row]) -> str:
    """A table for each data set, whose head says what the figures are."""
    parts = []
    for name, data in DATA.items():
        own = [row for row in rows if row.data == name]
        if own:
            parts += [f"### {data.title}", "", *_table(own), ""]
    return "\n".join(parts).rstrip()


_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "model": lambda row: row.model,
    "epsilon": lambda row: _NONE if row.epsilon is None else f"{row.epsilon:.2f}",
    "{measure}": lambda row: _ranged(row.quality, row),
    "{verified} at {radius:g}": lambda row: _plain(row.verified, row),
    "{attacked}": lambda row: _plain(row.attacked, row),
    "membership AUC": lambda row: _ranged(row.membership),
    "CPU, train + assess": lambda row: f"{row.train_s:.0f} + {row.assess_s:.0f} s",
}
_TITLES: Mapping[str, Mapping[str, str]] = {
    "accuracy": {"verified": "verified", "attacked": "attacked"},
    "RMSE": {"verified": "moves at most", "attacked": "was moved by"},
}


def _table(rows: Sequence[Row]) -> Iterator[str]:
    said = {**vars(rows[0]), **_TITLES[rows[0].measure]}
    head = [title.format(**said) for title in _COLUMNS]
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell(row) for cell in _COLUMNS.values()) + " |"


def _plain(figure: Figure | None, row: Row) -> str:
    return _NONE if figure is None else f"{figure.value:.{_digits(row)}f}"


def _digits(row: Row | None) -> int:
    """Decimals: a share has three, a number in its own unit one."""
    return 1 if row is not None and row.measure == "RMSE" else 3


def _ranged(figure: Figure | None, row: Row | None = None) -> str:
    if figure is None:
        return _NONE
    digits = _digits(row)
    text = f"{figure.value:.{digits}f}"
    if figure.low is None or figure.high is None:
        return text
    return f"{text} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Of classifiers: accuracy, and what of it is proved and unbroken under attack."""
    shown = [row for row in rows if row.measure == "accuracy"]
    names = [name for name in DATA if any(row.data == name for row in shown)]
    parts = {name: [row for row in shown if row.data == name] for name in names}
    panels(parts, lambda axis, name: _marks(axis, parts[name], DATA[name]), path)


def _marks(axis: Any, rows: Sequence[Row], data: Data) -> None:
    """A model a line: a bar up to what is proved, a stroke where attacks end, a dot."""
    for place, row in enumerate(reversed(rows)):
        if row.verified is not None:
            axis.barh(place, row.verified.value, color="#2b9348", height=0.55)
        if row.attacked is not None:
            axis.plot(row.attacked.value, place, "|", color="#d6483f", ms=11, mew=2)
        axis.plot(row.quality.value, place, "o", color="#2f7fd6", ms=5)
    axis.set_yticks(range(len(rows)), [row.model for row in reversed(rows)])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_xlim(0.0, 1.0)
    axis.set_title(f"{data.title}, L∞ {data.radius:g}", loc="left", fontsize=9)
