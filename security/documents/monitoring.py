"""A page of what monitoring found over time, from documents that callers get too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from sealgate.charts import Bar, bars, line_chart
from sealgate.monitoring import headline, largest
from sealgate.page import contents, number, page, table

__all__ = ["to_html"]

Json = Mapping[str, Any]

_TONES = {"drift": "error", "unknown": "warning", "quiet": "fine"}
_UNITS = {"daily": "days", "weekly": "weeks", "monthly": "months"}
_LINES = 6
_BLIND = (
    "What nobody asked, or asked without being answered, is in no histogram.",
    "Columns are looked at one by one: two that change together may both stay as they "
    "are.",
    "Small shifts: what is found depends on subjects and noise; docs/monitoring.md has "
    "the power.",
    "Rows that follow one another are not independent: seasons are drift, unless the "
    "reference has them.",
)


def to_html(documents: Sequence[Json]) -> bytes:
    """The page of some versions.

    Args:
        documents: of `security.monitoring.overview.Overview.to_object`.
    """
    parts = [
        f'<header id="summary"><h1>Monitoring</h1>{_summary(documents)}</header>',
        *(_version(item, f"version-{at}") for at, item in enumerate(documents)),
        '<h2 id="blind">What this cannot see</h2><ul>',
        *(f"<li>{escape(line)}</li>" for line in (*_statements(documents), *_BLIND)),
        "</ul>",
    ]
    nav = [
        ("summary", "Summary", []),
        *(
            (f"version-{at}", _tag(item), _places(f"version-{at}"))
            for at, item in enumerate(documents)
        ),
        ("blind", "What this cannot see", []),
    ]
    return page("Monitoring", "\n".join(parts), nav=contents(nav))


def _places(anchor: str) -> list[tuple[str, str]]:
    titles = {"drift": "Drift", "windows": "Windows", "promise": "Privacy"}
    return [(f"{anchor}-{name}", title) for name, title in titles.items()]


def _tag(document: Json) -> str:
    return f"{document['model']}:{document['version']}"


def _statements(documents: Sequence[Json]) -> list[str]:
    """What an estimate assumes; and labels, where there are some. Each once."""
    found = {}
    for window in (w for item in documents for w in item["windows"]):
        found["Accuracy without labels"] = window["accuracy_without_labels"][
            "statement"
        ]
        if window["labels"] and window["labels"]["assumption"]:
            found["Accuracy by labels"] = window["labels"]["assumption"]
    return [f"{name}: {text}." for name, text in found.items()]


def _summary(documents: Sequence[Json]) -> str:
    lines = [
        f'<tr class="{_TONES[item["state"]]}"><td><a href="#version-{at}">'
        f"{escape(_tag(item))}</a></td><td>{escape(item['state'])}</td>"
        f'<td class="found">{escape(headline(item))}</td></tr>'
        for at, item in enumerate(documents)
    ]
    as_of = escape(max((str(item["as_of"]) for item in documents), default=""))
    return (
        f'<p class="quiet">As of {as_of}. All figures are of released, noisy counts; '
        'no row was kept.</p><table class="glance"><thead><tr><th>version</th><th>state'
        f"</th><th>found</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _version(document: Json, anchor: str) -> str:
    windows = document["windows"]
    told = [item for item in windows if item["alarms"] is not None]
    parts = [
        f'<h2 id="{anchor}">{escape(_tag(document))}</h2>',
        f'<p class="quiet mono">sha256 {escape(document["root_sha256"])}</p>',
        f'<div class="verdict {_TONES[document["state"]]}"><strong>'
        f"{escape(headline(document))}</strong></div>",
        _tiles(document, told),
    ]
    if told:
        parts += [
            f'<div class="charts">{"".join(_charts(document, windows))}</div>',
            f'<h3 id="{anchor}-drift">Drift in {escape(told[-1]["name"])}</h3>',
            _histograms(told),
        ]
    labelled = [item for item in windows if item["labels"]]
    if labelled:
        parts += [
            f"<h3>Labels of {escape(labelled[-1]['name'])}</h3>",
            _labels(labelled[-1]["labels"]),
        ]
    if windows:
        parts += [
            f'<h3 id="{anchor}-windows">Windows</h3>',
            _windows(windows),
            f'<h3 id="{anchor}-promise">What the releases promise</h3>',
            _promise(document, windows),
        ]
    return f"<section>{''.join(parts)}</section>"


def _tiles(document: Json, told: Sequence[Json]) -> str:
    """The key figures of the last window that was released, and of the budget."""
    budget, tiles = document["budget"], []
    if told:
        last = told[-1]
        alarms = len(last["alarms"])
        tested = len({item["histogram"] for item in last["histograms"]})
        tiles.append(("in alarm", str(alarms), f"of {tested} histograms"))
        subjects = last["subjects"]
        tiles.append(("subjects", number(subjects), f"in {last['name']}, noisy"))
        labelled = [item for item in document["windows"] if item["labels"]]
        given = labelled[-1]["labels"]["accuracy"] if labelled else None
        where = f", {labelled[-1]['name']}" if labelled else ""
        tiles.append(_figure(f"accuracy by labels{where}", given, "no labels yet"))
        without = last["accuracy_without_labels"]
        named = "accuracy without labels"
        tiles.append(_figure(named, without["estimate"], without["withheld"]))
    spent = f"of {number(budget['cap'])} in 365 days, delta {budget['delta']:g}"
    tiles.append(("epsilon spent", number(budget["epsilon"]), spent))
    inner = (
        f'<div class="tile"><span class="quiet">{escape(name)}</span>'
        f'<b>{escape(value)}</b><span class="quiet">{escape(text)}</span></div>'
        for name, value, text in tiles
    )
    return f'<div class="tiles">{"".join(inner)}</div>'


def _figure(name: str, value: Json | None, otherwise: str) -> tuple[str, str, str]:
    if value is None:
        return name, "\N{EN DASH}", otherwise
    low, high = number(value["low"]), number(value["high"])
    return name, number(value["value"]), f"95% interval {low} to {high}"


def _charts(document: Json, windows: Sequence[Json]) -> Iterator[str]:
    """Sizes of drift, accuracy both ways, and subjects, over the windows."""
    across = f"{_UNITS[document['length']]} before {windows[-1]['name']}"
    places = [(at + 1 - len(windows), item) for at, item in enumerate(windows)]

    def chart(title: str, up: str, series: Mapping[str, Any], **more: Any) -> str:
        lines = [{"name": name, "points": points} for name, points in series.items()]
        return line_chart(
            {"title": title, "x": across, "y": up, "series": lines, **more}
        )

    names = _most_moved(windows)
    sizes: dict[str, list[list[float]]] = {name: [] for name in names}
    for at, window in places:
        for item in _alone(window):
            if item["histogram"] in sizes:
                sizes[item["histogram"]].append([at, max(0.0, item["psi"])])
    title = "Size of drift: the histograms that moved most (a size, not the test)"
    yield chart(title, "PSI", sizes, y_low=0.0)
    kinds: Mapping[str, Callable[[Json], Any]] = {
        "by labels": lambda w: (w["labels"] or {}).get("accuracy"),
        "without labels": lambda w: w["accuracy_without_labels"]["estimate"],
    }
    accuracy = {
        name: [
            [at, value["value"], value["low"], value["high"]]
            for at, window in places
            for value in [of(window)]
            if value is not None
        ]
        for name, of in kinds.items()
    }
    yield chart("Accuracy, with 95% intervals", "accuracy", accuracy)
    alarms = [[at, len(w["alarms"])] for at, w in places if w["alarms"] is not None]
    high = max(5, *(count for _, count in alarms))
    title = "Histograms in alarm"
    yield chart(title, "histograms", {"": alarms}, y_low=0.0, y_high=high)
    subjects = [[at, w["subjects"]] for at, w in places if w["subjects"] is not None]
    yield chart("Subjects, noisy", "subjects", {"": subjects}, y_low=0.0)


def _alone(window: Json) -> list[Json]:
    """The findings of one window by itself."""
    return [item for item in window["histograms"] if item["windows"] == 1]


def _most_moved(windows: Sequence[Json]) -> list[str]:
    """The histograms with the largest size in any window."""
    most: dict[str, float] = {}
    for item in (found for window in windows for found in _alone(window)):
        name = item["histogram"]
        most[name] = max(item["psi"], most.get(name, 0.0))
    return sorted(most, key=lambda name: -most[name])[:_LINES]


def _histograms(told: Sequence[Json]) -> str:
    """Each histogram in the last window: alone, and with the windows before it."""
    rows = []
    since: dict[str, list[str]] = {}
    for window in told:
        for name in window["alarms"]:
            since.setdefault(name, []).append(window["name"])
    last = told[-1]
    for item in last["histograms"]:
        shift = item["shift"]
        rows.append(
            [
                item["histogram"],
                "this one" if item["windows"] == 1 else f"last {item['windows']}",
                "alarm" if item["alarm"] else "",
                _probability(item["p_value"]),
                item["by"],
                item["psi"],
                ""
                if shift is None
                else f"{shift[0]:+.3f} \N{PLUS-MINUS SIGN} {shift[1]:.3f} bins",
                _recent(since.get(item["histogram"], [])),
            ]
        )
    rows.sort(key=lambda row: (not row[2], -row[5]))
    columns = ["histogram", "windows", "alarm", "p-value", "by", "PSI", "shift"]
    return table([*columns, "windows in alarm"], rows, name="histograms")


def _probability(value: float) -> str:
    """Below this, the tail of no histogram is known."""
    return f"{value:.2g}" if value >= 1e-12 else "< 1e-12"


def _recent(names: Sequence[str]) -> str:
    if not names:
        return ""
    return names[-1] if len(names) == 1 else f"{len(names)}, last {names[-1]}"


def _labels(labels: Json) -> str:
    """What the last labels say, whole, by score and by group."""
    if labels["refused"]:
        return f"<p>No accuracy is stated: {escape(labels['refused'])}.</p>"
    scores = {f"{b['low']:.2f} to {b['high']:.2f}": b for b in labels["calibration"]}
    groups = labels["groups"]
    shares = {
        "": {"accuracy": labels["accuracy"]},
        "accuracy by score": {n: item["accuracy"] for n, item in scores.items()},
        "accuracy by group": {n: item["accuracy"] for n, item in groups.items()},
    }
    for what, title in (("rates", "answers by group"), ("recall", "recall by group")):
        shares[title] = {
            f"{name}: {value}": found
            for name, item in groups.items()
            for value, found in item[what].items()
        }
    errors = labels["error"] or {}
    sizes = {
        "": {name: errors.get(name) for name in ("rmse", "mae")},
        "mean absolute error by group": {n: g["mae"] for n, g in groups.items()},
    }
    # Noise puts some of these beyond 0 and 1: such an axis would cut them off.
    return _bars(shares, "share") + _bars(sizes, "error")


def _bars(groups: Mapping[str, Mapping[str, Json | None]], first: str) -> str:
    shown = [
        (title, [Bar(name, level=0.95, **e) for name, e in items.items() if e])
        for title, items in groups.items()
    ]
    shown = [(title, items) for title, items in shown if items]
    return bars(shown, first=first, name=first) if shown else ""


def _windows(windows: Sequence[Json]) -> str:
    rows = []
    for window in reversed(windows):
        most, labels = largest(window), window["labels"] or {}
        without, withheld = window["accuracy_without_labels"], window["withheld"]
        rows.append(
            [
                # A name is not to be broken where its column is narrow.
                window["name"].replace("-", "\N{NON-BREAKING HYPHEN}"),
                "" if window["subjects"] is None else number(window["subjects"]),
                ""
                if window["alarms"] is None
                else ", ".join(window["alarms"]) or "none",
                "" if most is None else f"{most[1]:.3f} {most[0]}",
                _interval(labels.get("accuracy"), labels.get("refused", "")),
                _interval(without["estimate"], "" if withheld else without["withheld"]),
                withheld or _lost(window["lost"]),
            ]
        )
    columns = ["window", "subjects", "alarms", "largest PSI", "accuracy by labels"]
    columns += ["without labels", "not told"]
    shown = [at for at in range(len(columns)) if any(row[at] for row in rows)]
    return table(
        [columns[at] for at in shown],
        [[row[at] for at in shown] for row in rows],
        name="windows",
    )


def _lost(lost: Json) -> str:
    """What is known not to have been counted."""
    return ", ".join(
        name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}"
        for name, value in lost.items()
    )


def _interval(value: Json | None, otherwise: str) -> str:
    if value is None:
        return otherwise
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _promise(document: Json, windows: Sequence[Json]) -> str:
    """The guarantee of the last release that has one, word by word."""
    stated = [item["guarantee"] for item in windows if item["guarantee"]]
    budget = document["budget"]
    lines = {
        "in 365 days": f"epsilon {budget['epsilon']:.3f} of {budget['cap']:g} at delta "
        f"{budget['delta']:g}, over all models and kinds of release",
    }
    for name, value in (stated[-1] if stated else {}).items():
        if not isinstance(value, Mapping):
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines[name.replace("_", " ")] = shown
    inner = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name, text in lines.items()
    )
    return f"<dl>{inner}</dl>"
