"""What monitoring found of a version, in lines for people.

The document is what ``GET /v2/models/{model}/monitoring`` answers, and what the command
``python -m security monitor`` makes of the same releases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sealgate.errors import TransportError

__all__ = ["headline", "largest", "lines"]

Json = Mapping[str, Any]

_COLUMNS = (
    "window",
    "subjects",
    "alarms",
    "largest PSI",
    "by labels",
    "without labels",
)
_WIDTHS = (10, 9, 6, 34, 20, 20)
_KINDS = {"drift": "error", "unknown": "warning", "quiet": "head"}


def lines(document: Json) -> Iterator[tuple[str, str]]:
    """Lines of text, each with its kind: "error", "warning", "head", "quiet" or "".

    Raises:
        TransportError: it is no such document.
    """
    try:
        yield from _lines(document)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise TransportError("what is told of monitoring is malformed") from None


def headline(document: Json) -> str:
    """What to think of the version, in a sentence.

    >>> headline({"state": "unknown", "reason": "2026-W49 was not released"})
    'it cannot be told whether anything drifts: 2026-W49 was not released'
    """
    if document["state"] == "unknown":
        return f"it cannot be told whether anything drifts: {document['reason']}"
    last = [item for item in document["windows"] if item["alarms"] is not None][-1]
    if not last["alarms"]:
        return f"nothing drifted in {last['name']}"
    count = len(last["alarms"])
    what = "one histogram" if count == 1 else f"{count} histograms"
    return f"drift in {last['name']}, {what} in alarm: {', '.join(last['alarms'])}"


def largest(window: Json) -> tuple[str, float] | None:
    """The histogram with the largest population stability index of one window."""
    sizes = {
        i["histogram"]: i["psi"] for i in window["histograms"] if i["windows"] == 1
    }
    return max(sizes.items(), key=lambda item: item[1]) if sizes else None


def _lines(document: Json) -> Iterator[tuple[str, str]]:
    tag = f"{document['model']}:{document['version']}"
    yield f"{tag}: {headline(document)}", _KINDS.get(document["state"], "")
    if document.get("problem"):
        yield f"  as of {document['as_of']}: {document['problem']}", "warning"
    if not document["windows"]:
        return
    yield _row(_COLUMNS), "head"
    for window in document["windows"]:
        alarms = window["alarms"]
        yield _row(_cells(window)), "error" if alarms else ""
    statement = document["windows"][-1]["accuracy_without_labels"]["statement"]
    yield f"  accuracy without labels {statement}", "quiet"
    refused = [w["labels"]["refused"] for w in document["windows"] if w["labels"]]
    if refused and refused[-1]:
        yield f"  no accuracy by labels: {refused[-1]}", "warning"
    yield from _coverage_lines(document["windows"])
    budget = document["budget"]
    yield (
        f"  epsilon {budget['epsilon']:.2f} of {budget['cap']:g} is spent on the "
        f"releases of 365 days, at delta {budget['delta']:g}, per subject",
        "quiet",
    )


def _coverage_lines(windows: Sequence[Json]) -> Iterator[tuple[str, str]]:
    """What the last labels say of intervals and sets; servers before did not."""
    labelled = [w["labels"] for w in windows if w["labels"]]
    covered = labelled[-1].get("coverage") if labelled else None
    if not covered:
        return
    if covered["share"] is None:
        yield "  too few labels to say how often they are inside", "warning"
        return
    text = f"  {_interval(covered['share'])} of labels are inside"
    stated = f"{covered['stated']:g} are stated"
    if covered["below"]:
        yield f"{text}, and {stated}: intervals and sets are too small", "error"
    else:
        yield f"{text}; {stated}", ""


def _cells(window: Json) -> list[str]:
    subjects, alarms, most = window["subjects"], window["alarms"], largest(window)
    labels, without = window["labels"], window["accuracy_without_labels"]
    accuracy = None if labels is None else labels["accuracy"]
    return [
        window["name"],
        "-" if subjects is None else f"{subjects:,}",
        "-" if alarms is None else str(len(alarms)),
        window["withheld"] or ("-" if most is None else f"{most[1]:.3f} {most[0]}"),
        "-" if accuracy is None else _interval(accuracy),
        "-" if without["estimate"] is None else _interval(without["estimate"]),
    ]


def _interval(value: Json) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _row(cells: tuple[str, ...] | list[str]) -> str:
    shown = [cell.ljust(width) for cell, width in zip(cells, _WIDTHS)]
    return "  " + "  ".join(shown).rstrip()
