"""Figures of a check: those that stand alone, and those of groups beside each other.

A figure ``tpr/sex=F`` is of a group of ``sex``: the rates of one attribute's groups are
in one table, as bars. So is one figure of groups, if it is no rate (``mae/sex=F``), of
severities (``corruption_drop/noise=0.1``) or kinds (``agreement/scores_50``). Robust
accuracies are of radii; the first of them has its radius as a figure beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sealgate.charts import Bar
from security.assessment.reporting.words import figure_anchors, words

__all__ = ["Grouped", "grouped"]

# Of each table its title, what its bars are, and the bars by rate.
Grouped = list[tuple[str, str, list[tuple[str, list[Bar]]]]]


def grouped(result: Mapping[str, Any]) -> tuple[list[Bar], Grouped]:
    """The figures that stand alone, and tables of the others."""
    anchors, metrics = figure_anchors(result), result["metrics"]
    families: dict[tuple[str, str], list[tuple[str, Bar]]] = {}
    for name, metric in metrics.items():
        family, _, member = name.partition("/")
        attribute, text = _attribute(member)
        kind, _, norm = family.partition("_accuracy_")
        radius = metrics.get(f"radius_{norm}")
        if kind in ("robust", "verified") and radius:
            attribute, text = "radius", text or f"{radius['value']:g}"
        bar = Bar(
            text or words(family),
            metric["value"],
            metric.get("low"),
            metric.get("high"),
            metric.get("confidence"),
            metric.get("n"),
            anchors[name],
        )
        families.setdefault((family, attribute), []).append((name, bar))
    alone = [
        replace(bar, name=words(name))
        for members in families.values()
        for name, bar in members
        if len(members) < 2
    ]
    several = {
        key: _ordered([bar for _, bar in members])
        for key, members in families.items()
        if len(members) > 1
    }
    return alone, _tables(several)


def _tables(families: Mapping[tuple[str, str], list[Bar]]) -> Grouped:
    """Shares of one attribute's groups have one axis; other figures each their own."""
    shared = Counter(
        key[1] for key, bars in families.items() if key[1] and _shares(bars)
    )
    spread = Counter(family for family, _ in families)
    tables: dict[tuple[str, str], list[tuple[str, list[Bar]]]] = {}
    for (family, attribute), bars in families.items():
        title, by = _capital(words(family)), f"by {attribute}" if attribute else ""
        if _shares(bars) and shared[attribute] > 1:
            key, group = (_capital(by), attribute), words(family)
        elif spread[family] > 1:
            key, group = (title, ""), by
        else:
            key, group = (f"{title}, {by}" if by else title, attribute), ""
        tables.setdefault(key, []).append((group, bars))
    return [(title, first, groups) for (title, first), groups in tables.items()]


def _ordered(bars: list[Bar]) -> list[Bar]:
    """By their names where those are numbers, else as they come."""
    try:
        return sorted(bars, key=lambda bar: float(bar.name))
    except ValueError:
        return bars


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _attribute(member: str) -> tuple[str, str]:
    """What the groups are groups of, and which one this is.

    >>> _attribute("sex=F"), _attribute("sex=F,race=b"), _attribute("scores_50")
    (('sex', 'F'), ('sex, race', 'F, b'), ('', 'scores 50'))
    """
    pairs = [part.partition("=") for part in member.split(",")]
    if all(equals for _, equals, _ in pairs):
        names, _, values = zip(*pairs, strict=True)
        return ", ".join(names), ", ".join(values)
    return "", member.replace("_", " ")


def _shares(bars: Sequence[Bar]) -> bool:
    """Whether they may share an axis with others: each lies between 0 and 1."""
    ends = [end for bar in bars for end in (bar.value, bar.low, bar.high)]
    return all(end is None or 0 <= end <= 1 for end in ends)
