"""security.admission.lifecycle: its docstring says what its classes allow."""

from __future__ import annotations

import inspect
import typing

import pytest

from security.admission import lifecycle
from security.admission.lifecycle import (
    Admitted,
    Canary,
    Default,
    Live,
    Planned,
    Shadow,
    State,
    Warm,
    Withdrawn,
    arrange,
    find,
)

STATES = [Planned, Admitted, Warm, Default, Canary, Shadow, Withdrawn]
LIVE = {"Warm", "Default", "Canary", "Shadow"}


def told() -> dict[str, set[str]]:
    """State by state what may follow, as the docstring's table says."""
    names = {kind.__name__.lower() for kind in STATES}
    following: dict[str, set[str]] = {}
    current = ""
    for line in (lifecycle.__doc__ or "").splitlines():
        first, last = line[:11].strip(), line[58:]
        current = first if first in names else current
        if line.startswith("===") and following:
            break
        if current:
            found = {w.strip(",:;") for w in last.split()} & names
            found |= LIVE_NAMES if "what it was" in last else set()
            following.setdefault(current, set()).update(found)
    return following


LIVE_NAMES = {name.lower() for name in LIVE}


def allowed(kind: type) -> set[str]:
    found: set[str] = set()
    for _, method in inspect.getmembers(kind, inspect.isfunction):
        if not method.__name__.startswith("_"):
            name = str(
                typing.get_type_hints(method, localns={"V": lifecycle.V})["return"]
            )
            found |= {k.__name__.lower() for k in STATES if f".{k.__name__}" in name}
    return found


@pytest.mark.parametrize("kind", STATES, ids=lambda kind: kind.__name__)
def test_the_table_is_what_the_types_allow(kind: type) -> None:
    name = kind.__name__.lower()
    assert allowed(kind) - {name} == told()[name] - {name}


def test_a_version_is_brought_where_the_plan_has_it() -> None:
    states: list[Live[str]] = [
        Warm("m"),
        Default("m"),
        Canary("m", 5),
        Shadow("m", 7),
    ]
    for state in states:
        for plan in (Warm(0), Default(0), Canary(0, 1), Shadow(0, 2)):
            expected = {
                Warm: Warm("m"),
                Default: Default("m"),
                Canary: Canary("m", 1),
                Shadow: Shadow("m", 2),
            }[type(plan)]
            assert arrange(state, plan) == expected
            withdrawn = arrange(state.withdraw("why"), plan)
            assert withdrawn == Withdrawn(expected, "why")
            assert withdrawn.withdraw("now").restore() == expected


def test_who_is_withdrawn_keeps_its_part() -> None:
    states: dict[str, State[int]] = {
        "1": Default(0).withdraw("x"),
        "2": Canary(0, 5).withdraw("x"),
    }
    assert find(states, Default) == "1"
    assert find(states, Canary) == "2"
    assert find(states, Shadow) is None
