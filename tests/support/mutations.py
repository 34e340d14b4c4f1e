"""Documents that are almost right: one place changed, by hand or by hypothesis."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

DROP = object()

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 1 << 64])
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["\ud800", "latest", "\x00", "é" * 300])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def changed(document: Any, path: str, value: Any = DROP) -> Any:
    """A copy with the value at a path like ``inputs.0.name`` replaced, or dropped."""
    result = copy.deepcopy(document)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = result
    for part in parents:
        place = place[part]
    if value is DROP:
        del place[last]
    else:
        place[last] = value
    return result


def encode(document: Any) -> bytes:
    """JSON, NaN and lone surrogates included."""
    return json.dumps(document).encode()


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """A document with one random place replaced, dropped or added to."""
    path = draw(st.sampled_from(_paths(document, "")))
    if not path:
        return draw(JSON)
    if path.endswith("+"):
        return changed(document, path[:-1] + draw(st.text("abc", min_size=1)), 1)
    return changed(document, path, draw(st.just(DROP) | JSON))


def _paths(value: Any, prefix: str) -> list[str]:
    paths = [prefix[:-1]]
    if isinstance(value, dict):
        paths.append(prefix + "+")
        for name, child in value.items():
            if name and "." not in name and not name.isdigit():
                paths += _paths(child, f"{prefix}{name}.")
    if isinstance(value, list):
        for index, child in enumerate(value):
            paths += _paths(child, f"{prefix}{index}.")
    return paths
