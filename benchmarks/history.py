"""A history of ratios, so that a regression is seen. It fails nobody's build.

`python -m benchmarks history` runs short versions of the main comparisons and appends
what they gave to benchmarks/history.json, for a commit: a tree with changes is measured
too, but only recorded with --dirty, and then its entry says so. --show prints the last
entry beside the median of those before it, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.comparisons import COMPARISONS
from benchmarks.timing import Spread, spread_of, table
from models.files import write_atomic

__all__ = ["HISTORY", "Entry", "load", "main", "moved", "rows", "save", "show", "tree"]

ROOT = Path(__file__).resolve().parent.parent
HISTORY = Path(__file__).with_name("history.json")
FORMAT = 1
MAX_ENTRIES = 200
MAX_BYTES = 4 << 20
ROUNDS = 5
# Of what the ratios depend on, beside this project.
PACKAGES = (
    "bentoml",
    "cryptography",
    "httpcore",
    "httptools",
    "httpx",
    "numpy",
    "onnxruntime",
    "opacus",
    "orjson",
    "starlette",
    "torch",
    "uvicorn",
    "uvloop",
)


@dataclass(frozen=True)
class Entry:
    """What one run gave.

    Attributes:
        commit: of this project, in full.
        dirty: the tree had changes beyond it.
        date: of the run, UTC, in ISO 8601.
        machine: its cores and architecture.
        versions: of what the ratios depend on, by name.
        ratios: by name; smaller is better.
    """

    commit: str
    dirty: bool
    date: str
    machine: str
    versions: Mapping[str, str]
    ratios: Mapping[str, Spread]


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m benchmarks history`."""
    args = _parser().parse_args(arguments)
    entries = load(args.file)
    if not args.show:
        entry = _measured(args.only, args.rounds)
        entries = [*entries, entry]
        if entry.dirty and not args.dirty:
            print("not recorded: the tree has changes; commit them, or add --dirty\n")
        else:
            save(args.file, entries)
    show(entries)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks history", description=__doc__
    )
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--dirty", action="store_true", help="record changes, too")
    parser.add_argument("--file", type=Path, default=HISTORY)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS)
    )
    return parser


def _measured(names: Sequence[str], rounds: int) -> Entry:
    # Before anything is measured: without git there is no commit to record it for.
    commit, dirty = tree()
    ratios: dict[str, Spread] = {}
    for name in names:
        found = COMPARISONS[name](rounds)
        ratios |= {what: spread_of(values) for what, values in found.items()}
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Entry(commit, dirty, date, machine, _versions(), ratios)


def tree(root: Path = ROOT) -> tuple[str, bool]:
    """The commit of a folder, and whether there are changes beyond it.

    The history itself is none: it changes with each run.

    Raises:
        SystemExit: it is no working copy of git.
    """
    ignored = f":(exclude){HISTORY.relative_to(ROOT).as_posix()}"
    commit = _git(root, "rev-parse", "HEAD")
    return commit, bool(_git(root, "status", "--porcelain", "--", ".", ignored))


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit("error: no commit to record for: git does not know") from None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def load(path: Path) -> list[Entry]:
    """The entries of a file, the oldest first; none where there is no file.

    Raises:
        SystemExit: it is no history.
    """
    if not path.exists():
        return []
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        document = json.loads(path.read_bytes())
        if document["version"] != FORMAT:
            raise ValueError(f"version {document['version']!r} is not known")
        return [_entry(item) for item in document["entries"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"error: {path}: no history of benchmarks: {error}") from None


def _entry(item: Mapping[str, Any]) -> Entry:
    ratios = {
        name: Spread(ratio["median"], ratio["min"], ratio["max"], ratio["rounds"])
        for name, ratio in item["ratios"].items()
    }
    return Entry(**{**item, "ratios": ratios})


def save(path: Path, entries: Sequence[Entry]) -> None:
    """Write the newest entries, as many as fit: the same ones give the same bytes."""
    kept = [
        asdict(entry)
        | {"ratios": {name: _ratio(one) for name, one in entry.ratios.items()}}
        for entry in entries[-MAX_ENTRIES:]
    ]
    document = {"version": FORMAT, "entries": kept}
    write_atomic(path, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())


def _ratio(spread: Spread) -> dict[str, float]:
    """As it is written: four digits are more than a ratio has."""
    figures = {"median": spread.median, "min": spread.least, "max": spread.most}
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    return rounded | {"rounds": spread.rounds}


def show(entries: Sequence[Entry]) -> None:
    """Print the last entry beside those before it."""
    if not entries:
        print("no entries yet")
        return
    *before, last = entries
    changes = ", with changes" if last.dirty else ""
    print(f"{last.commit[:12]}{changes}, {last.date}, {last.machine}")
    print(f"beside the median of {len(before)} entries before it\n")
    table(("ratio", "before", "now", "min, max", "change", ""), rows(before, last))
    if before and (other := _differing(before[-1].versions, last.versions)):
        print(f"\nother versions than in the entry before: {other}")


def rows(before: Sequence[Entry], last: Entry) -> list[tuple[str, ...]]:
    """A row for each ratio of the last entry; what moved is marked."""
    found = []
    for name, now in last.ratios.items():
        old = [entry.ratios[name] for entry in before if name in entry.ratios]
        ends = f"{now.least:.3g}, {now.most:.3g}"
        if not old:
            found.append((name, "", f"{now.median:.3g}", ends, "", "new"))
            continue
        usual = _usual(old)
        change = f"{(now.median / usual.median - 1) * 100:+.0f}%"
        figures = f"{usual.median:.3g}", f"{now.median:.3g}", ends
        found.append((name, *figures, change, moved(usual, now)))
    return found


def _usual(spreads: Sequence[Spread]) -> Spread:
    """What most of several runs gave."""
    parts = [(one.median, one.least, one.most, one.rounds) for one in spreads]
    return Spread(*map(statistics.median, zip(*parts)))


def moved(before: Spread, now: Spread) -> str:
    """Whether all that the rounds give now lies beyond what they gave before."""
    if now.least > before.most:
        return "**worse**"
    return "better" if now.most < before.least else ""


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = (
        f"{name} {before.get(name, 'none')} to {now.get(name, 'none')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )
    return ", ".join(changed)
