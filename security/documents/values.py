"""A report's numbers and conditions as people read them, never better than they are."""

from __future__ import annotations

from models.report import Metric
from security.documents.markup import code, number

__all__ = ["condition", "interval", "metric_number", "metric_value"]

# What must not look smaller than it is.
_UP = ("epsilon", "epsilon_pld", "epsilon_rdp", "epsilon_dp_accounting_rdp", "delta")


def metric_number(name: str, metric: Metric) -> str:
    """A metric's value; epsilon and delta are rounded up."""
    return number(metric.value, "up" if name in _UP else "nearest")


def metric_value(name: str, metric: Metric) -> str:
    """A metric inside a sentence or a cell, with what it rests on."""
    within = f" ({interval(metric)})" if metric.low is not None else ""
    size = "" if metric.n is None else f", n = {metric.n}"
    return f"{metric_number(name, metric)}{within}{size}"


def interval(metric: Metric) -> str:
    """A metric's interval, rounded outward, and its level; "" without one."""
    if metric.low is None or metric.high is None or metric.confidence is None:
        return ""
    low, high = number(metric.low, "down"), number(metric.high, "up")
    level = metric.confidence
    sure = f"{number(level * 100)}%" if 0 < level < 1 else number(level)
    return f"{low} to {high} at {sure}"


def condition(value: object) -> str:
    """A condition of a report in a sentence or a cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return repr(value)
    return code(value) if isinstance(value, str) else "not stated"
